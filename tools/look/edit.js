// The text: typing, sampling, branches, undo.
"use strict";

/** The number of tokens before those that the model sees. */
const windowStart = () => seenNow().before.length;

/** Show another text. token: the selection, counted from the beginning of the text. */
function setText(ids, promptLength, token) {
  page.ids = ids;
  page.promptLength = promptLength;
  page.roll = null; // it chose a token of the old text
  for (const age of ages) age.setIds(ids);
  at.token = Math.max(0, token - windowStart());
  page.changed = performance.now();
  page.hover = null;
  startWork();
  redraw();
  remember();
}

const sameIds = (ids, others) => (
  ids.length === others.length && ids.every((id, i) => id === others[i]));

/** Continue another prompt in the filmstrip, if it is one. */
function setPrompt(ids) {
  if (sameIds(ids, page.prompt)) return;
  page.prompt = ids;
  for (const age of ages) age.setPrompt(ids, sameIds(ids, recordedPrompt));
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
  setSampling(false);
  if (!continuesWord(event)) keepForUndo();
  page.isTyping = true;
  page.inputType = event.inputType;
  page.branch = null;
  const [ids, unknown] = encode(box.value);
  const names = unknown.slice(0, 10).map(visible).join(" ");
  const isOne = unknown.length === 1;
  say($("unknown"), unknown.length === 0 ? ""
    : `Left out, because ${isOne ? "it is" : "they are"} not among the ${grouped(nVocab)} `
      + `characters of this model: ${names}${unknown.length > 10 ? " …" : ""}`);
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

function sampleOne() {
  setSampling(false);
  keepForUndo();
  const {live, without} = ages[page.moment];
  while (live?.step() || without?.step());
  sampleNext();
}

function setSampling(on) {
  page.sampling = on;
  $("sample-more").textContent = on ? "Stop" : "Keep sampling";
  $("selection").setAttribute("aria-live", on ? "off" : "polite");
  if (on) startWork();
}

// ---- undo

const snapshotOfText = () => ({
  ids: page.ids, promptLength: page.promptLength, branch: page.branch,
  token: at.token + windowStart(),
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
  to.push(snapshotOfText());
  showText(text);
}

/** Show a text that was not typed. */
function showText({ids, promptLength, branch, token}) {
  setSampling(false);
  page.isTyping = false;
  page.branch = branch;
  $("typed").value = decode(ids);
  say($("unknown"));
  setText(ids, promptLength, token);
  setPrompt(ids.slice(0, promptLength));
}

function resetText() {
  const {ids, prompt_length: promptLength} = data;
  showText({ids, promptLength, branch: null, token: data.open.token});
}

// ---- events

function undoWithKeys(event) {
  const key = event.key.toLowerCase();
  const isControl = (event.ctrlKey || event.metaKey) && !event.altKey;
  if (!isControl || !page.live || (key !== "z" && key !== "y")) return;
  event.preventDefault();
  if (key === "y" || event.shiftKey) goBack(page.future, page.past);
  else goBack(page.past, page.future);
}

function listenToText() {
  document.addEventListener("keydown", undoWithKeys);
  $("typed").addEventListener("focus", () => setSampling(false));
  $("typed").addEventListener("input", typed);
  $("sample-one").addEventListener("click", sampleOne);
  $("sample-more").addEventListener("click", () => {
    if (!page.sampling) keepForUndo();
    setSampling(!page.sampling);
  });
  $("undo").addEventListener("click", () => goBack(page.past, page.future));
  $("reset").addEventListener("click", () => {
    keepForUndo();
    resetText();
    selectHead(data.open.layer, data.open.head);
  });
  $("candidates").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    setSampling(false);
    keepForUndo();
    continueWith(Number(button.dataset.id));
  });
}
