"""pytest tests/test_look_page.py - the page of tools/look.py in a real browser, headless Chromium

Skipped if selenium, chromium or chromedriver is missing."""

import base64
import itertools
import json
import shutil
from dataclasses import asdict, replace

import look
import numpy as np
import pytest
import torch
from helpers import GPT2_TINY, MODERN_TINY, model_of, tokens

from internals import checkpoint, checks
from model import GPTConfig
from sample import Sampler, draw, make_cache, stream

webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
Keys = webdriver.Keys
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium, chromedriver")

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
# text that would be dangerous as HTML, that changes the reading direction, or that is invisible
HOSTILE = "</script><img src=x>&\"'\u202e\u05d0e\u0301😀\x00"
CHARS = "".join(sorted({*"\nabcdefghilmnoprstuvwy:ROMEJ", *HOSTILE}))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def write_run(folder, config, n_snapshots=2, **meta):
    """The folder of a run with a model of random weights, and snapshots of other weights."""
    meta = {"tokenizer": "char", "chars": CHARS} | meta
    config = replace(config, vocab_size=len(CHARS))
    for number in range(n_snapshots):
        checkpoint.write_snapshot(folder, 10 * number, model_of(config, seed=number, spread=0.1))
    model = model_of(config, seed=9, spread=0.3)
    checkpoint.write(checks.Checkpoint(
        model=model.state_dict(), model_args=asdict(config), meta=meta), folder / "ckpt.pt")
    return model


def open_page(browser, html):
    """Open an HTML file and wait for its first picture. What was logged before is dropped."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(html.as_uri())
    finish(browser)


def finish(browser):
    """Wait until the page has computed and drawn everything."""
    browser.execute_async_script("""
        const done = arguments[0];
        const busy = () => page.working || frames.top || frames.bottom;
        const wait = () => (busy() ? setTimeout(wait, 20) : done());
        wait();""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(the model as the page has it, the HTML file) for a run with two snapshots, in a folder with
    a hostile name."""
    folder = tmp_path_factory.mktemp("look") / "out <img src=x onerror=alert(1)>"
    model = write_run(folder, GPT2_TINY, tokenizer="char")
    look.main([f"--out_dir={folder}", "--start=ROMEO", "--device=cpu"])
    return look.build_model(model.state_dict(), model.config, torch.device("cpu"), rounded=True), \
        folder / "look.html"


@pytest.fixture
def opened(browser, site):
    open_page(browser, site[1])
    return browser


def text(browser, name):
    return browser.find_element("id", name).text


def set_text(browser, value):
    """Replace the text, as pasting does. (chromedriver cannot type emoji.)"""
    browser.execute_script("""
        $("typed").value = arguments[0];
        $("typed").setSelectionRange(arguments[0].length, arguments[0].length);
        $("typed").dispatchEvent(new Event("input"));""", value)
    finish(browser)


def logits_of(model, text):
    """PyTorch's logits (T, V) for a text."""
    ids = torch.tensor([CHARS.index(char) for char in text])[None]
    with torch.no_grad():
        return model(ids, ids)[0][0]


def computed(browser):
    """The logits that the page has computed for its text."""
    return torch.tensor(browser.execute_script(
        "return page.live.entries.map((entry) => Array.from(entry.logits))"))


# ---- the page


def test_the_page_opens_without_an_error_or_a_request(opened, site):
    assert opened.get_log("browser") == []
    messages = [json.loads(line["message"])["message"] for line in opened.get_log("performance")]
    requests = [message["params"]["request"]["url"] for message in messages
                if message["method"] == "Network.requestWillBeSent"]
    assert requests == [site[1].as_uri()]
    assert "The model runs in this page" in text(opened, "proof")


