"""pytest tests/test_gpu.py - the same promises on a GPU; skipped on a machine without CUDA"""

import copy
import functools
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import (
    MODELS,
    MODERN_TINY,
    equal,
    finished,
    logged,
    losses,
    model_of,
    ranks,
    same_run,
    tokens,
    torchrun,
)

import sample
from internals import graphs
from internals.devices import for_sampling, read_late
from internals.optimizers import make_optimizer
from sample import Sampler, make_cache, stream
from tools import look
from train import TrainConfig, main, update

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

RUN = {"device": DEVICE, "dropout": 0.1, "max_iters": 8, "eval_interval": 4, "sample_tokens": 8,
       "lr_decay_iters": 8}
MODERN = {"recipe": "modern", "muon_lr": 0.02}


@pytest.fixture(autouse=True)
def exact_products():
    """Training allows TF32, which has 10 bits. Comparisons with the CPU need all 23."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("cfg", [TrainConfig(), TrainConfig(optimizer="muon")],
                         ids=["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_with_a_nan_changes_nothing(cfg, dtype):
    def one_step(gradient):
        for p in model.parameters():
            p.grad = torch.full_like(p, gradient)
        optimizer.step(skip=torch.tensor(math.isnan(gradient), device=DEVICE))
        states = [each["state"] for each in optimizer.state_dict()]
        return copy.deepcopy((dict(model.state_dict()), states))

    model = model_of(MODERN_TINY).to(DEVICE)
    optimizer = make_optimizer(model, cfg, dtype)
    before = one_step(1e-3)
    assert equal(before, one_step(math.nan))
    assert not equal(before, one_step(1e-3))


@pytest.mark.parametrize("settings", [
    {"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float16"}, MODERN,
    MODERN | {"dtype": "bfloat16", "cuda_graphs": False},
    MODERN | {"dtype": "bfloat16", "gradient_accumulation_steps": 2},
    MODERN | {"dtype": "bfloat16", "compile": True},
], ids=["float32", "bfloat16", "float16", "modern", "no graphs", "accumulation", "compiled"])
def test_a_run_learns_samples_and_resumes_bit_identically(tiny, tmp_path, capsys, settings):
    settings = RUN | {"compile": False, "deterministic": True} | settings
    whole = tmp_path / "whole"
    cut = tmp_path / "cut"
    main(tiny(out_dir=whole, **settings))
    printed = capsys.readouterr().out
    assert "1 x cuda:0" in printed or DEVICE == "cpu"
    assert printed.count("val ") == 3 and "    " in printed
    curve = [loss for _, loss in losses(logged(whole))]
    assert curve[-1] < curve[0]
    main(tiny(out_dir=cut, **settings | {"max_iters": 4}))
    main(tiny(out_dir=cut, **settings | {"init_from": "resume"}))
    assert same_run(whole, cut)


@MODELS
def test_the_loss_and_the_gradients_are_those_of_the_cpu(config):
    idx = tokens(config, 2, 16)
    found = []
    for device in ("cpu", DEVICE):
        model = model_of(config, spread=0.2).to(device)
        _, loss = model(idx.to(device), idx.to(device))
        loss.backward()
        found.append([loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())])
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(cpu, gpu, rtol=1e-3, atol=1e-3)


@MODELS
@pytest.mark.parametrize("options", [{}, {"keep": False}], ids=["cache", "no cache"])
def test_cached_sampling_writes_what_generate_writes(config, options):
    model = model_of(config, spread=0.2).to(DEVICE)
    prompt = tokens(config, 1, 5).to(DEVICE)
    expected = model.generate(prompt, 60, temperature=0)[0, 5:].tolist()
    written = stream(model, prompt, Sampler([0], temperature=0), make_cache(model, 1, **options))
    assert [ids.item() for ids, _ in itertools.islice(written, 60)] == expected


def test_a_compiled_sampler_writes_the_same_text():
    texts = []
    for compiled in (False, True):
        model = for_sampling(model_of(MODERN_TINY, spread=0.2).to(DEVICE), "float32", compiled)
        cache = make_cache(model, 20, static=compiled)
        prompt = tokens(MODERN_TINY, 1, 5).to(DEVICE)
        sampler = Sampler(range(20), temperature=0.5, top_k=8)
        written = itertools.islice(stream(model, prompt, sampler, cache), 40)
        texts.append([ids[:, 0].tolist() for ids, _ in read_late(written)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_recorded_run_is_the_ordinary_run(tiny, tmp_path, capsys, accumulation):
    """With dropout, whose random numbers differ from step to step."""
    settings = RUN | MODERN | {"compile": False, "deterministic": True, "max_iters": 12,
                               "gradient_accumulation_steps": accumulation}
    for recorded in (False, True):
        main(tiny(out_dir=tmp_path / str(recorded), cuda_graphs=recorded, **settings))
    assert not capsys.readouterr().err  # no warning: the steps could be recorded
    assert same_run(tmp_path / "False", tmp_path / "True")


def test_a_recorded_update_with_a_nan_changes_nothing():
    cfg = TrainConfig(optimizer="muon")
    model = model_of(MODERN_TINY).to(DEVICE)
    optimizer = make_optimizer(model, cfg, "bfloat16")
    optimizer.set_learning_rate(0.01)
    run = SimpleNamespace(model=model, optimizer=optimizer, recorded=True,
                          scaler=torch.amp.GradScaler(DEVICE, enabled=False))
    recorded = graphs.recorded(functools.partial(update, run=run, cfg=cfg), torch.device(DEVICE))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    changes = []
    for gradient in (1e-3, 1e-3, 1e-3, 1e-3, math.nan, 1e-3):
        before = copy.deepcopy(model.state_dict())
        for p in model.parameters():
            p.grad.fill_(gradient)
        norm, finite = recorded(torch.ones((), device=DEVICE))
        assert bool(finite) == bool(norm.isfinite()) == math.isfinite(gradient)
        changes.append(not equal(before, model.state_dict()))
    assert changes == [True, True, True, True, False, True]


def test_what_cannot_be_recorded_runs_as_usual(capsys):
    def unlucky(x):
        return torch.nn.functional.dropout(x * x.sum().item(), 0.5)

    function = graphs.recorded(unlucky, torch.device(DEVICE))
    x = torch.ones(100, device=DEVICE)
    results = []
    for _ in range(6):
        torch.manual_seed(0)
        results.append(function(x))
    assert all(equal(results[0], result) for result in results)
    if DEVICE == "cuda":
        assert "cannot be recorded" in capsys.readouterr().err
    learned = torch.nn.Linear(100, 1, device=DEVICE)  # and autograd still works
    learned(torch.nn.functional.dropout(x, 0.5)).sum().backward()
    assert learned.weight.grad.isfinite().all()


def test_the_scripts_find_the_gpu(tiny, tmp_path, capsys):
    main(tiny(**RUN | {"device": "auto", "compile": False}))
    out = tmp_path / "out"
    capsys.readouterr()
    sample.main([f"--out_dir={out}", "--num_samples=2", "--max_new_tokens=20"])
    assert "40 tokens in" in capsys.readouterr().err
    look.main([f"--out_dir={out}", "--start=Line 7"])
    assert (out / "look.html").stat().st_size > 10_000


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nccl_with_one_process_is_the_run_without(tiny, tmp_path, dtype):
    settings = RUN | {"dtype": dtype, "compile": False, "deterministic": True}
    main(tiny(out_dir=tmp_path / "alone", **settings))
    code, printed = finished(*torchrun(1, "train.py", *tiny(**settings)))
    assert code == 0, printed
    assert same_run(tmp_path / "alone", tmp_path / "out")


def test_two_gloo_processes_on_one_gpu_have_the_losses_of_one(tiny, tmp_path):
    settings = RUN | {"device": f"{DEVICE}:0", "dtype": "float32", "compile": False, "dropout": 0}
    one = tmp_path / "one"
    two = tmp_path / "two"
    main(tiny(out_dir=one, **settings))
    code, printed = ranks(2, "train.py", *tiny(out_dir=two, backend="gloo", **settings))
    assert code == 0, printed
    np.testing.assert_allclose(losses(logged(one)), losses(logged(two)), atol=1e-3)
