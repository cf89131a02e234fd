"""pytest tests/test_look.py - tools/look.py records what the model computes, and writes a page

tests/test_look_page.py opens such a page in a browser."""

import base64
import itertools
import json
import math
import re
import zlib

import look
import numpy as np
import pytest
import torch
from helpers import GPT2_TINY, MODELS, MODERN, MODERN_TINY, TINY_RUN, model_of, tokens
from torch.nn import functional as F

from internals import checkpoint, checks, recording
from model import GPTConfig
from sample import draw, make_cache, stream
from train import main as train

CHARS = "".join(map(chr, range(40, 101)))
CPU = torch.device("cpu")


def recordable(config, levels=None, weights=None):
    """A model that can be recorded. levels: of its rounded weights."""
    if weights is None:
        weights = model_of(config, spread=0.3).state_dict()
    model = look.build_model(weights, config, CPU)
    if levels:
        look.round_weights(model, levels)
    return model


def recorded(config):
    """(a model that can be recorded, a text of 20 tokens, its Recording)."""
    model = recordable(config)
    idx = tokens(config, 1, 20)
    return model, idx, recording.record(model, idx)


def write_run(folder, config=GPT2_TINY):
    """The folder of a run with a model of random weights."""
    weights = model_of(config, spread=0.3).state_dict()
    meta = {"tokenizer": "char", "chars": CHARS, "vocab_size": 61}
    start = checks.Checkpoint(weights, vars(config), meta)
    checkpoint.write(start, folder / "ckpt.pt")


def page_of(folder, *words):
    """The data in the page of a run. words: of the command line."""
    html = folder / "new/page.html"
    look.main([f"--out_dir={folder}", f"--out={html}", "--device=cpu", *words])
    return data_in(html.read_text(encoding="utf-8"))


def data_in(html):
    start = '<script type="application/json" id="data">'
    return json.loads(re.search(f"{start}(.*?)</script>", html, re.DOTALL)[1])


def unpacked(text, dtype):
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)
    return torch.from_numpy(numbers.copy())


def recorded_attention(shown, shape):
    """(L, nh, T, T) from a page. shape: (L, nh, T)."""
    weights = torch.zeros(*shape, shape[-1])
    rows, columns = torch.tril_indices(shape[-1], shape[-1])
    packed = unpacked(shown["attention"], "<u2")
    weights[..., rows, columns] = packed.view(*shape[:2], -1) / 65535
    return weights


# ---- the recording is the model


@MODELS
def test_recorded_attention_times_values_is_the_output_of_the_block(config):
    model = recordable(config)
    values = []
    for block in model.transformer.h:
        block.attn.attend.register_forward_pre_hook(lambda _, inputs: values.append(inputs[2]))
    seen = recording.record(model, tokens(config, 1, 20))
    assert seen.attention.shape == (3, 2, 20, 20)
    for layer, block in enumerate(model.transformer.h):
        y = seen.attention[layer] @ values[layer][0]  # (nh, T, hs)
        torch.testing.assert_close(y, seen.heads[layer], rtol=0, atol=1e-5)
        y = block.attn.c_proj(y.transpose(0, 1).reshape(20, -1))
        torch.testing.assert_close(y, seen.added[layer, 0], rtol=0, atol=1e-5)


@MODELS
def test_recording_changes_nothing_and_its_parts_sum_to_the_stream_that_gives_the_logits(config):
    model, idx, seen = recorded(config)
    with torch.no_grad():
        logits = model_of(config, spread=0.3)(idx, idx)[0][0]
    assert torch.equal(seen.logits, logits)
    assert torch.equal(recording.head(model, seen.stream[-1][None])[0], logits)
    total = seen.stream[0] + seen.added.sum(dim=(0, 1))
    torch.testing.assert_close(total, seen.stream[-1], rtol=0, atol=1e-4)


