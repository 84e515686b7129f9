// The film-strip: one PNG a film, cut into pictures here. A run is scrubbed along its loss, a grid is looked at whole.

const _SVG = "http://www.w3.org/2000/svg";
const svg = (tag, attributes = {}, ...children) => {
  const element = document.createElementNS(_SVG, tag);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  element.append(...children);
  return element;
};
const whole = (n) => n.toLocaleString("en");
const loss4 = (value) => (value === null || value === undefined ? "not known" : value.toFixed(4));
const networkName = (model) => model.replace("swinv2_", "");

/** A canvas with picture (column, row) of a film's sheet; row 0 is the picture itself. */
function cut(film, label) {
  const canvas = board(film.side, label);
  return { canvas, show(column, row) { canvas.getContext("2d").drawImage(film.image, column * film.side, row * film.side, film.side, film.side, 0, 0, film.side, film.side); } };
}

/** Grey over the hidden cells of a picture, as the network sees it. */
function greyOut(canvas, cells) {
  const context = canvas.getContext("2d"), cell = canvas.width / cells.length;
  context.fillStyle = "rgb(128 128 128)";
  cells.forEach((row, y) => row.forEach((hidden, x) => hidden && context.fillRect(x * cell, y * cell, cell, cell)));
}

/** A run: pictures above each other (picture, seen, filled in), a slider along the frames, the loss with a marker. */
function mountRun(el, film) {
  const { frames, run, cells } = film, still = window.matchMedia("(prefers-reduced-motion: reduce)");
  let at = frames.length - 1, timer = 0;
  const filled = cells.map((_, i) => cut(film, `Picture ${i + 1}, filled in`)), notes = cells.map(() => h("output"));
  const cards = cells.map((mask, i) => {
    const picture = cut(film, `Picture ${i + 1}`), seen = cut(film, `Picture ${i + 1}, as the network sees it`);
    picture.show(i, 0); seen.show(i, 0); greyOut(seen.canvas, mask);
    return h("figure", {}, picture.canvas, seen.canvas, filled[i].canvas, h("figcaption", {}, notes[i]));
  });
  const names = ["Picture", "Seen", "Filled in"].map((name) => h("span", {}, name));
  const title = h("h3"), chart = lossChart(film, (k) => { stop(); go(k); });
  const scrub = slider("Frame", { min: 0, max: frames.length - 1, step: 1, value: at, show: (k) => `step ${whole(frames[k].step)}`, change: (k) => { stop(); go(k); } });
  const play = button("Play", () => (timer ? stop() : start()), { "data-act": "play" });
  const back = button("◀ Back", () => { stop(); go(at - 1); }, { "data-act": "back", "aria-label": "One frame back" });
  const next = button("Next ▶", () => { stop(); go(at + 1); }, { "data-act": "next", "aria-label": "One frame on" });
  const data = run.images === null ? "all images" : `${whole(run.images)} images`;
  const about = `${run.model} on ${data} of ${run.data}, ${whole(run.steps)} steps of ${run.batch_size}, seed ${run.seed}; pictures it was never trained on, under the same masks in every frame.`;
  el.replaceChildren(h("p", { class: "sl-quiet" }, about), h("div", { class: "sl-film" }, h("div", { class: "sl-rows" }, ...names), ...cards),
    h("div", { class: "sl-columns sl-even" }, h("div", {}, title, h("div", { class: "sl-controls" }, scrub.element), h("div", { class: "sl-row" }, back, next, play), provenance(film)), chart.element));

  function go(to) {
    at = Math.min(Math.max(to, 0), frames.length - 1);
    const frame = frames[at];
    scrub.set(at); back.disabled = at === 0; next.disabled = at === frames.length - 1; play.hidden = still.matches;
    title.textContent = `Step ${whole(frame.step)}: validation loss ${loss4(frame.val_loss)}`;
    scrub.input.setAttribute("aria-valuetext", `step ${frame.step}, validation loss ${loss4(frame.val_loss)}`);
    filled.forEach((one, i) => { one.show(i, at + 1); notes[i].replaceChildren(h("span", {}, "loss "), frame.each[i].toFixed(3)); });
    chart.mark(at);
  }
  function start() {
    if (at === frames.length - 1) go(0);
    timer = setInterval(() => (at < frames.length - 1 && el.isConnected ? go(at + 1) : stop()), 700);
    play.textContent = "Pause";
  }
  function stop() { clearInterval(timer); timer = 0; play.textContent = "Play"; }
  go(at);
  return stop;
}

