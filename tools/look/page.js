// The page: what is shown, what is selected, and what happens when you type.
"use strict";

const TOLERANCE = 1e-3; // the largest difference from PyTorch's logits with which the model is used
const WORK_MS = 8; // time per frame for the model, so that typing and drawing never wait for it
const QUIET_MS = 300; // ablation begins when the text has not changed for that long

const data = JSON.parse($("data").textContent);
const {config, vocab, n_vocab: nVocab} = data;
const idOf = new Map(Object.entries(vocab).map(([id, text]) => [text, Number(id)]));
const moments = data.moments.map((moment) => ({
  ...moment,
  entries: null,
  loss: moment.loss,
  ablated: moment.ablated_loss,
}));

const at = firstSelection(moments[data.main]);
const page = {
  moment: data.main,
  live: null,
  ablated: null,
  ablating: null,
  changed: 0,
  sampling: false,
};

/** Where the page opens: the position after the prompt at which the model was most uncertain, and
 *  the head without which the loss would be highest. */
function firstSelection({entropy, ablated}) {
  const start = data.prompt_length - 1;
  const {n_head} = config,
    head = argmax((ablated ?? [[0]]).flat());
  return {
    token: start + argmax(entropy.slice(start)),
    layer: Math.floor(head / n_head),
    head: head % n_head,
  };
}

// ---- what is shown

/** The recorded text at one moment of training, as the views want it. */
function recorded(moment) {
  moment.entries ??= readEntries(moment, config);
  return {
    ids: data.ids,
    entries: moment.entries,
    forgotten: 0,
    promptLength: data.prompt_length,
    loss: moment.loss,
    ablated: moment.ablated,
  };
}

function seenLive() {
  const {live} = page,
    ids = live.window;
  const done = live.entries.length >= ids.length && ids.length > 1;
  const loss = done
    ? live.entries
        .slice(0, -1)
        .reduce((sum, entry, t) => sum - Math.log(entry.probs[ids[t + 1]]), 0) /
      (ids.length - 1)
    : null;
  const prompt = data.ids.slice(0, data.prompt_length).every((id, t) => live.ids[t] === id);
  return {
    ids,
    entries: live.entries,
    forgotten: live.start,
    loss,
    ablated: page.ablated,
    promptLength: prompt ? Math.max(0, data.prompt_length - live.start) : 0,
  };
}

function seenNow() {
  return page.live && page.moment === data.main ? seenLive() : recorded(moments[page.moment]);
}

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

function drawTop() {
  const seen = seenNow(),
    isLive = page.live !== null && page.moment === data.main;
  at.token = Math.max(0, Math.min(at.token, seen.ids.length - 1));
  const ink = getComputedStyle(document.documentElement)
    .getPropertyValue("--weight-rgb")
    .split(",")
    .map(Number);
  drawTokens(seen, at, vocab, nVocab);
  drawNext(seen, at, vocab, isLive);
  drawAttention(seen, at, vocab, config, ink);
  drawMoment(seen);
}

function drawBottom() {
  const seen = seenNow();
  drawAblation(seen, at, config, "It is computed while the page is idle.");
  drawLens(seen, at, vocab, config);
  drawStream(seen, at, vocab);
  drawWalk(seen, at, vocab, data);
  scrollLens();
}

function drawMoment(seen) {
  const {step} = moments[page.moment];
  const name = page.moment === data.main ? ", the model of this page" : "";
  const loss = seen.loss === null ? "" : `loss of this text ${fixed(seen.loss)}`;
  say($("moment-label"), `${step}${name}${loss && " · "}${loss}`);
  $("moment").setAttribute("aria-valuetext", `step ${step}${name}, ${loss}`);
}

// ---- work: the model computes a little in each frame

function work() {
  const {live} = page,
    end = performance.now() + WORK_MS;
  let isDrawn = true;
  while (performance.now() < end) {
    if (live.step()) {
      isDrawn = false;
    } else if (page.sampling) {
      append(sampleNext());
      isDrawn = false;
      break; // one token per frame, so that you can watch
    } else if (page.ablated || live.window.length < 2) {
      break;
    } else if (performance.now() < page.changed + QUIET_MS) {
      break;
    } else {
      page.ablating ??= ablation(live.model, live.window, nVocab);
      const {done, value} = page.ablating.next();
      if (done) {
        page.ablated = value;
        isDrawn = false;
      }
    }
  }
  if (!isDrawn) redraw();
  const idle = !page.sampling && (page.ablated || live.window.length < 2);
  if (!idle) requestAnimationFrame(work);
  page.working = !idle;
}

/** The text has changed: compute what is new. */
function changed() {
  page.ablated = page.ablating = null;
  page.changed = performance.now();
  page.moment = data.main;
  $("moment").value = page.moment;
  if (!page.working) {
    page.working = true;
    requestAnimationFrame(work);
  }
  redraw();
}

function append(id) {
  page.live.append(id);
  at.token = page.live.window.length - 1;
  $("typed").value += vocab[id];
  $("typed").scrollTop = $("typed").scrollHeight;
  changed();
}

function sampleNext() {
  const temperature = Math.max(0, Number($("temperature").value) || 0);
  const topK = Math.max(1, Number($("top-k").value) || nVocab);
  return draw(page.live.nextLogits(), temperature, topK, Math.random());
}

function setSampling(on) {
  page.sampling = on;
  $("sample-more").textContent = on ? "Stop" : "Keep sampling";
  if (on) changed();
}

// ---- events

