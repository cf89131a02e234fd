"""pytest tests/test_sample.py - text from a checkpoint: the KV cache, sampling, streaming"""

import io
import json
import math
import os
import random
import re
import signal
import sys
from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import pytest
import torch
from helpers import (
    GPT2_TINY,
    MODELS,
    ROOT,
    TINY_RUN,
    model_of,
    script,
    state,
    tokens,
)

import prepare
import sample
from internals import checkpoint, dataset, files
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
    train_main([f"--{name}={value}" for name, value in settings.items()])
    return out


def texts(capsys, *argv):
    capsys.readouterr()
    main(list(argv))
    *samples, rest = capsys.readouterr().out.split(SEPARATOR + "\n")
    assert rest == ""
    return samples


def sampled(model, idx, count, seeds=(0,), cache=None, batch_size=None, **filters):
    """`count` ids that follow idx (B, T): (B, count)."""
    batch_size = batch_size or max(len(idx), len(seeds))
    cache = cache or make_cache(model, batch_size)
    ids = [ids for ids, _ in islice(stream(model, idx, Sampler(seeds, **filters), cache), count)]
    return torch.cat(ids, dim=1)


# ---- the command


def test_a_trained_model_writes_what_it_was_trained_on(trained, capsys):
    text, = texts(capsys, f"--out_dir={trained}", "--num_samples=1", "--temperature=0",
                  "--start=Line 7: ", "--max_new_tokens=30")
    assert text.startswith("Line 7: the quick brown fox ")


def test_number_and_length_of_the_samples(trained, capsys):
    samples = texts(capsys, f"--out_dir={trained}", "--num_samples=3", "--max_new_tokens=17")
    assert [len(text) for text in samples] == [1 + 17 + 1] * 3  # a line break before, one after
    assert len(set(samples)) == 3


def test_the_same_seed_gives_the_same_text(trained, capsys):
    argv = [f"--out_dir={trained}", "--max_new_tokens=40", "--start=Line"]
    a, b, c = texts(capsys, *argv, "--num_samples=3", "--seed=5")
    assert texts(capsys, *argv, "--num_samples=1", "--seed=5") == [a]
    assert texts(capsys, *argv, "--num_samples=2", "--seed=6") == [b, c]


@pytest.mark.parametrize("narrowest", ["--top_k=1", "--top_p=1e-9", "--min_p=1"])
def test_the_narrowest_filter_of_each_kind_is_greedy(trained, capsys, narrowest):
    argv = [f"--out_dir={trained}", "--num_samples=1", "--max_new_tokens=40", "--temperature=2"]
    assert texts(capsys, *argv, narrowest) == texts(capsys, *argv, "--temperature=0")
    assert texts(capsys, *argv) != texts(capsys, *argv, "--temperature=0")


def test_a_repetition_penalty_on_the_command_line_changes_a_greedy_text(trained, capsys):
    argv = [f"--out_dir={trained}", "--num_samples=1", "--max_new_tokens=8", "--temperature=0"]
    text, = texts(capsys, *argv, "--repetition_penalty=1e9", "--start=Line")
    assert len(set(text[:-1])) == len(text[:-1]) == 12  # no character comes twice


def test_a_prompt_can_come_from_a_file(trained, capsys, tmp_path):
    (tmp_path / "prompt.txt").write_text("Line 3", encoding="utf-8")
    text, = texts(capsys, f"--out_dir={trained}", f"--start=FILE:{tmp_path / 'prompt.txt'}",
                  "--num_samples=1", "--max_new_tokens=5")
    assert text.startswith("Line 3")


def test_a_long_prompt_is_cropped_with_a_warning(trained, capsys):
    main([f"--out_dir={trained}", "--start=" + "Line " * 10, "--max_new_tokens=1"])
    err = capsys.readouterr().err
    assert "warning: the prompt has 50 tokens, but the model sees only the last 16" in err


def test_a_model_is_loaded_in_eval_mode(trained):
    model, _ = load_model("resume", trained)
    assert not any(module.training for module in model.modules())


def test_the_best_checkpoint_is_read_first(trained, tmp_path, capsys):
    start = state(trained)
    checkpoint.write(start, tmp_path / "best.pt")
    argv = [f"--out_dir={tmp_path}", "--num_samples=1", "--max_new_tokens=20"]
    good = texts(capsys, *argv)
    zeros = {name: p * 0 for name, p in start.model.items()}
    checkpoint.write(replace(start, model=zeros), tmp_path / "ckpt.pt")
    assert texts(capsys, *argv) == good
    (tmp_path / "best.pt").unlink()
    assert texts(capsys, *argv) != good


def test_a_checkpoint_file_is_read_as_it_is(trained, capsys):
    argv = ["--num_samples=1", "--max_new_tokens=30"]
    expected = texts(capsys, f"--out_dir={trained}", *argv)
    assert texts(capsys, f"--out_dir={trained / 'best.pt'}", *argv) == expected
    assert texts(capsys, f"--init_from={trained / 'best.pt'}", *argv) == expected


