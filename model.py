"""The GPT: a decoder-only transformer, GPT-2 to the last digit or a modern one, in one file.

    model = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384))
    model = GPT.from_pretrained("gpt2")
    logits, loss = model(idx, targets)                     # train
    ids = model.generate(idx, max_new_tokens=100)          # sample

    idx -> wte + wpe -> n_layer x Block -> ln_f -> lm_head -> logits
    Block:  x = x + attn(ln_1(x)),  then  x = x + mlp(ln_2(x))

- by default GPT-2: LayerNorm, learned positions, tanh GELU, the head tied to the token embedding
- what has been found since, each a setting of its own: RoPE, RMSNorm without parameters, QK-norm,
  ReLU squared, projections that begin at zero, an untied head, capped logits
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
    "relu2": lambda x: F.relu(x).square(),  # So et al. 2021 (Primer)
}
NORMS = {
    "layernorm": lambda c: nn.LayerNorm(c.n_embd, eps=c.norm_eps, bias=c.bias),
    "rmsnorm": lambda c: nn.RMSNorm(c.n_embd, eps=c.norm_eps, elementwise_affine=False),
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
    pos: Literal["learned", "rope"] = "learned"  # a table of positions, or queries and keys turned
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # rmsnorm: no mean taken off, no gain
    norm_eps: float = 1e-5  # what keeps a norm from dividing by zero
    act: Literal["gelu_tanh", "gelu", "relu2"] = "gelu_tanh"  # GPT-2's GELU, the exact, or ReLU^2
    qk_norm: bool = False  # queries and keys are normalised: their products cannot grow large
    zero_init: bool = False  # projections into the residual stream begin at zero
    tied: bool = True  # the output head is the token embedding
    softcap: float = 0.0  # logits become softcap * tanh(logits / softcap); 0: they do not

    def __post_init__(self):
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.n_embd % self.n_head:
            nearest = self.n_head * max(1, round(self.n_embd / self.n_head))
            raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}; the "
                             f"nearest that is: {nearest}")
        if self.pos == "rope" and self.n_embd // self.n_head % 2:
            raise ValueError(f"pos=rope turns channels in pairs, and a head has n_embd / n_head = "
                             f"{self.n_embd // self.n_head}: it must be even")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if not 0 <= self.softcap < math.inf or not 0 < self.norm_eps < 1:
            raise ValueError(f"softcap={self.softcap} must be 0 or more, norm_eps={self.norm_eps} "
                             "above 0 and below 1")
        for name, table in ("act", ACTIVATIONS), ("norm", NORMS), ("pos", POSITIONS):
            if getattr(self, name) not in table:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of "
                                 f"{', '.join(table)}")


class Rotary(nn.Module):
    """Turns pairs of channels by angles that grow with the position, so that the product of a query
    and a key depends on their distance alone: RoPE (Su et al. 2021)."""

    def __init__(self, config):
        super().__init__()
        hs = config.n_embd // config.n_head
        # on the CPU also where the model is made on "meta", without memory: these are not loaded
        speeds = 10000.0 ** -(torch.arange(0, hs, 2, device="cpu") / hs)
        angles = torch.outer(torch.arange(config.block_size, device="cpu"), speeds)
        cos, sin = angles.cos(), angles.sin()  # (block_size, hs / 2)
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=-1), persistent=False)

    def forward(self, x, positions):  # (B, T, 2, nh, hs), (T,) -> (B, T, 2, nh, hs)
        cos, sin = (table[positions, None, None].to(x.dtype) for table in (self.cos, self.sin))
        # the partner of a channel is half a head away: (a, b) -> (a cos - b sin, b cos + a sin)
        return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class NoTable(nn.Module):
    """What stands for the table of positions where there is none."""

    def forward(self, positions):
        return 0.0


POSITIONS = {  # the table that is added to the tokens, and what turns queries and keys
    "learned": (lambda c: nn.Embedding(c.block_size, c.n_embd), lambda c: lambda x, positions: x),
    "rope": (lambda c: NoTable(), Rotary),
}


class KVCache:
    """Keys and values of the tokens that were seen, so that they are not computed again: at most
    2 x n_layer x batch_size x block_size x C numbers, allocated at the first token.

    ids: the tokens of the window (batch_size, n); of the first `length` of them, keys and values
    are in `layers`. With `static`, attention looks at all block_size places, those to come being
    masked: no shape changes from token to token, which a compiler and a CUDA graph need.
    """

    def __init__(self, batch_size, block_size, static=False):
        self.batch_size, self.block_size, self.static = batch_size, block_size, static
        self.ids, self.length, self.layers = None, 0, {}

    def mask(self, positions):
        """(T, n): which of the n places the new tokens, at positions (T,), may look at."""
        n = self.block_size if self.static else self.length
        return positions[:, None] >= torch.arange(n, device=positions.device)

    def store(self, layer, positions, k, v, n):
        """Put k and v (B, nh, T, hs) at positions (T,); return those of the first n places. One row
        for a cache of many is the prompt that they share."""
        if layer not in self.layers:
            size = (2, self.batch_size, k.shape[1], self.block_size, k.shape[3])
            cpu = v.device.type == "cpu"  # attends in float32 at the least
            dtype = torch.promote_types(v.dtype, torch.float32) if cpu else v.dtype
            self.layers[layer] = torch.zeros(size, dtype=dtype, device=v.device)
            if self.static:
                torch._dynamo.mark_static_address(self.layers[layer])  # a CUDA graph may write it
        for stored, new in zip(self.layers[layer], (k, v), strict=True):
            stored[:, :, positions] = new.to(stored.dtype)
        return self.layers[layer][:, :len(k), :, :n]


def drop(x, p):
    """x with each number zero with probability p, and 1 / (1 - p) times itself otherwise.

    On a CPU from 16 random bits each, so p is a multiple of 1/65536: torch draws its own 7 times
    as slowly, which was a third of a step (docs/benchmarks.md).
    """
    if x.device.type != "cpu":
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-2**63, None)
    keep = bits.view(torch.int16)[:x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
    return x * keep.to(x.dtype).div_(1 - p)


class Dropout(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return drop(x, self.p) if self.training and self.p else x


def attend(q, k, v, mask, dropout):
    """softmax(q k^T / sqrt(hs)) v: q (B, nh, T, hs), k and v (B, nh, n, hs) -> (B, nh, T, hs).

    mask (T, n) is True where a token may look; None: at itself and at those before it.
    On a CPU torch 2.13 has nothing fast for dropout here, so then it is written out. And bfloat16
    takes it 6 times as long as float32 for one token behind many, 8 times in the backward: with a
    cache and in training this is in float32 at the least (docs/benchmarks.md).
    """
    cpu = v.device.type == "cpu"
    if cpu and dropout:
        future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
        scores = q @ k.mT / math.sqrt(q.shape[3])  # (B, nh, T, T)
        probs = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        return drop(probs.to(v.dtype), dropout) @ v
    sdpa = partial(F.scaled_dot_product_attention, attn_mask=mask, is_causal=mask is None)
    if cpu and (mask is not None or v.requires_grad):
        wide = torch.promote_types(v.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            return sdpa(q.to(wide), k.to(wide), v.to(wide)).to(q.dtype)
    return sdpa(q, k, v, dropout_p=dropout)


class CausalSelfAttention(nn.Module):
    """Every token looks at itself and at those before it. (B, T, C) -> (B, T, C)"""

    def __init__(self, config, layer):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k, v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.drop = Dropout(config.dropout)
        self.n_head, self.layer = config.n_head, layer
        hs = config.n_embd // config.n_head
        self.qk_norm = nn.Identity()
        if config.qk_norm:
            self.qk_norm = nn.LayerNorm(hs, elementwise_affine=False)
        self.rotate = POSITIONS[config.pos][1](config)

    def forward(self, x, positions, mask=None, cache=None):
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        qk = self.rotate(self.qk_norm(qkv[:, :, :2]), positions)
        q, k, v = (part.transpose(1, 2) for part in (*qk.unbind(2), qkv[:, :, 2]))  # (B, nh, T, hs)
        if cache is not None:
            k, v = cache.store(self.layer, positions, k, v, n=mask.shape[1])
        y = attend(q, k, v, mask, self.drop.p if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.drop(self.c_proj(y))


class MLP(nn.Module):
    """Every token by itself. (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.drop = Dropout(config.dropout)
        self.act = ACTIVATIONS[config.act]

    def forward(self, x):
        return self.drop(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = NORMS[config.norm](config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = NORMS[config.norm](config)
        self.mlp = MLP(config)

    def forward(self, x, *places):
        x = x + self.attn(self.ln_1(x), *places)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The whole model. Its weights are drawn from torch's global generator."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(config.vocab_size, config.n_embd),
            "wpe": POSITIONS[config.pos][0](config),
            "drop": Dropout(config.dropout),
            "h": nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
            "ln_f": NORMS[config.norm](config),
        })
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.transformer.wte.weight  # Press & Wolf 2017
        cap = config.softcap
        self.cap = (lambda logits: cap * torch.tanh(logits / cap)) if cap else nn.Identity()
        self.block_size = config.block_size
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """GPT-2's initialisation: every matrix N(0, 0.02), biases 0, and the 2 n_layer projections
        into the residual stream smaller by 1/sqrt(2 n_layer), so that their sum keeps its size.
        zero_init: these, and a head of its own, begin at zero; a block then begins as identity."""
        residual = 0.0 if self.config.zero_init else 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                p.normal_(0.0, residual)
            elif p.dim() == 2:
                p.normal_(0.0, 0.02)
            elif name.endswith("bias"):
                p.zero_()
        if self.config.zero_init and not self.config.tied:
            self.lm_head.weight.zero_()

    def forward(self, idx, targets=None, positions=None, cache=None):
        """Next-token logits for idx (B, T), T <= block_size.

        With targets (B, T): returns logits (B, T, V) and the mean cross-entropy, in nats, over the
        targets that are not -1. Without: logits of the last position alone (B, 1, V), and None.
        positions (T,) and cache: where idx stands behind what the cache holds; see `extend`.
        Raises ValueError where T is over block_size.
        """
        T = idx.shape[1]
        if T > self.block_size:
            raise ValueError(f"{T} tokens are more than the block_size of {self.block_size}")
        mask = None if cache is None else cache.mask(positions)
        if positions is None:
            positions = torch.arange(T, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(positions)  # (B, T, C)
        x = self.transformer.drop(x)
        for block in self.transformer.h:
            x = block(x, positions, mask, cache)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.cap(self.lm_head(x[:, -1:])), None
        logits = self.cap(self.lm_head(x))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss

    @torch.no_grad()
    def extend(self, idx, cache):
        """Logits (B, 1, V) behind idx (B, T), which follows what is in the cache and goes into it.
        """
        first, cache.length = cache.length, cache.length + idx.shape[1]
        positions = torch.arange(first, cache.length, device=idx.device)
        # self.forward is never compiled, and prompts have many lengths; self is, after .compile()
        forward = self if first and idx.shape[1] == 1 else self.forward
        return forward(idx, positions=positions, cache=cache)[0]

    @torch.no_grad()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0,
               repetition_penalty=1.0, n_vocab=None, seeds=None, cache=True):
        """Continue idx (B, T), T >= 1, token by token.

        seeds: one for each sample, which is then drawn from a generator of its own; one row of idx
        may serve several, and is computed once. None: all from torch's global generator.
        cache: True, False (all is computed anew for each token: the same, slower), or the KVCache
        of an earlier call, behind whose tokens idx is put.
        temperature, top_k, top_p, min_p: see `draw`. repetition_penalty: logits of tokens that the
        window has are divided by it, or multiplied where negative (Keskar et al. 2019, CTRL).
        Ids from n_vocab on, a padding, are not drawn. Call model.eval() first, or dropout is on.

        A window that is full is cut to its last half, whose keys and values are computed anew:
        learned positions cannot slide.

        Yields, max_new_tokens times, ids (B, 1) and the logits (B, n_vocab) they were drawn from.
        """
        B = len(idx) if seeds is None else len(seeds)
        generators = [None if seeds is None else torch.Generator().manual_seed(seeds[i])
                      for i in range(B)]
        cache = KVCache(B, self.block_size) if cache is True else cache or None
        if cache and cache.ids is not None:
            idx = torch.cat((cache.ids, idx.expand(B, -1)), dim=1)
        window = idx[:, -self.block_size:]
        if cache and window.shape[1] < idx.shape[1]:
            cache.length = 0
        for _ in range(max_new_tokens):
            logits = self.extend(window[:, cache.length:], cache) if cache else self(window)[0]
            logits = logits[:, -1, :n_vocab].expand(B, -1)
            window = window.expand(B, -1)
            uniform = torch.stack([torch.rand(1, generator=g) for g in generators])  # (B, 1)
            next_ids = draw(penalize(logits, window, repetition_penalty),
                            uniform.to(idx.device), temperature, top_k, top_p, min_p)
            window = torch.cat((window, next_ids), dim=1)
            if window.shape[1] > self.block_size:
                window = window[:, -max(1, self.block_size // 2):]
                if cache:
                    cache.length = 0
            if cache:
                cache.ids = window
            yield next_ids, logits

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, **options):
        """idx (B, T) -> idx and its continuation (B, T + max_new_tokens). Options: `stream`."""
        stream = self.stream(idx, max_new_tokens, temperature, top_k, **options)
        ids = torch.cat([ids for ids, _ in stream], dim=1) if max_new_tokens else idx[:, :0]
        return torch.cat((idx.expand(len(ids), -1), ids), dim=1)

    def num_params(self):
        """The number of parameters, without the position table, as nanoGPT counts them."""
        table = sum(p.numel() for p in self.transformer.wpe.parameters())
        return sum(p.numel() for p in self.parameters()) - table

    def flops_per_token(self):
        """FLOPs a token, forward and backward: 6 N + 12 L C T (Chowdhery et al. 2022, PaLM,
        appendix B); N are the parameters that are multiplied with: no table but a tied one."""
        c = self.config
        n = self.num_params() - (0 if c.tied else self.transformer.wte.weight.numel())
        return 6 * n + 12 * c.n_layer * c.n_embd * c.block_size

    @classmethod
    def from_weights(cls, config, weights):
        """A model whose weights are those of a state_dict, not copies; nothing random is drawn."""
        with torch.device("meta"):  # takes no memory
            model = cls(config)
        model.load_state_dict(weights, assign=True)
        if config.tied:
            model.lm_head.weight = model.transformer.wte.weight
        return model

    @classmethod
    def from_pretrained(cls, name):
        """GPT-2, or a model of its kind, in Hugging Face's layout: a folder, or a name on the hub
        ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"). See internals/huggingface.py for what is
        raised."""
        from internals import huggingface

        return huggingface.load(cls, name)

    def save_pretrained(self, folder, n_vocab=None, end_of_text=None):
        """Write the model in Hugging Face's layout into `folder`, of its vocabulary the first
        n_vocab ids. Raises ValueError naming a setting that GPT-2 does not have."""
        from internals import huggingface

        huggingface.save(self, folder, n_vocab, end_of_text)


def penalize(logits, ids, penalty):
    """Logits (B, V) of the tokens in ids (B, T) made less likely, for a penalty over 1."""
    if penalty == 1.0:
        return logits
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def draw(logits, uniform, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    """Draw ids (B, 1) from next-token logits (B, V), by numbers uniform in [0, 1): (B, 1).

    temperature: logits are divided by it; below 1 is bolder, 0 takes the most likely id.
    top_k: only the k most likely ids can be drawn.
    top_p: only the fewest most likely ids that have this probability together (Holtzman et al.
        2020); the most likely one always.
    min_p: only ids at least this likely, relative to the most likely (Nguyen et al. 2024).
    They act in this order, each on what the one before left.
    """
    if temperature < 1e-5:  # float32 could not divide by it
        return logits.argmax(dim=-1, keepdim=True)
    logits, ids = (logits.float() / temperature).topk(min(top_k or len(logits[0]), len(logits[0])))
    probs = logits.softmax(dim=-1)  # the most likely first
    before = probs.cumsum(dim=-1) - probs
    probs = probs * ((before < top_p) & (probs >= min_p * probs[:, :1]))
    cumulative = probs.cumsum(dim=-1)
    choice = torch.searchsorted(cumulative, uniform * cumulative[:, -1:])
    return ids.gather(1, choice)
