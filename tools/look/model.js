// The forward pass of model.py in plain JavaScript, one token at a time, with a KV cache.
//
//     const model = new GPT(config, weights);      // {name: Float32Array}, the names of model.py
//     const cache = model.newCache();
//     const {logits} = model.forward(id, cache);   // the token that follows
//
// A vector is a Float32Array; sums are computed in float64. What a token computes depends only on
// the tokens before it, so forward() takes one token and adds its keys and values to the cache. It
// also returns everything that it computes on the way, which the views of the page show.
"use strict";

/** A linear layer: weight is (n_out, n_in), row by row; bias is (n_out) or undefined. */
class Linear {
  constructor(weight, bias, n_in) {
    Object.assign(this, {weight, bias, n_in, n_out: weight.length / n_in});
  }

  forward(x) {
    const {weight, bias, n_in, n_out} = this;
    const y = new Float32Array(n_out);
    let o = 0;
    // four rows at a time: their sums do not wait for each other, which is three times as fast
    for (; o + 4 <= n_out; o += 4) {
      let a = 0, b = 0, c = 0, d = 0;
      let w = o * n_in;
      for (let i = 0; i < n_in; i++, w++) {
        const value = x[i];
        a += weight[w] * value;
        b += weight[w + n_in] * value;
        c += weight[w + 2 * n_in] * value;
        d += weight[w + 3 * n_in] * value;
      }
      y[o] = a;
      y[o + 1] = b;
      y[o + 2] = c;
      y[o + 3] = d;
    }
    for (; o < n_out; o++) {
      let sum = 0;
      for (let i = 0; i < n_in; i++) sum += weight[o * n_in + i] * x[i];
      y[o] = sum;
    }
    if (bias) for (let i = 0; i < n_out; i++) y[i] += bias[i];
    return y;
  }
}

/** The Linear layer of this name among the weights of a model. */
function linear(weights, name, n_in) {
  return new Linear(weights[`${name}.weight`], weights[`${name}.bias`], n_in);
}

/** LayerNorm; without weight and bias if they are undefined. */
class LayerNorm {
  constructor(eps, weight, bias) {
    Object.assign(this, {eps, weight, bias});
  }

  forward(x) {
    const mean = x.reduce((sum, a) => sum + a, 0) / x.length;
    const variance = x.reduce((sum, a) => sum + (a - mean) ** 2, 0) / x.length;
    const scale = 1 / Math.sqrt(variance + this.eps);
    return x.map((a, i) => (a - mean) * scale * (this.weight?.[i] ?? 1) + (this.bias?.[i] ?? 0));
  }
}

/** RMSNorm: no mean, no learned scale. */
class RMSNorm {
  constructor(eps) {
    this.eps = eps;
  }

  forward(x) {
    const scale = 1 / Math.sqrt(x.reduce((sum, a) => sum + a * a, 0) / x.length + this.eps);
    return x.map((a) => a * scale);
  }
}

/** cos and sin of the angles by which RoPE rotates at a position: hs / 2 numbers each. */
function ropeAngles(position, headSize) {
  const channels = Array.from({length: headSize / 2}, (_, i) => 2 * i);
  const angles = channels.map((i) => position * 10000 ** -(i / headSize));
  return [angles.map(Math.cos), angles.map(Math.sin)];
}

/** Rotate the pairs (a, b) of one head's vector x: channel i is paired with channel i + hs / 2. */
function rotate(x, [cos, sin]) {
  const half = x.length / 2;
  const y = new Float32Array(x.length);
  for (let i = 0; i < half; i++) {
    const a = x[i];
    const b = x[i + half];
    y[i] = a * cos[i] - b * sin[i];
    y[i + half] = b * cos[i] + a * sin[i];
  }
  return y;
}

function softmax(scores) {
  const highest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const exps = Float64Array.from(scores, (score) => Math.exp(score - highest));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((e) => e / sum);
}

function dot(x, y) {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * y[i];
  return sum;
}

/** softmax(scale q k^T) v for one query q and the keys and values up to its own position.
 *  Causality: the cache has no later keys. Returns [the weighted mean of the values, weights]. */
function attend(q, keys, values, scale) {
  const weights = softmax(keys.map((k) => scale * dot(q, k)));
  const y = new Float32Array(q.length);
  for (let t = 0; t < values.length; t++) {
    for (let i = 0; i < y.length; i++) y[i] += weights[t] * values[t][i];
  }
  return [y, weights];
}

class CausalSelfAttention {
  constructor(config, weights, prefix) {
    const C = config.n_embd;
    Object.assign(this, {n_head: config.n_head, hs: C / config.n_head});
    this.scale = config.attn_scale / Math.sqrt(this.hs);
    this.c_attn = linear(weights, `${prefix}.c_attn`, C); // q, k and v
    this.c_proj = linear(weights, `${prefix}.c_proj`, C);
    this.qk_norm = config.qk_norm ? new LayerNorm(1e-5) : {forward: (x) => x};
  }

  /** x (C) -> {attended (C), q and attention weights of each head, y (C): the heads side by side}.
   *  cache: {keys, values}, a list of vectors per head. isOff(head): whether it is switched off. */
  forward(x, rope, cache, isOff) {
    const C = x.length;
    const {hs} = this;
    const qkv = this.c_attn.forward(x);
    const y = new Float32Array(C);
    const queries = [];
    const attention = [];
    for (let head = 0; head < this.n_head; head++) {
      const part = (start) => qkv.slice(start + head * hs, start + (head + 1) * hs);
      let q = this.qk_norm.forward(part(0));
      let k = this.qk_norm.forward(part(C));
      if (rope) {
        q = rotate(q, rope);
        k = rotate(k, rope);
      }
      cache.keys[head].push(k);
      cache.values[head].push(part(2 * C));
      const [mean, weights] = attend(q, cache.keys[head], cache.values[head], this.scale);
      if (!isOff(head)) y.set(mean, head * hs); // else this head adds zeros
      queries.push(q);
      attention.push(weights);
    }
    return {attended: this.c_proj.forward(y), q: queries, attention, y};
  }
}

