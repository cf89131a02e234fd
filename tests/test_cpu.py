"""pytest tests/test_cpu.py - the fast modules for CPUs compute what the plain modules compute"""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import GPT2_TINY, MODELS, MODERN, MODERN_TINY, model_of, tokens
from torch.nn import functional as F

from internals.cpu import (
    CPUAttend,
    CPUDropout,
    CPUReLU2,
    Packed,
    drop,
    replaced,
    speed_up,
)
from internals.devices import for_sampling
from model import Attend, GPTConfig, ReLU2
from sample import Sampler, make_cache, stream

WIDE_TINY = GPTConfig(block_size=32, vocab_size=61, n_layer=2, n_head=4, n_embd=256, bias=True)
MASK = torch.ones(8, 8, dtype=torch.bool).tril()
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 5e-6}, torch.bfloat16: {"rtol": 0.05, "atol": 0.1}}
needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


def queries_keys_values(dtype, new=8):
    """q (2, 2, new, 16), k and v (2, 2, 8, 16)."""
    q, k, v = torch.randn(3, 2, 2, 8, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    return q[:, :, -new:], k, v


def gradients(layer, *inputs):
    """The output of a layer, and the gradients of its sum of squares by the inputs."""
    leaves = [part.detach().requires_grad_() for part in inputs]
    y = layer(*leaves)
    return [y, *torch.autograd.grad(y.float().square().sum(), leaves)]


# ---- attention


@DTYPES
@pytest.mark.parametrize("new, mask", [(8, None), (8, MASK), (3, MASK[-3:]), (1, MASK[-1:])],
                         ids=["no mask", "8 of 8 new", "3 of 8 new", "1 of 8 new"])
@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # 1e-9 drops nothing, but takes that path
def test_fast_attention_is_plain_attention(dtype, dropout, new, mask):
    q, k, v = queries_keys_values(dtype, new)
    plain = Attend(0.0, 0.25)
    fast = CPUAttend(dropout, 0.25)
    torch.testing.assert_close(fast.eval()(q, k, v, mask), plain(q, k, v, mask), **CLOSE[dtype])
    expected = gradients(partial(plain, mask=mask), q, k, v)
    found = gradients(partial(fast.train(), mask=mask), q, k, v)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, **CLOSE[dtype])


@DTYPES
@pytest.mark.parametrize("dropout, training, mask", [
    (0.0, True, None), (0.5, True, None), (0.5, False, None), (0.0, False, MASK)])
def test_a_change_of_attention_in_model_py_reaches_the_cpu(
        monkeypatch, dtype, dropout, training, mask):
    """What is read is what runs: a learner who edits Attend.forward edits training."""
    def edited(self, q, k, v, mask=None):
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(2 * q, k, v, None, dropout, scale=self.scale)

    def attend(kind):
        torch.manual_seed(0)
        return kind(dropout, 0.25).train(training)(*parts, mask).float()

    parts = [part.requires_grad_(training) for part in queries_keys_values(dtype)]
    before = attend(CPUAttend)
    monkeypatch.setattr(Attend, "forward", edited)
    after = attend(CPUAttend)
    torch.testing.assert_close(after, attend(Attend), **CLOSE[dtype])
    assert not torch.allclose(before, after, atol=0.1)


def test_a_change_that_shows_only_in_long_sequences_reaches_the_cpu(monkeypatch):
    def window(self, q, k, v, mask=None):
        T = q.shape[2]
        near = torch.ones(T, T, dtype=torch.bool).tril().triu(-15)
        return F.scaled_dot_product_attention(q, k, v, near, scale=self.scale)

    assert CPUAttend(0.5, 0.25, block_size=32).may_write_out
    monkeypatch.setattr(Attend, "forward", window)
    assert not CPUAttend(0.5, 0.25, block_size=32).may_write_out


# ---- ReLU squared


def test_a_long_context_costs_nothing_without_dropout(monkeypatch):
    """The comparison of two attentions takes block_size^2 numbers."""
    monkeypatch.setattr(CPUAttend, "written_out", lambda *_: pytest.fail("it was compared"))
    CPUAttend(0.0, 0.5, block_size=4096)


