"""pytest tests/test_look.py - tools/look.py records what the model computes, and writes a page

tests/test_look_page.py opens such a page in a browser."""

import base64
import json
import re

import look
import numpy as np
import pytest
import torch
from helpers import GPT2_TINY, MODELS, MODERN, MODERN_TINY, model_of, tokens
from torch.nn import functional as F

from internals import checkpoint, checks
from model import Attend
from prepare import CharTokenizer
from train import main as train


def recordable(config, seed=0, rounded=False):
    weights = model_of(config, seed, spread=0.3).state_dict()
    return look.build_model(weights, config, torch.device("cpu"), rounded)


def write_run(folder, config, chars=None, step=0):
    """The folder of a run with a model of random weights; returns the model."""
    model = model_of(config, spread=0.3)
    meta = {"tokenizer": "char", "chars": chars or "".join(map(chr, range(40, 101))),
            "vocab_size": len(chars or range(61))}
    checkpoint.write(checks.Checkpoint(model.state_dict(), vars(config), meta),
                     folder / "ckpt.pt")
    return model


def data_of(path):
    """The data in a page."""
    html = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html,
                                re.DOTALL)[1])


def unpacked(text, dtype):
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).copy())


# ---- the recording is the model


@MODELS
def test_recorded_attention_times_values_is_the_output_of_the_block(config):
    model, idx = recordable(config), tokens(config, 1, 20)
    values = []
    for block in model.transformer.h:
        block.attn.attend.register_forward_pre_hook(lambda _, inputs: values.append(inputs[2]))
    seen = look.record(model, idx)
    for layer, block in enumerate(model.transformer.h):
        y = seen.attention[layer] @ values[layer][0]  # (nh, T, hs)
        y = block.attn.c_proj(y.transpose(0, 1).reshape(20, -1))
        torch.testing.assert_close(y, seen.added[layer, 0], rtol=0, atol=1e-5)


@MODELS
def test_recorded_attention_is_causal_and_each_row_sums_to_one(config):
    attention = look.record(recordable(config), tokens(config, 1, 20)).attention
    assert attention.shape == (3, 2, 20, 20)
    assert torch.equal(attention.triu(1), torch.zeros_like(attention))
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(3, 2, 20), rtol=0, atol=1e-6)


@MODELS
def test_recording_does_not_change_the_logits_and_the_last_row_of_the_lens_is_the_logits(config):
    model, idx = recordable(config), tokens(config, 1, 20)
    with torch.no_grad():
        logits = model_of(config, spread=0.3)(idx, idx)[0][0]
    seen = look.record(model, idx)
    assert torch.equal(seen.logits, logits)
    assert torch.equal(look.head(model, seen.stream[-1][None])[0], logits)
    assert not any(part._forward_hooks for part in model.modules())


@MODELS
def test_the_stream_is_the_sum_of_the_embedding_and_all_that_is_added(config):
    seen = look.record(recordable(config), tokens(config, 1, 20))
    total = seen.stream[0] + seen.added.sum(dim=(0, 1))
    torch.testing.assert_close(total, seen.stream[-1], rtol=0, atol=1e-4)


@MODELS
def test_a_head_that_is_switched_off_is_a_head_whose_columns_of_c_proj_are_zero(config):
    idx, hs = tokens(config, 1, 20), config.n_embd // config.n_head
    losses = look.ablation(recordable(config), idx, config.vocab_size)
    assert losses.unique().numel() == 6
    for layer in range(3):
        for number in range(2):
            model = model_of(config, spread=0.3)
            weight = model.transformer.h[layer].attn.c_proj.weight
            with torch.no_grad():
                weight[:, number * hs:(number + 1) * hs] = 0
                loss = F.cross_entropy(model(idx, idx)[0][0, :-1], idx[0, 1:])
            torch.testing.assert_close(losses[layer, number], loss, rtol=0, atol=1e-6)


def test_nothing_stays_switched_off_after_an_ablation():
    model, idx = recordable(GPT2_TINY), tokens(GPT2_TINY, 1, 20)
    before = look.record(model, idx).logits
    look.ablation(model, idx, 61)
    assert torch.equal(look.record(model, idx).logits, before)


# ---- the numbers in the page are the tensors


