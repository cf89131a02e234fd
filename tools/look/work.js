// Work: building the models, and computing a little in each frame, so that typing never waits.
"use strict";

const TOLERANCE = 1e-3; // the largest difference from PyTorch's logits with which a model is used
const WORK_MS = 8; // time per frame for the model
const START_MS = 30; // without a pause, while the models are built
const DRAW_MS = 60; // while more is computed, the page is drawn that often
const QUIET_MS = 300; // long work begins when the text has not changed for that long

const NOTHING = 0; // nothing is left to do
const WAITING = 1; // something is left, but not now
const QUIETLY = 2; // something was computed that is not shown
const SHOWN = 3; // something was computed that is shown

/** Compute one piece of what is left to compute. The text itself comes first. */
function workOnce() {
  const age = ages[page.moment];
  if (age.live?.step() || age.without?.step()) return SHOWN;
  if (page.sampling && age.live) return sampleNext() ? SHOWN : NOTHING;
  if (performance.now() < page.changed + QUIET_MS) return WAITING;
  if (ages.some((other) => other.live?.step())) return QUIETLY;
  if (ages.some((other) => other.stepFilm(data.sampled, data.dice))) return SHOWN;
  if (!age.stepAblation()) return NOTHING;
  return age.ablated || performance.now() > page.drawn + QUIET_MS ? SHOWN : QUIETLY;
}

function work() {
  const end = performance.now() + WORK_MS;
  const wasSampling = page.sampling;
  let done = QUIETLY;
  while (done >= QUIETLY && performance.now() < end) {
    done = workOnce();
    if (done === SHOWN) page.isStale = true;
    if (wasSampling) break; // one token per frame, so that you can watch
  }
  const isTime = done !== SHOWN || wasSampling || performance.now() > page.drawn + DRAW_MS;
  if (page.isStale && isTime) {
    page.isStale = false;
    page.drawn = performance.now();
    redraw();
  }
  page.working = done !== NOTHING || page.sampling;
  if (page.working) requestAnimationFrame(work);
}

function startWork() {
  if (page.working || !page.live) return;
  page.working = true;
  requestAnimationFrame(work);
}

// ---- the models

const pause = () => new Promise((resolve) => setTimeout(resolve));

/** Compute a text, with a pause from time to time. */
async function computeAll(live) {
  let end = performance.now() + START_MS;
  while (live.step()) {
    if (performance.now() < end) continue;
    await pause();
    end = performance.now() + START_MS;
  }
}

/** Build the model of an age and run it on the recorded text. The age uses it if the logits are
 *  those of PyTorch: of all tokens, or of the last ones. Returns the largest difference. */
async function startModel(age) {
  const {weights, logits} = age.moment;
  const live = new LiveText(await readModel(config, weights), nVocab);
  live.setIds(data.ids);
  await computeAll(live);
  const expected = new Float32Array(await unpack(logits));
  const entries = live.entries.slice(-expected.length / nVocab);
  let largest = 0;
  entries.forEach((entry, t) => entry.logits.forEach((logit, i) => {
    largest = Math.max(largest, Math.abs(logit - expected[t * nVocab + i])); // NaN stays NaN
  }));
  if (largest < TOLERANCE) age.start(live);
  return largest;
}

/** Start the main model, and then those of the other ages. The page is live as soon as the first
 *  one is. If one of them is not PyTorch's, all are stopped. */
async function startModels() {
  const main = ages[page.main];
  const others = ages.filter((age) => age !== main && age.moment.weights);
  for (const age of [main, ...others]) {
    page.difference = Math.max(page.difference, await startModel(age));
    if (!(page.difference < TOLERANCE)) return stopModels();
    if (age === main) goLive();
    age.setIds(page.ids);
    age.live.follow(ages[page.main].live); // the slider compares the ages on the same tokens
    age.setOff(page.off);
    if (page.prompt !== recordedPrompt) age.setPrompt(page.prompt, false);
    startWork();
    redraw();
  }
}