def test_the_checkpoint_is_all_that_is_needed(trained, capsys, monkeypatch):
    monkeypatch.setattr(dataset, "load", None)
    monkeypatch.setattr(files, "DATA", None)
    assert len(texts(capsys, f"--out_dir={trained}", "--max_new_tokens=5")) == 10


@pytest.mark.parametrize("line", [
    "كان يا ما كان في قديم الزمان\n", "👍🏽 ok 🇺🇳\n", "एक समय की बात है\n",
], ids=["arabic", "emoji", "devanagari"])
def test_text_in_any_script_is_prepared_trained_and_sampled(tmp_path, capsys, line):
    (tmp_path / "text.txt").write_text(line * 60, encoding="utf-8")
    prepare.main([str(tmp_path / "text.txt"), f"--data_dir={tmp_path}"])
    out = f"--out_dir={tmp_path / 'out'}"
    train_main(["--dataset=text", f"--data_dir={tmp_path}", out, "--device=cpu", "--n_layer=1",
                "--n_head=1", "--n_embd=32", "--block_size=16", "--batch_size=8",
                "--gradient_accumulation_steps=1", "--max_iters=100", "--eval_interval=100",
                "--eval_iters=2", "--learning_rate=0.02", "--sample_tokens=5"])
    text, = texts(capsys, out, f"--start={line[:5]}", "--temperature=0", "--num_samples=1",
                  f"--max_new_tokens={len(line)}")
    assert text.startswith(line[:-1]), text
    assert len(texts(capsys, out, "--max_new_tokens=5")) == 10  # with no prompt at all


def bpe_checkpoint(tmp_path, favorites):
    """A model with GPT-2's vocabulary whose most likely tokens are these, one after the other."""
    config = GPTConfig(block_size=16, vocab_size=50304, n_layer=1, n_head=1, n_embd=32)
    weights = model_of(config).state_dict()
    for name in weights:  # blocks that add nothing; each position votes for one token
        if "c_proj" in name or "wpe" in name:
            weights[name].zero_()
    weights["transformer.wte.weight"] *= 0
    for position, token in enumerate(favorites):
        weights["transformer.wte.weight"][token, 2 * position] = 1.0
        weights["transformer.wte.weight"][token, 2 * position + 1] = -1.0
        weights["transformer.wpe.weight"][position, 2 * position] = 5.0
        weights["transformer.wpe.weight"][position, 2 * position + 1] = -5.0
    start = Checkpoint(weights, asdict(config), {"tokenizer": "gpt2"})
    checkpoint.write(start, tmp_path / "bpe" / "best.pt")
    return tmp_path / "bpe"


def test_it_ends_at_the_end_of_text(tmp_path, capsys):
    out = bpe_checkpoint(tmp_path, [15496, 995, 0, 50256, 64, 64])  # Hello world!<|endoftext|>aa
    path = tmp_path / "samples.jsonl"
    text, = texts(capsys, f"--out_dir={out}", "--num_samples=1", "--temperature=0", "--start=\n",
                  f"--out={path}")
    assert text == "\nHello world!\n"
    line = json.loads(path.read_text(encoding="utf-8"))
    assert line["text"] == "Hello world!" and line["tokens"] == [15496, 995, 0, 50256]
    assert len(line["logprobs"]) == 4  # the end of the text was sampled too
    assert complete(*load_model("resume", out), "\n", temperature=0) == "\nHello world!"


def test_padded_ids_are_never_sampled_from_a_checkpoint(tmp_path, capsys):
    """The most likely id is 50300; GPT-2's tokenizer ends at 50256 and cannot decode it."""
    out = bpe_checkpoint(tmp_path, [50300, 64])
    text, = texts(capsys, f"--out_dir={out}", "--num_samples=1", "--temperature=0", "--start=\n",
                  "--max_new_tokens=2")
    assert text.endswith("a\n")
    assert complete(*load_model("resume", out), "\n", 2, temperature=0) + "\n" == text


def test_a_character_split_over_tokens_is_printed_whole(tmp_path, capsys):
    ids = prepare.GPT2Tokenizer().encode("👍🏽é").tolist()
    assert len(ids) > 4
    out = bpe_checkpoint(tmp_path, [*ids, 50256])
    text, = texts(capsys, f"--out_dir={out}", "--num_samples=1", "--temperature=0", "--start=\n")
    assert text == "\n👍🏽é\n"


def test_broken_characters_in_the_prompt_do_not_lose_the_samples(tmp_path, capsys):
    """A command line that is not UTF-8 reaches Python with surrogates in it."""
    out, path = bpe_checkpoint(tmp_path, [64] * 16), tmp_path / "samples.jsonl"
    main([f"--out_dir={out}", "--start=a\udcffb", f"--out={path}", "--num_samples=1",
          "--max_new_tokens=3"])
    assert json.loads(path.read_text(encoding="utf-8"))["prompt"] == "a?b"


