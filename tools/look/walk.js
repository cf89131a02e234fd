// From text to a sampled token, step by step, with the numbers of the selected token.
"use strict";

/** A vector as colored cells; the number is the title of each. */
function strip(vector) {
  const largest = Math.max(1e-9, ...Array.from(vector, Math.abs));
  return element("div", {class: "vector"}, ...Array.from(vector, (value) => element("i", {
    class: value < 0 ? "negative" : "", style: `--shade:${Math.abs(value / largest).toFixed(3)}`,
    title: fixed(value, 3),
  })));
}

/** A table: [[name, vector of numbers, or texts], ...]. */
function table(rows) {
  return element("div", {class: "numbers", tabindex: "0", role: "group",
    "aria-label": "Numbers; scroll sideways"},
  element("table", {}, ...rows.map(([name, vector]) => element("tr", {},
    element("th", {scope: "row"}, name),
    ...Array.from(vector, (value) => element("td", {},
      typeof value === "number" ? signed(value, 2) : value))))));
}

function row(...parts) {
  return element("p", {}, ...parts);
}

/** q, the key of another token, their product, the score, and the softmax. */
function numbersOfAttention(seen, at, vocab, s) {
  const entry = seen.entries[at.token];
  const q = entry.layers[at.layer].q[at.head];
  const k = seen.cache.layers[at.layer].keys[at.head][s];
  const {scale, hs} = entry.model.h[at.layer].attn;
  const product = q.map((value, i) => value * k[i]);
  const weights = entry.attention[at.layer][at.head];
  const sum = dot(q, k);
  return [
    row(`q of `, word(vocab[seen.ids[at.token]]), ` and k of `, word(vocab[seen.ids[s]]),
      `: ${hs} numbers each, and their products:`),
    table([["q", q], ["k", k], ["q × k", product]]),
    row(`The products sum to ${signed(sum, 2)}. Times ${fixed(scale, 3)} it is the score, `
      + `${signed(sum * scale, 2)}. The softmax over the scores of ${at.token + 1} ${unit}s makes `
      + `it ${percent(weights[s])}.`),
  ];
}

/** What a vector adds to the logits (V) when it is added to the stream, before soft-capping, and
 *  except for the scale of the final norm. That scale is the same for all of them, so the order of
 *  the logits is right. See `difference` in votes.js. */
function raisedBy({ln_f, lm_head}, vector) {
  if (!(ln_f instanceof LayerNorm)) return lm_head.forward(vector);
  const mean = vector.reduce((sum, value) => sum + value, 0) / vector.length;
  return lm_head.forward(vector.map((value, i) => (value - mean) * (ln_f.weight?.[i] ?? 1)));
}

/** The neurons of an MLP that write most into the stream, and the tokens they make more likely. */
function numbersOfMlp(seen, at, vocab, nVocab) {
  const entry = seen.entries[at.token];
  const {model} = entry;
  const {neurons} = entry.layers[at.layer];
  const {weight, n_in} = model.h[at.layer].mlp.c_proj; // (C, 4 C)
  const column = (neuron) => Float32Array.from(
    {length: model.config.n_embd}, (_, o) => weight[o * n_in + neuron]);
  const lengths = neurons.map((value, neuron) => {
    if (value === 0) return 0;
    let square = 0;
    for (let w = neuron; w < weight.length; w += n_in) square += weight[w] ** 2;
    return Math.abs(value) * Math.sqrt(square);
  });
  const cap = model.config.softcap ? ", before soft-capping" : "";
  const active = neurons.reduce((n, value) => n + (value > 0), 0);
  return [
    row(`${grouped(active)} of ${grouped(neurons.length)} neurons are positive here. Those that `
      + `write most, and the ${unit}s whose logits they raise most${cap}:`),
    element("ol", {class: "neurons"}, ...descending(lengths).slice(0, 5).map((neuron) => {
      const written = column(neuron).map((value) => value * neurons[neuron]);
      const raised = raisedBy(model, written).subarray(0, nVocab);
      return element("li", {}, `neuron ${neuron + 1}: ${signed(neurons[neuron], 2)} `,
        ...descending(raised).slice(0, 5).flatMap((id) => [" ", word(vocab[id])]));
    })),
  ];
}

