// The explorer in the browser: filters, what is selected, and the numbers of what is shown; the views are in
// explorer_views.js. Together one module that asks for nothing: plotly.js is the page's, or comes from the kernel.
// `data` is explorer.data().

const GLYPHS = {
  circle: "M1.5 7a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0",
  square: "M2 2h10v10h-10z",
  diamond: "M7 .5L13.5 7L7 13.5L.5 7z",
  "triangle-up": "M7 1L13.5 12H.5z",
  cross: "M5 .8h4v4.2h4.2v4H9v4.2H5V9H.8V5H5z",
};
const LISTED = 12; // rows of the table of selected runs
const COLUMNS = [
  ["run", (run) => run.name],
  ["validation loss", (run) => run.val_loss.toFixed(4)],
  ["top-1 (%)", (run) => run.finetune.toFixed(2)],
  ["Omega", (run) => short(run.omega)],
  ["overfit", (run) => (run.overfit ? "yes" : "no")],
];
const rules = (data) => `Overfit: the loss lies more than ${data.overfit} above that of the same size and length on all ` +
  "of ImageNet-1K, or of a shorter run of the same size and data. Omega is parameters × images seen / unique images², " +
  "of the longer run where two are compared. The turning points are where one of the published doublings of the length " +
  "is as likely to harm as not; the grey bands say how well they are known, to a factor of " + `${data.known_to}.`;
const many = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

/** An element with attributes (`onchange` and the like: listeners) and children; texts are texts, never markup. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  // JupyterLab would take arrow keys, space and letters for itself
  if (["input", "select", "button"].includes(tag)) node.setAttribute("data-lm-suppress-shortcuts", "true");
  node.append(...children);
  return node;
}

/** A mark as in the views: an outline, with a dot for overfit; or a filled one (`full`). */
function glyph(symbol, { dot = false, full = false } = {}) {
  const style = full ? "fill:currentColor" : "fill:none;stroke:currentColor;stroke-width:1.6";
  const inside = dot ? '<circle cx="7" cy="7" r="1.8" fill="currentColor"/>' : "";
  const at = make("span", { class: "glyph", "aria-hidden": "true" });
  at.innerHTML = `<svg viewBox="0 0 14 14"><path d="${GLYPHS[symbol]}" style="${style}"/>${inside}</svg>`;
  return at;
}

/** Pearson's correlation of two lists; null for fewer than three values, or where one does not vary. */
function pearson(x, y) {
  const n = x.length, mean = (v) => v.reduce((a, b) => a + b, 0) / n;
  const [mx, my] = [mean(x), mean(y)];
  const sum = (f) => x.reduce((total, _, k) => total + f(x[k] - mx, y[k] - my), 0);
  const scale = Math.sqrt(sum((a) => a * a) * sum((_, b) => b * b));
  return n > 2 && scale > 1e-12 ? sum((a, b) => a * b) / scale : null;
}

/** What the shown and the selected runs say, as paragraphs. */
function sentences({ data, shown, kept }) {
  const correlation = (some) => {
    const r = pearson(some.map((k) => data.runs[k].val_loss), some.map((k) => data.runs[k].finetune));
    return r === null ? "too few for a correlation" : `Pearson r = ${r.toFixed(3).replace("-", "−")}`;
  };
  const pairs = doublingsOf(data, shown), rose = pairs.filter((d) => d.loss_change > 0);
  const fell = pairs.filter((d) => d.loss_change <= 0);
  const counted = (some) => some.length === 0 ? "0" : `${some.length} (accuracy rose in ` +
    `${some.filter((d) => d.score_change > 0).length}, fell in ${some.filter((d) => d.score_change < 0).length})`;
  const overfit = shown.filter((k) => data.runs[k].overfit).length;
  return [
    make("p", {}, make("b", {}, `${shown.length} of ${many(data.runs.length, "run")}`), `, ${correlation(shown)}`,
      shown.length > 2 ? " of validation loss and accuracy" : "", `; ${overfit} overfit.`),
    make("p", {}, pairs.length === 0 ? "No run beside one that is half as long."
      : `${many(pairs.length, "doubling")} of the length: the loss fell in ${counted(fell)} ` +
        `and rose in ${counted(rose)}.`),
    make("p", {}, kept.length === 0 ? "Nothing is selected."
      : `Selected: ${many(kept.length, "run")}${kept.length > 2 ? `, ${correlation(kept)}` : ""}.`),
  ];
}

/** The selected runs as a table. */
function listing(data, kept) {
  const cut = kept.length > LISTED ? `, the first ${LISTED} of ${kept.length}` : "";
  const head = make("tr", {}, ...COLUMNS.map(([title]) => make("th", { scope: "col" }, title)));
  const row = (run) => make("tr", {}, ...COLUMNS.map(([, text]) => make("td", {}, text(run))));
  return make("table", {}, make("caption", {}, `Selected runs${cut}`), make("thead", {}, head),
    make("tbody", {}, ...kept.slice(0, LISTED).map((k) => row(data.runs[k]))));
}

