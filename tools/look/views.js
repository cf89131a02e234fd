// The views. Each function draws one card from `seen`, what is known about the shown text:
//
//     ids, entries     the tokens in view and what was computed for each (live.js, class Entry)
//     forgotten        the number of tokens before them, which the model no longer sees
//     promptLength     the number of tokens of the prompt; later ones were sampled
//     loss, ablated    nats per token: of the text, and [layer][head] without a head; or null
//
// and from `at`, the selection: token, layer, head. Text from the file is only ever inserted as
// text nodes and attributes, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// ---- text

const NAMES = {" ": "·", "\n": "↵", "\t": "⇥"};
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Zs}]/u;

/** The text of a token with white space and invisible characters made visible. */
function visible(text) {
  return [...text].map((char) => {
    if (NAMES[char]) return NAMES[char];
    if (INVISIBLE.test(char)) {
      return `[${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`;
    }
    return /\p{M}/u.test(char) ? `◌${char}` : char; // a combining mark needs a base
  }).join("");
}

/** A token inside a sentence. */
function word(text) {
  return element("b", {class: "token"}, visible(text));
}

/** A bar of this share of its width. */
function bar(share) {
  const width = `width:${(100 * share).toFixed(2)}%`;
  return element("span", {class: "bar"}, element("i", {style: width}));
}

/** Replace the content of a node by a sentence of strings and nodes. */
function say(node, ...parts) {
  node.replaceChildren(...parts);
}

/** A probability as text: 43%, 4.3%, and never 0% or 100% unless it is exact. */
function percent(p) {
  if (p > 0 && p < 0.0005) return "<0.1%";
  if (p > 0.9995 && p < 1) return ">99.9%";
  return `${(100 * p).toFixed(p > 0 && p < 0.0995 ? 1 : 0)}%`;
}

/** A change with its sign: +0.120, −0.003, 0.000. */
function signed(x) {
  const digits = Math.abs(x).toFixed(3);
  return digits === "0.000" ? digits : `${x < 0 ? "−" : "+"}${digits}`;
}
const bits = (p) => -Math.log2(p);
const fixed = (x, digits = 2) => x.toFixed(digits);

// ---- surprise

/** Bits of surprise at which the color is full: that of guessing among all tokens. */
const fullSurprise = (nVocab) => Math.max(1, Math.log2(nVocab));

/** The surprise of each token in bits; null for the first one, which nothing predicts. */
function surprises(seen) {
  return seen.ids.map((id, t) => (t === 0 || !seen.entries[t - 1] ? null
    : bits(seen.entries[t - 1].chance(id).p)));
}

function drawTokens(seen, at, vocab, nVocab) {
  const surprise = surprises(seen);
  const nodes = [];
  if (seen.forgotten) {
    nodes.push(element("span", {class: "forgotten"},
      `${seen.forgotten} earlier tokens are out of the context `));
  }
  seen.ids.forEach((id, t) => {
    const text = vocab[id];
    const shade = surprise[t] === null ? 0 : Math.min(1, surprise[t] / fullSurprise(nVocab));
    const label = surprise[t] === null ? "" : `, ${fixed(surprise[t], 1)} bits`;
    const classes = ["token", t < seen.promptLength ? "prompt" : "", text.trim() ? "" : "space"];
    nodes.push(element("span", {
      id: `token-${t}`, "data-t": t, class: classes.join(" ").trim(), role: "option",
      "aria-selected": t === at.token, style: `--shade:${shade.toFixed(3)}`,
      "aria-label": visible(text) + label,
    }, visible(text)));
    if (text.endsWith("\n")) nodes.push(element("br"));
  });
  $("tokens").replaceChildren(...nodes);
  $("prompt-note").hidden = !seen.promptLength || seen.promptLength === seen.ids.length;
  $("tokens").setAttribute("aria-activedescendant", `token-${at.token}`);
  const t = at.token, id = seen.ids[t];
  if (id === undefined) return say($("selection"), "The text is empty.");
  const place = `token ${t + seen.forgotten + 1} of ${seen.ids.length + seen.forgotten}`;
  const chosen = [`Selected: ${place}, `, word(vocab[id])];
  if (surprise[t] === null) {
    say($("selection"), ...chosen, t ? "" : ". Nothing before it predicts it.");
  } else {
    const {p, rank} = seen.entries[t - 1].chance(id);
    say($("selection"), ...chosen, ". Before it came, the model gave it ", percent(p), ", rank ",
      `${rank}: a surprise of ${fixed(surprise[t], 1)} bits.`);
  }
}

