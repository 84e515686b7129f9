// The mask lab's panels: five pictures of one answer, the game of guessing which cells are hardest, and attention.

const TILES = [["picture", "picture"], ["seen", "what the network sees"], ["answer", "reconstruction"], ["filled", "hidden part filled in"], ["error", "error on hidden pixels"]];
const STATISTICS = [
  ["visible", "raw", "Pixels again, by mean and spread of the visible pixels in the same window: what can be known."],
  ["normalised", "normalised", "The numbers that the network predicts: each pixel against its window. Mid-grey is 0, black and white are 3 standard deviations."],
  ["true", "true statistics", "Careful: mean and spread of the hidden pixels themselves are used. This leaks the answer: even a prediction of nothing at all would look like a blurred copy of it."],
];
const PICKS = 5;

Object.assign(MaskLab.prototype, {
  buildReconstruction() {
    this.tiles = Object.fromEntries(TILES.map(([name, text]) => [name, board(32, `image: ${text}`, { "data-tile": name })]));
    this.busy = h("p", { class: "sl-quiet", role: "status" });
    this.scale = h("div", {}, h("div", { class: "sl-scale", style: `background:linear-gradient(90deg,${Array.from({ length: 9 }, (_, i) => `rgb(${cividis(i / 8)})`)})` }), h("div", { class: "sl-ends" }, h("span", {}, "0"), h("span", {}, "")));
    this.statisticsRow = h("div", { class: "sl-row", role: "group", "aria-label": "how a normalised prediction is shown" }, h("span", {}, "shown as"),
      ...STATISTICS.map(([name, text]) => button(text, () => { this.put({ statistics: name }, false); this.show(); }, { "data-statistics": name })));
    this.statisticsNote = h("p", { class: "sl-quiet", "aria-live": "polite" });
    const figures = TILES.map(([name, text]) => h("figure", {}, this.tiles[name], h("figcaption", {}, text, name === "error" && this.scale)));
    return h("section", { "aria-label": "reconstruction" }, this.busy, this.statisticsRow, this.statisticsNote, h("div", { class: "sl-tiles" }, ...figures));
  },

  /** Paint all that is known by now. */
  show() {
    if (!this.mask) return;
    const { side, about, tiles } = this, n = side * side, patch = this.get("patch"), g = this.grid, bytes = this.bytes;
    const hidden = (i) => this.mask[Math.floor(Math.floor(i / side) / patch) * g + Math.floor((i % side) / patch)];
    const rgb = (values) => (i) => [values[i], values[n + i], values[2 * n + i]];
    paint(tiles.picture, side, rgb(bytes));
    paint(tiles.seen, side, (i) => (hidden(i) ? [128, 128, 128] : rgb(bytes)(i)));
    for (const [name] of TILES.slice(2)) tiles[name].parentElement.hidden = !about;
    const normalised = Boolean(about) && about.target !== "raw", how = this.get("statistics");
    this.statisticsRow.hidden = !normalised;
    for (const made of this.statisticsRow.querySelectorAll("button")) made.setAttribute("aria-pressed", String(made.dataset.statistics === how));
    const [, , note] = STATISTICS.find(([name]) => name === how);
    this.statisticsNote.textContent = normalised ? note : about ? "This network predicts pixels: no statistics are needed to show them." : "Choose a network above: it fills in what is hidden.";
    this.statisticsNote.classList.toggle("sl-warning", normalised && how === "true");
    if (!about) { this.wait(false); this.busy.textContent = ""; }
    for (const [name] of TILES.slice(2)) tiles[name].style.opacity = this.prediction ? 1 : 0.35;
    if (!about || !this.prediction) return void this.showGuess();
    const visible = Float32Array.from({ length: n }, (_, i) => (hidden(i) ? 0 : 1)), answer = toBytes(this.prediction, this.x, visible, about, how);
    const kept = how === "normalised" && normalised ? toBytes(targetOf(this.x, about), this.x, visible, about, how) : bytes; // like beside like
    paint(tiles.answer, side, rgb(answer));
    paint(tiles.filled, side, (i) => (hidden(i) ? rgb(answer)(i) : rgb(kept)(i)));
    const top = Math.max(1e-6, ...this.error.filter((_, i) => hidden(i)));
    paint(tiles.error, side, (i) => (hidden(i) ? cividis(this.error[i] / top) : null));
    this.scale.lastChild.lastChild.textContent = top > 1e-6 ? top.toFixed(2) : "";
    this.showGuess();
  },

  buildGuess() {
    this.guessText = h("p", { role: "status" }, "");
    this.score = h("p", { role: "status", "data-number": "score" });
    this.reveal = button("show the losses", () => this.uncover());
    this.again = button("another mask", () => this.put({ seed: (this.get("seed") + 1) % 201, edits: [] }));
    return h("section", { "aria-label": "guess first" }, this.guessText, h("div", { class: "sl-row" }, this.reveal, this.again), this.score);
  },

  wantedPicks() { return Math.min(PICKS, Math.max(1, Math.floor(this.mask.reduce((a, b) => a + b, 0) / 2))); },

  showGuess() {
    if (!this.mask) return;
    const hidden = this.mask.reduce((a, b) => a + b, 0), wanted = this.wantedPicks(), left = wanted - this.picks.size;
    const possible = this.about && hidden >= 2;
    this.reveal.disabled = !possible || left > 0 || !this.losses || this.revealed;
    if (!this.about) this.guessText.textContent = "Choose a network first: there is nothing to guess without one.";
    else if (hidden < 2) this.guessText.textContent = "Hide at least two cells first.";
    else if (this.revealed) this.guessText.textContent = "Your cells are framed; every hidden cell now carries its loss. Bright is hard.";
    else this.guessText.textContent = `Which ${wanted === 1 ? "hidden cell" : `${wanted} hidden cells`} will the network get most wrong? Choose on the picture above${left < wanted ? `: ${left} to go` : ""}.`;
    if (!this.revealed) this.score.textContent = "";
  },

  pick(cell) {
    if (this.revealed || !this.mask[cell]) return;
    if (!this.picks.delete(cell) && this.picks.size < this.wantedPicks()) this.picks.add(cell);
    this.draw();
    this.showGuess();
  },

  /** The losses on the cells, and the guess between a blind pick (0 %) and the best one (100 %). */
  uncover() {
    this.revealed = true;
    const hidden = this.cells((h) => h), byLoss = [...hidden].sort((a, b) => this.losses[b] - this.losses[a] || a - b), mean = (cells) => cells.reduce((sum, c) => sum + this.losses[c], 0) / cells.length;
    const best = byLoss.slice(0, this.picks.size), found = best.filter((cell) => this.picks.has(cell)).length;
    const [mine, top, blind] = [[...this.picks], best, hidden].map(mean), share = top > blind ? (100 * (mine - blind)) / (top - blind) : 0;
    this.score.textContent = `${found} of the ${best.length} hardest found. Mean loss of your cells ${mine.toFixed(3)}, of the hardest ${top.toFixed(3)}, of all hidden ones ${blind.toFixed(3)}: ` +
      `your guess is worth ${Math.round(share)} % (0 is picking blindly, 100 the best pick).`;
    this.draw();
    this.showGuess();
  },

  drawLosses(context, size) {
    const hidden = this.cells((h) => h), values = hidden.map((cell) => this.losses[cell]), low = Math.min(...values), high = Math.max(...values), g = this.grid;
    context.textAlign = "center"; context.textBaseline = "middle";
    context.font = `600 ${Math.round(Math.min(44, size / 3.2))}px "DejaVu Sans", sans-serif`;
    for (const cell of hidden) {
      const share = high > low ? (this.losses[cell] - low) / (high - low) : 0.5, x = (cell % g) * size, y = Math.floor(cell / g) * size;
      context.fillStyle = `rgb(${cividis(share)})`;
      context.fillRect(x, y, size, size);
      if (size < 60) continue;
      context.fillStyle = share > 0.55 ? "#111" : "#fff";
      context.fillText(this.losses[cell].toFixed(2), x + size / 2, y + size / 2);
    }
  },

  /** What one token attends to, head by head, in a block without shift and in the next one, with shift. */
  buildAttention() {
    this.from = null;
    this.stage = select("stage", { options: [[0, "1"]], value: 0, change: () => this.showAttention() });
    this.attentionNote = h("p", { role: "status", "aria-live": "polite" });
    this.rows = h("div", {});
    const ends = h("div", { class: "sl-ends" }, h("span", {}, "none"), h("span", {}, "the most of its window"));
    const scale = h("div", { style: "max-width:260px" }, h("div", { class: "sl-scale", style: `background:linear-gradient(90deg,${Array.from({ length: 9 }, (_, i) => `rgb(${cividis(i / 8)})`)})` }), ends);
    return h("section", { "aria-label": "attention" }, this.attentionNote, h("div", { class: "sl-controls", style: "max-width:320px; margin:8px 0 14px" }, this.stage.element), this.rows, scale);
  },

  lookFrom(cell) {
    const patch = this.get("patch"), middle = (k) => k * patch + patch / 2;
    this.from = [middle(Math.floor(cell / this.grid)), middle(cell % this.grid)]; // pixels
    this.showAttention();
  },

  showAttention() {
    const { about, seen, side } = this;
    if (!about || !seen) {
      this.rows.replaceChildren();
      this.attentionNote.textContent = about ? "" : "Choose a network above: attention is what it has learned.";
      return;
    }
    const chosen = Number(this.stage.input.value) || 0;
    this.stage.fill(about.depths.map((_, s) => [s, `${s + 1}: ${side / (about.patch_size << s)} x ${side / (about.patch_size << s)} tokens`]), chosen);
    this.from = (this.from || [side / 2, side / 2]).map((p) => Math.min(p, side - 1));
    const blocks = seen.filter((block) => block.stage === chosen), { n, window, heads } = blocks[0], [y, x] = this.from.map((p) => Math.floor((p * n) / side));
    const token = y * n + x, L = window * window;
    this.attentionNote.textContent = `The token in row ${y + 1}, column ${x + 1} (the dot): what it attends to in its window of ${window} x ${window} tokens, and the position bias that it adds there. Click a cell of the picture, or use arrow keys and space, for another one.`;
    const map = (block, values, name) => {
      const canvas = board(192, name), context = canvas.getContext("2d"), cell = 192 / n, top = Math.max(1e-9, ...values);
      context.imageSmoothingEnabled = false;
      context.globalAlpha = 0.3;
      context.drawImage(this.small, 0, 0, 192, 192);
      context.globalAlpha = 1;
      values.forEach((value, j) => {
        const place = block.places[token * L + j];
        context.fillStyle = `rgb(${cividis(value / top)})`;
        context.fillRect((place % n) * cell, Math.floor(place / n) * cell, cell, cell);
      });
      for (const [r, ink] of [[5, "#10131a"], [3.4, "#56b4e9"]]) { context.beginPath(); context.arc((x + 0.5) * cell, (y + 0.5) * cell, Math.min(r, cell / 2), 0, 7); context.fillStyle = ink; context.fill(); }
      return h("figure", {}, canvas, h("figcaption", {}, name));
    };
    this.rows.replaceChildren(...blocks.map((block, b) => {
      const tiles = Array.from({ length: heads }, (_, head) => {
        const weights = block.weights.subarray((head * n * n + token) * L, (head * n * n + token + 1) * L), i = block.own[token];
        const bias = block.bias.subarray((head * L + i) * L, (head * L + i + 1) * L), most = Math.max(...weights);
        return [map(block, weights, `head ${head + 1}: attention, at most ${(100 * most).toFixed(0)} %`), map(block, bias, `position bias, ${Math.min(...bias).toFixed(1)} to ${Math.max(...bias).toFixed(1)}`)];
      });
      const how = block.shift ? `windows shifted by ${block.shift} tokens` : n > window ? "windows not shifted" : "one window, so there is no shift";
      return h("div", {}, h("h3", {}, `Block ${b + 1} of this stage: ${how}`), h("div", { class: "sl-tiles sl-looks" }, ...tiles.flat()));
    }));
  },
});
