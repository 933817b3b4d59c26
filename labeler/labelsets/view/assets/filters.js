// Search, order and filters over the list; each change is a new query.

const SPREADS = { mean_entropy: "Mean entropy", mean_nll: "Mean NLL", coverage: "Coverage" };

function makeFilters(facts, onChange) {
  const ranges = {};
  const choices = {};
  const resets = [];
  let timer = null;

  const sorts = {
    number: "In file order", mean_entropy: "Mean entropy", mean_nll: "Mean NLL",
    coverage: "Coverage", n_labels: "Labels", n_tokens: "Length", id: "Id",
  };
  if (facts.sets.length > 1) sorts.nll_difference = "NLL of B minus A";
  for (const [value, name] of Object.entries(sorts)) $("sort").append(el("option", { value }, name));

  function query() {
    const parameters = {};
    if ($("search").value) parameters.search = $("search").value;
    for (const [name, value] of Object.entries(choices)) if (value !== null) parameters[name] = value;
    for (const [name, [least, most]] of Object.entries(ranges)) {
      if (least !== "") parameters[`min_${name}`] = least;
      if (most !== "") parameters[`max_${name}`] = most;
    }
    parameters.sort = $("sort").value;
    parameters.descending = $("direction").getAttribute("aria-pressed") === "true" ? "1" : "0";
    return parameters;
  }

  function changed() {
    clearTimeout(timer);
    const parameters = query();
    const active = Object.keys(parameters).filter((name) => !["sort", "descending"].includes(name));
    const filters = active.filter((name) => name !== "search").length;
    $("open-filters").textContent = filters ? `Filter (${filters})` : "Filter";
    $("clear").hidden = !active.length;
    onChange(parameters);
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(changed, 200);
  }

  function choice(name, title, options) {
    if (options.length < 2) return;
    const select = el("select", { id: `choose-${name}` }, el("option", {}, "any"));
    options.forEach(({ value, rows }) => {
      select.append(el("option", {}, `${clipped(value, 60)} (${integers.format(rows)})`));
    });
    choices[name] = null;
    const pick = (index) => {
      choices[name] = index ? options[index - 1].value : null;
    };
    select.addEventListener("change", () => {
      pick(select.selectedIndex);
      changed();
    });
    resets.push(() => {
      select.selectedIndex = 0;
      pick(0);
    });
    $("filters").append(el("label", { class: "field" }, el("span", {}, title), select));
  }

  function range(name, title, spread) {
    const least = el("input", { type: "number", step: "any", "aria-label": `Minimum ${title}`, id: `min-${name}` });
    const most = el("input", { type: "number", step: "any", "aria-label": `Maximum ${title}`, id: `max-${name}` });
    least.placeholder = spread.least.toFixed(3);
    most.placeholder = spread.most.toFixed(3);
    const bars = spread.counts.map((n) => {
      const bar = el("i", {});
      bar.style.setProperty("--h", Math.sqrt(n / Math.max(...spread.counts)));
      return bar;
    });
    const histogram = el("div", { class: "histogram", "aria-hidden": "true", title: "Drag to choose a range" }, ...bars);
    const width = (spread.most - spread.least) / bars.length;

    function take() {
      ranges[name] = [least.value, most.value];
      const low = least.value === "" ? -Infinity : Number(least.value);
      const high = most.value === "" ? Infinity : Number(most.value);
      bars.forEach((bar, index) => {
        const middle = spread.least + (index + 0.5) * width;
        bar.classList.toggle("out", middle < low || middle > high);
      });
    }

    function drag(from, to) {
      const [low, high] = from < to ? [from, to] : [to, from];
      least.value = low <= 0 ? "" : (spread.least + low * width).toFixed(4);
      most.value = high >= bars.length - 1 ? "" : (spread.least + (high + 1) * width).toFixed(4);
      take();
      soon();
    }

    const binAt = (event) => {
      const box = histogram.getBoundingClientRect();
      const place = Math.floor(((event.clientX - box.left) / box.width) * bars.length);
      return Math.max(0, Math.min(bars.length - 1, place));
    };
    let from = null;
    histogram.addEventListener("pointerdown", (event) => {
      from = binAt(event);
      histogram.setPointerCapture(event.pointerId);
      drag(from, from);
    });
    histogram.addEventListener("pointermove", (event) => from !== null && drag(from, binAt(event)));
    histogram.addEventListener("pointerup", () => (from = null));
    for (const input of [least, most]) {
      input.addEventListener("input", () => {
        take();
        soon();
      });
    }
    resets.push(() => {
      least.value = most.value = "";
      take();
    });
    take();
    $("filters").append(
      el("div", { class: "field range" }, el("span", {}, title), histogram,
        el("div", { class: "line" }, least, el("span", { class: "soft" }, "to"), most)),
    );
  }

  choice("source", "Source", facts.sources);
  choice("finish_reason", "Finish reason", facts.finish_reasons);
  for (const [name, title] of Object.entries(SPREADS)) {
    if (facts.spreads[name]) range(name, title, facts.spreads[name]);
  }
  $("search").addEventListener("input", soon);
  $("sort").addEventListener("change", () => {
    setDescending(!["number", "id"].includes($("sort").value));
    changed();
  });
  $("direction").addEventListener("click", () => {
    setDescending($("direction").getAttribute("aria-pressed") !== "true");
    changed();
  });
  $("open-filters").addEventListener("click", () => {
    const open = $("filters").hidden;
    $("filters").hidden = !open;
    $("open-filters").setAttribute("aria-expanded", String(open));
  });
  $("clear").addEventListener("click", () => {
    $("search").value = "";
    resets.forEach((reset) => reset());
    changed();
  });
  return { query };
}

function setDescending(on) {
  $("direction").setAttribute("aria-pressed", String(on));
  $("direction").textContent = on ? "↓" : "↑";
}
