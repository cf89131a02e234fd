"""pytest tests/test_evaluate.py - perplexity and HellaSwag, against their definitions"""

import json
import math
from dataclasses import asdict

import evaluate
import numpy as np
import pytest
import torch
from evaluate import main
from helpers import GPT2_TINY, model_of

import prepare
from docs.gpt2_in_numpy import gpt2
from model import GPT, GPTConfig

CHARS = prepare.CharTokenizer("\n .abcdefghijklmnopqrstuvwxyzéß日本語")  # 34; GPT2_TINY has 61 ids
TEXT = "the quick brown fox jumps over the lazy dog.\nédith aß 日本 語.\n" * 2
BPE_CONFIG = GPTConfig(block_size=24, vocab_size=50264, n_layer=1, n_head=2, n_embd=16, bias=True)
RIGHT = "it ate the fish and slept"
EXAMPLES = [  # in the format of hellaswag_val.jsonl, one of them longer than the model's window
    {"ind": 24, "activity_label": "Cats", "ctx_a": "A cat sits.", "ctx_b": "then", "split": "val",
     "ctx": "A cat sits. then", "endings": ["it flies", RIGHT, "he paints the wall", "dogs. Do!"]},
    {"ind": 25, "ctx": "A boat drifts on the lake under the old stone bridge while two men row",
     "endings": ["it sinks", "they rest and look at the water for a long time " * 3, "é", "a"]},
    {"ind": 26, "ctx": "[header] How to boil an egg [title] Take water.", "source_id": "wikihow~1",
     "endings": ["Heat it.", "Throw the pan away, and then go to bed.", "[step] Put it in.", "No"]},
]
GOOD = {"ctx": "a", "endings": ["a", "b", "c", "d"], "label": 0}


def sharp_model(config):
    """Random weights, large enough that some tokens are far likelier than others."""
    model = model_of(config)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            p.data *= 16
        if name.endswith("bias"):
            p.data.normal_(0.0, 0.1)
    return model


@pytest.fixture(scope="module")
def bpe():
    return prepare.GPT2Tokenizer()


@pytest.fixture
def saved(tmp_path):
    """A function: the --out_dir of a checkpoint of this model."""
    def save(model, tokenizer):
        meta = tokenizer.meta | {"vocab_size": tokenizer.n_vocab}
        torch.save({"model": model.state_dict(), "model_args": asdict(model.config), "meta": meta},
                   tmp_path / "best.pt")
        return f"--out_dir={tmp_path}"

    return save


@pytest.fixture
def written(tmp_path):
    """A function: the path of a file of this text, or of these examples."""
    def write(content):
        if isinstance(content, list):
            content = "".join(json.dumps(example) + "\n" for example in content)
        (tmp_path / "file").write_text(content, encoding="utf-8")
        return tmp_path / "file"

    return write


def slow_nats(model, ids, n_vocab):
    """-log p of the last of the ids, by the model that is written in NumPy."""
    weights = {name: p.double().numpy() for name, p in model.state_dict().items()}
    config = model.config
    logits = gpt2(np.array(ids[:-1]), weights, config.n_layer, config.n_head)[-1, :n_vocab]
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[ids[-1]]


def slow_text_nats(model, ids, stride, n_vocab):
    """The same, of all tokens but the first, each by itself: a token is predicted in the first of
    the windows [k stride, k stride + block_size) that has the tokens before it."""
    total = 0.0
    for i in range(1, len(ids)):
        k = max(0, math.ceil((i - model.block_size) / stride))
        total += slow_nats(model, ids[k * stride:i + 1], n_vocab)
    return total


def ending_nats(model, ctx, ending, n_vocab):
    """The same, of the tokens of an ending, in the one window that ends with it."""
    ids = [*ctx, *ending][-(model.block_size + 1):]
    n = min(len(ending), len(ids) - 1)
    return [slow_nats(model, ids[:i + 1], n_vocab) for i in range(len(ids) - n, len(ids))]


# ---- perplexity


@pytest.mark.parametrize("stride", [5, 32])
@pytest.mark.parametrize("length", [2, 33, 34, 120])
def test_sliding_windows_equal_one_token_at_a_time(saved, written, length, stride):
    model = sharp_model(GPT2_TINY)
    text = TEXT[:length]
    result = main([saved(model, CHARS), f"--text={written(text)}", f"--stride={stride}",
                   "--device=cpu"])
    assert result["tokens"] == length - 1
    nats = slow_text_nats(model, CHARS.encode(text).tolist(), stride, CHARS.n_vocab)
    assert result["nats_per_token"] * (length - 1) == pytest.approx(nats, rel=1e-5)


def test_a_model_without_opinions_has_the_perplexity_of_its_vocabulary(saved, written, capsys):
    model = GPT(GPT2_TINY)
    torch.nn.init.zeros_(model.transformer.wte.weight)
    text = "aé 日本\n本日  a\n"  # 12 characters, 11 of them predicted: 2 + 1 + 3 + 3 + ... bytes
    result = main([saved(model, CHARS), f"--text={written(text)}", "--device=cpu"])
    nats = 11 * math.log(34)
    assert result == pytest.approx({
        "tokens": 11, "words": 4, "bytes": 20, "stride": 16, "nats_per_token": math.log(34),
        "perplexity_per_token": 34, "perplexity_per_word": math.exp(nats / 4),
        "bits_per_byte": nats / math.log(2) / 20}, rel=1e-5)
    assert "bits per byte         2.7981" in capsys.readouterr().out


