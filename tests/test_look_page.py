"""pytest tests/test_look_page.py - the page of tools/look.py in a real browser, headless Chromium

Skipped if selenium, chromium or chromedriver is missing."""

import base64
import itertools
import json
import shutil
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers import GPT2_TINY, MODERN_TINY, ROOT, model_of, tokens

from internals import checkpoint
from model import GPT, GPTConfig
from sample import Sampler, make_cache, stream

sys.path.insert(0, str(ROOT / "tools"))

import look

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
selenium = pytest.importorskip("selenium", reason="needs selenium: pip install selenium")
if not (CHROMIUM and DRIVER):
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
CHARS = "\n !\"&'</>abcdefghilmnoprstuvwy:ROMEJ" + "é\u0301\u200f\u202e\x00😀"
# text that would be dangerous as HTML, or would disturb the reading direction
HOSTILE = "</script><img src=x>&\"'\u202e😀\x00"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def write_run(folder, config, n_snapshots=2, **meta):
    """The folder of a run with a model of random weights, and snapshots of other weights."""
    meta = {"tokenizer": "char", "chars": "".join(sorted(CHARS))} | meta
    config = replace(config, vocab_size=len(CHARS))
    for number in range(n_snapshots):
        checkpoint.write_snapshot(folder, 10 * number, model_of(config, seed=number, spread=0.1))
    model = model_of(config, seed=9, spread=0.3)
    checkpoint.write(checkpoint.Checkpoint(
        model=model.state_dict(), model_args=asdict(config), meta=meta), folder / "ckpt.pt")
    return model
