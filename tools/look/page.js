// The page: what is shown, what is selected, and what happens when you type.
"use strict";

const TOLERANCE = 1e-3; // the largest difference from PyTorch's logits with which the model is used
const WORK_MS = 8; // time per frame for the model, so that typing and drawing never wait for it
const DRAW_MS = 60; // while more is computed, the page is drawn that often
const QUIET_MS = 300; // long work begins when the text has not changed for that long
const PLAY_MS = 700; // how long the training shows each step

const data = JSON.parse($("data").textContent);
const {config, vocab, n_vocab: nVocab, unit} = data;
const idOf = new Map(Object.entries(vocab).map(([id, text]) => [text, Number(id)]));
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let ages = data.moments.map((moment) => new Age(moment, null, nVocab));
const at = {...data.open};
const page = {
  moment: data.main, // the number of the age that is shown
  main: data.main,
  live: false, // whether the model runs here
  ids: data.ids, // the text
  promptLength: data.prompt_length, // so many tokens of it were written by the user
  prompt: data.ids.slice(0, data.prompt_length), // what each age continues in the filmstrip
  off: new Set(), // parts of the model that are switched off
  pair: null, // the two tokens of the votes, if they were chosen
  roll: null, // the last roll of the die
  branch: null, // the text that a branch has replaced
  hover: null, // the cell of the map under the pointer
  past: [], future: [], // texts, for undo and redo
  sampling: false, playing: false,
  working: true, changed: 0, isTyping: false, isStale: false, drawn: 0,
};

// ---- what is shown

/** The recorded text at one step of the training, as the views want it. */
function recorded(age) {
  const {moment, entries = []} = age;
  return {
    ids: data.ids, entries, plain: entries, before: [], promptLength: data.prompt_length,
    loss: moment.loss, plainLoss: moment.loss, ablated: moment.ablated_loss, isLive: false,
  };
}

function seenLive(age) {
  const {live, without, ablated} = age;
  const shown = without ?? live;
  return {
    ids: live.window, entries: shown.entries, plain: live.entries,
    before: live.ids.slice(0, live.start),
    promptLength: Math.max(0, page.promptLength - live.start),
    loss: shown.loss, plainLoss: live.loss, ablated, isLive: true,
  };
}

function seenAt(moment) {
  const age = ages[moment];
  return page.live && age.model ? seenLive(age) : recorded(age);
}

const seenNow = () => seenAt(page.moment);

// ---- drawing: at most once per frame

const frames = {top: 0, bottom: 0};

/** The upper cards follow in the next frame, the lower ones in the frame after it, so that each
 *  frame is short. */
function redraw() {
  frames.top ||= requestAnimationFrame(() => {
    frames.top = 0;
    drawTop();
    frames.bottom ||= requestAnimationFrame(() => {
      frames.bottom = 0;
      drawBottom();
    });
  });
}

function filters() {
  return {
    temperature: Number($("temperature").value),
    topK: Number($("top-k").value),
    topP: Number($("top-p").value),
  };
}

function drawTop() {
  const seen = seenNow();
  at.token = Math.max(0, Math.min(at.token, seen.ids.length - 1));
  drawTokens(seen, at, vocab, nVocab);
  drawNext(seen, at, vocab, filters(), page.roll);
  drawFilters();
  drawMoment(seen, ages, page.moment, page.main);
  drawFilm(ages, page.moment, page.prompt, vocab, nVocab);
  drawControls(seen);
}

function drawBottom() {
  const seen = seenNow();
  const age = ages[page.moment];
  drawLens(seen, at, vocab, config);
  drawHeads(seen, at, vocab, config, page.off, age.ablationShare);
  drawMap(seen, at, vocab, config, $("whole").checked, page.hover);
  drawLooks(seen, at, vocab);
  drawVotes(seen, at, vocab, config, page.pair, page.off);
  drawWalk(seen, at, vocab, data, filters(), seen.isLive ? (age.without ?? age.live).cache : null);
  scrollLens();
}

