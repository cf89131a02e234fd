// Sharing: the state of the page in its address, and a picture of the filmstrip.
"use strict";

/** The state in the address: {text, prompt, token, head, step, off, theme, only}, all strings. */
function readHash() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

/** Write the state into the address without a new entry in the history. */
function writeHash(state) {
  const known = Object.entries(state).filter(([, value]) => value !== null && value !== "");
  const hash = new URLSearchParams(known.map(([name, value]) => [name, String(value)])).toString();
  try {
    history.replaceState(null, "", `#${hash}`);
  } catch {
    // the browser allows only some changes of the address per second: the next one will do
  }
}

/** A picture of the filmstrip, a canvas: the title, and a row per age. */
function filmPicture(ages, prompt, vocab, nVocab, title) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const text = visible(prompt.map((id) => vocab[id]).join("")).slice(-16);
  const size = 17;
  const line = 30;
  const ratio = 2;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const mono = `${size}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace`;
  context.font = mono;
  const cell = context.measureText("m").width + 0.5;
  const left = 128;
  const start = left + (text.length + 1) * cell;
  const longest = Math.max(...ages.map(({filmIds}) => filmIds.length));
  const width = Math.max(640, start + longest * cell + 24);
  const height = 74 + ages.length * line + 44;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  context.scale(ratio, ratio);
  context.fillStyle = color("--card");
  context.fillRect(0, 0, width, height);
  context.fillStyle = color("--ink");
  context.font = "600 18px system-ui, sans-serif";
  context.fillText(title, 24, 38, width - 48);
  context.textBaseline = "middle";
  ages.forEach(({step, filmIds, filmProbs}, row) => {
    const y = 74 + row * line;
    context.font = "14px system-ui, sans-serif";
    context.fillStyle = color("--muted");
    context.fillText(`step ${grouped(step)}`, 24, y);
    context.font = mono;
    context.fillText(text, left, y);
    filmIds.forEach((id, i) => {
      const x = start + i * cell;
      context.globalAlpha = surpriseShade(filmProbs[i], nVocab);
      context.fillStyle = color("--surprise");
      context.fillRect(x, y - line / 2 + 2, cell - 0.5, line - 4);
      context.globalAlpha = 1;
      context.fillStyle = color("--ink");
      context.fillText([...visible(vocab[id])].slice(0, 1).join(""), x, y, cell);
    });
  });
  context.font = "13px system-ui, sans-serif";
  context.fillStyle = color("--muted");
  context.fillText("One prompt, continued by every age of the model. Orange: the model was "
    + "surprised by its own choice.", 24, height - 26, width - 48);
  return canvas;
}

/** Copy a picture, or save it as a file where the browser does not let a page copy one. Returns
 *  what has happened, in words. */
async function copyPicture(canvas) {
  const blob = await new Promise((resolve) => canvas.toBlob(resolve));
  try {
    await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
    return "Copied.";
  } catch {
    const link = element("a", {href: URL.createObjectURL(blob), download: "filmstrip.png"});
    link.click();
    return "Saved as filmstrip.png.";
  }
}

// ---- the state of the page

/** Write what is shown into the address, a moment later. */
function remember() {
  clearTimeout(page.writing);
  page.writing = setTimeout(() => {
    const isOwn = page.live && decode(page.ids) !== decode(data.ids);
    writeHash({
      text: isOwn ? decode(page.ids) : null,
      prompt: isOwn ? page.promptLength : null,
      token: at.token + windowStart(),
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
  if (page.live && hash.text !== undefined) {
    const [ids] = encode(hash.text);
    const promptLength = Math.max(0, Math.min(Number(hash.prompt) || ids.length, ids.length));
    showText({ids, promptLength, branch: null, token: ids.length - 1});
  }
  const token = Number(hash.token);
  if (hash.token && token >= 0) select(token - windowStart());
  const [layer, head] = (hash.head ?? "").split(".").map(Number);
  if (layer >= 0 && head >= 0) selectHead(layer, head);
  for (const name of (hash.off ?? "").match(/\d+\.\d+/g) ?? []) {
    const [inLayer, part] = name.split(".").map(Number);
    const exists = inLayer < config.n_layer && part <= config.n_head;
    if (page.live && exists) toggle(`${inLayer}.${part}`);
  }
  const moment = ages.findIndex(({step}) => `${step}` === hash.step);
  if (moment >= 0) setMoment(moment);
}

function setTheme(theme) {
  colors.clear();
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
  redraw();
}

function listenToSharing() {
  $("theme").addEventListener("click", () => {
    page.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    setTheme(page.theme);
    remember();
  });
  $("copy").addEventListener("click", async () => {
    say($("copied"), await copyPicture(filmPicture(ages, page.prompt, vocab, nVocab, data.title)));
  });
  let onScreen;
  addEventListener("beforeprint", () => {
    onScreen = document.documentElement.dataset.theme;
    setTheme("light"); // paper is light
    drawBottom();
  });
  addEventListener("afterprint", () => setTheme(onScreen));
}
