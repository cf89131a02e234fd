"""pytest tests/test_look.py - tools/look.py records what the model computes, and writes a page

tests/test_look_page.py opens such a page in a browser."""

import base64
import itertools
import json
import re
import zlib

import look
import numpy as np
import pytest
import torch
from helpers import GPT2_TINY, MODELS, MODERN, MODERN_TINY, model_of, tokens
from torch.nn import functional as F

from internals import checkpoint, checks
from model import Attend, GPTConfig
from prepare import CharTokenizer
from sample import draw, make_cache, stream
from train import main as train


def recordable(config, seed=0, levels=None):
    weights = model_of(config, seed, spread=0.3).state_dict()
    return look.build_model(weights, config, torch.device("cpu"), levels)


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
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)
    return torch.from_numpy(numbers.copy())


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
    assert losses.shape == (3, 3) and losses.unique().numel() == 9
    for layer in range(3):
        for number in range(3):  # two heads, and the MLP
            model = model_of(config, spread=0.3)
            block = model.transformer.h[layer]
            with torch.no_grad():
                if number < 2:
                    block.attn.c_proj.weight[:, number * hs:(number + 1) * hs] = 0
                else:
                    for p in block.mlp.c_proj.parameters():
                        p.zero_()
                loss = F.cross_entropy(model(idx, idx)[0][0, :-1], idx[0, 1:])
            torch.testing.assert_close(losses[layer, number], loss, rtol=0, atol=1e-6)


@MODELS
def test_the_votes_of_all_parts_sum_to_the_difference_of_two_logits(config):
    """For every position, and for a norm with a scale and a bias."""
    model, idx = recordable(config), tokens(config, 1, 20)
    seen = look.record(model, idx)
    first, second = seen.logits.topk(2).indices.T
    votes = look.votes(model, seen, first, second)
    assert votes.shape == (20, 2 + 3 * 3)
    logits = seen.logits
    if config.softcap:
        logits = config.softcap * torch.atanh(logits / config.softcap)
    gap = logits.gather(1, first[:, None]) - logits.gather(1, second[:, None])
    torch.testing.assert_close(votes.sum(dim=-1), gap[:, 0], rtol=0, atol=1e-4)


