"""pytest tests/test_optimizers.py - Muon, the learning rate of each group, the schedules"""

import copy

import pytest
import torch
from helpers import GPT2_TINY, MODELS, equal, model_of

from internals import graphs
from internals.optimizers import Muon, make_optimizer, orthogonal
from train import TrainConfig, learning_rate

MUON = TrainConfig(optimizer="muon", learning_rate=1e-3, muon_lr=0.02, embedding_lr=1e-2,
                   weight_decay=0.1)


def matrices(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def random_like(p, seed):
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 16), (64, 16), (16, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonal_brings_every_singular_value_near_one(shape, dtype):
    x, = matrices((3, *shape))
    sizes = torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    made = orthogonal(x * sizes, dtype)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    values = torch.linalg.svdvals(made)
    assert values.max() < 1.3 and values.median() > 0.6
    cosine = torch.nn.functional.cosine_similarity(made.flatten(1), (u @ v).flatten(1))
    assert (cosine > 0.95).all()  # it points where U V^T does


@pytest.mark.parametrize("shape", [(16, 16), (64, 16), (16, 64)])
def test_muon_does_what_torchs_own_does(shape):
    ours = matrices(shape, shape)
    theirs = matrices(shape, shape)
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    a = Muon({"a": ours[0], "b": ours[1]}, **settings, dtype=torch.bfloat16)
    b = torch.optim.Muon(theirs, **settings, nesterov=True, adjust_lr_fn="original")
    for step in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = random_like(p, step)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, start in zip(ours, theirs, matrices(shape, shape), strict=True):
        assert (p - q).norm() < 0.02 * (p - start).norm()  # bfloat16 rounds in another order


def test_queries_keys_and_values_are_three_matrices():
    parts = matrices((16, 16), (16, 16), (16, 16))
    whole = torch.nn.Parameter(torch.cat(parts).detach())
    for seed, p in enumerate(parts):
        p.grad = random_like(p, seed)
    whole.grad = torch.cat([p.grad for p in parts])
    Muon({"h.0.attn.c_attn.weight": whole}, 0.02, 0.9, 0.0, torch.float32).step()
    Muon(dict(zip("qkv", parts, strict=True)), 0.02, 0.9, 0.0, torch.float32).step()
    torch.testing.assert_close(whole, torch.cat(parts))


@MODELS
def test_each_parameter_is_in_one_group_of_one_optimizer(config):
    model = model_of(config)
    adamw, muon = make_optimizer(model, MUON, "float32").optimizers
    found = []
    for optimizer in (adamw, muon):
        for group in optimizer.param_groups:
            found += [(p, optimizer, group["scale"]) for p in group["params"]]
    assert len(found) == len(list(model.parameters()))
    place = {id(p): (optimizer, scale) for p, optimizer, scale in found}
    for name, p in model.named_parameters():
        expected = adamw, 1
        if ".h." in name and p.dim() == 2:
            expected = muon, 20
        elif name == "transformer.wte.weight":
            expected = adamw, 10
        assert place[id(p)] == (expected[0], pytest.approx(expected[1])), name


@pytest.mark.parametrize("dtype, products", [
    ("bfloat16", torch.bfloat16), ("float16", torch.float32), ("float32", torch.float32)])
def test_optimizers_have_the_settings_of_the_run(dtype, products):
    """Matrices decay, biases and the scales of norms do not."""
    cfg = TrainConfig(optimizer="muon", muon_lr=0.03, momentum=0.8, weight_decay=0.3, beta1=0.7)
    adamw, muon = make_optimizer(model_of(GPT2_TINY), cfg, dtype).optimizers
    for group in muon.param_groups:
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.03, 0.8, 0.3)
    assert muon.dtype == products
    for group in adamw.param_groups:
        assert group["betas"] == (0.7, 0.95)
        for p in group["params"]:
            assert group["weight_decay"] == (0.3 if p.dim() == 2 else 0.0)


def test_a_cooldown_is_constant_and_then_a_straight_line():
    cfg = TrainConfig(learning_rate=1.0, min_lr=0.1, max_iters=100, warmup_iters=10, cooldown=0.4)
    assert learning_rate(4, cfg) == pytest.approx(5 / 11)
    assert learning_rate(10, cfg) == learning_rate(60, cfg) == 1.0
    assert learning_rate(80, cfg) == pytest.approx(0.55)
    assert learning_rate(100, cfg) == learning_rate(1000, cfg) == pytest.approx(0.1)


def test_without_muon_there_is_one_optimizer_in_the_order_of_nanogpts():
    """A checkpoint holds the states in this order, whatever the groups are."""
    model = model_of(GPT2_TINY)
    optimizer, = make_optimizer(model, TrainConfig(), "float32").optimizers
    order = [id(p) for group in optimizer.param_groups for p in group["params"]]
    matrices_first = sorted(model.parameters(), key=lambda p: p.dim() < 2)
    assert order == [id(p) for p in matrices_first]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


@pytest.mark.parametrize("cfg", [TrainConfig(), MUON], ids=["adamw", "muon"])
def test_a_skipped_step_changes_neither_weights_nor_state(cfg):
    def one_step(skip):
        for p in model.parameters():
            p.grad = torch.full_like(p, torch.nan if skip else 1e-3)
        optimizer.step(torch.tensor(skip))
        states = [each["state"] for each in optimizer.state_dict()]
        return copy.deepcopy((dict(model.state_dict()), states))

    model = model_of(GPT2_TINY)
    optimizer = make_optimizer(model, cfg, "float32")
    before = one_step(skip=False)
    assert equal(before, one_step(skip=True))
    assert not equal(before, one_step(skip=False))


def test_a_learning_rate_in_a_tensor_is_that_of_the_settings(monkeypatch):
    """As on a GPU, also before the first set_learning_rate."""
    monkeypatch.setattr(graphs, "can_record", lambda device: True)
    optimizer = make_optimizer(model_of(GPT2_TINY), TrainConfig(optimizer="muon"), "float32")
    rates = [group["lr"].item() for group in optimizer.param_groups]
    assert rates == pytest.approx([6e-4] * 3 + [0.02] * (len(rates) - 3))
