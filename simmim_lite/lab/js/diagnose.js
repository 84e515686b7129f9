// Is my run normal? The twin of evidence/diagnose.py, by the same table: a log that is dropped here is read in the page,
// and goes nowhere. A test holds both to the same words.

const LOG_NAMES = {
  step: ["step", "steps", "iter", "iteration", "iterations", "globalstep"],
  epoch: ["epoch", "epochs"],
  train: ["trainloss", "loss", "trainingloss", "loss/train", "train/loss", "trainlossstep"],
  val: ["valloss", "evalloss", "testloss", "validationloss", "loss/val", "val/loss", "eval/loss"],
  lr: ["lr", "trainlr", "learningrate", "learningrate/lr"],
};
const OFFICIAL = /Train: \[(\d+)\/\d+\]\[(\d+)\/(\d+)\].*?\blr ?([\d.e+-]+).*?\bloss (\S+) \(/;

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

/** A number, NaN and infinity too, or null: as Python's float() reads a text. */
function asNumber(value) {
  if (typeof value === "number") return value;
  if (typeof value !== "string" || !value.trim()) return null;
  const word = value.trim().toLowerCase().replace(/^[+-]/, "");
  if (word === "nan") return NaN;
  if (word === "inf" || word === "infinity") return value.trim().startsWith("-") ? -Infinity : Infinity;
  const found = Number(value);
  return Number.isNaN(found) ? null : found;
}

/** JSON as Python writes it: NaN and infinity are no JSON. */
const parseLoose = (text) => JSON.parse(text.replace(/([:[,]\s*)(NaN|-?Infinity)(?=\s*[,}\]])/g, '$1"$2"'));

function logPoints(rows) {
  const found = new Map();
  rows.forEach((row, place) => {
    const plain = {};
    for (const [name, one] of Object.entries(row)) plain[name.toLowerCase().replace(/[^a-z0-9/]/g, "")] = asNumber(one);
    if ("trainruntime" in plain) return; // a summary of the whole run, whose loss is a mean
    const of = {};
    for (const [what, names] of Object.entries(LOG_NAMES)) of[what] = plain[names.find((n) => plain[n] !== null && plain[n] !== undefined)] ?? null;
    if (of.train === null && of.val === null) return;
    const step = ["step", "epoch"].map((n) => of[n]).find((v) => v !== null && Number.isFinite(v)) ?? place;
    const held = found.get(step) || { step, train: null, val: null, lr: null };
    for (const name of ["train", "val", "lr"]) if (of[name] !== null) held[name] = of[name];
    found.set(step, held);
  });
  return [...found.values()].sort((a, b) => a.step - b.step);
}

/** Layout and points of a log's text. */
function logOfText(text) {
  const lines = text.split(/\r?\n/), official = lines.map((line) => line.match(OFFICIAL)).filter(Boolean);
  if (official.length) return ["official text log", logPoints(official.map(([, e, i, n, lr, loss]) => ({ step: e * n + Number(i), loss, lr })))];
  try {
    const content = parseLoose(text);
    if (content && content.log_history) return ["transformers' trainer_state.json", logPoints(content.log_history)];
    if (content && content.curve) return ["record of this package", (content.kind ?? "pretrain") === "pretrain" ? logPoints(content.curve) : []]; // else a loss of labels
  } catch { /* not one object */ }
  const rows = [];
  for (const line of lines) {
    try {
      const row = parseLoose(line);
      if (row && typeof row === "object" && !Array.isArray(row)) rows.push(row);
    } catch { /* torn, or no JSON */ }
  }
  if (rows.length) return ["JSON lines", logPoints([...rows.flatMap((row) => row.curve || []), ...rows])];
  const full = lines.filter((line) => line.trim());
  if (!full.length) return ["CSV", []];
  const mark = [",", ";", "\t"].sort((a, b) => full[0].split(b).length - full[0].split(a).length)[0], names = full[0].split(mark);
  return ["CSV", logPoints(full.slice(1).map((line) => Object.fromEntries(line.split(mark).map((cell, i) => [names[i] ?? "", cell]))))];
}

/** A number as Python's `.3g` has it. */
function short3(value) {
  if (!Number.isFinite(value)) return String(value).toLowerCase();
  if (value === 0) return "0";
  const power = Math.floor(Math.log10(Math.abs(Number(value.toPrecision(3)))));
  if (power < -4 || power >= 3) {
    const [digits, exponent] = value.toExponential(2).split("e");
    return `${String(Number(digits))}e${exponent[0] === "-" ? "-" : "+"}${exponent.replace(/^[+-]/, "").padStart(2, "0")}`;
  }
  return String(Number(value.toPrecision(3)));
}