/** Fill `el` with the explorer; returns what takes it down. */
function mount(el, data, plotly) {
  const { runs, doublings, facets, measures } = data;
  const picked = Object.fromEntries(facets.map(({ field }) => [field, new Set()]));
  const passes = (run, but) =>
    facets.every(({ field }) => field === but || !picked[field].size || picked[field].has(run[field]));
  let dark = false, drawn = false, frame = 0;
  const state = {
    data, measure: measures[0], fit: false, selected: new Set(), shown: [], kept: [],
    styles: Object.fromEntries(facets.map(({ field, options }) => [field, new Map(options.map((o) => [o.value, o]))])),
    colour: (option) => (dark ? option.dark : option.colour),
    ink: (name) => getComputedStyle(el).getPropertyValue(`--${name}`).trim(),
  };
  const select = (ids) => { state.selected = new Set(ids); update(); };

  // ---- controls; the filters are the legend as well ----
  const chips = [];
  const chip = ({ field }, option) => {
    const flip = () => { picked[field][box.checked ? "add" : "delete"](option.value); update(); };
    const box = make("input", { type: "checkbox", name: field, value: option.value, onchange: flip });
    const mark = option.symbol || option.dot ? glyph(option.symbol ?? "circle", { dot: option.dot })
      : option.colour ? glyph("circle", { full: true }) : "";
    const label = make("label", { class: "chip" }, box, mark, option.label);
    if (option.more) label.append(" ", make("small", {}, option.more));
    chips.push({ label, box, mark, field, option });
    return label;
  };
  const name = `measure-${Math.random()}`; // radio buttons of two explorers on a page are apart
  const choice = (option, k) => make("label", { class: "chip" }, make("input", {
    type: "radio", name, value: option.field, checked: k === 0, onchange: () => { state.measure = option; update(); },
  }), option.label);
  const group = (title, ...inside) =>
    make("fieldset", {}, make("legend", {}, title), make("div", { class: "chips" }, ...inside));
  const button = (text, onclick) => make("button", { type: "button", onclick }, text);
  const list = make("select", { onchange: () => select(list.value === "" ? [] : [Number(list.value)]) });
  const clear = button("Clear selection", () => { select([]); list.focus(); });
  const reset = button("Show all runs", () => {
    Object.values(picked).forEach((set) => set.clear());
    update();
    chips[0].box.focus(); // the button switches itself off, and would drop the focus
  });
  const fit = make("input", { type: "checkbox", onchange: () => { state.fit = fit.checked; update(); } });
  const says = make("div", { class: "says", role: "status" });
  const table = make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Selected runs" });
  const panels = data.views.map((view) =>
    ({ view, div: make("div", { class: "plot-here", role: "img", "data-view": view.id }) }));
  const small = (...texts) => make("p", { class: "small" }, ...texts);
  el.replaceChildren(
    ...facets.map((facet) => group(facet.title, ...facet.options.map((option) => chip(facet, option)))),
    group("Vertical axis", ...measures.map(choice), make("small", { class: "of" }, "of length, data and model size")),
    make("div", { class: "row" }, reset, make("label", {}, fit, "fit the axes to what is shown"),
      make("label", {}, "Look at", list), clear),
    says,
    make("div", { class: "grid" }, ...panels.map(({ view, div }) =>
      make("section", { class: "panel" }, make("h3", {}, view.title), make("p", {}, view.note), div))),
    table,
    small("Tick to narrow down: a row without a tick shows all of its kind. Click a mark, or drag a box around some, " +
      `to select them in every view; Escape clears. ${rules(data)}`),
  );

  const controls = () => {
    for (const { label, box, mark, field, option } of chips) {
      const left = runs.filter((run) => passes(run, field) && run[field] === option.value).length;
      label.classList.toggle("none", left === 0);
      label.title = `${many(left, "run")}, with the other rows as they are`;
      box.checked = picked[field].has(option.value);
      if (option.colour) mark.style.color = state.colour(option);
    }
    const { shown, kept } = state;
    list.replaceChildren(make("option", { value: "" }, kept.length > 1 ? `${kept.length} runs` : "one run …"),
      ...shown.map((k) => make("option", { value: k }, runs[k].name)));
    list.value = kept.length === 1 ? String(kept[0]) : "";
    clear.disabled = kept.length === 0;
    reset.disabled = Object.values(picked).every((set) => set.size === 0);
    table.hidden = kept.length === 0;
  };

  // ---- what is seen ----
  function update() {
    state.shown = runs.map((_, k) => k).filter((k) => passes(runs[k]));
    state.kept = state.shown.filter((k) => state.selected.has(k));
    controls();
    says.replaceChildren(...sentences(state));
    table.replaceChildren(listing(data, state.kept));
    if (drawn && !frame) frame = requestAnimationFrame(draw); // numbers at once, pictures once a frame
  }
  function draw() {
    frame = 0;
    for (const panel of panels) {
      const { view, div } = panel, { traces, points, layout } = chart(state, view);
      Object.assign(panel, { points, rings: traces.length - 1 });
      const axes = `${axisOf(state, view.y).title} against ${view.x.title}`;
      div.setAttribute("aria-label", `${view.title}: ${axes}, ${many(points.length, "mark")}`);
      plotly.react(div, traces, layout, { displayModeBar: false, doubleClick: false });
    }
  }
  /** Ring the given runs in every view. */
  function ring(ids) {
    for (const { view, div, points, rings } of panels) {
      const hit = points.filter((p) => p.id !== null && ids.includes(p.id));
      const [x, y] = [view.x, axisOf(state, view.y)].map(({ field }) => [hit.map((p) => p[field])]);
      plotly.restyle(div, { x, y }, [rings]);
    }
  }
  const ids = (event) => (event?.points ?? []).map((p) => p.customdata).filter(Number.isInteger);
  function listen({ view, div }) {
    div.on("plotly_hover", (event) => {
      const [id] = ids(event), both = view.of === "doublings" && doublings.find((d) => d.runs[1] === id)?.runs;
      ring(both || ids(event).slice(0, 1)); // of a doubling, the run that is half as long as well
    });
    div.on("plotly_unhover", () => ring([]));
    div.on("plotly_click", (event) => {
      const next = new Set(state.selected);
      ids(event).forEach((id) => next.delete(id) || next.add(id));
      select(next);
    });
    div.on("plotly_selected", (event) => event?.range && select(ids(event))); // no range: `draw` took the box away
    div.on("plotly_doubleclick", () => select([]));
  }

  // ---- theme, size, end ----
  const night = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => {
    const light = document.body.dataset.jpThemeLight; // JupyterLab's own theme goes first
    dark = light ? light === "false" : night.matches;
    el.classList.toggle("dark", dark);
    update();
  };
  const size = new ResizeObserver(() => {
    if (!el.clientWidth) return; // not on the page yet
    if (drawn) return panels.forEach(({ div }) => plotly.Plots.resize(div));
    drawn = true;
    draw();
    panels.forEach(listen);
    el.dataset.drawn = String(Math.round(performance.now())); // ms since the page was asked for
  });
  const escape = (event) => { if (event.key === "Escape" && state.selected.size) select([]); };
  const watch = new MutationObserver(theme);
  night.addEventListener("change", theme);
  watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  el.addEventListener("keydown", escape);
  theme();
  size.observe(el);
  return () => {
    cancelAnimationFrame(frame);
    size.disconnect();
    watch.disconnect();
    night.removeEventListener("change", theme);
    el.removeEventListener("keydown", escape);
    panels.forEach(({ div }) => plotly.purge(div));
  };
}

