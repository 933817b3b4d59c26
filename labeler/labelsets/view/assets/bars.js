// The distribution at one token as bars, of one label set or of two side by side.

const FIRST = 10;

function makeCard(vocabulary, facts, { onUnpin, onMore }) {
  const card = $("card");
  let everything = false;

  function rest(row) {
    card.classList.remove("open");
    const tips = [
      ["hover", "see the teacher's prediction for a token"],
      ["click  ⏎", "pin it"],
      ["←  →", "next token"],
      ["J  K  ↑  ↓", "next row"],
      ["/", "search"],
      ["1 – 4", "colors"],
      ["Esc", "unpin"],
    ];
    card.replaceChildren(
      el("h2", {}, row.n_labels ? "Pick a token" : "This row has no labels"),
      el("dl", { class: "tips" }, ...tips.flatMap(([key, about]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, about)])),
    );
  }

  function show(row, sides, position, pinned) {
    const shown = sides.map((side) => distribution(side, position));
    const id = row.ids[position];
    const kind = kinds(row).get(position);
    const pin = button(pinned ? "Pinned ✕" : "Close", { class: `quiet unpin${pinned ? " on" : ""}`, "aria-label": pinned ? "Unpin" : "Close" }, onUnpin);
    card.classList.add("open");
    card.replaceChildren(
      el("div", { class: "card-head" },
        el("span", { class: "chip big" }, ...token(id, row, position)),
        pin),
      el("p", { class: "small soft" }, `position ${position} of ${row.ids.length} · id ${id} · `, el("span", { class: "kind" }, kind)),
      ...(sides.length > 1 ? two(row, shown, id) : one(shown[0], id)),
    );
    return summary(shown, id);
  }

  function token(id, row, position) {
    return position !== undefined && row.joined[position] ? visible(clipped(row.joined[position], 60)) : vocabulary.show(id, false, 60);
  }

  function figures(pairs) {
    return el("dl", { class: "figures" }, ...pairs.map(([name, value, title]) => el("div", { title: title ?? false }, el("dt", {}, name), el("dd", {}, value))));
  }

  const entropyOf = (d) => `${d.entropyIsExact ? "" : "≥ "}${nats(d.entropy)}`;
  const rankOf = (d, id) => (d.probabilities.has(id) ? `${d.ids.indexOf(id) + 1}` : `> ${d.ids.length}`);

  function one(d, id) {
    const figuresShown = figures([
      ["rank", rankOf(d, id), "of the actual token among the teacher's choices"],
      ["p", percent(Math.exp(d.token))],
      ["log p", nats(d.token)],
      ["entropy", entropyOf(d), d.entropyIsExact ? "over the whole vocabulary, nats" : "of (top-k, tail): a lower bound, nats"],
    ]);
    const listed = everything ? d.ids : d.ids.slice(0, FIRST);
    const most = Math.max(d.probabilities.get(d.ids[0]) ?? 0, d.tail, 1e-9);
    const lines = listed.map((i, index) => bar(index + 1, vocabulary.show(i, false, 40), d.probabilities.get(i), most, i === id ? "actual" : "", vocabulary.say(i)));
    if (!listed.includes(id)) {
      const rank = d.probabilities.has(id) ? d.ids.indexOf(id) + 1 : null;
      lines.push(bar(rank, vocabulary.show(id, false, 40), Math.exp(d.token), most, "actual apart", vocabulary.say(id)));
    }
    const hidden = d.ids.slice(listed.length).reduce((sum, i) => sum + d.probabilities.get(i), 0);
    const tail = bar(null, [`tail, ${integers.format(facts.sets[0].vocab_size - d.ids.length)} ids`], d.tail, most, "tail", "tail");
    return [figuresShown, el("ol", { class: "bars" }, ...lines), more(d.ids.length - listed.length, hidden, d.ids.length), el("ol", { class: "bars" }, tail)];
  }

  function bar(rank, content, p, most, classes, name) {
    const length = el("span", { class: "length" });
    length.style.setProperty("--w", Math.min(1, p / most));
    const actual = classes.includes("actual");
    return el("li", { class: `bar ${classes}`, "aria-label": `${rank ?? ""} ${name}, ${percent(p)}${actual ? ", the actual token" : ""}` },
      el("span", { class: "rank" }, rank ?? (actual ? ">" : "")),
      el("span", { class: "chip" }, ...content),
      el("span", { class: "track" }, length),
      el("span", { class: "p" }, percent(p)));
  }

  function more(left, mass, k) {
    if (left <= 0 && (!everything || k <= FIRST)) return null;
    const label = everything ? `Show the first ${FIRST}` : `Show ${left} more · ${percent(mass)}`;
    return button(label, { class: "more", id: "more" }, () => {
      everything = !everything;
      onMore();
    });
  }

  function two(row, [a, b], id) {
    if (!b) {
      const why = row.diverges_at === undefined ? "The other set lacks this row." : "The other set has no label here after the same tokens.";
      return [el("p", { class: "note" }, why), ...one(a, id)];
    }
    const either = (i) => Math.max(a.probabilities.get(i) ?? 0, b.probabilities.get(i) ?? 0);
    const union = [...new Set([...a.ids, ...b.ids])].sort((x, y) => either(y) - either(x));
    const listed = everything ? union : union.slice(0, FIRST);
    if (!listed.includes(id)) listed.push(id);
    const of = (d, i) => (i === id ? Math.exp(d.token) : d.probabilities.get(i));
    const most = Math.max(either(union[0]), a.tail, b.tail, 1e-9);
    const lines = listed.map((i) => pair(vocabulary.show(i, false, 40), of(a, i), of(b, i), most, i === id ? "actual" : "", vocabulary.say(i)));
    const hidden = union.filter((i) => !listed.includes(i)).reduce((sum, i) => sum + (a.probabilities.get(i) ?? 0), 0);
    return [
      figures([["KL(A‖B)", small(b.aToB), "nats; a lower bound: over the ids that both store, and one outcome for all others"], ["KL(B‖A)", small(b.bToA), "nats; a lower bound"], ["Δ log p", signed(b.token - a.token), "of the actual token, B minus A"], ["seen", percent(b.seen), "A's mass on the ids that both store; KL is blind to differences in the rest"]]),
      el("div", { class: "pair pair-head" },
        el("span", { class: "of-a" }, `A · rank ${rankOf(a, id)} · H ${entropyOf(a)}`),
        el("span", { class: "of-b" }, `B · rank ${rankOf(b, id)} · H ${entropyOf(b)}`)),
      el("ol", { class: "bars" }, ...lines),
      more(union.length - listed.length, hidden, union.length),
      el("ol", { class: "bars" }, pair(["tail"], a.tail, b.tail, most, "tail", "tail")),
    ];
  }

  function pair(content, pa, pb, most, classes, name) {
    const half = (p, side) => {
      const length = el("span", { class: "length" });
      length.style.setProperty("--w", Math.min(1, (p ?? 0) / most));
      const text = el("span", { class: "p", title: p === undefined ? "outside its top-k" : false }, p === undefined ? "–" : percent(p));
      const track = el("span", { class: "track" }, length);
      return el("span", { class: `half ${side}` }, ...(side === "of-a" ? [text, track] : [track, text]));
    };
    const words = (p) => (p === undefined ? "outside the top-k" : percent(p));
    return el("li", { class: `bar pair ${classes}`, "aria-label": `${name}: A ${words(pa)}, B ${words(pb)}${classes === "actual" ? ", the actual token" : ""}` },
      half(pa, "of-a"), el("span", { class: "chip" }, ...content), half(pb, "of-b"));
  }

  // One sentence, for screen readers.
  function summary([a, b], id) {
    const first = a.ids.length ? `most likely ${vocabulary.say(a.ids[0])}, ${percent(a.probabilities.get(a.ids[0]))}; ` : "";
    const kl = b ? `; KL ${small(b.aToB)}` : "";
    return `actual ${percent(Math.exp(a.token))}, rank ${rankOf(a, id)}; ${first}entropy ${nats(a.entropy)} nats, tail ${percent(a.tail)}${kl}`;
  }

  return { show, rest };
}