def test_fast_relu_squared_has_the_values_and_gradients_of_the_plain_one():
    x = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for a, b in zip(gradients(CPUReLU2(), x), gradients(ReLU2(), x), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(CPUReLU2()(x), ReLU2()(x))  # without gradients


@pytest.mark.parametrize("edited", [lambda self, x: F.relu(x) ** 3,
                                    lambda self, x: F.relu(x).detach() * F.relu(x)])
def test_a_change_of_relu_squared_in_model_py_reaches_the_cpu(monkeypatch, edited):
    assert replaced(speed_up(model_of(MODERN_TINY))) == ["Attend", "ReLU2"]
    monkeypatch.setattr(ReLU2, "forward", edited)
    model = speed_up(model_of(MODERN_TINY))
    assert type(model.transformer.h[0].mlp.act) is ReLU2
    assert replaced(model) == ["Attend"]


@needs_mkldnn
@pytest.mark.parametrize("error", [AttributeError, RuntimeError])
def test_linear_layers_stay_if_a_version_of_torch_has_no_such_kernels(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Packed, "forward", fail)
    model = speed_up(model_of(WIDE_TINY), inference=True)
    assert type(model.transformer.h[0].mlp.c_fc) is torch.nn.Linear
    assert model(tokens(WIDE_TINY, 1, 5))[0].isfinite().all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_that_many_and_keeps_the_mean(p):
    n = 1_000_003
    ones = torch.ones(n, dtype=torch.float64)
    torch.manual_seed(0)
    y = drop(ones, p)
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    for i in range(4):  # four numbers share one int64
        part = kept[i::4].double()
        sigma = (p * (1 - p) / len(part)) ** 0.5
        assert abs(part.mean() - (1 - p)) < 5 * sigma + 2**-16
    neighbors = (kept[:-1] & kept[1:]).double().mean()
    assert abs(neighbors - (1 - p) ** 2) < 5 / n**0.5
    torch.manual_seed(0)
    assert torch.equal(drop(ones, p), y)


def test_dropout_drops_in_training_only():
    dropout = CPUDropout(0.5)
    ones = torch.ones(1000)
    assert torch.equal(dropout.eval()(ones), ones)
    assert 400 < (dropout.train()(ones) == 0).sum() < 600


@MODELS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_fast_model_computes_what_the_plain_one_computes(config, training):
    plain = model_of(config, spread=0.1).train(training)
    faster = speed_up(copy.deepcopy(plain))
    idx = tokens(config, 2, 32)
    _, expected = plain(idx, idx)
    _, loss = faster(idx, idx)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for a, b in zip(plain.parameters(), faster.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_speed_up_keeps_the_names_and_the_state_of_a_model(training):
    plain = model_of(replace(GPT2_TINY, dropout=0.1)).train(training)
    before = dict(plain.named_parameters())
    names = list(plain.state_dict())
    faster = speed_up(plain)
    assert faster is plain and list(faster.state_dict()) == names
    assert all(p is before[name] for name, p in faster.named_parameters())
    assert all(module.training == training for module in faster.modules())
    for module in faster.modules():
        if isinstance(module, CPUDropout):
            assert module.p == 0.1
        if isinstance(module, CPUAttend):
            assert module.dropout == 0.1


# ---- layers for sampling alone


@needs_mkldnn
@pytest.mark.parametrize("recipe", [{}, MODERN], ids=["gpt2", "modern"])
@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)],
                         ids=["f32", "bf16"])
def test_packed_weights_give_the_same_logits(recipe, dtype, close):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    model = model_of(replace(WIDE_TINY, **recipe), spread=0.05).to(dtype)
    faster = speed_up(copy.deepcopy(model), inference=True)
    kinds = [type(module) for module in faster.modules()]
    assert kinds.count(Packed) == 4 * 2 + 1 and torch.nn.Linear not in kinds
    for batch, length in (1, 1), (1, 30), (5, 7):
        ids = tokens(WIDE_TINY, batch, length)
        a = model(ids, ids)[0].float()
        b = faster(ids, ids)[0].float()
        assert (a - b).abs().max() < close * a.abs().max()


@needs_mkldnn
def test_narrow_layers_are_not_packed():
    model = speed_up(model_of(GPT2_TINY), inference=True)
    assert type(model.transformer.h[0].mlp.c_fc) is torch.nn.Linear


@DTYPES
@pytest.mark.parametrize("is_fast", [True, False])
def test_the_cache_of_a_fast_model_is_float32_and_of_a_plain_model_that_of_its_weights(
        dtype, is_fast):
    model = model_of(GPT2_TINY).to(dtype)
    if is_fast:
        speed_up(model)
    cache = make_cache(model, 1)
    next(stream(model, tokens(GPT2_TINY, 1, 3), Sampler([0]), cache))
    keys, values = cache.layers[0]
    assert keys.dtype == values.dtype == (torch.float32 if is_fast else dtype)


@torch.no_grad()
def test_sampling_continues_if_torch_compile_fails(monkeypatch, capsys):
    def no_compiler(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda function: no_compiler)
    model = for_sampling(model_of(GPT2_TINY), "float32", compile=True)
    idx = tokens(GPT2_TINY, 1, 5)
    for _ in range(2):
        assert torch.equal(model(idx)[0], model.forward(idx)[0])
    printed = capsys.readouterr().err
    assert printed.count("torch.compile failed; sampling continues without it (RuntimeError: ") == 1
