// Attention: a grid of all heads with what the loss would be without them, and the map of one head.
"use strict";

const WINDOW = 24; // tokens on the axes of the map, around the selection
const CLEAR = 0.25; // the share of a head's weight from which on it gets a name

/** What a head could look at, by name: s is a token that it may look at from token t. */
const TARGETS = {
  "previous {unit}": (ids, t, s) => s === t - 1,
  "itself": (ids, t, s) => s === t,
  "first {unit}": (ids, t, s) => s === 0,
  "line breaks": (ids, t, s, vocab) => vocab[ids[s]].includes("\n") && s < t,
  "the same {unit} before": (ids, t, s) => ids[s] === ids[t] && s < t,
  "what followed the same {unit}": (ids, t, s) => s > 0 && ids[s - 1] === ids[t],
};

/** What a head mostly looks at, in this text: [name, its share of the weight]. A name needs at
 *  least a quarter of the weight, and twice of what equal weights would give. Else the name says
 *  over how many tokens the weight is spread. The first two tokens have too few others to choose
 *  from, and tokens without such a target do not count. */
function headLabel(ids, rows, vocab) {
  let best = ["", 0];
  for (const [name, isTarget] of Object.entries(TARGETS)) {
    let share = 0;
    let even = 0;
    let n = 0;
    for (let t = 2; t < rows.length; t++) {
      let weight = 0;
      let count = 0;
      for (let s = 0; s <= t; s++) {
        if (!isTarget(ids, t, s, vocab)) continue;
        weight += rows[t][s];
        count++;
      }
      if (!count) continue;
      share += weight;
      even += count / (t + 1);
      n++;
    }
    if (n < 3) continue;
    share /= n;
    if (share >= CLEAR && share >= (2 * even) / n && share > best[1]) best = [name, share];
  }
  if (best[0]) return [best[0].replace("{unit}", unit), best[1]];
  const counted = rows.slice(2);
  const entropy = counted.reduce((sum, weights) => (
    sum - weights.reduce((h, w) => h + (w > 0 ? w * Math.log2(w) : 0), 0)), 0);
  if (!counted.length) return ["", 0];
  return [`spread over ${fixed(2 ** (entropy / counted.length), 0)} ${unit}s`, 0];
}

/** The labels of all heads, [layer][head]. They are kept until the text changes. */
function headLabels(seen, config, vocab) {
  const last = seen.entries.at(-1);
  if (!last) return [];
  if (last.labels?.n !== seen.entries.length) {
    const labels = last.attention.map((heads, layer) => heads.map((_, head) => (
      headLabel(seen.ids, seen.entries.map((entry) => entry.attention[layer][head]), vocab))));
    last.labels = {n: seen.entries.length, labels};
  }
  return last.labels.labels;
}

/** A label in words: "previous character 42%". */
function labelText([name, share]) {
  return share ? `${name} ${percent(share)}` : name;
}

// ---- the grid

/** Build the cells once: a radio button per head, and a number for each MLP. */
function buildHeads(config) {
  const {n_layer, n_head} = config;
  const grid = $("heads");
  grid.style.setProperty("--heads", n_head);
  const isWide = n_head > 6;
  const nodes = [element("span")];
  for (let head = 0; head < n_head; head++) {
    nodes.push(element("span", {class: "head-name"}, `${isWide ? "" : "head "}${head + 1}`));
  }
  nodes.push(element("span", {class: "head-name"}, "MLP"));
  for (let layer = 0; layer < n_layer; layer++) {
    nodes.push(element("span", {class: "layer-name"}, `${isWide ? "" : "layer "}${layer + 1}`));
    for (let head = 0; head < n_head; head++) {
      nodes.push(element("span", {
        id: `head-${layer}-${head}`, class: "cell", role: "radio", "data-layer": layer,
        "data-head": head,
      }, element("canvas", {"aria-hidden": "true"}), element("span", {class: "number"})));
    }
    nodes.push(element("span", {id: `mlp-${layer}`, class: "cell mlp"},
      element("span", {class: "number"})));
  }
  grid.replaceChildren(...nodes);
}