function typed() {
  const chars = [...$("typed").value];
  const known = chars.filter((char) => idOf.has(char));
  const unknown = chars.find((char) => !idOf.has(char));
  say(
    $("unknown"),
    unknown === undefined
      ? ""
      : `The character ${visible(unknown)} is not among the ` +
          `${nVocab} of this model's vocabulary, so it is left out.`,
  );
  const caret = [...$("typed").value.slice(0, $("typed").selectionStart)].filter((c) =>
    idOf.has(c),
  );
  page.live.setIds(known.map((char) => idOf.get(char)));
  at.token = Math.max(0, caret.length - 1 - page.live.start);
  changed();
}

function select(t) {
  at.token = Math.max(0, Math.min(t, seenNow().ids.length - 1));
  redraw();
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
  at.layer = Math.max(0, Math.min(at.layer + layer, config.n_layer - 1));
  at.head = Math.max(0, Math.min(at.head + head, config.n_head - 1));
  redraw();
}

/** Continue the text after the selected token with this one. */
function continueWith(id) {
  const {live} = page;
  const kept = live.ids.slice(0, live.start + at.token + 1);
  live.setIds(kept);
  $("typed").value = kept.map((i) => vocab[i]).join("");
  append(id);
}

function resetText() {
  setSampling(false);
  page.live.setIds(data.ids);
  $("typed").value = data.ids.map((id) => vocab[id]).join("");
  say($("unknown"), "");
  Object.assign(at, firstSelection(moments[data.main]));
  changed();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
  redraw();
}

function listen() {
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
  for (const id of ["maps", "ablation"]) {
    $(id).addEventListener("keydown", moveHead);
    $(id).addEventListener("click", (event) => {
      const cell = event.target.closest("[data-head]");
      if (!cell) return;
      [at.layer, at.head] = [Number(cell.dataset.layer), Number(cell.dataset.head)];
      redraw();
    });
  }
  $("map").addEventListener("click", (event) => {
    const box = $("map").getBoundingClientRect();
    select(Math.floor(((event.clientY - box.top) / box.height) * seenNow().entries.length));
  });
  $("moment").addEventListener("input", () => {
    setSampling(false);
    page.moment = Number($("moment").value);
    redraw();
  });
  $("theme").addEventListener("click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  });
  $("candidates").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) continueWith(Number(button.dataset.id));
  });
  $("typed").addEventListener("input", typed);
  $("sample-one").addEventListener("click", () => append(sampleNext()));
  $("sample-more").addEventListener("click", () => setSampling(!page.sampling));
  $("reset").addEventListener("click", resetText);
}

// ---- start

/** Run the model on the recorded text; returns the largest difference from PyTorch's logits. */
function largestDifference(live) {
  const expected = new Float32Array(bytesOf(data.logits));
  live.setIds(data.ids);
  live.nextLogits();
  let largest = 0;
  live.entries.forEach(({logits}, t) =>
    logits.forEach((logit, i) => {
      const difference = Math.abs(logit - expected[t * config.vocab_size + i]);
      if (!(difference <= largest)) largest = difference; // NaN too
    }),
  );
  return largest;
}

function describe() {
  const count =
    data.parameters >= 1e6
      ? `${fixed(data.parameters / 1e6)}M`
      : data.parameters.toLocaleString("en");
  const facts = [
    `${config.n_layer} layers`,
    `${config.n_head} heads`,
    `${config.n_embd} channels`,
    `context ${config.block_size}`,
    `vocabulary ${nVocab.toLocaleString("en")}`,
    `${count} parameters`,
  ];
  if (data.val_loss !== null) facts.push(`validation loss ${fixed(data.val_loss)}`);
  say($("name"), visible(data.name));
  document.title = `Look inside ${visible(data.name)}`;
  say($("facts"), facts.join(" · "));
}

function start() {
  describe();
  listen();
  drawSurpriseLegend(nVocab);
  drawWeightLegends();
  const longest = Math.max(
    ...moments.flatMap((m) => m.top_ids.flat()).map((id) => visible(vocab[id]).length),
  );
  document.documentElement.style.setProperty("--token-width", `${Math.min(12, longest + 1)}ch`);
  if (longest > 1) document.documentElement.style.setProperty("--column-width", "52px");
  $("moment").max = moments.length - 1;
  $("moment").value = page.moment;
  $("training").hidden = moments.length === 1;
  $("ticks").replaceChildren(...moments.map(({step}) => element("span", {}, `${step}`)));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  let proof = "This page shows recorded values; the model does not run in it.";
  if (data.weights) {
    const live = new LiveText(new GPT(config, readWeights(data.shapes, data.weights)), nVocab);
    page.difference = largestDifference(live);
    const shown = page.difference.toExponential(1);
    proof =
      `The model does not run here: its logits would differ from PyTorch's by ${shown}. ` +
      "This page shows recorded values.";
    if (page.difference < TOLERANCE) {
      page.live = live;
      page.ablated = moments[data.main].ablated;
      proof = `The model runs in this page. Its logits differ from PyTorch's by at most ${shown}.`;
    }
  }
  say($("proof"), proof);
  const isLive = page.live !== null;
  $("editor").hidden = $("sampling").hidden = !isLive;
  if (isLive) {
    $("typed").value = data.ids.map((id) => vocab[id]).join("");
    $("temperature").value = data.sampled.temperature;
    $("top-k").value = Math.min(data.sampled.top_k ?? nVocab, nVocab);
    say($("moment-note"), "Earlier steps show the recorded text.");
  }
  drawTop();
  drawBottom();
  new IntersectionObserver(scrollLens).observe($("lens").closest(".card"));
}

start();
