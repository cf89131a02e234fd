"""pytest tests/test_bad_input.py - a person's mistake: one line, exit code 2, nothing lost

One table per script. Damaged files of every format are in test_fuzz.py.
"""

import io
import json
import os
import pickle
import shutil
import urllib.request
from unittest import mock

import numpy as np
import pytest
from helpers import Payload

import prepare
import sample
import train
from internals import devices


@pytest.fixture
def dataset(tmp_path):
    """A function: write a dataset of these ids; the folder of the dataset."""
    def write(name, train_ids, val_ids):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for split, ids in (("train", train_ids), ("val", val_ids)):
            np.array(ids, dtype=np.uint16).tofile(folder / f"{split}.bin")
        return folder

    return write


# ---- command lines


@pytest.mark.parametrize("change, message", [
    ({"eval_iters": 0}, "eval_iters=0 must be 1 or more"),
    ({"align": 10}, "block_size=16 must be a multiple of align=10"),
    ({"batch_size": 10**11}, "must be at most 1,048,576"),
    ({"out_dir": ""}, "out_dir= is not a folder"),
    ({"device": "meta"}, "device=meta cannot be used here: only cpu, cuda and mps are supported"),
    ({"min_lr": 1.0}, "min_lr=1.0 is above learning_rate=0.01"),
    ({"n_embd": 15}, "n_embd=15 must be a multiple of n_head=2"),
    ({"n_embd": 128_000}, "B parameters needs at least"),
    ({"init_from": "resum"}, "or a model; did you mean resume?"),
    ({"init_from": "llama"}, "use one of scratch, resume, auto, gpt2, gpt2-m"),
    ({"init_from": ""}, "init_from= is empty"),
    ({"init_from": "resume"}, "has no checkpoint"),
    ({"vocab_size": 3}, "vocab_size=3 is less than the 41 tokens"),
    ({"lr": 2}, "did you mean learning_rate?"),
    ({"no-compile": ""}, "did you mean compile=False?"),
    ({"temp": 1}, "--help lists the settings"),
    ({"dataset": "nowhere"}, "make it with `python prepare.py FILE --name=nowhere --data_dir="),
    ({"dataset": "tinny"}, "; did you mean tiny?"),
    ({"dataset": "openwebtext"}, "to begin with a small dataset, run `python train.py config/q"),
    ({"block_size": 400}, "block_size=400 is too long for"),
    ({"wandb_log": True, "tracker": "trackio"}, "pip install trackio"),
])
def test_train_refuses(mistake, tiny, tmp_path, change, message):
    assert message in mistake(train.main, *tiny(**change))
    assert not list(tmp_path.glob("out/*.pt"))


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    train.main(["--dataset=tiny", f"--data_dir={data_dir}", f"--out_dir={out}", "--max_iters=0",
                "--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=16", "--eval_iters=1"])
    return out


@pytest.mark.parametrize("words, message", [
    (["--start="], "start is empty: the model needs at least one character"),
    (["--start=naïve"], "which come from the training text: 'ï' (U+00EF)"),
    (["--start=FILE:/no/such/file"], "/no/such/file"),
    (["--out_dir=/no/such/run"], "/no/such/run has no checkpoint"),
    (["--init_from=gtp2"], "is not a folder of a run or a model; did you mean gpt2?"),
    (["--init_from=no/such/folder"], "is not a folder of a run or a model; use one of resume"),
    (["--out=."], "out=. is a folder: give the name of a file"),
    (["--stop="], "stop must have a character, or be None"),
    (["--top_p=0"], "top_p=0.0 must be above 0 and at most 1"),
    (["--interactive=True", "--cache=False"], "interactive=True needs cache=True"),
    (["--interactive=True", "--start=A"], "and excludes start and out"),
    (["--dtype=int8", "--compile=True"], "dtype=int8 cannot be combined with compile=True"),
])
def test_sample_refuses(mistake, trained, words, message):
    assert message in mistake(sample.main, f"--out_dir={trained}", *words)