function drawFilters() {
  const {temperature, topK, topP} = filters();
  say($("temperature-value"), fixed(temperature));
  say($("top-k-value"), topK >= nVocab ? "all" : `${topK}`);
  say($("top-p-value"), fixed(topP));
  const isPlain = temperature === 1 && topK >= nVocab && topP === 1;
  say($("filter-note"), isPlain ? "The bars are the model's own probabilities."
    : "The bars are what is sampled from; the marks are the model's own probabilities.");
}

function drawControls(seen) {
  const isEmpty = seen.ids.length === 0;
  for (const id of ["sample-one", "sample-more"]) $(id).disabled = isEmpty || !seen.isLive;
  $("undo").disabled = page.past.length === 0;
  $("editor").hidden = !seen.isLive;
  $("branch").hidden = page.branch === null;
  if (page.branch !== null) {
    say($("branch"), "A branch. Before, the text went on ",
      element("b", {class: "token"}, visible(page.branch).slice(0, 40)), ". Undo brings it back.");
  }
  const off = [...page.off].map((name) => {
    const [layer, part] = name.split(".").map(Number);
    return partName(layer, part, config.n_head);
  });
  say($("off-note"));
  if (off.length) {
    say($("off-note"), `Switched off: ${off.join(", ")}. The marks show the model with all parts. `,
      element("button", {type: "button", "data-off": "all"}, "Switch all on"));
  }
  const isRecorded = page.live && !seen.isLive;
  say($("moment-note"), isRecorded ? "The weights of this step are not in the page, so it shows the "
    + "recorded text." : "");
}

// ---- work: the model computes a little in each frame

const NOTHING = 0; // nothing is left to do
const WAITING = 1; // something is left, but not now
const QUIETLY = 2; // something was computed that is not shown
const SHOWN = 3; // something was computed that is shown

