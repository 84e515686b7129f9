// Masks and what they do: the same integers as simmim_lite/model/masking.py, so that one mask is the same in both.

/** Murmur3's finaliser on a 32-bit integer; 0 .. 2^32 - 1. */
function fmix32(x) {
  x = Math.imul((x >>> 0) ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** Fold whole numbers from 0 to 2^53 - 1 into one 32-bit stream number. */
function stream(...numbers) {
  let h = 0;
  for (const number of numbers)
    for (const word of [number >>> 0, Math.floor(number / 2 ** 32) >>> 0])
      h = fmix32(Math.imul(h, 31) + word + 0x9e3779b9);
  return h;
}

/** The first n hashes of a stream: Uint32Array (n). */
function hashes(streamNumber, n) {
  return Uint32Array.from({ length: n }, (_, i) => fmix32(Math.imul(i + 1, 0x9e3779b1) ^ streamNumber));
}

/** How many of the cells are hidden: rounded up, as the official code counts. */
const hiddenCount = (cells, ratio) => Math.ceil(cells * ratio);

/** In which order each strategy hides cells, ties at random: the twins of masking.STRATEGIES, in its order. */
const STRATEGIES = { random: (rows, columns) => new Int32Array(rows * columns), square: squareOrder, block: blockOrder };

/** Uint8Array (rows * columns), 1 = hidden: a function of the numbers alone, nested in the ratio. */
function hashMask(rows, columns, ratio, seed, id = 0, visit = 0, strategy = "random") {
  const cells = rows * columns, s = stream(seed, id, visit), tie = hashes(s, cells);
  if (!Object.hasOwn(STRATEGIES, strategy)) throw new Error(`unknown mask strategy ${strategy}`);
  const rank = STRATEGIES[strategy](rows, columns, s);
  const order = Uint32Array.from({ length: cells }, (_, i) => i);
  order.sort((a, b) => rank[a] - rank[b] || tie[a] - tie[b] || a - b);
  const mask = new Uint8Array(cells);
  for (const cell of order.subarray(0, hiddenCount(cells, ratio))) mask[cell] = 1;
  return mask;
}

function squareOrder(rows, columns, s) {
  const draw = hashes(fmix32(s ^ 0x5bd1e995), 2), y = draw[0] % (2 * rows - 1), x = draw[1] % (2 * columns - 1);
  return Int32Array.from({ length: rows * columns }, (_, i) =>
    Math.max(Math.abs(2 * Math.floor(i / columns) - y), Math.abs(2 * (i % columns) - x)));
}

function blockOrder(rows, columns, s) {
  const BLOCKS = 64, draw = hashes(fmix32(s ^ 0x1b873593), 4 * BLOCKS), order = new Int32Array(rows * columns).fill(BLOCKS);
  for (let b = BLOCKS - 1; b >= 0; b--) { // the first rectangle that covers a cell is the one that stays
    const height = 1 + draw[4 * b] % Math.max(1, (rows + 1) >> 1), width = 1 + draw[4 * b + 1] % Math.max(1, (columns + 1) >> 1);
    const top = draw[4 * b + 2] % (rows - height + 1), left = draw[4 * b + 3] % (columns - width + 1);
    for (let y = top; y < top + height; y++) order.fill(b, y * columns + left, y * columns + left + width);
  }
  return order;
}

/** Repeat every cell `factor` times both ways: a square mask of `side` cells -> (side * factor)^2. */
function upsample(mask, side, factor) {
  const wide = side * factor;
  return Uint8Array.from({ length: wide * wide }, (_, i) =>
    mask[Math.floor(Math.floor(i / wide) / factor) * side + Math.floor((i % wide) / factor)]);
}

/** AvgDist (SimMIM): mean Euclidean distance in pixels from a hidden pixel to the nearest visible one; 0 and Infinity
 *  for nothing and everything hidden. Exact: columns first, then the lower envelope of parabolas along each row. */
function averageDistance(mask, side, cell) {
  const hidden = mask.reduce((a, b) => a + b, 0), n = side * cell;
  if (!hidden) return 0;
  if (hidden === mask.length) return Infinity;
  const up = new Float64Array(n * n), FAR = 4 * n;
  for (let x = 0; x < n; x++) {
    const at = (y) => mask[Math.floor(y / cell) * side + Math.floor(x / cell)];
    for (let y = 0, d = FAR; y < n; y++) up[y * n + x] = d = at(y) ? d + 1 : 0;
    for (let y = n - 1, d = FAR; y >= 0; y--) { d = at(y) ? d + 1 : 0; if (d < up[y * n + x]) up[y * n + x] = d; }
  }
  const vertex = new Int32Array(n), edge = new Float64Array(n + 1);
  let total = 0;
  for (let y = 0; y < n; y++) {
    const f = (x) => up[y * n + x] ** 2;
    let k = 0;
    vertex[0] = 0; edge[0] = -Infinity; edge[1] = Infinity;
    for (let x = 1; x < n; x++) {
      let s;
      while ((s = (f(x) + x * x - f(vertex[k]) - vertex[k] ** 2) / (2 * (x - vertex[k]))) <= edge[k]) k--;
      vertex[++k] = x; edge[k] = s; edge[k + 1] = Infinity;
    }
    for (let x = 0, j = 0; x < n; x++) {
      while (edge[j + 1] < x) j++;
      total += Math.sqrt((x - vertex[j]) ** 2 + f(vertex[j]));
    }
  }
  return total / (hidden * cell * cell);
}

/** Which attention windows hold no visible token: Uint8Array of (side / window)^2. The map is rolled by `shift` first. */
function blindWindows(tokens, side, window, shift = 0) {
  const across = Math.ceil(side / window), blind = new Uint8Array(across * across).fill(1);
  for (let y = 0; y < side; y++)
    for (let x = 0; x < side; x++)
      if (!tokens[((y + shift) % side) * side + ((x + shift) % side)])
        blind[Math.floor(y / window) * across + Math.floor(x / window)] = 0;
  return blind;
}

/** Which tokens attend to each other: Int32Array of group numbers (side^2). A shifted map is cut where it wraps. */
function attentionGroups(side, window, shift) {
  const across = Math.ceil(side / window), wraps = (p) => (shift && p >= side - shift ? 1 : 0);
  return Int32Array.from({ length: side * side }, (_, i) => {
    // place after the roll by -shift
    const y = (Math.floor(i / side) - shift + side) % side, x = ((i % side) - shift + side) % side;
    return (Math.floor(y / window) * across + Math.floor(x / window)) * 4 + 2 * wraps(y) + wraps(x);
  });
}

/** After how many blocks each token of the first map has heard of a visible one: 0 for visible ones, -1 for never.
 *  stages: [{blocks}], window clamped to each stage's map, every second block shifted where the map is larger. */
function blocksUntilSeen(tokens, side, window, depths) {
  let seen = Uint8Array.from(tokens, (t) => (t ? 0 : 1)), width = side, block = 0;
  const found = Int32Array.from(tokens, (t) => (t ? -1 : 0));
  for (let stage = 0; stage < depths.length; stage++) {
    const w = Math.min(window, width), half = width > window ? Math.floor(w / 2) : 0;
    for (let b = 0; b < depths[stage]; b++) {
      const groups = attentionGroups(width, w, b % 2 ? half : 0), lit = new Set();
      block++;
      seen.forEach((s, i) => s && lit.add(groups[i]));
      seen = seen.map((s, i) => (s || lit.has(groups[i]) ? 1 : 0));
      const factor = side / width;
      found.forEach((f, i) => {
        const at = Math.floor(Math.floor(i / side) / factor) * width + Math.floor((i % side) / factor);
        if (f < 0 && seen[at]) found[i] = block;
      });
    }
    if (stage + 1 < depths.length && width % 2 === 0) { // four neighbours become one
      const next = new Uint8Array((width / 2) ** 2);
      seen.forEach((s, i) => { if (s) next[Math.floor(Math.floor(i / width) / 2) * (width / 2) + Math.floor((i % width) / 2)] = 1; });
      seen = next; width /= 2;
    }
  }
  return found;
}