def test_too_many_samples_for_the_memory_are_one_line(mistake, trained, monkeypatch):
    def too_large(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(sample, "continue_text", too_large)
    found = mistake(sample.main, f"--out_dir={trained}", "--num_samples=7")
    assert found == "error: out of memory with num_samples=7: use fewer, or a smaller model"
    # 1 layer, 16 positions and 8 channels: a sample has 2 x 128 numbers of 4 bytes
    monkeypatch.setattr(devices, "memory_bytes", lambda _: 7 * 1024 - 1)
    assert "num_samples=7 needs at least" in mistake(
        sample.main, f"--out_dir={trained}", "--num_samples=7")


@pytest.mark.parametrize("words, message", [
    ([], "sources must be given"),
    (["nothing.txt"], "there is no file nothing.txt; the built-in"),
    (["play_char"], "did you mean plays_char?"),
    ([__file__, "plays_char"], "plays_char is a built-in dataset: give it alone"),
    ([__file__, "--tokenizer=gpt-2"], "; did you mean gpt2?"),
    ([__file__, "--separator="], "separator is empty"),
    (["plays_char", "--digits=2"], "--digits applies only to addition, not to plays_char"),
    (["addition", "--digits=4"], "digits=4 must be 1, 2 or 3"),
    (["https://example.org/a?b=c&d"], "download the file, as in `curl -LO 'https://example.org/"),
    (["-"], "no file name: give the dataset a --name"),
    (["/dev/null", "--name=d"], "/dev/null is a device"),
    *(([__file__, f"--name={name}"], "cannot be called") for name in
      ("../x", "/tmp/x", "a\\b", "", "plays")),
])
def test_prepare_refuses(mistake, tmp_path, words, message):
    data = tmp_path / "data"
    assert message in mistake(prepare.main, *words, f"--data_dir={data}")
    assert not data.exists()


# ---- bins


@pytest.mark.parametrize("name, content, message", [
    ("train.bin", None, "train.bin does not exist: make it"),
    ("val.bin", None, "val.bin is missing, empty or of odd size"),
    ("train.bin", b"\0" * 500, "has 250 tokens, but the meta.json"),
    ("val.bin", b"\0" * 800, "val.bin has sha256"),
])
def test_bins_that_are_not_as_prepared_are_refused(mistake, tiny, data_dir, tmp_path, name, content,
                                                   message):
    shutil.copytree(data_dir / "tiny", tmp_path / "data" / "tiny")
    path = tmp_path / "data" / "tiny" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert message in mistake(train.main, *tiny(data_dir=tmp_path / "data"))


def test_ids_outside_the_vocabulary_are_refused(mistake, tiny, dataset):
    folder = dataset("ids", [0, 1, 2] * 50, [0, 1, 3] * 50)
    meta = {"tokenizer": "char", "chars": "abc", "vocab_size": 3}
    (folder / "meta.json").write_text(json.dumps(meta))
    line = mistake(train.main, *tiny(dataset="ids", data_dir=folder.parent))
    assert "val.bin has the token id 3, but the vocabulary ends at 2" in line


def test_a_pickle_is_never_run(mistake, tiny, dataset, tmp_path):
    folder = dataset("pkl", [0] * 500, [0] * 500)
    meta = {"itos": {0: "a"}, "evil": Payload(tmp_path / "ran")}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    line = mistake(train.main, *tiny(dataset="pkl", data_dir=folder.parent))
    assert "meta.pkl is not what prepare.py writes" in line and "it would run" in line
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / "meta.pkl").read_bytes())
    assert (tmp_path / "ran").exists()  # so the payload was a real one


# ---- preparing


@pytest.mark.parametrize("content", ["mine", '{"tokenizer": "gpt2", "vocab_size": 50257}'])
@pytest.mark.parametrize("names", [
    ["train.bin"], ["val.bin"], ["meta.json"], ["train.bin", "meta.json"], ["val.bin", "meta.pkl"],
], ids=" ".join)
def test_prepare_overwrites_nothing_that_it_did_not_write(mistake, tmp_path, names, content):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in names:
        (folder / name).write_text(content)
    (tmp_path / "mine.txt").write_text("abc " * 100)
    line = mistake(prepare.main, tmp_path / "mine.txt", f"--data_dir={tmp_path}")
    assert f"has {names[0]}" in line and "but no meta.json with checksums" in line
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
        names, content)


@pytest.mark.parametrize("name", ["partial/draft.txt", "partial/.draft", "partial/a/b", "partial"])
def test_prepare_removes_nothing_that_it_did_not_write(mistake, tmp_path, name):
    draft = tmp_path / "mine" / name
    draft.parent.mkdir(parents=True)
    draft.write_text("abc " * 100)
    (tmp_path / "a.txt").write_text("abc " * 100)
    line = mistake(prepare.main, tmp_path / "a.txt", f"--data_dir={tmp_path}", "--name=mine")
    assert f"{tmp_path / 'mine' / name}".startswith(line.split()[1]) and "move it away" in line
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == [draft]


def test_prepare_removes_no_bins_that_a_link_points_to(mistake, tmp_path, dataset):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "partial").symlink_to(dataset("other", [1] * 9, [2] * 9))
    (tmp_path / "a.txt").write_text("abc " * 100)
    line = mistake(prepare.main, tmp_path / "a.txt", f"--data_dir={tmp_path}", "--name=mine")
    assert "mine/partial is in the way" in line
    assert (tmp_path / "data" / "other" / "train.bin").exists()


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(mistake, tmp_path, monkeypatch):
    """When train.bin is complete, and val.bin is not."""
    full = mock.Mock(side_effect=[None, OSError(28, "No space left on device")])
    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "a.txt").write_text("abc " * 100)
    line = mistake(prepare.main, tmp_path / "a.txt", f"--data_dir={tmp_path}")
    assert "No space left on device" in line
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("answer, message", [
    (lambda *_, **__: io.BytesIO(b"<html>please log in</html>"), "has sha256"),
    (lambda *_, **__: open("/no/such/host"), "cannot be downloaded"),
])
def test_a_download_of_something_else_is_refused(mistake, tmp_path, monkeypatch, answer, message):
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    line = mistake(prepare.main, "shakespeare_char", f"--data_dir={tmp_path}")
    assert message in line
    assert f"save the text as {tmp_path / 'shakespeare_char' / 'input.txt'} and run" in line
    assert not list(tmp_path.glob("shakespeare_char/*"))
