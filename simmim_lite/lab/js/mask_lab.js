// The mask lab: hide cells of a picture, see the numbers of the mask at once and the network's answer beside it.

const KEPT = 192, TOKEN = 4, SHOWN = 768; // pixels of a kept picture, of a token, of the large canvas
const PARTS = ["picture", "strategy", "ratio", "patch", "seed", "edits", "network", "size"];

class MaskLab {
  constructor(model, el) {
    this.model = model; this.el = el; this.live = model.kernel !== false;
    this.past = []; this.inference = new Inference(); this.picks = new Set(); this.asked = 0; this.cursor = 0;
    this.build();
    for (const name of [...PARTS, "statistics", "tab", "pictures"]) model.on(`change:${name}`, () => this.moved(name));
    model.on("msg:custom", (message, buffers) => this.told(message, buffers));
    this.load();
  }

  get(name) { return this.model.get(name); }
  /** What is known of the chosen network, at the size in pixels at which it sees the picture. */
  get about() {
    const found = this.get("networks").find((n) => n.name === this.get("network"));
    return found ? { ...found, side: this.get("size") || found.side, trained: found.side } : null;
  }
  get side() { return this.about ? this.about.side : KEPT; }
  get grid() { return this.side / this.get("patch"); }

  /** Set state, tell the kernel, redraw. remember: undo comes back to what was before. */
  put(values, remember = true) {
    if (remember) this.remember(Object.keys(values).join());
    this.still = true; // our own changes are drawn once, below
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    this.model.save_changes();
    this.still = false;
    if (Object.keys(values).some((name) => PARTS.includes(name))) this.settle("picture" in values || "network" in values || "size" in values);
    else if (this.mask) this.opened(values.tab);
  }

  moved(name) {
    if (this.still) return;
    if (name === "tab") { this.panels.open(this.get("tab")); return void (this.mask && this.opened(this.get("tab"))); }
    if (name === "statistics") return this.show();
    this.settle(["picture", "pictures", "network", "size"].includes(name));
  }

  /** A tab that has been opened shows what it alone needs. */
  opened(tab) {
    if (tab === "windows") this.count();
    if (tab === "attention") this.seen ? this.showAttention() : this.compute();
  }

  remember(what) {
    const now = performance.now(), last = this.past.at(-1);
    if (last && last.what === what && now - last.at < 500) { last.at = now; return; } // one drag, one step
    this.past.push({ what, at: now, state: Object.fromEntries(PARTS.map((name) => [name, this.get(name)])) });
    if (this.past.length > 100) this.past.shift();
  }

  undo() {
    const last = this.past.pop();
    if (last) this.put(last.state, false);
  }

  build() {
    this.el.classList.add("sl-lab");
    const field = (made) => made.element, whole = (v) => String(Math.round(v));
    this.controls = {
      picture: select("picture", { options: [], change: (v) => this.put({ picture: Number(v) }) }),
      network: select("network", { options: [["", "none: masks at 192 px, the paper's size"], ...this.get("networks").map((n) => [n.name, n.title])], value: this.get("network"), change: (v) => this.change(v) }),
      size: select("size", { options: [], change: (v) => this.put({ size: Number(v), edits: [] }) }),
      strategy: select("strategy", { options: Object.keys(STRATEGIES).map((s) => [s, s]), value: this.get("strategy"), change: (v) => this.put({ strategy: v, edits: [] }) }),
      ratio: slider("mask ratio", { min: 0, max: 1, step: 0.01, value: this.get("ratio"), show: (v) => v.toFixed(2), change: (v) => this.put({ ratio: v, edits: [] }) }),
      patch: select("mask patch", { options: [], change: (v) => this.put({ patch: Number(v), edits: [] }) }),
      seed: slider("seed", { min: 0, max: 200, step: 1, value: this.get("seed"), show: whole, change: (v) => this.put({ seed: v, edits: [] }) }),
    };
    const file = h("input", { type: "file", accept: "image/*", ...OWN_KEYS, onchange: () => { if (file.files[0]) this.take(file.files[0]); file.value = ""; } });
    this.note = h("p", { class: "sl-quiet" });
    this.problem = h("p", { class: "sl-warning", role: "alert", hidden: true });
    this.board = board(SHOWN, "cells of the picture", { class: "sl-board sl-main", tabindex: 0, ...OWN_KEYS });
    this.board.setAttribute("aria-roledescription", "grid of cells");
    this.hover = h("p", { class: "sl-quiet" }, "Click or drag over cells. With the keyboard: arrow keys, then space.");
    this.spoken = h("p", { class: "sl-hush", "aria-live": "polite" });
    this.undoing = button("undo", () => this.undo());
    this.object = button("hide the object", () => this.hideObject());
    const actions = h("div", { class: "sl-row", role: "group", "aria-label": "change the mask" },
      button("another mask", () => this.put({ seed: (this.get("seed") + 1) % 201, edits: [] })), button("invert", () => this.edit(this.cells(() => true))),
      this.object, button("show all", () => this.edit(this.cells((hidden) => hidden))), this.undoing);
    this.figures = h("dl");
    this.listen();
    this.reconstruction = this.buildReconstruction();
    this.guessing = this.buildGuess();
    this.windows = h("section", { "aria-label": "windows" });
    this.attention = this.buildAttention();
    const panels = [["explore", "Reconstruction", this.reconstruction], ["guess", "Guess first", this.guessing], ["windows", "Windows", this.windows], ["attention", "Attention", this.attention]];
    this.panels = tabs("views", panels, (name) => { this.put({ tab: name }, false); });
    this.el.replaceChildren(
      h("div", { class: "sl-columns" },
        h("div", {}, this.board, this.hover, actions, this.spoken),
        h("div", { class: "sl-controls" }, ...["picture", "network", "size", "strategy", "ratio", "patch", "seed"].map((name) => field(this.controls[name])),
          h("div", { class: "sl-row" }, h("label", { class: "sl-upload" }, "your own picture", file), h("span", { class: "sl-quiet" }, "or drop one on the picture; it stays on this machine")),
          this.note, this.problem, this.figures)),
      this.panels.element, ...panels.map(([, , panel]) => panel));
    this.panels.open(this.get("tab"));
  }

