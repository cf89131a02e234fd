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

/** The ids of some values, the largest value first. */
function descending(values) {
  return Array.from(values.keys()).sort((a, b) => values[b] - values[a]);
}

/** The probabilities with which `draw` chooses, [[id, p], ...], the most likely id first. Those
 *  that top-k or top-p cut have p = 0; the others sum to 1. */
function reshaped(logits, temperature, topK, topP = 1) {
  const ids = descending(logits);
  if (temperature < 1e-5) return ids.map((id, i) => [id, i === 0 ? 1 : 0]);
  const kept = ids.slice(0, topK);
  const probs = softmax(kept.map((id) => logits[id] / temperature));
  let sum = 0;
  let n = 0;
  while (n < kept.length && (topP >= 1 || sum < topP)) sum += probs[n++];
  return ids.map((id, i) => [id, i < n ? probs[i] / sum : 0]);
}

/** The id that a random number in [0, 1) hits, among probabilities [[id, p], ...] in this order. */
function hit(shares, uniform) {
  let cumulative = 0;
  for (const [id, p] of shares) {
    cumulative += p;
    if (uniform < cumulative) return id;
  }
  return shares.filter(([, p]) => p > 0).at(-1)[0]; // the sum was rounded to less than 1
}

/** Choose the id of the next token, as `draw` in sample.py does: temperature, top-k, top-p, and
 *  then the id that `uniform`, a random number in [0, 1), hits. */
function draw(logits, temperature, topK, uniform, topP = 1) {
  return hit(reshaped(logits, temperature, topK, topP), uniform);
}

/** What the page shows of one token that the model has computed. */
class Entry {
  constructor(model, {logits, layers, x}, nVocab) {
    Object.assign(this, {model, layers, x, nVocab});
    this.logits = logits.subarray(0, nVocab);
    this.probs = probabilities(logits, nVocab);
    this.attention = layers.map((layer) => layer.attention);
  }

  /** [[id, probability], ...]: the most likely token after the embedding and after each layer. */
  get lens() {
    if (!this.guesses) {
      const streams = [...this.layers.map((layer) => layer.before), this.x];
      this.guesses = streams.map((x) => {
        const probs = probabilities(this.model.head(x), this.nVocab);
        const best = argmax(probs);
        return [best, probs[best]];
      });
    }
    return this.guesses;
  }

  /** The ten most likely next tokens: [[id, probability], ...]. */
  get top() {
    return descending(this.probs).slice(0, 10).map((id) => [id, this.probs[id]]);
  }

  /** Uncertainty about the next token, in bits. */
  get entropy() {
    return -this.probs.reduce((sum, p) => sum + (p > 0 ? p * Math.log2(p) : 0), 0);
  }

  /** The probability of a next token, its rank (1: the most likely), and how many share it. */
  chance(id) {
    const own = this.logits[id];
    const higher = this.logits.reduce((n, logit) => n + (logit > own), 0);
    const ties = this.logits.reduce((n, logit) => n + (logit === own), 0);
    return {p: this.probs[id], rank: higher + 1, ties};
  }
}

/** A text that can change. The model sees ids[start:], at most block_size tokens; entries are the
 *  tokens of this window that are computed so far. step() computes one more. */
class LiveText {
  constructor(model, nVocab, off = new Set()) {
    Object.assign(this, {model, nVocab, off, ids: [], start: 0, entries: []});
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
    const isShort = ids.length <= block_size; // then nothing is out of the window
    const fits = same > this.start && ids.length - this.start <= block_size
      && (this.start === 0 || !isShort);
    this.keep(fits ? same - this.start : 0);
    if (!fits) this.start = Math.max(0, ids.length - block_size);
  }

  /** Take the text and the window of another LiveText, so that their tokens can be compared. The
   *  ids alone do not determine the window: it also depends on how they were typed and sampled. */
  follow({ids, start}) {
    this.setIds(ids);
    if (this.start === start) return;
    this.keep(0);
    this.start = start;
  }

  /** Forget what was computed after the first n tokens of the window. */
  keep(n) {
    this.entries.length = Math.min(this.entries.length, n);
    this.model.truncate(this.cache, n);
  }

  get window() {
    return this.ids.slice(this.start);
  }

  get isDone() {
    return this.start + this.entries.length === this.ids.length;
  }

