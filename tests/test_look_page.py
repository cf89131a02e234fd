"""pytest tests/test_look_page.py - the page of tools/look.py in a real browser, headless Chromium

Skipped if selenium, chromium or chromedriver is missing."""

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
from prepare import tokenizer_from_meta
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
MINUS = "\u2212"
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


def write_page(folder, out, n_snapshots=2, config=GPT2_TINY):
    """The page of a model of random weights at step 30, and of snapshots of other weights at steps
    0, 10, ...; returns the model. folder: of the run."""
    config = replace(config, vocab_size=len(CHARS))
    for number in range(n_snapshots):
        checkpoint.write_snapshot(folder, 10 * number, model_of(config, seed=number, spread=0.1))
    model = model_of(config, seed=9, spread=0.3)
    meta = {"tokenizer": "char", "chars": CHARS, "vocab_size": len(CHARS), "source": folder.name}
    start = checks.Checkpoint(model.state_dict(), asdict(config), meta, step=30)
    cfg = look.LookConfig(out_dir=str(folder), device="cpu")
    data = look.look(start, tokenizer_from_meta(meta), "ROMEO", cfg)
    out.write_text(look.page(data), encoding="utf-8")
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


def rounded(model, levels=127):
    """The model as a page has it."""
    return look.build_model(model.state_dict(), model.config, torch.device("cpu"), levels)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(the model as the page has it, the HTML file) for a run with two snapshots, in a folder with
    a hostile name."""
    folder = tmp_path_factory.mktemp("look") / "out <img src=x onerror=alert(1)>"
    folder.mkdir()
    model = write_page(folder, folder / "look.html")
    return rounded(model), folder / "look.html"


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
    return torch.tensor(browser.execute_script("""
        return ages[page.moment].live.entries.map((entry) => Array.from(entry.logits));"""))


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
    assert "<img src=x onerror=alert(1)>" in text(opened, "name")
    assert "<img·src=x·onerror=alert(1)>" in text(opened, "facts")
    assert opened.get_log("browser") == []


def test_views_follow_the_selected_token(opened):
    views = ("selection", "next-intro", "looks", "lens-reading", "votes-sum", "map-reading", "walk")
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


def test_a_head_is_selected_with_the_keyboard(opened):
    opened.execute_script("selectHead(0, 0)")
    opened.find_element("id", "heads").send_keys(Keys.ARROW_DOWN, *[Keys.ARROW_RIGHT] * 2)
    finish(opened)
    assert text(opened, "map-title").startswith("Layer 2, head 2")
    assert "without head 2 of layer 2" in text(opened, "ablation-reading")
    opened.find_element("id", "heads").send_keys(Keys.ARROW_UP)
    finish(opened)
    checked = opened.find_elements("css selector", "[aria-checked=true]")
    assert [node.get_attribute("id") for node in checked] == ["head-0-1"]
    others = opened.find_elements("css selector", "[role=radio][aria-checked=false]")
    assert len(others) == 5  # axe-core: a radio button says whether it is checked


def test_recorded_and_computed_values_are_equal(opened):
    """The values that PyTorch recorded, and those of the page's own model, in every view."""
    largest = opened.execute_script("""
        const age = ages[page.main];
        const recordedSeen = recorded(age), live = seenLive(age);
        const largest = {};
        const compare = (name, a, b) => {
          largest[name] = Math.max(largest[name] ?? 0, Math.abs(a - b));
        };
        recordedSeen.entries.forEach((entry, t) => {
          const own = live.entries[t];
          entry.attention.flat().forEach((row, i) => row.forEach(
            (weight, s) => compare("attention", weight, own.attention.flat()[i][s])));
          entry.lens.forEach(([id, p], row) => compare("lens", p, own.lens[row][1]));
          entry.top.forEach(([id, p], i) => compare("top", p, own.top[i][1]));
          compare("entropy", entry.entropy, own.entropy);
          const [[first], [second]] = entry.top;
          votesOf(own.model, own, first, second).forEach(
            (vote, i) => compare("votes", vote, entry.votes[i]));
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


# ---- training time


def test_the_slider_shows_typed_text_at_each_step_as_pytorch_computes_it(opened, site):
    """Every age of the model has the weights of its snapshot, rounded to 6 bits."""
    set_text(opened, "heard some")
    slider = opened.find_element("id", "moment")
    slider.send_keys(Keys.HOME)
    for number in range(2):
        finish(opened)
        model = model_of(replace(GPT2_TINY, vocab_size=len(CHARS)), seed=number, spread=0.1)
        expected = logits_of(rounded(model, 31), "heard some")
        torch.testing.assert_close(computed(opened), expected, rtol=0, atol=1e-4)
        idx = [CHARS.index(char) for char in "heard some"]
        loss = torch.nn.functional.cross_entropy(expected[:-1], torch.tensor(idx[1:]))
        assert text(opened, "moment-label") == f"step {10 * number} · loss of this text {loss:.2f}"
        slider.send_keys(Keys.ARROW_RIGHT)


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
    ablated = torch.tensor(opened.execute_script("return ages[page.moment].ablated"))
    torch.testing.assert_close(ablated, expected, rtol=0, atol=1e-4)


def test_all_unknown_characters_are_named_and_left_out(opened, site):
    set_text(opened, "R€OM€E€\u00e5")
    assert "not among the" in text(opened, "unknown")
    assert text(opened, "unknown").endswith(": € \u00e5")
    torch.testing.assert_close(computed(opened), logits_of(site[0], "ROME"), rtol=0, atol=1e-4)


def click(browser, name):
    browser.execute_script("$(arguments[0]).click()", name)
    finish(browser)


def value(browser):
    return browser.execute_script("return $('typed').value")


def test_an_empty_text_leaves_the_page_working(opened, site):
    """Cleared while it samples: nothing is left to sample after, and typing works again."""
    opened.execute_script("$('sample-more').click()")
    set_text(opened, "")
    assert text(opened, "selection").startswith("The text is empty")
    assert not opened.find_element("id", "sample-one").is_enabled()
    assert opened.execute_script("return [page.sampling, page.working]") == [False, False]
    set_text(opened, "ROME")
    torch.testing.assert_close(computed(opened), logits_of(site[0], "ROME"), rtol=0, atol=1e-4)
    assert opened.get_log("browser") == []


def test_a_branch_starts_after_the_selected_token_and_undo_brings_the_rest_back(opened):
    """With a click on a candidate and with Sample, and with the keyboard."""
    set_text(opened, "ROMEO heard")
    opened.find_element("id", "tokens").send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    finish(opened)
    best = opened.execute_script("return vocab[seenNow().entries[1].top[2][0]]")
    opened.find_elements("css selector", "#candidates button")[2].click()
    finish(opened)
    assert value(opened) == "RO" + best
    assert "MEO·heard" in text(opened, "branch")
    click(opened, "undo")
    assert value(opened) == "ROMEO heard" and not opened.find_element("id", "branch").is_displayed()
    click(opened, "sample-one")
    assert value(opened)[:2] == "RO" and len(value(opened)) == 3
    opened.find_element("id", "typed").send_keys(Keys.CONTROL, "z")
    finish(opened)
    assert value(opened) == "ROMEO heard"
    opened.find_element("id", "typed").send_keys(Keys.CONTROL, "y")
    finish(opened)
    assert len(value(opened)) == 3
    click(opened, "reset")
    assert opened.execute_script("return page.ids.length") == 32


def test_typing_stops_the_sampling_and_stays_where_it_is_typed(opened):
    set_text(opened, "ROMEO")
    opened.execute_script("$('sample-more').click()")
    live = opened.execute_script("""
        const loud = (node) => node.getAttribute("aria-live") !== "off";
        return [loud($("selection")), ...[...document.querySelectorAll("output")].map(loud)];""")
    assert not any(live)  # a screen reader would speak at each sampled token
    opened.execute_script("""
        $('typed').focus();
        $('typed').setSelectionRange(0, 0);""")
    opened.switch_to.active_element.send_keys("abc")
    finish(opened)
    assert value(opened).startswith("abcROMEO")
    assert not opened.execute_script("return page.sampling")


def test_text_is_the_users_unless_the_model_has_sampled_it(opened):
    """Nothing that is typed is said to be sampled."""
    assert opened.find_element("id", "prompt-note").is_displayed()
    assert len(opened.find_elements("css selector", "#tokens .prompt")) == 5
    set_text(opened, "ROMEO heard")
    assert not opened.find_element("id", "prompt-note").is_displayed()
    click(opened, "sample-one")
    assert len(opened.find_elements("css selector", "#tokens .prompt")) == 11
    assert opened.find_element("id", "prompt-note").is_displayed()


def test_text_beyond_the_context_stays_in_sight(opened):
    set_text(opened, "ROMEO heard " * 4)
    assert opened.execute_script("return $('tokens').textContent") == "ROMEO·heard·" * 4


def set_filter(browser, name, number):
    browser.execute_script("""
        $(arguments[0]).value = arguments[1];
        $(arguments[0]).dispatchEvent(new Event("input"));""", name, number)
    finish(browser)


def test_temperature_top_k_and_top_p_reshape_the_bars(opened, site):
    set_text(opened, "ROMEO")
    logits = logits_of(site[0], "ROMEO")[-1:]
    set_filter(opened, "temperature", 0.5)
    set_filter(opened, "top-k", 4)
    expected = (logits / 0.5).topk(4).values.softmax(dim=-1)[0].tolist()
    rows = opened.find_elements("css selector", "#candidates .value")
    assert [row.text for row in rows] == [
        opened.execute_script("return percent(arguments[0])", p) for p in expected] + ["cut"] * 6
    assert len(opened.find_elements("css selector", "#candidates .is-cut")) == 6
    assert "divided by the temperature, 0.5" in text(opened, "walk")
    set_filter(opened, "top-p", 0.05)
    assert opened.find_element("css selector", "#candidates .value").text == "100%"
    click(opened, "sample-one")  # only one token is left
    best = CHARS[logits.argmax()]
    assert value(opened) == "ROMEO" + best
    assert "The die rolled" in text(opened, "roll-text")
    for name, number in (("temperature", 1), ("top-k", len(CHARS)), ("top-p", 1)):
        set_filter(opened, name, number)


def test_a_part_that_is_switched_off_changes_the_probabilities_as_in_pytorch(opened, site):
    model = site[0]
    set_text(opened, "ROMEO heard")
    opened.execute_script("selectHead(1, 0)")
    finish(opened)
    opened.find_element("css selector", "#switches [data-off='1.0']").click()
    finish(opened)
    opened.execute_script("toggle('2.2')")  # the MLP of layer 3
    finish(opened)
    assert "Switched off: head 1 of layer 2, MLP of layer 3" in text(opened, "off-note")
    model.transformer.h[1].attn.attend.off = 0
    hook = model.transformer.h[2].mlp.register_forward_hook(look.zeros_instead)
    expected = logits_of(model, "ROMEO heard")
    hook.remove()
    model.transformer.h[1].attn.attend.off = None
    shown = opened.execute_script("return seenNow().entries.map((e) => Array.from(e.logits))")
    torch.testing.assert_close(torch.tensor(shown), expected, rtol=0, atol=1e-4)
    opened.find_element("css selector", "#off-note button").click()
    finish(opened)
    torch.testing.assert_close(computed(opened), logits_of(model, "ROMEO heard"), rtol=0, atol=1e-4)
    assert text(opened, "off-note") == ""


def test_undo_and_redo_keep_text_and_prompt(opened):
    """A word is one step."""
    box = opened.find_element("id", "typed")
    first = value(opened)
    box.send_keys("abc")
    finish(opened)
    click(opened, "undo")
    assert value(opened) == first
    assert len(opened.find_elements("css selector", "#tokens .prompt")) == 5


# ---- guides


def test_each_discovery_shows_its_place_and_says_what_is_seen(opened):
    found = opened.execute_script("return data.discoveries")
    kinds = [each["kind"] for each in found]
    assert len(set(kinds)) == 3 and "time" in kinds
    set_text(opened, "heard")
    for number, each in enumerate(found):
        opened.find_elements("css selector", "#tour-buttons button")[number].click()
        finish(opened)
        state = opened.execute_script("return [at.token, at.layer, at.head, page.moment]")
        assert state == [each["token"], each["layer"], each["head"],
                         each.get("moment", opened.execute_script("return page.main"))]
        assert len(opened.execute_script("return page.ids")) == 32
        assert len(text(opened, "tour-text")) > 40
        assert len(opened.find_elements("css selector", ".card.found")) == 1
    number = kinds.index("time")
    opened.find_elements("css selector", "#tour-buttons button")[number].click()
    finish(opened)
    probs = opened.execute_script("""
        const t = arguments[0] - 1;
        return [1, 0].map((back) => percent(seenAt(page.moment - back).entries[t].chance(
          data.ids[t + 1]).p));""", found[number]["token"])
    assert f"had {probs[0]}; at step" in text(opened, "tour-text")
    assert f"it has {probs[1]}." in text(opened, "tour-text")


def test_play_shows_each_step_of_the_training_and_stops_at_the_last(opened):
    opened.execute_script("""
        globalThis.shown = [];
        globalThis.setTimeout = ((set) => (f, ms) => set(f, Math.min(ms ?? 0, 5)))(setTimeout);
        const show = setMoment;
        setMoment = (moment) => { shown.push(moment); show(moment); };
        $('play').click();""")
    opened.execute_async_script("""
        const done = arguments[0];
        const wait = () => (page.playing ? setTimeout(wait, 5) : done());
        wait();""")
    assert opened.execute_script("return shown") == [0, 1, 2]
    assert "Play" in text(opened, "play")


def test_the_address_restores_what_was_shown(browser, site):
    open_page(browser, site[1])
    set_text(browser, "ROMEO heard & so")
    browser.execute_script("""
        select(3); selectHead(1, 1); setMoment(1); toggle("0.1"); $("theme").click();""")
    browser.execute_async_script("setTimeout(arguments[0], 400)")
    finish(browser)
    address = browser.current_url
    theme = browser.execute_script("return document.documentElement.dataset.theme")
    browser.get("about:blank")
    browser.get(address)
    finish(browser)
    assert value(browser) == "ROMEO heard & so"
    state = browser.execute_script("""
        return [at.token, at.layer, at.head, page.moment, [...page.off],
                document.documentElement.dataset.theme];""")
    assert state == [3, 1, 1, 1, ["0.1"], theme]
    browser.get(site[1].as_uri() + "#text=%E2%82%AC&token=99&head=7.x&step=3&off=9.9+a")
    browser.refresh()  # what is wrong in an address is ignored
    finish(browser)
    assert value(browser) == "" and browser.get_log("browser") == []


def test_a_picture_of_the_filmstrip_is_drawn(opened):
    """It has the colors of the rows: full at step 0, less later."""
    width, height, colors = opened.execute_script("""
        const canvas = filmPicture(ages, page.prompt, vocab, nVocab, data.title);
        const {data: pixels} = canvas.getContext("2d").getImageData(
          0, 0, canvas.width, canvas.height);
        return [canvas.width, canvas.height, new Set(new Uint32Array(pixels.buffer)).size];""")
    assert width > 1200 and height > 300 and colors > 20


# ---- attention


def test_heads_are_named_by_what_they_look_at(opened):
    """In a text of 8 tokens, a head that gives 80% of its weight to a target, the rest evenly."""
    names = opened.execute_script("""
        const text = [...'ab\\ncabab'].map((char) => idOf.get(char));
        const rows = (target) => text.map((_, t) => {
          const even = Array.from({length: t + 1}, () => 0.2 / (t + 1));
          even[target(t)] += 0.8;
          return even;
        });
        return [(t) => Math.max(0, t - 1), (t) => t, () => 0, (t) => (t > 2 ? 2 : t)]
          .map((target) => headLabel(text, rows(target), vocab))
          .concat([headLabel(text, text.map((_, t) => Array(t + 1).fill(1 / (t + 1))), vocab)]);""")
    assert [name for name, _ in names] == [
        "previous character", "itself", "first character", "line breaks",
        "spread over 5 characters"]
    assert all(0.8 < share < 0.9 for _, share in names[:4])


def test_the_pointer_reads_the_map(opened, site):
    """The cell of token 5 looking at token 3."""
    opened.execute_script("selectHead(0, 1); select(8)")
    finish(opened)
    reading = opened.execute_script("""
        const {from, margin, cell} = $("map").geometry;
        const place = (i) => margin + (i - from + 0.5) * cell;
        const box = $("map").getBoundingClientRect();
        $("map").dispatchEvent(new PointerEvent("pointermove", {
          clientX: box.left + $("map").clientLeft + place(3),
          clientY: box.top + $("map").clientTop + place(5)}));
        return [page.hover, seenNow().entries[5].attention[0][1][3]];""")
    assert reading[0] == [5, 3]
    percent = opened.execute_script("return percent(arguments[0])", reading[1])
    assert text(opened, "map-reading").endswith(f"2 back: {percent}")


def test_nothing_is_too_narrow_at_any_width(browser, tmp_path):
    """12 layers of 12 heads: cells of at least 24 px, no sideways scrolling, nothing blank."""
    write_page(tmp_path, tmp_path / "x.html", 0,
               replace(GPT2_TINY, n_layer=12, n_head=12, n_embd=24))
    open_page(browser, tmp_path / "x.html")
    for width in (400, 768, 1024, 1400):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        finish(browser)
        cells, page_width, hidden = browser.execute_script("""
            const width = (node) => node.getBoundingClientRect().width;
            const isLazy = (node) => getComputedStyle(node).contentVisibility === "auto";
            return [Math.min(...[...document.querySelectorAll(".heads .cell")].map(width)),
                    document.documentElement.scrollWidth,
                    [...document.querySelectorAll(".card")].filter(isLazy).length];""")
        assert cells >= 24 and page_width <= width and hidden == 0, width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_numbers_of_the_walkthrough_are_pytorchs(opened, site):
    """q, k, their product, the score and the weight, of the strongest key."""
    set_text(opened, "ROMEO heard")
    opened.execute_script("selectHead(1, 1); select(6)")
    opened.execute_script("for (const step of $('walk').querySelectorAll('details')) step.open = 1")
    finish(opened)
    attn = site[0].transformer.h[1].attn
    kept = []
    hook = attn.attend.register_forward_pre_hook(lambda _, inputs: kept.append(inputs))
    logits_of(site[0], "ROMEO heard")
    hook.remove()
    q, k = kept[0][0][0, 1, 6], kept[0][1][0, 1]
    s = (k[:7] @ q).argmax().item()
    rows = opened.find_elements("css selector", "#walk li:nth-child(4) tr")
    shown = [[float(cell.text.replace(MINUS, "-"))
              for cell in row.find_elements("css selector", "td")] for row in rows]
    expected = torch.stack((q, k[s], q * k[s]))
    torch.testing.assert_close(torch.tensor(shown), expected, rtol=0, atol=0.0051)
    score = attn.attend.scale * q @ k[s]
    numbers = text(opened, "walk")
    assert f"it is the score, {score:+.2f}.".replace("-", MINUS) in numbers
    weight = attn.attend.weights[0, 1, 6, s].item()
    assert "makes it " + opened.execute_script("return percent(arguments[0])", weight) in numbers
    neurons = opened.find_elements("css selector", ".neurons li")
    assert len(neurons) == 5


CHOICES = {"pos": ("learned", "rope"), "norm": ("layernorm", "rmsnorm"),
           "act": ("gelu_tanh", "gelu", "relu2"), "qk_norm": (False, True), "tied": (False, True),
           "softcap": (0.0, 3.0), "bias": (False, True)}


def payload(model, levels):
    """What a page contains of a model; its weights must be rounded."""
    weights = look.packed_weights(model.state_dict(), model.config, levels)
    return {"config": asdict(model.config), "weights": weights}


def rounded_model(config, seed, spread=0.4, levels=127):
    return rounded(model_of(config, seed, spread), levels)


def test_the_page_computes_pytorchs_logits_and_votes_for_all_settings_of_a_model(opened):
    """Also with the coarser rounding of the snapshots."""
    shape = GPTConfig(block_size=12, vocab_size=11, n_layer=2, n_head=2, n_embd=8, norm_eps=1e-3,
                      attn_scale=1.5)
    settings = [dict(zip(CHOICES, values, strict=True))
                for values in itertools.product(*CHOICES.values())]
    configs = [replace(shape, **some, smear=some["bias"]) for some in settings]
    levels = [(127, 31)[number % 2] for number in range(len(configs))]
    models = [rounded_model(config, seed, levels=levels[seed])
              for seed, config in enumerate(configs)]
    idx = tokens(shape, 1, 12)
    results = opened.execute_async_script("""
        const [models, ids, done] = arguments;
        const run = async ({config, weights}) => {
          const model = await readModel(config, weights);
          const live = new LiveText(model, 11);
          live.setIds(ids);
          live.nextLogits();
          return live.entries.map((entry) => [Array.from(entry.logits),
                                              votesOf(model, entry, 3, 7)]);
        };
        Promise.all(models.map(run)).then(done);""",
        [payload(model, levels[number]) for number, model in enumerate(models)], idx[0].tolist())
    assert len(results) == 192
    first, second = torch.full((12,), 3), torch.full((12,), 7)
    for config, model, result in zip(configs, models, results, strict=True):
        seen = look.record(model, idx)
        difference = (torch.tensor([logits for logits, _ in result]) - seen.logits).abs().max()
        assert difference < 1e-4, (config, difference)
        votes = torch.tensor([vote for _, vote in result])
        expected = look.votes(model, seen, first, second)
        torch.testing.assert_close(votes, expected, rtol=1e-4, atol=1e-4, msg=str(config))


@pytest.mark.parametrize("config", [GPT2_TINY, MODERN_TINY], ids=["gpt2", "modern"])
def test_greedy_text_past_the_context_is_that_of_sample_py(opened, config):
    """A full window is cut to its last half, so the text is recomputed from there."""
    model, prompt = rounded_model(config, 3, spread=0.1), tokens(config, 1, 7)
    new = stream(model, prompt, Sampler([0], 61, temperature=0), make_cache(model, 1))
    expected = [ids.item() for ids, _ in itertools.islice(new, 200)]
    result = opened.execute_async_script("""
        const [{config, weights}, prompt, done] = arguments;
        readModel(config, weights).then((model) => {
          const live = new LiveText(model, 61);
          live.setIds(prompt);
          for (let i = 0; i < 200; i++) live.append(draw(live.nextLogits(), 0, 1, 0));
          done(live.ids);
        });""", payload(model, 127), prompt[0].tolist())
    assert len(set(expected)) > 5  # else a constant would do
    assert result == prompt[0].tolist() + expected


def test_the_filmstrip_is_what_each_snapshot_samples(opened):
    """What PyTorch has sampled, past the context of 32 tokens; then another prompt."""
    recorded = opened.execute_script("return data.moments.map((moment) => moment.film_ids)")
    assert len(recorded) == 3 and all(len(row) == 60 for row in recorded)
    set_text(opened, "heard")
    other = opened.execute_script("return ages.map((age) => age.filmIds)")
    assert all(len(row) == 60 for row in other) and other != recorded
    set_text(opened, "ROMEO")
    assert opened.execute_script("return ages.map((age) => age.filmIds)") == recorded
    rows = opened.find_elements("css selector", "#film .strip")
    shown = opened.execute_script("return [...arguments[0].children].map((t) => t.textContent)",
                                  rows[2])
    assert shown == [opened.execute_script("return visible(vocab[arguments[0]])", i)
                     for i in recorded[2]]


def test_edited_text_is_computed_as_if_it_were_typed_at_once(opened, site):
    """Cut, insert, delete all, and go past the context of 32 tokens."""
    for value in ("ROMEO heard", "ROMEO", "ROMER heard", "", "e" * 40, "e" * 39, "ea" * 9):
        set_text(opened, value)
        start = opened.execute_script("return ages[page.moment].live.start")
        assert 0 <= len(value) - start <= 32
        expected = logits_of(site[0], value[start:]) if value else torch.tensor([])
        torch.testing.assert_close(computed(opened), expected, rtol=0, atol=1e-4)


def test_tokens_are_drawn_as_in_sample_py(opened):
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 3
    cases = list(itertools.product((0.0, 0.5, 1.5), (1, 5, 40), (0.0, 0.3, 0.7, 0.99),
                                   (0.1, 0.6, 1.0)))
    expected = [draw(logits, torch.tensor([[uniform]]), temperature, top_k, top_p).item()
                for temperature, top_k, uniform, top_p in cases]
    result = opened.execute_script("""
        const [logits, cases] = arguments;
        return cases.map(([temperature, topK, uniform, topP]) => (
          draw(new Float32Array(logits), temperature, topK, uniform, topP)));""",
        logits[0].tolist(), cases)
    assert result == expected and len(set(expected)) > 4


def test_a_percentage_is_0_or_100_only_if_it_is_exact(opened):
    shown = opened.execute_script("return arguments[0].map(percent)",
                                  [0, 1e-5, 0.001, 0.05, 0.5, 0.989, 0.996, 0.9996, 1])
    assert shown == ["0%", "<0.1%", "0.1%", "5.0%", "50%", "99%", "99.6%", ">99.9%", "100%"]


def test_erf_is_exact(opened):
    result = opened.execute_script("return arguments[0].map(erf)", np.linspace(-7, 7, 141).tolist())
    expected = torch.linspace(-7, 7, 141, dtype=torch.float64).erf()
    torch.testing.assert_close(torch.tensor(result, dtype=torch.float64), expected,
                               rtol=0, atol=1e-12)


# ---- without the model


def test_a_page_without_the_model_shows_the_recorded_values_and_says_why(browser, site, tmp_path,
                                                                         monkeypatch):
    monkeypatch.setattr(look, "MAX_PARAMETERS", 0)
    write_page(tmp_path, tmp_path / "x.html")
    open_page(browser, tmp_path / "x.html")
    assert "because it has 40,544 parameters, and at most 0 run in a page" in text(browser, "proof")
    assert not browser.find_element("id", "typed").is_displayed()
    browser.find_element("id", "token-8").click()
    finish(browser)
    assert "character 9 of 32" in text(browser, "selection")
    assert text(browser, "ablation-reading").startswith("The loss of this text is")
    votes = browser.execute_script("return seenNow().entries[8].votes")
    assert f"sum to {sum(votes):+.3f}".replace("-", MINUS) in text(browser, "votes-sum")
    before = text(browser, "moment-label")
    browser.find_element("id", "moment").send_keys(Keys.HOME)
    finish(browser)
    assert text(browser, "moment-label") != before
    assert len(browser.find_elements("css selector", "#film li")) == 3
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
    assert not browser.find_element("id", "training").is_displayed()
