"""pytest tests/test_sample.py - text out of a checkpoint"""

import copy
import json
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import MODERN, ROOT, finished, script

import prepare
from configurator import UserError
from internals import dataset, files
from internals.checkpoint import load_checkpoint
from model import GPT, GPTConfig
from sample import SEPARATOR, Packed, Sample, load_model, main, packed, quantized
from train import main as train_main


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """The out_dir of a run of a few seconds."""
    from conftest import TINY_RUN
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


def test_top_k_one_is_greedy(trained, capsys):
    argv = [f"--out_dir={trained}", "--num_samples=1", "--max_new_tokens=40"]
    assert texts(capsys, *argv, "--top_k=1") == texts(capsys, *argv, "--temperature=0")


def test_a_prompt_can_come_from_a_file(trained, capsys, tmp_path):
    (tmp_path / "prompt.txt").write_text("Line 3", encoding="utf-8")
    text, = texts(capsys, f"--out_dir={trained}", f"--start=FILE:{tmp_path / 'prompt.txt'}",
                  "--num_samples=1", "--max_new_tokens=5")
    assert text.startswith("Line 3")


def test_a_long_prompt_is_cropped_with_a_warning(trained, capsys):
    main([f"--out_dir={trained}", "--start=" + "Line " * 10, "--num_samples=1"])
    assert "the prompt has 50 tokens; the model sees the last 16" in capsys.readouterr().err


