// The list of rows: only visible lines are in the page, and only their pages are requested.

const LINE = 58; // CSS pixels per row
const PAGE = 100; // rows per request
const MOST = 500000; // lines; browsers limit the height of an element

function makeList(source, { onSelect, onTotal, onError }) {
  const list = $("list");
  const spacer = $("spacer");
  let query = {};
  let mode = "entropy";
  let total = 0;
  let pages = new Map();
  let selected = -1;
  let generation = 0; // answers to older queries are dropped

  function load(page) {
    if (pages.has(page)) return pages.get(page);
    const started = generation;
    const entry = { rows: null };
    entry.ready = source.rows(query, page * PAGE, PAGE).then((answer) => {
      if (started !== generation) return null;
      entry.rows = answer.rows;
      return answer;
    });
    pages.set(page, entry);
    return entry;
  }

  async function rowAt(index) {
    const entry = load(Math.floor(index / PAGE));
    await entry.ready;
    return entry.rows?.[index % PAGE];
  }

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / LINE) - 5);
    const last = Math.min(total, Math.ceil((list.scrollTop + list.clientHeight) / LINE) + 5);
    const lines = [];
    for (let index = first; index < last; index++) {
      const entry = load(Math.floor(index / PAGE));
      if (!entry.rows) entry.ready.then((answer) => answer && draw()).catch(onError);
      lines.push(line(index, entry.rows?.[index % PAGE]));
    }
    spacer.style.height = `${total * LINE}px`;
    spacer.replaceChildren(...lines);
    if (selected >= first && selected < last) {
      list.setAttribute("aria-activedescendant", `line-${selected}`);
    } else list.removeAttribute("aria-activedescendant");
  }

  function line(index, row) {
    const node = el("div", {
      class: "item", role: "option", id: `line-${index}`, "data-index": index,
      "aria-selected": String(index === selected), "aria-posinset": index + 1, "aria-setsize": total,
    });
    node.style.top = `${index * LINE}px`;
    if (!row) return node;
    const part = [row.chunk ? `chunk ${row.chunk}` : null, row.sample ? `sample ${row.sample}` : null];
    const about = [count(row.n_labels, "label"), row.finish_reason, row.source].filter(Boolean);
    const value = MODES[mode].ofRow(row);
    const title = mode === "kl" ? "mean NLL of B minus A" : `mean ${MODES[mode].name}`;
    const pill = el("span", { class: "pill", "data-mode": mode, title }, figure(mode, value));
    pill.style.setProperty("--v", mode === "kl" ? strength(Math.abs(value), 0.5) : strength(value, MODES[mode].most()));
    node.append(
      el("span", { class: "item-id" }, ...visible(clipped(row.id, 120))),
      pill,
      el("span", { class: "item-about" }, ...visible(clipped([...part.filter(Boolean), ...about].join(" · "), 160))),
    );
    return node;
  }

  async function select(index, { keepScroll } = {}) {
    if (index < 0 || index >= total) return;
    selected = index;
    if (!keepScroll) {
      const top = index * LINE;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + LINE > list.scrollTop + list.clientHeight) {
        list.scrollTop = top + LINE - list.clientHeight;
      }
    }
    draw();
    const started = generation;
    try {
      const row = await rowAt(index);
      if (started === generation && selected === index && row) onSelect(row, index, total);
    } catch (error) {
      onError(error);
    }
  }

  // `wanted` is the number of the row to open, instead of the first one.
  async function ask(newQuery, wanted) {
    query = newQuery;
    generation += 1;
    pages = new Map();
    const started = generation;
    try {
      const answer = await load(0).ready;
      if (started !== generation || !answer) return;
      total = Math.min(answer.total, MOST);
      onTotal(answer.total);
      selected = -1;
      list.scrollTop = 0;
      const at = answer.rows.findIndex((row) => row.number === wanted);
      const far = source.numbered && wanted < total ? wanted : 0; // a row past the first page
      if (total) await select(at < 0 ? far : at);
      else draw();
    } catch (error) {
      onError(error);
    }
  }

  list.addEventListener("scroll", () => requestAnimationFrame(draw));
  new ResizeObserver(() => draw()).observe(list);
  list.addEventListener("click", (event) => {
    const item = event.target.closest(".item");
    if (item) select(Number(item.dataset.index), { keepScroll: true });
  });
  return {
    ask,
    move: (step) => select(selected < 0 ? 0 : selected + step),
    setMode: (name) => {
      mode = name;
      draw();
    },
  };
}
