"""The GPT: a decoder-only transformer, the same function as GPT-2, in one file.

    model = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384))
    logits, loss = model(idx, targets)                     # train
    ids = model.generate(idx, max_new_tokens=100)          # sample

    idx -> wte + wpe -> n_layer x Block -> ln_f -> lm_head -> logits
    Block:  x = x + attn(ln_1(x)),  then  x = x + mlp(ln_2(x))

- pre-LayerNorm, learned positions, tanh GELU, the output head tied to the token embedding
- parameter names are GPT-2's, so its weights, and nanoGPT's checkpoints, map one to one
- attention by torch's scaled_dot_product_attention, which chooses the fastest kernel there is

Shapes: B batch, T tokens, C = n_embd channels, nh heads of hs = C / nh channels, V vocabulary.
Sources: Radford et al. 2019 (GPT-2) and its TensorFlow code; Vaswani et al. 2017.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # GPT-2's
    "gelu": F.gelu,  # the exact one: nanoGPT's
}


@dataclass
class GPTConfig:
    """The shape of a model. Raises ValueError for one that cannot be."""

    block_size: int = 1024  # context length in tokens
    vocab_size: int = 50304  # GPT-2's 50257 symbols, padded to a multiple of 64: faster
    n_layer: int = 12  # transformer blocks
    n_head: int = 12  # attention heads in each
    n_embd: int = 768  # width, a multiple of n_head
    dropout: float = 0.0  # probability; 0 for pretraining, 0.1 and more for small data
    bias: bool = False  # in Linear and LayerNorm: GPT-2 has them; without is a bit better
    act: Literal["gelu_tanh", "gelu"] = "gelu_tanh"  # GPT-2's GELU, or the exact one

    def __post_init__(self):
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.n_embd % self.n_head:
            nearest = self.n_head * max(1, round(self.n_embd / self.n_head))
            raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}; the "
                             f"nearest that is: {nearest}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.act not in ACTIVATIONS:
            raise ValueError(f"act={self.act!r} must be one of {', '.join(ACTIVATIONS)}")


def attend(q, k, v, dropout):
    """softmax(q k^T / sqrt(hs)) v, the future masked: three (B, nh, T, hs) -> (B, nh, T, hs).

    On a CPU in float32 at the least: there torch 2.13's backward takes 8 times as long in bfloat16.
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), dropout).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)


class CausalSelfAttention(nn.Module):
    """Every token looks at itself and at those before it. (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k, v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.drop = nn.Dropout(config.dropout)
        self.n_head = config.n_head

    def forward(self, x):
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, nh, T, hs)
        y = attend(q, k, v, self.drop.p if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.drop(self.c_proj(y))


class MLP(nn.Module):
    """Every token by itself. (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.drop = nn.Dropout(config.dropout)
        self.act = ACTIVATIONS[config.act]

    def forward(self, x):
        return self.drop(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The whole model. Its weights are drawn from torch's global generator."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(config.vocab_size, config.n_embd),
            "wpe": nn.Embedding(config.block_size, config.n_embd),
            "drop": nn.Dropout(config.dropout),
            "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
        })
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied: Press & Wolf 2017
        self.block_size = config.block_size
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """GPT-2's initialisation: every matrix N(0, 0.02), biases 0, and the 2 n_layer projections
        into the residual stream smaller by 1/sqrt(2 n_layer), so that their sum keeps its size."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith("c_proj.weight")
                p.normal_(0.0, 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)
            elif name.endswith("bias"):
                p.zero_()

    def forward(self, idx, targets=None):
        """Next-token logits for idx (B, T), T <= block_size.

        With targets (B, T): returns logits (B, T, V) and the mean cross-entropy, in nats, over the
        targets that are not -1. Without: logits of the last position alone (B, 1, V), and None.
        Raises ValueError where T is over block_size.
        """
        T = idx.shape[1]
        if T > self.block_size:
            raise ValueError(f"{T} tokens are more than the block_size of {self.block_size}")
        positions = torch.arange(T, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(positions)  # (B, T, C)
        x = self.transformer.drop(x)
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, -1:]), None
        logits = self.lm_head(x)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss

    @torch.no_grad()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, n_vocab=None,
               generator=None):
        """Continue idx (B, T), T >= 1, token by token: yields (B, 1) ids, max_new_tokens times.

        The model sees the last block_size tokens. temperature, top_k: see `draw`. Ids from n_vocab
        on, a padding, are not drawn. Call model.eval() first, else dropout is on.
        """
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.block_size:])
            next_ids = draw(logits[:, -1, :n_vocab], temperature, top_k, generator)  # (B, 1)
            yield next_ids
            idx = torch.cat((idx, next_ids), dim=1)

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, **options):
        """idx (B, T) -> idx and its continuation (B, T + max_new_tokens). Options: `stream`."""
        ids = self.stream(idx, max_new_tokens, temperature, top_k, **options)
        return torch.cat((idx, *ids), dim=1)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        """AdamW in which matrices and embeddings decay, and biases and gains do not (GPT-2, GPT-3).
        Fused, one kernel for all parameters, on the devices ("cuda", "cpu", "mps") that have it."""
        params = [p for p in self.parameters() if p.requires_grad]
        groups = [{"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
                  {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}]
        fused = device_type in ("cuda", "cpu", "mps")
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)

    def num_params(self):
        """The number of parameters, without the position table, as nanoGPT counts them."""
        return sum(p.numel() for p in self.parameters()) - self.transformer.wpe.weight.numel()

    def flops_per_token(self):
        """FLOPs a token, forward and backward: 6 N + 12 L C T (Chowdhery et al. 2022, PaLM,
        appendix B); N counts the tied table once, for it is multiplied with once."""
        c = self.config
        return 6 * self.num_params() + 12 * c.n_layer * c.n_embd * c.block_size


def draw(logits, temperature=1.0, top_k=None, generator=None):
    """Draw ids (B, 1) from next-token logits (B, V).

    temperature: logits are divided by it; below 1 is bolder, 0 takes the most likely id.
    top_k: only the k most likely ids can be drawn (and those as likely as the k-th).
    """
    if temperature < 1e-5:  # float32 could not divide by it
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=generator)