/** The numbers behind each step that has some: functions that return nodes. */
function numbersOf(seen, at, vocab, data, s) {
  const {cache} = seen;
  const entry = seen.entries[at.token];
  const layer = entry.layers[at.layer];
  const {n_embd: C} = data.config;
  return {
    "Embedding": () => [row(`The ${C} numbers, before the first layer:`),
      strip(entry.layers[0].before)],
    "Query, key, value": () => [
      row("The query of the head:"), strip(layer.q[at.head]),
      row("Its key:"), strip(cache.layers[at.layer].keys[at.head][at.token]),
      row("Its value:"), strip(cache.layers[at.layer].values[at.head][at.token])],
    "Attention": () => numbersOfAttention(seen, at, vocab, s),
    "Values": () => [row("What attention adds, all heads together:"), strip(layer.attended)],
    "MLP": () => numbersOfMlp(seen, at, vocab, data.n_vocab),
    "Layers": () => [row("The stream after the last layer:"), strip(entry.x)],
    "Probabilities": () => [table([[unit, ["logit", "p"]],
      ...entry.top.map(([id, p]) => [visible(vocab[id]), [entry.logits[id], percent(p)]])])],
  };
}

/** The steps, [title, parts of a sentence, ...], with the numbers of the selected token. */
function walk(seen, at, vocab, {config, n_vocab}, filters) {
  const {lens, top, attention} = seen.entries[at.token];
  const {n_layer, n_head, n_embd: C} = config;
  const id = seen.ids[at.token];
  const layer = at.layer + 1;
  const weights = attention[at.layer][at.head];
  const most = argmax(weights);
  const back = at.token - most;
  const from = leadsFrom(lens);
  const act = {gelu_tanh: "GELU", gelu: "GELU", relu2: "ReLU²"}[config.act];
  const position = config.pos === "rope"
    ? "No position is added: RoPE will rotate queries and keys by angles that grow with the "
      + `position, here ${at.token} (the first ${unit} has position 0).`
    : `The vector of position ${at.token} in wpe is added (the first ${unit} has position 0).`;
  const smear = config.smear ? "A learned share of the previous token's vector is added. " : "";
  const sampling = filters.temperature < 1e-5
    ? `At temperature 0, the most likely ${unit} is taken. `
    : `The logits are divided by the temperature, ${filters.temperature}, and a random number `
      + `selects a ${unit}. `;
  return [
    ["Tokens", `The text is cut into ${unit}s; there are ${grouped(n_vocab)} different ones. `,
      word(vocab[id]), ` has the id ${id}.`],
    ["Embedding", `The id selects a row of wte: a vector of ${C} numbers. ${smear}${position}`],
    ["Query, key, value", `In layer ${layer}, c_attn turns the normalized vector into queries, `
      + `keys and values, ${C / n_head} numbers each for each of the ${n_head} heads.`],
    ["Attention", `Head ${at.head + 1} compares its query with the keys of ${at.token + 1} `
      + `${unit}s. After the softmax, `, word(vocab[seen.ids[most]]),
      back === 0 ? " itself" : `, ${back} back,`, ` has the largest weight: `
      + `${percent(weights[most])}.`],
    ["Values", "The head takes the mean of the values with these weights. c_proj mixes all heads "
      + "and adds the result to the vector."],
    ["MLP", `c_fc, ${act} and c_proj process this ${unit} alone: ${C} numbers become ${4 * C} and `
      + `${C} again, which are added to the vector.`],
    ["Layers", `This happens in each of the ${n_layer} layers. The final answer leads from `
      + `${from === 0 ? "the embedding" : `layer ${from}`} on.`],
    ["Probabilities", `ln_f and the LM head give ${grouped(n_vocab)} logits, and softmax makes `
      + "probabilities of them. ", word(vocab[top[0][0]]), ` is the most likely: `
      + `${percent(top[0][1])}.`],
    ["Sampling", sampling, "It is appended, and everything repeats."],
  ];
}

function drawWalk(seen, at, vocab, data, filters) {
  const list = $("walk");
  const entry = seen.entries[at.token];
  if (!entry) return list.replaceChildren();
  const steps = walk(seen, at, vocab, data, filters);
  if (!list.firstChild) {
    list.append(...steps.map(([title]) => element("li", {}, element("h3", {}, title),
      element("p"), element("details", {}, element("summary", {}, "Show the numbers"),
        element("div")))));
  }
  const s = argmax(entry.attention[at.layer][at.head]);
  const numbers = seen.cache ? numbersOf(seen, at, vocab, data, s) : {};
  steps.forEach(([title, ...parts], i) => {
    const item = list.children[i];
    say(item.querySelector("p"), ...parts);
    const details = item.querySelector("details");
    details.hidden = !numbers[title];
    if (numbers[title] && details.open) details.lastChild.replaceChildren(...numbers[title]());
  });
}
