// The color modes of tokens: a value per labeled position, and the value of full color.

const MODES = {
  entropy: {
    name: "Entropy",
    about: "entropy, nats",
    most: () => 6,
    value: (sides, index) => sides[0].entropy[index],
    ofRow: (row) => row.mean_entropy,
  },
  nll: {
    name: "NLL",
    about: "−log p of the actual token, nats",
    most: () => 6,
    value: (sides, index) => -sides[0].token[index],
    ofRow: (row) => row.mean_nll,
  },
  coverage: {
    name: "Coverage",
    about: "mass outside the top-k",
    most: () => 0.4,
    value: (sides, index) => Math.exp(sides[0].tail[index]),
    ofRow: (row) => (row.coverage === null ? null : 1 - row.coverage),
  },
  kl: {
    name: "KL",
    about: "KL(A‖B), nats",
    most: (sides) => highest(sides[1]?.aToB),
    value: (sides, index) => {
      const place = sides[1]?.place.get(sides[0].at[index]);
      return place === undefined ? null : sides[1].aToB[place];
    },
    ofRow: (row) => row.nll_difference ?? null,
  },
};

// The 99th percentile, so that one outlier does not fade all other positions.
function highest(values) {
  if (!values || !values.length) return 1;
  const ordered = Float32Array.from(values).sort();
  return Math.max(ordered[Math.floor(0.99 * (ordered.length - 1))], 1e-6);
}

function strength(value, most) {
  if (value === null || value === undefined || Number.isNaN(value)) return 0;
  return Math.max(0, Math.min(1, value / most));
}

// A row's value in the list. KL would need all its labels, so mode `kl` shows the NLL difference.
function figure(mode, value) {
  if (value === null || value === undefined) return "–";
  if (mode === "coverage") return percent(1 - value);
  return mode === "kl" ? signed(value) : nats(value);
}