def test_bpe_counts_every_byte_after_end_of_text(saved, written, bpe):
    text = "Naïve 👍🏽 <|endoftext|>\nof 日本 in six words " * 2
    model = sharp_model(BPE_CONFIG)
    ids = [50256, *bpe.encode(text).tolist()]
    result = main([saved(model, bpe), f"--text={written(text)}", "--stride=10", "--device=cpu"])
    nats = slow_text_nats(model, ids, 10, 50257)
    assert ids.count(50256) == 1 and len(ids) > 25  # more than one window
    assert result == pytest.approx({
        "tokens": len(ids) - 1, "words": 16, "bytes": len(text.encode()), "stride": 10,
        "nats_per_token": nats / (len(ids) - 1),
        "perplexity_per_token": math.exp(nats / (len(ids) - 1)),
        "perplexity_per_word": math.exp(nats / 16),
        "bits_per_byte": nats / math.log(2) / len(text.encode())}, rel=1e-4)


# ---- HellaSwag


@pytest.mark.parametrize("ctx, n", [("abcdefgh", 4), ("a", 4), ("abcdefgh.......", 3)])
def test_a_long_example_keeps_its_end(ctx, n):
    """As many tokens as the model sees, and the one that it predicts last."""
    ending = "xyz"[:n - 1]
    for ids, scored in evaluate.ending_rows(CHARS, [(ctx, [ending] * 4, 0)], block_size=6):
        assert CHARS.decode(ids) == (ctx + " " + ending)[-7:] and scored == n


def test_hellaswag_takes_the_ending_of_least_loss(saved, written, bpe):
    """Labels are set to what an independent calculation prefers, by the sum or the mean."""
    model = sharp_model(BPE_CONFIG)
    by_sum = []
    by_mean = []
    for example in EXAMPLES:
        ctx = bpe.encode(example["ctx"]).tolist()
        nats = []
        for ending in example["endings"]:
            nats.append(ending_nats(model, ctx, bpe.encode(" " + ending).tolist(), 50257))
        by_sum.append(int(np.argmin([np.sum(each) for each in nats])))
        by_mean.append(int(np.argmin([np.mean(each) for each in nats])))
    assert by_sum != by_mean
    out_dir = saved(model, bpe)
    for labels, size in (by_sum, 3), (by_mean, 1), ([1, 2, 3], 100):
        examples = []
        for example, label in zip(EXAMPLES, labels, strict=True):
            examples.append(example | {"label": label})
        result = main([out_dir, f"--hellaswag={written(examples)}", f"--batch_size={size}"])
        assert result == {
            "examples": 3,
            "acc": pytest.approx(np.mean(np.equal(by_sum, labels))),
            "acc_norm": pytest.approx(np.mean(np.equal(by_mean, labels)))}


def test_unusual_line_ends_inside_a_text_are_no_lines_and_a_label_can_be_a_text(written):
    example = {"ctx": "a\u2028b\x85c", "endings": ["d", "e\u2029", "", "f"], "label": " 3"}
    path = written(json.dumps(example, ensure_ascii=False) + "\r\n\n")
    assert evaluate.read_hellaswag(path) == [("a\u2028b\x85c", ["d", "e\u2029", "", "f"], 3)]


# ---- the command, and mistakes


@pytest.mark.parametrize("line", [
    "", "{", "[]", "[" * 100_000, json.dumps({"ctx": "a", "label": 0}),
    *(json.dumps(GOOD | change) for change in (
        {"label": 4}, {"label": -1}, {"label": ""}, {"label": True}, {"endings": ["a", "b", "c"]},
        {"endings": ["a", "b", "c", 4]}, {"ctx": ""})),
], ids=lambda line: line[:20])
def test_a_line_that_is_no_example_is_refused_by_its_number(mistake, written, line):
    path = written("\n".join([json.dumps(GOOD), line, json.dumps(GOOD)]))
    assert f"{path}, line 2 does not have the format of hellaswag_val.jsonl" in mistake(
        main, f"--hellaswag={path}")
    assert len(evaluate.read_hellaswag(path, limit=1)) == 1


@pytest.mark.parametrize("text, options, message", [
    (TEXT, [], "there is nothing to evaluate on: give --text=FILE or --hellaswag="),
    (TEXT, ["--text=FILE", "--stride=33"], "must be at least 1 and at most block_size=32"),
    ("", ["--text=FILE"], "file is empty"),
    ("a", ["--text=FILE"], "the text is too short"),
    ("aX", ["--text=FILE"], "'X' (U+0058)"),
])
def test_what_cannot_be_evaluated_is_refused(mistake, saved, written, text, options, message):
    path = str(written(text))
    out_dir = saved(model_of(GPT2_TINY), CHARS)
    assert message in mistake(main, out_dir, *(word.replace("FILE", path) for word in options))


def test_weights_that_are_nan_are_refused(mistake, saved, written):
    model = model_of(GPT2_TINY)
    torch.nn.init.constant_(model.transformer.wte.weight, math.nan)
    line = mistake(main, saved(model, CHARS), f"--text={written(TEXT)}")
    assert "the model's logits are not numbers (NaN)" in line