/** Compute one piece of what is left to compute. The text itself comes first. */
function workOnce() {
  const age = ages[page.moment];
  if (age.live?.step() || age.without?.step()) return SHOWN;
  if (page.sampling && age.model) return sampleNext() ? SHOWN : NOTHING;
  if (performance.now() < page.changed + QUIET_MS) return WAITING;
  if (ages.some((other) => other.live?.step())) return QUIETLY;
  if (ages.some((other) => other.stepFilm(data.sampled, data.dice))) return SHOWN;
  if (!age.model || !age.stepAblation()) return NOTHING;
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

// ---- the text

/** Show another text. token: the selection, counted from the beginning of the text. */
function setText(ids, promptLength, token) {
  page.ids = ids;
  page.promptLength = promptLength;
  for (const age of ages) age.setIds(ids);
  at.token = Math.max(0, token - (ages[page.moment].live?.start ?? 0));
  page.changed = performance.now();
  if (page.hover) page.hover = null;
  startWork();
  redraw();
  remember();
}

/** Continue another prompt in the filmstrip, if it is one. */
function setPrompt(ids) {
  if (ids.length === page.prompt.length && ids.every((id, i) => id === page.prompt[i])) return;
  page.prompt = ids;
  for (const age of ages) age.setPrompt(ids);
}

/** The characters of a text that the model knows, and those that it does not. */
function encode(text) {
  const chars = [...text];
  const unknown = [...new Set(chars.filter((char) => !idOf.has(char)))];
  return [chars.filter((char) => idOf.has(char)).map((char) => idOf.get(char)), unknown];
}

const decode = (ids) => ids.map((id) => vocab[id]).join("");

/** Typed or deleted characters of one word are one step of undo. */
function continuesWord({inputType, data: char}) {
  if (inputType !== page.inputType || !page.isTyping) return false;
  return inputType === "deleteContentBackward"
    || (inputType === "insertText" && !/\s/.test(char ?? ""));
}

function typed(event) {
  const box = $("typed");
  if (!continuesWord(event)) keepForUndo();
  page.isTyping = true;
  page.inputType = event.inputType;
  page.branch = null;
  const [ids, unknown] = encode(box.value);
  const names = unknown.slice(0, 10).map(visible).join(" ");
  const isOne = unknown.length === 1;
  say($("unknown"), unknown.length === 0 ? ""
    : `Left out, because ${isOne ? "it is" : "they are"} not among the ${grouped(nVocab)} characters `
      + `of this model: ${names}${unknown.length > 10 ? " …" : ""}`);
  const [before] = encode(box.value.slice(0, box.selectionStart));
  setText(ids, ids.length, before.length - 1);
  setPrompt(ids);
}

/** Continue the text after the selected token with this one. What came after it is kept for undo.
 */
function continueWith(id) {
  const {live} = ages[page.moment];
  const n = live.start + at.token + 1;
  const kept = live.ids.slice(0, n);
  if (n < live.ids.length) page.branch = decode(live.ids.slice(n));
  $("typed").value = decode([...kept, id]);
  $("typed").scrollTop = $("typed").scrollHeight;
  setText([...kept, id], Math.min(page.promptLength, n), n);
}

/** Sample the token after the selected one; false if there is no text. */
function sampleNext() {
  const entry = seenNow().entries[at.token];
  if (!entry) {
    setSampling(false);
    return false;
  }
  const shares = filtered(entry, filters());
  const uniform = Math.random();
  const id = hit(shares, uniform);
  continueWith(id);
  page.roll = {t: at.token, uniform, id, shares};
  return true;
}

function setSampling(on) {
  page.sampling = on;
  $("sample-more").textContent = on ? "Stop" : "Keep sampling";
  $("selection").setAttribute("aria-live", on ? "off" : "polite");
  if (on) startWork();
}

const snapshotOfText = () => ({
  ids: page.ids, promptLength: page.promptLength, branch: page.branch,
  token: at.token + (ages[page.moment].live?.start ?? 0),
});

function keepForUndo() {
  page.isTyping = false;
  page.past.push(snapshotOfText());
  if (page.past.length > 200) page.past.shift();
  page.future = [];
}

/** Undo, or redo, with the two lists exchanged. */
function goBack(from, to) {
  const text = from.pop();
  if (!text) return;
  setSampling(false);
  page.isTyping = false;
  to.push(snapshotOfText());
  page.branch = text.branch;
  $("typed").value = decode(text.ids);
  say($("unknown"));
  setText(text.ids, text.promptLength, text.token);
  setPrompt(text.ids.slice(0, text.promptLength));
}

function resetText() {
  setSampling(false);
  page.branch = null;
  $("typed").value = decode(data.ids);
  say($("unknown"));
  setText(data.ids, data.prompt_length, 0);
  setPrompt(data.ids.slice(0, data.prompt_length));
}

// ---- what is selected

function select(t) {
  at.token = Math.max(0, Math.min(t, seenNow().ids.length - 1));
  page.pair = null;
  redraw();
  remember();
}

function selectHead(layer, head) {
  at.layer = Math.max(0, Math.min(layer, config.n_layer - 1));
  at.head = Math.max(0, Math.min(head, config.n_head - 1));
  redraw();
  remember();
}

function setMoment(moment) {
  page.moment = Math.max(0, Math.min(moment, ages.length - 1));
  $("moment").value = page.moment;
  startWork();
  redraw();
  remember();
}

function moveToken(event) {
  const moves = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity};
  if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  select(at.token + moves[event.key]);
}

function moveHead(event) {
  const moves = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
  if (!(event.key in moves)) return;
  event.preventDefault();
  const [layer, head] = moves[event.key];
  selectHead(at.layer + layer, at.head + head);
}

/** Switch a part of the model off or on, in every age. name: "layer.part", or "all" to reset. */
function toggle(name) {
  if (name === "all") page.off.clear();
  else if (!page.off.delete(name)) page.off.add(name);
  for (const age of ages) age.setOff(page.off);
  startWork();
  redraw();
  remember();
}

// ---- play

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
  const {live} = ages[page.moment + 1] ?? {};
  if (live && !live.isDone) return setTimeout(playNext, 30);
  if (page.moment < ages.length - 1) setMoment(page.moment + 1);
  if (page.moment === ages.length - 1) return setPlaying(false);
  setTimeout(playNext, calm.matches ? 2 * PLAY_MS : PLAY_MS);
}

