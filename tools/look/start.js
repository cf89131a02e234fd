// The start: what the page says about itself, and the order in which its parts begin.
"use strict";

/** What the visitor can do on this page. */
function invitation() {
  if (data.why_not_live) {
    return `This page shows what it computed for one text: it does not run here, because `
      + `${data.why_not_live}.`;
  }
  const snapshots = data.moments.filter((_, i) => i !== data.main);
  if (snapshots.length === 0) return `Type a line, and see which ${unit}s it expected.`;
  if (!snapshots[0].weights) {
    return `Type a line, and see which ${unit}s it expected. Press Play to see how well it `
      + "predicted the recorded text at each step of its training.";
  }
  return "Type a line and press Play training: see how well it predicts your line at each step of its "
    + "training.";
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
  const title = visible(data.title).replaceAll("·", " ");
  say($("name"), title);
  document.title = title;
  say($("facts"), facts.join(" · "));
  say($("lead"), `It reads a text and predicts the next ${unit}, again and again. ${invitation()}`);
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
  return "The model runs in this page, with weights rounded to 8 bits. Its logits differ by at "
    + `most ${shown} from those of PyTorch with the same weights.${cost}`;
}

/** Whether the model runs here: show what only then has a use, or hide it. */
function setLive(isLive) {
  page.live = isLive;
  document.body.classList.toggle("live", isLive);
  for (const id of ["editor", "sampling", "filters"]) $(id).hidden = !isLive;
}

function goLive() {
  setLive(true);
  $("typed").value = decode(data.ids);
  applyHash(readHash());
}

/** Show only the recorded values of the main model. */
function stopModels() {
  setSampling(false);
  setLive(false);
  const only = new Age(data.moments[data.main], nVocab);
  only.entries = ages[page.main].entries;
  ages = [only];
  data.discoveries = data.discoveries.filter(({moment}) => moment === undefined);
  Object.assign(page, {moment: 0, main: 0, ids: data.ids});
  showAges();
  redraw();
}

/** Set what does not change later: the sizes of tokens, and the limits of the controls. */
function prepare() {
  const names = data.moments.flatMap((moment) => moment.top_ids?.flat() ?? []);
  const longest = Math.max(...names.map((id) => visible(vocab[id]).length));
  const style = document.documentElement.style;
  style.setProperty("--token-width", `${Math.min(12, longest + 1)}ch`);
  if (longest > 1) style.setProperty("--column-width", "52px");
  $("top-k").max = nVocab;
  $("top-k").value = nVocab;
  $("temperature").value = 1;
  $("top-p").value = 1;
  drawSurpriseLegend(nVocab);
  drawWeightLegends();
}

function chooseTheme(theme) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  if (["dark", "light"].includes(theme)) page.theme = theme;
  const follow = () => setTheme(page.theme ?? (dark.matches ? "dark" : "light"));
  follow();
  dark.addEventListener("change", follow);
  matchMedia("(forced-colors: active)").addEventListener("change", follow);
}

/** Show the slider and the filmstrip, if there is more than one step. */
function showAges() {
  $("moment").max = ages.length - 1;
  $("moment").value = page.moment;
  for (const id of ["training", "film-card", "copy"]) $(id).hidden = ages.length === 1;
  drawTicks(ages);
  $("film").replaceChildren();
  if (ages.length === 1) $("text-card").after($("votes-card")); // fills the left column
}

async function start() {
  const hash = readHash();
  if (hash.only) document.body.dataset.only = hash.only;
  describe();
  prepare();
  chooseTheme(hash.theme);
  setLive(false);
  for (const age of ages) {
    if (age.moment.top_ids) age.entries = await readEntries(age.moment, config);
  }
  showAges();
  drawTour(data.discoveries, ages);
  drawTop();
  drawBottom();
  listenToViews();
  listenToMap();
  listenToText();
  listenToTime();
  listenToSharing();
  if (page.starting) await startModels();
  else applyHash(hash);
  page.starting = false;
  say($("proof"), proofOf(page.difference));
  drawTour(data.discoveries, ages);
  new IntersectionObserver(scrollLens).observe($("lens-card"));
}

start();
