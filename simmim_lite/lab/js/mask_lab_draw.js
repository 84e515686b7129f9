// The mask lab, second half: from state to canvases, numbers and the network's answer.

Object.assign(MaskLab.prototype, {
  /** The chosen picture, decoded once; then everything else. */
  async load() {
    const pictures = this.get("pictures"), index = Math.min(Math.max(this.get("picture"), 0), pictures.length - 1);
    this.entry = pictures[index];
    const image = new Image();
    image.src = `data:image/jpeg;base64,${this.entry.data}`;
    await image.decode();
    if (this.entry !== pictures[index]) return; // another one was chosen meanwhile
    this.kept = document.createElement("canvas");
    this.kept.width = this.kept.height = KEPT;
    this.kept.getContext("2d", { willReadFrequently: true }).drawImage(image, 0, 0, KEPT, KEPT);
    this.settle(false);
  },

  /** After any change of state: what is chosen, the mask, its picture at once, then its numbers and the answer. */
  settle(other) {
    this.asked++; // what was asked before is about another mask or picture
    if (other || !this.kept) return void this.load();
    const { controls } = this, side = this.side, pictures = this.get("pictures");
    const patches = [4, 8, 12, 16, 24, 32, 48, 64, 96, 192].filter((p) => side % p === 0 && p % TOKEN === 0);
    controls.picture.fill(pictures.map((p, i) => [i, p.title]), this.get("picture"));
    controls.patch.fill(patches.map((p) => [p, `${p} px (${side / p} x ${side / p} cells)`]), this.get("patch"));
    for (const name of ["network", "strategy", "ratio", "seed"]) controls[name].set(this.get(name));
    const { about } = this;
    controls.size.fill(about ? [about.trained, 2 * about.trained].map((s) => [s, `${s} x ${s} px${s === about.trained ? ", as trained" : ""}`]) : [[side, `${side} x ${side} px`]], side);
    this.object.disabled = !this.entry.outline;
    this.object.textContent = `hide the object${this.entry.outline ? "" : " (known for scenes only)"}`;
    this.undoing.disabled = !this.past.length;
    const patch = this.get("patch"), ratio = this.get("ratio");
    const wrong = side % patch || patch % TOKEN ? `a mask patch of ${patch} px does not divide: give ${patches.join(", ")} at ${side} px`
      : !(ratio >= 0 && ratio <= 1) ? `a mask ratio of ${ratio} is outside 0 to 1` : "";
    this.say(wrong);
    if (wrong) { this.mask = null; return; }
    this.note.textContent = this.said();
    this.mask = hashMask(this.grid, this.grid, ratio, this.get("seed"), 0, 0, this.get("strategy"));
    for (const cell of this.get("edits")) if (cell < this.mask.length) this.mask[cell] ^= 1;
    this.bytes = bytesAt(this.kept, side);
    this.picks.clear(); this.revealed = false; this.prediction = this.losses = this.seen = null;
    this.cursor = Math.min(this.cursor, this.mask.length - 1);
    this.draw();
    requestAnimationFrame(() => this.count());
    this.show();
    this.compute();
  },

  said() {
    const from = this.entry.note ? `Photograph: ${this.entry.note}. ` : "", about = this.about;
    if (!about) return `${from}Shown at 192 x 192 pixels, in tokens of 4 pixels. Choose a network to see a reconstruction.`;
    const size = about.side === about.trained ? "the size that the network was trained at" : `${about.side / about.trained} times what it was trained at: each window holds as many tokens, so there are more windows`;
    return `${from}${about.side} x ${about.side} pixels, ${size}. ${about.text}`;
  },

  draw() {
    const context = this.board.getContext("2d"), g = this.grid, size = SHOWN / g, side = this.side, n = side * side;
    this.small ||= document.createElement("canvas");
    paint(this.small, side, (i) => [this.bytes[i], this.bytes[n + i], this.bytes[2 * n + i]]);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.small, 0, 0, SHOWN, SHOWN);
    context.fillStyle = "rgb(128,128,128)";
    this.mask.forEach((hidden, i) => hidden && context.fillRect((i % g) * size, Math.floor(i / g) * size, size, size));
    if (this.revealed) this.drawLosses(context, size);
    context.lineWidth = g > 40 ? 0.5 : 1.5;
    context.strokeStyle = "rgba(255,255,255,0.35)";
    context.beginPath();
    for (let k = 1; k < g; k++) { context.moveTo(k * size, 0); context.lineTo(k * size, SHOWN); context.moveTo(0, k * size); context.lineTo(SHOWN, k * size); }
    context.stroke();
    const frame = (cell, colour, dash) => {
      context.setLineDash(dash);
      for (const [width, ink] of [[9, "rgba(0,0,0,0.75)"], [5, colour]]) {
        context.lineWidth = width; context.strokeStyle = ink;
        context.strokeRect((cell % g) * size + 5, Math.floor(cell / g) * size + 5, size - 10, size - 10);
      }
      context.setLineDash([]);
    };
    for (const cell of this.picks) frame(cell, "#e69f00", []);
    if (document.activeElement === this.board || this.el.getRootNode().activeElement === this.board) frame(this.cursor, "#56b4e9", [14, 10]);
    this.board.dataset.drawn = Number(this.board.dataset.drawn || 0) + 1;
  },

  /** How much is hidden, how far away, and which windows see nothing. */
  count() {
    if (!this.mask) return;
    const { side, grid } = this, patch = this.get("patch"), hidden = this.mask.reduce((a, b) => a + b, 0), far = averageDistance(this.mask, grid, patch);
    const across = side / TOKEN, tokens = upsample(this.mask, grid, patch / TOKEN);
    this.tokens = tokens;
    if (this.get("tab") === "windows") this.showWindows();
    const windows = [this.about ? this.about.window : 12, ...(this.about ? [] : [6])].filter((w) => across % w === 0);
    const blind = windows.map((w) => {
      const [first, shifted] = [0, Math.floor(w / 2)].map((s) => blindWindows(tokens, across, w, s).reduce((a, b) => a + b, 0));
      return `${first} of ${(across / w) ** 2} of window ${w}${across > w ? `, ${shifted} once shifted` : ""}`;
    });
    const distance = h("dd", { "data-number": "distance" }, Number.isFinite(far) ? `${far.toFixed(1)} px` : "nothing is visible");
    if (side === KEPT && Number.isFinite(far)) {
      const place = (v) => `${Math.min(100, 2 * v)}%`;
      distance.append(h("div", { class: "sl-band", role: "img", "aria-label": `${far.toFixed(1)} px on a scale to 50; good pretraining lay at about 10 to 20 px` },
        h("i", { style: `left:${place(10)};width:20%` }), h("b", { style: `left:${place(far)}` })),
        h("span", { class: "sl-quiet" }, "shaded: where SimMIM found good pretraining, at 192 px"));
    }
    this.figures.replaceChildren(
      h("dt", {}, "hidden"), h("dd", { "data-number": "hidden" }, `${hidden} of ${this.mask.length} cells, ${((100 * hidden) / this.mask.length).toFixed(1)} %`),
      h("dt", { title: "mean distance of a hidden pixel to the nearest visible one" }, "AvgDist"), distance,
      h("dt", { title: "first-stage attention windows without one visible token" }, "blind windows"), h("dd", { "data-number": "blind" }, ...blind.flatMap((b, i) => (i ? [h("br"), b] : [b]))));
  },

  /** The window view of this mask and this picture; made when first looked at. */
  showWindows() {
    const { about, small: picture } = this, side = this.side / TOKEN;
    const given = { tokens: this.tokens, side, window: about ? about.window : 12, depths: about ? about.depths : [2, 2, 18, 2], picture };
    if (this.view) this.view.update(given);
    else this.view = mountWindows(this.windows, given);
  },

  wait(on) {
    this.busy.classList.toggle("sl-busy", on);
    if (on) this.busy.textContent = "computing the reconstruction …";
  },

  /** Ask for the reconstruction. A kernel is needed once a network, for its weights. */
  compute() {
    const { about } = this;
    if (!about || !this.mask) return;
    this.wait(true);
    if (!this.inference.has(about.name)) return this.fetch(about.name);
    const id = this.asked, hidden = upsample(this.mask, this.grid, this.get("patch") / TOKEN), look = this.get("tab") === "attention";
    this.inference.ask({ name: about.name, pixels: normalise(this.bytes, about), hidden, look }, (found) => {
      if (id !== this.asked) return;
      this.seen = found.seen;
      this.answered(found.prediction, `in ${Math.round(found.milliseconds)} ms`);
      if (look) this.showAttention();
    });
  },

  fetch(name) {
    if (!this.live) { this.inference.load(name, bytesOf(this.get("weights")[name])); return this.compute(); }
    const silent = () => {
      this.wait(false);
      this.busy.textContent = "the kernel does not answer: wait for a cell that runs, or run the cell of this lab again";
    };
    clearTimeout(this.patience);
    this.patience = setTimeout(silent, 10_000);
    try { // a restarted kernel has no ear any more, a busy one answers later
      this.model.send({ kind: "weights", name });
    } catch { silent(); }
  },

  told(message, buffers) {
    if (message.kind !== "weights") return;
    clearTimeout(this.patience);
    this.inference.load(message.name, bytesOf(buffers[0]).slice());
    this.compute();
  },

  answered(prediction, how) {
    this.prediction = prediction;
    this.x = normalise(this.bytes, this.about);
    const found = cellLosses(prediction, targetOf(this.x, this.about), this.side, this.get("patch"));
    this.losses = found.losses; this.error = found.error;
    const hidden = this.cells((h) => h), unit = this.about.target === "raw" ? "L1, standard deviations" : "L1, locally normalised pixels";
    this.loss = hidden.length ? hidden.reduce((sum, cell) => sum + this.losses[cell], 0) / hidden.length : 0;
    this.wait(false);
    this.busy.textContent = hidden.length ? `loss on hidden pixels ${this.loss.toFixed(3)} (${unit}); computed in this page ${how}` : `nothing is hidden: there is no loss; computed in this page ${how}`;
    this.busy.dataset.answered = Number(this.busy.dataset.answered || 0) + 1;
    this.show();
  },
});

function render({ model, el }) {
  el.lab = new MaskLab(model, el);
}