// ---- sharing

/** Write what is shown into the address, a moment later. */
function remember() {
  clearTimeout(page.writing);
  page.writing = setTimeout(() => {
    const isOwn = decode(page.ids) !== decode(data.ids);
    writeHash({
      text: isOwn && page.live ? decode(page.ids) : null,
      prompt: isOwn && page.live ? page.promptLength : null,
      token: at.token + (page.live ? ages[page.moment].live?.start ?? 0 : 0),
      head: `${at.layer}.${at.head}`,
      step: page.moment === page.main ? null : ages[page.moment].step,
      off: [...page.off].join(" "),
      theme: page.theme ?? null,
      only: document.body.dataset.only ?? null,
    });
  }, 300);
}

/** Show what an address says. Whatever is wrong in it is ignored. */
function applyHash(hash) {
  const isText = page.live && hash.text !== undefined;
  if (isText) {
    const [ids] = encode(hash.text);
    const prompt = Math.max(0, Math.min(Number(hash.prompt) || ids.length, ids.length));
    $("typed").value = decode(ids);
    setText(ids, prompt, ids.length - 1);
    setPrompt(ids.slice(0, prompt));
  }
  const moment = ages.findIndex(({step}) => `${step}` === hash.step);
  if (moment >= 0) setMoment(moment);
  const token = Number(hash.token);
  if (hash.token && token >= 0) select(token - (ages[page.moment].live?.start ?? 0));
  const [layer, head] = (hash.head ?? "").split(".").map(Number);
  if (layer >= 0 && head >= 0) selectHead(layer, head);
  for (const name of (hash.off ?? "").split(" ")) {
    const [inLayer, part] = name.split(".").map(Number);
    if (page.live && inLayer < config.n_layer && part <= config.n_head) toggle(`${inLayer}.${part}`);
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
  redraw();
}

// ---- events

function listenToText() {
  for (const id of ["tokens", "looks-at", "lens"]) {
    $(id).addEventListener("click", (event) => {
      const cell = event.target.closest("[data-t]");
      if (cell) select(Number(cell.dataset.t));
    });
  }
  for (const id of ["tokens", "lens"]) $(id).addEventListener("keydown", moveToken);
  $("earlier").addEventListener("click", () => select(at.token - 1));
  $("later").addEventListener("click", () => select(at.token + 1));
  $("typed").addEventListener("focus", () => setSampling(false));
  $("typed").addEventListener("input", typed);
  document.addEventListener("keydown", (event) => {
    if (event.target === document.body) moveToken(event);
    const isUndo = (event.ctrlKey || event.metaKey) && !event.altKey;
    const key = event.key.toLowerCase();
    if (!isUndo || !page.live || (key !== "z" && key !== "y")) return;
    event.preventDefault();
    if (key === "y" || event.shiftKey) goBack(page.future, page.past);
    else goBack(page.past, page.future);
  });
  $("sample-one").addEventListener("click", () => {
    setSampling(false);
    keepForUndo();
    const {live, without} = ages[page.moment];
    while (live.step() || without?.step());
    sampleNext();
  });
  $("sample-more").addEventListener("click", () => {
    if (!page.sampling) keepForUndo();
    setSampling(!page.sampling);
  });
  $("undo").addEventListener("click", () => goBack(page.past, page.future));
  $("reset").addEventListener("click", () => {
    keepForUndo();
    resetText();
    Object.assign(at, data.open);
  });
  $("candidates").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    setSampling(false);
    keepForUndo();
    continueWith(Number(button.dataset.id));
    page.roll = null;
  });
}

