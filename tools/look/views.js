// What all views share. Each view draws one card from `seen`, what is known about the shown text:
//
//     ids, entries     the tokens in view and what was computed for each (live.js, class Entry)
//     plain            the entries with no part switched off; else the same as entries
//     before           the ids of earlier tokens, which the model no longer sees
//     promptLength     the number of tokens in view that the user wrote; later ones were sampled
//     loss, ablated    nats per token: of the text, and [layer][part] without a part; or null
//     cache            the keys and values of the text; null if the values are recorded
//     isLive           whether the model runs in the page and computes the text
//
// and from `at`, the selection: token, layer, head. Text from the file is only ever inserted as
// text nodes and attributes, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Replace the content of a node by a sentence of strings and nodes. */
function say(node, ...parts) {
  node.replaceChildren(...parts);
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

/** The name of a token for a screen reader. */
function spoken(text) {
  return {" ": "space", "\n": "line break", "\t": "tab"}[text] ?? visible(text);
}

/** A token inside a sentence. */
function word(text) {
  return element("b", {class: "token"}, visible(text));
}

/** The end of the text up to a token, as a token inside a sentence. */
function context(seen, t, vocab, n = 12) {
  const from = Math.max(0, t + 1 - n);
  const text = seen.ids.slice(from, t + 1).map((id) => vocab[id]).join("");
  const dots = from > 0 || seen.before.length ? "…" : "";
  return element("b", {class: "token"}, dots + visible(text));
}

// ---- numbers

const fixed = (x, digits = 2) => x.toFixed(digits);
const grouped = (n) => n.toLocaleString("en");
const bits = (p) => -Math.log2(p);

/** A probability as text: 43%, 4.3%, and never 0% or 100% unless it is exact. */
function percent(p) {
  if (p > 0 && p < 0.0005) return "<0.1%";
  if (p > 0.9995 && p < 1) return ">99.9%";
  const isNearEnd = (p > 0 && p < 0.0995) || (p > 0.9895 && p < 1);
  return `${(100 * p).toFixed(isNearEnd ? 1 : 0)}%`;
}

/** A change with its sign: +0.120, −0.003, 0.000. */
function signed(x, digits = 3) {
  const text = Math.abs(x).toFixed(digits);
  if (Number(text) === 0) return text;
  return `${x < 0 ? "−" : "+"}${text}`;
}

/** The rank of a token, and whether others share it: "rank 3", "rank 1, as 69 others". */
function rankOf({rank, ties}) {
  return ties > 1 ? `rank ${rank}, the same as ${grouped(ties - 1)} others` : `rank ${rank}`;
}

// ---- parts of the model

const partName = (layer, part, n_head) => (
  part === n_head ? `MLP of layer ${layer + 1}` : `head ${part + 1} of layer ${layer + 1}`);
const rowName = (row) => (row === 0 ? "embedding" : `layer ${row}`);

// ---- colors

/** Bits of surprise at which the color is full: that of guessing among all tokens. */
const fullSurprise = (nVocab) => Math.max(1, Math.log2(nVocab));

/** The strength of the color, 0 to 1, of a token that had this probability. */
const surpriseShade = (p, nVocab) => Math.min(1, bits(p) / fullSurprise(nVocab));

/** A weight as the opacity of ink. The square root makes small weights visible. */
const opacity = (weight) => Math.sqrt(weight);

/** A bar of this share of its width. */
function bar(share) {
  const width = `width:${(100 * share).toFixed(2)}%`;
  return element("span", {class: "bar"}, element("i", {style: width}));
}

const colors = new Map(); // what colorOf has read since the theme was set

/** A color of page.css as [red, green, blue]. It can be one of the system's colors. */
function colorOf(name) {
  if (!colors.has(name)) {
    const probe = element("i", {style: `color: var(${name}); forced-color-adjust: none`});
    document.body.append(probe);
    colors.set(name, getComputedStyle(probe).color.match(/[\d.]+/g).map(Number));
    probe.remove();
  }
  return colors.get(name);
}

function drawWeightLegends() {
  for (const legend of document.querySelectorAll(".legend.weight")) {
    legend.replaceChildren(...[0, 0.1, 0.5, 1].map((weight) => element("span", {class: "swatch"},
      element("i", {style: `--shade:${opacity(weight).toFixed(3)}`}), percent(weight))));
  }
}
