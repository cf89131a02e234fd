"""pytest tests/test_sample.py - text from a checkpoint: the KV cache, sampling, streaming"""

import io
import json
import math
import random
import re
import signal
import sys
from dataclasses import asdict, replace
from itertools import islice

import pytest
import torch
from helpers import MODELS, MODERN_TINY, TINY_RUN, command_line, model_of, script, state, tokens

import prepare
import sample
from internals import checkpoint
from internals.checks import Checkpoint
from internals.errors import UserError, one_line_errors
from internals.streaming import Sample, show
from model import GPTConfig
from sample import (
    SEPARATOR,
    KVCache,
    Sampler,
    complete,
    draw,
    load_model,
    main,
    make_cache,
    penalize,
    stream,
)
from train import main as train_main

GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """The out_dir of a run that has learned its text by heart."""
    out = tmp_path_factory.mktemp("trained")
    settings = TINY_RUN | {"data_dir": data_dir, "out_dir": out, "max_iters": 200, "dropout": 0,
                           "eval_interval": 100, "n_embd": 32}
    train_main(command_line(settings))
    return out


def texts(capsys, *argv):
    capsys.readouterr()
    main(list(argv))
    *samples, rest = capsys.readouterr().out.split(SEPARATOR + "\n")
    assert rest == ""
    return samples


def sampled(model, idx, count, seeds=(0,), cache=None, **filters):
    """`count` ids that follow idx (B, T): (B, count)."""
    if cache is None:
        cache = make_cache(model, max(len(idx), len(seeds)))
    written = stream(model, idx, Sampler(seeds, **filters), cache)
    return torch.cat([ids for ids, _ in islice(written, count)], dim=1)


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- the command


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_trained_model_writes_what_it_was_trained_on(trained, capsys, dtype):
    """stdout gets the text alone, stderr one line. The parameters of int8 layers count too."""
    main([f"--out_dir={trained}", "--num_samples=2", "--temperature=0", "--start=Line 7: ",
          "--max_new_tokens=20", f"--dtype={dtype}", "--device=cpu"])
    out, err = capsys.readouterr()
    first, second, rest = out.split(f"\n{SEPARATOR}\n")
    assert first == second and first.startswith("Line 7: the quick brown fox ") and rest == ""
    expected = re.escape(f"{trained} (0.03M parameters): ")
    assert re.fullmatch(expected + r"40 tokens in [\d.]+ s, [\d,]+ tok/s\n", err)


def test_the_seed_decides_the_text(trained, capsys):
    argv = [f"--out_dir={trained}", "--max_new_tokens=40", "--start=Line"]
    a, b, c = texts(capsys, *argv, "--num_samples=3", "--seed=5")
    assert len({a, b, c}) == 3 and len(a) == len(b) == len("Line") + 40 + 1
    assert texts(capsys, *argv, "--num_samples=1", "--seed=5") == [a]
    assert texts(capsys, *argv, "--num_samples=2", "--seed=6") == [b, c]


@pytest.mark.parametrize("narrowest", ["--top_k=1", "--top_p=1e-9", "--min_p=1"])
def test_the_narrowest_filter_of_each_kind_is_greedy(trained, capsys, narrowest):
    argv = [f"--out_dir={trained}", "--num_samples=1", "--max_new_tokens=40", "--temperature=2"]
    assert texts(capsys, *argv, narrowest) == texts(capsys, *argv, "--temperature=0")
    assert texts(capsys, *argv) != texts(capsys, *argv, "--temperature=0")


def test_a_long_prompt_from_a_file_is_cropped_with_a_warning(trained, capsys, tmp_path):
    (tmp_path / "prompt.txt").write_text("Line " * 10, encoding="utf-8")
    main([f"--out_dir={trained}", f"--start=FILE:{tmp_path / 'prompt.txt'}", "--num_samples=1"])
    printed = capsys.readouterr()
    assert printed.out.startswith("Line " * 10)
    assert "warning: the prompt has 50 tokens, but the model sees only the last 16" in printed.err


