"""pytest tests/test_finetune.py - the comparison of fine-tuning is fair, and fine-tuning helps"""

import re
import shlex

import finetune
import numpy as np
import pytest
from helpers import ROOT

import train
from configurator import configure
from internals import dataset
from model import GPT, GPTConfig

TEXT = """First Lord:
Now has the winter of the northern sea come down
on every roof and garden of our quiet town.

Second Lord:
How now, what's the matter? I pray you, good my lord, say
how long the ships of Venice in the harbour are to stay.
"""
REPRINT = TEXT.upper().replace("\n", " ").replace("winter", "summer")  # other case, other lines
STOCK = """JULIA:
How now, what's the matter? I pray you, good my lord, come in,
and tell me where the duke your brother and his men have been.
"""
SIZES = ["--n_layer=1", "--n_embd=32", "--block_size=16", "--eval_iters=4",
         "--batch_size=8"]


def corpus(*words, seed=0, lines=400):
    random = np.random.default_rng(seed)
    return "".join(" ".join(random.choice(words, 6)) + ".\n" for _ in range(lines))


@pytest.fixture
def data(tmp_path):
    """A folder in which Tiny Shakespeare is another text, with its letters."""
    (tmp_path / "shakespeare_char").mkdir()
    text = TEXT + corpus("the", "cat", "sat", "upon", "a", "mat", "and", "quickly", "dozed")
    (tmp_path / "shakespeare_char" / "input.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_play_that_shares_lines_is_left_out_and_one_that_shares_stock_phrases_is_not():
    stock = STOCK + corpus("the", "dog", "ran", "up", "a", "hill")
    plays = {"reprint": REPRINT, "stock": stock, "a part": REPRINT + stock[:900]}
    kept, counts = finetune.without_overlap(plays, TEXT)
    assert kept == {"stock": stock} and counts["stock"][0] > 0
    assert counts["reprint"][0] > 0.7 * counts["reprint"][1]  # not all: "summer" is new
    assert counts["a part"][0] < 0.3 * counts["a part"][1]


def test_the_base_has_the_vocabulary_of_what_follows(data, capsys):
    other = corpus("the", "dog", "ran", "up", "a", "hill")
    finetune.prepare_both({"reprint": TEXT, "other": other + '"9"'}, data)
    base = dataset.load(data / "other_plays")
    assert base.same_tokenizer(dataset.load(data / "shakespeare_char").meta)
    assert len(base.train) + len(base.val) == len(other)  # the marks and the 9 are left out
    assert "1 of 2 plays are kept" in capsys.readouterr().out


def test_the_best_learning_rate_has_a_worse_one_on_both_sides():
    for best in (0.0005, 0.001, 0.004, 0.016):
        tried = []

        def loss(rate, best=best, tried=tried):
            tried.append(rate)
            return abs(np.log(rate / best))

        assert finetune.best_learning_rate(loss) == best
        assert min(tried) < best < max(tried) and len(tried) == len(set(tried))


def test_the_search_for_a_learning_rate_ends_after_max_trials():
    best = finetune.best_learning_rate(lambda rate: rate)
    assert best == 2e-3 / 2**(finetune.MAX_TRIALS - 3)


def test_the_evaluation_covers_the_whole_validation_split():
    _, cfg, model = configure("", train.TrainConfig, GPTConfig, argv=finetune.SETTINGS)
    tokens = 1_115_394 - int(1_115_394 * 0.9)  # Tiny Shakespeare's
    assert cfg.eval_iters * cfg.batch_size >= (tokens - 1) // model.block_size


def test_a_fine_tuned_start_begins_lower_and_ends_lower(data, tmp_path, monkeypatch, capsys):
    for name, value in {"BASE_STEPS": 60, "STEPS": 12, "EVAL_INTERVAL": 6, "SEEDS": (1, 2),
                        "MAX_TRIALS": 3, "SETTINGS": finetune.SETTINGS + SIZES}.items():
        monkeypatch.setattr(finetune, name, value)
    other = corpus("the", "cat", "ran", "upon", "a", "hill", "and", "quickly", "sat",
                   seed=1)
    curves = finetune.main({"other": other}, data, tmp_path / "out", tmp_path / "both.png")
    (_, tuned), (_, scratch) = curves.items()
    for a, b in zip(tuned, scratch, strict=True):
        assert list(a) == list(b) == [0, 6, 12]
        assert a[0] < b[0] - 0.5 and a[12] < b[12]
    output = capsys.readouterr().out
    assert output.count("python train.py ") == 1 + 2 * (3 + 2)
    assert f"| {(scratch[0][12] + scratch[1][12]) / 2:.3f} |" in output
    assert (tmp_path / "both.png").stat().st_size > 10_000


def test_commands_in_the_docs_are_those_of_the_tool(monkeypatch):
    """Except for the last ones, which are for the reader's own text."""
    ran = []
    monkeypatch.setattr(finetune.train, "main", lambda argv: ran.append(argv) or [
        {"step": step, "val_loss": 1.0} for step in (0, finetune.STEPS, finetune.BASE_STEPS)])
    docs = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^python train.py (.*)$", docs, re.M)]
    for words in commands[:3]:
        of = dict(word[2:].split("=") for word in words if "=" in word)
        finetune.run(of["out_dir"], of["dataset"], int(of["max_iters"]), int(of["eval_interval"]),
                     float(of["learning_rate"]), int(of["seed"]), finetune.DATA, of["init_from"])
        assert words[1:] == ran[-1][1:]


def test_weights_of_gpt2_are_fine_tuned(tmp_path):
    """The run of config/finetune_shakespeare.py, with a tiny GPT-2 in Hugging Face's layout."""
    pytest.importorskip("safetensors")
    shape = GPTConfig(block_size=32, vocab_size=50257, n_layer=1, n_head=1, n_embd=8)
    GPT(shape).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "shakespeare").mkdir()
    for split in ("train", "val"):  # bins alone are GPT-2's BPE
        (np.arange(2000) % 70).astype("<u2").tofile(tmp_path / "shakespeare" / f"{split}.bin")
    metrics = train.main([str(ROOT / "config" / "finetune_shakespeare.py"), "--device=cpu",
                          f"--init_from={tmp_path / 'gpt2'}", f"--data_dir={tmp_path}",
                          f"--out_dir={tmp_path / 'out'}", "--sample_tokens=0", "--max_iters=5",
                          "--learning_rate=3e-3", "--eval_iters=8",
                          "--gradient_accumulation_steps=8"])
    losses = [m["val_loss"] for m in metrics if "val_loss" in m]
    assert len(losses) == 2 and losses[1] < losses[0] < 11
    assert {m["lr"] for m in metrics if "lr" in m} == {3e-3}
