// The text, colored by surprise.
"use strict";

/** The probability that each token had before it came; null for the first one. */
function chances(seen) {
  return seen.ids.map((id, t) => (
    t === 0 || !seen.entries[t - 1] ? null : seen.entries[t - 1].chance(id).p));
}

/** Change the text of an element and its look only if they differ: colors can then fade. */
function update(node, text, classes, shade) {
  if (node.textContent !== text) node.textContent = text;
  if (node.className !== classes) node.className = classes;
  node.style.setProperty("--shade", shade.toFixed(3));
}

function drawTokens(seen, at, vocab, nVocab) {
  const box = $("tokens");
  const probs = chances(seen);
  const old = [...box.children].filter((node) => node.dataset.t !== undefined);
  const nodes = [];
  if (seen.before.length) {
    const text = seen.before.slice(-200).map((id) => visible(vocab[id])).join("");
    nodes.push(element("span", {class: "before", title: "The model no longer sees this part"},
      seen.before.length > 200 ? `…${text}` : text));
  }
  seen.ids.forEach((id, t) => {
    const text = vocab[id];
    const shade = probs[t] === null ? 0 : surpriseShade(probs[t], nVocab);
    const node = old[t] ?? element("span", {id: `token-${t}`, "data-t": t, role: "option"});
    update(node, visible(text), t < seen.promptLength ? "token prompt" : "token", shade);
    node.setAttribute("aria-selected", String(t === at.token));
    const surprise = probs[t] === null ? "" : `, ${fixed(bits(probs[t]), 1)} bits`;
    node.setAttribute("aria-label", spoken(text) + surprise);
    nodes.push(node);
    if (text.endsWith("\n")) nodes.push(element("br"));
  });
  if (!sameNodes(box.childNodes, nodes)) box.replaceChildren(...nodes);
  if (seen.ids.length) box.setAttribute("aria-activedescendant", `token-${at.token}`);
  else box.removeAttribute("aria-activedescendant");
  const isMixed = seen.promptLength > 0 && seen.promptLength < seen.ids.length;
  $("prompt-note").hidden = !isMixed;
  drawSelection(seen, at, vocab, probs);
}

/** Whether a list of nodes is already there. Line breaks are alike. */
function sameNodes(there, nodes) {
  return there.length === nodes.length && nodes.every((node, i) => (
    node === there[i] || (node.tagName === "BR" && there[i].tagName === "BR")));
}

function drawSelection(seen, at, vocab, probs) {
  const t = at.token;
  const id = seen.ids[t];
  if (id === undefined) return say($("selection"), "The text is empty. Type something.");
  const place = `${unit} ${grouped(t + seen.before.length + 1)} of `
    + grouped(seen.ids.length + seen.before.length);
  const parts = [`Selected: ${place}, `, word(vocab[id]), ". "];
  if (t === 0) {
    parts.push("Nothing before it predicts it.");
  } else if (probs[t] !== null) {
    const chance = seen.entries[t - 1].chance(id);
    parts.push("Before it came, the model gave it ", percent(chance.p), `, ${rankOf(chance)}: a `
      + `surprise of ${fixed(bits(chance.p), 1)} bits.`);
  }
  say($("selection"), ...parts);
}

function drawSurpriseLegend(nVocab) {
  $("surprise-legend").replaceChildren(element("span", {}, "expected"), element("i"),
    element("span", {}, `pure guessing, ${fixed(fullSurprise(nVocab), 1)} bits`));
}
