// The text while the model runs in the page: the window of tokens that the model sees, as in
// sample.py, what each token computes, and how the next token is chosen.
"use strict";

/** The probabilities of the first nVocab tokens; other ids only pad the vocabulary. */
function probabilities(logits, nVocab) {
  return softmax(logits.subarray(0, nVocab));
}

function argmax(values) {
  return values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
}

/** Choose the id of the next token, as `draw` in sample.py does: temperature, then top-k, then
 *  the id that `uniform`, a random number in [0, 1), hits. Temperature 0: the most likely id. */
function draw(logits, temperature, topK, uniform) {
  if (temperature < 1e-5) return argmax(logits);
  const ids = Array.from(logits.keys())
    .sort((a, b) => logits[b] - logits[a])
    .slice(0, topK);
  const probs = softmax(ids.map((id) => logits[id] / temperature));
  let cumulative = 0;
  for (let i = 0; i < ids.length; i++) {
    cumulative += probs[i];
    if (uniform < cumulative) return ids[i];
  }
  return ids.at(-1); // the sum was rounded to less than 1
}

/** What the page shows of one token that the model has computed. */
class Entry {
  constructor({logits, attention, lens, sizes}, nVocab) {
    Object.assign(this, {attention, sizes});
    this.logits = logits.subarray(0, nVocab);
    this.probs = probabilities(logits, nVocab);
    this.lens = lens.map((row) => {
      const probs = probabilities(row, nVocab);
      const best = argmax(probs);
      return [best, probs[best]];
    });
  }

  /** The ten most likely next tokens: [[id, probability], ...]. */
  get top() {
    const ids = Array.from(this.probs.keys()).sort((a, b) => this.probs[b] - this.probs[a]);
    return ids.slice(0, 10).map((id) => [id, this.probs[id]]);
  }

  /** Uncertainty about the next token, in bits. */
  get entropy() {
    return -this.probs.reduce((sum, p) => sum + (p > 0 ? p * Math.log2(p) : 0), 0);
  }

  /** The probability of a next token, and its rank: 1 for the most likely one. */
  chance(id) {
    const higher = this.logits.reduce((n, logit) => n + (logit > this.logits[id]), 0);
    return {p: this.probs[id], rank: higher + 1};
  }
}

/** A text that can change. The model sees ids[start:], at most block_size tokens; entries are the
 *  tokens of this window that are computed so far. step() computes one more. */
class LiveText {
  constructor(model, nVocab) {
    Object.assign(this, {model, nVocab, ids: [], start: 0, entries: []});
    this.cache = model.newCache();
  }

  /** Add a token. If the window is full, only its last half stays. */
  append(id) {
    const {block_size} = this.model.config;
    this.ids = [...this.ids, id];
    if (this.ids.length - this.start > block_size) {
      this.keep(0);
      this.start = this.ids.length - Math.max(1, Math.floor(block_size / 2));
    }
  }

  /** Replace the text. Tokens before the first difference are not computed again. */
  setIds(ids) {
    const {block_size} = this.model.config;
    let same = 0;
    while (same < ids.length && ids[same] === this.ids[same]) same++;
    if (same === this.ids.length && ids.length === same + 1) return this.append(ids[same]);
    this.ids = ids;
    const fits = same > this.start && ids.length - this.start <= block_size;
    this.keep(fits ? same - this.start : 0);
    if (!fits) this.start = Math.max(0, ids.length - block_size);
  }

  /** Forget what was computed after the first n tokens of the window. */
  keep(n) {
    this.entries.length = Math.min(this.entries.length, n);
    this.model.truncate(this.cache, n);
  }

  get window() {
    return this.ids.slice(this.start);
  }

  /** Compute one token; returns false if there is nothing left to compute. */
  step() {
    const id = this.ids[this.start + this.entries.length];
    if (id === undefined) return false;
    const computed = this.model.forward(id, this.cache, {wantLens: true});
    this.entries.push(new Entry(computed, this.nVocab));
    return true;
  }

  /** The logits of the token that follows the text, after computing what is left. */
  nextLogits() {
    while (this.step());
    return this.entries.at(-1).logits;
  }
}

/** Yields after every token of work. At the end it returns the loss of a text without each head,
 *  [layer][head], in nats per token. */
function* ablation(model, ids, nVocab) {
  const losses = [];
  for (let layer = 0; layer < model.config.n_layer; layer++) {
    losses.push([]);
    for (let head = 0; head < model.config.n_head; head++) {
      const cache = model.newCache();
      let sum = 0;
      for (let t = 0; t + 1 < ids.length; t++) {
        const {logits} = model.forward(ids[t], cache, {off: {layer, head}});
        sum -= Math.log(probabilities(logits, nVocab)[ids[t + 1]]);
        yield;
      }
      losses[layer].push(sum / (ids.length - 1));
    }
  }
  return losses;
}

// ---- what the file contains

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (char) => char.charCodeAt(0)).buffer;
}

/** float16 numbers, given as their bits, in float32. */
function fromFloat16(bits) {
  return Float32Array.from(bits, (b) => {
    const sign = b & 0x8000 ? -1 : 1,
      exponent = (b >> 10) & 0x1f,
      fraction = b & 0x3ff;
    if (exponent === 0) return sign * fraction * 2 ** -24; // subnormal
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15); // tools/look.py excludes infinity
  });
}

/** {name: Float32Array} of all weights. shapes: [[name, number of weights], ...], in the order of
 *  the float16 numbers in base64. */
function readWeights(shapes, base64) {
  const all = fromFloat16(new Uint16Array(bytesOf(base64)));
  const weights = {};
  let start = 0;
  for (const [name, n] of shapes) {
    weights[name] = all.subarray(start, start + n);
    start += n;
  }
  return weights;
}

/** The entries of a moment that tools/look.py recorded; they have the fields of an Entry. */
function readEntries(moment, config) {
  const {n_layer, n_head} = config,
    T = moment.top_ids.length;
  const triangle = (T * (T + 1)) / 2; // the weights of one head, row by row
  const packed = new Uint16Array(bytesOf(moment.attention));
  const layers = Array.from({length: n_layer}, (_, layer) => layer);
  const heads = Array.from({length: n_head}, (_, head) => head);
  return moment.top_ids.map((ids, t) => ({
    top: ids.map((id, i) => [id, moment.top_probs[t][i]]),
    entropy: moment.entropy[t],
    chance: () => ({p: moment.next_prob[t], rank: moment.next_rank[t]}),
    lens: moment.lens_ids.map((row, i) => [row[t], moment.lens_probs[i][t]]),
    sizes: moment.stream_size.map((row, layer) =>
      layer < n_layer
        ? [row[t], moment.added_size[layer][0][t], moment.added_size[layer][1][t]]
        : [row[t]],
    ),
    attention: layers.map((layer) =>
      heads.map((head) => {
        const start = (layer * n_head + head) * triangle + (t * (t + 1)) / 2;
        return Float64Array.from(packed.subarray(start, start + t + 1), (n) => n / 65535);
      }),
    ),
  }));
}
