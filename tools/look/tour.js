// Three things to find: buttons that set text, token, head and step, and say what is to be seen.
// tools/look.py has found the places in the recorded text.
"use strict";

/** The name of each discovery, the card it is about, and the sentence that explains it. */
const TOUR = {
  lens: {
    title: ({row}) => `Layer ${row} changes the answer`,
    card: "lens-card",
    explain: ({token, row}, seen, vocab) => {
      const {lens} = seen.entries[token];
      const last = lens.length - 1;
      const before = row === 1 ? "the embedding" : rowName(row - 1);
      const [guess, p] = lens[row - 1];
      return ["After ", context(seen, token, vocab), `, ${before} still guesses `,
        word(vocab[guess]), ` (${percent(p)}). From ${rowName(row)} on it is `,
        word(vocab[lens[row][0]]), `, at the end with ${percent(lens[last][1])}.`];
    },
  },
  previous: {
    title: () => `The head that looks back one ${unit}`,
    card: "attention-card",
    explain: ({layer, head, share}) => [
      `Head ${head + 1} of layer ${layer + 1} gives ${percent(share)} of its weight to the `
      + `previous ${unit}, more than any other head`,
      share >= CLEAR ? ": see the line just below the diagonal of its map." : "."],
  },
  time: {
    title: ({moment}, ages) => `What step ${grouped(ages[moment].step)} has learned`,
    card: "text-card",
    explain: ({token, moment}, seen, vocab, ages, seenAt) => {
      const before = seenAt(moment - 1);
      const id = seen.ids[token];
      const [from, to] = [before, seen].map(({entries}) => entries[token - 1].chance(id).p);
      return [`At step ${grouped(ages[moment - 1].step)}, `, word(vocab[id]), " after ",
        context(seen, token - 1, vocab), ` had ${percent(from)}; at step `
        + `${grouped(ages[moment].step)} it has ${percent(to)}. Except for white space, no other `
        + `${unit} of this text gained more at once. The loss of the text went from `
        + `${fixed(before.loss)} to ${fixed(seen.loss)}. Move the slider, or press Play.`];
    },
  },
  cause: {
    title: () => "The head that matters most",
    card: "attention-card",
    explain: ({layer, head}, seen) => [
      `Without head ${head + 1} of layer ${layer + 1}, the loss of this text would be `
      + `${fixed(seen.ablated[layer][head], 3)} instead of ${fixed(seen.plainLoss, 3)}: no other `
      + "head matters more here."],
  },
};

/** Draw a button per discovery. One that needs other ages waits until their models run. */
function drawTour(discoveries, ages) {
  $("tour").hidden = discoveries.length === 0;
  const isThree = discoveries.length === 3;
  $("tour-title").textContent = isThree ? "Three things to find" : "Things to find";
  $("tour-buttons").replaceChildren(...discoveries.map((found, i) => {
    const title = `${i + 1}. ${TOUR[found.kind].title(found, ages)}`;
    const button = element("button", {type: "button", "data-found": i}, title);
    button.disabled = found.moment !== undefined && page.starting;
    return button;
  }));
}

/** Show the recorded text with the token, head and step of a discovery, and say what it shows. */
function discover(found) {
  setPlaying(false);
  if (page.live) {
    if (decode(page.ids) !== decode(data.ids)) keepForUndo();
    if (page.off.size) toggle("all");
    resetText();
  }
  setMoment(found.moment ?? page.main);
  selectHead(found.layer, found.head);
  select(found.token);
  for (const age of [ages[page.moment], ages[page.moment - 1]]) while (age?.live?.step());
  if (page.live) ages[page.main].ablated = data.moments[data.main].ablated_loss;
  drawTop();
  drawBottom();
  const {explain, card} = TOUR[found.kind];
  for (const node of document.querySelectorAll(".found")) node.classList.remove("found");
  $(card).classList.add("found");
  $(card).querySelector(".title").after($("tour-text"));
  say($("tour-text"), ...explain(found, seenNow(), vocab, ages, seenAt));
  $(card).scrollIntoView({behavior: calm.matches ? "auto" : "smooth"});
}