def test_bfloat16_weights_write_too(trained, capsys):
    text, = texts(capsys, f"--out_dir={trained}", "--num_samples=1", "--temperature=0",
                  "--start=Line 7: ", "--max_new_tokens=20", "--dtype=bfloat16")
    assert text.startswith("Line 7: the quick brown")


def test_int8_weights_write_nearly_the_same(trained, capsys):
    argv = [f"--out_dir={trained}", "--num_samples=1", "--temperature=0", "--start=Line 7: ",
            "--max_new_tokens=20", "--device=cpu"]
    assert texts(capsys, *argv, "--dtype=int8") == texts(capsys, *argv, "--dtype=float32")


def test_without_the_cache_the_text_is_the_same(trained, capsys, monkeypatch):
    argv = [f"--out_dir={trained}", "--num_samples=3", "--max_new_tokens=60", "--dtype=float32"]
    expected = texts(capsys, *argv)
    monkeypatch.setattr(KVCache, "store", None)  # it is not called
    assert texts(capsys, *argv, "--cache=False") == expected


def test_samples_go_to_a_file_with_their_log_probabilities(trained, tmp_path, capsys):
    path = tmp_path / "samples.jsonl"
    argv = [f"--out_dir={trained}", "--num_samples=3", "--max_new_tokens=8", "--start=Line 1",
            "--dtype=float32"]
    shown = texts(capsys, *argv, f"--out={path}")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"] + line["text"] + "\n" for line in lines] == shown
    model, tokenizer = load_model("resume", trained)
    for line in lines:
        assert tokenizer.decode(line["tokens"]) == line["text"]
        ids = torch.tensor([*tokenizer.encode("Line 1").tolist(), *line["tokens"]])[None]
        logprobs = model(ids[:, :-1], ids[:, 1:])[0].log_softmax(-1)[0, 5:]
        expected = logprobs.gather(1, ids[0, 6:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(line["logprobs"]), expected, rtol=0, atol=1e-4)


def test_stdout_is_the_text_alone_and_stderr_has_one_line(trained, capsys, recwarn):
    torch.set_warn_always(True)
    main([f"--out_dir={trained}", "--num_samples=2", "--max_new_tokens=5", "--start=Line"])
    torch.set_warn_always(False)
    out, err = capsys.readouterr()
    assert out.replace(SEPARATOR, "").count("Line") == 2 and "tok/s" not in out
    expected = re.escape(f"{trained} (0.03M parameters): ")
    assert re.fullmatch(expected + r"10 tokens in [\d.]+ s, [\d,]+ tok/s\n", err)
    assert not recwarn.list


def test_complete_returns_what_the_command_prints(trained, capsys):
    model, tokenizer = load_model("resume", trained)
    for seed in (1337, 5):
        printed, = texts(capsys, f"--out_dir={trained}", "--start=Line 4", "--num_samples=1",
                         "--max_new_tokens=40", f"--seed={seed}", "--dtype=float32")
        text = complete(model, tokenizer, "Line 4", max_new_tokens=40, seed=seed)
        assert text + "\n" == printed and text.startswith("Line 4") and len(text) == 46


def test_complete_takes_a_stop_string_and_the_filters(trained):
    model, tokenizer = load_model("resume", trained)
    prompt = "Line 7: "
    assert complete(model, tokenizer, prompt, temperature=0, stop="brown") == prompt + "the quick "
    assert (complete(model, tokenizer, prompt, 30, temperature=1.5, min_p=1.0)
            == complete(model, tokenizer, prompt, 30, temperature=0))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_all_parameters_are_counted_in_packed_and_quantized_layers_too(tmp_path, capsys, dtype):
    config = GPTConfig(block_size=16, vocab_size=3, n_layer=2, n_head=2, n_embd=256)
    meta = {"tokenizer": "char", "chars": "\nab", "vocab_size": 3}
    weights = Checkpoint(model_of(config).state_dict(), asdict(config), meta)
    checkpoint.write(weights, tmp_path / "best.pt")
    main([f"--out_dir={tmp_path}", "--num_samples=1", "--max_new_tokens=2", f"--dtype={dtype}",
          "--device=cpu"])
    assert " (1.57M parameters): 2 tokens" in capsys.readouterr().err  # 2 x 12 x 256^2


def test_complete_samples_from_the_top_k_tokens(trained):
    model, tokenizer = load_model("resume", trained)
    greedy = complete(model, tokenizer, "Line", temperature=0)
    assert complete(model, tokenizer, "Line", temperature=2, top_k=1) == greedy
    assert complete(model, tokenizer, "Line", temperature=2) != greedy


@pytest.mark.parametrize("training", [False, True])
def test_complete_turns_dropout_off_and_then_restores_the_mode(trained, training):
    model, tokenizer = load_model("resume", trained)
    expected = complete(model, tokenizer, "Line")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train(training)
    assert complete(model, tokenizer, "Line") == expected and model.training == training

    def fail(*_):
        raise MemoryError

    model.lm_head.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        complete(model, tokenizer, "Line")
    assert model.training == training


# ---- mistakes


@pytest.fixture(scope="module")
def damaged(trained, tmp_path_factory):
    """The out_dir of a model with NaN in its weights."""
    start, folder = state(trained), tmp_path_factory.mktemp("damaged")
    start.model["transformer.h.0.mlp.c_fc.weight"][3] = math.nan
    torch.save({"model": start.model, "model_args": start.model_args, "meta": start.meta},
               folder / "best.pt")
    return folder


def refused(capsys, *argv):
    """The error message of sample.py. Above it there may be the line about the model."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end, one_line_errors():
        main(list(argv))
    *above, error = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and error.startswith("error: ")
    assert all("parameters from" in line for line in above)
    return error


@pytest.mark.parametrize("temperature", [0, 0.8, 100])
def test_weights_that_are_nan_end_in_one_line(damaged, capsys, temperature):
    line = refused(capsys, f"--out_dir={damaged}", f"--temperature={temperature}")
    assert "NaN" in line


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, GREEDY],
                         ids=str)
def test_logits_that_are_not_numbers_give_an_id_of_the_vocabulary_and_one_error(bad, filters):
    uniform = torch.tensor([[0.0], [0.999999], [0.5]])
    for bad_ids in ([0], [6], range(7)):
        logits = LOGITS.repeat(3, 1)
        logits[:, list(bad_ids)] = bad
        ids = draw(logits, uniform, **filters)
        assert ids.shape == (3, 1) and 0 <= ids.min() and ids.max() < 7
        logprobs = logits.log_softmax(dim=-1).gather(1, ids)
        text = Sample("", prepare.CharTokenizer("abcdefg"))
        with pytest.raises(UserError, match=r"logits are not numbers \(NaN\)"):
            text.add(ids[0].item(), logprobs[0].item())


@pytest.mark.parametrize("options, message", [
    ({"prompt": ""}, "the prompt is empty: the model needs at least one character to continue"),
    ({"top_k": 0}, "top_k=0 must be 1 or more"),
    ({"top_k": -3}, "top_k=-3 must be 1 or more"),
    ({"temperature": -1}, "temperature=-1 must be 0 or more"),
    ({"temperature": math.nan}, "temperature=nan must be 0 or more"),
    ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
    ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
    ({"min_p": -0.1}, "min_p=-0.1 must be at least 0 and at most 1"),
    ({"min_p": 2}, "min_p=2 must be at least 0 and at most 1"),
    ({"repetition_penalty": 0}, "repetition_penalty=0 must be above 0"),
    ({"max_new_tokens": -1}, "max_new_tokens=-1 must be 0 or more"),
])
def test_complete_refuses_what_the_command_refuses(trained, options, message):
    model, tokenizer = load_model("resume", trained)
    with pytest.raises(ValueError) as error:
        complete(model, tokenizer, **({"prompt": "Line"} | options))
    assert str(error.value) == message


def test_load_model_takes_what_the_command_takes(trained, monkeypatch):
    monkeypatch.setenv("HOME", str(trained.parent))
    monkeypatch.setenv("USERPROFILE", str(trained.parent))  # Windows
    for how in {"out_dir": f"~/{trained.name}"}, {"init_from": f"~/{trained.name}"}:
        model, _ = load_model(**how, device="auto")
        assert model.block_size == 16
    with pytest.raises(UserError, match="device=gpu cannot be used here"):
        load_model("resume", trained, "gpu")


def test_logits_of_nan_during_training_do_not_end_complete(trained):
    model, tokenizer = load_model("resume", trained)
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    assert complete(model, tokenizer, "Line", max_new_tokens=5).startswith("Line")


@pytest.mark.parametrize("argv, message", [
    (["--out=."], "out=. is a folder: give the name of a file"),
    (["--start="], "start is empty: the model needs at least one character"),
    (["--start=Ü"], "which come from the training text: 'Ü' (U+00DC)"),
    (["--stop="], "stop must have a character, or be None"),
    (["--top_p=0"], "top_p=0.0 must be above 0 and at most 1"),
    (["--temperature=-1"], "temperature=-1.0 must be 0 or more"),
    (["--interactive=True", "--cache=False"], "interactive=True needs cache=True"),
    (["--interactive=True", "--start=A"], "and excludes start and out"),
    (["--dtype=int8", "--compile=True"], "dtype=int8 cannot be combined with compile=True"),
])
def test_mistakes_are_refused_before_anything_is_sampled(trained, capsys, monkeypatch, argv,
                                                         message):
    monkeypatch.setattr(sample, "stream", None)
    assert message in refused(capsys, f"--out_dir={trained}", *argv)


def test_a_folder_alone_on_the_command_line_hints_at_out_dir(trained, mistake):
    assert mistake(main, trained).endswith(f"did you mean --out_dir={trained}?")


# ---- stop strings


def test_a_stop_string_ends_the_text_before_it(trained, capsys):
    argv = [f"--out_dir={trained}", "--temperature=0", "--start=Line 7: ", "--num_samples=1",
            "--max_new_tokens=100"]
    text, = texts(capsys, *argv, "--stop=brown")
    assert text == "Line 7: the quick \n"
    whole, = texts(capsys, *argv, "--stop=zebra")
    assert whole == texts(capsys, *argv)[0]  # what was held back is shown at the end
    text, = texts(capsys, *argv, "--stop=Line 7")  # in the prompt it does not count
    assert len(text) > 20


def test_samples_that_end_at_different_times_end_independently(trained, capsys, tmp_path,
                                                               monkeypatch):
    """Each ends at its own stop string, and sampling ends with the last of them."""
    argv = [f"--out_dir={trained}", "--start=Line 1", "--num_samples=4", "--max_new_tokens=100",
            "--temperature=1.5", "--dtype=float32"]
    whole = [text[:-1] for text in texts(capsys, *argv)]
    steps, path, draw = [], tmp_path / "samples.jsonl", sample.draw
    monkeypatch.setattr(sample, "draw", lambda *a: (steps.append(1), draw(*a))[1])
    stopped = [text[:-1] for text in texts(capsys, *argv, "--stop=q", f"--out={path}")]
    assert stopped == [text.split("q")[0] for text in whole]
    lengths = [len(text.split("q")[0]) - len("Line 1") + 1 for text in whole]
    assert len(set(lengths)) > 1 and max(lengths) < 100
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [len(line["tokens"]) for line in lines] == lengths and len(steps) == max(lengths)


@pytest.mark.parametrize("prompt", ["The ", "\n"])
def test_a_stop_string_longer_than_the_text_prints_every_part_once(trained, capsys, prompt):
    argv = [f"--out_dir={trained}", f"--start={prompt.replace('T', 't')}", "--num_samples=2",
            "--max_new_tokens=30", "--dtype=float32"]
    assert texts(capsys, *argv, "--stop=THE VERY END OF ALL") == texts(capsys, *argv)


def test_what_may_begin_the_stop_string_waits(capsys):
    text = Sample("say: ", prepare.CharTokenizer("abcdyes: "), "abc")
    shown = []
    for token in text.tokenizer.encode("aabdabcd").tolist():
        if not text.done:
            text.add(token, 0.0)
        text.show()
        shown.append(capsys.readouterr().out)
    assert "".join(shown) == "say: aabd" and text.done
    assert "".join(shown[:3]) in ("say: a", "say: ")  # "ab" may become "abc"


class ByteTokenizer:
    """One id per byte, so that UTF-8 characters are cut anywhere; 256 is the end of text."""

    end_of_text = 256

    def decode_bytes(self, ids):
        return bytes(ids)


def test_random_texts_and_stop_strings_are_printed_once_and_whole(capsys):
    """Several samples are printed one after the other, while all of them grow at the same time."""
    rng = random.Random(0)
    for _ in range(1000):
        stop = rng.choice([None, "a", "ab", "aba", "é", "日本", "bé日ab", "👍", "THE END OF IT"])
        prompt = rng.choice(["", "a", "ab", "日", "The prompt "])
        samples = [Sample(prompt, ByteTokenizer(), stop) for _ in range(rng.randint(1, 3))]
        streams, expected = [], ""
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
    argv = [f"--out_dir={bpe_checkpoint(tmp_path, [64] * 16)}", "--start=-", "--num_samples=1"]

    def type_in(content):
        stdin = io.TextIOWrapper(io.BytesIO(content), encoding="latin-1")
        monkeypatch.setattr(sys, "stdin", stdin)

    type_in("the é".encode())
    with one_line_errors():
        main([*argv, "--max_new_tokens=2"])
    assert capsys.readouterr().out.startswith("the éa")
    type_in(b"caf\xe9")
    assert "the text on stdin is not UTF-8" in refused(capsys, *argv)


def test_a_closed_stdin_or_stdout_is_no_traceback(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it then
    assert "start is empty" in refused(capsys, f"--out_dir={trained}", "--start=-")
    monkeypatch.setattr(sys, "stdout", None)
    with one_line_errors():
        main([f"--out_dir={trained}", "--max_new_tokens=3", "--start=L"])
    assert "30 tokens in" in capsys.readouterr().err


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


def test_it_works_from_another_folder_with_a_prompt_through_a_pipe(trained, tmp_path):
    read, write = os.pipe()
    os.write(write, b"Line 5")
    os.close(write)
    with open(read) as stdin:
        run = script(ROOT / "sample.py", f"--out_dir={trained}", "--start=-", "--num_samples=1",
                     "--max_new_tokens=5", cwd=tmp_path, stdin=stdin)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 0 and printed.startswith("Line 5")
    assert f"\n{SEPARATOR}\n" in printed


# ---- interactive


@pytest.fixture
def conversation(monkeypatch, capsys):
    """A function: what sample.py answers to these lines, as (stdout, stderr)."""
    def run(out_dir, *lines, options=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        capsys.readouterr()
        main([f"--out_dir={out_dir}", "--interactive=True", "--temperature=0",
              "--max_new_tokens=12", "--dtype=float32", *options])
        return capsys.readouterr()

    return run


def test_a_conversation_continues_until_the_end_of_the_input(trained, conversation):
    out, err = conversation(trained, "Line 7: ", "Ü?", "Line 8: the")
    error, = [line for line in err.splitlines() if "parameters" not in line]
    assert "which come from the training text: 'Ü' (U+00DC)" in error
    first, second = out.splitlines()[:2]
    assert first == "the quick br" and second.startswith(" quick brow")


def test_each_turn_of_a_conversation_has_its_own_seed_and_begins_on_a_new_line(
        trained, conversation, monkeypatch):
    turns = []
    monkeypatch.setattr(sample, "continue_text", lambda model, tokenizer, cfg, prompt, seeds, _: (
        turns.append((prompt, seeds))))
    conversation(trained, "Line", "Line", "", options=["--seed=5"])
    assert turns == [("Line", [5]), ("\nLine", [6]), ("\n", [7])]


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
@pytest.mark.parametrize("layer", [0, 2])
def test_ctrl_c_inside_a_forward_pass_leaves_the_cache_as_it_was(config, layer):
    """The next answer is that of a fresh cache with the same tokens in view. The interrupt comes in
    the prompt (the first call), in a token, and where the window of 32 slides (calls 24 and 41)."""
    model = model_of(config, spread=0.1)
    prompt, following = tokens(config, 1, 10), tokens(config, 1, 6, seed=2)
    greedy = Sampler([0], temperature=0)
    for n in (1, 2, 9, 23, 24, 25, 40, 41, 42):
        cache, new = make_cache(model, 1), 0
        interrupt = Interrupt(model.transformer.h[layer].attn, n)
        with pytest.raises(KeyboardInterrupt):
            for _ in islice(stream(model, prompt, greedy, cache), 50):
                new += 1
        interrupt.handle.remove()
        assert new == n - 1
        view = torch.cat((cache.ids, following), dim=1)
        if view.shape[1] > 32:
            view = view[:, -32:]
        answer = sampled(model, following, 5, cache=cache, **GREEDY)
        assert torch.equal(answer, sampled(model, view, 5, **GREEDY)), n


def test_ctrl_c_ends_an_answer_and_the_conversation_continues(trained, conversation, monkeypatch):
    """Every forward pass is interrupted once; what was printed before stays in the context."""
    load = sample.load_model
    for n in range(1, 13):
        def interrupted(*args, n=n):
            model, tokenizer = load(*args)
            Interrupt(model.transformer.h[1].mlp, n)
            return model, tokenizer

        monkeypatch.setattr(sample, "load_model", interrupted)
        out, _ = conversation(trained, "Line 7: ", "Line 8: the")
        first, second = out.splitlines()[:2]
        assert first == "the quick br"[:n - 1] and second.startswith(" quick brow"), n


# ---- the cache and the definition


@MODELS
@pytest.mark.parametrize("options", [{}, {"static": True}, {"keep": False}],
                         ids=["cache", "static", "no cache"])
@pytest.mark.parametrize("length", [1, 32, 50])
def test_stream_gives_the_tokens_of_generate(config, options, length):
    """Greedy, and far beyond block_size = 32."""
    model, idx = model_of(config, spread=0.2).double(), tokens(config, 2, length)  # no near ties
    ids = sampled(model, idx, 60, cache=make_cache(model, 2, **options), **GREEDY)
    assert torch.equal(ids, model.generate(idx, 60, temperature=0)[:, length:])


@MODELS
def test_with_the_same_random_numbers_stream_gives_the_tokens_of_generate(config):
    """Only the cache differs: the rule by which generate chooses is used in both."""
    class Multinomial:
        n_vocab = None

        def __call__(self, logits, ids):
            return torch.multinomial((logits / 0.8).softmax(dim=-1), num_samples=1)

    model, idx = model_of(config, spread=0.1), tokens(config, 2, 5)
    torch.manual_seed(0)
    expected = model.generate(idx, 60, temperature=0.8)[:, 5:]
    torch.manual_seed(0)
    new = [ids for ids, _ in islice(stream(model, idx, Multinomial(), make_cache(model, 2)), 60)]
    assert torch.equal(torch.cat(new, dim=1), expected)
    assert len(expected.unique()) > 20


@MODELS
def test_a_compiled_step_is_compiled_once_for_all_tokens(config):
    """Prompts are never compiled; and neither positions nor strides make a step a new one."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, idx = model_of(config, spread=0.1), tokens(config, 1, 4)
    expected = sampled(model, idx, 70, seeds=range(3))  # beyond block_size
    compiled = CompileCounter()
    model.compile(backend=compiled)
    cache = make_cache(model, 3, static=True)
    assert torch.equal(sampled(model, idx, 70, seeds=range(3), cache=cache), expected)
    assert compiled.frame_count == 1


def test_one_prompt_continues_a_cache_of_several_samples():
    model, idx, more = model_of(GPT2_TINY, spread=0.1), tokens(GPT2_TINY, 1, 4), tokens(
        GPT2_TINY, 1, 3, seed=2)
    cache = make_cache(model, 3)
    first = sampled(model, idx, 5, seeds=range(3), cache=cache)
    second = sampled(model, more, 5, seeds=range(3), cache=cache, **GREEDY)
    whole = torch.cat((idx.expand(3, -1), first, more.expand(3, -1)), dim=1)
    assert torch.equal(second, model.generate(whole, 5, temperature=0)[:, -5:])


def test_a_static_cache_attends_over_block_size_places_in_every_step():
    """No shape changes from token to token, as torch.compile and CUDA graphs need."""
    model, idx = model_of(GPT2_TINY), tokens(GPT2_TINY, 1, 5)
    for static, places in ((True, [32] * 4), (False, [5, 6, 7, 8])):
        cache, seen = make_cache(model, 1, static=static), []
        for _ in islice(stream(model, idx, Sampler([0]), cache), 4):
            seen.append(cache.mask.shape[1])
        assert seen == places


def test_a_context_of_one_token_is_enough():
    config = replace(GPT2_TINY, block_size=1)
    model, idx = model_of(config, spread=0.1), tokens(config, 1, 1)
    assert torch.equal(sampled(model, idx, 9, **GREEDY)[0],
                       model.generate(idx, 9, temperature=0)[0, 1:])


@MODELS
@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.float64, 1e-12),
                                         (torch.bfloat16, 0.2)], ids=["f32", "f64", "bf16"])