@MODELS
def test_the_vote_of_a_head_is_what_the_difference_loses_without_it(config):
    """In the last layer nothing reads what it adds, except for the final norm, whose scale the
    split keeps: undo the change of the scale, and the difference of the logits is the vote."""
    model, idx = recordable(config), tokens(config, 1, 20)
    seen = look.record(model, idx)
    first, second = seen.logits.topk(2).indices.T
    vote = look.votes(model, seen, first, second)[:, -2]  # of the last MLP
    last = model.transformer.h[-1]
    hook = last.mlp.register_forward_hook(look.zeros_instead)
    without = look.record(model, idx)
    hook.remove()

    def scale(x):
        if config.norm == "layernorm":
            return (x.var(dim=-1, correction=0) + config.norm_eps).sqrt()
        return (x.square().mean(dim=-1) + config.norm_eps).sqrt()

    def gap(stream):
        normed = model.transformer.ln_f(stream)
        bias = getattr(model.transformer.ln_f, "bias", None)
        if bias is not None:
            normed = normed - bias
        weight = model.lm_head.weight
        return (normed * (weight[first] - weight[second])).sum(dim=-1) * scale(stream)

    with torch.no_grad():
        x = seen.stream[-1]
        expected = (gap(x) - gap(without.stream[-1])) / scale(x)
    torch.testing.assert_close(vote, expected, rtol=1e-4, atol=1e-4)


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
    model, idx = recordable(config, levels=127), torch.tensor([data["ids"]])
    shown, seen = data["moments"][0], look.record(model, idx)
    assert "".join(data["vocab"][i] for i in data["ids"][:5]) == "ROMEO"
    assert data["prompt_length"] == 5 and len(data["ids"]) == config.block_size == 32

    probs = seen.logits.double().softmax(dim=-1)
    near = {"rtol": 1e-5, "atol": 1e-12}
    for name, expected in [
        ("top_probs", probs.topk(10).values), ("entropy", -(probs * probs.log2()).sum(dim=-1)),
        ("next_prob", probs[range(31), data["ids"][1:]]),
        ("loss", F.cross_entropy(seen.logits[:-1], idx[0, 1:])),
        ("ablated_loss", look.ablation(model, idx, 61)),
        ("lens_probs", look.head(model, seen.stream).softmax(dim=-1).amax(dim=-1)),
        ("votes", look.votes(model, seen, *probs.topk(2).indices.T)),
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
    weights = shown["weights"]
    integers, floats = unpacked(weights["integers"], "<i1"), unpacked(weights["floats"], "<f4")
    for name, *shape in weights["shapes"]:
        weight, floats = floats[:shape[0]], floats[shape[0]:]
        if len(shape) == 2:
            n = shape[0] * shape[1]
            weight = integers[:n].view(shape) * weight[:, None]
            integers = integers[n:]
        assert torch.equal(weight, model.state_dict()[name]), name
    assert len(integers) == len(floats) == 0


def test_rounded_weights_are_at_most_half_a_step_away_and_rows_of_zeros_stay_zero():
    weight = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-30, 3, 50)[:, None]
    weight[7] = 0
    for levels in (127, 31):
        rounded = look.rounded({"w": weight, "b": weight[0]}, levels)
        step = weight.abs().amax(dim=1, keepdim=True) / levels
        assert ((rounded["w"] - weight).abs() <= 0.6 * step + 1e-38).all()
        assert not rounded["w"][7].any() and rounded["w"][0].unique().numel() > 10
        assert torch.equal(rounded["b"], weight[0])


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
    steps = list(checkpoint.snapshot_paths(trained))
    assert [moment["step"] for moment in moments] == steps == [0, 5, 10, 20, 30]
    best = checkpoint.first_undamaged(trained, "best.pt")
    assert moments[data["main"]]["step"] == best.step
    look.main([f"--out_dir={trained / 'best.pt'}", f"--out={tmp_path / 'file.html'}"])
    assert len(data_of(tmp_path / "file.html")["moments"]) == len(steps)  # a file in out_dir too
    losses = [moment["loss"] for moment in moments]
    assert losses == sorted(losses, reverse=True)  # it has learned such text
    assert abs(losses[0] - np.log(data["n_vocab"])) < 0.01  # zero_init: at first it guesses
    for moment in moments:
        assert "weights" in moment and abs(moment["loss"] - moment["exact_loss"]) < 0.05
    assert data["title"] == "A 7,472-parameter GPT trained on the characters of tiny.txt"
    assert str(trained.parent) not in (trained / "look.html").read_text(encoding="utf-8")


def test_the_filmstrip_is_what_each_snapshot_samples_with_the_same_random_numbers(trained):
    look.main([f"--out_dir={trained}", "--start=Line"])
    data = data_of(trained / "look.html")
    best = checkpoint.first_undamaged(trained, "best.pt")
    config, prompt = GPTConfig(**best.model_args), torch.tensor([data["ids"][:4]])
    for moment in data["moments"]:
        weights = best.model
        if moment["step"] != best.step:
            path = checkpoint.snapshot_paths(trained)[moment["step"]]
            weights = checkpoint.read_snapshot(path, best.model_args)
        levels = 127 if moment["step"] == best.step else 31
        model = look.build_model(weights, config, torch.device("cpu"), levels)
        uniforms = iter(data["dice"])

        def roll(logits, ids, uniforms=uniforms):
            return draw(logits, torch.tensor([[next(uniforms)]]), 0.8, 200)

        roll.n_vocab = data["n_vocab"]
        new = itertools.islice(stream(model, prompt, roll, make_cache(model, 1)), 60)
        assert moment["film_ids"] == [ids.item() for ids, _ in new]
    assert len({tuple(moment["film_ids"]) for moment in data["moments"]}) > 2


@pytest.mark.parametrize("steps, main, limit, expected", [
    ([0, 5, 10, 20, 40, 80, 160, 320, 640, 900], 750, 10,
     [0, 5, 10, 20, 40, 80, 160, 320, 750, 900]),
    ([0, 5, 10, 20, 40], 40, 10, [0, 5, 10, 20, 40]),
    ([0, 5, 10, 20, 40], 40, 3, [0, 5, 40]),
    ([], 7, 10, [7]),
])
def test_of_many_snapshots_those_stay_that_are_far_apart_on_a_log_scale(steps, main, limit,
                                                                        expected):
    assert look.chosen_steps(steps, main, limit) == expected


