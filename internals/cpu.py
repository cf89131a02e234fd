"""Faster modules for CPUs, which replace modules of a model. print(model) shows them.

    model = speed_up(model)                    for training: Attend, ReLU2 and Dropout
    model = speed_up(model, inference=True)    for sampling: Linear too

Each computes the same as the module that it replaces, up to rounding. (The masks of dropout come
from other random numbers.) Attend and ReLU2 are only replaced as far as they compute what this file
computes, so whoever edits them in model.py sees the effect in training. docs/benchmarks.md has the
speedups.
"""

import math
import warnings

import torch
from torch import nn
from torch.nn import functional as F

from internals.errors import UserError
from model import Attend, ReLU2

WIDE = 256  # minimum n_embd for which bfloat16 weights and packed layers make sampling faster


def speed_up(model, inference=False):
    """Replace modules of `model` by faster ones if it is on a CPU; returns `model`.

    For training, only modules without parameters are replaced, so names and state_dict do not
    change. inference: pack the weights too; they can then no longer be trained or saved.
    """
    weight = model.transformer.wte.weight
    if weight.device.type != "cpu":
        return model
    replace(model, Attend, lambda old: CPUAttend(old.dropout, old.scale, model.block_size))
    if model.config.dropout:
        replace(model, nn.Dropout, lambda old: CPUDropout(old.p))
    if computes_the_same(CPUReLU2(), ReLU2()):
        replace(model, ReLU2, lambda old: CPUReLU2())
    if inference and model.config.n_embd >= WIDE and can_pack(weight.dtype):
        replace(model, nn.Linear, Packed)
    return model


def replace(model, kind, make):
    """Replace every module of exactly this kind in `model` by make(module)."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is kind:
                setattr(parent, name, make(child).train(child.training))


def replaced(model):
    """The names of the modules that `speed_up` has replaced in a model, such as ["Attend"]."""
    names = set()
    for module in model.modules():
        name = type(module).__name__
        if name.startswith("CPU"):
            names.add(name.removeprefix("CPU"))
    return sorted(names)


def bfloat16_pays(n_embd):
    """Whether training in bfloat16 is faster on this CPU. The CPU needs bfloat16 instructions, and
    in narrow models the conversions cost more than they save (docs/benchmarks.md)."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    return bool(capabilities.get("avx512_bf16")) and n_embd >= 128


def cache_dtype(model):
    """The dtype of a KV cache for `model`; None: that of its keys and values. With CPUAttend it is
    at least float32, because attention over a bfloat16 cache takes 6 times as long. The plain
    Attend cannot mix dtypes."""
    if any(isinstance(module, CPUAttend) for module in model.modules()):
        return torch.promote_types(model.transformer.wte.weight.dtype, torch.float32)
    return None


class CPUAttend(Attend):
    """Attend for CPUs: the forward of model.py with float32 inputs. In bfloat16, PyTorch's backward
    pass takes 8 times as long, and attention over a cache 6 times.

    With dropout, PyTorch 2.13 has no fast kernel for bfloat16, so attention is written out here."""

    def __init__(self, dropout, scale, block_size=64):
        super().__init__(dropout, scale)
        self.may_write_out = False
        if dropout:  # is the attention of model.py what `written_out` computes?
            generator = torch.Generator().manual_seed(0)
            q, k, v = torch.randn(3, 1, 1, block_size, 4, generator=generator)
            expected = Attend(0.0, scale)(q, k, v)
            written = self.written_out(q, k, v, 0.0)
            self.may_write_out = torch.allclose(written, expected, atol=1e-5)

    def forward(self, q, k, v, mask=None):
        if self.training and self.dropout and mask is None and self.may_write_out:
            return self.written_out(q, k, v, self.dropout)
        if mask is None and not v.requires_grad:  # neither training nor a cache
            return super().forward(q, k, v)
        wide = torch.promote_types(v.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            y = super().forward(q.to(wide), k.to(wide), v.to(wide), mask)
        return y.to(q.dtype)

    def written_out(self, q, k, v, dropout):
        T = q.shape[2]
        scores = q @ k.mT * self.scale  # (B, nh, T, T)
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        probs = scores.masked_fill(future, -math.inf).softmax(dim=-1).to(v.dtype)
        if dropout:
            probs = drop(probs, dropout)
        return probs @ v


class CPUDropout(nn.Dropout):
    """Dropout for CPUs with 16 random bits per number. torch's own dropout takes 7 times as long,
    which was a third of a training step."""

    def forward(self, x):
        return drop(x, self.p) if self.training and self.p else x


def drop(x, p):
    """Set each number of x to zero with probability p, and divide it by 1 - p otherwise. p is
    rounded to a multiple of 1/65536."""
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-2**63, None)
    least = min(round(p * 2**16) - 2**15, 2**15 - 1)  # of the int16 numbers, a share of p is below
    keep = bits.view(torch.int16)[:x.numel()].view(x.shape) >= least
    return x * keep.to(x.dtype).div_(1 - p)


class CPUReLU2(nn.Module):
    """ReLU squared for CPUs: its forward and backward pass take 0.5 to 0.9 of the time."""

    def forward(self, x):
        return SquaredReLU.apply(x)


@torch.enable_grad()
def computes_the_same(module, other):
    """Whether two modules have the same outputs and gradients for numbers from -4 to 4."""
    results = []
    for each in (module, other):
        x = torch.linspace(-4, 4, 101, requires_grad=True)
        y = each(x)
        y.sum().backward()
        results.append(torch.stack((y, x.grad)))
    return torch.allclose(*results)


class SquaredReLU(torch.autograd.Function):
    """y = relu(x)^2. Its gradient is 2 relu(x) dy."""

    @staticmethod
    def forward(ctx, x):
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx, dy):
        (positive,) = ctx.saved_tensors
        return (positive * dy).mul_(2)


def can_pack(dtype):
    """Whether this machine and this version of torch have the kernels that Packed needs. They are
    not public, so one product is tried."""
    linear = nn.Linear(16, 16).to(dtype)
    x = torch.ones(1, 16, dtype=dtype)
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False  # it would run, but slowly
        return torch.allclose(Packed(linear)(x), linear(x), atol=1e-2)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


class Packed(nn.Module):
    """A Linear layer with its weights in the memory layout that oneDNN's kernels read, so that
    sampling a token takes two thirds of the time. torch.compile can do the same for a frozen model;
    PyTorch 2.13 has no public function for it."""

    def __init__(self, linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias, self.in_features = linear.bias, linear.in_features

    def forward(self, x):  # (..., in) -> (..., out)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def quantized(model):
    """The model with int8 weights in its Linear layers and one scale per matrix, so that a token
    reads a quarter of the bytes. The inputs of these layers are quantized dynamically. Raises
    UserError if the model is not on a CPU."""
    device = model.transformer.wte.weight.device
    if device.type != "cpu":
        raise UserError(f"dtype=int8 is for CPUs, but the device is {device}: use bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will move this function to another package
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    return speed_up(model)
