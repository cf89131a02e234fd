// Training time: the slider, and the filmstrip: one prompt, continued by every age of the model.
"use strict";

function drawMoment(seen, ages, moment, main) {
  const {step} = ages[moment];
  const name = moment === main ? ", this page's model" : "";
  const loss = seen.loss === null ? "" : `loss of this text ${fixed(seen.loss)}`;
  say($("moment-label"), `step ${grouped(step)}${name}${loss && " · "}${loss}`);
  $("moment").setAttribute("aria-valuetext", `step ${step}${name}, ${loss}`);
  [...$("ticks").children].forEach((tick, i) => tick.classList.toggle("now", i === moment));
}

function drawTicks(ages) {
  $("ticks").replaceChildren(...ages.map(({step}) => element("span", {}, grouped(step))));
}

/** One row per age: the continuation of the prompt, each token colored by the surprise of that
 *  model itself. */
function drawFilm(ages, moment, prompt, vocab, nVocab) {
  const rows = $("film").children;
  const text = prompt.map((id) => vocab[id]).join("");
  const shown = visible(text).slice(-16);
  say($("film-intro"), "The prompt ", element("b", {class: "token"},
    (visible(text).length > 16 ? "…" : "") + shown),
    `, continued by the model at ${ages.length === 1 ? "its only" : "each"} step of its training. `
    + "The random numbers are the same in each row.");
  ages.forEach((age, i) => {
    if (!rows[i]) $("film").append(filmRow(age.step));
    const row = rows[i];
    row.classList.toggle("now", i === moment);
    const strip = row.querySelector(".strip");
    const {filmIds, filmProbs} = age;
    const isSame = strip.shown === filmIds && strip.childElementCount === filmIds.length;
    if (isSame) return;
    if (strip.shown !== filmIds) strip.replaceChildren();
    strip.shown = filmIds;
    for (let n = strip.childElementCount; n < filmIds.length; n++) {
      const shade = surpriseShade(filmProbs[n], nVocab).toFixed(3);
      strip.append(element("span", {class: "token", style: `--shade:${shade}`},
        visible(vocab[filmIds[n]])));
    }
  });
}

function filmRow(step) {
  return element("li", {}, element("span", {class: "step"}, `step ${grouped(step)}`),
    element("span", {class: "strip"}));
}
