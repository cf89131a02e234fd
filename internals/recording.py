"""What a model computes for a text, and what each of its parts contributes: for tools/look.py.

    record     the residual stream, attention weights and outputs of all parts
    head       the logits that a residual stream would give: the logit lens
    ablation   the loss without each head, and without each MLP
    votes      how much each part adds to the difference of two logits
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from internals.errors import UserError
from model import Attend


class RecordingAttend(Attend):
    """Attend, which also keeps its weights (B, nh, T, T) and its output y (B, nh, T, hs). Its
    output is that of Attend.

    off: the number of a head whose output is replaced by zeros, or None."""

    def __init__(self, old):
        super().__init__(old.dropout, old.scale)
        self.weights = None
        self.y = None
        self.off = None

    def forward(self, q, k, v, mask=None):
        scores = self.scale * q @ k.mT
        future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -math.inf)
        self.weights = scores.softmax(dim=-1)
        self.y = super().forward(q, k, v, mask)
        if self.off is not None:
            self.y[:, self.off] = 0
        return self.y


@dataclass
class Recording:
    """What a model computes for one text: L layers, T tokens."""

    logits: torch.Tensor  # (T, V)
    stream: torch.Tensor  # (L + 1, T, C): the residual stream, at first the embedding
    added: torch.Tensor  # (L, 2, T, C): what attention and MLP add to it
    attention: torch.Tensor  # (L, nh, T, T)
    heads: torch.Tensor  # (L, nh, T, hs): the output of each head, before c_proj


def record(model, idx):
    """A Recording of the forward pass on idx (1, T) of a model from build_model."""
    outputs = {}

    def keep(module, _, output):
        outputs[module] = output[0]

    blocks = model.transformer.h
    embedding = model.transformer.drop
    hooks = [embedding.register_forward_hook(keep)]
    for block in blocks:
        for part in (block, block.attn, block.mlp):
            hooks.append(part.register_forward_hook(keep))
    logits, _ = model(idx, idx)  # with targets, it returns the logits of all positions
    for hook in hooks:
        hook.remove()
    stream = [outputs[embedding]]
    added = []
    for block in blocks:
        stream.append(outputs[block])
        added.append(torch.stack((outputs[block.attn], outputs[block.mlp])))
    attends = [block.attn.attend for block in blocks]
    return Recording(
        logits=logits[0],
        stream=torch.stack(stream),
        added=torch.stack(added),
        attention=torch.stack([attend.weights[0] for attend in attends]),
        heads=torch.stack([attend.y[0] for attend in attends]),
    )


def logits_of(model, idx, n_vocab):
    """The logits (T, n_vocab) of a text (1, T), in float64. The ids from n_vocab on, which only pad
    the vocabulary, are left out, as in sampling. Raises UserError if a logit is NaN or infinite."""
    logits, _ = model(idx, idx)
    if not logits.isfinite().all():
        raise UserError("the model's logits are not numbers (NaN): its weights are damaged")
    return logits[0, :, :n_vocab].cpu().double()  # Apple's GPUs have no float64


def head(model, x):
    """The logits (..., V) that a residual stream x (..., C) gives if it is the last one."""
    logits = model.lm_head(model.transformer.ln_f(x))
    if model.config.softcap:
        logits = model.config.softcap * torch.tanh(logits / model.config.softcap)
    return logits


def ablation(model, idx, n_vocab):
    """The loss of the text (1, T) without each part, (L, nh + 1) in nats per token: without each
    head of a layer, and in the last column without its MLP."""
    n_head = model.config.n_head
    losses = torch.zeros(model.config.n_layer, n_head + 1)
    for layer, block in enumerate(model.transformer.h):
        attend = block.attn.attend
        for number in range(n_head):
            attend.off = number
            losses[layer, number] = text_loss(logits_of(model, idx, n_vocab), idx)
        attend.off = None
        hook = block.mlp.register_forward_hook(zeros_instead)
        losses[layer, -1] = text_loss(logits_of(model, idx, n_vocab), idx)
        hook.remove()
    return losses


def zeros_instead(module, inputs, output):
    """A forward hook that switches a module off."""
    return torch.zeros_like(output)


def text_loss(logits, idx):
    """The mean cross-entropy of a text, in nats per token, from logits (T, V) and idx (1, T); None
    if it has only one token."""
    if len(logits) == 1:
        return None
    came = idx[0, 1:].cpu()
    loss = F.cross_entropy(logits[:-1], came)
    return loss.item()


def votes(model, seen, first, second):
    """How much each part of the model adds to logit(first) - logit(second), before soft-capping.

    first, second: ids (T). Returns (T, 2 + L (nh + 1)): the embedding, for each layer its heads and
    its MLP, and the biases. The residual stream x is the sum of what the parts add to it. The final
    norm divides x by a number that depends on x; with this number given, norm and LM head are
    linear, so the contributions of the parts sum to the difference of the logits."""
    u, constant = gap_direction(model, seen.stream[-1], first, second)
    hs = model.config.n_embd // model.config.n_head
    parts = [dot(u, seen.stream[0])]
    for layer, block in enumerate(model.transformer.h):
        c_proj = block.attn.c_proj
        wanted = u @ c_proj.weight  # (T, C): what the heads should output
        wanted = wanted.unflatten(-1, (-1, hs))
        wanted = wanted.transpose(0, 1)  # (nh, T, hs)
        parts += dot(wanted, seen.heads[layer])  # one per head
        parts.append(dot(u, seen.added[layer, 1]))
        if c_proj.bias is not None:
            constant = constant + u @ c_proj.bias
    return torch.stack([*parts, constant], dim=-1)


def gap_direction(model, x, first, second):
    """(u, constant), with logit(first) - logit(second) = u x + constant at each position, before
    soft-capping, where the final norm keeps the scale that it has at x. x and u: (T, C)."""
    ln_f = model.transformer.ln_f
    weight = model.lm_head.weight
    u = weight[first] - weight[second]
    constant = torch.zeros(len(x), device=x.device)
    if isinstance(ln_f, nn.LayerNorm):
        if ln_f.bias is not None:
            constant = u @ ln_f.bias
        u = u * ln_f.weight
        u = u - u.mean(dim=-1, keepdim=True)  # because the norm subtracts the mean of x
        x = x - x.mean(dim=-1, keepdim=True)
    scale = (dot(x, x) / x.shape[-1] + ln_f.eps).sqrt()
    return u / scale[:, None], constant


def dot(x, y):
    return (x * y).sum(dim=-1)