  /** Compute one token; returns false if there is nothing left to compute. */
  step() {
    if (this.isDone) return false;
    const id = this.ids[this.start + this.entries.length];
    const computed = this.model.forward(id, this.cache, {off: this.off});
    this.entries.push(new Entry(this.model, computed, this.nVocab));
    return true;
  }

  /** The logits of the token that follows the text, after computing what is left. */
  nextLogits() {
    while (this.step());
    return this.entries.at(-1).logits;
  }

  /** The loss of the window, in nats per token; null if it is not computed yet, or has no loss. */
  get loss() {
    const ids = this.window;
    if (!this.isDone || ids.length < 2) return null;
    let sum = 0;
    for (let t = 0; t + 1 < ids.length; t++) sum -= Math.log(this.entries[t].probs[ids[t + 1]]);
    return sum / (ids.length - 1);
  }
}

/** Yields after every token of work. At the end it returns the loss of a text without each part,
 *  [layer][part], in nats per token; the last part of a layer is its MLP. entries: of the text. The
 *  layers before the one that misses a part compute the same as with it, so they are skipped. */
function* ablation(model, ids, entries, nVocab) {
  const {n_layer, n_head} = model.config;
  const losses = [];
  for (let layer = 0; layer < n_layer; layer++) {
    losses.push([]);
    for (let part = 0; part <= n_head; part++) {
      const cache = model.newCache();
      const off = new Set([`${layer}.${part}`]);
      let sum = 0;
      for (let t = 0; t + 1 < ids.length; t++) {
        const x = entries[t].layers[layer].before;
        const {logits} = model.forward(ids[t], cache, {off, from: layer, x});
        sum -= Math.log(probabilities(logits, nVocab)[ids[t + 1]]);
        yield (layer * (n_head + 1) + part) / (n_layer * (n_head + 1));
      }
      losses[layer].push(sum / (ids.length - 1));
    }
  }
  return losses;
}

/** The model at one step of its training. Until start(), only its recorded values exist. */
class Age {
  constructor(moment, nVocab) {
    Object.assign(this, {moment, nVocab, step: moment.step});
    this.live = null; // the text, once the model runs
    this.without = null; // the text with parts switched off
    this.film = null; // another prompt than the recorded one, and its continuation
    this.filmIds = moment.film_ids;
    this.filmProbs = moment.film_probs;
    this.ablated = null; // losses without each part
    this.ablating = null;
    this.ablationShare = 0;
  }

  /** Compute from now on. live: the recorded text, already computed. */
  start(live) {
    this.live = live;
    this.ablated = this.moment.ablated_loss ?? null;
  }

  setIds(ids) {
    if (!this.live || this.live.ids === ids) return;
    this.live.setIds(ids);
    this.without?.follow(this.live);
    this.ablated = this.ablating = null;
  }

  /** Switch parts of the model off: a Set of "layer.part". */
  setOff(off) {
    if (!this.live) return;
    this.without = off.size > 0 ? new LiveText(this.live.model, this.nVocab, off) : null;
    this.without?.follow(this.live);
  }

  /** Begin to continue another prompt. Without its model, an age only has the continuation of the
   *  recorded prompt. isRecorded: whether this is the prompt. */
  setPrompt(ids, isRecorded) {
    const isKept = isRecorded && !this.live;
    this.filmIds = isKept ? this.moment.film_ids : [];
    this.filmProbs = isKept ? this.moment.film_probs : [];
    if (!this.live) return;
    this.film = new LiveText(this.live.model, this.nVocab);
    this.film.setIds(ids);
  }

  /** One more token of the continuation; false if there are enough, or there is no prompt.
   *  sampled: {temperature, top_k}. dice: the random number for each token. */
  stepFilm({temperature, top_k}, dice) {
    if (!this.film || this.filmIds.length >= dice.length || !this.film.ids.length) return false;
    if (this.film.step()) return true;
    const {logits, probs} = this.film.entries.at(-1);
    const uniform = dice[this.filmIds.length];
    const id = draw(logits, temperature, top_k ?? this.nVocab, uniform);
    this.filmIds.push(id);
    this.filmProbs.push(probs[id]);
    this.film.append(id);
    return true;
  }

  /** One token of the ablation; false if it is done or there is nothing to compute. */
  stepAblation() {
    const {live, ablated} = this;
    if (ablated || !live || live.window.length < 2) return false;
    this.ablating ??= ablation(live.model, live.window, live.entries, this.nVocab);
    const {done, value} = this.ablating.next();
    if (done) this.ablated = value;
    else this.ablationShare = value;
    return true;
  }
}
