// The page: connects its parts, handles keys, and keeps the current token in the address.

function makeVocabulary({ texts, fragments, special }) {
  const vocabulary = { texts, fragments: new Set(fragments), special: new Set(special) };
  vocabulary.say = (id) => (vocabulary.fragments.has(id) ? `byte ${texts[id]}` : spoken(texts[id] ?? `id ${id}`));
  vocabulary.show = (id, flows, most = LONGEST) => {
    const text = texts[id];
    if (text === undefined) return [`id ${id}`];
    if (text === "") return [el("span", { class: "sign" }, "∅")];
    if (vocabulary.fragments.has(id)) return [el("span", { class: "hex" }, text)];
    return visible(clipped(text, most), flows);
  };
  return vocabulary;
}

function header(facts, sample) {
  const short = (digest) => (digest ? digest.slice(0, 12) : "none");
  facts.sets.forEach((set, index) => {
    const chips = [
      ["teacher", (set.teacher ?? "unknown").split("/").pop()], ["k", set.k], ["codec", set.codec], ["dtype", set.dtype],
      ["rows", integers.format(set.rows)], ["labels", integers.format(set.labels)], ["identity", short(set.identity_digest)],
    ];
    $("sets").append(el("div", { class: "set" },
      facts.sets.length > 1 ? el("b", { class: `which ${"ab"[index]}` }, "AB"[index]) : null,
      el("strong", { title: set.path ?? false }, ...visible(set.name)),
      el("dl", {}, ...chips.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, ...visible(String(value))))))));
    const all = {
      ...(set.path ? { path: set.path } : {}), ...(set.view_of ? { "view of": set.view_of } : {}), teacher: set.teacher ?? "unknown", mode: set.mode, k: set.k, codec: set.codec, format: set.format_version,
      status: set.status, dtype: set.dtype, "head dtype": set.head_dtype, quantization: set.quantization ?? "none",
      vocabulary: integers.format(set.vocab_size), "longest sequence": `${integers.format(set.max_length)} tokens`,
      sampling: set.sampling ? JSON.stringify(set.sampling) : "none", ...set.late_settings, rows: integers.format(set.rows), tokens: integers.format(set.tokens),
      labels: integers.format(set.labels), size: bytes(set.bytes) + (set.view_of ? " for the whole set" : `, ${(set.bytes / Math.max(1, set.labels)).toFixed(0)} B per label`),
      weights: set.weights, tokenizer: set.tokenizer, "chat template": set.chat_template ?? "none", identity: set.identity_digest,
    };
    $("manifest-facts").append(el("h2", {}, facts.sets.length > 1 ? `${"AB"[index]}: ` : "", ...visible(set.name)),
      el("dl", { class: "facts" }, ...Object.entries(all).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, ...visible(String(value)))])));
  });
  if (sample) $("manifest-facts").prepend(el("p", { class: "note" }, "This page holds a sample of the set; the figures cover the whole set."));
  document.title = `${facts.sets.map((set) => set.name).join(" and ")} · labels`;
}

