// What each block of a Swin can pass on: windows, shift and merging drawn over a mask of tokens. Sets, no weights.

const _BOARD = 768; // pixels of a board, whatever its size on the page: a multiple of every map's side
const _WARM = "#d55e00", _SKY = "#56b4e9", _UNHEARD = "#4a4f59", _PALE = "#d5dae3";

const countOf = (flags) => flags.reduce((sum, flag) => sum + (flag ? 1 : 0), 0);
const few = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

/** The encoder step by step: the mask, then every block and merge. `seen` is what has heard of a visible token after it,
 *  `groups` what attends to what in it, `count` the blocks so far. Agrees with `blocksUntilSeen`. */
function encoderSteps(tokens, side, window, depths) {
  let seen = Uint8Array.from(tokens, (t) => (t ? 0 : 1)), width = side, count = 0;
  const steps = [{ kind: "mask", stage: 0, width, seen, count }];
  depths.forEach((blocks, stage) => {
    const w = Math.min(window, width), half = width > window ? Math.floor(w / 2) : 0;
    for (let block = 0; block < blocks; block++) {
      const shift = block % 2 ? half : 0, groups = attentionGroups(width, w, shift), lit = new Set();
      seen.forEach((s, i) => s && lit.add(groups[i]));
      const all = new Set(groups), silent = new Set([...all].filter((g) => !lit.has(g)));
      seen = seen.map((_, i) => (lit.has(groups[i]) ? 1 : 0));
      steps.push({ kind: "block", stage, block, window: w, shift, width, groups, pieces: all.size, silent, seen, count: ++count });
    }
    if (stage + 1 < depths.length && width % 2 === 0) {
      const next = new Uint8Array((width / 2) ** 2);
      seen.forEach((s, i) => { if (s) next[Math.floor(Math.floor(i / width) / 2) * (width / 2) + Math.floor((i % width) / 2)] = 1; });
      seen = next; width /= 2;
      steps.push({ kind: "merge", stage: stage + 1, width, seen, count });
    }
  });
  return steps;
}

/** Which tokens of the first map the token at (y, x) of that map has heard of after step `upto`: Uint8Array (side^2). */
function heardOf(steps, upto, y, x) {
  let { width } = steps[upto];
  const { width: side } = steps[0], factor = side / width;
  let field = new Uint8Array(width * width);
  field[Math.floor(y / factor) * width + Math.floor(x / factor)] = 1;
  for (let s = upto; s > 0; s--) {
    const step = steps[s];
    if (step.kind === "merge") { field = upsample(field, width, 2); width *= 2; continue; }
    const lit = new Set();
    field.forEach((f, i) => f && lit.add(step.groups[i]));
    field = step.groups.reduce((found, g, i) => { found[i] = lit.has(g) ? 1 : 0; return found; }, new Uint8Array(width * width));
  }
  return field;
}

/** "Stage 1, block 2, shifted by 6": what a step is. */
function stepName(step) {
  if (step.kind === "mask") return "The mask, before the first block";
  if (step.kind === "merge") return `Merge into stage ${step.stage + 1}: ${2 * step.width} × ${2 * step.width} → ${step.width} × ${step.width} tokens`;
  return `Stage ${step.stage + 1}, block ${step.block + 1}, ${step.shift ? `shifted by ${step.shift}` : "not shifted"}`;
}

/** What a step does, with its numbers, in a sentence or two. */
function stepStory(step) {
  const heard = countOf(step.seen), all = step.seen.length, rest = all - heard;
  const now = rest ? `${few(heard, "token")} of ${all.toLocaleString("en")} have heard of a visible one.` : "Every token has heard of a visible one.";
  if (step.kind === "mask") return `${few(rest, "token")} of ${all.toLocaleString("en")} are hidden and know nothing; the others carry the picture.`;
  if (step.kind === "merge") return `Four neighbours become one token; it knows what any of them knew. ${now}`;
  const across = step.width / step.window;
  let where = across === 1 ? `One window of ${step.window} × ${step.window} spans the map.` : `${across * across} windows of ${step.window} × ${step.window} tokens.`;
  if (step.shift) where = `The shifted windows wrap around and are cut at the seam, into ${step.pieces} pieces.`;
  const silent = step.silent.size, unit = step.shift ? "piece" : "window";
  const mute = silent ? ` ${few(silent, unit)} ${silent === 1 ? "has" : "have"} nothing to share.` : "";
  return `${where}${mute} ${now}`;
}

/** The colour of a token that hears after k of at most `most` blocks: the sooner the lighter. [r, g, b] */
const heardColour = (k, most) => cividis(most < 2 ? 0.86 : 0.92 - (0.72 * (k - 1)) / (most - 1));
const css = (rgb) => `rgb(${rgb.join(" ")})`;