function drawSurpriseLegend(nVocab) {
  $("surprise-legend").replaceChildren(element("span", {}, "0 bits"), element("i"),
    element("span", {}, `${fixed(fullSurprise(nVocab), 1)} bits (pure guessing)`));
}

// ---- the next token

function drawNext(seen, at, vocab, live) {
  const entry = seen.entries[at.token];
  const buttons = () => [...$("candidates").querySelectorAll("button")];
  const focused = buttons().indexOf(document.activeElement); // the new buttons keep the focus
  say($("next-facts"));
  $("candidates").replaceChildren();
  if (!entry) return say($("next-intro"), "…");
  const before = seen.ids.slice(Math.max(0, at.token - 11), at.token + 1).map((id) => vocab[id]);
  const dots = at.token > 11 ? "…" : "";
  say($("next-intro"), "After ", dots, word(before.join("")), " the model expects:");
  const came = seen.ids[at.token + 1];
  $("candidates").replaceChildren(...entry.top.map(([id, p]) => {
    const parts = [
      element("span", {class: "token"}, visible(vocab[id])),
      bar(p),
      element("span", {class: "value"}, percent(p)),
      element("span", {class: "came"}, id === came ? "came" : ""),
    ];
    const action = {type: "button", "data-id": id, title: "Continue the text with this token"};
    const row = live
      ? element("button", action, ...parts)
      : element("div", {class: "plain"}, ...parts);
    return element("li", {class: id === came ? "is-came" : ""}, row);
  }));
  buttons()[focused]?.focus();
  const facts = [`Entropy ${fixed(entry.entropy)} bits: as uncertain as a choice among `,
    `${fixed(2 ** entry.entropy, 1)} equally likely tokens. `];
  if (came === undefined) {
    facts.push("This is the end of the text.");
  } else {
    const {p, rank} = entry.chance(came);
    facts.push("Then ", word(vocab[came]), ` came: ${percent(p)}, rank ${rank}, `,
      `${fixed(bits(p), 1)} bits of surprise.`);
  }
  say($("next-facts"), ...facts);
}

// ---- grids of heads: small attention maps, and changes of the loss

/** Draw one radio button per layer and head. content(layer, head) returns [nodes, label, shade]. */
function drawHeads(container, config, at, content) {
  const {n_layer, n_head} = config;
  container.style.setProperty("--heads", n_head);
  const name = container.id;
  const [headWord, layerWord] = n_head > 6 ? ["", ""] : ["head ", "layer "]; // if there is room
  const nodes = [element("span")];
  for (let head = 0; head < n_head; head++) {
    nodes.push(element("span", {class: "head-name"}, `${headWord}${head + 1}`));
  }
  for (let layer = 0; layer < n_layer; layer++) {
    nodes.push(element("span", {class: "layer-name"}, `${layerWord}${layer + 1}`));
    for (let head = 0; head < n_head; head++) {
      const [children, label, shade] = content(layer, head);
      nodes.push(element("span", {
        id: `${name}-${layer}-${head}`, class: "cell", role: "radio", "data-layer": layer,
        "data-head": head, "aria-checked": layer === at.layer && head === at.head,
        "aria-label": `layer ${layer + 1}, head ${head + 1}${label}`,
        style: `--shade:${shade.toFixed(3)}`,
      }, ...children));
    }
  }
  container.replaceChildren(...nodes);
  container.setAttribute("aria-activedescendant", `${name}-${at.layer}-${at.head}`);
}