async function start() {
  const source = openSource();
  const fail = (error) => {
    $("text").replaceChildren(el("p", { class: "note error", role: "alert" }, ...visible(error.message, true)));
  };
  let begun;
  try {
    begun = await source.start();
  } catch (error) {
    fail(error);
    return;
  }
  const { facts, vocabulary: packed, sample } = begun;
  const vocabulary = makeVocabulary(packed);
  const wanted = /^#(\d+)(?::(\d+))?$/.exec(location.hash)?.slice(1).map(Number) ?? [];
  let row = null;
  let latest = null;
  let sides = [];
  let position = null;
  let pinned = false;
  let mode = facts.sets.length > 1 ? "kl" : "entropy";
  header(facts, sample);

  const text = makeText(vocabulary, { onShow: (at, byKey) => pinned || show(at, byKey), onPin: pin });
  const card = makeCard(vocabulary, facts, { onUnpin: release, onMore: () => show(position, false) });
  const list = makeList(source, { onSelect: open, onTotal: total, onError: fail });
  const filters = makeFilters(facts, (query) => list.ask(query));

  function total(found) {
    const all = sample ? null : facts.sets[0].rows;
    $("count").textContent = count(found, "row") + (all !== null && all !== found ? ` of ${integers.format(all)}` : "") + (sample ? " in this sample" : "");
    if (!found) $("text").replaceChildren(el("p", { class: "note" }, "No rows match."));
  }

  async function open(listed, index, all) {
    if (row?.number === listed.number && $("text").querySelector(".t")) return;
    latest = listed.number;
    let answer;
    try {
      answer = await source.row(listed.number);
    } catch (error) {
      if (latest !== listed.number) return;
      row = null;
      fail(error);
      return;
    }
    if (latest !== listed.number) return; // another row was requested meanwhile
    row = answer;
    sides = row.sides.map(unpack);
    pinned = false;
    position = null;
    $("row-id").replaceChildren(...visible(clipped(row.id, 200)));
    $("row-facts").replaceChildren(...rowFacts(row, index, all));
    text.render(row, sides);
    text.color(mode);
    text.mark(null, false);
    card.rest(row);
    const [number, at] = wanted.splice(0);
    if (number === row.number && sides[0].place.has(at)) pin(at);
    else note();
  }

  function show(at, byKey) {
    if (at === null) return;
    position = at;
    text.mark(at, pinned);
    const words = card.show(row, sides, at, pinned);
    if (byKey) $("announcement").textContent = words;
  }

  function pin(at) {
    pinned = !(pinned && position === at);
    show(at, false);
    note();
  }

  function release() {
    pinned = false;
    position = null;
    text.mark(null, false);
    card.rest(row);
    note();
  }

  function note() {
    history.replaceState(null, "", `#${row.number}${pinned ? `:${position}` : ""}`);
  }

  function setMode(name) {
    mode = name;
    $(`mode-${name}`).checked = true;
    if (row) text.color(mode);
    list.setMode(mode);
  }

  for (const name of Object.keys(MODES).filter((m) => m !== "kl" || facts.sets.length > 1)) {
    const input = el("input", { type: "radio", name: "mode", id: `mode-${name}`, value: name });
    input.addEventListener("change", () => setMode(name));
    $("modes").append(input, el("label", { for: `mode-${name}` }, MODES[name].name));
  }
  setMode(mode);

  const toggleList = (open) => {
    document.body.classList.toggle("listing", open);
    $("open-list").setAttribute("aria-expanded", String(open));
  };
  $("open-list").addEventListener("click", () => toggleList(!document.body.classList.contains("listing")));
  $("close-list").addEventListener("click", () => toggleList(false));
  $("list").addEventListener("click", (event) => event.target.closest(".item") && toggleList(false));
  $("mono").addEventListener("click", () => {
    const on = $("text").classList.toggle("mono");
    $("mono").setAttribute("aria-pressed", String(on));
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#manifest")) $("manifest").open = false;
  });
  $("previous").addEventListener("click", () => list.move(-1));
  $("next").addEventListener("click", () => list.move(1));

  const step = (by) => {
    const to = text.neighbor(position, by);
    if (to === null) return;
    pinned = false;
    text.focus(to);
    show(to, true);
  };
  const keys = {
    j: () => list.move(1), ArrowDown: () => list.move(1), k: () => list.move(-1), ArrowUp: () => list.move(-1),
    ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    Enter: () => position !== null && pin(position),
    Escape: () => {
      if ($("manifest").open) $("manifest").open = false;
      else if (document.body.classList.contains("listing")) toggleList(false);
      else if (row) release();
    },
    "/": () => {
      toggleList(true);
      $("search").focus();
    },
  };
  $("modes").querySelectorAll("input").forEach((input, index) => (keys[index + 1] = () => setMode(input.value)));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input[type=search], input[type=number], select");
    if (typing && event.key === "Escape") event.target.blur();
    const pressing = event.key === "Enter" && event.target.matches("button, summary, .item");
    if (typing || pressing || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  list.ask(filters.query(), wanted[0]);
}

function rowFacts(row, index, all) {
  const part = [row.chunk ? `chunk ${row.chunk}` : null, row.sample ? `sample ${row.sample}` : null, row.source, row.finish_reason ? `finish reason ${row.finish_reason}` : null, row.parent_id ? `made from ${row.parent_id}` : null];
  const facts = [
    `${integers.format(index + 1)} of ${integers.format(all)}`, ...part, `${count(row.n_tokens, "token")}, ${count(row.n_labels, "label")}`,
    `entropy ${nats(row.mean_entropy)}`, `NLL ${nats(row.mean_nll)}`, `coverage ${row.coverage === null ? "–" : percent(row.coverage)}`,
  ].filter(Boolean);
  const nodes = facts.map((fact) => el("span", {}, ...visible(clipped(fact, 120))));
  if (row.diverges_at !== undefined && row.diverges_at !== null) {
    nodes.push(el("span", { class: "warn" }, `B has other tokens from position ${row.diverges_at} on`));
  }
  if (row.meta) nodes.push(el("span", { title: "the record's other columns" }, ...visible(clipped(row.meta, 300))));
  return nodes;
}

start();