def test_hostile_text_is_shown_as_text(opened, site):
    """In the vocabulary, the text, and the name of the folder."""
    set_text(opened, HOSTILE)
    assert opened.execute_script("return document.querySelectorAll('img').length") == 0
    shown = opened.execute_script("return [...$('tokens').children].map((t) => t.textContent)")
    assert shown == [*"</script><img·src=x>&\"'", "[202E]",
                     "\u05d0", "e", "◌\u0301", "😀", "[0000]"]
    assert "<img src=x onerror=alert(1)>".replace(" ", "·") in text(opened, "name")
    assert opened.get_log("browser") == []


def test_views_follow_the_selected_token(opened):
    views = ("selection", "next-intro", "looks", "lens-reading", "stream-intro", "walk")
    before = {view: text(opened, view) for view in views}
    opened.find_element("id", "token-9").click()
    finish(opened)
    after = {view: text(opened, view) for view in views}
    assert all(before[view] != after[view] for view in views)
    opened.find_element("id", "tokens").send_keys(Keys.ARROW_RIGHT)
    finish(opened)
    selected = opened.find_elements("css selector", "#tokens [aria-selected=true]")
    assert [node.get_attribute("id") for node in selected] == ["token-10"]
    assert all(after[view] != text(opened, view) for view in views)


def test_a_head_is_selected_with_the_keyboard_in_both_grids(opened):
    opened.find_element("id", "maps").send_keys(Keys.ARROW_DOWN, *[Keys.ARROW_RIGHT] * 2)
    finish(opened)
    assert text(opened, "map-title") == "Layer 2, head 2"
    assert "Without head 2 of layer 2" in text(opened, "ablation-reading")
    opened.find_element("id", "ablation").send_keys(Keys.ARROW_UP)
    finish(opened)
    checked = opened.find_elements("css selector", "[aria-checked=true]")
    assert [node.get_attribute("id") for node in checked] == ["maps-0-1", "ablation-0-1"]


def test_the_slider_shows_the_text_at_each_snapshot(opened):
    labels, shades = [], []
    slider = opened.find_element("id", "moment")
    for key in Keys.HOME, Keys.ARROW_RIGHT:
        slider.send_keys(key)
        finish(opened)
        labels.append(text(opened, "moment-label"))
        shades.append(opened.find_element("id", "token-7").get_attribute("style"))
    losses = opened.execute_script("return data.moments.map((moment) => moment.loss)")
    assert labels[1] == f"10 · loss of this text {losses[1]:.2f}"
    assert labels[0] != labels[1] and shades[0] != shades[1]


def test_recorded_and_computed_values_are_equal(opened):
    """The values that PyTorch recorded, and those of the page's own model, in every view."""
    largest = opened.execute_script("""
        const recordedSeen = recorded(moments[data.main]), live = seenLive();
        const largest = {};
        const compare = (name, a, b) => {
          largest[name] = Math.max(largest[name] ?? 0, Math.abs(a - b));
        };
        recordedSeen.entries.forEach((entry, t) => {
          const own = live.entries[t];
          entry.attention.flat().forEach((row, i) => row.forEach(
            (weight, s) => compare("attention", weight, own.attention.flat()[i][s])));
          entry.sizes.flat().forEach((size, i) => compare("sizes", size, own.sizes.flat()[i]));
          entry.lens.forEach(([id, p], row) => compare("lens", p, own.lens[row][1]));
          entry.top.forEach(([id, p], i) => compare("top", p, own.top[i][1]));
          compare("entropy", entry.entropy, own.entropy);
          if (t + 1 < data.ids.length) {
            const came = own.chance(data.ids[t + 1]);
            compare("chance", entry.chance().p, came.p);
            compare("rank", entry.chance().rank, came.rank);
          }
        });
        compare("loss", recordedSeen.loss, live.loss);
        return largest;""")
    assert largest.pop("rank") == 0
    assert len(largest) == 7 and max(largest.values()) < 1e-4, largest


# ---- the model in the page