/** progress: the share of the ablation that is done, if it is not known yet. */
function drawHeads(seen, at, vocab, config, off, progress) {
  const {n_layer, n_head} = config;
  if (!$("heads").firstChild) buildHeads(config);
  const labels = headLabels(seen, config, vocab);
  const {plainLoss, ablated} = seen;
  const changes = plainLoss === null ? null
    : ablated?.map((row) => row.map((without) => without - plainLoss));
  const ofHeads = (changes ?? []).flatMap((row) => row.slice(0, n_head));
  const largest = Math.max(0.05, ...ofHeads);
  const ink = colorOf("--weight");
  for (let layer = 0; layer < n_layer; layer++) {
    for (let part = 0; part <= n_head; part++) {
      const cell = part < n_head ? $(`head-${layer}-${part}`) : $(`mlp-${layer}`);
      const change = changes?.[layer][part];
      const number = change === undefined ? "…" : signed(change);
      cell.querySelector(".number").textContent = number;
      const shade = Math.max(0, Math.min(1, (change ?? 0) / largest));
      cell.style.setProperty("--shade", shade.toFixed(3));
      cell.classList.toggle("is-off", off.has(`${layer}.${part}`));
      const effect = change === undefined ? "" : `, loss ${number} without it`;
      const label = part < n_head && labels[layer] ? `: ${labelText(labels[layer][part])}` : "";
      cell.title = `${partName(layer, part, n_head)}${label}${effect}`;
      if (part === n_head) continue;
      cell.setAttribute("aria-label", cell.title);
      cell.setAttribute("aria-checked", String(layer === at.layer && part === at.head));
      paintMap(cell.querySelector("canvas"), seen.entries, layer, part, ink);
    }
  }
  $("heads").setAttribute("aria-activedescendant", `head-${at.layer}-${at.head}`);
  drawAblation(seen, at, config, off, progress);
}

function drawAblation(seen, at, config, off, progress) {
  const {plainLoss, ablated} = seen;
  const {n_head} = config;
  const parts = [at.head, n_head].map((part) => [part, partName(at.layer, part, n_head)]);
  const sentences = [];
  if (seen.ids.length < 2) {
    sentences.push("The text is too short to have a loss.");
  } else if (!ablated || plainLoss === null) {
    sentences.push(`The loss without each part is being computed: ${percent(progress)} done.`);
  } else {
    const without = parts.map(([part, name]) => (
      `${fixed(ablated[at.layer][part], 3)} without ${name}`));
    sentences.push(`The loss of this text is ${fixed(plainLoss, 3)} nats per ${unit}, `
      + `${without.join(", and ")}.`);
  }
  say($("ablation-reading"), ...sentences);
  $("switches").replaceChildren(...(seen.isLive ? parts.map(([part, name]) => {
    const id = `${at.layer}.${part}`;
    const isOff = off.has(id);
    return element("button", {type: "button", "data-off": id, "aria-pressed": String(isOff)},
      `Switch ${name} ${isOff ? "on" : "off"}`);
  }) : []));
}

