"""GPT-2 once more, in NumPy alone: what model.py computes, said a second way.

`weights` is a dict of arrays by GPT-2's names, as `model.state_dict()` gives them; matrices lie as
torch keeps them, (out, in). T tokens, C channels, nh heads of hs = C / nh channels, V vocabulary.
"""

import numpy as np


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))  # the largest becomes exp(0): nothing overflows
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x, weight, bias=0.0, eps=1e-5):
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return weight * (x - mean) / np.sqrt(variance + eps) + bias


def linear(x, weight, bias=0.0):  # (T, in) -> (T, out)
    return x @ weight.T + bias


def attention(q, k, v):  # (T, hs), (T, hs), (T, hs) -> (T, hs)
    scores = q @ k.T / np.sqrt(q.shape[-1])  # (T, T): row i holds how much token i cares for each
    future = np.triu(np.ones_like(scores), k=1)
    return softmax(np.where(future, -np.inf, scores)) @ v


def self_attention(x, c_attn, c_proj, n_head):  # (T, C) -> (T, C)
    q, k, v = np.split(linear(x, **c_attn), 3, axis=-1)
    heads = zip(*(np.split(part, n_head, axis=-1) for part in (q, k, v)), strict=True)
    return linear(np.hstack([attention(*head) for head in heads]), **c_proj)


def mlp(x, c_fc, c_proj):  # (T, C) -> (T, C)
    return linear(gelu(linear(x, **c_fc)), **c_proj)


def block(x, ln_1, attn, ln_2, mlp_, n_head):  # (T, C) -> (T, C)
    x = x + self_attention(layer_norm(x, **ln_1), **attn, n_head=n_head)
    return x + mlp(layer_norm(x, **ln_2), **mlp_)


def gpt2(ids, weights, n_layer, n_head):  # (T,) -> logits (T, V)
    def part(name):  # {"weight": ..., "bias": ...} of one layer; the bias only if there is one
        return {k: weights[f"{name}.{k}"] for k in ("weight", "bias") if f"{name}.{k}" in weights}

    wte, wpe = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]
    x = wte[ids] + wpe[:len(ids)]
    for i in range(n_layer):
        h = f"transformer.h.{i}"
        attn = {"c_attn": part(f"{h}.attn.c_attn"), "c_proj": part(f"{h}.attn.c_proj")}
        mlp_ = {"c_fc": part(f"{h}.mlp.c_fc"), "c_proj": part(f"{h}.mlp.c_proj")}
        x = block(x, part(f"{h}.ln_1"), attn, part(f"{h}.ln_2"), mlp_, n_head)
    return layer_norm(x, **part("transformer.ln_f")) @ wte.T
