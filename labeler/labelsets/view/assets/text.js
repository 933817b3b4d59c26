// A row as running text: labeled tokens are colored and focusable, all others plain.

function makeText(vocabulary, { onShow, onPin }) {
  const text = $("text");
  const strip = $("strip");
  const canvas = strip.querySelector("canvas");
  let sides = null;
  let row = null;
  let mode = "entropy";
  let tokens = new Map(); // labeled position -> element
  let reachable = null; // the token where Tab stops

  // A token's text as shown: joined with its neighbors where they share a character.
  function content(position, flows) {
    const id = row.ids[position];
    const joined = row.joined[position];
    if (joined === "") return [el("span", { class: "sign", title: vocabulary.texts[id] }, "◦")];
    return joined === undefined ? vocabulary.show(id, flows) : visible(joined, flows);
  }

  function render(newRow, newSides) {
    row = newRow;
    sides = newSides;
    tokens = new Map();
    reachable = null;
    const kindAt = kinds(row);
    const nodes = row.ids.map((id, position) => {
      const node = el("span", { class: "t", "data-t": position }, ...content(position, true));
      if (vocabulary.special.has(id)) node.classList.add("special");
      if (vocabulary.fragments.has(id) && row.joined[position] === undefined) {
        node.classList.add("fragment");
      }
      const kind = kindAt.get(position);
      if (kind === undefined) return node;
      node.classList.add("labeled");
      node.setAttribute("role", "button");
      node.setAttribute("aria-label", `${row.joined[position] ? spoken(row.joined[position]) : vocabulary.say(id)}, position ${position}, ${kind}`);
      node.tabIndex = -1;
      tokens.set(position, node);
      return node;
    });
    text.replaceChildren(...nodes);
    text.scrollTop = 0;
    if (sides[0].at.length) reach(sides[0].at[0]);
    color(mode);
  }

  function color(name) {
    mode = name;
    text.dataset.mode = mode;
    strip.dataset.mode = mode;
    const most = MODES[mode].most(sides);
    sides[0].at.forEach((position, index) => {
      const value = MODES[mode].value(sides, index);
      const node = tokens.get(position);
      node.classList.toggle("bare", value === null);
      node.style.setProperty("--v", strength(value, most).toFixed(3));
    });
    legend(most);
    draw();
  }

  function legend(most) {
    const ends = mode === "coverage" ? ["100 %", `${Math.round(100 * (1 - most))} %`] : ["0", mode === "kl" ? small(most) : `${most}+`];
    const scale = el("span", { class: "scale", "data-mode": mode });
    const about = mode === "coverage" ? "mass inside the top-k" : MODES[mode].about;
    $("legend").replaceChildren(el("span", {}, ends[0]), scale, el("span", {}, ends[1]), el("span", { class: "soft" }, about));
  }

  // The value along the whole row: one column per pixel, with the largest value at that pixel.
  function draw() {
    const width = strip.clientWidth;
    const height = strip.clientHeight;
    if (!row || !width) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.fillStyle = getComputedStyle(strip).getPropertyValue("--hue").trim();
    const most = MODES[mode].most(sides);
    const step = width / row.ids.length;
    const columns = new Float32Array(Math.max(1, Math.ceil(width / Math.max(1, step))));
    sides[0].at.forEach((position, index) => {
      const column = Math.floor((position * step) / Math.max(1, step));
      columns[column] = Math.max(columns[column], strength(MODES[mode].value(sides, index), most));
    });
    const wide = Math.max(1, step);
    columns.forEach((value, column) => {
      if (!value) return;
      pen.globalAlpha = 0.35 + 0.65 * value;
      const tall = Math.max(1, value * height);
      pen.fillRect(column * wide, height - tall, Math.max(0.75, wide - (wide > 3 ? 1 : 0)), tall);
    });
  }

  function mark(position, pinned) {
    text.querySelectorAll(".here").forEach((node) => node.classList.remove("here", "pinned"));
    const node = tokens.get(position);
    $("cursor").hidden = !node;
    if (!node) return;
    node.classList.add("here");
    node.classList.toggle("pinned", pinned);
    if (pinned) node.scrollIntoView({ block: "nearest" });
    $("cursor").style.left = `${(100 * (position + 0.5)) / row.ids.length}%`;
  }

  function reach(position) {
    if (reachable !== null && tokens.has(reachable)) tokens.get(reachable).tabIndex = -1;
    reachable = position;
    tokens.get(position).tabIndex = 0;
  }

  function focus(position) {
    const node = tokens.get(position);
    if (!node) return;
    node.focus({ preventScroll: true });
    node.scrollIntoView({ block: "nearest" });
  }

  // The position `step` labels away, or the first labeled one.
  function neighbor(position, step) {
    const at = sides[0].at;
    if (!at.length) return null;
    const index = sides[0].place.get(position);
    if (index === undefined) return at[0];
    return at[Math.max(0, Math.min(at.length - 1, index + step))];
  }

  const labeled = (event) => {
    const node = event.target.closest(".labeled");
    return node ? Number(node.dataset.t) : null;
  };
  text.addEventListener("pointerover", (event) => {
    const position = labeled(event);
    if (position !== null && event.pointerType !== "touch") onShow(position, false);
  });
  text.addEventListener("focusin", (event) => {
    const position = labeled(event);
    if (position === null) return;
    reach(position);
    // A press also focuses; its click decides what to show.
    if (event.target.matches(":focus-visible")) onShow(position, true);
  });
  text.addEventListener("click", (event) => {
    const position = labeled(event);
    if (position !== null && window.getSelection().isCollapsed) onPin(position);
  });
  strip.addEventListener("click", (event) => {
    const box = strip.getBoundingClientRect();
    const near = ((event.clientX - box.left) / box.width) * row.ids.length;
    const at = sides[0].at;
    if (!at.length) return;
    const nearest = at.reduce((best, position) => (Math.abs(position - near) < Math.abs(best - near) ? position : best));
    focus(nearest);
    onShow(nearest, false);
  });
  new ResizeObserver(() => draw()).observe(strip);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  return { render, color, mark, focus, neighbor };
}

function kinds(row) {
  const found = new Map();
  for (const [start, stop, kind] of row.spans) {
    for (let position = start; position < stop; position++) found.set(position, kind);
  }
  return found;
}

// A token's name for screen readers, which skip spaces and signs.
const BLANKS = { " ": "space", "\n": "new line", "\t": "tab", "": "nothing" };

function spoken(text) {
  if (!text.trim()) return BLANKS[text] ?? "blanks";
  return clipped(visible(text.trim()).map((part) => part.textContent ?? part).join(""), 60);
}
