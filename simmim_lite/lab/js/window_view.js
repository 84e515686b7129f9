// The window view as a widget of its own: a geometry, a mask from numbers, and the view of windows.js.

const _TOKEN = 4; // pixels a side
const _GEOMETRIES = {
  "192-12": { text: "192 px, window 12, blocks 2-2-18-2", pixels: 192, window: 12, depths: [2, 2, 18, 2], patches: [8, 16, 32, 64], patch: 32 },
  "192-6": { text: "192 px, window 6, blocks 2-2-18-2", pixels: 192, window: 6, depths: [2, 2, 18, 2], patches: [8, 16, 32, 64], patch: 32 },
  "32-4": { text: "32 px, window 4, blocks 2-2", pixels: 32, window: 4, depths: [2, 2], patches: [4, 8, 16], patch: 8 },
};
const _MASKS = 300; // masks of an average

/** Blind first-stage windows, not shifted and shifted, as they are on average over masks of this kind. For random masks
 *  exactly: a window that touches n of the cells is blind with probability C(hidden, n) / C(cells, n). Else over seeds. */
function usualBlind({ pixels, window: w }, patch, ratio, strategy) {
  const side = pixels / _TOKEN, cells = pixels / patch, shifts = [0, side > w ? w >> 1 : 0];
  if (strategy === "random") {
    const hidden = hiddenCount(cells * cells, ratio), unit = patch / _TOKEN;
    return shifts.map((shift) => {
      const touched = Array.from({ length: side / w }, (_, k) => new Set(Array.from({ length: w }, (_, i) => Math.floor(((k * w + i + shift) % side) / unit))).size);
      const all = (n) => Array.from({ length: n }, (_, j) => Math.max(0, hidden - j) / (cells * cells - j)).reduce((a, b) => a * b, 1);
      return touched.flatMap((y) => touched.map((x) => all(y * x))).reduce((a, b) => a + b, 0);
    });
  }
  const sum = [0, 0];
  for (let seed = 0; seed < _MASKS; seed++) {
    const tokens = upsample(hashMask(cells, cells, ratio, seed, 0, 0, strategy), cells, patch / _TOKEN);
    shifts.forEach((shift, k) => { sum[k] += countOf(blindWindows(tokens, side, w, shift)); });
  }
  return sum.map((total) => total / _MASKS);
}

function render({ model, el }) {
  el.classList.add("sl-lab");
  let picture = null;
  const geometry = () => _GEOMETRIES[model.get("geometry")];
  const set = (name, value) => { model.set(name, value); model.save_changes(); refresh(); };
  const patches = (chosen) => geometry().patches.map((p) => [p, `${p} px: ${(geometry().pixels / p) ** 2} cells`]);
  const size = select("Network", { options: Object.entries(_GEOMETRIES).map(([name, { text }]) => [name, text]), value: model.get("geometry"), change: (name) => {
    model.set("geometry", name); model.set("mask_patch", geometry().patch); cell.fill(patches(), geometry().patch); set("geometry", name);
  } });
  const cell = select("Mask patch", { options: patches(), value: model.get("mask_patch"), change: (v) => set("mask_patch", Number(v)) });
  const kind = select("Strategy", { options: Object.keys(STRATEGIES).map((s) => [s, s]), value: model.get("strategy"), change: (v) => set("strategy", v) });
  const ratio = slider("Mask ratio", { min: 0, max: 1, step: 0.05, value: model.get("ratio"), show: (v) => `${Math.round(100 * v)} %`, change: (v) => set("ratio", v) });
  const seed = slider("Seed", { min: 0, max: 199, step: 1, value: model.get("seed"), change: (v) => set("seed", v) });
  const body = h("div", { class: "sl-windows" }), count = h("p", { class: "sl-quiet sl-count" });
  el.replaceChildren(h("div", { class: "sl-controls sl-pairs" }, size.element, ratio.element, cell.element, seed.element, kind.element, count), body);

  const now = () => {
    const { pixels, window: w, depths } = geometry(), patch = model.get("mask_patch"), cells = pixels / patch;
    const mask = hashMask(cells, cells, model.get("ratio"), model.get("seed"), 0, 0, model.get("strategy"));
    const hidden = countOf(mask);
    count.textContent = `${hidden} of ${few(mask.length, "cell")} hidden: ${((100 * hidden) / mask.length).toFixed(1)} %, in tokens of ${_TOKEN} px.`;
    return { tokens: upsample(mask, cells, patch / _TOKEN), side: pixels / _TOKEN, window: w, depths, picture, means: null };
  };
  const view = mountWindows(body, now());
  const average = rested(150, () => view.update({ means: usualBlind(geometry(), model.get("mask_patch"), model.get("ratio"), model.get("strategy")) }));
  const refresh = () => { view.update(now()); average(); };
  average();
  ["geometry", "mask_patch", "ratio", "strategy", "seed"].forEach((name) => model.on(`change:${name}`, () => {
    size.set(model.get("geometry")); cell.fill(patches(), model.get("mask_patch")); kind.set(model.get("strategy")); ratio.set(model.get("ratio")); seed.set(model.get("seed"));
    if (model.kernel !== false) refresh();
  }));
  const image = new Image();
  image.onload = () => { picture = image; view.update({ picture }); };
  image.src = model.get("picture");
  return view.stop;
}