def test_the_best_checkpoint_is_read_first(trained, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    checkpoint = load_checkpoint(trained / "ckpt.pt")
    torch.save(checkpoint, out / "best.pt")
    good = texts(capsys, f"--out_dir={out}", "--num_samples=1")
    torch.save({**checkpoint, "model": {k: v * 0 for k, v in checkpoint["model"].items()}},
               out / "ckpt.pt")
    assert texts(capsys, f"--out_dir={out}", "--num_samples=1") == good
    (out / "best.pt").unlink()
    assert texts(capsys, f"--out_dir={out}", "--num_samples=1") != good


def test_the_checkpoint_is_all_that_is_needed(trained, capsys, monkeypatch):
    monkeypatch.setattr(dataset, "load_bins", None)
    monkeypatch.setattr(files, "DATA", None)
    assert len(texts(capsys, f"--out_dir={trained}", "--num_samples=1")) == 1


def test_text_in_any_script_is_prepared_trained_and_sampled(tmp_path, capsys):
    for name, line in (("japanese", "吾輩は猫である。名前はまだ無い。"),
                       ("arabic", "كان يا ما كان في قديم الزمان\n"),
                       ("emoji", "👍🏽 ok 🇺🇳\n"), ("devanagari", "एक समय की बात है\n")):
        (tmp_path / f"{name}.txt").write_text(line * 60, encoding="utf-8")
        prepare.main([str(tmp_path / f"{name}.txt"), f"--name={name}", f"--data_dir={tmp_path}"])
        out = f"--out_dir={tmp_path / name}-out"
        train_main([f"--dataset={name}", f"--data_dir={tmp_path}", out, "--device=cpu",
                    "--n_layer=1", "--n_head=1", "--n_embd=32", "--block_size=16",
                    "--batch_size=8", "--gradient_accumulation_steps=1", "--max_iters=100",
                    "--eval_iters=2", "--learning_rate=0.02", "--sample_tokens=5"])
        text, = texts(capsys, out, f"--start={line[:5]}", "--temperature=0", "--num_samples=1",
                      f"--max_new_tokens={len(line)}")
        assert text.startswith(line[:-1]), text
        assert len(texts(capsys, out, "--num_samples=1")) == 1  # with no prompt at all


def bpe_checkpoint(tmp_path, favourites):
    """A model of GPT-2's vocabulary whose likeliest tokens are these, one after the other."""
    from dataclasses import asdict

    from model import GPT, GPTConfig
    config = GPTConfig(block_size=16, vocab_size=50304, n_layer=1, n_head=1, n_embd=32)
    torch.manual_seed(0)
    model = GPT(config)
    weights = model.state_dict()
    for name in weights:  # blocks that add nothing; each position speaks for one token
        if "c_proj" in name or "wpe" in name:
            weights[name].zero_()
    weights["transformer.wte.weight"] *= 0
    for position, token in enumerate(favourites):
        weights["transformer.wte.weight"][token, 2 * position] = 1.0
        weights["transformer.wte.weight"][token, 2 * position + 1] = -1.0
        weights["transformer.wpe.weight"][position, 2 * position] = 5.0
        weights["transformer.wpe.weight"][position, 2 * position + 1] = -5.0
    model.load_state_dict(weights)
    (tmp_path / "bpe").mkdir()
    torch.save({"model": model.state_dict(), "model_args": asdict(config),
                "meta": {"tokenizer": "gpt2"}}, tmp_path / "bpe" / "best.pt")
    return tmp_path / "bpe"


def test_it_ends_at_the_end_of_text(tmp_path, capsys):
    out = bpe_checkpoint(tmp_path, [15496, 995, 0, 50256, 64, 64])  # Hello world!<|endoftext|>aa
    path = tmp_path / "samples.jsonl"
    text, = texts(capsys, f"--out_dir={out}", "--num_samples=1", "--temperature=0", "--start=\n",
                  f"--out={path}")
    assert text == "\nHello world!\n"
    line = json.loads(path.read_text(encoding="utf-8"))
    assert line["text"] == "Hello world!" and line["tokens"] == [15496, 995, 0, 50256]
    assert len(line["logprobs"]) == 4  # the end of the text was drawn too


def test_a_character_split_over_tokens_is_printed_whole(tmp_path, capsys):
    ids = prepare.GPT2Tokenizer().encode("👍🏽é").tolist()
    assert len(ids) > 4
    out = bpe_checkpoint(tmp_path, [*ids, 50256])
    text, = texts(capsys, f"--out_dir={out}", "--num_samples=1", "--temperature=0", "--start=\n")
    assert text == "\n👍🏽é\n"


def test_a_stop_string_ends_the_text_before_it(trained, capsys):
    argv = [f"--out_dir={trained}", "--temperature=0", "--start=Line 7: ", "--num_samples=1",
            "--max_new_tokens=100"]
    text, = texts(capsys, *argv, "--stop=brown")
    assert text == "Line 7: the quick \n"
    whole, = texts(capsys, *argv, "--stop=zebra")
    assert whole == texts(capsys, *argv)[0]  # what was held back is shown at the end
    text, = texts(capsys, *argv, "--stop=Line 7")  # in the prompt it does not count
    assert len(text) > 20


def test_what_can_begin_the_stop_string_waits(capsys):
    sample = Sample("say: ", prepare.CharTokenizer("abcdyes: "), "abc")
    shown = []
    for token in sample.tokenizer.encode("aabdabcd").tolist():
        if not sample.done:
            sample.add(token, 0.0)
        sample.show()
        shown.append(capsys.readouterr().out)
    assert "".join(shown) == "say: aabd" and sample.done
    assert "".join(shown[:3]) in ("say: a", "say: ")  # "ab" was no sure thing


def test_without_the_cache_the_text_is_the_same(trained, capsys):
    argv = [f"--out_dir={trained}", "--num_samples=3", "--max_new_tokens=60", "--dtype=float32"]
    assert texts(capsys, *argv) == texts(capsys, *argv, "--cache=False")


def test_bfloat16_weights_write_too(trained, capsys):
    text, = texts(capsys, f"--out_dir={trained}", "--num_samples=1", "--temperature=0",
                  "--start=Line 7: ", "--max_new_tokens=20", "--dtype=bfloat16")
    assert text.startswith("Line 7: the quick brown")


def test_samples_go_to_a_file_with_their_log_probabilities(trained, tmp_path, capsys):
    path = tmp_path / "samples.jsonl"
    argv = [f"--out_dir={trained}", "--num_samples=3", "--max_new_tokens=8", "--start=Line 1",
            "--dtype=float32"]
    shown = texts(capsys, *argv, f"--out={path}")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"] + line["text"] + "\n" for line in lines] == shown
    model, tokenizer = load_model("resume", trained, torch.device("cpu"))
    for line in lines:
        assert prepare.decode(tokenizer, line["tokens"]) == line["text"]
        ids = torch.tensor([*tokenizer.encode("Line 1").tolist(), *line["tokens"]])[None]
        logprobs = model(ids[:, :-1], ids[:, 1:])[0].log_softmax(-1)[0, 5:]
        expected = logprobs.gather(1, ids[0, 6:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(line["logprobs"]), expected, rtol=0, atol=1e-4)


def test_stdout_is_the_text_alone_and_stderr_says_how_fast(trained, capsys):
    main([f"--out_dir={trained}", "--num_samples=2", "--max_new_tokens=5", "--start=Line"])
    out, err = capsys.readouterr()
    assert out.replace(SEPARATOR, "").count("Line") == 2 and "tok/s" not in out
    assert re.search(r"10 tokens in [\d.]+ s: [\d,]+ tok/s", err)


def test_a_prompt_can_come_through_a_pipe(trained):
    command = [sys.executable, "sample.py", f"--out_dir={trained}", "--start=-", "--num_samples=1",
               "--max_new_tokens=5"]
    run = subprocess.run(command, cwd=ROOT, input="Line 5", capture_output=True, encoding="utf-8")
    assert run.returncode == 0 and run.stdout.startswith("Line 5")


def test_a_conversation_goes_on_until_the_end_of_the_input(trained):
    command = [sys.executable, "sample.py", f"--out_dir={trained}", "--interactive=True",
               "--temperature=0", "--max_new_tokens=12"]
    run = subprocess.run(command, cwd=ROOT, input="Line 7: \nÜ?\nLine 8: the\n",
                         encoding="utf-8", capture_output=True)
    assert run.returncode == 0
    assert run.stderr.startswith("error: the character 'Ü'") and run.stderr.count("\n") == 1
    first, second = run.stdout.splitlines()[:2]
    assert first == "the quick br" and second.startswith(" quick brow")


def test_ctrl_c_ends_it_cleanly(trained):
    run = script("sample.py", f"--out_dir={trained}", "--num_samples=1", "--max_new_tokens=100000")
    run.stdout.read(50)
    run.send_signal(signal.SIGINT)
    rest, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and rest.endswith("interrupted\n") and "Traceback" not in rest


def test_text_appears_as_it_is_generated(trained):
    run = script("sample.py", f"--out_dir={trained}", "--num_samples=1", "--max_new_tokens=100000")
    assert len(run.stdout.read(100)) == 100  # long before the end
    assert run.poll() is None
    run.terminate()
    run.communicate()


def test_a_reader_that_goes_away_ends_it_quietly(trained):
    command = f"{sys.executable} sample.py --out_dir={trained} --max_new_tokens=10000 | head -c 50"
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, timeout=60)
    assert len(run.stdout) == 50 and run.stderr == b"" and run.returncode == 0


def test_the_printed_command_works_from_another_folder(trained, tmp_path):
    command = ROOT / "sample.py", f"--out_dir={trained}", "--num_samples=1"
    code, printed = finished(*command, cwd=tmp_path)
    assert code == 0 and printed.count(SEPARATOR) == 1


def test_int8_weights_write_nearly_the_same(trained, capsys):
    argv = [f"--out_dir={trained}", "--num_samples=1", "--temperature=0", "--start=Line 7: ",
            "--max_new_tokens=20"]
    assert texts(capsys, *argv, "--dtype=int8") == texts(capsys, *argv, "--dtype=float32")
    model, tokenizer = load_model("resume", trained, torch.device("cpu"))
    rounded = quantized(model, torch.device("cpu"))
    ids = torch.from_numpy(tokenizer.encode("Line 7: the quic").astype(int))[None]
    exact, near = (m(ids)[0].detach() for m in (model, rounded))
    assert not torch.equal(exact, near) and (exact - near).abs().max() < 0.1 * exact.abs().max()
    with pytest.raises(UserError, match="dtype=int8 is for CPUs"):
        quantized(model, torch.device("meta"))


needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN here")


@needs_mkldnn
@pytest.mark.parametrize("recipe", [{"bias": True}, MODERN], ids=["gpt2", "modern"])
@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_packed_weights_give_the_same_logits_and_text(recipe, dtype, close):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 in this processor")
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=61, n_layer=2, n_head=4, n_embd=256, **recipe))
    for p in model.parameters():
        p.data.normal_(0, 0.05)  # what begins at zero would hide its layer
    model.to(dtype).eval()
    faster = packed(copy.deepcopy(model))
    kinds = [type(m) for m in faster.modules()]
    assert kinds.count(Packed) == 4 * 2 + 1 and torch.nn.Linear not in kinds
    for shape in (1, 1), (1, 30), (5, 7):
        ids = torch.randint(61, shape)
        a, b = (m(ids, ids)[0].detach().float() for m in (model, faster))
        assert (a - b).abs().max() < close * a.abs().max()
    if dtype == torch.float32:  # past the limit of the context, too
        assert torch.equal(*(m.generate(ids, 60, temperature=0) for m in (model, faster)))


def test_narrow_models_and_other_types_are_not_packed():
    narrow = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=32))
    half = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=256)).half()
    for model in narrow, half:
        assert not any(isinstance(m, Packed) for m in packed(model).modules())