@MODELS
def test_a_head_that_is_switched_off_is_a_head_whose_columns_of_c_proj_are_zero(config):
    """Likewise an MLP whose c_proj is zero. Nothing stays switched off."""
    model, idx, seen = recorded(config)
    hs = config.n_embd // config.n_head
    losses = recording.ablation(model, idx, config.vocab_size)
    assert losses.shape == (3, 3) and losses.unique().numel() == 9
    assert torch.equal(recording.record(model, idx).logits, seen.logits)
    for layer, part in itertools.product(range(3), range(3)):  # two heads, and the MLP
        without = model_of(config, spread=0.3)
        block = without.transformer.h[layer]
        with torch.no_grad():
            if part < 2:
                block.attn.c_proj.weight[:, part * hs:(part + 1) * hs] = 0
            else:
                for p in block.mlp.c_proj.parameters():
                    p.zero_()
            loss = F.cross_entropy(without(idx, idx)[0][0, :-1], idx[0, 1:])
        torch.testing.assert_close(losses[layer, part], loss, rtol=0, atol=1e-6)


@MODELS
def test_the_votes_sum_to_the_difference_of_two_logits_and_each_is_that_of_its_part(config):
    """A head adds its output times its columns of c_proj to the stream."""
    model, _, seen = recorded(config)
    first, second = seen.logits.topk(2).indices.T
    votes = recording.votes(model, seen, first, second)
    assert votes.shape == (20, 2 + 3 * 3)
    logits = seen.logits
    if config.softcap:
        logits = config.softcap * torch.atanh(logits / config.softcap)
    gap = logits.gather(1, first[:, None]) - logits.gather(1, second[:, None])
    torch.testing.assert_close(votes.sum(dim=-1), gap[:, 0], rtol=0, atol=1e-4)

    u, _ = recording.gap_direction(model, seen.stream[-1], first, second)
    expected = [seen.stream[0]]
    for layer, block in enumerate(model.transformer.h):
        columns = block.attn.c_proj.weight.split(16, dim=1)
        expected += [seen.heads[layer, number] @ columns[number].T for number in range(2)]
        expected.append(seen.added[layer, 1])
    for part, added in enumerate(expected):
        vote = (u * added).sum(dim=-1)
        torch.testing.assert_close(votes[:, part], vote, rtol=0, atol=1e-4)


# ---- the numbers in the page are the tensors


@pytest.mark.parametrize("config", [GPT2_TINY, MODERN_TINY], ids=["gpt2", "modern"])
def test_numbers_in_the_page_are_those_of_the_rounded_model(config, tmp_path):
    write_run(tmp_path, config)
    data = page_of(tmp_path, "--start=ROMEO")
    ids = data["ids"]
    assert "".join(data["vocab"][i] for i in ids[:5]) == "ROMEO"
    assert data["prompt_length"] == 5 and len(ids) == config.block_size == 32
    shown = data["moments"][0]
    model = recordable(config, levels=127)
    idx = torch.tensor([ids])
    seen = recording.record(model, idx)

    probs = seen.logits.double().softmax(dim=-1)
    order = probs.argsort(dim=-1, descending=True)
    lens = recording.head(model, seen.stream).softmax(dim=-1).max(dim=-1)
    came = idx[0, 1:, None]
    for name, expected in {
        "top_ids": order[:, :10],
        "top_probs": probs.topk(10).values,
        "entropy": -(probs * probs.log2()).sum(dim=-1),
        "next_prob": probs[:-1].gather(1, came)[:, 0],
        "next_rank": 1 + (order[:-1] == came).int().argmax(dim=-1),
        "loss": F.cross_entropy(seen.logits[:-1], idx[0, 1:]),
        "ablated_loss": recording.ablation(model, idx, 61),
        "lens_ids": lens.indices,
        "lens_probs": lens.values,
        "votes": recording.votes(model, seen, order[:, 0], order[:, 1]),
    }.items():
        actual = torch.tensor(shown[name], dtype=torch.float64)
        torch.testing.assert_close(actual, expected.double(), rtol=1e-5, atol=1e-6)
    attention = recorded_attention(shown, (3, 2, 32))
    torch.testing.assert_close(attention, seen.attention, rtol=0, atol=8e-6)
    assert torch.equal(unpacked(shown["logits"], "<f4").view(32, 61), seen.logits)