def test_typed_text_gets_pytorchs_logits_and_its_own_ablation(opened, site):
    model, _ = site
    box = opened.find_element("id", "typed")
    box.clear()
    box.send_keys("Jam on\ntoast", Keys.BACKSPACE, Keys.HOME, Keys.DELETE, "R")
    finish(opened)
    assert opened.execute_script("return $('typed').value") == "Jam on\nRoas"
    logits = logits_of(model, "Jam on\nRoas")
    torch.testing.assert_close(computed(opened), logits, rtol=0, atol=1e-4)
    idx = torch.tensor([CHARS.index(char) for char in "Jam on\nRoas"])[None]
    expected = look.ablation(model, idx, len(CHARS))
    ablated = torch.tensor(opened.execute_script("return page.ablated"))
    torch.testing.assert_close(ablated, expected, rtol=0, atol=1e-4)


def test_an_unknown_character_is_named_and_left_out(opened, site):
    set_text(opened, "RO€ME")
    assert "The character € is not among the" in text(opened, "unknown")
    torch.testing.assert_close(computed(opened), logits_of(site[0], "ROME"), rtol=0, atol=1e-4)
    set_text(opened, "")
    assert text(opened, "selection") == "The text is empty." and opened.get_log("browser") == []


def test_a_candidate_continues_the_text_after_the_selected_token(opened):
    opened.find_element("id", "tokens").send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    finish(opened)
    best = opened.execute_script("return vocab[page.live.entries[1].top[2][0]]")
    opened.find_elements("css selector", "#candidates button")[2].click()
    finish(opened)
    assert opened.execute_script("return $('typed').value") == "RO" + best
    opened.find_element("id", "sample-one").click()
    finish(opened)
    assert opened.execute_script("return page.live.ids.length") == 4
    opened.find_element("id", "reset").click()
    finish(opened)
    assert opened.execute_script("return page.live.ids.length") == 32


CHOICES = {"pos": ("learned", "rope"), "norm": ("layernorm", "rmsnorm"),
           "act": ("gelu_tanh", "gelu", "relu2"), "qk_norm": (False, True), "tied": (False, True),
           "softcap": (0.0, 3.0), "bias": (False, True)}


def payload(model):
    """What a page contains of a model; its weights must be rounded to float16."""
    stored = look.stored_weights(model.state_dict(), model.config)
    return {"config": asdict(model.config),
            "shapes": [[name, weight.numel()] for name, weight in stored.items()],
            "weights": look.packed(torch.cat([w.flatten() for w in stored.values()]), "<f2")}


def rounded_model(config, seed, spread=0.4):
    model = model_of(config, seed, spread)
    return look.build_model(model.state_dict(), config, torch.device("cpu"), rounded=True)


def test_the_page_computes_pytorchs_logits_for_all_settings_of_a_model(opened):
    shape = GPTConfig(block_size=12, vocab_size=11, n_layer=2, n_head=2, n_embd=8, norm_eps=1e-3,
                      attn_scale=1.5)
    settings = [dict(zip(CHOICES, values, strict=True))
                for values in itertools.product(*CHOICES.values())]
    configs = [replace(shape, **some, smear=some["bias"]) for some in settings]
    models = [rounded_model(config, seed) for seed, config in enumerate(configs)]
    idx = tokens(shape, 1, 12)
    results = opened.execute_script("""
        const [models, ids] = arguments;
        return models.map(({config, shapes, weights}) => {
          const live = new LiveText(new GPT(config, readWeights(shapes, weights)), 11);
          live.setIds(ids);
          live.nextLogits();
          return live.entries.map((entry) => Array.from(entry.logits));
        });""", [payload(model) for model in models], idx[0].tolist())
    assert len(results) == 192
    for config, model, result in zip(configs, models, results, strict=True):
        with torch.no_grad():
            expected = model(idx, idx)[0][0]
        difference = (torch.tensor(result) - expected).abs().max()
        assert difference < 1e-4, (config, difference)


