"""pytest tests/test_model.py - what the GPT computes"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GPT2_TINY, MODELS, MODERN_TINY
from numpy_gpt2 import gpt2

from internals.optimizers import make_optimizers
from model import (
    ACTIVATIONS,
    GPT,
    NORMS,
    GPTConfig,
    KVCache,
    Rotary,
    attend,
    draw,
    drop,
    penalize,
)
from train import TrainConfig


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
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0)
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
    cfg = TrainConfig(weight_decay=0.3, beta1=0.8, beta2=0.9)
    groups = make_optimizers(model, cfg, "float32")[0].param_groups
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
    ({"act": "swish"}, "act='swish' must be one of gelu_tanh, gelu, relu2"),
    ({"pos": "alibi"}, "pos='alibi' must be one of learned, rope"),
    ({"pos": "rope", "n_embd": 15, "n_head": 5}, "a head has n_embd / n_head = 3: it must be even"),
    ({"softcap": -1.0}, "softcap=-1.0 must be 0 or more"),
])
def test_impossible_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**shape)


# ---- the modern choices


def test_rope_scores_depend_only_on_distance():
    generator = torch.Generator().manual_seed(0)
    qk = torch.randn(1, 1, 2, 1, 16, dtype=torch.float64, generator=generator)
    turned = Rotary(MODERN_TINY).double()(qk.expand(1, 32, 2, 1, 16), torch.arange(32))
    q, k = turned[0, :, :, 0].unbind(1)  # the same query and the same key at 32 positions
    scores = q @ k.T
    for distance in (0, 1, 5, 20):  # the same along each diagonal, and no two of them the same
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-6)
    assert len(scores[:, 0].round(decimals=3).unique()) > 25


def test_rope_turns_and_does_not_stretch():
    x = torch.randn(5, 32, 2, 2, 16, generator=torch.Generator().manual_seed(0))
    turned = Rotary(MODERN_TINY)(x, torch.arange(32))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0]) and not torch.allclose(turned[:, 1:], x[:, 1:])


def test_with_qk_norm_the_size_of_queries_and_keys_is_nothing():
    small, large = model_of(MODERN_TINY, spread=0.3), model_of(MODERN_TINY, spread=0.3)
    for block in large.transformer.h:
        block.attn.c_attn.weight.data[:64] *= 10  # q and k, not v
    idx = tokens(MODERN_TINY, 1, 32)
    torch.testing.assert_close(small(idx)[0], large(idx)[0], rtol=1e-4, atol=1e-4)
    plain = replace(MODERN_TINY, qk_norm=False)
    assert not torch.allclose(model_of(plain, spread=0.3)(idx)[0], small(idx)[0], atol=1e-2)


def test_with_zero_init_every_block_begins_as_identity():
    config = replace(MODERN_TINY, tied=True, softcap=0.0)
    model, idx = model_of(config), tokens(config, 1, 8)
    x = model.transformer.wte(idx)
    expected = model.transformer.ln_f(x) @ model.transformer.wte.weight.T
    torch.testing.assert_close(model(idx, idx)[0], expected)
    assert not model_of(MODERN_TINY).lm_head.weight.any()


def test_softcap_is_a_limit_that_leaves_small_logits():
    model, idx = model_of(MODERN_TINY, spread=3.0), tokens(MODERN_TINY, 1, 32)
    assert 14 < model(idx, idx)[0].abs().max() <= 15
    free = model_of(replace(MODERN_TINY, softcap=0.0), spread=3.0)
    torch.testing.assert_close(15 * torch.tanh(free(idx)[0] / 15), model(idx)[0])


def test_relu2_and_rmsnorm_are_what_they_are_called():
    x = torch.tensor([[-2.0, 0.0, 3.0, 1.0]])
    assert ACTIVATIONS["relu2"](x).tolist() == [[0.0, 0.0, 9.0, 1.0]]
    norm = NORMS["rmsnorm"](GPTConfig(n_embd=4, n_head=1))
    torch.testing.assert_close(norm(x), x / math.sqrt(14 / 4), rtol=1e-5, atol=0)
    assert not list(norm.parameters())


def test_a_head_of_its_own_is_not_counted_as_a_table():
    tied, own = GPT(GPT2_TINY), GPT(replace(GPT2_TINY, tied=False))
    assert own.num_params() == tied.num_params() + 61 * 32
    assert own.flops_per_token() == tied.flops_per_token()  # the table is looked up, not multiplied


# ---- the cache


@MODELS
@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.float64, 1e-12),
                                         (torch.bfloat16, 0.2)], ids=["f32", "f64", "bf16"])
def test_cached_and_uncached_logits_agree(config, static, dtype, atol):
    model = model_of(config, spread=0.1).to(dtype)
    for batch, cuts in (1, [32]), (3, [1] * 32), (2, [7, 1, 1, 10, 13]):
        idx, cache = tokens(config, batch, 32), KVCache(batch, 32, static)
        all_logits, _ = model(idx, idx)
        for end, new in zip(np.cumsum(cuts), idx.split(cuts, dim=1), strict=True):
            logits = model.extend(new, cache)
            torch.testing.assert_close(logits[:, 0], all_logits[:, end - 1], rtol=0, atol=atol)
        assert cache.length == 32


@MODELS
@pytest.mark.parametrize("prompt", [1, 5, 32, 50])
def test_cached_and_uncached_agree_past_the_limit_of_the_context(config, prompt):
    model, idx = model_of(config, spread=0.1), tokens(config, 2, prompt)
    cached, uncached = (list(model.stream(idx, 80, 0, cache=cache)) for cache in (True, False))
    for (a, a_logits), (b, b_logits) in zip(cached, uncached, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a_logits, b_logits, rtol=0, atol=1e-5)


def test_a_window_that_is_full_goes_on_with_its_last_half():
    model, idx = model_of(GPT2_TINY, spread=0.1), tokens(GPT2_TINY, 1, 5)
    ids = model.generate(idx, 60, temperature=0)
    assert torch.equal(ids[:, :5], idx)
    start = 0
    for t in range(5, 65):
        if t - start > 32:
            start = t - 16
        logits, _ = model(ids[:, start:t])
        assert torch.equal(logits[:, -1].argmax(-1), ids[:, t]), t


@MODELS
def test_samples_share_the_computation_of_their_prompt(config):
    model, idx = model_of(config, spread=0.1), tokens(config, 1, 20)
    rows = []
    forward = model.forward
    model.forward = lambda x, **k: rows.append(tuple(x.shape)) or forward(x, **k)
    shared = model.generate(idx, 10, seeds=range(4))
    assert rows == [(1, 20)] + [(4, 1)] * 9
    assert torch.equal(shared, model.generate(idx.expand(4, -1), 10, seeds=range(4)))
    assert len(shared.unique(dim=0)) == 4


@MODELS
def test_a_sample_does_not_depend_on_how_many_are_drawn(config):
    model, idx = model_of(config, spread=0.1), tokens(config, 1, 3)
    many = model.generate(idx, 50, top_p=0.9, seeds=range(5))
    for seed in range(5):
        assert torch.equal(model.generate(idx, 50, top_p=0.9, seeds=[seed])[0], many[seed])


@MODELS
def test_a_cache_goes_on_where_it_stopped(config):
    """As an interactive session does: what is said next goes behind what was drawn."""
    model, idx, more = model_of(config, spread=0.1), tokens(config, 1, 4), tokens(config, 1, 6)
    cache = KVCache(1, 32)
    first = model.generate(idx, 5, temperature=0, cache=cache)
    second = model.generate(more, 5, temperature=0, cache=cache)
    assert cache.length == 4 + 5 + 6 + 4  # the last token that was drawn is not computed yet
    whole = model.generate(torch.cat((first, more), dim=1), 5, temperature=0, cache=False)
    assert torch.equal(whole[:, -5:], second[:, -5:])
    long = tokens(config, 1, 40, seed=3)  # does not fit behind it: the window is its last 32
    third = model.generate(long, 3, temperature=0, cache=cache)
    assert torch.equal(third, model.generate(long, 3, temperature=0, cache=False))


def test_the_cache_takes_what_its_formula_says_and_does_not_grow():
    model, idx = model_of(GPT2_TINY), tokens(GPT2_TINY, 1, 2)
    cache = KVCache(7, 32)
    seen = set()
    for _ in model.stream(idx, 100, seeds=range(7), cache=cache):
        seen.add((len(cache.layers), sum(kv.numel() for kv in cache.layers.values()),
                  sum(kv.data_ptr() for kv in cache.layers.values())))
    (layers, numbers, _), = seen
    assert layers == 3 and numbers == 2 * 3 * 7 * 32 * 32


# ---- drawing


def test_stream_yields_what_generate_returns():
    model, idx = model_of(GPT2_TINY), tokens(GPT2_TINY, 1, 3)
    one_by_one = [ids.item() for ids, _ in model.stream(idx, 20, top_k=5, seeds=[7])]
    assert model.generate(idx, 20, top_k=5, seeds=[7])[0, 3:].tolist() == one_by_one


def test_seeded_samples_leave_the_global_generator_alone():
    model, idx = model_of(GPT2_TINY), tokens(GPT2_TINY, 1, 3)
    before = torch.get_rng_state()
    model.generate(idx, 5, seeds=[0])
    assert torch.equal(torch.get_rng_state(), before)
    model.generate(idx, 5)
    assert not torch.equal(torch.get_rng_state(), before)


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0, 2.5, -30.0]])


def allowed(probs, top_k=None, top_p=1.0, min_p=0.0):
    """The definitions, one by one, with loops: which ids may be drawn."""
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
def test_drawn_frequencies_are_the_definitions(temperature, filters):
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
def test_the_ends_of_the_uniform_numbers_draw_what_is_allowed(uniform):
    assert draw(LOGITS, torch.tensor([[uniform]]), top_k=3).item() in (4, 5, 0)
    assert draw(LOGITS, torch.tensor([[uniform]]), min_p=0.9).item() == 4


def test_temperature_zero_takes_the_likeliest():
    assert [draw(LOGITS, None, t).tolist() for t in (0, 1e-45)] == [[[4]], [[4]]]


def test_a_repetition_penalty_makes_what_was_there_less_likely():
    ids = torch.tensor([[0, 3, 0]])
    expected = [[1.0, 1.0, 0.0, -2.0, 3.0, 2.5, -30.0]]
    assert penalize(LOGITS, ids, 2.0).tolist() == expected
    assert penalize(LOGITS, ids, 1.0) is LOGITS
    model = model_of(replace(GPT2_TINY, block_size=256), spread=0.02)
    kinds = [len(model.generate(tokens(GPT2_TINY, 1, 3), 50, 0, repetition_penalty=p).unique())
             for p in (1.0, 1e4)]
    assert kinds[0] < 40 < kinds[1]


def test_ids_of_the_padding_are_never_drawn():
    config = GPTConfig(block_size=8, vocab_size=64, n_layer=1, n_head=1, n_embd=8)
    ids = model_of(config).generate(torch.zeros(200, 1, dtype=torch.long), 10, n_vocab=50)
    assert ids.max() == 49  # 2,000 draws that are almost uniform reach the last id that is allowed


# ---- dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_dropout_zeroes_that_many_and_keeps_the_mean(p):
    torch.manual_seed(0)
    n = 1_000_003
    y = drop(torch.ones(n, dtype=torch.float64), p)
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    for part in (kept, *(kept[i::4] for i in range(4))):  # four share one draw of 64 bits
        share, sigma = part.double().mean(), (p * (1 - p) / len(part)) ** 0.5
        assert abs(share - (1 - p)) < 5 * sigma + 2**-16
    neighbours = (kept[:-1] & kept[1:]).double().mean()
    assert abs(neighbours - (1 - p) ** 2) < 5 / n**0.5


def test_dropout_is_a_function_of_the_seed():
    first, second, other = (torch.manual_seed(seed) and drop(torch.ones(99), 0.5)
                            for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_attention_with_dropout_is_the_same_attention():
    q, k, v = torch.randn(3, 2, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    plain = attend(q, k, v, None, 0.0)
    torch.testing.assert_close(attend(q, k, v, None, 1e-9), plain, rtol=1e-5, atol=1e-6)
    torch.manual_seed(0)
    mean = sum(attend(q, k, v, None, 0.3) for _ in range(4000)) / 4000
    torch.testing.assert_close(mean, plain, rtol=0, atol=0.1)