# ---- what there is to find


def test_the_page_opens_where_a_late_layer_turns_a_wrong_guess_into_a_confident_right_one():
    """Position 2 changes from 9 to the right 3 in the last row; position 1 is right all along,
    position 3 ends wrong, and position 4 is the last one, which no token follows."""
    ids = [0, 1, 2, 3, 4]
    shown = {"lens_ids": [[5, 2, 9, 7, 8], [5, 2, 9, 7, 8], [5, 2, 3, 6, 7]],
             "lens_probs": [[0.5, 0.9, 0.6, 0.9, 0.9]] * 2 + [[0.5, 0.9, 0.8, 0.9, 0.9]],
             "next_prob": [0.1, 0.9, 0.8, 0.0]}
    assert look.turning_point(shown, ids, 1, spaces={9}) == (2, 2)
    shown["lens_ids"][1][2] = shown["lens_ids"][0][2] = 3  # now no layer changes a guess
    assert look.turning_point(shown, ids, 1, spaces=set()) == (1, None)


def test_the_discoveries_are_those_of_the_recorded_values(trained):
    look.main([f"--out_dir={trained}", "--start=Line 7"])
    data = data_of(trained / "look.html")
    previous, time = [found for found in data["discoveries"]
                      if found["kind"] in ("previous", "time")]
    assert len(data["discoveries"]) == 3 and data["open"]["token"] < len(data["ids"]) - 1
    shown = data["moments"][data["main"]]
    weights = unpacked(shown["attention"], "<u2").view(2, 2, -1) / 65535
    T = len(data["ids"])
    square = torch.zeros(2, 2, T, T)
    rows, columns = torch.tril_indices(T, T)
    square[..., rows, columns] = weights
    shares = torch.stack([square[..., t, t - 1] for t in range(2, T)]).mean(dim=0)
    assert shares[previous["layer"], previous["head"]] == shares.max()
    assert abs(previous["share"] - shares.max()) < 1e-4
    assert 1 <= time["moment"] < len(data["moments"]) and 1 <= time["token"] < T
    ablated = torch.tensor(shown["ablated_loss"])[:, :2]
    assert ablated[data["open"]["layer"], data["open"]["head"]] == ablated.max()


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
    assert "logits" not in data and "weights" not in data["moments"][0]
    assert data["why_not_live"] == "its tokens are not single characters"
    assert {int(i): text for i, text in data["vocab"].items()}.items() >= {
        (7, "7"), (48, "48"), (3, "3")}
    shown = data["moments"][0]
    assert max(map(int, data["vocab"])) < 50 and 49 not in data["ids"]
    seen = look.record(recordable(GPT2_TINY), torch.tensor([data["ids"]]))  # not rounded
    probs = seen.logits[:, :50].double().softmax(dim=-1)
    torch.testing.assert_close(torch.tensor(shown["top_probs"], dtype=torch.float64),
                               probs.topk(10).values, rtol=1e-5, atol=1e-12)


def test_a_model_that_does_not_run_in_the_page_says_why(tmp_path, monkeypatch, capsys):
    write_run(tmp_path, GPT2_TINY)
    monkeypatch.setattr(look, "MAX_PARAMETERS", 1000)
    look.main([f"--out_dir={tmp_path}", "--start=A"])
    why = "it has 41,152 parameters, and at most 1,000 run in a page"
    assert f"the model does not run in it, because {why}" in capsys.readouterr().out
    assert data_of(tmp_path / "look.html")["why_not_live"] == why


@pytest.mark.parametrize("count, source, expected", [
    (607_872, "Shakespeare's plays, from the package x==1",
     "A 0.6M-parameter GPT trained on the characters of Shakespeare's plays"),
    (11_000_000, "/home/me/secret/novel.txt",
     "An 11M-parameter GPT trained on the characters of novel.txt"),
    (124_439_808, None, "A 124M-parameter GPT"), (8_160, None, "An 8,160-parameter GPT"),
    (110_000, None, "A 0.1M-parameter GPT"),
])
def test_the_title_says_what_the_model_is_without_a_path(count, source, expected):
    assert look.title(count, CharTokenizer("ab"), {"source": source}) == expected


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
