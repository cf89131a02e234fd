// The logit lens: what each layer would predict if it were the last one.
"use strict";

/** The first row of the lens from which on the most likely token is that of the last row. */
function leadsFrom(lens) {
  const final = lens.at(-1)[0];
  let row = lens.length - 1;
  while (row > 0 && lens[row - 1][0] === final) row--;
  return row;
}

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
    const names = [`${unit} read`, ...rows, `${unit} that came`];
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
  const parts = ["After ", context(seen, at.token, vocab), ": "];
  lens.forEach(([id, p], row) => {
    parts.push(`${row ? ", " : ""}${rowName(row)} `, word(vocab[id]), ` ${percent(p)}`);
  });
  const from = leadsFrom(lens);
  parts.push(". The final answer ", word(vocab[lens.at(-1)[0]]),
    from === 0 ? " leads from the embedding on." : ` leads from layer ${from} on.`);
  say($("lens-reading"), ...parts);
}

/** Scroll the lens so that the selected token is visible, if the lens itself is. (Reading positions
 *  in it would make the browser place its cells, which takes time at every typed character.) */
function scrollLens() {
  const scroll = $("lens");
  const column = scroll.querySelector(".selected");
  const {top, bottom} = scroll.closest(".card").getBoundingClientRect();
  if (!column || top > innerHeight || bottom < 0) return;
  const most = column.offsetLeft - scroll.firstChild.offsetWidth;
  const least = column.offsetLeft + column.offsetWidth - scroll.clientWidth;
  scroll.scrollLeft = Math.max(least, Math.min(scroll.scrollLeft, most));
}