@pytest.mark.parametrize("levels", [127, 31])
def test_the_page_has_the_rounded_weights_at_most_half_a_step_away(levels):
    """Also rows of zeros, and rows of very different sizes."""
    weights = model_of(MODERN_TINY, spread=0.3).state_dict()
    matrix = weights["transformer.h.0.mlp.c_fc.weight"]
    matrix *= torch.logspace(-30, 3, len(matrix))[:, None]
    matrix[7] = 0
    model = look.build_model(weights, MODERN_TINY, CPU)
    stored = look.round_weights(model, levels)
    integers = unpacked(stored["integers"], "<i1")
    floats = unpacked(stored["floats"], "<f4")
    rounded = dict(model.named_parameters())
    assert [name for name, *_ in stored["shapes"]] == list(rounded)
    for name, rows, *columns in stored["shapes"]:
        weight = floats[:rows]
        floats = floats[rows:]
        step = torch.tensor(0.0)
        if columns:
            n = rows * columns[0]
            weight = integers[:n].view(rows, -1) * weight[:, None]
            integers = integers[n:]
            step = weights[name].abs().amax(dim=1, keepdim=True) / levels
        assert torch.equal(weight, rounded[name]), name
        assert ((weight - weights[name]).abs() <= 0.6 * step + 1e-38).all(), name
    assert len(integers) == len(floats) == 0