@torch.no_grad()
def test_cached_and_uncached_logits_agree(config, static, dtype, atol):
    model = model_of(config, spread=0.1).to(dtype)
    for batch, cuts in (1, [32]), (3, [1] * 32), (2, [7, 1, 1, 10, 13]):
        idx, cache = tokens(config, batch, 32), KVCache(batch, 32, static=static)
        all_logits, _ = model(idx, idx)
        for end, new in zip(np.cumsum(cuts), idx.split(cuts, dim=1), strict=True):
            cache.append(new, n_kept=32)
            logits = sample.next_logits(model, cache)
            torch.testing.assert_close(logits[:, 0], all_logits[:, end - 1], rtol=0, atol=atol)
        assert cache.length == 32


@MODELS
@pytest.mark.parametrize("prompt", [5, 50])
def test_cached_and_uncached_logits_agree_beyond_the_context(config, prompt):
    model, idx = model_of(config, spread=0.1), tokens(config, 2, prompt)
    pairs = zip(*(stream(model, idx, Sampler([0, 1], **GREEDY), make_cache(model, 2, keep=keep))
                  for keep in (True, False)), strict=True)
    for (a, a_logits), (b, b_logits) in islice(pairs, 60):
        assert torch.equal(a, b)
        torch.testing.assert_close(a_logits, b_logits, rtol=0, atol=1e-5)