def test_the_best_checkpoint_is_read_first_unless_a_file_is_named(trained, tmp_path, capsys):
    argv = ["--num_samples=1", "--max_new_tokens=20"]
    best = tmp_path / "best.pt"
    last = tmp_path / "ckpt.pt"
    start = state(trained)
    checkpoint.write(start, best)
    zeros = {name: p * 0 for name, p in start.model.items()}
    checkpoint.write(replace(start, model=zeros), last)
    good = texts(capsys, f"--out_dir={tmp_path}", *argv)
    bad = texts(capsys, f"--out_dir={last}", *argv)
    assert good != bad
    assert texts(capsys, f"--init_from={best}", *argv) == good
    best.unlink()
    assert texts(capsys, f"--out_dir={tmp_path}", *argv) == bad


def bpe_checkpoint(tmp_path, favorites):
    """A model with GPT-2's vocabulary whose most likely tokens are these, one after the other."""
    config = GPTConfig(block_size=16, vocab_size=50304, n_layer=1, n_head=1, n_embd=32)
    weights = model_of(config).state_dict()
    wte = weights["transformer.wte.weight"].zero_()
    wpe = weights["transformer.wpe.weight"].zero_()
    for name in weights:  # blocks add nothing; each position votes for one token
        if "c_proj" in name:
            weights[name].zero_()
    for position, token in enumerate(favorites):
        pair = slice(2 * position, 2 * position + 2)
        wte[token, pair] = torch.tensor([1.0, -1.0])
        wpe[position, pair] = torch.tensor([5.0, -5.0])
    start = Checkpoint(weights, asdict(config), {"tokenizer": "gpt2", "vocab_size": 50257})
    checkpoint.write(start, tmp_path / "bpe" / "best.pt")
    return tmp_path / "bpe"


def test_padded_ids_are_never_sampled_from_a_checkpoint(tmp_path, capsys):
    """The most likely id is 50300; GPT-2's tokenizer ends at 50256 and cannot decode it."""
    out = bpe_checkpoint(tmp_path, [50300, 64])
    text, = texts(capsys, f"--out_dir={out}", "--num_samples=1", "--temperature=0", "--start=\n",
                  "--max_new_tokens=2")
    assert text.endswith("a\n")
    assert complete(*load_model("resume", out), "\n", 2, temperature=0) + "\n" == text


def test_a_character_split_over_tokens_is_printed_whole_and_the_text_ends_where_it_ends(
        tmp_path, capsys):
    ids = [*prepare.GPT2Tokenizer().encode("👍🏽é").tolist(), 50256]  # 50256: <|endoftext|>
    assert len(ids) > 5
    out = bpe_checkpoint(tmp_path, [*ids, 64, 64])
    path = tmp_path / "samples.jsonl"
    text, = texts(capsys, f"--out_dir={out}", "--num_samples=1", "--temperature=0", "--start=\n",
                  f"--out={path}")
    assert text == "\n👍🏽é\n"
    line, = read_lines(path)
    assert line["text"] == "👍🏽é" and line["tokens"] == ids
    assert len(line["logprobs"]) == len(ids)  # the end of the text was sampled too
    assert complete(*load_model("resume", out), "\n", temperature=0) == "\n👍🏽é"


def test_without_the_cache_the_text_is_the_same(trained, capsys, monkeypatch):
    argv = [f"--out_dir={trained}", "--num_samples=3", "--max_new_tokens=60", "--dtype=float32"]
    expected = texts(capsys, *argv)
    monkeypatch.setattr(KVCache, "store", None)  # it is not called
    assert texts(capsys, *argv, "--cache=False") == expected


