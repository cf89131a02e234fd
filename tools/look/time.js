// Training time: the slider, and the filmstrip: one prompt, continued by every age of the model.
"use strict";

function drawMoment(seen, ages, moment, main) {
  const {step} = ages[moment];
  const name = moment === main ? " (this page's model)" : "";
  const loss = seen.loss === null ? "…" : fixed(seen.loss);
  const label = `${grouped(step)}${name} · loss of this text ${loss}`;
  say($("moment-label"), label);
  $("moment").setAttribute("aria-valuetext", `step ${label}`);
  [...$("ticks").children].forEach((tick, i) => tick.classList.toggle("now", i === moment));
}

function drawTicks(ages) {
  $("ticks").replaceChildren(...ages.map(({step}) => element("span", {}, grouped(step))));
}

/** One row per age: the continuation of the prompt, each token colored by the surprise of that
 *  model itself. */
function drawFilm(ages, moment, prompt, vocab, nVocab) {
  const rows = $("film").children;
  const text = visible(prompt.map((id) => vocab[id]).join(""));
  const shown = text.length > 16 ? `…${text.slice(-16)}` : text;
  const isMissing = ages.some((age) => !age.moment.weights && age.filmIds.length === 0);
  say($("film-intro"), "The prompt ", element("b", {class: "token"}, shown),
    ", continued by the model at each step of its training. The random numbers are the same in "
    + "each row.", isMissing ? " Empty rows: the weights of these steps are not in the page." : "");
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

// ---- moving through time

const PLAY_MS = 700; // how long each step is shown

function setMoment(moment) {
  page.moment = Math.max(0, Math.min(moment, ages.length - 1));
  $("moment").value = page.moment;
  startWork();
  redraw();
  remember();
}

function setPlaying(on) {
  page.playing = on;
  $("play").textContent = on ? "⏸ Pause" : "▶ Play training";
  if (!on) return;
  setSampling(false);
  if (page.moment === ages.length - 1) setMoment(0);
  setTimeout(playNext, PLAY_MS);
}

/** Show the next step of the training as soon as it is computed. */
function playNext() {
  if (!page.playing) return;
  const next = ages[page.moment + 1];
  if (next && isComing(next)) return setTimeout(playNext, 30);
  if (next) setMoment(page.moment + 1);
  if (page.moment === ages.length - 1) return setPlaying(false);
  setTimeout(playNext, calm.matches ? 2 * PLAY_MS : PLAY_MS);
}

function listenToTime() {
  $("moment").addEventListener("input", () => {
    setSampling(false);
    setPlaying(false);
    setMoment(Number($("moment").value));
  });
  $("play").addEventListener("click", () => setPlaying(!page.playing));
}