/** The losses along the steps (square-root axis: much happens early), with a marker that can be clicked along. */
function lossChart({ frames, curve, run }, change) {
  const W = 460, H = 230, left = 46, right = 24, top = 12, bottom = 40;
  const val = frames.filter((f) => f.val_loss !== null), train = (curve || []).filter((p) => p.train_loss !== null);
  const values = [...val.map((p) => p.val_loss), ...train.map((p) => p.train_loss)];
  if (!values.length) return { element: h("p", { class: "sl-quiet" }, "No losses are known for these frames: the run has no record."), mark() {} };
  const low = Math.min(...values), high = Math.max(...values);
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].find((s) => (high - low) / s <= 6) || 2, floor = Math.floor(low / step) * step, roof = Math.ceil(high / step) * step;
  const X = (s) => left + (W - left - right) * Math.sqrt(s / Math.max(1, run.steps)), Y = (v) => top + (H - top - bottom) * (1 - (v - floor) / Math.max(1e-9, roof - floor));
  const line = (points, name, key) => svg("polyline", { class: name, points: points.map((p) => `${X(p.step).toFixed(1)},${Y(p[key]).toFixed(1)}`).join(" ") });
  const text = (x, y, words, anchor = "middle") => svg("text", { x, y, "text-anchor": anchor }, words);
  const chart = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "sl-chart", role: "img", "aria-label": `Validation loss from ${loss4(val.length ? val[0].val_loss : null)} to ${loss4(val.length ? val[val.length - 1].val_loss : null)} over ${run.steps} steps` });
  for (let k = 0; k <= Math.round((roof - floor) / step); k++) chart.append(svg("line", { class: "rule", x1: left, x2: W - right, y1: Y(floor + k * step), y2: Y(floor + k * step) }), text(left - 6, Y(floor + k * step) + 4, (floor + k * step).toFixed(step < 0.1 ? 2 : 1), "end"));
  for (const share of [0, 0.01, 0.1, 0.25, 0.5, 1]) chart.append(text(X(share * run.steps), H - bottom + 18, whole(Math.round(share * run.steps))));
  chart.append(text((left + W - right) / 2, H - 6, "optimiser steps (square-root axis)"), line(train, "train", "train_loss"), line(val, "val", "val_loss"));
  val.forEach((p) => chart.append(svg("circle", { class: "dot", cx: X(p.step), cy: Y(p.val_loss), r: 3.5 })));
  const cursor = svg("line", { class: "cursor", y1: top, y2: H - bottom }), spot = svg("circle", { class: "spot", r: 6.5 });
  chart.append(cursor, spot);
  chart.addEventListener("pointerdown", (event) => {
    const box = chart.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * W;
    change(frames.reduce((best, f, k) => (Math.abs(X(f.step) - x) < Math.abs(X(frames[best].step) - x) ? k : best), 0));
  });
  const key = h("p", { class: "sl-quiet" }, h("span", { class: "sl-val" }, "●"), " validation loss of each frame", train.length ? h("span", {}, " · ", h("span", { class: "sl-train" }, "━"), " training loss") : "", " (L1 on hidden pixels, in standard deviations)");
  return { element: h("div", {}, chart, key), mark(k) {
    const f = frames[k];
    cursor.setAttribute("x1", X(f.step)); cursor.setAttribute("x2", X(f.step));
    spot.setAttribute("visibility", f.val_loss === null ? "hidden" : "visible");
    spot.setAttribute("cx", X(f.step)); spot.setAttribute("cy", Y(f.val_loss ?? floor));
  } };
}