/** Stripes, for what sees nothing: told apart without colour. */
function stripes(context, colour, back) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 24;
  const c = tile.getContext("2d");
  if (back) { c.fillStyle = back; c.fillRect(0, 0, 24, 24); }
  c.strokeStyle = colour; c.lineWidth = 7;
  for (const o of [-24, 0, 24]) { c.beginPath(); c.moveTo(o - 4, 28); c.lineTo(o + 28, -4); c.stroke(); }
  return context.createPattern(tile, "repeat");
}

/** Paint a map (width x width) on a board: fill(i) is a style, or null to let the picture through. */
function paintTokens(context, picture, width, fill) {
  const cell = _BOARD / width;
  context.imageSmoothingEnabled = false;
  context.fillStyle = _PALE;
  context.fillRect(0, 0, _BOARD, _BOARD);
  if (picture) context.drawImage(picture, 0, 0, _BOARD, _BOARD);
  for (let i = 0; i < width * width; i++) {
    const style = fill(i);
    if (style) { context.fillStyle = style; context.fillRect((i % width) * cell, Math.floor(i / width) * cell, cell, cell); }
  }
}

/** Lines where the value of neighbours on a map differs, and around the board if asked for. */
function paintBorders(context, values, width, lines, around = true) {
  const cell = _BOARD / width;
  context.beginPath();
  for (let y = 0; y < width; y++)
    for (let x = 0; x < width; x++) {
      const v = values(y * width + x);
      if (x + 1 < width && v !== values(y * width + x + 1)) { context.moveTo((x + 1) * cell, y * cell); context.lineTo((x + 1) * cell, (y + 1) * cell); }
      if (y + 1 < width && v !== values((y + 1) * width + x)) { context.moveTo(x * cell, (y + 1) * cell); context.lineTo((x + 1) * cell, (y + 1) * cell); }
    }
  if (around) context.rect(1, 1, _BOARD - 2, _BOARD - 2);
  context.lineCap = "square";
  for (const [colour, thick] of lines) { context.strokeStyle = colour; context.lineWidth = thick; context.stroke(); }
}

const _WINDOWS = [["#10131a", 7], ["#ffffff", 3.5]], _FIELD = [["#10131a", 11], [_SKY, 6]];
const thin = (cell) => [["rgb(255 255 255 / 0.22)", cell > 20 ? 2 : 1]];

/** One number on every rectangle of one value, where it fits; `scale`: board pixels a pixel of the page, about. */
function paintNumbers(context, values, side, scale, colourOf) {
  const cell = _BOARD / side, done = new Uint8Array(side * side), free = (y, x, v) => y < side && x < side && !done[y * side + x] && values[y * side + x] === v;
  context.textAlign = "center"; context.textBaseline = "middle";
  for (let i = 0; i < side * side; i++) {
    const y = Math.floor(i / side), x = i % side, v = values[i];
    if (done[i] || v === 0) continue; // visible: nothing to wait for
    let wide = 1, high = 1;
    while (free(y, x + wide, v)) wide++;
    const whole = (row) => { for (let k = 0; k < wide; k++) if (!free(row, x + k, v)) return false; return true; };
    while (whole(y + high)) high++;
    for (let r = y; r < y + high; r++) done.fill(1, r * side + x, r * side + x + wide);
    const size = Math.min(15 * scale, 0.85 * cell * Math.min(wide, high));
    if (size < 8 * scale) continue; // too narrow to read: the colour says it
    context.font = `600 ${Math.round(size)}px Inter, "Segoe UI", "DejaVu Sans", sans-serif`;
    context.fillStyle = colourOf(v);
    context.fillText(v < 0 ? "–" : v, (x + wide / 2) * cell, (y + high / 2) * cell + scale);
  }
}

/** The view itself: el is filled with it. given: tokens (Uint8Array side^2, 1 = hidden), side, window, depths; picture
 *  (anything a canvas draws) and means ([not shifted, shifted]: usual blind windows) may be left out. Returns
 *  {update(some of these), stop()}: a change of the mask keeps step and token, another map begins anew. */
