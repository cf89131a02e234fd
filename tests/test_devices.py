"""pytest tests/test_devices.py - devices that this machine lacks, played by others"""

import copy
import json

import played_graphs
import pytest
import torch
from helpers import GPT2_TINY, MODELS, losses, same_run

import sample
from internals import devices, graphs
from internals.optimizers import Optimizers
from internals.runlog import larger_batch
from model import GPT, Attend, GPTConfig
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


def damage_a_weight(monkeypatch, steps):
    """A weight is NaN during these steps."""
    set_learning_rate = Optimizers.set_learning_rate
    value = []

    def watched(self, lr):
        set_learning_rate(self, lr)
        weight = self.param_groups[0]["params"][0].data
        if value:
            weight[0] = value.pop()
        now.append(len(now))
        if now[-1] in steps:
            value.append(weight[0].clone())
            weight[0] = torch.nan

    now = []
    monkeypatch.setattr(Optimizers, "set_learning_rate", watched)


@pytest.mark.parametrize("settings", [
    {}, {"recipe": "modern"}, {"gradient_accumulation_steps": 1, "recipe": "modern"},
    {"grad_clip": 0.0, "decay_lr": False}],
    ids=["gpt2", "modern", "one micro-batch", "no clipping"])
def test_a_recorded_run_is_the_ordinary_run(tiny, tmp_path, monkeypatch, settings):
    """Bit by bit, with dropout, and with an update that is skipped; also if it is resumed."""
    found = played_graphs.play(monkeypatch)
    with monkeypatch.context() as patch:
        damage_a_weight(patch, [5])
        main(tiny(out_dir=tmp_path / "plain", cuda_graphs=False, **settings))
    assert not found
    damage_a_weight(monkeypatch, [5])
    out = tmp_path / "recorded"
    main(tiny(out_dir=out, max_iters=8, lr_decay_iters=12, **settings))
    assert [each.graph.replays > 0 for each in found] == [True, True]
    main(tiny(out_dir=out, init_from="resume", **settings))
    assert len(found) == 4
    assert same_run(tmp_path / "plain", out)


def test_what_cannot_be_recorded_runs_as_usual(tiny, tmp_path, monkeypatch, capsys):
    found = played_graphs.play(monkeypatch)
    plain = losses(main(tiny(out_dir=tmp_path / "plain", cuda_graphs=False, dropout=0)))
    forward = Attend.forward

    def curious(self, q, k, v, mask=None):
        q.sum().item()
        return forward(self, q, k, v, mask)

    monkeypatch.setattr(Attend, "forward", curious)
    assert losses(main(tiny(out_dir=tmp_path / "curious", dropout=0))) == plain
    assert [each.graph is None for each in found] == [True, False]
    warnings = capsys.readouterr().err
    assert warnings.count("cannot be recorded as a CUDA graph; it continues") == 1


def test_a_function_is_recorded_again_for_other_shapes(monkeypatch):
    played_graphs.play(monkeypatch)
    function = graphs.recorded(lambda x: x * 2, torch.device("cpu"))
    for length in (3, 1, 3):
        for _ in range(6):
            x = torch.randn(length)
            assert torch.equal(function(x), x * 2)
        assert function.graph.replays == 3


@pytest.mark.parametrize("options", [[], ["--temperature=0"], ["--num_samples=1", "--stop=None"],
                                     ["--top_p=0.9", "--repetition_penalty=1.2"]],
                         ids=["20", "greedy", "1", "penalty"])
def test_recorded_sampling_writes_the_same_text(tiny, tmp_path, monkeypatch, capsys, options):
    """Longer than the context, whose older half is dropped again and again. Tokens are read one
    step late: those that were computed after a stop string are dropped."""
    main(tiny(max_iters=3))
    capsys.readouterr()
    settings = [f"--out_dir={tmp_path / 'out'}", f"--out={tmp_path / 'x.jsonl'}", "--stop=e",
                "--num_samples=20", "--max_new_tokens=100", "--device=cpu", *options]
    recorded = []
    found = []
    for plays in (False, True):
        if plays:
            recorded = played_graphs.play(monkeypatch)
        sample.main(settings)
        lines = (tmp_path / "x.jsonl").read_text().splitlines()
        tokens = [json.loads(line)["tokens"] for line in lines]
        found.append((capsys.readouterr().out, tokens))
    assert found[0] == found[1]
    assert [each.graph.replays > 10 for each in recorded] == [True, True]


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