@MODELS
def test_samples_share_the_computation_of_their_prompt(config):
    model, idx = model_of(config, spread=0.1), tokens(config, 1, 20)
    rows = []
    forward = model.forward
    model.forward = lambda x, **k: rows.append(tuple(x.shape)) or forward(x, **k)
    shared = sampled(model, idx, 10, seeds=range(4))
    assert rows == [(1, 20)] + [(4, 1)] * 9
    assert torch.equal(shared, sampled(model, idx.expand(4, -1), 10, seeds=range(4)))
    assert len(shared.unique(dim=0)) == 4


@MODELS
def test_a_sample_does_not_depend_on_how_many_are_sampled(config):
    model, idx = model_of(config, spread=0.1), tokens(config, 1, 3)
    filters = {"top_p": 0.9, "repetition_penalty": 1.5}
    many = sampled(model, idx, 40, seeds=range(3), **filters)
    for seed in range(3):
        assert torch.equal(sampled(model, idx, 40, seeds=[seed], **filters)[0], many[seed])


@MODELS
def test_a_cache_continues_where_it_stopped(config):
    """As in an interactive session: what is typed next follows what was sampled."""
    model, idx, more = model_of(config, spread=0.1), tokens(config, 1, 4), tokens(config, 1, 6)
    cache = make_cache(model, 1)
    first = sampled(model, idx, 5, cache=cache, **GREEDY)
    second = sampled(model, more, 5, cache=cache, **GREEDY)
    assert cache.length == 4 + 5 + 6 + 4  # the last sampled token has not been computed yet
    whole = sampled(model, torch.cat((idx, first, more), dim=1), 5, **GREEDY)
    assert torch.equal(whole, second)
    long = tokens(config, 1, 40, seed=3)  # does not fit after it: the window is its last 32 tokens
    third = sampled(model, long, 3, cache=cache, **GREEDY)
    assert torch.equal(third, sampled(model, long, 3, **GREEDY))