function mountWindows(el, given) {
  let now = { picture: null, means: null, ...given }, steps = [], found = null, at = 1, chosen = null, timer = 0;
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const main = board(_BOARD, "Tokens and windows at the chosen step; arrow keys move the chosen token", { class: "sl-board sl-main", tabIndex: 0, ...OWN_KEYS });
  const plain = board(_BOARD, "First-stage windows, not shifted"), moved = board(_BOARD, "First-stage windows, shifted");
  const map = board(_BOARD, "Blocks until each token hears of a visible one", { class: "sl-board sl-main" });
  const title = h("h3"), story = h("p", { class: "sl-story" }), pick = h("p", { class: "sl-quiet sl-pick" }), live = h("span", { class: "sl-hush", "aria-live": "polite" });
  const stepper = slider("Step", { min: 0, max: 1, step: 1, value: 1, show: (v) => `${v} of ${steps.length - 1}`, change: (v) => { stop(); go(v); } });
  const play = button("Play", () => (timer ? stop() : start()), { "data-act": "play" });
  const back = button("◀ Back", () => { stop(); go(at - 1); }, { "data-act": "back", "aria-label": "One step back" });
  const next = button("Next ▶", () => { stop(); go(at + 1); }, { "data-act": "next", "aria-label": "One step on" });
  const captions = { plain: h("figcaption"), moved: h("figcaption"), map: h("figcaption") }, legend = h("div", { class: "sl-keys" });
  const hover = h("p", { class: "sl-quiet sl-hover" }, "Point at a token for its number.");
  const third = (canvas, caption) => h("figure", {}, canvas, caption);
  el.replaceChildren(
    h("div", { class: "sl-columns" }, main, h("div", {}, title, story, h("div", { class: "sl-controls" }, stepper.element),
      h("div", { class: "sl-row" }, back, next, play), pick, legend, live)),
    h("div", { class: "sl-tiles sl-wide" }, third(plain, captions.plain), third(moved, captions.moved), h("figure", {}, map, captions.map, hover)));

  const side = () => now.side;
  const most = () => Math.max(1, ...found);
  const ink = (k) => (k < 0 ? "#ffffff" : heardColour(k, most())[0] > 130 ? "#10131a" : "#ffffff");

  function update(changed = {}) {
    const shape = () => [now.side, now.window, String(now.depths)].join();
    const before = steps.length ? shape() : "";
    now = { ...now, ...changed };
    steps = encoderSteps(now.tokens, now.side, now.window, now.depths);
    found = blocksUntilSeen(now.tokens, now.side, now.window, now.depths);
    if (shape() !== before) { at = 1; chosen = null; stepper.input.max = steps.length - 1; stop(); }
    if (!chosen) { // one of those that wait longest
      const longest = Math.max(...found), waiting = [...found.keys()].filter((i) => found[i] === longest), i = waiting[waiting.length >> 1];
      chosen = [Math.floor(i / side()), i % side()];
    }
    drawWindows(plain, captions.plain, 0); drawWindows(moved, captions.moved, side() > now.window ? now.window >> 1 : 0);
    drawMap();
    go(at);
  }

  function go(to) {
    at = Math.min(Math.max(to, 0), steps.length - 1);
    const step = steps[at];
    stepper.set(at);
    stepper.input.setAttribute("aria-valuetext", stepName(step));
    back.disabled = at === 0; next.disabled = at === steps.length - 1;
    play.hidden = still.matches;
    title.textContent = stepName(step);
    story.textContent = stepStory(step);
    drawMain();
  }

  function start() {
    if (at === steps.length - 1) go(0);
    timer = setInterval(() => (at < steps.length - 1 && el.isConnected ? go(at + 1) : stop()), 900);
    play.textContent = "Pause";
  }

  function stop() {
    clearInterval(timer); timer = 0;
    play.textContent = "Play";
  }

  /** The step: what was hidden and has heard in the colour of the block that told it, silent windows striped. */
  function drawMain() {
    const c = main.getContext("2d"), step = steps[at], cell = _BOARD / step.width;
    paintTokens(c, now.picture, side(), (i) => (now.tokens[i] ? (found[i] > 0 && found[i] <= step.count ? css(heardColour(found[i], most())) : _UNHEARD) : null));
    paintBorders(c, (i) => i, step.width, thin(cell), false);
    if (step.kind === "block") {
      c.fillStyle = stripes(c, _WARM);
      step.groups.forEach((g, i) => step.silent.has(g) && c.fillRect((i % step.width) * cell, Math.floor(i / step.width) * cell, cell, cell));
      paintBorders(c, (i) => step.groups[i], step.width, _WINDOWS);
    }
    const [y, x] = chosen, field = heardOf(steps, at, y, x), unit = _BOARD / side(), k = found[y * side() + x];
    if (at > 0) paintBorders(c, (i) => field[i], side(), _FIELD, countOf(field) === field.length);
    c.beginPath(); c.arc((x + 0.5) * unit, (y + 0.5) * unit, Math.min(18, Math.max(9, unit / 3)), 0, 7);
    c.fillStyle = _SKY; c.fill(); c.lineWidth = 4; c.strokeStyle = "#10131a"; c.stroke();
    const visible = countOf(field.map((f, i) => (f && !now.tokens[i] ? 1 : 0))), own = now.tokens[y * side() + x];
    const when = own ? (k > 0 ? `hidden, hears of a visible one after ${few(k, "block")}` : "hidden, never hears of a visible one") : "visible";
    pick.textContent = `Token in row ${y + 1}, column ${x + 1} (the blue dot): ${when}. Outlined in blue: the ${few(countOf(field), "token")} it has heard of by now, ${visible.toLocaleString("en")} of them visible.`;
  }

  function drawWindows(canvas, caption, shift) {
    const c = canvas.getContext("2d"), n = side(), w = Math.min(now.window, n), groups = attentionGroups(n, w, shift), lit = new Set(), unit = _BOARD / n;
    groups.forEach((g, i) => now.tokens[i] || lit.add(g));
    paintTokens(c, now.picture, n, (i) => (now.tokens[i] ? _UNHEARD : null));
    c.fillStyle = stripes(c, _WARM);
    groups.forEach((g, i) => lit.has(g) || c.fillRect((i % n) * unit, Math.floor(i / n) * unit, unit, unit));
    paintBorders(c, (i) => groups[i], n, _WINDOWS);
    const whole = countOf(blindWindows(now.tokens, n, w, shift)), windows = Math.ceil(n / w) ** 2, all = new Set(groups).size, mean = now.means && now.means[shift ? 1 : 0];
    const usual = mean === null || mean === undefined ? "" : ` (${mean.toFixed(1)} on average over masks of this kind)`;
    const cut = shift ? ` Cut at the seam: ${all - lit.size} of ${all} pieces.` : "";
    const name = canvas === plain ? "Not shifted" : shift ? `Shifted by ${shift}` : "Not shifted here: one window";
    caption.replaceChildren(h("b", {}, `${name}: `), `${whole} of ${windows} first-stage windows see nothing${usual}.${cut}`);
  }

  function drawMap() {
    const c = map.getContext("2d"), n = side(), hidden = countOf(now.tokens), top = most();
    const never = stripes(c, _WARM, _UNHEARD), style = (k) => (k < 0 ? never : css(heardColour(k, top)));
    paintTokens(c, now.picture, n, (i) => (now.tokens[i] ? style(found[i]) : null));
    paintBorders(c, (i) => found[i], n, [["rgb(16 19 26 / 0.55)", 2]], false);
    paintNumbers(c, found, n, 2.2, ink);
    const kinds = [...new Set(found)].filter((k) => k !== 0).sort((a, b) => (a < 0) - (b < 0) || a - b);
    const swatch = (k) => h("i", { style: k < 0 ? `background: repeating-linear-gradient(135deg, ${_WARM} 0 4px, ${_UNHEARD} 4px 9px)` : `background: ${css(heardColour(k, top))}; color: ${ink(k)}` }, k < 0 ? "–" : k);
    const share = (k) => `${((100 * found.filter((f) => f === k).length) / Math.max(1, hidden)).toFixed(1)} %`;
    legend.replaceChildren(h("b", {}, "Hidden tokens hear of a visible one"), ...kinds.map((k) => h("span", { "data-blocks": k }, swatch(k), k < 0 ? `never: ${share(k)}` : `after ${few(k, "block")}: ${share(k)}`)),
      ...(hidden ? [] : [h("span", {}, "nothing is hidden")]), h("span", {}, h("i", { style: `background: repeating-linear-gradient(135deg, ${_WARM} 0 4px, transparent 4px 9px)` }), "a window with nothing to share"));
    const last = hidden && kinds.length ? kinds[kinds.length - 1] : 0;
    captions.map.replaceChildren(h("b", {}, "Blocks until each token hears"), !hidden ? ": nothing is hidden." : last < 0 ? ": never, where striped." : `: all of them by block ${last}.`);
  }

  function choose(y, x, said) {
    chosen = [Math.min(Math.max(y, 0), side() - 1), Math.min(Math.max(x, 0), side() - 1)];
    drawMain();
    if (said) live.textContent = pick.textContent;
  }

  for (const canvas of [main, map]) {
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [Math.floor(((event.clientY - box.top) / box.height) * side()), Math.floor(((event.clientX - box.left) / box.width) * side())];
    };
    canvas.addEventListener("pointermove", (event) => {
      const [y, x] = place(event), k = found[y * side() + x];
      if (k !== undefined) hover.textContent = `Row ${y + 1}, column ${x + 1}: ${k === 0 ? "visible" : k < 0 ? "never hears of a visible token" : `hears of one after ${few(k, "block")}`}`;
      if (event.buttons) choose(y, x);
    });
    canvas.addEventListener("pointerdown", (event) => choose(...place(event)));
  }
  main.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault(); event.stopPropagation();
    choose(chosen[0] + move[0], chosen[1] + move[1], true);
  });
  update();
  return { update, stop };
}
