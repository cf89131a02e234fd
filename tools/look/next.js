// The next token: its probabilities, what temperature, top-k and top-p make of them, and the roll
// of the die that chooses one.
"use strict";

/** filters: {temperature, topK, topP}. roll: the last one, {t, uniform, id, shares}, or null. */
function drawNext(seen, at, vocab, filters, roll) {
  const entry = seen.entries[at.token];
  const buttons = () => [...$("candidates").querySelectorAll("button")];
  const focused = buttons().indexOf(document.activeElement); // the new buttons keep the focus
  say($("next-facts"));
  say($("roll-text"));
  $("candidates").replaceChildren();
  $("roll").replaceChildren();
  if (!entry) return say($("next-intro"), "…");
  say($("next-intro"), "After ", context(seen, at.token, vocab), " the model expects:");
  const came = seen.ids[at.token + 1];
  const shares = seen.isLive && filtered(entry, filters);
  const share = new Map(shares || entry.top);
  const plain = seen.plain[at.token];
  $("candidates").replaceChildren(...entry.top.map(([id, p]) => (
    candidate(id, p, share.get(id), seen.isLive, id === came, vocab,
      plain && plain !== entry ? plain.probs[id] : null))));
  buttons()[focused]?.focus();
  drawFacts(entry, came, vocab);
  if (shares) drawRoll(shares, at, vocab, roll);
}

function filtered(entry, {temperature, topK, topP}) {
  return reshaped(entry.logits, temperature, topK, topP);
}

/** A row: the bar is the probability of being chosen, the mark that of the model itself. */
function candidate(id, p, share, isLive, isCame, vocab, plain) {
  const isCut = share === 0;
  const meter = bar(share);
  meter.append(element("b", {style: `left:${(100 * (plain ?? p)).toFixed(2)}%`}));
  const value = isCut ? "cut" : percent(share);
  const parts = [
    element("span", {class: "token"}, visible(vocab[id])),
    meter,
    element("span", {class: "value"}, value),
    element("span", {class: "came"}, isCame ? "is next" : ""),
  ];
  const classes = `${isCame ? "is-came" : ""} ${isCut ? "is-cut" : ""}`.trim();
  if (!isLive) return element("li", {class: classes}, element("div", {class: "plain"}, ...parts));
  const label = `Continue with ${spoken(vocab[id])}: ${value}${isCame ? ", it came" : ""}`;
  return element("li", {class: classes}, element("button", {
    type: "button", "data-id": id, title: "Continue the text with it", "aria-label": label,
  }, ...parts));
}

function drawFacts(entry, came, vocab) {
  const facts = [`As uncertain as a choice among ${fixed(2 ** entry.entropy, 1)} equally likely `
    + `${unit}s (entropy ${fixed(entry.entropy)} bits). `];
  if (came === undefined) {
    facts.push("This is the end of the text.");
  } else {
    const chance = entry.chance(came);
    facts.push("Then ", word(vocab[came]), ` came: ${percent(chance.p)}, ${rankOf(chance)}, `
      + `${fixed(bits(chance.p), 1)} bits of surprise.`);
  }
  say($("next-facts"), ...facts);
}

/** All probabilities side by side: a random number between 0 and 1 falls on one of them. */
function drawRoll(shares, at, vocab, roll) {
  const isHere = roll !== null && roll.t === at.token;
  const shown = isHere ? roll.shares : shares;
  let sum = 0;
  const segments = shown.filter(([, p]) => p > 0).slice(0, 40).map(([id, p]) => {
    const style = `left:${(100 * sum).toFixed(2)}%;width:${(100 * p).toFixed(2)}%`;
    sum += p;
    const isHit = isHere && roll.id === id;
    return element("span", {style, class: isHit ? "hit" : ""}, p > 0.04 ? visible(vocab[id]) : "");
  });
  $("roll").replaceChildren(...segments);
  if (isHere) {
    $("roll").append(element("i", {style: `left:${(100 * roll.uniform).toFixed(2)}%`}));
    say($("roll-text"), `The die rolled ${fixed(roll.uniform, 3)}, which fell on `,
      word(vocab[roll.id]), `, the selected ${unit}.`);
  } else {
    say($("roll-text"), `To sample, a random number between 0 and 1 falls on one ${unit}.`);
  }
}