# ---- a run with snapshots


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """The folder of a short run with snapshots."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    settings = TINY_RUN | MODERN
    settings |= {"data_dir": data_dir, "out_dir": folder, "block_size": 48, "max_iters": 30,
                 "eval_interval": 10, "snapshots": True}
    train([f"--{name}={value}" for name, value in settings.items()])
    return folder


@pytest.fixture(scope="module")
def data(trained):
    """The data of its page."""
    (trained / "prompt.txt").write_text("Line 7: the quick", encoding="utf-8")
    return page_of(trained, f"--start=FILE:{trained / 'prompt.txt'}")


def test_the_page_has_each_snapshot_and_the_best_model_among_them(trained, data):
    moments = data["moments"]
    steps = list(checkpoint.snapshot_paths(trained))
    assert [moment["step"] for moment in moments] == steps == [0, 5, 10, 20, 30]
    main = moments[data["main"]]
    assert main["step"] == checkpoint.first_undamaged(trained, "best.pt").step
    losses = [moment["loss"] for moment in moments]
    assert losses == sorted(losses, reverse=True)  # it has learned such text
    assert abs(losses[0] - math.log(data["n_vocab"])) < 0.01  # zero_init: at first it guesses
    for moment in moments:
        assert "weights" in moment and ("votes" in moment) == (moment is main)
        assert abs(moment["loss"] - moment["exact_loss"]) < 0.05
    assert main["loss"] != main["exact_loss"]


def test_a_large_model_runs_in_the_page_with_a_few_recorded_snapshots(trained, monkeypatch):
    """If the weights of three models do not fit."""
    monkeypatch.setattr(look, "MAX_WEIGHTS", 3 * 7_472 - 1)
    monkeypatch.setattr(look, "MAX_RECORDED", 4)
    data = page_of(trained, "--start=Line")
    moments = data["moments"]
    assert [moment["step"] for moment in moments] == [0, 5, 10, 30]
    assert all("votes" in moment for moment in moments)
    assert [moment for moment in moments if "weights" in moment] == [moments[data["main"]]]


def test_a_page_contains_no_path_and_its_title_says_what_the_model_is(trained, data, tmp_path,
                                                                      capsys):
    assert data["title"] == "A GPT with 7,472 parameters, trained on tiny.txt"
    assert str(trained.parent) not in (trained / "new/page.html").read_text(encoding="utf-8")
    html = tmp_path / "file.html"
    look.main([f"--out_dir={trained / 'best.pt'}", f"--out={html}"])  # a file of the run
    assert "MB; the model runs in it" in capsys.readouterr().out
    assert len(data_in(html.read_text(encoding="utf-8"))["moments"]) == 5


def test_the_filmstrip_is_what_each_snapshot_samples_with_the_same_random_numbers(trained, data):
    best = checkpoint.first_undamaged(trained, "best.pt")
    config = GPTConfig(**best.model_args)
    prompt = torch.tensor([data["ids"][:17]])
    paths = checkpoint.snapshot_paths(trained)
    for moment in data["moments"]:
        weights = checkpoint.read_snapshot(paths[moment["step"]], best.model_args)
        levels = 31
        if moment["step"] == best.step:
            levels = 127
        model = recordable(config, levels, weights)
        uniforms = iter(data["dice"])

        def roll(logits, ids, uniforms=uniforms):
            return draw(logits, torch.tensor([[next(uniforms)]]), 0.8, 200)

        roll.n_vocab = data["n_vocab"]
        new = itertools.islice(stream(model, prompt, roll, make_cache(model, 1)), 60)
        assert moment["film_ids"] == [ids.item() for ids, _ in new]


def test_of_many_snapshots_those_stay_that_are_far_apart_on_a_log_scale():
    steps = [0, 5, 10, 20, 40, 80, 90]
    assert look.chosen_steps(steps, main=85, limit=10) == [*steps[:-1], 85, 90]
    assert look.chosen_steps(steps, main=85, limit=7) == [0, 5, 10, 20, 40, 85, 90]
    assert look.chosen_steps(steps, main=90, limit=3) == [0, 5, 90]
    assert look.chosen_steps([], main=7, limit=3) == [7]


# ---- what there is to find


def test_the_page_opens_where_a_late_layer_turns_a_wrong_guess_into_a_confident_right_one():
    """Position 2 changes from 9 to the right 3 in the last row; position 1 is right all along,
    position 3 ends wrong, and position 4 is the last one, which no token follows."""
    ids = [0, 1, 2, 3, 4]
    shown = {"lens_ids": [[5, 2, 9, 7, 8], [5, 2, 9, 7, 8], [5, 2, 3, 6, 7]],
             "lens_probs": [[0.5, 0.9, 0.6, 0.9, 0.9]] * 2 + [[0.5, 0.9, 0.8, 0.9, 0.9]],
             "next_prob": [0.1, 0.9, 0.8, 0.0]}
    assert look.turning_point(shown, ids, 1, spaces={9}) == (2, 2)
    shown["lens_ids"][1][2] = 3
    shown["lens_ids"][0][2] = 3  # now no layer changes a guess
    assert look.turning_point(shown, ids, 1, spaces=set()) == (1, None)


def test_the_discoveries_are_those_of_the_recorded_values(data):
    shown = data["moments"][data["main"]]
    opening = data["open"]
    ablated = torch.tensor(shown["ablated_loss"])[:, :2]
    assert ablated[opening["layer"], opening["head"]] == ablated.max()

    found = {each["kind"]: each for each in data["discoveries"]}
    assert len(found) == 3
    assert 1 <= found["time"]["moment"] < len(data["moments"])
    previous = found["previous"]
    attention = recorded_attention(shown, (2, 2, len(data["ids"])))
    shares = attention.diagonal(-1, 2, 3)[..., 1:].mean(dim=-1)
    assert shares[previous["layer"], previous["head"]] == shares.max()
    assert abs(previous["share"] - shares.max()) < 1e-4


# ---- text


def test_the_text_is_the_prompt_and_what_the_model_samples_after_it(tmp_path):
    write_run(tmp_path)
    model = model_of(GPT2_TINY, spread=0.3)
    for n, expected in ((0, 5), (9, 14), (None, 32)):
        data = page_of(tmp_path, "--start=ROMEO", f"--max_new_tokens={n}", "--temperature=0")
        assert len(data["ids"]) == expected
        prompt = torch.tensor([data["ids"][:5]])
        greedy = model.generate(prompt, expected - 5, temperature=0)
        assert data["ids"] == greedy[0].tolist()
    shown = page_of(tmp_path, "--start=R", "--max_new_tokens=0")["moments"][0]
    assert shown["loss"] is None and shown["next_prob"] == []  # a text of one token


HOSTILE = "</script><script>alert(1)</script><!--{{page.css}}\"'&\n\x00\u2028\u202e\u05d0😀\ud800"


def test_hostile_text_cannot_end_the_script_that_contains_it():
    """And the data is ASCII, so that no encoding can damage it."""
    data = {"name": HOSTILE, "vocab": sorted(set(HOSTILE))}
    html = look.page(data)
    inside = re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1]
    assert json.loads(inside) == data
    assert inside.isascii() and "<" not in inside


class Words:
    """A tokenizer with the interface of GPT2Tokenizer: every word is a token."""

    n_vocab = 50
    end_of_text = 49
    default_start = "0"

    def encode(self, text, special=False):
        return np.array([int(word) for word in text.split()])

    def decode_bytes(self, ids):
        return b"\xe2" if ids == [3] else b"%d" % ids[0]


def test_a_model_with_bpe_is_recorded_but_not_embedded(tmp_path, monkeypatch, capsys):
    """Ids that pad the vocabulary are never shown, bytes that are not a character are, and the end
    of the text is the end."""
    write_run(tmp_path)
    monkeypatch.setattr(look, "tokenizer_from_meta", lambda meta: Words())
    data = page_of(tmp_path, "--start=7 48 3", "--max_new_tokens=20")
    shown = data["moments"][0]
    assert "logits" not in shown and "weights" not in shown
    assert data["why_not_live"] == "its tokens are not single characters"
    assert f"does not run in it, because {data['why_not_live']}" in capsys.readouterr().out
    vocab = data["vocab"]
    assert [vocab[i] for i in ("7", "48", "3")] == ["7", "48", "\\xe2"]
    assert max(map(int, vocab)) < 50
    seen = recording.record(recordable(GPT2_TINY), torch.tensor([data["ids"]]))  # not rounded
    probs = seen.logits[:, :50].double().softmax(dim=-1).topk(10).values
    actual = torch.tensor(shown["top_probs"], dtype=torch.float64)
    torch.testing.assert_close(actual, probs, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(Words, "end_of_text", data["ids"][-1])
    ended = page_of(tmp_path, "--start=7 48 3", "--max_new_tokens=20")["ids"]
    assert ended == data["ids"][:data["ids"].index(data["ids"][-1], 3)]


@pytest.mark.parametrize("count, source, task, expected", [
    (607_872, "Shakespeare's plays, from the package x==1", None,
     "A GPT with 0.6M parameters, trained on Shakespeare's plays"),
    (11_000_000, "/home/me/secret/novel.txt", "C:\\me\\questions.jsonl",
     "A GPT with 11M parameters, trained on novel.txt, then on the task questions.jsonl"),
    (124_439_808, None, None, "A GPT with 124M parameters"),
])
def test_the_title_says_what_the_model_is_without_a_path(count, source, task, expected):
    assert look.title(count, source, task) == expected


# ---- mistakes


def test_a_mistake_is_one_line(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    for word, message in (
        ("--max_new_tokens=32", "a prompt of 1 token and max_new_tokens=32"),
        ("--out=.", "out=. is a folder: give the name of a file"),
    ):
        assert message in mistake(look.main, "--out_dir=.", "--start=A", word)
    monkeypatch.setattr(look, "MAX_ATTENTION", 1000)
    line = mistake(look.main, "--out_dir=.", "--start=A")
    assert "the attention weights of 32 tokens would take" in line
    assert not list(tmp_path.glob("*.html*"))


def test_a_snapshot_that_diverged_is_left_out_with_a_line(tmp_path, capsys):
    write_run(tmp_path)
    diverged = model_of(GPT2_TINY)
    checkpoint.write_snapshot(tmp_path, 5, diverged)
    diverged.transformer.ln_f.bias.data.fill_(math.nan)
    checkpoint.write_snapshot(tmp_path, 10, diverged)
    data = page_of(tmp_path, "--start=A")
    assert "the page leaves out step 10: the model's logits are not" in capsys.readouterr().err
    assert [shown["step"] for shown in data["moments"]] == [0, 5]
