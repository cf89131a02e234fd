// Who voted for this token? The difference of two logits, split over the parts of the model.
//
// The last residual stream x is a sum: the embedding, and what each head and each MLP add. The
// final norm divides x by its size (and LayerNorm subtracts its mean before). With the size given,
// norm and LM head are linear, so the contributions of the parts add up to the difference exactly.
"use strict";

/** The vector u with logit(first) - logit(second) = u x + constant, before soft-capping, where the
 *  final norm keeps the scale that it has at x. Returns [u (C), constant]. */
function difference(model, x, first, second) {
  const C = x.length;
  const {ln_f, lm_head} = model;
  const a = lm_head.weight.subarray(first * C, (first + 1) * C);
  const b = lm_head.weight.subarray(second * C, (second + 1) * C);
  let u = Float64Array.from(a, (value, i) => value - b[i]);
  let mean = 0;
  let constant = 0;
  if (ln_f instanceof LayerNorm) {
    if (ln_f.bias) constant = dot(u, ln_f.bias);
    if (ln_f.weight) u = u.map((value, i) => value * ln_f.weight[i]);
    const average = u.reduce((sum, value) => sum + value, 0) / C;
    u = u.map((value) => value - average); // the norm subtracts the mean of x
    mean = x.reduce((sum, value) => sum + value, 0) / C;
  }
  const square = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / C;
  const size = Math.sqrt(square + ln_f.eps);
  return [u.map((value) => value / size), constant];
}

/** What each part adds to logit(first) - logit(second), in the order of `votes` in tools/look.py:
 *  the embedding, for each layer its heads and its MLP, and the biases. */
function votesOf(model, entry, first, second) {
  const {n_head, n_embd: C} = model.config;
  const hs = C / n_head;
  const [u, constant] = difference(model, entry.x, first, second);
  const parts = [dot(u, entry.layers[0].before)];
  let biases = constant;
  entry.layers.forEach(({y, processed}, layer) => {
    const {weight, bias} = model.h[layer].attn.c_proj;
    const wanted = new Float64Array(C); // what the heads should output: u times c_proj
    for (let o = 0, w = 0; o < C; o++) {
      for (let i = 0; i < C; i++) wanted[i] += u[o] * weight[w++];
    }
    for (let head = 0; head < n_head; head++) {
      const start = head * hs;
      parts.push(dot(wanted.subarray(start, start + hs), y.subarray(start, start + hs)));
    }
    parts.push(dot(u, processed));
    if (bias) biases += dot(u, bias);
  });
  return [...parts, biases];
}

/** [{layer, part, value}, ...] of votes; the embedding has part "embedding", the biases "biases".
 */
function namedVotes(votes, n_head) {
  return votes.map((value, i) => {
    if (i === 0) return {part: "embedding", value};
    if (i === votes.length - 1) return {part: "biases", value};
    const layer = Math.floor((i - 1) / (n_head + 1));
    return {layer, part: (i - 1) % (n_head + 1), value};
  });
}

/** pair: [first, second], the tokens that the user has chosen, or null: the two most likely ones.
 *  off: the parts that are switched off. */
function drawVotes(seen, at, vocab, config, pair, off) {
  const entry = seen.entries[at.token];
  $("votes").replaceChildren();
  say($("votes-sum"));
  if (!entry) return say($("votes-intro"), "…");
  const likely = entry.top.map(([id]) => id);
  const first = pair?.[0] ?? likely[0];
  const second = pair?.[1] ?? likely.find((id) => id !== first) ?? first;
  drawPair(first, second, entry, seen.isLive, vocab);
  const votes = seen.isLive ? votesOf(entry.model, entry, first, second) : entry.votes;
  const named = namedVotes(votes, config.n_head);
  const sum = votes.reduce((a, b) => a + b, 0);
  const order = descending(votes.map(Math.abs));
  const largest = Math.max(1e-9, Math.abs(votes[order[0]]));
  const shown = order.slice(0, 8).map((i) => named[i]).filter(({value}) => value !== 0);
  const rest = sum - shown.reduce((a, {value}) => a + value, 0);
  const rows = shown.map((vote) => voteRow(vote, largest, config.n_head, seen.isLive, off));
  if (order.length > 8) {
    rows.push(voteRow({part: `the other ${order.length - 8}`, value: rest}, largest));
  }
  for (const name of off) {
    const [layer, part] = name.split(".").map(Number);
    if (!shown.some((vote) => vote.layer === layer && vote.part === part)) {
      rows.push(voteRow({layer, part, value: 0}, largest, config.n_head, seen.isLive, off));
    }
  }
  $("votes").replaceChildren(...rows);
  const factor = Math.exp(Math.abs(sum));
  const times = factor < 10 ? fixed(factor, 1) : grouped(Number(factor.toPrecision(2)));
  const cap = config.softcap ? ", before soft-capping" : "";
  say($("votes-sum"), `The parts sum to ${signed(sum)}: logit(`, word(vocab[first]), ") − logit(",
    word(vocab[second]), `)${cap}. `, ...(config.softcap ? [] : [
      sum >= 0 ? word(vocab[first]) : word(vocab[second]), ` is ${times} times as likely as `,
      sum >= 0 ? word(vocab[second]) : word(vocab[first]), "."]));
}

/** The sentence with the two tokens; if the model runs here, both can be chosen. */
function drawPair(first, second, entry, isLive, vocab) {
  if (!isLive) {
    return say($("votes-intro"), "Why ", word(vocab[first]), " and not ", word(vocab[second]), "?");
  }
  const ids = [...new Set([...entry.top.map(([id]) => id), first, second])];
  const select = (name, chosen, label) => {
    const options = ids.map((id) => {
      const option = element("option", {value: id}, visible(vocab[id]));
      option.selected = id === chosen;
      return option;
    });
    return element("select", {id: name, "aria-label": label}, ...options);
  };
  const focused = document.activeElement?.id;
  say($("votes-intro"), "Why ", select("vote-first", first, `for this ${unit}`), " and not ",
    select("vote-second", second, `against this ${unit}`), "?");
  if (focused?.startsWith("vote-")) $(focused).focus();
}

/** A bar to the right for the first token, to the left for the second. */
function voteRow({layer, part, value}, largest, n_head, isLive, off) {
  const width = (50 * Math.min(1, Math.abs(value) / largest)).toFixed(2);
  const side = value < 0 ? "right:50%" : "left:50%";
  const name = typeof part === "string" ? part : partName(layer, part, n_head);
  const meter = element("span", {class: "vote"},
    element("i", {class: value < 0 ? "against" : "for", style: `${side};width:${width}%`}));
  const cells = [element("span", {class: "name"}, name), meter,
    element("span", {class: "value"}, signed(value, 2))];
  const id = `${layer}.${part}`;
  if (isLive && layer !== undefined) {
    cells.push(switchOf(id, name, off.has(id)));
  }
  return element("li", {class: off?.has(id) ? "is-off" : ""}, ...cells);
}

/** A button that switches a part of the model off and on. */
function switchOf(id, name, isOff) {
  return element("button", {
    type: "button", class: "switch", "data-off": id, "aria-pressed": String(isOff),
    "aria-label": `Switch ${name} ${isOff ? "on" : "off"}`,
  }, isOff ? "on" : "off");
}