/** A weight as the opacity of ink. The square root makes small weights visible. */
const opacity = (weight) => Math.sqrt(weight);

/** Paint the attention of one head, a pixel per weight. ink: [red, green, blue]. */
function paintMap(canvas, entries, layer, head, [red, green, blue]) {
  const T = Math.max(1, entries.length);
  canvas.width = canvas.height = T;
  const pixels = new Uint32Array(T * T); // a pixel: alpha, blue, green, red, the highest byte first
  const color = (blue << 16) | (green << 8) | red;
  entries.forEach((entry, t) => {
    const weights = entry.attention[layer][head];
    for (let s = 0; s <= t; s++) {
      pixels[t * T + s] = (Math.round(255 * opacity(weights[s])) << 24) | color;
    }
  });
  const image = new ImageData(new Uint8ClampedArray(pixels.buffer), T, T);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function drawAttention(seen, at, vocab, config, ink) {
  drawHeads($("maps"), config, at, (layer, head) => {
    const canvas = element("canvas", {"aria-hidden": "true"});
    paintMap(canvas, seen.entries, layer, head, ink);
    return [[canvas], "", 0];
  });
  paintMap($("map").querySelector("canvas"), seen.entries, at.layer, at.head, ink);
  say($("map-title"), `Layer ${at.layer + 1}, head ${at.head + 1}`);
  const T = Math.max(1, seen.entries.length);
  const row = $("map").querySelector(".row");
  row.style.top = `${(100 * at.token) / T}%`;
  row.style.height = `${100 / T}%`;
  const entry = seen.entries[at.token];
  $("looks-at").replaceChildren();
  $("looks-list").replaceChildren();
  if (!entry) return say($("looks"), "…");
  const weights = entry.attention[at.layer][at.head];
  const place = `(token ${at.token + seen.forgotten + 1})`;
  say($("looks"), "From ", word(vocab[seen.ids[at.token]]), ` ${place}, `,
    `layer ${at.layer + 1}, head ${at.head + 1} looks at:`);
  const nodes = [];
  seen.ids.slice(0, at.token + 1).forEach((id, s) => {
    const classes = `token${s === at.token ? " self" : ""}`;
    nodes.push(element("span", {class: classes, "data-t": s,
      style: `--shade:${opacity(weights[s]).toFixed(3)}`}, visible(vocab[id])));
    if (vocab[id].endsWith("\n")) nodes.push(element("br"));
  });
  $("looks-at").replaceChildren(...nodes);
  const order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a]).slice(0, 5);
  $("looks-list").replaceChildren(...order.map((s) => {
    const back = at.token - s;
    return element("li", {}, element("span", {class: "token"}, visible(vocab[seen.ids[s]])),
      bar(weights[s]), element("span", {class: "value"}, percent(weights[s])),
      element("span", {class: "back"}, back === 0 ? "itself" : `${back} back`));
  }));
}

function drawWeightLegends() {
  for (const id of ["weight-legend", "lens-legend"]) {
    const marks = [0, 0.1, 0.5, 1].map((weight) => element("span", {class: "swatch"},
      element("i", {style: `--shade:${opacity(weight).toFixed(3)}`}), percent(weight)));
    $(id).replaceChildren(...marks);
  }
}

// ---- logit lens

/** The first row of the lens from which on the most likely token is that of the last row. */
function leadsFrom(lens) {
  const final = lens.at(-1)[0];
  let row = lens.length - 1;
  while (row > 0 && lens[row - 1][0] === final) row--;
  return row;
}

const rowName = (row) => (row === 0 ? "embedding" : `layer ${row}`);

/** A column of the lens: what is read at one token, predicted after each layer, and what came. */
function lensColumn(t, {lens}, id, next, vocab) {
  const from = leadsFrom(lens);
  const cells = lens.map(([best, p], row) => element("span", {
    class: row >= from ? "cell leads" : "cell", style: `--shade:${opacity(p).toFixed(3)}`,
  }, visible(vocab[best])));
  const came = next === undefined ? "" : visible(vocab[next]);
  return element("div", {class: "position", "data-t": t},
    element("span", {}, visible(vocab[id])), ...cells, element("span", {}, came));
}