function listenToViews() {
  $("heads").addEventListener("keydown", moveHead);
  $("heads").addEventListener("click", (event) => {
    const cell = event.target.closest("[data-head]");
    if (cell) selectHead(Number(cell.dataset.layer), Number(cell.dataset.head));
  });
  document.addEventListener("click", (event) => {
    const name = event.target.closest?.("[data-off]")?.dataset.off;
    if (name) toggle(name);
  });
  $("map").addEventListener("pointermove", (event) => {
    page.hover = mapCell($("map"), event.offsetX, event.offsetY);
    drawMap(seenNow(), at, vocab, config, $("whole").checked, page.hover);
  });
  $("map").addEventListener("pointerleave", () => {
    page.hover = null;
    redraw();
  });
  $("map").addEventListener("click", (event) => {
    const cell = mapCell($("map"), event.offsetX, event.offsetY);
    if (cell) select(cell[0]);
  });
  $("whole").addEventListener("change", redraw);
  for (const id of ["temperature", "top-k", "top-p"]) $(id).addEventListener("input", redraw);
  $("votes-intro").addEventListener("change", () => {
    page.pair = [Number($("vote-first").value), Number($("vote-second").value)];
    redraw();
  });
  $("walk").addEventListener("toggle", redraw, true);
  new ResizeObserver(redraw).observe($("map"));
}

function listen() {
  listenToText();
  listenToViews();
  $("moment").addEventListener("input", () => {
    setSampling(false);
    setPlaying(false);
    setMoment(Number($("moment").value));
  });
  $("play").addEventListener("click", () => setPlaying(!page.playing));
  $("tour-buttons").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) discover(data.discoveries[Number(button.dataset.found)]);
  });
  $("theme").addEventListener("click", () => {
    page.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    setTheme(page.theme);
    remember();
  });
  $("copy").addEventListener("click", async () => {
    say($("copied"), await copyPicture(filmPicture(ages, page.prompt, vocab, nVocab, data.title)));
  });
}

/** Set the recorded text, token, head and step of a discovery, and say what it shows. */
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
  const age = ages[page.moment];
  if (page.live && page.moment === page.main) age.ablated ??= age.moment.ablated_loss;
  drawTop();
  drawBottom();
  showDiscovery(found, seenNow(), vocab, ages, seenAt);
}

// ---- start

/** The largest difference between two lists of numbers; NaN if one of them is not a number. */
function largestDifference(own, expected) {
  let largest = 0;
  own.forEach((value, i) => {
    const difference = Math.abs(value - expected[i]);
    if (!(difference <= largest)) largest = difference; // NaN too
  });
  return largest;
}

const pause = () => new Promise((resolve) => setTimeout(resolve));

/** Build the models, run each on the recorded text, and compare the logits with PyTorch's: all of
 *  the main one, those of the last token of the others. Returns the largest difference. The page
 *  shows recorded values meanwhile. */
async function startModels() {
  let largest = 0;
  const expected = new Float32Array(await unpack(data.logits));
  const mainFirst = [ages[data.main], ...ages.filter((_, i) => i !== data.main)];
  for (const age of mainFirst) {
    const {moment} = age;
    if (!moment.weights) continue;
    const model = await readModel(config, moment.weights);
    const live = new LiveText(model, nVocab);
    live.setIds(data.ids);
    for (let until = 0; live.step();) {
      if (performance.now() < until) continue;
      await pause();
      until = performance.now() + 50;
    }
    const last = new Float32Array(await unpack(moment.logits));
    const V = config.vocab_size;
    live.entries.forEach(({logits}, t) => {
      if (moment === data.moments[data.main]) {
        largest = Math.max(largest, largestDifference(logits, expected.subarray(t * V)));
      }
    });
    largest = Math.max(largest, largestDifference(live.entries.at(-1).logits, last));
    if (!(largest < TOLERANCE)) return largest;
    Object.assign(age, {model, live, film: new LiveText(model, nVocab)});
    age.film.setIds(page.prompt);
  }
  return largest;
}

function describe() {
  const facts = [
    `${config.n_layer} layers`,
    `${config.n_head} heads`,
    `${grouped(config.n_embd)} channels`,
    `context ${grouped(config.block_size)}`,
    `vocabulary ${grouped(nVocab)}`,
    `${grouped(data.parameters)} parameters`,
  ];
  if (data.val_loss !== null) facts.push(`validation loss ${fixed(data.val_loss)}`);
  facts.push(visible(data.name));
  say($("name"), visible(data.title).replaceAll("·", " "));
  document.title = visible(data.title).replaceAll("·", " ");
  say($("facts"), facts.join(" · "));
  const what = `It reads a text and predicts the next ${unit}, again and again.`;
  say($("lead"), data.why_not_live
    ? `${what} This page shows what it computed for one text: it does not run here, because `
      + `${data.why_not_live}.`
    : `${what} Type a line and press Play: see how well it predicts your line at each step of its `
      + "training.");
  for (const node of document.querySelectorAll(".unit")) node.textContent = unit;
}