/** The error function, by a series whose terms are all positive; exact to 1e-12. */
function erf(x) {
  if (Math.abs(x) > 5) return Math.sign(x);
  let sum = 0;
  let term = x;
  for (let n = 1; Math.abs(term) > 1e-16 * Math.abs(sum); n++) {
    sum += term;
    term *= (2 * x * x) / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

const ACTIVATIONS = {
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  relu2: (x) => Math.max(0, x) ** 2,
};

class MLP {
  constructor(config, weights, prefix) {
    const C = config.n_embd;
    this.c_fc = linear(weights, `${prefix}.c_fc`, C);
    this.c_proj = linear(weights, `${prefix}.c_proj`, 4 * C);
    this.act = ACTIVATIONS[config.act];
  }

  /** x (C) -> {processed (C), neurons (4 C)}. */
  forward(x) {
    const neurons = this.c_fc.forward(x).map(this.act);
    return {processed: this.c_proj.forward(neurons), neurons};
  }
}

function makeNorm(config, weights, prefix) {
  if (config.norm === "rmsnorm") return new RMSNorm(config.norm_eps);
  return new LayerNorm(config.norm_eps, weights[`${prefix}.weight`], weights[`${prefix}.bias`]);
}

const add = (x, y) => x.map((a, i) => a + y[i]);

class Block {
  constructor(config, weights, layer) {
    const prefix = `transformer.h.${layer}`;
    this.ln_1 = makeNorm(config, weights, `${prefix}.ln_1`);
    this.attn = new CausalSelfAttention(config, weights, `${prefix}.attn`);
    this.ln_2 = makeNorm(config, weights, `${prefix}.ln_2`);
    this.mlp = new MLP(config, weights, `${prefix}.mlp`);
    this.n_head = config.n_head;
  }

  /** x (C) -> what the layer computes: x before it, the parts of attention and MLP, and x after it.
   *  isOff(part): whether a head (its number), or the MLP (n_head), is switched off. */
  forward(x, rope, cache, isOff) {
    const attn = this.attn.forward(this.ln_1.forward(x), rope, cache, isOff);
    const middle = add(x, attn.attended);
    const mlp = this.mlp.forward(this.ln_2.forward(middle));
    if (isOff(this.n_head)) mlp.processed = new Float32Array(x.length);
    return {before: x, ...attn, ...mlp, after: add(middle, mlp.processed)};
  }
}

class GPT {
  constructor(config, weights) {
    this.config = config;
    this.wte = weights["transformer.wte.weight"];
    this.wpe = weights["transformer.wpe.weight"]; // undefined with RoPE
    this.h = Array.from({length: config.n_layer}, (_, layer) => new Block(config, weights, layer));
    this.smear = weights.smear; // undefined without smear
    this.ln_f = makeNorm(config, weights, "transformer.ln_f");
    const head = config.tied ? this.wte : weights["lm_head.weight"];
    this.lm_head = new Linear(head, undefined, config.n_embd);
  }

  /** Keys and values of the tokens so far: a list of vectors per layer and head. */
  newCache() {
    const lists = () => Array.from({length: this.config.n_head}, () => []);
    return {length: 0, ids: [], layers: this.h.map(() => ({keys: lists(), values: lists()}))};
  }

  /** Keep only the first n tokens of the cache. */
  truncate(cache, n) {
    for (const {keys, values} of cache.layers) {
      for (const list of [...keys, ...values]) list.length = Math.min(list.length, n);
    }
    cache.length = cache.ids.length = Math.min(cache.length, n);
  }

  /** The logits (V) that a residual stream x (C) would give if it were the last one. */
  head(x) {
    const {softcap} = this.config;
    const logits = this.lm_head.forward(this.ln_f.forward(x));
    return softcap ? logits.map((a) => softcap * Math.tanh(a / softcap)) : logits;
  }

  /** The residual stream (C) before the first layer, for token `id` after those of the cache. */
  embed(id, cache) {
    const C = this.config.n_embd;
    const position = cache.length;
    let x = this.wte.slice(id * C, (id + 1) * C);
    if (this.smear && position) {
      const before = cache.ids[position - 1]; // the previous token
      x = x.map((a, i) => a + this.smear[i] * this.wte[before * C + i]);
    }
    if (this.wpe) x = add(x, this.wpe.subarray(position * C, (position + 1) * C));
    return x;
  }

  /** The next token's logits after token `id`, at the position after the tokens of the cache.
   *  off: a Set of parts that are switched off, "layer.part"; part n_head is the MLP.
   *  from, x: skip the layers before `from`, which would give x.
   *  Returns {logits, layers, x}: what each layer computes (Block.forward), and the last stream. */
  forward(id, cache, {off = new Set(), from = 0, x = this.embed(id, cache)} = {}) {
    const hs = this.config.n_embd / this.config.n_head;
    const rope = this.wpe ? null : ropeAngles(cache.length, hs);
    const layers = [];
    for (let layer = from; layer < this.h.length; layer++) {
      const isOff = (part) => off.size > 0 && off.has(`${layer}.${part}`);
      const computed = this.h[layer].forward(x, rope, cache.layers[layer], isOff);
      layers.push(computed);
      x = computed.after;
    }
    cache.length = cache.ids.push(id);
    return {logits: this.head(x), layers, x};
  }
}