/** Only columns that have changed are built again: a typed character is one new column. */
function drawLens(seen, at, vocab, config) {
  const view = $("lens");
  if (!view.firstChild) {
    const rows = Array.from({length: config.n_layer + 1}, (_, row) => rowName(row));
    const names = ["token read", ...rows, "token that came"];
    view.append(element("div", {class: "names"}, ...names.map((n) => element("span", {}, n))));
  }
  const columns = view.children; // the first one has the names
  seen.entries.forEach((entry, t) => {
    const shown = [entry, seen.ids[t], seen.ids[t + 1]];
    const old = columns[t + 1];
    if (!old || shown.some((part, i) => part !== old.shown[i])) {
      const column = lensColumn(t, ...shown, vocab);
      column.shown = shown;
      if (old) old.replaceWith(column);
      else view.append(column);
    }
    columns[t + 1].classList.toggle("selected", t === at.token);
  });
  while (columns.length > seen.entries.length + 1) view.lastChild.remove();
  const lens = seen.entries[at.token]?.lens;
  if (!lens) return say($("lens-reading"), "…");
  const parts = ["After ", word(vocab[seen.ids[at.token]]), ": "];
  lens.forEach(([id, p], row) => {
    parts.push(`${row ? "; " : ""}${rowName(row)} `, word(vocab[id]), ` ${percent(p)}`);
  });
  const from = leadsFrom(lens);
  parts.push(". The final answer ", word(vocab[lens.at(-1)[0]]),
    from === 0 ? " leads from the embedding on." : ` leads from layer ${from} on.`);
  say($("lens-reading"), ...parts);
}

/** Scroll the lens so that the selected token is visible, if the lens itself is. (Reading positions
 *  in it would make the browser place its cells, which takes time at every typed character.) */
function scrollLens() {
  const scroll = $("lens"), column = scroll.querySelector(".selected");
  const {top, bottom} = scroll.closest(".card").getBoundingClientRect();
  if (!column || top > innerHeight || bottom < 0) return;
  const most = column.offsetLeft - scroll.firstChild.offsetWidth;
  const least = column.offsetLeft + column.offsetWidth - scroll.clientWidth;
  scroll.scrollLeft = Math.max(least, Math.min(scroll.scrollLeft, most));
}

// ---- ablation

function drawAblation(seen, at, config, progress) {
  const {loss, ablated} = seen;
  const changes = ablated?.map((row) => row.map((without) => without - loss));
  const largest = Math.max(0.05, ...(changes ?? []).flat());
  drawHeads($("ablation"), config, at, (layer, head) => {
    if (!changes) return [["…"], ": not computed yet", 0];
    const change = changes[layer][head];
    return [[signed(change)], `: ${signed(change)} nats per token`, Math.max(0, change / largest)];
  });
  if (!changes) {
    return say($("ablation-reading"), seen.ids.length < 2 ? "The text is too short." : progress);
  }
  say($("ablation-reading"), `Without head ${at.head + 1} of layer ${at.layer + 1}, the loss of `,
    `this text is ${fixed(ablated[at.layer][at.head], 3)} instead of ${fixed(loss, 3)} nats per `,
    "token.");
}

// ---- residual stream