function proofOf(difference) {
  if (data.why_not_live) {
    return `The model does not run in this page, because ${data.why_not_live}. All values were `
      + "computed by PyTorch.";
  }
  const shown = difference.toExponential(1);
  if (!(difference < TOLERANCE)) {
    return `The model does not run here: its logits would differ from PyTorch's by ${shown}. `
      + "This page shows recorded values.";
  }
  const {loss, exact_loss: exact} = data.moments[data.main];
  const snapshots = data.moments.filter(({weights}, i) => weights && i !== data.main);
  const most = Math.max(0, ...snapshots.map((m) => Math.abs(m.loss - m.exact_loss)));
  const others = snapshots.length === 0 ? ""
    : `; those of the snapshots, to 6 bits, changed it by at most ${fixed(most, 4)}`;
  const cost = loss === null ? "" : " Rounding changed the loss of the recorded text from "
    + `${fixed(exact, 4)} to ${fixed(loss, 4)} nats per ${unit}${others}.`;
  return `The model runs in this page, with weights rounded to 8 bits. Its logits differ by at most `
    + `${shown} from those of PyTorch with the same weights.${cost}`;
}

async function start() {
  const hash = readHash();
  if (hash.only) document.body.dataset.only = hash.only;
  describe();
  drawSurpriseLegend(nVocab);
  drawWeightLegends();
  const longest = Math.max(
    ...data.moments.flatMap((m) => m.top_ids?.flat() ?? []).map((id) => visible(vocab[id]).length));
  document.documentElement.style.setProperty("--token-width", `${Math.min(12, longest + 1)}ch`);
  if (longest > 1) document.documentElement.style.setProperty("--column-width", "52px");
  $("top-k").max = nVocab;
  $("top-k").value = Math.min(data.sampled.top_k ?? nVocab, nVocab);
  $("temperature").value = 1;
  $("top-p").value = 1;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  if (["dark", "light"].includes(hash.theme)) page.theme = hash.theme;
  setTheme(page.theme ?? (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  for (const age of ages) {
    if (age.moment.top_ids) age.entries = await readEntries(age.moment, config);
  }
  const canRun = !data.why_not_live;
  for (const id of ["editor", "sampling", "filters"]) $(id).hidden = !canRun;
  showAges();
  drawTop();
  drawBottom();
  if (canRun) {
    say($("proof"), "Starting the model …");
    page.difference = await startModels();
    page.live = page.difference < TOLERANCE;
  }
  say($("proof"), proofOf(page.difference));
  if (canRun && !page.live) ages = [ages[data.main]];
  if (page.live) ages[data.main].ablated = data.moments[data.main].ablated_loss;
  if (canRun && !page.live) Object.assign(page, {moment: 0, main: 0});
  for (const id of ["editor", "sampling", "filters"]) $(id).hidden = !page.live;
  document.body.classList.toggle("live", page.live);
  showAges();
  $("typed").value = decode(data.ids);
  drawTour(data.discoveries.filter(({moment}) => (moment ?? 0) < ages.length), ages);
  page.working = false;
  listen();
  applyHash(hash);
  startWork();
  redraw();
  new IntersectionObserver(scrollLens).observe($("lens-card"));
}

/** Show the slider, if there is more than one step, and the filmstrip. */
function showAges() {
  $("moment").max = ages.length - 1;
  $("moment").value = page.moment;
  $("training").hidden = ages.length === 1;
  drawTicks(ages);
  $("film").replaceChildren();
  $("film-card").hidden = !ages.some(({filmIds}) => filmIds.length);
}

start();
