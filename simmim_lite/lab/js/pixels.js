// From predictions to pictures: local statistics, the loss of each cell, and colours on canvases.

/** Mean and unbiased variance in an odd window around each pixel, channel by channel, over pixels of weight 1 (all by
 *  default): as `local_statistics` of simmim_lite/model/simmim.py. Where fewer than two count, those of the whole channel stand in. */
function localStatistics(x, side, window, weight) {
  const r = (window - 1) / 2, n = side * side, mean = new Float32Array(3 * n), variance = new Float32Array(3 * n);
  const box = (value) => { // sums over the window, by prefix sums along rows, then columns
    const rows = new Float64Array(n), out = new Float64Array(n), prefix = new Float64Array(side + 1);
    const along = (from, to, at) => {
      for (let i = 0; i < side; i++) prefix[i + 1] = prefix[i] + from[at(i)];
      for (let i = 0; i < side; i++) to[at(i)] = prefix[Math.min(side, i + r + 1)] - prefix[Math.max(0, i - r)];
    };
    for (let y = 0; y < side; y++) along(value, rows, (i) => y * side + i);
    for (let c = 0; c < side; c++) along(rows, out, (i) => i * side + c);
    return out;
  };
  const counted = weight || new Float32Array(n).fill(1), count = box(counted);
  for (let c = 0; c < 3; c++) {
    const v = x.subarray(c * n, (c + 1) * n);
    let total = 0, all = 0;
    for (let i = 0; i < n; i++) { total += counted[i] * v[i]; all += counted[i]; }
    const level = all ? total / all : 0, centred = v.map((a, i) => counted[i] * (a - level)), square = v.map((a, i) => counted[i] * (a - level) ** 2);
    const whole = all > 1 ? square.reduce((a, b) => a + b, 0) / (all - 1) : 1, m = box(centred), s = box(square);
    for (let i = 0; i < n; i++) {
      const k = count[i];
      if (k < 2) { mean[c * n + i] = level; variance[c * n + i] = whole; continue; }
      mean[c * n + i] = level + m[i] / k;
      variance[c * n + i] = Math.max(0, (s[i] / k - (m[i] / k) ** 2) * (k / (k - 1)));
    }
  }
  return { mean, variance };
}

/** uint8 (3 * S * S) -> (x / 255 - mean) / std per channel. */
function normalise(bytes, about) {
  const n = bytes.length / 3;
  return Float32Array.from(bytes, (v, i) => (v / 255 - about.mean[Math.floor(i / n)]) / about.std[Math.floor(i / n)]);
}

/** What the network was to predict: the normalised pixels, or each against its window. */
function targetOf(x, about) {
  if (about.target === "raw") return x;
  const { mean, variance } = localStatistics(x, about.side, about.target_window);
  return x.map((v, i) => (v - mean[i]) / Math.sqrt(variance[i] + 1e-6));
}

/** A prediction in target space as bytes. statistics: of a normalised target, "visible" (of the pixels the network saw,
 *  in the same window), "true" (of the hidden picture: leaks), or "normalised" (the numbers themselves, 0 is mid-grey). */
function toBytes(prediction, x, visible, about, statistics) {
  const n = about.side ** 2;
  let pixels = prediction;
  if (about.target !== "raw") {
    if (statistics === "normalised") return Uint8ClampedArray.from(prediction, (z) => 127.5 + 42.5 * z); // 3 sd to black and white
    const { mean, variance } = localStatistics(x, about.side, about.target_window, statistics === "true" ? null : visible);
    pixels = prediction.map((z, i) => z * Math.sqrt(variance[i] + 1e-6) + mean[i]);
  }
  return Uint8ClampedArray.from(pixels, (v, i) => 255 * (v * about.std[Math.floor(i / n)] + about.mean[Math.floor(i / n)]));
}

/** L1 of each cell (mean over its pixels and channels), and the error of each pixel (mean over channels). */
function cellLosses(prediction, target, side, patch) {
  const n = side * side, grid = side / patch, error = new Float32Array(n), losses = new Float32Array(grid * grid);
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) error[i] += Math.abs(prediction[c * n + i] - target[c * n + i]) / 3;
    losses[Math.floor(Math.floor(i / side) / patch) * grid + Math.floor((i % side) / patch)] += error[i] / (patch * patch);
  }
  return { error, losses };
}

/** Put colours on a canvas of `side` pixels: colour(i) -> [r, g, b], or null for none. */
function paint(canvas, side, colour) {
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d"), image = context.createImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    const found = colour(i);
    if (!found) continue;
    const [r, g, b] = found;
    image.data[4 * i] = r; image.data[4 * i + 1] = g; image.data[4 * i + 2] = b; image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** Bytes (3 * S * S) of a canvas of KEPT pixels, averaged down in whole blocks where they divide. */
function bytesAt(kept, side) {
  const size = kept.width, block = size / side;
  let source = kept;
  if (!Number.isInteger(block)) {
    source = document.createElement("canvas");
    source.width = source.height = side;
    const context = source.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(kept, 0, 0, side, side);
  }
  const { data } = source.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, source.width, source.height);
  const k = Number.isInteger(block) ? block : 1, out = new Uint8Array(3 * side * side);
  for (let c = 0, i = 0; c < 3; c++)
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++, i++) {
        let sum = 0;
        for (let dy = 0; dy < k; dy++) for (let dx = 0; dx < k; dx++) sum += data[4 * ((y * k + dy) * source.width + x * k + dx) + c];
        out[i] = Math.floor(sum / (k * k) + 0.5);
      }
  return out;
}

/** A file as the centre square of a picture, `side` pixels on white; an Error with one sentence where it is none. */
async function squareOf(file, side) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Error(`${file.name || "this"} is no picture that the browser can read: give a JPEG, PNG or WebP file`);
  }
  const edge = Math.min(bitmap.width, bitmap.height), canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - edge) / 2, (bitmap.height - edge) / 2, edge, edge, 0, 0, side, side);
  const said = `${bitmap.width.toLocaleString("en")} x ${bitmap.height.toLocaleString("en")} pixels`;
  bitmap.close();
  return { canvas, said };
}
