"""pytest -m faults tests/test_big_text.py - prepare.py with gigabytes of text, and 20 SIGKILLs

It takes about 15 minutes on two cores and 12 GB of disk."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
import time

import pytest
from helpers import ROOT, finished, script, wait_for

from internals.dataset import load

pytestmark = [pytest.mark.faults,
              pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")]
GB = 10**9
# runs prepare.py and prints its peak memory in MB
PEAK = """
import sys, prepare
from internals.errors import one_line_errors
try:
    with one_line_errors():
        prepare.main(sys.argv[1:])
finally:
    print("peak", open("/proc/self/status").read().split("VmHWM:")[1].split()[0], flush=True)
"""


def words(size, seed=0):
    """Yields blocks of a text of about `size` bytes, with words, numbers, emoji, and new words."""
    chance = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    known = ["".join(chance.choices(letters, k=chance.randint(1, 9))) for _ in range(30_000)]
    written = 0
    for number in itertools.count():
        line = " ".join(chance.choices(known, k=5000))
        line += f" {number} {''.join(chance.choices(letters, k=12))}. 🙂 éß\n"
        block = (line * 20).encode()
        yield block
        written += len(block)
        if written >= size:
            return


def write(path, blocks):
    with open(path, "wb") as file:
        for block in blocks:
            file.write(block)
    return path


def prepared(folder, *options, kind="gpt2", name="d"):
    """Run prepare.py; (its exit code, what it printed, seconds, peak memory in MB)."""
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, options), f"--data_dir={folder}", f"--name={name}",
         f"--tokenizer={kind}"], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    seconds = time.perf_counter() - started
    printed = process.stdout + process.stderr
    peak = int(re.search(r"peak (\d+)", process.stdout)[1]) / 1000
    print(f"{options}: {seconds:.0f} s, {peak:.0f} MB, {printed}")
    return process.returncode, printed, seconds, peak


def sha(folder, name="d"):
    meta = json.loads((folder / name / "meta.json").read_text(encoding="utf-8"))
    return meta["train_sha256"], meta["val_sha256"]


@pytest.mark.parametrize("kind, options", [
    ("gpt2", ["--workers=2"]), ("char", ["--workers=2"]), ("char", ["--workers=1"])])
def test_memory_is_the_same_for_three_gigabytes_as_for_a_tenth(tmp_path, kind, options):
    peaks = []
    for size in (3 * GB // 10, 3 * GB):
        path = write(tmp_path / "a.txt", words(size))
        code, _, _, peak = prepared(tmp_path, path, *options, kind=kind)
        assert code == 0
        peaks.append(peak)
    assert peaks[1] < 1.1 * peaks[0] and peaks[1] < 400 + 150 * 2, peaks


def test_a_model_trains_on_three_gigabytes_at_once_and_in_little_memory(tmp_path):
    path = write(tmp_path / "a.txt", words(3 * GB))
    assert prepared(tmp_path, path)[0] == 0
    started, code = time.perf_counter(), PEAK.replace("prepare", "train")
    run = script("-c", code, "--dataset=d", f"--data_dir={tmp_path}", f"--out_dir={tmp_path}/out",
                 "--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=64", "--batch_size=2",
                 "--gradient_accumulation_steps=1", "--max_iters=200", "--eval_iters=5",
                 "--device=cpu", "--sample_tokens=0")
    wait_for(run, "step   1/200")
    seconds = time.perf_counter() - started
    printed, _ = run.communicate()
    peak = int(re.search(r"peak (\d+)", printed)[1]) / 1000
    print(f"first step after {seconds:.0f} s, {peak:.0f} MB, {printed[-500:]}")
    assert "done in" in printed and seconds < 60 and peak < 1500


@pytest.mark.parametrize("content", [b"x", b" ", b"word ", "日".encode()],
                         ids=["letters", "spaces", "words", "kanji"])
def test_a_line_of_a_gigabyte_is_encoded_in_bounded_memory(tmp_path, content):
    block = content * (2**20 // len(content))
    path = write(tmp_path / "a.txt", itertools.repeat(block, GB // len(block)))
    code, _, _, peak = prepared(tmp_path, path, "--workers=2")
    assert code == 0 and peak < 400 + 150 * 2
    assert len(load(tmp_path / "d").val) > 0


def test_an_invalid_byte_in_the_middle_of_two_gigabytes_is_named_or_replaced(tmp_path):
    half = list(words(GB // 10))
    position = 10 * sum(map(len, half))
    parts = [half] * 10 + [[b"caf\xe9 "]] + [half] * 10
    path = write(tmp_path / "a.txt", itertools.chain.from_iterable(parts))
    code, printed, _, peak = prepared(tmp_path, path)
    assert code == 2 and f"a.txt is not UTF-8, at byte {position + 3}:" in printed
    assert peak < 400 + 150 * 2
    code, _, _, peak = prepared(tmp_path, path, "--errors=replace")
    assert code == 0 and peak < 400 + 150 * 2


@pytest.fixture
def folder(tmp_path):
    """A folder of documents: one of 200 MB, many small ones, and difficult ones."""
    folder = tmp_path / "texts"
    folder.mkdir()
    write(folder / "large.txt", words(2 * 10**8, seed=1))
    with open(folder / "lines.jsonl", "w", encoding="utf-8") as file:
        for i, block in enumerate(words(5 * 10**7, seed=2)):
            for line in block.decode().splitlines()[:2]:
                file.write(json.dumps({"text": f"{i} {line}"}) + "\n")
    hard = "emoji 👩‍👩‍👧‍👦\r\ncontrol\1 \x1c!" + " " * 100_000 + "z" * 100_000 + "\n"
    (folder / "hard.txt").write_bytes((hard * 10).encode() + b"caf\xe9")
    (folder / "empty.txt").write_text("")
    (folder / "one.md").write_text("x")
    return folder


def test_the_bins_are_the_same_for_any_number_of_threads(tmp_path, folder):
    results = {}
    for options in (["--workers=1"], ["--workers=2"], ["--workers=4"]):
        code, *_ = prepared(tmp_path, folder, *options, "--errors=replace")
        assert code == 0
        results[" ".join(options)] = sha(tmp_path)
    assert len(set(results.values())) == 1, results


def test_twenty_kills_at_random_moments_change_nothing(tmp_path, folder):
    options = ["--errors=replace", "--workers=2", "--tokenizer=gpt2", f"--data_dir={tmp_path}"]
    started = time.perf_counter()
    code, printed = finished("prepare.py", folder, *options, "--name=whole")
    whole = time.perf_counter() - started
    assert code == 0, printed
    chance = random.Random(0)
    for _ in range(20):
        run = script("prepare.py", folder, *options, "--name=killed")
        time.sleep(chance.uniform(0, whole / 10))
        run.kill()
        run.communicate()
        if (tmp_path / "killed" / "train.bin").exists():  # it was done; the next one begins again
            assert sha(tmp_path, "killed") == sha(tmp_path, "whole")
    code, printed = finished("prepare.py", folder, *options, "--name=killed")
    assert code == 0, printed
    assert sha(tmp_path, "killed") == sha(tmp_path, "whole")