def test_samples_go_to_a_file_with_their_log_probabilities(trained, tmp_path, capsys):
    path = tmp_path / "samples.jsonl"
    shown = texts(capsys, f"--out_dir={trained}", "--num_samples=3", "--max_new_tokens=8",
                  "--start=Line 1", "--dtype=float32", f"--out={path}")
    lines = read_lines(path)
    assert [line["prompt"] + line["text"] + "\n" for line in lines] == shown
    model, tokenizer = load_model("resume", trained)
    prompt = tokenizer.encode("Line 1").tolist()
    for line in lines:
        assert tokenizer.decode(line["tokens"]) == line["text"]
        ids = torch.tensor([prompt + line["tokens"]])
        logits, _ = model(ids[:, :-1], ids[:, 1:])
        logprobs = logits[0, len(prompt) - 1:].log_softmax(dim=-1)
        expected = logprobs.gather(1, ids[0, len(prompt):, None])[:, 0]
        torch.testing.assert_close(torch.tensor(line["logprobs"]), expected, rtol=0, atol=1e-4)


def test_complete_returns_what_the_command_prints(trained, capsys):
    model, tokenizer = load_model("resume", trained)
    for seed in (1337, 5):
        printed, = texts(capsys, f"--out_dir={trained}", "--start=Line 4", "--num_samples=1",
                         "--max_new_tokens=40", f"--seed={seed}", "--dtype=float32")
        text = complete(model, tokenizer, "Line 4", max_new_tokens=40, seed=seed)
        assert text + "\n" == printed and text.startswith("Line 4") and len(text) == 46
    greedy = complete(model, tokenizer, "Line 7: ", temperature=2, min_p=1.0, stop="brown")
    assert greedy == "Line 7: the quick "


@pytest.mark.parametrize("training", [False, True])
def test_complete_turns_dropout_off_and_then_restores_the_mode(trained, training):
    model, tokenizer = load_model("resume", trained)
    assert not any(module.training for module in model.modules())
    expected = complete(model, tokenizer, "Line")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train(training)
    assert complete(model, tokenizer, "Line") == expected and model.training == training


# ---- mistakes


@pytest.mark.parametrize("filters", ["--top_p=0.5", "--temperature=0"])
def test_weights_that_are_nan_end_in_one_line(trained, tmp_path, mistake, filters):
    start = state(trained)
    start.model["transformer.h.0.mlp.c_fc.weight"][3] = math.nan
    checkpoint.write(start, tmp_path / "best.pt")
    assert "logits are not numbers (NaN)" in mistake(main, f"--out_dir={tmp_path}", filters)
    model, tokenizer = load_model("resume", tmp_path)
    with pytest.raises(UserError, match="logits are not numbers"):
        complete(model, tokenizer, "Line", max_new_tokens=5)