function drawStream(seen, at, vocab) {
  const entry = seen.entries[at.token];
  say($("stream-intro"));
  $("stream").replaceChildren();
  if (!entry) return;
  say($("stream-intro"), "At ", word(vocab[seen.ids[at.token]]), ", the stream grows from ",
    `${fixed(entry.sizes[0][0], 1)} to ${fixed(entry.sizes.at(-1)[0], 1)}.`);
  const {sizes} = entry;
  const largest = Math.max(...sizes.flat());
  const cell = (value) => {
    if (value === undefined) return element("td");
    const text = element("span", {class: "value"}, fixed(value, 1));
    return element("td", {}, element("span", {}, bar(value / largest), text));
  };
  const titles = ["", "size after it", "attention adds", "MLP adds"];
  const head = titles.map((title) => element("th", {scope: "col"}, title));
  const rows = sizes.map(([size], row) => {
    const [, attention, mlp] = sizes[row - 1] ?? []; // layer `row` added these
    const name = element("th", {scope: "row"}, rowName(row));
    return element("tr", {}, name, cell(size), cell(attention), cell(mlp));
  });
  $("stream").replaceChildren(element("tr", {}, ...head), ...rows);
}

// ---- walkthrough

/** The steps, [title, parts of a sentence, ...], with the numbers of the selected token. */
function walk(seen, at, vocab, {config, n_vocab, sampled}) {
  const {lens, sizes, top, attention} = seen.entries[at.token];
  const {n_layer, n_head, n_embd: C} = config, id = seen.ids[at.token], layer = at.layer + 1;
  const weights = attention[at.layer][at.head], most = argmax(weights), back = at.token - most;
  const [, attended, processed] = sizes[at.layer].map((size) => fixed(size, 1));
  const vocabulary = n_vocab.toLocaleString("en"), from = leadsFrom(lens);
  const act = {gelu_tanh: "GELU", gelu: "GELU", relu2: "ReLU²"}[config.act];
  const position = config.pos === "rope"
    ? "There is no position vector: RoPE will rotate queries and keys by angles that grow with "
      + `the position, here ${at.token}.`
    : `The vector of position ${at.token} in wpe is added.`;
  const smear = config.smear ? "A learned share of the previous token's vector is added. " : "";
  const sampling = sampled.temperature < 1e-5
    ? "At temperature 0, the most likely token is taken. "
    : `The logits are divided by the temperature, ${sampled.temperature}, and one random number `
      + "selects a token. ";
  return [
    ["Tokens", `The text is cut into tokens of a vocabulary of ${vocabulary}. `, word(vocab[id]),
      ` has the id ${id}.`],
    ["Embedding", `The id selects a row of wte: a vector of ${C} numbers. ${smear}${position} Its size `,
      `here: ${fixed(sizes[0][0], 1)}.`],
    ["Query, key, value", `In layer ${layer}, c_attn turns the normalized vector into queries, `,
      `keys and values, ${C / n_head} numbers each for each of the ${n_head} heads.`],
    ["Attention", `Head ${at.head + 1} compares its query with the keys of ${at.token + 1} `,
      "tokens. After the softmax, ", word(vocab[seen.ids[most]]),
      back === 0 ? " itself" : `, ${back} back,`, ` has the largest weight: `,
      `${percent(weights[most])}.`],
    ["Values", "The head takes the mean of the values with these weights. c_proj mixes all heads ",
      `and adds a vector of size ${attended}.`],
    ["MLP", `c_fc, ${act} and c_proj process this token alone: ${C} numbers become ${4 * C} and `,
      `${C} again. They add a vector of size ${processed}.`],
    ["Layers", `After all ${n_layer} layers the vector has size ${fixed(sizes.at(-1)[0], 1)}. The `,
      `final answer leads from ${from === 0 ? "the embedding" : `layer ${from}`} on.`],
    ["Probabilities", `ln_f and the LM head give ${vocabulary} logits, and softmax makes `,
      "probabilities of them. ", word(vocab[top[0][0]]),
      ` is the most likely: ${percent(top[0][1])}.`],
    ["Sampling", sampling, "It is appended, and everything repeats."],
  ];
}

function drawWalk(seen, at, vocab, data) {
  if (!seen.entries[at.token]) return $("walk").replaceChildren();
  $("walk").replaceChildren(...walk(seen, at, vocab, data).map(([title, ...parts]) =>
    element("li", {}, element("h3", {}, title), element("p", {}, ...parts))));
}