/** A grid: one picture at a time, filled in by every size (down) and data level (across). */
function mountGrid(el, film) {
  const { frames, cells, run } = film, models = [...new Set(frames.map((f) => f.model))], levels = [...new Set(frames.map((f) => f.images))];
  const picture = cut(film, "Picture"), seen = cut(film, "As the network sees it"), places = frames.map((f) => cut(film, `${f.model} on ${f.images} images`));
  const losses = frames.map(() => h("output")), title = h("h3");
  const scrub = slider("Picture", { min: 1, max: cells.length, step: 1, value: 1, show: (k) => `${k} of ${cells.length}`, change: (k) => go(k - 1) });
  const level = (n) => (n === null ? "all images" : `${whole(n)} images`);
  const cell = (model, images) => {
    const k = frames.findIndex((f) => f.model === model && f.images === images);
    return h("td", {}, k < 0 ? "not run" : h("figure", {}, places[k].canvas, h("figcaption", {}, losses[k])));
  };
  const table = h("table", { class: "sl-grid" }, h("thead", {}, h("tr", {}, h("td"), ...levels.map((n) => h("th", { scope: "col" }, level(n))))),
    h("tbody", {}, ...models.map((m) => h("tr", {}, h("th", { scope: "row" }, networkName(m)), ...levels.map((n) => cell(m, n))))));
  const pair = h("div", { class: "sl-pair" }, h("figure", {}, picture.canvas, h("figcaption", {}, "Picture")), h("figure", {}, seen.canvas, h("figcaption", {}, "What the network sees")));
  el.replaceChildren(h("p", { class: "sl-quiet" }, `${whole(run.steps)} steps of ${run.batch_size} on ${run.data}, seed ${run.seed}: larger networks down, more data across; pictures none of them was trained on. Below each, the loss of this picture, and in grey the validation loss with its standard error.`),
    h("div", { class: "sl-columns sl-even" }, h("div", {}, title, h("div", { class: "sl-controls" }, scrub.element), pair, provenance(film)), table));
  function go(i) {
    title.textContent = `Picture ${i + 1}`;
    picture.show(i, 0); seen.show(i, 0); greyOut(seen.canvas, cells[i]);
    frames.forEach((f, k) => { places[k].show(i, k + 1); losses[k].replaceChildren(f.each[i].toFixed(3), h("br"), h("span", { class: "sl-quiet" }, `${f.val_loss.toFixed(3)} ± ${f.val_loss_se.toFixed(3)}`)); });
  }
  go(0);
  return () => {};
}

/** Where a film was made. */
function provenance({ key, where }) {
  if (!where) return false;
  const made = `${(where.finished || "").slice(0, 10)}, commit ${(where.commit || "unknown").slice(0, 10)}, torch ${(where.versions || {}).torch}, ${where.device}`;
  return h("p", { class: "sl-quiet sl-made" }, key === "grid" ? `Made ${made}.` : `Run ${key}. Made ${made}.`);
}

function render({ model, el }) {
  el.classList.add("sl-lab");
  const stops = [], films = model.get("films");
  const panels = films.map((film, k) => [String(k), film.name, h("div", { class: "sl-panel" })]);
  const row = tabs("Films", panels, () => stops.forEach((stop) => stop()));
  if (films.length > 1) el.append(row.element);
  el.append(...panels.map(([, , panel]) => panel));
  row.open("0");
  films.forEach((film, k) => {
    const image = new Image();
    image.onload = () => stops.push((film.kind === "grid" ? mountGrid : mountRun)(panels[k][2], { ...film, image }));
    image.onerror = () => panels[k][2].replaceChildren(h("p", { class: "sl-warning" }, "The film cannot be read; make it again."));
    image.src = film.sheet;
  });
  return () => stops.forEach((stop) => stop());
}