/** The verdict on a curve, and its findings: evidence/diagnose.py's `judged`. */
function judgedLog(points, level, table) {
  const train = points.filter((p) => p.train !== null), finite = train.map((p) => p.train).filter(Number.isFinite);
  const val = points.map((p) => p.val).filter((v) => v !== null), found = [];
  const add = (name, sure, numbers) => {
    const { says, next } = table.causes[name], shown = (_, key) => (typeof numbers[key] === "number" ? short3(numbers[key]) : numbers[key]);
    found.push({ name, sure: table.sure[sure], says: says.replace(/\{(\w+)\}/g, shown), next });
  };
  const at = (step) => `step ${Math.round(step).toLocaleString("en")}`;
  if (finite.length < train.length) add("not a number", 0, { at: at(train.find((p) => !Number.isFinite(p.train)).step) });
  if (finite.length < table.least) return [found.length ? "sick" : "too short to say", found];
  const k = Math.max(1, Math.min(5, Math.floor(finite.length / 20))), first = median(finite.slice(0, k)), last = median(finite.slice(-k));
  const low = Math.min(...Array.from({ length: finite.length - k + 1 }, (_, i) => median(finite.slice(i, i + k))));
  const fall = first > 0 ? (first - last) / first : 0, many = finite.length >= 2 * table.least, s = table.shares;
  if (first > s.high * level && low > level) add("pixels not normalised", 1, { first, times: first / level });
  else if (last > s.away * low) add("runs away", many ? 0 : 1, { low, last });
  else if (first < s.low * level) add("target not in standard deviations", first < (s.low * level) / s.far ? 1 : 2, { first, level });
  else if (last > s.above * level) add("noise level", many ? 1 : 2, { last, level });
  else if (fall < s.flat) add("flat from the start", many ? 1 : 2, { first, last, level });
  else if (last < s.good * level) add("too good to be true", 1, { last, level });
  const valley = Math.min(...val), end = val[val.length - 1];
  if (val.length >= table.validations && end - valley > table.overfit && fall > 0) add("rising validation", end - valley > s.clear * table.overfit ? 0 : 1, { valley, val: end });
  const known = points.filter((p) => p.lr && p.train !== null && Number.isFinite(p.train));
  for (let i = known.length >> 1; i < known.length - 2 && !found.length; i++) {
    if (!i || known[i].lr > table.shares.drop * known[i - 1].lr) continue;
    const before = median(known.slice(i - Math.max(1, Math.min(5, Math.floor(i / 20))), i).map((p) => p.train));
    if (before > 0 && (before - last) / before < s.gain) add("nothing gained at the drop", 2, { before, at: at(known[i].step), last });
    break;
  }
  if (found.length) return ["sick", found];
  return [many && fall >= s.healthy ? "healthy" : "too short to say", found];
}

class LogCheck {
  constructor(model, el) {
    this.model = model; this.el = el;
    el.classList.add("sl-lab");
    const file = h("input", { type: "file", ...OWN_KEYS, onchange: () => { if (file.files[0]) this.take(file.files[0]); file.value = ""; } });
    this.loss = select("loss", { options: [["l1", "L1, standard deviations"], ["mse", "mean square, standard deviations (MAE)"]], value: "l1", change: () => this.show() });
    this.place = h("div", { class: "sl-log", tabindex: 0 }, h("label", { class: "sl-upload" }, "your log", file), " or drop it here; it is read in this page and goes nowhere.");
    this.out = h("div", { role: "status", "aria-live": "polite" });
    for (const name of ["dragover", "dragleave", "drop"]) el.addEventListener(name, (event) => {
      event.preventDefault(); event.stopPropagation();
      this.place.classList.toggle("sl-drop", name === "dragover");
      if (name === "drop" && event.dataTransfer.files[0]) this.take(event.dataTransfer.files[0]);
    });
    el.replaceChildren(this.place, h("div", { class: "sl-controls", style: "max-width:420px;margin:10px 0" }, this.loss.element), this.out);
  }

  async take(file) {
    const [layout, points] = logOfText(await file.text());
    this.log = { name: file.name, layout, points };
    if (layout === "JSON lines" && file.name === "log.txt") this.loss.set("mse");
    this.show();
  }

  show() {
    if (!this.log) return;
    const { name, layout, points } = this.log, { table, known } = this.model.get("rules"), loss = this.loss.input.value;
    if (!points.length) return void this.out.replaceChildren(h("p", { class: "sl-warning" }, `${name}: no curve of losses found; looked for columns ${Object.values(LOG_NAMES).flat().slice(0, 3).join(", ")} and train_loss, val_loss, lr. TensorBoard's files are read by simmim-lite diagnose.`));
    const level = table.level[loss], [verdict, findings] = judgedLog(points, level, table), end = points[points.length - 1], last = end.val ?? end.train;
    this.verdict = verdict;
    const said = { healthy: "Healthy: the loss falls as it should, and none of the known faults shows.", "too short to say": `Too short to say: a verdict takes ${table.least} losses at least, and a loss that falls by a tenth.` };
    const items = findings.map((one) => h("li", {}, h("b", {}, `${one.name} (${one.sure})`), `: ${one.says}. `, h("br"), `Try: ${one.next}.`));
    this.out.replaceChildren(
      h("h3", {}, `${name}: ${layout}, ${points.length.toLocaleString("en")} points`), this.scale(level, last, loss === "l1" ? known : []),
      findings.length ? h("ol", {}, ...items) : h("p", {}, said[verdict]));
    this.out.dataset.verdict = verdict;
  }

  /** A line from 0 to beyond the mean colour: known runs as bars, this one as a mark. */
  scale(level, last, known) {
    const top = 1.25 * Math.max(level, Math.min(last, 2 * level)), at = (v) => `${Math.min(100, (100 * v) / top).toFixed(1)}%`;
    const bar = (name, low, high) => h("div", { class: "sl-rung" }, h("span", {}, name), h("div", { class: "sl-band" }, h("i", { style: `left:${at(low)};width:calc(${at(high)} - ${at(low)})` }), Number.isFinite(last) && h("b", { style: `left:${at(last)}` })));
    return h("div", { role: "img", "aria-label": `this run is at ${short3(last)}; the mean colour buys about ${level}` },
      h("p", {}, `This run (the mark) is at ${short3(last)}, ${((100 * last) / level).toFixed(0)} % of the ${level} that the mean colour buys.`),
      bar("mean colour, about", 0.95 * level, 1.05 * level), ...known.map(([name, low, high]) => bar(`${name}: ${low.toFixed(2)} to ${high.toFixed(2)}`, low, high)));
  }
}

function render({ model, el }) {
  el.check = new LogCheck(model, el);
}
