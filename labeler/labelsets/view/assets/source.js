// The source of rows: data inside the page, or the server that sent it, behind one interface.

const RANGES = ["mean_entropy", "mean_nll", "coverage"];

function openSource() {
  const data = JSON.parse($("data").textContent);
  return data.facts ? embedded(data) : served();
}

function served() {
  const ask = async (path, query) => {
    const url = query ? `${path}?${new URLSearchParams(query)}` : path;
    let response;
    try {
      response = await fetch(url);
    } catch {
      throw new Error("the server does not answer; start `labeler view` again");
    }
    const content = await response.json();
    if (!response.ok) throw new Error(content.error);
    return content;
  };
  return {
    numbered: true, // without a query, a row's place in the list is its number
    start: () => ask("api/start"),
    rows: (query, offset, limit) => ask("api/rows", { ...query, offset, limit }),
    row: (number) => ask("api/row", { number }),
  };
}

function embedded(data) {
  return {
    start: async () => ({ facts: data.facts, vocabulary: data.vocabulary, sample: true }),
    rows: async (query, offset, limit) => {
      const found = sorted(data.rows.filter((row) => matches(row, query)), query);
      return { total: found.length, rows: found.slice(offset, offset + limit) };
    },
    row: async (number) => data.contents[number],
  };
}

function matches(row, query) {
  if (query.search && !row.text.includes(query.search.toLowerCase())) return false;
  for (const name of ["source", "finish_reason"]) {
    if (query[name] !== undefined && row[name] !== query[name]) return false;
  }
  return RANGES.every((name) => {
    const least = query[`min_${name}`];
    const most = query[`max_${name}`];
    if (least === undefined && most === undefined) return true;
    if (row[name] === null) return false;
    return !(row[name] < Number(least ?? -Infinity)) && !(row[name] > Number(most ?? Infinity));
  });
}

function sorted(rows, query) {
  const name = query.sort ?? "number";
  const direction = query.descending === "1" ? -1 : 1;
  const missing = (row) => row[name] === null || row[name] === undefined;
  return rows.sort((a, b) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return direction * (a[name] < b[name] ? -1 : a[name] > b[name] ? 1 : 0);
  });
}

// Unpack labels into typed arrays; `labeler.labelsets.view.page_data` describes the packing.
function unpack(side) {
  const floats = (text) => new Float32Array(buffer(text));
  const Ids = side.id_bytes === 2 ? Uint16Array : Uint32Array;
  return {
    at: side.at,
    place: new Map(side.at.map((position, index) => [position, index])),
    k: side.k,
    pad: 2 ** (8 * side.id_bytes) - 1,
    ids: new Ids(buffer(side.topk_ids)),
    logprobs: Float32Array.from(new Uint16Array(buffer(side.topk_logprobs)), half),
    tail: floats(side.tail_logprob),
    token: floats(side.token_logprob),
    entropy: floats(side.entropy),
    entropyIsExact: side.entropy_is_exact,
    aToB: side.a_to_b === undefined ? null : floats(side.a_to_b),
    bToA: side.b_to_a === undefined ? null : floats(side.b_to_a),
    seen: side.common_mass === undefined ? null : floats(side.common_mass),
  };
}

function buffer(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
}

// Convert IEEE 754 binary16 to a number.
function half(bits) {
  const signOf = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = (bits & 0x3ff) / 1024;
  if (exponent === 0x1f) return fraction ? NaN : signOf * Infinity;
  return exponent ? signOf * 2 ** (exponent - 15) * (1 + fraction) : signOf * 2 ** -14 * fraction;
}

// A side's distribution at a position: ids and probabilities, most likely first; null if unlabeled.
function distribution(side, position) {
  const index = side?.place.get(position);
  if (index === undefined) return null;
  const ids = [];
  const probabilities = new Map();
  for (let j = index * side.k; j < (index + 1) * side.k; j++) {
    if (side.ids[j] === side.pad) break;
    ids.push(side.ids[j]);
    probabilities.set(side.ids[j], Math.exp(side.logprobs[j]));
  }
  return {
    ids,
    probabilities,
    tail: Math.exp(side.tail[index]),
    token: side.token[index],
    entropy: side.entropy[index],
    entropyIsExact: side.entropyIsExact,
    aToB: side.aToB?.[index],
    bToA: side.bToA?.[index],
    seen: side.seen?.[index],
  };
}
