"""The GPT: the decoder of the transformer (Vaswani et al. 2017), all of it in this file.

    model = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384))
    model = GPT.from_pretrained("gpt2")
    logits, loss = model(idx, targets)                     # train
    ids = model.generate(idx, max_new_tokens=100)          # sample

    idx -> wte + wpe -> n_layer x Block -> ln_f -> lm_head -> logits
    Block:  x = x + attn(ln_1(x)),  then  x = x + mlp(ln_2(x))

- with bias=True it is GPT-2 exactly (Radford et al. 2019), and parameters have GPT-2's names
- later improvements, such as RoPE and QK-norm, are settings; docs/modern.md explains each

Shapes: B sequences in a batch, T tokens, C = n_embd channels, nh heads of size hs = C / nh,
V tokens in the vocabulary.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    """The settings of a model. Raises ValueError if sizes or names are wrong, or if two settings do
    not fit together."""

    block_size: int = 1024  # context length in tokens
    vocab_size: int = 50304  # 50257 tokens of GPT-2, padded to a multiple of 64 for speed
    n_layer: int = 12  # transformer blocks
    n_head: int = 12  # attention heads per block
    n_embd: int = 768  # channels, a multiple of n_head
    dropout: float = 0.0  # probability; 0 for pretraining, 0.1 and more for small data
    # True: Linear and LayerNorm layers have biases, as in GPT-2; False: they do not, as in nanoGPT
    bias: bool = False
    pos: Literal["learned", "rope"] = "learned"  # learned position embeddings, or rotary (RoPE)
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # rmsnorm: no mean, no learned scale
    norm_eps: float = 1e-5  # added to the variance, so that a norm never divides by zero
    act: Literal["gelu_tanh", "gelu", "relu2"] = "gelu_tanh"  # GELU of GPT-2, exact GELU, ReLU^2
    qk_norm: bool = False  # normalize queries and keys, which bounds the attention scores
    attn_scale: float = 1.0  # attention scores are multiplied by it; above 1: sharper attention
    smear: bool = False  # add to each token embedding a learned share of the previous one
    zero_init: bool = False  # c_proj of attention and MLP, and an untied LM head, start at zero
    tied: bool = True  # the LM head shares its weights with the token embedding
    softcap: float = 0.0  # logits become softcap * tanh(logits / softcap); 0: off

    def __post_init__(self):
        check(self)  # at the end of this file


class Attend(nn.Module):
    """softmax(scale q k^T) v: each token's output is a weighted mean of the values.

    q (B, nh, T, hs), k and v of n tokens (B, nh, n, hs) -> (B, nh, T, hs). mask (T, n): True if a
    query may attend to a key; None: causal. On a CPU, train.py and sample.py replace this module by
    CPUAttend (internals/cpu.py), which computes the same."""

    def __init__(self, dropout, scale):
        super().__init__()
        self.dropout = dropout
        self.scale = scale

    def forward(self, q, k, v, mask=None):
        # One fused kernel computes these four lines without storing scores and probs. (k.mT is k
        # with its last two dimensions swapped.)
        #   scores = self.scale * q @ k.mT               how well each key fits each query: (T, n)
        #   scores = scores.masked_fill(~mask, -inf)     a masked key gets no weight
        #   probs = dropout(scores.softmax(dim=-1))      the weights of a query sum to 1
        #   y = probs @ v
        # Causality: without a mask, is_causal masks every key after the query's own position, so
        # that no token sees what it must predict. With a KV cache, KVCache.mask does it.
        dropout = self.dropout if self.training else 0.0
        is_causal = mask is None
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=is_causal, scale=self.scale)


class CausalSelfAttention(nn.Module):
    """Each token collects information from itself and the tokens before it. (B, T, C) -> (B, T, C)

    A token's query says what it looks for, its key says what it offers, and its value is what it
    passes on to the tokens that attend to it. Every head does this in its own hs channels."""

    def __init__(self, config, layer):
        super().__init__()
        self.n_head = config.n_head
        self.layer = layer  # index of the block: where KVCache.layers has its keys and values
        # q, k and v come from one matrix: one product is faster than three, and GPT-2 stores it so
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        hs = config.n_embd // config.n_head
        # q k^T grows like sqrt(hs); large scores make softmax one-hot, so its gradient vanishes
        self.attend = Attend(config.dropout, scale=config.attn_scale / math.sqrt(hs))
        self.drop = nn.Dropout(config.dropout)
        self.qk_norm = nn.Identity()
        if config.qk_norm:  # not RMSNorm, which is slower on a CPU
            self.qk_norm = nn.LayerNorm(hs, elementwise_affine=False)

    def forward(self, x, rope=None, cache=None):
        """rope: cos and sin as in `rope_angles`. cache: a KVCache (sample.py)."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, C) each
        q = q.view(B, T, self.n_head, -1)  # the head split: (B, T, nh, hs)
        k = k.view(B, T, self.n_head, -1)
        v = v.view(B, T, self.n_head, -1)
        q = self.qk_norm(q)
        k = self.qk_norm(k)
        if rope is not None:
            cos, sin = rope
            q = rotate(q, cos, sin)
            k = rotate(k, cos, sin)
        # heads become a batch dimension, because they do not see each other: (B, nh, T, hs)
        q = q.transpose(1, 2)
        k = k.transpose(1, 2)
        v = v.transpose(1, 2)
        mask = None
        if cache is not None:  # the cache adds keys and values of the tokens before these
            k, v = cache.store(self.layer, k, v)
            mask = cache.mask
        y = self.attend(q, k, v, mask)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.drop(self.c_proj(y))  # c_proj mixes what the heads have found