@pytest.mark.parametrize("config", [GPT2_TINY, MODERN_TINY], ids=["gpt2", "modern"])
def test_greedy_text_past_the_context_is_that_of_sample_py(opened, config):
    """A full window is cut to its last half, so the text is recomputed from there."""
    model, prompt = rounded_model(config, 3, spread=0.1), tokens(config, 1, 7)
    new = stream(model, prompt, Sampler([0], 61, temperature=0), make_cache(model, 1))
    expected = [ids.item() for ids, _ in itertools.islice(new, 200)]
    result = opened.execute_script("""
        const [{config, shapes, weights}, prompt] = arguments;
        const live = new LiveText(new GPT(config, readWeights(shapes, weights)), 61);
        live.setIds(prompt);
        for (let i = 0; i < 200; i++) live.append(draw(live.nextLogits(), 0, 1, 0));
        return live.ids;""", payload(model), prompt[0].tolist())
    assert len(set(expected)) > 5  # else a constant would do
    assert result == prompt[0].tolist() + expected


def test_edited_text_is_computed_as_if_it_were_typed_at_once(opened, site):
    """Cut, insert, delete all, and go past the context of 32 tokens."""
    for value in ("ROMEO heard", "ROMEO", "ROMER heard", "", "e" * 40, "e" * 39, "ea" * 9):
        set_text(opened, value)
        start = opened.execute_script("return page.live.start")
        assert 0 <= len(value) - start <= 32
        expected = logits_of(site[0], value[start:]) if value else torch.tensor([])
        torch.testing.assert_close(computed(opened), expected, rtol=0, atol=1e-4)


def test_tokens_are_drawn_as_in_sample_py(opened):
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 3
    cases = list(itertools.product((0.0, 0.5, 1.5), (1, 5, 40), (0.0, 0.3, 0.7, 0.99)))
    expected = [draw(logits, torch.tensor([[uniform]]), temperature, top_k).item()
                for temperature, top_k, uniform in cases]
    result = opened.execute_script("""
        const [logits, cases] = arguments;
        return cases.map(([temperature, topK, uniform]) => (
          draw(new Float32Array(logits), temperature, topK, uniform)));""",
        logits[0].tolist(), cases)
    assert result == expected and len(set(expected)) > 4


def test_float16_and_erf_are_exact(opened):
    half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)]
    result = opened.execute_script("""
        const bits = new Uint16Array(bytesOf(arguments[0]));
        return [Array.from(fromFloat16(bits)), arguments[1].map(erf)];""",
        base64.b64encode(half.tobytes()).decode(), np.linspace(-7, 7, 141).tolist())
    assert np.array_equal(np.array(result[0], dtype=np.float16), half)
    expected = torch.linspace(-7, 7, 141, dtype=torch.float64).erf()
    torch.testing.assert_close(torch.tensor(result[1], dtype=torch.float64), expected,
                               rtol=0, atol=1e-12)


# ---- without the model


def test_a_page_without_the_model_shows_the_recorded_values(browser, site, tmp_path, monkeypatch):
    monkeypatch.setattr(look, "MAX_PARAMETERS", 0)
    look.main([f"--out_dir={site[1].parent}", "--start=ROMEO", f"--out={tmp_path / 'x.html'}"])
    open_page(browser, tmp_path / "x.html")
    assert "the model does not run in it" in text(browser, "proof")
    assert not browser.find_element("id", "typed").is_displayed()
    browser.find_element("id", "token-8").click()
    finish(browser)
    assert "token 9 of 32" in text(browser, "selection")
    assert text(browser, "ablation-reading").startswith("Without head 1 of layer 1, the loss")
    assert browser.get_log("browser") == []


def test_a_model_that_differs_from_pytorch_is_not_used(browser, site, tmp_path):
    html = site[1].read_text(encoding="utf-8")
    broken = html.replace("Math.sqrt(variance + this.eps)", "Math.sqrt(variance + 0.3)")
    assert broken != html
    (tmp_path / "x.html").write_text(broken, encoding="utf-8")
    open_page(browser, tmp_path / "x.html")
    assert "its logits would differ from PyTorch's" in text(browser, "proof")
    assert not browser.find_element("id", "typed").is_displayed()
    assert browser.find_element("id", "token-8").is_displayed()
