"""pytest tests/test_finetune.py - the comparison of fine-tuning is fair, and fine-tuning helps"""

import finetune
import numpy as np
import pytest

from internals import dataset

SIZES = ["--n_layer=1", "--n_embd=32", "--block_size=16", "--eval_iters=4", "--batch_size=8"]


def corpus(words, seed=0):
    random = np.random.default_rng(seed)
    return "".join(" ".join(random.choice(words.split(), 6)) + ".\n" for _ in range(400))


TEXT = "Second Lord:\n" + corpus("the cat sat upon a mat and quickly dozed")


def test_a_play_that_shares_lines_is_left_out_and_one_that_shares_stock_phrases_is_not():
    other = corpus("the dog ran up a hill")
    plays = {"reprint": TEXT.upper().replace("\n", " "),  # other case, other lines
             "stock": other + TEXT[:100], "a part": other + TEXT[:1000]}
    kept, counts = finetune.without_overlap(plays, TEXT)
    assert kept == {"stock": plays["stock"]} and counts["stock"][0] > 0
    assert counts["reprint"][0] == counts["reprint"][1]
    assert 0.01 < counts["a part"][0] / counts["a part"][1] < 0.3


@pytest.mark.parametrize("best", [0.0005, 0.001, 0.004, 0.016])
def test_the_best_learning_rate_has_a_worse_one_on_both_sides(best):
    def loss(rate):
        tried.append(rate)
        return abs(np.log(rate / best))

    tried = []
    assert finetune.best_learning_rate(loss) == best
    assert min(tried) < best < max(tried) and len(tried) == len(set(tried))


def test_a_fine_tuned_start_begins_lower_and_ends_lower(tmp_path, monkeypatch, capsys):
    """Tiny Shakespeare is another text here."""
    (tmp_path / "shakespeare_char").mkdir()
    (tmp_path / "shakespeare_char" / "input.txt").write_text(TEXT, encoding="utf-8")
    for name, value in {"BASE_STEPS": 60, "STEPS": 12, "EVAL_INTERVAL": 6, "SEEDS": (1, 2),
                        "MAX_TRIALS": 3, "SETTINGS": finetune.SETTINGS + SIZES}.items():
        monkeypatch.setattr(finetune, name, value)
    other = corpus("the cat ran upon a hill and quickly sat", seed=1)
    curves = finetune.main({"reprint": TEXT, "other": other + '"9"'}, tmp_path, tmp_path / "out",
                           tmp_path / "both.png")
    base = dataset.load(tmp_path / "other_plays")
    assert base.same_tokenizer(dataset.load(tmp_path / "shakespeare_char").meta)
    assert len(base.train) + len(base.val) == len(other)  # the reprint, the marks and the 9 are out
    tuned, scratch = curves.values()
    for a, b in zip(tuned, scratch, strict=True):
        assert list(a) == list(b) == [0, 6, 12]
        assert a[0] < b[0] - 0.5 and a[12] < b[12]
    output = capsys.readouterr().out
    assert output.count("python train.py ") == 1 + 2 * (3 + 2)
    assert f"| {(scratch[0][12] + scratch[1][12]) / 2:.3f} |" in output
