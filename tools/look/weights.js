// What the file contains: compressed numbers in base64, and how they become the model's weights.
"use strict";

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64); // since 2025
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** The bytes of a zlib stream in base64, as an ArrayBuffer. */
async function unpack(base64) {
  const packed = new Blob([bytesOf(base64)]).stream();
  return new Response(packed.pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

/** {name: Float32Array} of all weights. shapes: [[name, rows, columns] or [name, length], ...].
 *  A matrix is whole numbers, and for each row a scale that multiplies them. */
function readWeights(shapes, integers, floats) {
  const weights = {};
  let nextInteger = 0;
  let nextFloat = 0;
  for (const [name, n_rows, n_columns] of shapes) {
    const row = floats.subarray(nextFloat, nextFloat + n_rows);
    nextFloat += n_rows;
    weights[name] = row; // a vector, unless it has columns
    if (n_columns === undefined) continue;
    const matrix = new Float32Array(n_rows * n_columns);
    for (let r = 0, i = 0; r < n_rows; r++) {
      const scale = row[r];
      for (let c = 0; c < n_columns; c++, i++) matrix[i] = integers[nextInteger + i] * scale;
    }
    nextInteger += matrix.length;
    weights[name] = matrix;
  }
  return weights;
}

/** The GPT whose weights tools/look.py has packed. */
async function readModel(config, {shapes, integers, floats}) {
  const [whole, real] = await Promise.all([unpack(integers), unpack(floats)]);
  return new GPT(config, readWeights(shapes, new Int8Array(whole), new Float32Array(real)));
}

/** The entries of a moment that tools/look.py recorded; they have the fields of an Entry, and
 *  `votes` in place of what the layers compute. */
async function readEntries(moment, config) {
  const {n_layer, n_head} = config;
  const T = moment.top_ids.length;
  const triangle = (T * (T + 1)) / 2; // the weights of one head, row by row
  const packed = new Uint16Array(await unpack(moment.attention));
  const layers = Array.from({length: n_layer}, (_, layer) => layer);
  const heads = Array.from({length: n_head}, (_, head) => head);
  const attentionOf = (layer, head, t) => {
    const start = (layer * n_head + head) * triangle + (t * (t + 1)) / 2;
    return Float64Array.from(packed.subarray(start, start + t + 1), (n) => n / 65535);
  };
  return moment.top_ids.map((ids, t) => ({
    top: ids.map((id, i) => [id, moment.top_probs[t][i]]),
    entropy: moment.entropy[t],
    chance: () => ({
      p: moment.next_prob[t], rank: moment.next_rank[t], ties: moment.next_ties[t],
    }),
    lens: moment.lens_ids.map((row, i) => [row[t], moment.lens_probs[i][t]]),
    attention: layers.map((layer) => heads.map((head) => attentionOf(layer, head, t))),
    votes: moment.votes[t],
  }));
}