@pytest.mark.parametrize("prompt, options, message", [
    ("", {}, "the prompt is empty"), ("Line", {"top_k": 0}, "top_k=0 must be 1 or more"),
    ("Line", {"max_new_tokens": -1}, "max_new_tokens=-1 must be 0 or more"),
])
def test_complete_refuses_what_the_command_refuses(trained, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        complete(*load_model("resume", trained), prompt, **options)


def test_samples_that_end_at_different_times_end_independently(trained, capsys, tmp_path):
    """Each ends at its own stop string, and sampling ends with the last of them."""
    path = tmp_path / "samples.jsonl"
    argv = [f"--out_dir={trained}", "--start=Line 1", "--num_samples=4", "--max_new_tokens=100",
            "--temperature=1.5", "--dtype=float32"]
    whole = texts(capsys, *argv)
    stopped = texts(capsys, *argv, "--stop=q", f"--out={path}")
    assert stopped == [text.split("q")[0] + "\n" for text in whole]
    lengths = [len(line["tokens"]) for line in read_lines(path)]
    assert lengths == [len(text) - len("Line 1") for text in stopped]  # with the stop string
    assert len(set(lengths)) > 1 and max(lengths) < 100


class ByteTokenizer:
    """One id per byte, so that UTF-8 characters are cut anywhere; 256 is the end of text."""

    end_of_text = 256

    def decode_bytes(self, ids):
        return bytes(ids)


def test_random_texts_and_stop_strings_are_printed_once_and_whole(capsys):
    """Several samples are printed one after the other, while all of them grow at the same time."""
    rng = random.Random(0)
    for _ in range(300):
        stop = rng.choice([None, "a", "ab", "aba", "é", "日本", "bé日ab", "👍", "THE END OF IT"])
        prompt = rng.choice(["", "a", "ab", "日", "The prompt "])
        samples = [Sample(prompt, ByteTokenizer(), stop) for _ in range(rng.randint(1, 3))]
        streams = []
        expected = ""
        for _ in samples:
            text = "".join(rng.choices("abé日本👍", k=rng.randint(0, 20)))
            ids = list(text.encode())
            if rng.random() < 0.3:  # the last character stays incomplete
                ids.append(0xF0)
                text += "\ufffd"
            if rng.random() < 0.5:
                ids.append(256)
            streams.append(ids)
            expected += prompt + (text.split(stop)[0] if stop else text) + "|"
        waiting = show(samples, "|")
        for step in range(max(map(len, streams))):
            for text, ids in zip(samples, streams, strict=True):
                if not text.done and step < len(ids):
                    text.add(ids[step], 0.0)
            waiting = show(waiting, "|")
        for text in samples:
            text.end()
        assert show(waiting, "|") == []
        assert capsys.readouterr().out == expected, (prompt, stop, streams)


# ---- pipes and signals


def test_a_prompt_on_stdin_is_utf8_whatever_the_locale(tmp_path, capsys, monkeypatch):
    out = bpe_checkpoint(tmp_path, [64] * 16)
    stdin = io.TextIOWrapper(io.BytesIO("the é".encode()), encoding="latin-1")
    monkeypatch.setattr(sys, "stdin", stdin)
    with one_line_errors():
        main([f"--out_dir={out}", "--start=-", "--num_samples=1", "--max_new_tokens=2"])
    assert capsys.readouterr().out.startswith("the éa")


def test_ctrl_c_ends_it_by_the_signal(trained):
    """Text appears while it is sampled, long before the end."""
    run = script("sample.py", f"--out_dir={trained}", "--num_samples=1", "--max_new_tokens=1000000")
    assert len(run.stdout.read(100)) == 100 and run.poll() is None
    run.send_signal(signal.SIGINT)
    rest, _ = run.communicate(timeout=60)
    assert run.returncode == -signal.SIGINT
    assert rest.endswith("interrupted\n") and "Traceback" not in rest


def test_a_reader_that_goes_away_ends_it_quietly(trained, tmp_path):
    """As in `python sample.py ... | head -c 50`."""
    with open(tmp_path / "errors", "w+", encoding="utf-8") as errors:
        run = script("sample.py", f"--out_dir={trained}", "--max_new_tokens=10000", stderr=errors)
        assert len(run.stdout.read(50)) == 50
        run.stdout.close()
        assert run.wait(60) == -signal.SIGPIPE
        errors.seek(0)
        printed = errors.read()
    assert "Traceback" not in printed and "rror" not in printed


# ---- interactive


@pytest.fixture
def conversation(monkeypatch, capsys):
    """A function: what sample.py answers to these lines, as (stdout, stderr)."""
    def run(out_dir, *lines, options=()):
        typed = "".join(line + "\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        capsys.readouterr()
        main([f"--out_dir={out_dir}", "--interactive=True", "--temperature=0",
              "--max_new_tokens=12", "--dtype=float32", *options])
        return capsys.readouterr()

    return run


def test_a_conversation_continues_after_a_character_that_is_unknown(trained, conversation):
    out, err = conversation(trained, "Line 7: ", "Ü?", "Line 8: the")
    assert "which come from the training text: '?' (U+003F), 'Ü' (U+00DC)" in err
    first, second = out.splitlines()[:2]
    assert first == "the quick br" and second.startswith(" quick brow")


def test_lines_of_a_file_from_windows_are_the_lines(trained, conversation):
    expected, _ = conversation(trained, "Line 7: ", "Line 8: the")
    assert conversation(trained, "\ufeffLine 7: \r", "Line 8: the\r") == (expected, "")


def test_each_turn_of_a_conversation_has_its_own_seed_and_begins_on_a_new_line(
        trained, conversation):
    options = ["--seed=5", "--temperature=1"]
    out, _ = conversation(trained, "Line", "Line", options=options)
    model, tokenizer = load_model("resume", trained)
    cache = make_cache(model, 1)
    expected = ""
    for seed, prompt in (5, "Line"), (6, "\nLine"):
        idx = sample.encode_prompt(model, tokenizer, prompt)
        ids = sampled(model, idx, 12, [seed], cache, top_k=200)
        expected += tokenizer.decode(ids[0].tolist()) + "\n"
    assert out == expected + "\n"


class Interrupt:
    """A forward hook that raises KeyboardInterrupt once, at its n-th call."""

    def __init__(self, module, n):
        self.left = n
        self.handle = module.register_forward_hook(self)

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@MODELS
@pytest.mark.parametrize("call", [1, 2, 23, 24, 25, 41])
def test_ctrl_c_inside_a_forward_pass_leaves_the_cache_as_it_was(config, call):
    """The next answer is that of a fresh cache with the same tokens in view. The interrupt comes in
    the prompt (the first call), in a token, and where the window of 32 slides (calls 24 and 41)."""
    model = model_of(config, spread=0.1)
    prompt = tokens(config, 1, 10)
    following = tokens(config, 1, 6, seed=2)
    cache = make_cache(model, 1)
    interrupt = Interrupt(model.transformer.h[2].attn, call)
    new = []
    with pytest.raises(KeyboardInterrupt):
        for ids, _ in islice(stream(model, prompt, Sampler([0], temperature=0), cache), 50):
            new.append(ids)
    interrupt.handle.remove()
    assert len(new) == call - 1
    view = torch.cat((cache.ids, following), dim=1)
    answer = sampled(model, following, 5, cache=cache, **GREEDY)
    assert torch.equal(answer, sampled(model, view[:, -32:], 5, **GREEDY))


@pytest.mark.parametrize("call", [1, 5])
def test_ctrl_c_ends_an_answer_and_the_conversation_continues(
        trained, conversation, monkeypatch, call):
    """What was printed before stays in the context."""
    def interrupted(*args):
        model, tokenizer = load_model(*args)
        Interrupt(model.transformer.h[1].mlp, call)
        return model, tokenizer

    monkeypatch.setattr(sample, "load_model", interrupted)
    out, _ = conversation(trained, "Line 7: ", "Line 8: the")
    first, second = out.splitlines()[:2]
    assert first == "the quick br"[:call - 1] and second.startswith(" quick brow")


# ---- the cache and the definition


@MODELS
@pytest.mark.parametrize("options", [{}, {"static": True}, {"keep": False}],
                         ids=["cache", "static", "no cache"])
@pytest.mark.parametrize("length", [1, 32, 50])
def test_stream_gives_the_tokens_of_generate(config, options, length):
    """Greedy, and far beyond block_size = 32."""
    model = model_of(config, spread=0.2).double()  # no near ties
    idx = tokens(config, 2, length)
    ids = sampled(model, idx, 60, cache=make_cache(model, 2, **options), **GREEDY)
    assert torch.equal(ids, model.generate(idx, 60, temperature=0)[:, length:])


def test_a_compiled_step_is_compiled_once_for_all_tokens():
    """Prompts are never compiled; and neither positions nor strides make a step a new one."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model = model_of(MODERN_TINY, spread=0.1)
    idx = tokens(MODERN_TINY, 1, 4)
    expected = sampled(model, idx, 70, seeds=range(3))  # beyond block_size
    compiled = CompileCounter()
    model.compile(backend=compiled)
    cache = make_cache(model, 3, static=True)
    assert torch.equal(sampled(model, idx, 70, seeds=range(3), cache=cache), expected)
    assert compiled.frame_count == 1


@MODELS
def test_a_cache_continues_where_it_stopped(config):
    """As in an interactive session: what is typed next follows what was sampled."""
    model = model_of(config, spread=0.1)
    idx = tokens(config, 1, 4)
    more = tokens(config, 1, 6, seed=2)
    cache = make_cache(model, 1)
    first = sampled(model, idx, 5, cache=cache, **GREEDY)
    second = sampled(model, more, 5, cache=cache, **GREEDY)
    assert cache.length == 4 + 5 + 6 + 4  # the last sampled token has not been computed yet
    whole = torch.cat((idx, first, more), dim=1)
    assert torch.equal(second, sampled(model, whole, 5, **GREEDY))
    long = tokens(config, 1, 40, seed=3)  # does not fit after it: the window is its last 32 tokens
    third = sampled(model, long, 3, cache=cache, **GREEDY)
    assert torch.equal(third, sampled(model, long, 3, **GREEDY))


# ---- choosing a token


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0, 2.5, -30.0]])


def allowed(probs, top_k=None, top_p=1.0, min_p=0.0):
    """The definitions, one by one, with loops: the ids that may be sampled."""
    most_likely_first = sorted(range(len(probs)), key=lambda i: -probs[i])
    candidates = most_likely_first[:top_k]
    total = sum(probs[i] for i in candidates)
    least = min_p * probs[candidates[0]]
    kept = []
    before = 0.0  # the sum of the more likely ones
    for i in candidates:
        if before < top_p and probs[i] >= least:
            kept.append(i)
        before += probs[i] / total
    return kept


@pytest.mark.parametrize("temperature, filters", [
    (0.5, {}), (2.0, {"top_k": 3}), (1.0, {"top_p": 0.8}), (1.0, {"min_p": 0.3}),
    (1.0, {"top_k": 4, "top_p": 0.9, "min_p": 0.2}), (3.0, {"top_k": 100, "top_p": 0.95})])
def test_sampled_frequencies_are_the_definitions(temperature, filters):
    n = 100_000
    uniform = torch.rand(n, 1, generator=torch.Generator().manual_seed(0))
    ids = draw(LOGITS.expand(n, -1), uniform, temperature, **filters)
    observed = ids[:, 0].bincount(minlength=7) / n
    probs = (LOGITS[0].double() / temperature).softmax(dim=0)
    expected = torch.zeros(7, dtype=torch.float64)
    kept = allowed(probs.tolist(), **filters)
    expected[kept] = probs[kept] / probs[kept].sum()
    # 5 standard deviations of a binomial: right code fails once in a million, wrong code always
    deviation = (expected * (1 - expected) / n).sqrt()
    assert ((observed - expected).abs() <= 5 * deviation).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_uniform_numbers_choose_an_allowed_id(uniform):
    assert draw(LOGITS, torch.tensor([[uniform]]), top_k=3).item() in (4, 5, 0)
    assert draw(LOGITS, torch.tensor([[uniform]]), min_p=0.9).item() == 4


def test_temperature_zero_takes_the_most_likely_id():
    assert [draw(LOGITS, None, t).item() for t in (0, 1e-45)] == [4, 4]


def test_a_repetition_penalty_makes_what_was_there_less_likely():
    ids = torch.tensor([[0, 3, 0]])
    expected = [[1.0, 1.0, 0.0, -2.0, 3.0, 2.5, -30.0]]
    assert penalize(LOGITS, ids, 2.0).tolist() == expected
    assert penalize(LOGITS, ids, 1.0) is LOGITS