const inPage = () => document.querySelector(".sl-plotly"); // that of an executed notebook (evidence/drawing.py)

/** plotly.js, of the page or asked of the kernel. */
async function loaded(model) {
  const packed = inPage() ? Uint8Array.from(atob(inPage().textContent), (c) => c.charCodeAt(0)) : await new Promise((done) => {
    model.on("msg:custom", (message, buffers) => { if (message === "plotly") done(buffers[0]); });
    model.send("plotly");
  });
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const src = URL.createObjectURL(new Blob([await new Response(unpacked).blob()], { type: "text/javascript" }));
  await new Promise((onload, onerror) =>
    document.head.append(Object.assign(document.createElement("script"), { src, onload, onerror })));
  URL.revokeObjectURL(src);
  return globalThis.Plotly;
}

async function render({ model, el }) {
  if (model.kernel === false && !globalThis.Plotly && !inPage()) return; // el says where it is live
  const root = make("div", { class: "sl-explorer" }, "Loading the explorer … Run the cell again if this line stays.");
  el.classList.remove("sl-explorer"); // that of the twin, while it is not alive
  el.replaceChildren(root);
  globalThis.simmimPlotly ??= globalThis.Plotly ? Promise.resolve(globalThis.Plotly) : loaded(model); // once a page
  let plotly;
  try {
    plotly = await globalThis.simmimPlotly;
  } catch (error) {
    globalThis.simmimPlotly = undefined;
    root.textContent = `The explorer cannot load plotly.js (${error.message ?? error.type}): run the cell again.`;
    return;
  }
  return mount(root, model.get("data"), plotly);
}
