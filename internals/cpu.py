"""What makes a model faster on a CPU: modules that replace equal ones. print(model) shows them.

    model = speed_up(model)                    for training: Attend and Dropout
    model = speed_up(model, inference=True)    for sampling: Linear too

Each computes what the plain module computes, up to rounding; docs/benchmarks.md has the gains.
"""

import math
import warnings

import torch
from torch import nn
from torch.nn import functional as F

from configurator import UserError
from model import Attend

WIDE = 256  # from this n_embd on, bfloat16 weights and packed layers pay when sampling


def speed_up(model, inference=False):
    """`model`, its modules replaced by faster ones if it is on a CPU. In training the replaced
    modules have no parameters, so names and state_dict stay the same. inference: for good, as
    packed weights can be neither trained nor saved. Changes `model` and returns it."""
    weight = model.transformer.wte.weight
    if weight.device.type != "cpu":
        return model
    replace(model, Attend, lambda old: CPUAttend(old.dropout))
    replace(model, nn.Dropout, lambda old: CPUDropout(old.p))
    if inference and model.config.n_embd >= WIDE and can_pack(weight.dtype):
        replace(model, nn.Linear, Packed)
    return model


def replace(model, kind, make):
    """Replace every module of exactly this kind in `model` by make(module)."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is kind:
                setattr(parent, name, make(child).train(child.training))


def bfloat16_pays(n_embd):
    """Whether training in bfloat16 is faster on this CPU: it needs instructions for it, and narrow
    models lose more by converting than they gain (docs/benchmarks.md)."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    return bool(capabilities.get("avx512_bf16")) and n_embd >= 128


def cache_dtype(model):
    """The dtype of a KV cache for `model`; None: that of its keys and values. With CPUAttend at
    least float32, because attention over a bfloat16 cache takes 6 times as long. The plain Attend
    cannot mix dtypes."""
    if any(isinstance(module, CPUAttend) for module in model.modules()):
        return torch.promote_types(model.transformer.wte.weight.dtype, torch.float32)
    return None


class CPUAttend(Attend):
    """Attend for CPUs. PyTorch 2.13 has no fast kernel with dropout there, so that is written out.
    Its bfloat16 kernel is slow in the backward pass (8 times) and over a cache (6 times), so these
    are computed in float32."""

    def forward(self, q, k, v, mask=None):
        if self.training and self.dropout:
            return self.with_dropout(q, k, v, mask)
        if mask is None and not v.requires_grad:
            return super().forward(q, k, v)
        wide = torch.promote_types(v.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q.to(wide), k.to(wide), v.to(wide), attn_mask=mask,
                                               is_causal=mask is None)
        return y.to(q.dtype)

    def with_dropout(self, q, k, v, mask):
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        else:
            k, v = k.to(q.dtype), v.to(q.dtype)  # those of a cache are float32
        scores = q @ k.mT / math.sqrt(q.shape[3])  # (B, nh, T, n)
        probs = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
        return drop(probs.to(v.dtype), self.dropout) @ v


class CPUDropout(nn.Dropout):
    """Dropout for CPUs: 16 random bits per number, because torch's own takes 7 times as long. That
    was a third of a training step."""

    def forward(self, x):
        return drop(x, self.p) if self.training and self.p else x


def drop(x, p):
    """x with each number set to zero with probability p, and divided by 1 - p otherwise. p is
    rounded to a multiple of 1/65536."""
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-2**63, None)
    keep = bits.view(torch.int16)[:x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
    return x * keep.to(x.dtype).div_(1 - p)


def can_pack(dtype):
    """Whether this machine has the kernels that Packed needs."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


class Packed(nn.Module):
    """A Linear layer whose weights are in the order in which oneDNN's kernels read them: a token
    takes two thirds of the time. torch.compile does the same to a model that it may freeze; PyTorch
    2.13 has no public name for it."""

    def __init__(self, linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias, self.in_features = linear.bias, linear.in_features

    def forward(self, x):  # (..., in) -> (..., out)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def quantized(model):
    """The model with int8 weights in its Linear layers, one scale per matrix; their inputs are
    rounded to int8 too, token by token. A quarter of the memory to read. Raises UserError if the
    model is not on a CPU."""
    device = model.transformer.wte.weight.device
    if device.type != "cpu":
        raise UserError(f"dtype=int8 is for CPUs, and the device is {device}: use bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will move this into a package of its own
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    return speed_up(model)