def test_the_cache_has_2_layers_channels_numbers_per_token_and_does_not_grow():
    model, idx = model_of(GPT2_TINY), tokens(GPT2_TINY, 1, 2)
    cache = make_cache(model, 7)
    seen = set()
    for _ in islice(stream(model, idx, Sampler(range(7)), cache), 100):
        parts = [part for pair in cache.layers.values() for part in pair]
        seen.add((len(cache.layers), sum(part.numel() for part in parts),
                  sum(part.data_ptr() for part in parts)))
    (layers, numbers, _), = seen
    assert layers == 3 and numbers == 2 * 3 * 7 * 32 * 32


def test_sampling_leaves_the_global_generator_alone():
    model, idx = model_of(GPT2_TINY), tokens(GPT2_TINY, 1, 3)
    before = torch.get_rng_state()
    sampled(model, idx, 5)
    assert torch.equal(torch.get_rng_state(), before)
    model.generate(idx, 5)  # that one uses it
    assert not torch.equal(torch.get_rng_state(), before)


# ---- choosing a token


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0, 2.5, -30.0]])


def allowed(probs, top_k=None, top_p=1.0, min_p=0.0):
    """The definitions, one by one, with loops: the ids that may be sampled."""
    by_size = sorted(range(len(probs)), key=lambda i: -probs[i])[:top_k]
    probs = {i: probs[i] / sum(probs[j] for j in by_size) for i in by_size}
    kept, total = [], 0.0
    for i in by_size:
        if total >= top_p:
            break
        total += probs[i]
        if probs[i] >= min_p * probs[by_size[0]]:
            kept.append(i)
    return kept


