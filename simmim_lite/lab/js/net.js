// A small SimMIM in the page: Swin V2 forward in plain arrays, from a safetensors file. Tested against the library's.
// onnxruntime-web 1.x was tried on a network of 32 px: 6 ms a picture instead of 13, but 14.2 MB of WebAssembly in every
// page and 0.7 s to start; the whole lab with three networks is one file of half that.

/** Tensors of a safetensors file (F16 or F32) as {shape, data: Float64Array}, and its metadata. */
function readWeights(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), length = Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))), tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: [from, to] } = entry;
    const at = 8 + length + from, size = (to - from) / (dtype === "F16" ? 2 : 4), data = new Float64Array(size);
    for (let i = 0; i < size; i++) data[i] = dtype === "F16" ? half(view.getUint16(at + 2 * i, true)) : view.getFloat32(at + 4 * i, true);
    tensors[name] = { shape, data };
  }
  return { tensors, metadata: header.__metadata__ || {} };
}

function half(h) {
  const sign = h & 0x8000 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return exponent === 31 ? (fraction ? NaN : sign * Infinity) : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** y (rows, out) = x (rows, in) W^T + b, W (out, in). Two rows by two outputs at a time, so that a number that is loaded
 *  serves twice, in doubles, so that none is converted: half the time of the plain loop. What lies beyond an end is the
 *  last one again. */
function linear(x, rows, { shape: [out, wide], data: w }, bias) {
  const y = new Float32Array(rows * out), doubles = new Float64Array(x);
  for (let r = 0; r < rows; r += 2) {
    const r2 = Math.min(r + 1, rows - 1), x1 = r * wide, x2 = r2 * wide;
    for (let o = 0; o < out; o += 2) {
      const o2 = Math.min(o + 1, out - 1), w1 = o * wide, w2 = o2 * wide;
      let a = bias ? bias[o] : 0, b = bias ? bias[o2] : 0, c = a, d = b;
      for (let i = 0; i < wide; i++) {
        const p = doubles[x1 + i], q = doubles[x2 + i], u = w[w1 + i], v = w[w2 + i];
        a += p * u; b += p * v; c += q * u; d += q * v;
      }
      y[r * out + o] = a; y[r * out + o2] = b; y[r2 * out + o] = c; y[r2 * out + o2] = d;
    }
  }
  return y;
}

/** LayerNorm over the last dimension, in place. */
function layerNorm(x, width, weight, bias) {
  for (let r = 0; r < x.length; r += width) {
    let mean = 0, square = 0;
    for (let i = 0; i < width; i++) mean += x[r + i];
    mean /= width;
    for (let i = 0; i < width; i++) square += (x[r + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(square / width + 1e-5);
    for (let i = 0; i < width; i++) x[r + i] = (x[r + i] - mean) * scale * weight[i] + bias[i];
  }
  return x;
}

/** x * Phi(x), with the error function of Abramowitz and Stegun 7.1.26, good to 1.5e-7. */
function gelu(x) {
  const z = Math.abs(x) / Math.SQRT2, t = 1 / (1 + 0.3275911 * z);
  const erf = 1 - ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t * Math.exp(-z * z);
  return 0.5 * x * (1 + (x < 0 ? -erf : erf));
}

class Net {
  /** bytes: a safetensors file in the project's own layout; its metadata says image side, window, depths and target. */
  constructor(bytes) {
    const { tensors, metadata } = readWeights(bytes);
    this.t = tensors;
    this.about = JSON.parse(metadata.about);
    this.bias = new Map();
  }

  get(name) { return this.t[name].data; }

  /** Predictions (3 * S * S, target space, channel by channel) for normalised pixels (3 * S * S) and hidden tokens (T).
   *  seen: a list that every block adds its attention to: {stage, n, window, shift, heads, weights, places, bias}. */
  predict(pixels, hidden, seen = null) {
    const { patch_size: p, window, depths } = this.about, side = Math.sqrt(pixels.length / 3), across = side / p, wide = 3 * p * p;
    const patches = new Float32Array(across * across * wide);
    for (let c = 0, i = 0; c < 3; c++)
      for (let y = 0; y < side; y++)
        for (let x = 0; x < side; x++, i++)
          patches[(Math.floor(y / p) * across + Math.floor(x / p)) * wide + (c * p + (y % p)) * p + (x % p)] = pixels[i];
    const kernel = this.t["encoder.patch_embed.proj.weight"];
    let x = linear(patches, across * across, { shape: [kernel.shape[0], wide], data: kernel.data }, this.get("encoder.patch_embed.proj.bias"));
    let width = kernel.shape[0], n = across;
    layerNorm(x, width, this.get("encoder.patch_embed.norm.weight"), this.get("encoder.patch_embed.norm.bias"));
    const token = this.get("encoder.mask_token");
    hidden.forEach((h, i) => h && x.set(token, i * width));
    depths.forEach((blocks, s) => {
      const w = Math.min(window, n), shift = n > window ? Math.floor(w / 2) : 0;
      for (let b = 0; b < blocks; b++) {
        const look = seen && { stage: s, n, window: w, shift: b % 2 ? shift : 0 };
        x = this.block(x, n, width, w, b % 2 ? shift : 0, `encoder.layers.${s}.blocks.${b}`, look);
        if (seen) seen.push(look);
      }
      if (s + 1 < depths.length) { x = this.merge(x, n, width, `encoder.layers.${s}.downsample`); n /= 2; width *= 2; }
    });
    layerNorm(x, width, this.get("encoder.norm.weight"), this.get("encoder.norm.bias"));
    const head = this.t["decoder.0.weight"], q = side / n, flat = { shape: [head.shape[0], width], data: head.data };
    const out = linear(x, n * n, flat, this.get("decoder.0.bias")), image = new Float32Array(3 * side * side);
    for (let c = 0, i = 0; c < 3; c++)
      for (let y = 0; y < side; y++)
        for (let xx = 0; xx < side; xx++, i++)
          image[i] = out[(Math.floor(y / q) * n + Math.floor(xx / q)) * 3 * q * q + (c * q + (y % q)) * q + (xx % q)];
    return image;
  }

  block(x, n, width, window, shift, name, look) {
    const attended = layerNorm(this.attention(x, n, width, window, shift, `${name}.attn`, look), width, this.get(`${name}.norm1.weight`), this.get(`${name}.norm1.bias`));
    for (let i = 0; i < x.length; i++) attended[i] += x[i];
    const wide = linear(attended, n * n, this.t[`${name}.mlp.fc1.weight`], this.get(`${name}.mlp.fc1.bias`)).map(gelu);
    const out = linear(wide, n * n, this.t[`${name}.mlp.fc2.weight`], this.get(`${name}.mlp.fc2.bias`));
    layerNorm(out, width, this.get(`${name}.norm2.weight`), this.get(`${name}.norm2.bias`));
    for (let i = 0; i < out.length; i++) out[i] += attended[i];
    return out;
  }

  attention(x, n, width, window, shift, name, look) {
    const heads = width / 32, L = window * window, across = n / window, scale = this.get(`${name}.logit_scale`);
    const qkvBias = new Float32Array(3 * width);
    qkvBias.set(this.get(`${name}.q_bias`)); qkvBias.set(this.get(`${name}.v_bias`), 2 * width);
    const qkv = new Float64Array(linear(x, n * n, this.t[`${name}.qkv.weight`], qkvBias)), mixed = new Float64Array(n * n * width);
    const bias = this.positionBias(name, window, heads), groups = attentionGroups(n, window, shift);
    const at = new Int32Array(L), logits = new Float32Array(L);
    if (look) Object.assign(look, { heads, bias, weights: new Float32Array(heads * n * n * L), places: new Int32Array(n * n * L), own: new Int32Array(n * n) });
    for (let wy = 0; wy < across; wy++)
      for (let wx = 0; wx < across; wx++) {
        for (let i = 0; i < L; i++) {
          const y = (wy * window + Math.floor(i / window) + shift) % n;
          at[i] = y * n + ((wx * window + (i % window) + shift) % n);
        }
        if (look) at.forEach((place, i) => { look.places.set(at, place * L); look.own[place] = i; });
        for (let h = 0; h < heads; h++) {
          const inverse = (i, part) => {
            let sum = 0;
            for (let c = 0, o = at[i] * 3 * width + part * width + h * 32; c < 32; c++) sum += qkv[o + c] ** 2;
            return 1 / Math.max(Math.sqrt(sum), 1e-12);
          };
          const norms = Float32Array.from(at, (_, i) => inverse(i, 1)), tau = Math.exp(Math.min(scale[h], Math.log(100)));
          for (let i = 0; i < L; i++) {
            const qo = at[i] * 3 * width + h * 32, qn = inverse(i, 0) * tau;
            let top = -Infinity, sum = 0;
            for (let j = 0; j < L; j++) {
              let dot = 0;
              for (let c = 0, ko = at[j] * 3 * width + width + h * 32; c < 32; c++) dot += qkv[qo + c] * qkv[ko + c];
              logits[j] = dot * qn * norms[j] + bias[(h * L + i) * L + j] - (groups[at[i]] === groups[at[j]] ? 0 : 100);
              top = Math.max(top, logits[j]);
            }
            for (let j = 0; j < L; j++) sum += logits[j] = Math.exp(logits[j] - top);
            if (look) look.weights.set(logits.map((v) => v / sum), (h * n * n + at[i]) * L);
            for (let j = 0; j < L; j++) {
              const p = logits[j] / sum, vo = at[j] * 3 * width + 2 * width + h * 32, o = at[i] * width + h * 32;
              for (let c = 0; c < 32; c++) mixed[o + c] += p * qkv[vo + c];
            }
          }
        }
      }
    return linear(mixed, n * n, this.t[`${name}.proj.weight`], this.get(`${name}.proj.bias`));
  }

  /** (heads, L, L): 16 sigmoid(MLP(log-spaced offset)); a function of the weights, kept. */
  positionBias(name, window, heads) {
    const kept = `${name} ${window}`;
    if (this.bias.has(kept)) return this.bias.get(kept);
    const span = 2 * window - 1, offset = (d) => { const v = (d * 8) / Math.max(1, window - 1); return (Math.sign(v) * Math.log2(Math.abs(v) + 1)) / 3; };
    const grid = Float32Array.from({ length: 2 * span * span }, (_, i) => offset((i % 2 ? (i >> 1) % span : Math.floor((i >> 1) / span)) - window + 1));
    const hidden = linear(grid, span * span, this.t[`${name}.cpb_mlp.0.weight`], this.get(`${name}.cpb_mlp.0.bias`)).map((v) => Math.max(v, 0));
    const table = linear(hidden, span * span, this.t[`${name}.cpb_mlp.2.weight`]), L = window * window, bias = new Float32Array(heads * L * L);
    for (let h = 0, k = 0; h < heads; h++)
      for (let i = 0; i < L; i++)
        for (let j = 0; j < L; j++, k++) {
          const dy = Math.floor(i / window) - Math.floor(j / window) + window - 1, dx = (i % window) - (j % window) + window - 1;
          bias[k] = 16 / (1 + Math.exp(-table[(dy * span + dx) * heads + h]));
        }
    this.bias.set(kept, bias);
    return bias;
  }

  merge(x, n, width, name) {
    const half = n / 2, joined = new Float32Array(half * half * 4 * width);
    for (let y = 0; y < half; y++)
      for (let xx = 0; xx < half; xx++)
        for (let k = 0; k < 4; k++) { // even-even, odd-even, even-odd, odd-odd in (row, column)
          const from = ((2 * y + (k % 2)) * n + 2 * xx + (k >> 1)) * width;
          joined.set(x.subarray(from, from + width), ((y * half + xx) * 4 + k) * width);
        }
    return layerNorm(linear(joined, half * half, this.t[`${name}.reduction.weight`]), 2 * width, this.get(`${name}.norm.weight`), this.get(`${name}.norm.bias`));
  }
}

/** Networks at work beside the page, so that it stays smooth; where a page may have no worker, in it. ask() answers the
 *  newest question alone: what was asked meanwhile is passed over. */
class Inference {
  constructor() {
    this.nets = new Map(); this.waiting = null; this.busy = false;
    try {
      const parts = [attentionGroups, readWeights, half, linear, layerNorm, gelu, Net, infer].map(String).join("\n");
      const handler = "const nets = new Map(); onmessage = ({ data }) => infer(nets, data, (found, kept) => postMessage(found, kept));";
      this.worker = new Worker(URL.createObjectURL(new Blob([parts, handler], { type: "text/javascript" })));
      this.worker.onmessage = ({ data }) => this.answered(data);
      this.worker.onerror = () => { // forbidden after all: everything again, here
        this.worker = null;
        for (const [name, bytes] of this.nets) this.tell({ name, bytes });
        if (this.now) this.tell(this.now.question);
      };
    } catch {
      this.worker = null;
    }
  }

  has(name) { return this.nets.has(name); }
  load(name, bytes) {
    this.nets.set(name, bytes);
    this.tell({ name, bytes });
  }

  /** question: {name, pixels, hidden, look}; tell({prediction, seen, milliseconds}) is called for the newest one. */
  ask(question, tell) {
    this.waiting = { question, tell };
    if (!this.busy) this.next();
  }

  next() {
    this.now = this.waiting; this.waiting = null; this.busy = Boolean(this.now);
    if (this.now) this.tell(this.now.question);
  }

  answered(found) {
    const { tell } = this.now;
    const newest = !this.waiting;
    this.next();
    if (newest) tell(found);
  }

  tell(message) {
    if (this.worker) this.worker.postMessage(message);
    else setTimeout(() => infer(this.nets, message, (found) => this.answered(found)), 0);
  }
}

/** A message of `Inference`: weights of a network to keep, or a question. */
function infer(nets, { name, bytes, pixels, hidden, look }, answer) {
  if (bytes) return void nets.set(name, new Net(bytes));
  const started = performance.now(), seen = look ? [] : null, prediction = nets.get(name).predict(pixels, hidden, seen);
  answer({ prediction, seen, milliseconds: performance.now() - started }, [prediction.buffer]);
}
