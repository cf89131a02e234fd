"""pytest tests/test_devices.py - devices that this machine lacks, played by others"""

import copy
import json

import pytest
import torch
from helpers import GPT2_TINY, MODELS, losses

import sample
from internals import devices
from internals.runlog import larger_batch
from model import GPT, GPTConfig
from train import TrainConfig, main

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("name, tflops", [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989),
    ("NVIDIA H20", 148), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A10G", 70), ("NVIDIA A10", 125),
    ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA GeForce RTX 4090", 165.2),
    ("NVIDIA GeForce RTX 5070 Ti", 87.9), ("NVIDIA GeForce RTX 5070", 61.7),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 3090 Ti", None),
    ("NVIDIA GeForce RTX 4090 D", None), ("Tesla T4", None)])
def test_the_peak_is_that_of_the_card_and_unknown_for_others(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    expected = None if tflops is None else tflops * 1e12
    assert devices.peak_flops(CUDA, "bfloat16") == expected
    assert devices.peak_flops(CUDA, "float32") is None


class Apple:
    """Apple's GPU, played by the CPU."""

    type = "mps"


@MODELS
@pytest.mark.parametrize("wrong", [None, "lm_head", "transformer.h.1.attn.c_attn"])
def test_a_gpu_that_computes_wrong_results_is_not_used(monkeypatch, capsys, config, wrong):
    """The model is new, as at the start of a run: zero_init must not hide an error."""
    model = GPT(config)
    apple = Apple()
    correct = devices.loss_and_gradient

    def on_apple(model, device):
        if device is apple and wrong:
            model = copy.deepcopy(model)
            model.get_submodule(wrong).register_forward_hook(lambda module, args, y: 1.5 * y)
        return correct(model, torch.device("cpu"))

    monkeypatch.setattr(devices, "loss_and_gradient", on_apple)
    device = devices.trusted(apple, model)
    assert (device is apple) == (wrong is None)
    assert ("training on the CPU" in capsys.readouterr().err) == (wrong is not None)
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_has_diverged_says_nothing_about_a_gpu(monkeypatch):
    model = GPT(GPT2_TINY)
    model.transformer.wte.weight.data.fill_(torch.nan)
    correct = devices.loss_and_gradient
    monkeypatch.setattr(devices, "loss_and_gradient",
                        lambda model, device: correct(model, torch.device("cpu")))
    apple = Apple()
    assert devices.trusted(apple, model) is apple


@pytest.mark.parametrize("size, steps, expected", [
    ((6, 6, 384, 256, 65), 900, False),  # config/quickstart.py: 20 s of compilation do not pay
    ((6, 6, 384, 256, 65), 5000, True),
    ((12, 12, 768, 1024, 50304), 10, False), ((12, 12, 768, 1024, 50304), 1000, True)])
def test_a_short_run_on_a_gpu_is_not_compiled(size, steps, expected):
    n_layer, n_head, n_embd, block_size, vocab_size = size
    with torch.device("meta"):
        model = GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd,
                              block_size=block_size, vocab_size=vocab_size))
    cfg = TrainConfig(batch_size=64, gradient_accumulation_steps=1)
    assert devices.wants_compile(model, CUDA, cfg, steps) == expected
    assert not devices.wants_compile(model, torch.device("cpu"), cfg, steps)
    evaluation = TrainConfig(compile=True, eval_only=True)
    assert not devices.wants_compile(model, CUDA, evaluation, steps)


def test_a_dry_run_on_a_gpu_names_a_larger_micro_batch():
    """GPT-2 (124M) on an H200, as measured (docs/benchmarks.md): a micro-batch of 16 takes 8.9 GB,
    one of 64 takes 28.9 GB."""
    cfg = TrainConfig(batch_size=16, gradient_accumulation_steps=32)
    fixed = 16 * 124e6
    found = larger_batch(cfg, 1, fixed, 8.9e9, 40e9)
    assert found == "--batch_size=64 --gradient_accumulation_steps=8 would take 29.6 GB"
    assert larger_batch(cfg, 16, fixed, 8.9e9, 40e9).startswith("--batch_size=32 ")
    assert larger_batch(cfg, 32, fixed, 8.9e9, 40e9) is None
    assert larger_batch(cfg, 1, fixed, 8.9e9, 12e9) is None


@pytest.fixture
def compilations(monkeypatch):
    """torch.compile, played by the function itself; a list of (name, mode)."""
    found = []

    def compile(function, mode="default"):
        found.append((getattr(function, "__name__", type(function).__name__), mode))
        return function

    monkeypatch.setattr(torch, "compile", compile)
    devices.compiled_once.cache_clear()
    yield found
    devices.compiled_once.cache_clear()


@pytest.mark.parametrize("recipe", ["gpt2", "modern"])
def test_graphs_compute_the_losses_of_an_ordinary_run(tiny, tmp_path, compilations, recipe):
    """A CUDA graph adds to gradients that exist, so they are set to zero instead of None."""
    settings = {"recipe": recipe, "gradient_accumulation_steps": 2, "eval_interval": 3,
                "max_iters": 6}
    plain = losses(main(tiny(out_dir=tmp_path / "plain", **settings)))
    assert not compilations
    assert losses(main(tiny(out_dir=tmp_path / "graphs", compile="graphs", **settings))) == plain
    assert compilations[-1] == ("WithoutLogits", "reduce-overhead")
    assert (compilations[0][0] == "orthogonal") == (recipe == "modern")


def test_reading_a_token_late_changes_no_text(tiny, tmp_path, compilations, capsys):
    """The stop string ends a sample; the token that was computed after it is dropped."""
    main(tiny(max_iters=3))
    capsys.readouterr()
    found = []
    for compile in (False, True):
        options = [f"--out_dir={tmp_path / 'out'}", f"--out={tmp_path / 'x.jsonl'}", "--stop=e",
                   f"--compile={compile}", "--num_samples=20", "--max_new_tokens=300"]
        sample.main(options)
        lines = (tmp_path / "x.jsonl").read_text().splitlines()
        tokens = [json.loads(line)["tokens"] for line in lines]
        found.append((capsys.readouterr().out, tokens))
    assert found[0] == found[1]
    assert [name for name, _ in compilations] == ["forward", "draw"]


def test_results_are_read_one_late_and_all_of_them():
    asked = []

    def results():
        for i in range(3):
            asked.append(i)
            yield torch.tensor(i), torch.tensor(-i)

    for i, (number, negative) in enumerate(devices.read_late(results())):
        assert (number, negative) == (i, -i)
        assert len(asked) == min(i + 2, 3)
    assert i == 2