@pytest.mark.parametrize("temperature, filters", [
    (1.0, {}), (0.5, {}), (2.0, {"top_k": 3}), (1.0, {"top_k": 1}), (1.0, {"top_p": 0.8}),
    (1.5, {"top_p": 0.3}), (1.0, {"min_p": 0.3}), (1.0, {"top_k": 4, "top_p": 0.9, "min_p": 0.2}),
    (3.0, {"top_k": 100, "top_p": 0.95})])
def test_sampled_frequencies_are_the_definitions(temperature, filters):
    n = 100_000
    uniform = torch.rand(n, 1, generator=torch.Generator().manual_seed(0))
    ids = draw(LOGITS.expand(n, -1), uniform, temperature, **filters)
    weights = (LOGITS[0].double() / temperature).exp()
    kept = torch.zeros(7, dtype=torch.float64)
    kept[allowed((weights / weights.sum()).tolist(), **filters)] = 1
    expected = weights * kept / (weights * kept).sum()
    observed = ids[:, 0].bincount(minlength=7) / n
    # 5 standard deviations of a binomial: right code fails once in a million, wrong code always
    assert ((observed - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt()).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_uniform_numbers_choose_an_allowed_id(uniform):
    assert draw(LOGITS, torch.tensor([[uniform]]), top_k=3).item() in (4, 5, 0)
    assert draw(LOGITS, torch.tensor([[uniform]]), min_p=0.9).item() == 4


def test_top_p_of_one_keeps_the_whole_tail():
    """A cumulative sum in float32 may reach 1.0 long before the end of a large vocabulary."""
    logits = 3 * torch.randn(1, 50257, generator=torch.Generator().manual_seed(0))
    logits, order = logits.sort(descending=True)
    probs = logits.softmax(dim=-1)
    rank_of_one = (probs.cumsum(dim=-1) - probs < 1).sum()
    assert rank_of_one < 50000
    id = draw(logits[:, order.argsort()[0]], torch.tensor([[1 - 2**-24]]), top_p=1.0)
    assert (order[0] == id[0]).nonzero().item() > rank_of_one


def test_temperature_zero_takes_the_most_likely_id():
    assert [draw(LOGITS, None, t).tolist() for t in (0, 1e-45)] == [[[4]], [[4]]]


def test_a_repetition_penalty_makes_what_was_there_less_likely():
    ids = torch.tensor([[0, 3, 0]])
    expected = [[1.0, 1.0, 0.0, -2.0, 3.0, 2.5, -30.0]]
    assert penalize(LOGITS, ids, 2.0).tolist() == expected
    assert penalize(LOGITS, ids, 1.0) is LOGITS
    model = model_of(replace(GPT2_TINY, block_size=256), spread=0.02)
    kinds = [len(sampled(model, tokens(GPT2_TINY, 1, 3), 50, repetition_penalty=p,
                         **GREEDY).unique()) for p in (1.0, 1e4)]
    assert kinds[0] < 40 < kinds[1]


def test_ids_of_the_padding_are_never_sampled():
    config = GPTConfig(block_size=8, vocab_size=64, n_layer=1, n_head=1, n_embd=8)
    idx = torch.zeros(1, 1, dtype=torch.long)
    ids = sampled(model_of(config), idx, 10, seeds=range(200), n_vocab=50)
    assert ids.max() == 49  # 2,000 almost uniform samples reach the last allowed id
