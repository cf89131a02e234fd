"""pytest tests/test_model.py - what the GPT computes"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import GPT2_TINY, MODELS, MODERN_TINY, model_of, tokens

from docs.gpt2_in_numpy import gpt2
from internals.devices import flops_per_token, num_params
from model import GPT, GPTConfig, ReLU2, make_norm, rope_angles, rotate


@MODELS
@pytest.mark.parametrize("t", [0, 7, 19])
def test_changing_a_token_never_changes_the_past(config, t):
    model = model_of(config, spread=0.3)
    idx = tokens(config, 1, 20)
    before, _ = model(idx, idx)
    other = idx.clone()
    other[0, t] = (other[0, t] + 1) % config.vocab_size
    after, _ = model(other, idx)
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.allclose(before[:, t:], after[:, t:], atol=1e-2)
    for later in range(t, 20):
        assert not torch.equal(before[:, later], after[:, later])


@MODELS
def test_initial_loss_is_log_vocab_size(config):
    idx = tokens(config, 8, 33)
    _, loss = model_of(config)(idx[:, :-1], idx[:, 1:])
    assert loss.item() == pytest.approx(math.log(config.vocab_size), abs=0.05)


def test_numpy_gpt2_agrees():
    model = model_of(GPT2_TINY, spread=0.2).double()
    idx = tokens(GPT2_TINY, 1, 32)
    logits, _ = model(idx, idx)
    weights = {name: p.numpy() for name, p in model.state_dict().items()}
    expected = gpt2(idx[0].numpy(), weights, GPT2_TINY.n_layer, GPT2_TINY.n_head)
    np.testing.assert_allclose(logits[0].detach().numpy(), expected, rtol=0, atol=1e-9)


def test_gpt2_has_124_million_parameters():
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257, bias=True))
        padded = GPT(GPTConfig(bias=False))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    assert num_params(model) == 124_439_808 - 1024 * 768
    assert flops_per_token(padded) == pytest.approx(854.4e6, rel=1e-3)  # the 124M model of nanoGPT


def test_dropout_acts_in_four_places_and_only_in_training():
    model = model_of(replace(GPT2_TINY, dropout=0.5))
    idx = tokens(GPT2_TINY, 1, 16)
    expected, _ = model(idx)
    block = model.transformer.h[0]
    for part in (model.transformer.drop, block.attn.attend, block.attn.drop, block.mlp.drop):
        part.train()  # this one alone
        assert not torch.equal(model(idx)[0], expected)
        model.eval()
        assert torch.equal(model(idx)[0], expected)


def test_residual_projections_start_smaller():
    model = model_of(GPTConfig(block_size=8, vocab_size=64, n_layer=8, n_head=4, n_embd=128,
                               bias=True))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
        elif name.endswith("c_proj.weight"):
            assert p.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.1), name
        elif p.dim() == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            assert p.eq(1).all()


def test_targets_of_minus_one_do_not_count():
    model = model_of(GPT2_TINY)
    idx = tokens(GPT2_TINY, 1, 33)
    x = idx[:, :-1]
    y = idx[:, 1:].clone()
    y[0, :20] = -1
    logits, loss = model(x, y)
    expected = torch.nn.functional.cross_entropy(logits[0, 20:], y[0, 20:])
    torch.testing.assert_close(loss, expected)


def test_without_targets_only_the_last_position_is_computed():
    model = model_of(GPT2_TINY)
    idx = tokens(GPT2_TINY, 2, 10)
    last, loss = model(idx)
    logits, _ = model(idx, idx)
    assert last.shape == (2, 1, GPT2_TINY.vocab_size) and loss is None
    torch.testing.assert_close(last, logits[:, -1:])


# ---- what is refused


@pytest.mark.parametrize("idx, targets, message", [
    (torch.zeros(1, 33).long(), None, r"idx must be int64 \(B, T\) with 1 <= T <= 32, but"),
    (torch.zeros(5).long(), None, "idx must be int64"),
    (torch.zeros(1, 0).long(), None, "idx must be int64"),
    (torch.zeros(1, 3).to(torch.uint16), None, "idx must be int64 .* but is torch.uint16"),
    # with as many targets as inputs, the loss would be wrong without an error
    (torch.zeros(2, 3).long(), torch.zeros(3, 2).long(), r"targets must have the shape of idx"),
], ids=["long", "flat", "empty", "uint16", "targets"])
def test_inputs_that_do_not_fit_are_refused(idx, targets, message):
    with pytest.raises(ValueError, match=message):
        GPT(GPT2_TINY)(idx, targets)


@pytest.mark.parametrize("name, value", [
    ("top_k", 0), ("temperature", -0.5), ("temperature", math.nan)])
def test_generate_refuses_what_sample_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be (0|1) or more"):
        GPT(GPT2_TINY).generate(tokens(GPT2_TINY, 1, 3), 3, **{name: value})


@pytest.mark.parametrize("settings, message", [
    ({"n_layer": 2.0}, "n_layer=2.0 must be a whole number, 1 or more"),
    ({"n_layer": True}, "n_layer=True must be a whole number, 1 or more"),
    ({"n_layer": 0}, "n_layer=0 must be a whole number, 1 or more"),
    ({"n_embd": 100}, "n_embd=100 must be a multiple of n_head=12"),
    ({"softcap": -1.0}, "softcap=-1.0 must be a number, 0 or more"),
    ({"act": "swish"}, "act=swish must be one of gelu_tanh, gelu, relu2"),
    ({"pos": "rope", "n_embd": 15, "n_head": 5}, "n_embd / n_head must be even"),
])
def test_impossible_shapes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**settings)


# ---- the modern choices


def rotated(x):
    """x (B, T, nh, hs), rotated at positions 0 to T - 1."""
    return rotate(x, *rope_angles(torch.arange(x.shape[1]), x.shape[3]))


def test_rope_scores_depend_only_on_distance():
    both = torch.randn(2, 1, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at_32_positions = rotated(both.expand(2, 32, 1, 16))
    q, k = at_32_positions[:, :, 0]
    scores = q @ k.T
    for distance in (0, 1, 5, 20):  # the same along each diagonal, and no two of them the same
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-6)
    assert len(scores[:, 0].round(decimals=3).unique()) > 25


@pytest.mark.parametrize("qk_norm", [True, False])
def test_with_qk_norm_the_scale_of_queries_and_keys_has_no_effect(qk_norm):
    model = model_of(replace(MODERN_TINY, qk_norm=qk_norm), spread=0.3)
    idx = tokens(MODERN_TINY, 1, 32)
    before, _ = model(idx)
    for block in model.transformer.h:
        block.attn.c_attn.weight.data[:64] *= 10  # q and k, not v
    after, _ = model(idx)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-3) == qk_norm


def test_with_zero_init_every_block_begins_as_identity():
    model = model_of(replace(MODERN_TINY, tied=True, softcap=0.0))
    idx = tokens(MODERN_TINY, 1, 8)
    x = model.transformer.ln_f(model.transformer.wte(idx))
    logits, _ = model(idx, idx)
    torch.testing.assert_close(logits, x @ model.transformer.wte.weight.T)
    assert not model_of(MODERN_TINY).lm_head.weight.any()


def test_smear_adds_the_token_before_and_nothing_to_the_first_one():
    model = model_of(MODERN_TINY, spread=0.3)
    idx = torch.tensor([[5, 6, 7]])
    before, _ = model(idx, idx)
    model.transformer.wte.weight.data[0] += 1  # the id that pads where there is no token
    assert torch.equal(model(idx, idx)[0], before)
    model.smear.data.zero_()
    after, _ = model(idx, idx)
    assert torch.equal(after[:, 0], before[:, 0]) and not torch.equal(after[:, 1], before[:, 1])


def test_softcap_limits_large_logits_and_leaves_small_ones():
    idx = tokens(MODERN_TINY, 1, 32)
    capped, _ = model_of(MODERN_TINY, spread=3.0)(idx, idx)
    free, _ = model_of(replace(MODERN_TINY, softcap=0.0), spread=3.0)(idx, idx)
    assert 14 < capped.abs().max() <= 15
    torch.testing.assert_close(15 * torch.tanh(free / 15), capped)


def test_relu2_and_rmsnorm_are_what_they_are_called():
    x = torch.tensor([[-2.0, 0.0, 3.0, 1.0]])
    assert ReLU2()(x).tolist() == [[0.0, 0.0, 9.0, 1.0]]
    norm = make_norm(GPTConfig(n_embd=4, n_head=1, norm="rmsnorm"))
    torch.testing.assert_close(norm(x), x / math.sqrt(14 / 4), rtol=1e-5, atol=0)
    assert not list(norm.parameters())


# ---- generate


def test_a_full_window_drops_its_older_half():
    model = model_of(GPT2_TINY, spread=0.1)
    idx = tokens(GPT2_TINY, 1, 5)
    ids = model.generate(idx, 60, temperature=0)
    assert torch.equal(ids[:, :5], idx)
    start = 0
    for t in range(5, 65):
        if t - start > 32:
            start = t - 16
        logits, _ = model(ids[:, start:t])
        assert torch.equal(logits[:, -1].argmax(-1), ids[:, t]), t


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_at_temperature_zero_nothing_is_random(dtype):
    """Logits that are equal or large: divided by a small number, they would be tied or infinite."""
    model = model_of(GPT2_TINY, spread=0.1).to(dtype)
    model.transformer.ln_f.weight.data[:] = 0
    model.transformer.ln_f.bias.data[:] = 1
    model.lm_head.weight.data[:] = 1.0
    model.lm_head.weight.data[[7, 30]] = 2.0
    before = torch.get_rng_state()
    ids = model.generate(tokens(GPT2_TINY, 1, 5), 20, temperature=0)
    assert ids[0, 5:].tolist() == [7] * 20
    assert torch.equal(torch.get_rng_state(), before)


def test_generated_frequencies_are_the_probabilities_of_the_top_k():
    model = model_of(GPT2_TINY, spread=0.5)
    n = 5_000
    idx = tokens(GPT2_TINY, 1, 4)
    logits, _ = model(idx)
    best = (logits[0, 0] / 0.5).topk(5)
    expected = torch.zeros(61).scatter(0, best.indices, best.values.softmax(dim=0).detach())
    torch.manual_seed(0)
    ids = model.generate(idx.expand(n, -1), 1, temperature=0.5, top_k=5)[:, -1]
    observed = ids.bincount(minlength=61) / n
    # 5 standard deviations of a binomial: right code fails once in a million, wrong code always
    deviation = (expected * (1 - expected) / n).sqrt()
    assert ((observed - expected).abs() <= 5 * deviation).all()