@pytest.mark.parametrize("config", [GPT2_TINY, MODERN_TINY], ids=["gpt2", "modern"])
def test_numbers_in_the_page_are_those_of_the_rounded_model(config, tmp_path):
    write_run(tmp_path, config)
    look.main([f"--out_dir={tmp_path}", "--start=ROMEO", "--device=cpu"])
    data = data_of(tmp_path / "look.html")
    model, idx = recordable(config, rounded=True), torch.tensor([data["ids"]])
    shown, seen = data["moments"][0], look.record(model, idx)
    assert "".join(data["vocab"][i] for i in data["ids"][:5]) == "ROMEO"
    assert data["prompt_length"] == 5 and len(data["ids"]) == config.block_size == 32

    probs = seen.logits.double().softmax(dim=-1)
    near = {"rtol": 1e-5, "atol": 1e-12}
    for name, expected in [
        ("top_probs", probs.topk(10).values), ("entropy", -(probs * probs.log2()).sum(dim=-1)),
        ("next_prob", probs[range(31), data["ids"][1:]]),
        ("stream_size", seen.stream.norm(dim=-1)), ("added_size", seen.added.norm(dim=-1)),
        ("loss", F.cross_entropy(seen.logits[:-1], idx[0, 1:])),
        ("ablated_loss", look.ablation(model, idx, 61)),
        ("lens_probs", look.head(model, seen.stream).softmax(dim=-1).amax(dim=-1)),
    ]:
        torch.testing.assert_close(torch.tensor(shown[name], dtype=torch.float64),
                                   expected.double(), **near)
    assert shown["top_ids"] == probs.topk(10).indices.tolist()
    order = probs.argsort(dim=-1, descending=True)
    ranks = [row.tolist().index(i) + 1 for row, i in zip(order, data["ids"][1:], strict=False)]
    assert shown["next_rank"] == ranks
    assert shown["lens_ids"] == look.head(model, seen.stream).argmax(dim=-1).tolist()

    packed = unpacked(shown["attention"], "<u2").view(3, 2, -1) / 65535
    rows, columns = torch.tril_indices(32, 32)
    torch.testing.assert_close(packed, seen.attention[..., rows, columns], rtol=0, atol=8e-6)
    assert torch.equal(unpacked(data["logits"], "<f4").view(32, 61), seen.logits)
    weights = unpacked(data["weights"], "<f2").float()
    for name, n in data["shapes"]:
        assert torch.equal(weights[:n], model.state_dict()[name].flatten()), name
        weights = weights[n:]
    assert len(weights) == 0


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """The folder of a short run with snapshots."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    settings = {"dataset": "tiny", "data_dir": data_dir, "out_dir": folder, "device": "cpu",
                "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 48, "batch_size": 4,
                "gradient_accumulation_steps": 1, "max_iters": 30, "eval_interval": 10,
                "eval_iters": 2, "learning_rate": 0.01, "sample_tokens": 0, "dtype": "float32",
                "snapshots": True, **MODERN}
    train([f"--{name}={value}" for name, value in settings.items()])
    return folder


def test_the_page_has_each_snapshot_and_the_best_model_among_them(trained, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text("Line 7: the quick", encoding="utf-8")
    look.main([f"--out_dir={trained}", f"--start=FILE:{tmp_path / 'prompt.txt'}"])
    assert "look.html: " in capsys.readouterr().out
    data = data_of(trained / "look.html")
    moments = data["moments"]
    assert [moment["step"] for moment in moments] == [0, 5, 10, 20, 30]
    best = checkpoint.first_undamaged(trained, "best.pt")
    assert moments[data["main"]]["step"] == best.step
    look.main([f"--out_dir={trained / 'best.pt'}", f"--out={tmp_path / 'file.html'}"])
    assert len(data_of(tmp_path / "file.html")["moments"]) == 5  # a file in out_dir has them too
    losses = [moment["loss"] for moment in moments]
    assert losses == sorted(losses, reverse=True)  # it has learned such text
    assert abs(losses[0] - np.log(data["n_vocab"])) < 0.01  # zero_init: at first it guesses


def test_only_some_of_many_snapshots_are_chosen_with_the_first_and_the_last(tmp_path):
    (tmp_path / "snapshots").mkdir()
    for step in (*range(0, 10_000, 100), 12_345):
        (tmp_path / "snapshots" / f"step-{step:06}.safetensors").touch()
    chosen = list(look.chosen_snapshots(tmp_path))
    assert len(chosen) == look.MAX_SNAPSHOTS and chosen[0] == 0 and chosen[-1] == 12_345
    assert chosen == sorted(set(chosen))


def test_the_text_is_the_prompt_and_what_the_model_samples_after_it(tmp_path):
    write_run(tmp_path, GPT2_TINY)
    html = tmp_path / "sub" / "x.html"
    for n, expected in ((0, 5), (9, 14), (None, 32)):
        look.main([f"--out_dir={tmp_path}", "--start=ROMEO", f"--max_new_tokens={n}",
                   f"--out={html}", "--temperature=0"])
        ids = data_of(html)["ids"]
        assert len(ids) == expected
        with torch.no_grad():
            greedy = model_of(GPT2_TINY, spread=0.3).generate(torch.tensor([ids[:5]]), expected - 5,
                                                              temperature=0)
        assert ids == greedy[0].tolist()


def test_a_text_of_one_token_has_no_loss(tmp_path):
    write_run(tmp_path, GPT2_TINY)
    look.main([f"--out_dir={tmp_path}", "--start=R", "--max_new_tokens=0"])
    shown = data_of(tmp_path / "look.html")["moments"][0]
    assert shown["loss"] is None and shown["next_prob"] == [] and len(shown["entropy"]) == 1


# ---- text


HOSTILE = "</script><script>alert(1)</script><!--\"'&\n\x00\u2028\u202e\u05d0😀\ud800"


def test_hostile_text_cannot_end_the_script_that_contains_it(tmp_path):
    """And the file is ASCII, except for the templates, so that no encoding can damage it."""
    tokenizer = CharTokenizer("".join(sorted(set(HOSTILE))))
    data = {"name": HOSTILE, "vocab": list(tokenizer.chars)}
    html = look.page(data)
    inside = re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1]
    assert json.loads(inside) == data
    assert inside.isascii() and "<" not in inside
    assert look.page({"name": ""}).count("<script") == html.count("<script")


def test_parts_of_a_character_are_shown_as_bytes():
    class Bytes:
        def decode_bytes(self, ids):
            return [b" the", b"\xe2\x80", b"\x99", "é".encode()][ids[0]]

    assert [look.text_of(Bytes(), i) for i in range(4)] == [" the", "\\xe2\\x80", "\\x99", "é"]


class Words:
    """A tokenizer with the interface of GPT2Tokenizer: every word is a token."""

    n_vocab, end_of_text, default_start = 50, 49, "0"

    def encode(self, text, special=False):
        return np.array([int(word) for word in text.split()])

    def decode_bytes(self, ids):
        return b" ".join(b"%d" % i for i in ids)


def test_a_model_with_bpe_is_recorded_but_not_embedded(tmp_path, monkeypatch):
    """Ids that pad the vocabulary are never shown, and the end of the text is the end."""
    write_run(tmp_path, GPT2_TINY)
    monkeypatch.setattr(look, "tokenizer_from_meta", lambda meta: Words())
    look.main([f"--out_dir={tmp_path}", "--start=7 48 3", "--max_new_tokens=20"])
    data = data_of(tmp_path / "look.html")
    assert "weights" not in data and "logits" not in data
    assert {int(i): text for i, text in data["vocab"].items()}.items() >= {
        (7, "7"), (48, "48"), (3, "3")}
    shown = data["moments"][0]
    assert max(map(int, data["vocab"])) < 50 and 49 not in data["ids"]
    seen = look.record(recordable(GPT2_TINY), torch.tensor([data["ids"]]))  # not rounded
    probs = seen.logits[:, :50].double().softmax(dim=-1)
    torch.testing.assert_close(torch.tensor(shown["top_probs"], dtype=torch.float64),
                               probs.topk(10).values, rtol=1e-5, atol=1e-12)


def test_a_model_with_too_many_parameters_or_too_large_weights_is_not_embedded(monkeypatch):
    tokenizer, model = CharTokenizer("ab"), model_of(GPT2_TINY)
    weights = dict(model.state_dict())
    assert look.runs_in_the_page(tokenizer, weights, GPT2_TINY)
    weights["transformer.ln_f.bias"] = torch.full((32,), 1e5)  # float16 ends at 65504
    assert not look.runs_in_the_page(tokenizer, weights, GPT2_TINY)
    monkeypatch.setattr(look, "MAX_PARAMETERS", 1000)
    assert not look.runs_in_the_page(tokenizer, model.state_dict(), GPT2_TINY)


# ---- mistakes


@pytest.mark.parametrize("words, message", [
    (["--out_dir=nix"], "nix has no checkpoint"),
    (["--start=x{"], "which come from the training text: 'x' (U+0078)"),
    (["--start=" + 33 * "R"], "the prompt has 33 tokens, but the model sees at most 32"),
    (["--start=ROMEO", "--max_new_tokens=28"], "use at most 27"),
    (["--max_new_tokens=-1"], "max_new_tokens=-1 must be 0 or more"),
    (["--start="], "start is empty"),
    (["--out=."], "out=. is a folder: give the name of a file"),
    (["--init_from=nix"], "init_from=nix is not a folder of a run or a model"),
    (["--top=1"], "unknown setting 'top'"),
])
def test_a_mistake_is_one_line(mistake, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, GPT2_TINY)
    assert message in mistake(look.main, "--out_dir=.", "--start=A", *words)
    assert not list(tmp_path.glob("*.html*"))


def test_a_text_whose_attention_is_too_large_is_refused(mistake, tmp_path, monkeypatch):
    write_run(tmp_path, GPT2_TINY)
    monkeypatch.setattr(look, "MAX_ATTENTION", 1000)
    line = mistake(look.main, f"--out_dir={tmp_path}", "--start=A")
    assert "the attention weights of 32 tokens would take" in line


def test_a_model_with_nan_is_one_line(mistake, tmp_path):
    model = write_run(tmp_path, GPT2_TINY)
    found = checkpoint.read(tmp_path / "ckpt.pt")
    found.model["transformer.ln_f.bias"] = torch.full((32,), float("nan"))
    checkpoint.write(found, tmp_path / "ckpt.pt")
    assert "not numbers (NaN)" in mistake(look.main, f"--out_dir={tmp_path}", "--start=A")
    assert isinstance(model.transformer.h[0].attn.attend, Attend)
