"""pytest tests/test_look_page.py - the page of tools/look.py in a real browser, headless Chromium

Skipped if selenium, chromium or chromedriver is missing."""

import itertools
import json
import re
import shutil
from dataclasses import asdict, replace

import look
import pytest
import torch
from helpers import GPT2_TINY, ROOT, model_of, tokens
from torch.nn import functional as F

from internals import checkpoint, checks, recording
from model import GPTConfig
from prepare import tokenizer_from_meta

webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
Keys = webdriver.Keys
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
AXE = ROOT / "node_modules/axe-core/axe.min.js"
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium, chromedriver")

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
# text that would be dangerous as HTML, that changes the reading direction, or that is invisible
HOSTILE = "</script><img src=x>&\"'\u202e\u05d0e\u0301😀\x00"
MINUS = "\u2212"
CHARS = "".join(sorted({*"\nabcdefghilmnoprstuvwy:ROMEJ", *HOSTILE}))
LIVE = replace(GPT2_TINY, vocab_size=len(CHARS))
CLOSE = {"rtol": 0, "atol": 1e-4}


class Tab:
    """The tab of the browser, with a page of tools/look.py."""

    def __init__(self, driver):
        self.driver = driver
        self.find = driver.find_elements
        self.cdp = driver.execute_cdp_cmd

    def open(self, html, address=""):
        """Open an HTML file and wait until its models run. What was logged before is dropped."""
        self.driver.get("about:blank")
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(html.as_uri() + address)
        self.finish()

    def finish(self):
        """Wait until the page has computed and drawn everything. Long work does not wait for the
        text to stay the same for a while, as it does for users."""
        self.driver.execute_async_script("""
            const done = arguments[0];
            Object.defineProperty(page, "changed", {get: () => -Infinity, set() {}});
            const isBusy = () => page.starting || page.working || frames.top || frames.bottom;
            const wait = () => (isBusy() ? setTimeout(wait, 5) : done());
            wait();""")

    def js(self, script, *arguments):
        """Run JavaScript and wait until the page has followed; what the script returns."""
        result = self.driver.execute_script(script, *arguments)
        self.finish()
        return result

    def text(self, name):
        return self.driver.find_element("id", name).text

    def texts(self, selector):
        return [node.text for node in self.find("css selector", selector)]

    def is_shown(self, name):
        return self.driver.find_element("id", name).is_displayed()

    def click(self, selector):
        self.driver.find_element("css selector", selector).click()
        self.finish()

    def press(self, name, *keys):
        self.driver.find_element("id", name).send_keys(*keys)
        self.finish()

    def write(self, text):
        """Replace the text, as pasting does. (chromedriver cannot type emoji.)"""
        self.js("""
            $("typed").value = arguments[0];
            $("typed").setSelectionRange(arguments[0].length, arguments[0].length);
            $("typed").dispatchEvent(new Event("input"));""", text)

    def written(self):
        return self.js("return $('typed').value")

    def logits(self):
        """The logits (T, V) that are shown."""
        return torch.tensor(self.js("return seenNow().entries.map((e) => Array.from(e.logits))"))

    def percent(self, p):
        return self.js("return percent(arguments[0])", p)

    def errors(self):
        return self.driver.get_log("browser")

    def resize(self, width):
        self.cdp("Emulation.setDeviceMetricsOverride",
                 {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
        self.finish()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    yield Tab(driver)
    driver.quit()


def write_page(folder, n_snapshots=2, config=LIVE):
    """The page of a model of random weights at step 1030, and of snapshots of other weights at
    steps 0, 1000, ...; returns (the model as the page has it, the HTML file)."""
    for number in range(n_snapshots):
        snapshot = model_of(config, seed=number, spread=0.1)
        checkpoint.write_snapshot(folder, 1000 * number, snapshot)
    model = model_of(config, seed=9, spread=0.3)
    meta = {"tokenizer": "char", "chars": CHARS, "vocab_size": len(CHARS), "source": folder.name}
    start = checks.Checkpoint(model.state_dict(), asdict(config), meta, step=1030)
    cfg = look.LookConfig(out_dir=str(folder), device="cpu")
    data = look.look(start, tokenizer_from_meta(meta), "ROMEO", cfg)
    html = folder / "look.html"
    html.write_text(look.page(data), encoding="utf-8")
    return rounded(model), html


def rounded(model, levels=127):
    """The model as a page has it."""
    model = recordable(model)
    look.round_weights(model, levels)
    return model


def recordable(model):
    return look.build_model(model.state_dict(), model.config, torch.device("cpu"))


def ids_of(text):
    return torch.tensor([[CHARS.index(char) for char in text]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(the model, the HTML file) of a run with two snapshots, in a folder with a hostile name."""
    folder = tmp_path_factory.mktemp("look") / "out <img src=x onerror=alert(1)>"
    folder.mkdir()
    return write_page(folder)


@pytest.fixture
def tab(browser, site):
    """The page of `site` as it is when it is opened, without opening it for each test."""
    if not browser.driver.current_url.startswith(site[1].as_uri()):
        browser.open(site[1])
    browser.js("""
        setSampling(false);
        setPlaying(false);
        if (page.off.size) toggle("all");
        setMoment(page.main);
        resetText();
        selectHead(data.open.layer, data.open.head);
        prepare();
        Object.assign(page, {past: [], future: [], pair: null, roll: null});""")
    return browser


def logits_of(model, text):
    """PyTorch's logits (T, V) for a text."""
    ids = ids_of(text)
    logits, _ = model(ids, ids)
    return logits[0]


# ---- the page


def test_the_page_opens_without_an_error_or_a_request(browser, site):
    browser.open(site[1])
    assert browser.errors() == []
    logged = browser.driver.get_log("performance")
    messages = [json.loads(line["message"])["message"] for line in logged]
    requests = [message["params"]["request"]["url"] for message in messages
                if message["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if url != "about:blank"] == [site[1].as_uri()]
    assert "The model runs in this page" in browser.text("proof")
    assert "those of the snapshots, to 6 bits" in browser.text("proof")


def test_hostile_text_is_shown_as_text(tab):
    """In the vocabulary, the text, and the name of the folder."""
    tab.write(HOSTILE)
    assert not tab.find("css selector", "img")
    assert tab.js("return [...$('tokens').children].map((token) => token.textContent)") == [
        *"</script><img·src=x>&\"'", "[202E]", "\u05d0", "e", "◌\u0301", "😀", "[0000]"]
    assert "<img src=x onerror=alert(1)>" in tab.text("name")
    assert "<img·src=x·onerror=alert(1)>" in tab.text("facts")
    assert tab.errors() == []


def test_views_follow_the_selected_token_and_head(tab):
    """By mouse and by keyboard. Characters are counted from 1, and positions from 0, as it says."""
    views = ("selection", "next-intro", "looks", "lens-reading", "votes-sum", "map-reading", "walk")
    before = {view: tab.text(view) for view in views}
    tab.click("#token-9")
    after = {view: tab.text(view) for view in views}
    assert "character 10 of 32" in after["selection"]
    assert "The vector of position 9 in wpe" in after["walk"]
    tab.press("tokens", Keys.ARROW_RIGHT)
    selected = tab.find("css selector", "#tokens [aria-selected=true]")
    assert [node.get_attribute("id") for node in selected] == ["token-10"]
    for view in views:
        assert before[view] != after[view] != tab.text(view)

    tab.js("selectHead(0, 0)")
    tab.press("heads", Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert tab.text("map-title").startswith("Layer 2, head 2")
    assert "without head 2 of layer 2" in tab.text("ablation-reading")
    checked = tab.find("css selector", "[role=radio][aria-checked=true]")
    assert [node.get_attribute("id") for node in checked] == ["head-1-1"]


def test_recorded_and_computed_values_are_equal(tab):
    """The values that PyTorch recorded, and those of the page's own model, in every view."""
    recorded, computed = tab.js("""
        const age = ages[page.main];
        const valuesOf = ({entries, loss}, votes) => [
          loss,
          entries.map((entry) => entry.attention.flat().map((row) => [...row])),
          entries.map((entry) => entry.lens.map(([id, p]) => p)),
          entries.map((entry) => entry.top.map(([id, p]) => p)),
          entries.map((entry) => entry.entropy),
          entries.slice(0, -1).map((entry, t) => Object.values(entry.chance(data.ids[t + 1]))),
          entries.map(votes),
        ].map((values) => [values].flat(Infinity));
        return [valuesOf(recorded(age), ({votes}) => votes),
                valuesOf(computed(age), (entry) => votesOf(
                  entry.model, entry, entry.top[0][0], entry.top[1][0]))];""")
    for expected, actual in zip(recorded, computed, strict=True):
        torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), **CLOSE)


def test_numbers_are_written_for_reading(tab):
    """A percentage is 0 or 100 only if it is exact. Large numbers have separators, and a rank that
    others share says so."""
    shown = tab.js("return arguments[0].map(percent)",
                   [0, 1e-5, 0.001, 0.05, 0.5, 0.989, 0.996, 0.9996, 1])
    assert shown == ["0%", "<0.1%", "0.1%", "5.0%", "50%", "99%", "99.6%", ">99.9%", "100%"]
    assert "1,000" in tab.texts("#ticks span") and "step 1,000" in tab.texts("#film .step")
    assert tab.js("return rankOf({rank: 1, ties: 1001})") == "rank 1, the same as 1,000 others"
    assert tab.js("return rankOf({rank: 3, ties: 1})") == "rank 3"


# ---- training time


def test_the_slider_shows_typed_text_at_each_step_as_pytorch_computes_it(tab):
    """Every age of the model has the weights of its snapshot, rounded to 6 bits."""
    tab.write("heard some")
    ids = ids_of("heard some")[0]
    tab.press("moment", Keys.HOME)
    for number, step in enumerate(("0", "1,000")):
        model = rounded(model_of(LIVE, seed=number, spread=0.1), 31)
        expected = logits_of(model, "heard some")
        torch.testing.assert_close(tab.logits(), expected, **CLOSE)
        loss = F.cross_entropy(expected[:-1], ids[1:])
        assert tab.text("moment-label") == f"{step} · loss of this text {loss:.2f}"
        tab.press("moment", Keys.ARROW_RIGHT)


def test_the_filmstrip_is_what_each_snapshot_samples(tab):
    """What PyTorch has sampled, past the context of 32 tokens; then another prompt."""
    films = "return ages.map((age) => age.filmIds)"
    recorded = tab.js("return data.moments.map((moment) => moment.film_ids)")
    assert [len(row) for row in recorded] == [60] * 3
    tab.write("heard")
    other = tab.js(films)
    assert [len(row) for row in other] == [60] * 3 and other != recorded
    tab.write("ROMEO")
    assert tab.js(films) == recorded
    shown = tab.js("return [...$('film').lastChild.lastChild.children].map((t) => t.textContent)")
    assert shown == tab.js("return arguments[0].map((id) => visible(vocab[id]))", recorded[2])


def test_play_shows_each_step_of_the_training_and_stops_at_the_last(tab):
    shown = tab.driver.execute_async_script("""
        const done = arguments[0];
        const show = setMoment;
        const shown = [];
        setMoment = (moment) => { shown.push(moment); show(moment); };
        const end = () => {
          if (page.playing) return setTimeout(end, 5);
          setMoment = show;
          done(shown);
        };
        $("play").click();
        end();""")
    assert shown == [0, 1, 2]


# ---- the text


def test_text_is_computed_as_if_it_were_typed_at_once(tab, site):
    """Typed with the keyboard, cut, replaced, cleared while it samples, and longer than the context
    of 32 tokens, of which nothing is out of sight."""
    tab.press("typed", Keys.CONTROL + "a", Keys.NULL, "Jam on\ntoast", Keys.BACKSPACE, Keys.HOME,
              Keys.DELETE, "R")
    assert tab.written() == "Jam on\nRoas"
    for value in ("Jam on\nRoas", "ROMEO heard", "ROMER heard", "e" * 40, "ea" * 9):
        tab.write(value)
        start = tab.js("return windowStart()")
        assert 0 <= len(value) - start <= 32
        torch.testing.assert_close(tab.logits(), logits_of(site[0], value[start:]), **CLOSE)
        shown = tab.js("return $('tokens').textContent")
        assert shown.replace("·", " ").replace("↵", "\n") == value
    tab.driver.execute_script("$('sample-more').click()")
    tab.write("")
    assert tab.js("return page.sampling || page.working") is False
    assert tab.text("selection").startswith("The text is empty")
    assert not tab.driver.find_element("id", "sample-one").is_enabled()
    assert tab.errors() == []


def test_all_unknown_characters_are_named_and_left_out(tab, site):
    tab.write("R€OM€E€\u00e5")
    assert tab.text("unknown").endswith(": € \u00e5")
    torch.testing.assert_close(tab.logits(), logits_of(site[0], "ROME"), **CLOSE)


def test_a_branch_starts_after_the_selected_token_and_undo_brings_the_rest_back(tab):
    """With a click on a candidate and with Sample, and with the keyboard. A typed word is one step
    of undo, and what is underlined is what the user wrote."""
    first = tab.written()
    tab.press("typed", "abc")
    assert not tab.is_shown("prompt-note")
    tab.click("#undo")
    assert tab.written() == first
    assert len(tab.find("css selector", "#tokens .prompt")) == 5

    tab.write("ROMEO heard")
    tab.press("tokens", Keys.HOME, Keys.ARROW_RIGHT)
    third = tab.js("return vocab[seenNow().entries[1].top[2][0]]")
    tab.click("#candidates li:nth-child(3) button")
    assert tab.written() == "RO" + third and "MEO·heard" in tab.text("branch")
    tab.press("typed", Keys.CONTROL, "z")
    assert tab.written() == "ROMEO heard" and not tab.is_shown("branch")
    tab.press("typed", Keys.CONTROL, "y")
    assert tab.written() == "RO" + third
    tab.click("#undo")
    tab.click("#sample-one")
    assert tab.written()[:2] == "RO" and len(tab.written()) == 3
    assert len(tab.find("css selector", "#tokens .prompt")) == 2
    tab.click("#reset")
    assert tab.written() == first


def test_while_it_samples_stop_stays_in_place_and_typing_stops_it(tab):
    """And a screen reader does not speak at each sampled token."""
    tab.write("ROMEO")
    button = tab.driver.find_element("id", "sample-more")
    before = button.rect
    button.click()
    loud = tab.driver.execute_async_script("""
        const isLoud = (node) => node.getAttribute("aria-live") !== "off";
        const watch = () => {
          if (page.ids.length < 60) return requestAnimationFrame(watch);
          arguments[0]([$("selection"), ...document.querySelectorAll("output")].filter(isLoud));
        };
        watch();""")
    assert loud == [] and button.text == "Stop" and button.rect == before
    tab.driver.execute_script("$('typed').focus(); $('typed').setSelectionRange(0, 0);")
    tab.driver.switch_to.active_element.send_keys("abc")
    assert tab.written().startswith("abcROMEO")
    assert not tab.js("return page.sampling")


def test_temperature_top_k_and_top_p_reshape_the_bars(tab, site):
    def turn(name, number):
        tab.js("""
            $(arguments[0]).value = arguments[1];
            $(arguments[0]).dispatchEvent(new Event("input"));""", name, number)

    tab.write("ROMEO")
    logits = logits_of(site[0], "ROMEO")[-1]
    turn("temperature", 0.5)
    turn("top-k", 4)
    expected = (logits / 0.5).topk(4).values.softmax(dim=-1).tolist()
    assert tab.texts("#candidates .value") == [tab.percent(p) for p in expected] + ["cut"] * 6
    turn("top-p", 0.05)
    assert tab.texts("#candidates .value")[0] == "100%"
    tab.click("#sample-one")  # only one token is left
    assert tab.written() == "ROMEO" + CHARS[logits.argmax()]
    assert "The die rolled" in tab.text("roll-text")


def test_the_page_switches_parts_off_as_pytorch_does(tab, site):
    """One by one, for the losses below the maps, and where the user wants it."""
    model = site[0]
    tab.write("ROMEO heard")
    ablated = torch.tensor(tab.js("return ages[page.moment].ablated"))
    expected = recording.ablation(model, ids_of("ROMEO heard"), len(CHARS))
    torch.testing.assert_close(ablated, expected, **CLOSE)

    tab.js("selectHead(1, 0)")
    tab.click("#switches [data-off='1.0']")
    tab.js("toggle('2.2')")  # the MLP of layer 3
    assert "Switched off: head 1 of layer 2, MLP of layer 3" in tab.text("off-note")
    model.transformer.h[1].attn.attend.off = 0
    hook = model.transformer.h[2].mlp.register_forward_hook(recording.zeros_instead)
    expected = logits_of(model, "ROMEO heard")
    hook.remove()
    model.transformer.h[1].attn.attend.off = None
    torch.testing.assert_close(tab.logits(), expected, **CLOSE)
    tab.click("#off-note button")
    torch.testing.assert_close(tab.logits(), logits_of(model, "ROMEO heard"), **CLOSE)
    assert tab.text("off-note") == ""


def test_the_die_is_shown_only_for_the_token_that_it_has_chosen(tab):
    """Not for another token that takes its place, in any way that the text can change."""
    tab.write("ROMEO heard")
    changes = ("$('undo').click()", "$('reset').click()", "$('tour-buttons').firstChild.click()",
               "select(4); $('candidates').querySelector('button').click()",
               "$('typed').value = 'ROMEOM'; $('typed').dispatchEvent(new Event('input'))")
    for change in changes:
        tab.js("select(4)")
        tab.click("#sample-one")
        chosen = tab.js("return visible(vocab[page.ids[5]])")
        assert tab.texts("#roll-text .token") == [chosen]
        assert tab.text("roll-text").startswith("The die rolled")
        tab.js(change)
        tab.js("select(5)")
        assert tab.text("roll-text").startswith("To sample, a random number"), change


def logits_without_a_head(model, text):
    """PyTorch's logits (T, V) without head 1 of layer 2."""
    attend = model.transformer.h[1].attn.attend
    attend.off = 0
    logits = logits_of(model, text)
    attend.off = None
    return logits


def test_a_model_without_a_part_sees_the_same_window_as_the_model_itself(tab, site):
    """However the text has changed since sampling has halved the window of 32 tokens, and at an
    earlier step of the training."""
    models = {0: rounded(model_of(LIVE, seed=0, spread=0.1), 31), 2: site[0]}

    def check(start):
        text = tab.written()[start:]
        for moment, model in models.items():
            tab.js("setMoment(arguments[0])", moment)
            assert tab.js("return windowStart()") == start
            expected = logits_without_a_head(model, text)
            torch.testing.assert_close(tab.logits(), expected, **CLOSE)
            loss = F.cross_entropy(expected[:-1], ids_of(text)[0, 1:]).item()
            assert tab.js("return seenNow().loss") == pytest.approx(loss, abs=1e-4)
            plain = tab.js("return seenNow().plain.map((entry) => Array.from(entry.logits))")
            torch.testing.assert_close(torch.tensor(plain), logits_of(model, text), **CLOSE)

    tab.write("ROMEO: heard some other name so ")
    tab.click("#sample-one")
    tab.js("toggle('1.0')")
    check(17)
    tab.write(tab.written() + "so it")
    check(17)
    tab.js("for (let n = 0; n < 12; n++) sampleOne()")
    check(34)
    tab.js("for (let n = 0; n < 14; n++) goBack(page.past, page.future)")
    tab.js("for (let n = 0; n < 14; n++) goBack(page.future, page.past)")
    check(34)
    tab.write("e" + tab.written())
    check(19)
    tab.click("#reset")
    check(0)
    assert tab.errors() == []


# ---- guides and sharing


def test_each_discovery_shows_its_place_and_says_what_is_seen(tab):
    found = tab.js("""
        for (const each of data.discoveries) if (each.kind === "time") each.moment = 1;
        return data.discoveries;""")
    assert len({each["kind"] for each in found}) == 3
    tab.write("heard")
    for number, each in enumerate(found):
        tab.click(f"#tour-buttons button:nth-child({number + 1})")
        state = tab.js("return [at.token, at.layer, at.head, page.moment, page.ids.length]")
        moment = each.get("moment", 2)
        assert state == [each["token"], each["layer"], each["head"], moment, 32]
        assert len(tab.text("tour-text")) > 40
        # what has more ink is darker in one theme and lighter in the other
        words = tab.js("return document.querySelector('main').innerText")
        assert not re.search(r"\b(dark|light|bright)", words, re.IGNORECASE)


def test_the_address_and_the_back_button_restore_what_was_shown(browser, site):
    browser.open(site[1])
    browser.write("ROMEO heard & so")
    browser.js('select(3); selectHead(1, 1); setMoment(1); toggle("0.1"); $("theme").click();')
    browser.driver.execute_async_script("setTimeout(arguments[0], 400)")
    state = """return [at.token, at.layer, at.head, page.moment, [...page.off], $("typed").value,
                       document.documentElement.dataset.theme];"""
    before = browser.js(state)
    assert before[:6] == [3, 1, 1, 1, ["0.1"], "ROMEO heard & so"]
    browser.driver.get("about:blank")
    browser.driver.back()
    browser.finish()
    assert browser.js(state) == before
    # what is wrong in an address is ignored
    browser.open(site[1], "#text=%E2%82%AC&token=99&head=7.x&step=3&off=9.9+a")
    assert browser.written() == browser.text("off-note") == "" and browser.errors() == []
    browser.open(site[1])


def test_a_picture_of_the_filmstrip_is_drawn(tab):
    """It has the colors of the rows: full at step 0, less later."""
    n_colors = tab.js("""
        const canvas = filmPicture(ages, page.prompt, vocab, nVocab, data.title);
        const {data: pixels} = canvas.getContext("2d").getImageData(
          0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(pixels.buffer)).size;""")
    assert n_colors > 20


# ---- attention


def test_heads_are_named_by_what_they_look_at(tab):
    """In a text of 8 tokens, a head that gives 80% of its weight to a target, the rest evenly."""
    names = tab.js("""
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


def test_the_pointer_reads_the_map(tab):
    """The cell of token 5 looking at token 3."""
    tab.js("selectHead(0, 1); select(8)")
    hover, weight = tab.js("""
        const {from, margin, cell} = $("map").geometry;
        const place = (i) => margin + (i - from + 0.5) * cell;
        const box = $("map").getBoundingClientRect();
        $("map").dispatchEvent(new PointerEvent("pointermove", {
          clientX: box.left + $("map").clientLeft + place(3),
          clientY: box.top + $("map").clientTop + place(5)}));
        return [page.hover, seenNow().entries[5].attention[0][1][3]];""")
    assert hover == [5, 3]
    assert tab.text("map-reading").endswith(f"2 back: {tab.percent(weight)}")


def test_the_numbers_of_the_walkthrough_are_pytorchs(tab, site):
    """q, k, their product, the score and the weight, of the strongest key."""
    tab.write("ROMEO heard")
    tab.js("selectHead(1, 1); select(6)")
    tab.js("for (const step of $('walk').querySelectorAll('details')) step.open = true")
    attn = site[0].transformer.h[1].attn
    kept = []
    hook = attn.attend.register_forward_pre_hook(lambda _, inputs: kept.append(inputs))
    logits_of(site[0], "ROMEO heard")
    hook.remove()
    queries, keys, *_ = kept[0]
    q = queries[0, 1, 6]
    k = keys[0, 1]
    s = (k[:7] @ q).argmax().item()
    cells = [float(cell.replace(MINUS, "-")) for cell in tab.texts("#walk li:nth-child(4) td")]
    expected = torch.stack((q, k[s], q * k[s]))
    torch.testing.assert_close(torch.tensor(cells).view(3, -1), expected, rtol=0, atol=0.0051)
    score = attn.attend.scale * q @ k[s]
    numbers = tab.text("walk")
    assert f"it is the score, {score:+.2f}.".replace("-", MINUS) in numbers
    assert f"makes it {tab.percent(attn.attend.weights[0, 1, 6, s].item())}" in numbers


def test_the_walkthrough_names_the_tokens_that_a_neuron_raises_as_pytorch_does(tab, site):
    """Those with the largest direct effect on their logits, through the final norm."""
    tab.write("ROMEO heard")
    tab.js("selectHead(1, 1); select(6)")
    tab.js("for (const step of $('walk').querySelectorAll('details')) step.open = true")
    shown = tab.js(
        "return [...document.querySelectorAll('.neurons li')].map((item) => item.textContent)")
    model = site[0]
    c_proj = model.transformer.h[1].mlp.c_proj
    kept = []
    hooks = [part.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0][0, 6]))
             for part in (c_proj, model.transformer.ln_f)]
    logits_of(model, "ROMEO heard")
    for hook in hooks:
        hook.remove()
    neurons, x = kept
    every = torch.arange(len(CHARS))
    x = x.expand(len(CHARS), -1)
    # (V, C): the effect on each logit, compared with that on the logit of token 0
    u, _ = recording.gap_direction(model, x, every, torch.zeros_like(every))
    expected = []
    for neuron in (neurons.abs() * c_proj.weight.norm(dim=0)).topk(5).indices.tolist():
        raised = u @ (c_proj.weight[:, neuron] * neurons[neuron])
        names = tab.js("return arguments[0].map((id) => visible(vocab[id]))",
                       raised.topk(5).indices.tolist())
        value = f"{neurons[neuron]:+.2f}".replace("-", MINUS)
        expected.append(" ".join((f"neuron {neuron + 1}: {value} ", *names)))
    assert shown == expected


# ---- the model


CHOICES = {"pos": ("learned", "rope"), "norm": ("layernorm", "rmsnorm"),
           "act": ("gelu_tanh", "gelu", "relu2"), "qk_norm": (False, True), "tied": (False, True),
           "softcap": (0.0, 3.0), "bias": (False, True)}


def test_the_page_computes_pytorchs_logits_and_votes_for_all_settings_of_a_model(tab):
    """Also with the coarser rounding of the snapshots."""
    shape = GPTConfig(block_size=12, vocab_size=11, n_layer=1, n_head=2, n_embd=8, norm_eps=1e-3,
                      attn_scale=1.5)
    models = []
    payloads = []
    for seed, values in enumerate(itertools.product(*CHOICES.values())):
        some = dict(zip(CHOICES, values, strict=True))
        config = replace(shape, **some, smear=some["bias"])
        model = recordable(model_of(config, seed, 0.4))
        weights = look.round_weights(model, (127, 31)[seed % 2])
        models.append(model)
        payloads.append({"config": asdict(config), "weights": weights})
    idx = tokens(shape, 1, 12)
    results = tab.driver.execute_async_script("""
        const [models, ids, done] = arguments;
        const run = async ({config, weights}) => {
          const model = await readModel(config, weights);
          const live = new LiveText(model, 11);
          live.setIds(ids);
          live.nextLogits();
          return live.entries.map((entry) => [...entry.logits, ...votesOf(model, entry, 3, 7)]);
        };
        Promise.all(models.map(run)).then(done);""", payloads, idx[0].tolist())
    assert len(results) == 192
    first = torch.full((12,), 3)
    second = torch.full((12,), 7)
    for model, result in zip(models, results, strict=True):
        seen = recording.record(model, idx)
        expected = torch.cat((seen.logits, recording.votes(model, seen, first, second)), dim=1)
        torch.testing.assert_close(torch.tensor(result), expected, rtol=1e-4, atol=1e-4,
                                   msg=str(model.config))


# ---- every screen, paper, and every reader


def test_nothing_is_too_narrow_at_any_width(browser, tmp_path):
    """12 heads per layer: cells of at least 24 px, no sideways scrolling, nothing blank."""
    config = replace(LIVE, n_layer=2, n_head=12, n_embd=24)
    browser.open(write_page(tmp_path, 0, config)[1])
    for width in (400, 768, 1024, 1400):
        browser.resize(width)
        cells, page_width, lazy = browser.js("""
            const width = (node) => node.getBoundingClientRect().width;
            const isLazy = (node) => getComputedStyle(node).contentVisibility === "auto";
            return [Math.min(...[...document.querySelectorAll(".heads .cell")].map(width)),
                    document.documentElement.scrollWidth,
                    [...document.querySelectorAll(".card")].filter(isLazy).length];""")
        assert cells >= 24 and page_width <= width and lazy == 0, width
    assert not browser.is_shown("film-card")  # there is only one step
    browser.cdp("Emulation.clearDeviceMetricsOverride", {})


def test_axe_finds_nothing(tab):
    """The rules of WCAG 2.2 AA, in both themes, with all numbers open and a part switched off."""
    if not AXE.exists():
        pytest.skip("npm install axe-core")
    tab.js("for (const step of document.querySelectorAll('details')) step.open = true")
    tab.js("toggle('1.0')")
    tab.driver.execute_script(AXE.read_text(encoding="utf-8"))
    for width, theme in ((400, "light"), (768, "dark"), (1024, "light")):
        tab.resize(width)
        tab.js("setTheme(arguments[0])", theme)
        found = tab.driver.execute_async_script("""
            const done = arguments[0];
            const tags = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"];
            const style = "*, #tokens .token { transition: none !important; }";
            document.head.append(element("style", {}, style));
            axe.run(document, {runOnly: tags}).then(({violations}) => done(
              violations.map(({id, nodes}) => [id, nodes.length, nodes[0].html])));""")
        assert found == [], (width, theme)
    tab.cdp("Emulation.clearDeviceMetricsOverride", {})


def test_a_printed_page_is_light_and_has_no_controls(tab):
    tab.js("setTheme('dark')")
    colors = "return [colorOf('--ink'), [...document.querySelector('canvas').getContext('2d')"
    colors += ".getImageData(0, 0, 1, 1).data]]"  # the first token looks at itself: full ink
    dark = tab.js(colors)
    tab.cdp("Emulation.setEmulatedMedia", {"media": "print"})
    printed = tab.js(f"dispatchEvent(new Event('beforeprint')); {colors}")
    assert printed == [[35, 33, 29], [61, 74, 82, 255]]
    for name in ("editor", "play", "theme"):
        assert not tab.is_shown(name)
    for name in ("film", "votes", "map"):
        assert tab.is_shown(name)
    tab.cdp("Emulation.setEmulatedMedia", {"media": ""})
    tab.js("dispatchEvent(new Event('afterprint'))")
    assert tab.js(colors) == dark != printed
    tab.js("setTheme('light')")


def test_forced_colors_keep_bars_and_shades(tab):
    """Where the system chooses the colors, backgrounds would vanish."""
    features = [{"name": "forced-colors", "value": "active"}]
    tab.cdp("Emulation.setEmulatedMedia", {"features": features})
    colors = tab.js("""
        const parts = ["body", ".bar", ".bar i", "#film li .token",
                       "#lens .selected .cell:nth-last-child(2)"];
        return parts.map((part) => (
          getComputedStyle(document.querySelector(part)).backgroundColor));""")
    assert len(set(colors)) == 5, colors
    tab.cdp("Emulation.setEmulatedMedia", {"features": []})


# ---- without the model


def test_without_scripts_the_page_says_what_it_needs(browser, site):
    browser.cdp("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.driver.get("about:blank")
    browser.driver.get(site[1].as_uri())
    shown = browser.driver.find_element("css selector", "noscript").text
    browser.cdp("Emulation.setScriptExecutionDisabled", {"value": False})
    browser.driver.get("about:blank")
    assert shown == "This page needs JavaScript: it runs the model in your browser."


def test_a_page_without_the_model_shows_the_recorded_values_and_says_why(browser, tmp_path,
                                                                         monkeypatch):
    monkeypatch.setattr(look, "MAX_PARAMETERS", 0)
    browser.open(write_page(tmp_path)[1])
    why = "because it has 40,544 parameters, and at most 0 run in a page"
    assert why in browser.text("proof") and why in browser.text("lead")
    assert not browser.is_shown("typed")
    browser.click("#token-8")
    assert "character 9 of 32" in browser.text("selection")
    votes = browser.js("return seenNow().entries[8].votes")
    assert f"sum to {sum(votes):+.3f}".replace("-", MINUS) in browser.text("votes-sum")
    before = browser.text("moment-label")
    browser.press("moment", Keys.HOME)
    assert browser.text("moment-label") != before
    assert browser.errors() == []


def test_a_page_without_the_weights_of_the_snapshots_shows_recorded_values_at_their_steps(
        browser, tmp_path, monkeypatch):
    monkeypatch.setattr(look, "MAX_WEIGHTS", 0)
    browser.open(write_page(tmp_path)[1])
    lengths = "return ages.map((age) => age.filmIds.length)"
    browser.write("heard")
    assert browser.js(lengths) == [0, 0, 60]  # what was recorded continues another prompt
    note = "Empty rows: the weights of these steps are not in the page."
    assert note in browser.text("film-intro")
    browser.write("ROMEO")
    assert browser.js(lengths) == [60, 60, 60] and note not in browser.text("film-intro")
    browser.write("heard")
    browser.press("moment", Keys.HOME)
    assert "The weights of this step are not in the page" in browser.text("moment-note")
    assert not browser.is_shown("typed") and "of 32" in browser.text("selection")
    browser.press("moment", Keys.END)
    assert browser.is_shown("typed") and browser.written() == "heard"
    assert browser.text("moment-note") == "" and browser.errors() == []


def test_the_main_model_runs_before_those_of_the_snapshots(browser, site, tmp_path):
    """They wait here until it has. What is typed and sampled meanwhile, and the parts that are
    switched off, are the same for all of them: here one more token than fits into the window."""
    html = site[1].read_text(encoding="utf-8")
    start = "const {weights, logits} = age.moment;"
    wait = """
        globalThis.held ??= new Promise((go) => { globalThis.go = go; });
        if (age !== ages[page.main]) await held;"""
    assert start in html
    (tmp_path / "x.html").write_text(html.replace(start, start + wait), encoding="utf-8")
    browser.driver.get((tmp_path / "x.html").as_uri())
    browser.driver.execute_async_script("""
        const done = arguments[0];
        const wait = () => (page.live ? done() : setTimeout(wait, 5));
        wait();""")
    browser.driver.execute_script("""
        $("typed").value = "ROMEO: heard some other name so ";
        $("typed").dispatchEvent(new Event("input"));
        sampleOne();
        toggle("1.0");
        setMoment(0);
        drawTop();""")
    shown = "return [windowStart(), at.token, decode(seenNow().ids)]"
    expected = browser.driver.execute_script(shown)
    assert expected[:2] == [17, 15]
    assert browser.text("moment-note") == "The model of this step is being built …"
    browser.js("go()")
    assert browser.js(shown) == expected
    model = rounded(model_of(LIVE, seed=0, spread=0.1), 31)
    expected = logits_without_a_head(model, browser.written()[17:])
    torch.testing.assert_close(browser.logits(), expected, **CLOSE)
    assert browser.text("moment-note") == "" and browser.errors() == []


def test_a_model_that_differs_from_pytorch_is_not_used(browser, site, tmp_path):
    """Whether it is the main model or a snapshot."""
    html = site[1].read_text(encoding="utf-8")
    broken = html.replace("Math.sqrt(variance + this.eps)", "Math.sqrt(variance + 0.3)")
    late = html.replace("if (largest < TOLERANCE) age.start",
                        "if (age === ages[1]) largest = NaN;\n  if (largest < TOLERANCE) age.start")
    for number, changed in enumerate((broken, late)):
        assert changed != html
        (tmp_path / f"{number}.html").write_text(changed, encoding="utf-8")
        browser.open(tmp_path / f"{number}.html", "#text=RO")
        assert "its logits would differ from PyTorch's" in browser.text("proof")
        assert browser.is_shown("token-8")
        assert not browser.is_shown("typed") and not browser.is_shown("training")
