// The page: its state, what is shown, and what is selected.
"use strict";

const data = JSON.parse($("data").textContent);
const {config, vocab, n_vocab: nVocab, unit} = data;
const idOf = new Map(Object.entries(vocab).map(([id, text]) => [text, Number(id)]));
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const recordedPrompt = data.ids.slice(0, data.prompt_length);

let ages = data.moments.map((moment) => new Age(moment, nVocab));
const at = {...data.open};
const page = {
  moment: data.main, // the number of the age that is shown
  main: data.main,
  live: false, // whether the main model runs here
  starting: !data.why_not_live, // whether models are still being built
  difference: 0, // the largest one from PyTorch's logits
  ids: data.ids, // the text
  promptLength: data.prompt_length, // so many tokens of it were written by the user
  prompt: recordedPrompt, // what each age continues in the filmstrip
  off: new Set(), // parts of the model that are switched off
  pair: null, // the two tokens of the votes, if they were chosen
  roll: null, // the roll of the die that chose the last token, if it was sampled
  branch: null, // the text that a branch has replaced
  hover: null, // the cell of the map under the pointer
  past: [], future: [], // texts, for undo and redo
  sampling: false, playing: false,
  working: false, changed: 0, isTyping: false, isStale: false, drawn: 0,
};

// ---- what is shown

/** The recorded text at one step of the training, as the views want it. */
function recorded({moment, entries = []}) {
  return {
    ids: data.ids, entries, plain: entries, before: [], promptLength: data.prompt_length,
    loss: moment.loss, plainLoss: moment.loss, ablated: moment.ablated_loss, cache: null,
    isLive: false,
  };
}

/** The text of the page at a step whose model computes it. */
function computed({live, without, ablated}) {
  const shown = without ?? live;
  return {
    ids: live.window, entries: shown.entries, plain: live.entries,
    before: live.ids.slice(0, live.start),
    promptLength: Math.max(0, page.promptLength - live.start),
    loss: shown.loss, plainLoss: live.loss, ablated, cache: shown.cache, isLive: true,
  };
}

/** The text of the page at a step whose model is still being built. */
function expected() {
  return {
    ...computed(ages[page.main]), // it will see the same tokens as the main model
    entries: [], plain: [], loss: null, plainLoss: null, ablated: null, cache: null,
  };
}

/** Whether the model of an age will run here, but has not computed the text yet. */
const isComing = ({live, moment}) => page.live && Boolean(moment.weights) && !live?.isDone;

function seenAt(moment) {
  const age = ages[moment];
  if (page.live && age.live) return computed(age);
  return isComing(age) ? expected() : recorded(age);
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
  const {ablationShare} = ages[page.moment];
  drawLens(seen, at, vocab, config);
  drawHeads(seen, at, vocab, config, page.off, ablationShare);
  drawMap(seen, at, vocab, config, $("whole").checked, page.hover);
  drawLooks(seen, at, vocab);
  drawVotes(seen, at, vocab, config, page.pair, page.off);
  drawWalk(seen, at, vocab, data, filters());
  scrollLens();
}

function drawFilters() {
  const {temperature, topK, topP} = filters();
  say($("temperature-value"), fixed(temperature));
  say($("top-k-value"), topK >= nVocab ? "all" : `${topK}`);
  say($("top-p-value"), fixed(topP));
  const isPlain = temperature === 1 && topK >= nVocab && topP === 1;
  const own = page.off.size ? "those without the parts that are off" : "the model's own";
  say($("filter-note"), isPlain ? `The sliders change nothing: the probabilities are ${own}.`
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
  let note = "";
  if (page.live && !seen.isLive) {
    note = "The weights of this step are not in the page, so it shows the recorded text.";
  } else if (page.live && !ages[page.moment].live) {
    note = "The model of this step is being built …";
  }
  say($("moment-note"), note);
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

// ---- events

function listenToViews() {
  for (const id of ["tokens", "looks-at", "lens"]) {
    $(id).addEventListener("click", (event) => {
      const cell = event.target.closest("[data-t]");
      if (cell) select(Number(cell.dataset.t));
    });
  }
  for (const id of ["tokens", "lens"]) $(id).addEventListener("keydown", moveToken);
  document.addEventListener("keydown", (event) => {
    if (event.target === document.body) moveToken(event);
  });
  $("earlier").addEventListener("click", () => select(at.token - 1));
  $("later").addEventListener("click", () => select(at.token + 1));
  $("heads").addEventListener("keydown", moveHead);
  $("heads").addEventListener("click", (event) => {
    const cell = event.target.closest("[data-head]");
    if (cell) selectHead(Number(cell.dataset.layer), Number(cell.dataset.head));
  });
  document.addEventListener("click", (event) => {
    const name = event.target.closest?.("[data-off]")?.dataset.off;
    if (name) toggle(name);
  });
  for (const id of ["temperature", "top-k", "top-p"]) $(id).addEventListener("input", redraw);
  $("votes-intro").addEventListener("change", () => {
    page.pair = [Number($("vote-first").value), Number($("vote-second").value)];
    redraw();
  });
  $("walk").addEventListener("toggle", redraw, true);
  $("tour-buttons").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) discover(data.discoveries[Number(button.dataset.found)]);
  });
}

function listenToMap() {
  const map = $("map");
  map.addEventListener("pointermove", (event) => {
    page.hover = mapCell(map, event.offsetX, event.offsetY);
    drawMap(seenNow(), at, vocab, config, $("whole").checked, page.hover);
  });
  map.addEventListener("pointerleave", () => {
    page.hover = null;
    redraw();
  });
  map.addEventListener("click", (event) => {
    const cell = mapCell(map, event.offsetX, event.offsetY);
    if (cell) select(cell[0]);
  });
  $("whole").addEventListener("change", redraw);
  new ResizeObserver(redraw).observe(map);
}