  /** Pointer and keys on the large canvas. */
  listen() {
    const at = (event) => {
      const box = this.board.getBoundingClientRect(), across = (v, from, size) => Math.min(this.grid - 1, Math.max(0, Math.floor(((v - from) / size) * this.grid)));
      return across(event.clientY, box.top, box.height) * this.grid + across(event.clientX, box.left, box.width);
    };
    let stroke = null; // what this drag does to cells: hide or show
    this.board.addEventListener("pointerdown", (event) => {
      if (event.button || !this.mask) return;
      const cell = at(event);
      this.cursor = cell;
      this.board.setPointerCapture(event.pointerId);
      if (this.get("tab") === "guess") return this.pick(cell);
      if (this.get("tab") === "attention") return this.lookFrom(cell);
      stroke = this.mask[cell] ? 0 : 1;
      this.edit([cell]);
    });
    this.board.addEventListener("pointermove", (event) => {
      if (!this.mask) return;
      const cell = at(event);
      this.describe(cell);
      if (stroke !== null && this.mask[cell] !== stroke) this.edit([cell], "stroke");
    });
    for (const name of ["pointerup", "pointercancel"]) this.board.addEventListener(name, () => { stroke = null; });
    this.board.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key], g = this.grid;
      if (!this.mask || (!step && event.key !== " " && event.key !== "Enter")) return;
      event.preventDefault(); event.stopPropagation();
      if (step) {
        const clamp = (v) => Math.min(g - 1, Math.max(0, v));
        this.cursor = clamp(Math.floor(this.cursor / g) + step[0]) * g + clamp((this.cursor % g) + step[1]);
      } else if (this.get("tab") === "guess") this.pick(this.cursor);
      else if (this.get("tab") === "attention") this.lookFrom(this.cursor);
      else this.edit([this.cursor]);
      this.draw();
      this.spoken.textContent = this.describe(this.cursor);
    });
    for (const name of ["focus", "blur"]) this.board.addEventListener(name, () => this.draw());
    for (const name of ["dragover", "dragleave", "drop"]) this.el.addEventListener(name, (event) => { // anywhere in the lab
      event.preventDefault(); event.stopPropagation();
      this.board.classList.toggle("sl-drop", name === "dragover");
      if (name === "drop" && event.dataTransfer.files[0]) this.take(event.dataTransfer.files[0]);
    });
  }

  describe(cell) {
    const g = this.grid, loss = this.losses && this.mask[cell] && (this.get("tab") !== "guess" || this.revealed) ? `, loss ${this.losses[cell].toFixed(3)}` : "";
    return (this.hover.textContent = `row ${Math.floor(cell / g) + 1}, column ${(cell % g) + 1}: ${this.mask[cell] ? "hidden" : "visible"}${this.picks.has(cell) ? ", chosen" : ""}${loss}`);
  }

  cells(wanted) { return [...(this.mask || []).keys()].filter((cell) => wanted(this.mask[cell], cell)); }

  /** Flip cells by hand; flipping one twice takes the flip back. */
  edit(cells, what) {
    if (!this.mask) return;
    const flips = new Set(this.get("edits"));
    for (const cell of cells) flips.has(cell) ? flips.delete(cell) : flips.add(cell);
    if (what !== "stroke") this.remember(`cells ${performance.now()}`); // every click is a step, a drag is one
    this.put({ edits: [...flips].sort((a, b) => a - b) }, false);
  }

  hideObject() {
    const bits = bytesOf(this.entry.outline), per = 48 / this.grid, hit = new Set();
    for (let i = 0; i < 48 * 48; i++)
      if (bits[i >> 3] & (128 >> (i & 7))) hit.add(Math.floor(Math.floor(i / 48) / per) * this.grid + Math.floor((i % 48) / per));
    this.edit(this.cells((hidden, cell) => Boolean(hidden) !== hit.has(cell)));
  }

  /** A file dropped or chosen becomes the last picture of the list. */
  async take(file) {
    try {
      const { canvas, said } = await squareOf(file, KEPT), data = canvas.toDataURL("image/jpeg", 0.9).split(",")[1];
      const rest = this.get("pictures").filter((p) => p.name !== "own"), title = `${file.name || "your picture"} (${said})`;
      this.put({ pictures: [...rest, { name: "own", title, kind: "own", note: "", data, outline: "" }], picture: rest.length });
    } catch (error) {
      this.say(error.message);
    }
  }

  say(problem) { this.problem.hidden = !problem; this.problem.textContent = problem || ""; }

  /** A network of another size takes the mask patch along: 32 of 192 px is not 8 of 64 px, but the usual one of each. */
  change(name) {
    const about = this.get("networks").find((n) => n.name === name);
    this.put({ network: name, size: 0, patch: about ? about.mask_patch : 32, edits: [] });
  }
}