def rope_angles(positions, head_size):
    """cos and sin, each (T, 1, hs / 2), of the angles by which RoPE rotates at positions (T,).

    Channels i and i + hs/2 are pair i. Pair 0 is rotated by 1 radian per token, which tells
    neighbors apart; the last pair is rotated least, which tells distant positions apart."""
    pairs = torch.arange(head_size // 2, device=positions.device)
    speeds = 10000.0 ** -(2 * pairs / head_size)  # radians per token, (hs / 2,)
    angles = torch.outer(positions, speeds)  # (T, hs / 2)
    return angles.cos()[:, None], angles.sin()[:, None]


def rotate(x, cos, sin):
    """Rotate the pairs (a, b) of x (B, T, nh, hs) to (a cos - b sin, b cos + a sin). Positions then
    enter the product of a query and a key only by their distance: RoPE (Su et al. 2021)."""
    a, b = x.chunk(2, dim=-1)
    cos = cos.to(x.dtype)  # with autocast, x may have 16 bits
    sin = sin.to(x.dtype)
    first = a * cos - b * sin
    second = b * cos + a * sin
    return torch.cat((first, second), dim=-1)


class ReLU2(nn.Module):
    """ReLU squared (So et al. 2021, Primer)."""

    def forward(self, x):
        return F.relu(x).square()


class MLP(nn.Module):
    """Processes each token separately, after attention has mixed them. (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.drop = nn.Dropout(config.dropout)
        # without a nonlinearity, c_fc and c_proj would amount to one matrix
        if config.act == "gelu_tanh":
            self.act = nn.GELU("tanh")
        elif config.act == "gelu":
            self.act = nn.GELU()
        elif config.act == "relu2":
            self.act = ReLU2()

    def forward(self, x):
        x = self.c_fc(x)  # (B, T, 4 C)
        x = self.act(x)
        x = self.c_proj(x)  # (B, T, C)
        return self.drop(x)


def make_norm(config):
    """A normalization layer: it keeps the scale of activations the same in every layer."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=config.norm_eps, elementwise_affine=False)


class Block(nn.Module):
    """Attention, then the MLP. Residual: each adds its result to x, so gradients have a direct path
    to every layer. Pre-norm: each reads a normalized copy, and x itself, the residual stream, is
    never rescaled, which keeps the training of deep models stable (Xiong et al. 2020)."""

    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x, rope=None, cache=None):
        x = x + self.attn(self.ln_1(x), rope, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The complete model. Its weights are random: torch.manual_seed determines them."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.block_size = config.block_size
        # names as in GPT-2: wte and wpe embed word tokens and positions, h are the hidden blocks;
        # "c" in c_attn, c_fc and c_proj is for conv1d, as OpenAI's code calls a linear layer. The
        # modules of a ModuleDict are also its attributes: self.transformer.wte
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(config.vocab_size, config.n_embd)})
        if config.pos == "learned":
            self.transformer["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        self.transformer["drop"] = nn.Dropout(config.dropout)
        self.transformer["h"] = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.transformer["ln_f"] = make_norm(config)
        self.smear = nn.Parameter(torch.zeros(config.n_embd)) if config.smear else None
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            # one vector per token both embeds and predicts it (Press & Wolf 2017)
            self.lm_head.weight = self.transformer.wte.weight
        if config.pos == "rope":
            # The angles never change, so they are computed once. Buffers move to a GPU with the
            # model; these are not saved. Without device="cpu", they would have no values in a
            # model of from_weights
            positions = torch.arange(config.block_size, device="cpu")
            cos, sin = rope_angles(positions, config.n_embd // config.n_head)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """GPT-2's initialization as in Hugging Face's code (OpenAI's uses a std of 0.01 for wpe).
        Norms keep PyTorch's weights of 1."""
        # 2 n_layer projections add to the residual stream. Their std is divided by sqrt(2 n_layer),
        # so that the sum does not grow with depth. With std 0, each block starts as the identity.
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)
        if self.config.zero_init:
            residual_std = 0.0
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                p.normal_(0.0, residual_std)
            elif p.dim() == 2:
                p.normal_(0.0, 0.02)
            elif name.endswith(("bias", "smear")):
                p.zero_()
        if self.config.zero_init and not self.config.tied:
            self.lm_head.weight.zero_()

    def forward(self, idx: Tensor, targets: Tensor | None = None,
                cache=None) -> tuple[Tensor, Tensor | None]:
        """Next-token logits for idx (B, T) int64, 1 <= T <= block_size; else it raises ValueError.

        With targets (B, T): returns logits (B, T, V) and the mean cross-entropy in nats over the
        targets. Targets of -1 are left out: these tokens, such as the prompts in stages/, are not
        to be learned.
        Without: the logits of the last position (B, 1, V), and None.
        cache: a KVCache (sample.py). It knows the position of each token and the id before it, and
        stores keys and values."""
        if idx.dtype != torch.int64 or idx.dim() != 2 or not 1 <= idx.shape[1] <= self.block_size:
            raise ValueError(f"idx must be int64 (B, T) with 1 <= T <= {self.block_size}, but is "
                             f"{idx.dtype} {tuple(idx.shape)}")
        if targets is not None and targets.shape != idx.shape:
            raise ValueError(f"targets must have the shape of idx, {tuple(idx.shape)}, but are "
                             f"{tuple(targets.shape)}")
        positions = torch.arange(idx.shape[1], device=idx.device)
        if cache is not None:
            positions = cache.positions
        x = self.transformer.wte(idx)  # (B, T, C)
        if self.smear is not None:  # modern recipe: even the first layer sees pairs of tokens
            # the id before each token: a 0 in front, which has_previous hides, and the last id cut
            before = F.pad(idx, (1, -1))
            if cache is not None:
                before = cache.before
            previous = self.transformer.wte(before)
            has_previous = (positions > 0)[:, None]  # (T, 1)
            x = x + self.smear * previous * has_previous
        rope = None
        if self.config.pos == "learned":
            x = x + self.transformer.wpe(positions)  # without it, a layer could not tell the order
        elif self.config.pos == "rope":  # modern recipe: attention rotates queries and keys instead
            rope = self.cos[positions], self.sin[positions]
        x = self.transformer.drop(x)
        for block in self.transformer.h:
            x = block(x, rope, cache)
        x = self.transformer.ln_f(x)
        if targets is None:
            x = x[:, -1:]  # only the last position predicts the next token
        logits = self.lm_head(x)
        if self.config.softcap:  # modern recipe: no logit grows without bound (Gemma 2, 2024)
            logits = self.config.softcap * torch.tanh(logits / self.config.softcap)
        if targets is None:
            return logits, None
        # Small initial weights give small logits, so all V tokens are about equally likely and the
        # first loss is about ln(V). Check this first: if it is much higher, something is wrong.
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss

    @torch.no_grad()
    def generate(self, idx: Tensor, max_new_tokens: int, temperature: float = 1.0,
                 top_k: int | None = None) -> Tensor:
        """idx (B, T) -> idx and its continuation (B, T + max_new_tokens). Call model.eval() first,
        or dropout is on.

        Every token recomputes the window: at most block_size tokens at the end of idx. When it is
        full, its older half is dropped, as in sample.py, so that each token is chosen from the same
        context there. (Dropping one token at a time would change all positions each time, and with
        them all that sample.py has in its KV cache.)"""
        if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):
            raise ValueError(f"temperature={temperature} must be 0 or more, and top_k={top_k} must "
                             "be 1 or more, or None")
        start = max(0, idx.shape[1] - self.block_size)  # the window is idx[:, start:]
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, start:])
            logits = logits[:, -1]  # (B, V)
            if top_k is not None:
                most_likely = logits.topk(min(top_k, logits.shape[1])).values
                least = most_likely[:, -1:]
                logits = logits.masked_fill(logits < least, -math.inf)  # ties are kept
            if temperature < 1e-5:  # 0, or so small that the division could overflow
                next_ids = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
            else:
                logits = logits / temperature  # below 1, likely tokens become more likely
                probs = logits.softmax(dim=-1)
                next_ids = torch.multinomial(probs, num_samples=1)
            idx = torch.cat((idx, next_ids), dim=1)
            if idx.shape[1] - start > self.block_size:
                start = idx.shape[1] - max(1, self.block_size // 2)  # block_size may be 1
        return idx

    @classmethod
    def from_weights(cls, config, weights):
        """A model whose weights are the tensors of a state_dict: no copies, no random numbers."""
        with torch.device("meta"):  # tensors that have a shape, but no memory
            model = cls(config)
        model.load_state_dict(weights, assign=True)
        if config.tied:
            model.lm_head.weight = model.transformer.wte.weight  # assign=True made them two again
        return model

    @classmethod
    def from_pretrained(cls, name: str) -> "GPT":
        """A model with GPT-2's architecture in Hugging Face's format: a folder, or a name on the
        hub ("gpt2"; needs huggingface_hub). Raises ValueError or OSError if it cannot be read."""
        from internals import huggingface  # here, so that model.py itself needs only torch
        config, weights = huggingface.read(name)
        return cls.from_weights(GPTConfig(**config), weights)

    def save_pretrained(self, folder, n_vocab=None, end_of_text=None):
        """Write the model into `folder` in Hugging Face's format. n_vocab: the number of tokens;
        further rows of the embedding are padding, and are not written. None: no row is padding.
        end_of_text: the id of <|endoftext|>. Raises ValueError if the model has a setting that
        GPT-2 does not have."""
        from internals import huggingface
        huggingface.write(folder, asdict(self.config), self.state_dict(), n_vocab, end_of_text)


def check(config):
    """Raises ValueError if a setting of a GPTConfig is wrong, or if two do not fit together."""
    for field in fields(config):
        value = getattr(config, field.name)
        choices = get_args(field.type)  # () if it is not a Literal
        if choices and value not in choices:
            raise ValueError(f"{field.name}={value} must be one of {', '.join(choices)}")
        # not isinstance, because True is an int
        if field.type is int and (type(value) is not int or value < 1):
            raise ValueError(f"{field.name}={value!r} must be a whole number, 1 or more")
        if field.type is float and not 0 <= value < math.inf:
            raise ValueError(f"{field.name}={value!r} must be a number, 0 or more")
    if config.n_embd % config.n_head:
        raise ValueError(f"n_embd={config.n_embd} must be a multiple of n_head={config.n_head}")
    if config.pos == "rope" and config.n_embd // config.n_head % 2:
        raise ValueError("pos=rope rotates pairs of channels: n_embd / n_head must be even")
