"""pytest tests/test_model.py - what the GPT computes"""

import math

import numpy as np
import pytest
import torch
from conftest import GPT2_TINY, MODELS
from numpy_gpt2 import gpt2

from model import GPT, GPTConfig, draw


def tokens(config, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, shape, generator=generator)


def model_of(config, spread=None):
    """A model from a fixed seed; with `spread`, all its weights are drawn wide: none is idle."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    if spread:
        for p in model.parameters():
            p.data.normal_(0.0, spread)
    return model


@MODELS
def test_changing_a_token_never_changes_the_past(config):
    model, idx = model_of(config, spread=0.3), tokens(config, 1, 20)
    before, _ = model(idx, idx)
    for t in (0, 7, 19):
        other = idx.clone()
        other[0, t] = (other[0, t] + 1) % config.vocab_size
        after, _ = model(other, idx)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.allclose(before[:, t:], after[:, t:], atol=1e-2)
        assert all(not torch.equal(before[:, s], after[:, s]) for s in range(t, 20))


@MODELS
def test_initial_loss_is_log_vocab_size(config):
    model, idx = model_of(config), tokens(config, 8, 33)
    _, loss = model(idx[:, :-1], idx[:, 1:])
    assert loss.item() == pytest.approx(math.log(config.vocab_size), abs=0.05)


@MODELS
def test_it_can_memorize_one_batch(config):
    model, idx = model_of(config).train(), tokens(config, 4, 33)
    optimizer = model.configure_optimizers(0.0, 1e-2, (0.9, 0.95), "cpu")
    for _ in range(60):
        _, loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1


def test_numpy_gpt2_agrees():
    model, idx = model_of(GPT2_TINY, spread=0.2), tokens(GPT2_TINY, 1, 32)
    weights = {name: p.double().numpy() for name, p in model.state_dict().items()}
    logits, _ = model.double()(idx, idx)
    expected = gpt2(idx[0].numpy(), weights, GPT2_TINY.n_layer, GPT2_TINY.n_head)
    np.testing.assert_allclose(logits[0].detach().numpy(), expected, rtol=0, atol=1e-9)


def test_parameter_names_are_gpt2s():
    names = set(GPT(GPT2_TINY).state_dict())
    layer = {f"{part}.{kind}" for kind in ("weight", "bias") for part in (
        "ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")}
    outside = {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight",
               "transformer.ln_f.bias", "lm_head.weight"}
    assert names == outside | {f"transformer.h.{i}.{name}" for i in range(3) for name in layer}


def test_gpt2_has_124_million_parameters():
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257, bias=True))
        padded = GPT(GPTConfig(bias=False))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    assert model.num_params() == 124_439_808 - 1024 * 768
    assert padded.flops_per_token() == pytest.approx(854.4e6, rel=1e-3)  # nanoGPT's 124M


def test_head_and_token_table_are_one_tensor():
    model = GPT(GPT2_TINY)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_residual_projections_start_smaller():
    shape = {"block_size": 8, "vocab_size": 64, "n_layer": 8, "n_head": 4, "n_embd": 128}
    model = model_of(GPTConfig(**shape, bias=True))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
        elif p.dim() == 2:
            expected = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.1), name
        else:
            assert p.eq(1).all()


@MODELS
def test_two_microbatches_equal_one_big_batch(config):
    idx = tokens(config, 6, 33)
    whole, parts = model_of(config).double(), model_of(config).double()
    whole(idx[:, :-1], idx[:, 1:])[1].backward()
    for half in idx.chunk(2):
        (parts(half[:, :-1], half[:, 1:])[1] / 2).backward()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12)


def test_targets_of_minus_one_do_not_count():
    model, idx = model_of(GPT2_TINY), tokens(GPT2_TINY, 1, 33)
    x, y = idx[:, :-1], idx[:, 1:].clone()
    logits, _ = model(x, y)
    y[0, :20] = -1
    expected = torch.nn.functional.cross_entropy(logits[0, 20:], y[0, 20:])
    torch.testing.assert_close(model(x, y)[1], expected)


def test_without_targets_only_the_last_position_is_computed():
    model, idx = model_of(GPT2_TINY), tokens(GPT2_TINY, 2, 10)
    last, loss = model(idx)
    assert last.shape == (2, 1, GPT2_TINY.vocab_size) and loss is None
    torch.testing.assert_close(last[:, 0], model(idx, idx)[0][:, -1])


def test_dropout_is_for_training_only():
    config = GPTConfig(**{**GPT2_TINY.__dict__, "dropout": 0.5})
    model, idx = model_of(config), tokens(config, 1, 16)
    assert torch.equal(model(idx)[0], model(idx)[0])
    model.train()
    assert not torch.equal(model(idx)[0], model(idx)[0])


def test_matrices_decay_and_biases_and_gains_do_not():
    model = GPT(GPT2_TINY)
    groups = model.configure_optimizers(0.3, 1e-3, (0.8, 0.9), "cpu").param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for p in model.parameters():
        assert decays[id(p)] == (0.3 if p.dim() == 2 else 0.0)
    assert all(group["betas"] == (0.8, 0.9) and group["fused"] for group in groups)


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="33 tokens are more than the block_size of 32"):
        GPT(GPT2_TINY)(tokens(GPT2_TINY, 1, 33))


@pytest.mark.parametrize("shape, message", [
    ({"n_embd": 100, "n_head": 12}, "n_embd=100 is not divisible by n_head=12.*: 96$"),
    ({"n_layer": 0}, "n_layer=0 must be 1 or more"),
    ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
    ({"act": "swish"}, "act='swish' must be one of gelu_tanh, gelu"),
])
def test_impossible_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**shape)


# ---- sampling


def test_generate_goes_on_past_the_context():
    model, idx = model_of(GPT2_TINY), tokens(GPT2_TINY, 2, 5)
    ids = model.generate(idx, 60, temperature=0)
    assert ids.shape == (2, 65) and torch.equal(ids[:, :5], idx)
    for t in (10, 33, 64):  # each token is the likeliest one after the 32 before it
        logits, _ = model(ids[:, max(0, t - 32):t])
        assert torch.equal(logits[:, -1].argmax(-1), ids[:, t])


def test_stream_yields_what_generate_returns():
    model, idx = model_of(GPT2_TINY), tokens(GPT2_TINY, 1, 3)
    seeded = lambda: torch.Generator().manual_seed(7)  # noqa: E731
    one_by_one = [ids.item() for ids in model.stream(idx, 20, top_k=5, generator=seeded())]
    assert model.generate(idx, 20, top_k=5, generator=seeded())[0, 3:].tolist() == one_by_one


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0]])


@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (0.5, None), (2.0, 3), (1.0, 1)])
def test_drawn_frequencies_are_the_softmax(temperature, top_k):
    n = 100_000
    generator = torch.Generator().manual_seed(0)
    ids = draw(LOGITS.expand(n, -1), temperature, top_k, generator)
    kept = LOGITS[0] >= LOGITS[0].sort(descending=True).values[(top_k or 5) - 1]
    expected = (LOGITS[0] / temperature).exp() * kept
    expected /= expected.sum()
    observed = ids[:, 0].bincount(minlength=5) / n
    # 5 standard deviations of a binomial: right code fails once in a million, wrong code always
    assert ((observed - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt()).all()


def test_temperature_zero_takes_the_likeliest():
    assert draw(LOGITS, temperature=0).tolist() == draw(LOGITS, temperature=1e-45).tolist() == [[4]]


def test_ids_of_the_padding_are_never_drawn():
    config = GPTConfig(block_size=8, vocab_size=64, n_layer=1, n_head=1, n_embd=8)
    ids = model_of(config).generate(torch.zeros(200, 1, dtype=torch.long), 10, n_vocab=50)
    assert ids.max() == 49  # 2,000 draws that are almost uniform reach the last id that is allowed