/** Paint the attention of one head, a pixel per weight, for tokens from `first` on. */
function paintMap(canvas, entries, layer, head, [red, green, blue], first = 0) {
  const T = Math.max(1, entries.length - first);
  canvas.width = canvas.height = T;
  const pixels = new Uint32Array(T * T); // a pixel: alpha, blue, green, red, the highest byte first
  const color = (blue << 16) | (green << 8) | red;
  for (let t = first; t < entries.length; t++) {
    const weights = entries[t].attention[layer][head];
    for (let s = first; s <= t; s++) {
      const alpha = Math.round(255 * opacity(weights[s]));
      pixels[(t - first) * T + s - first] = (alpha << 24) | color;
    }
  }
  const image = new ImageData(new Uint8ClampedArray(pixels.buffer), T, T);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// ---- the map of one head

/** The tokens on the axes: [from, to). The whole text, or a window around the selection. */
function mapRange(seen, at, isWhole) {
  const T = seen.entries.length;
  if (isWhole || T <= WINDOW) return [0, T];
  const from = Math.max(0, Math.min(T - WINDOW, at.token + 1 - Math.floor(WINDOW * 0.75)));
  return [from, from + WINDOW];
}

/** hover: [t, s], the row and the column that the pointer is on, or null. */
function drawMap(seen, at, vocab, config, isWhole, hover) {
  const canvas = $("map");
  const [from, to] = mapRange(seen, at, isWhole);
  const n = Math.max(1, to - from);
  const side = canvas.clientWidth || 380;
  const ratio = globalThis.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(side * ratio);
  const names = seen.ids.slice(from, to).map((id) => visible(vocab[id]));
  const isLong = names.some((name) => [...name].length > 1); // tokens of several characters
  let margin = 0; // of the tokens on the axes
  if (n <= WINDOW) margin = isLong ? 56 : 18;
  const cell = (side - margin) / n;
  canvas.geometry = {from, to, margin, cell};
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.imageSmoothingEnabled = false;
  const small = document.createElement("canvas");
  paintMap(small, seen.entries.slice(0, to), at.layer, at.head, colorOf("--weight"), from);
  context.drawImage(small, margin, margin, side - margin, side - margin);
  const ink = getComputedStyle(document.documentElement);
  const line = (name, width, row, column) => {
    context.strokeStyle = ink.getPropertyValue(name);
    context.lineWidth = width;
    if (row !== null) context.strokeRect(margin, margin + (row - from) * cell, n * cell, cell);
    if (column !== null) {
      context.strokeRect(margin + (column - from) * cell, margin, cell, n * cell);
    }
  };
  if (at.token < to) line("--accent", 2, at.token, null);
  if (hover) line("--muted", 1, hover[0], hover[1]);
  if (margin) {
    context.fillStyle = ink.getPropertyValue("--ink");
    context.font = `${Math.min(14, cell)}px monospace`;
    context.textBaseline = "middle";
    names.forEach((name, i) => drawName(context, name, margin + (i + 0.5) * cell, margin, isLong));
  }
  const label = headLabels(seen, config, vocab)[at.layer]?.[at.head];
  say($("map-title"), `Layer ${at.layer + 1}, head ${at.head + 1}`,
    label?.[0] ? `: ${labelText(label)}` : "");
  drawHover(seen, at, vocab, hover);
}

/** Write a token on both axes of the map; long ones are turned on the upper axis. */
function drawName(context, name, place, margin, isLong) {
  const text = [...name].slice(0, 7).join("");
  context.textAlign = isLong ? "right" : "center";
  const end = isLong ? margin - 4 : margin / 2;
  context.fillText(text, end, place, margin);
  if (!isLong) return context.fillText(text, place, margin / 2, margin);
  context.save();
  context.translate(place, end);
  context.rotate(Math.PI / 2);
  context.fillText(text, 0, 0, margin);
  context.restore();
}

/** One line about the cell under the pointer, else about the strongest one of the selected row. */
function drawHover(seen, at, vocab, hover) {
  let [t, s] = hover ?? [at.token, 0];
  const weights = seen.entries[t]?.attention[at.layer][at.head];
  if (!weights) return say($("map-reading"), "…");
  if (!hover) s = argmax(weights);
  say($("map-reading"), word(vocab[seen.ids[t]]), " looks at ", word(vocab[seen.ids[s]]),
    s === t ? ", itself" : `, ${t - s} back`, `: ${percent(weights[s])}`);
}

/** [t, s] of a point on the map, or null outside of it and in the future of t. */
function mapCell(canvas, x, y) {
  const {from, to, margin, cell} = canvas.geometry;
  const s = from + Math.floor((x - margin) / cell);
  const t = from + Math.floor((y - margin) / cell);
  if (t < from || t >= to || s < from || s >= to) return null;
  return s <= t ? [t, s] : null;
}

/** What the selected token looks at: the text shaded, and the five largest weights. */
function drawLooks(seen, at, vocab) {
  const entry = seen.entries[at.token];
  $("looks-at").replaceChildren();
  $("looks-list").replaceChildren();
  if (!entry) return say($("looks"), "…");
  const weights = entry.attention[at.layer][at.head];
  say($("looks"), "From ", context(seen, at.token, vocab), `, head ${at.head + 1} of layer `
    + `${at.layer + 1} looks at:`);
  const nodes = [];
  seen.ids.slice(0, at.token + 1).forEach((id, s) => {
    nodes.push(element("span", {
      class: `token${s === at.token ? " self" : ""}`, "data-t": s,
      style: `--shade:${opacity(weights[s]).toFixed(3)}`,
    }, visible(vocab[id])));
    if (vocab[id].endsWith("\n")) nodes.push(element("br"));
  });
  $("looks-at").replaceChildren(...nodes);
  $("looks-list").replaceChildren(...descending(weights).slice(0, 5).map((s) => {
    const back = at.token - s;
    return element("li", {}, element("span", {class: "token"}, visible(vocab[seen.ids[s]])),
      bar(weights[s]), element("span", {class: "value"}, percent(weights[s])),
      element("span", {class: "back"}, back === 0 ? "itself" : `${back} back`));
  }));
}
