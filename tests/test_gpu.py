"""pytest tests/test_gpu.py - the same promises on a GPU; skipped on a machine without CUDA"""

import copy
import itertools
import math

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
from internals.devices import for_sampling, read_late
from internals.optimizers import make_optimizer
from sample import Sampler, make_cache, stream
from tools import look
from train import TrainConfig, main

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
    MODERN | {"dtype": "bfloat16", "compile": True},
    MODERN | {"dtype": "bfloat16", "compile": "graphs", "gradient_accumulation_steps": 2},
], ids=["float32", "bfloat16", "float16", "modern", "compiled", "graphs"])
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
@pytest.mark.parametrize("options", [{}, {"static": True}, {"keep": False}],
                         ids=["cache", "static cache", "no cache"])
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
        sampler = Sampler(range(20), temperature=0.5, top_k=8, compile=compiled)
        written = itertools.islice(stream(model, prompt, sampler, cache), 40)
        texts.append([ids[:, 0].tolist() for ids, _ in read_late(written)])
    assert texts[0] == texts[1]


def test_graphs_have_the_losses_of_an_ordinary_run(tiny, tmp_path):
    settings = RUN | MODERN | {"dtype": "float32", "dropout": 0.0, "gradient_accumulation_steps": 2}
    curves = []
    for compile in (False, "graphs"):
        metrics = main(tiny(out_dir=tmp_path / str(compile), compile=compile, **settings))
        curves.append([loss for _, loss in losses(metrics)])
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)


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
