"""Look inside a trained model: write one HTML file that shows what it computes for a text.

    python tools/look.py --out_dir=out-quickstart --start="ROMEO:"
    python tools/look.py --out_dir=out-novel --start=FILE:prompt.txt --max_new_tokens=0
    python tools/look.py --init_from=gpt2 --start="The capital of France is"

The page needs no network and no server. It shows surprise, next-token probabilities, attention, the
logit lens, ablations, and which parts of the model voted for a token. If the run had
snapshots=True, it also shows how all of this developed during training.

If the tokens are characters and the model has at most 12 million parameters, the page contains the
weights and runs the model itself (tools/look/model.js), so that you can edit the text. The weights
are rounded to 8 bits, those of earlier snapshots to 6 bits. All other values in the page are then
computed by model.py with the rounded weights. Otherwise the page shows recorded values.
docs/look.md explains each view.

Left out: running larger models, or models with BPE, in the page: the file would be large.
"""

import base64
import itertools
import json
import math
import re
import sys
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import build, configure
from internals import checkpoint, checks, starting
from internals.cpu import replace
from internals.devices import find_device
from internals.errors import UserError, one_line_errors
from internals.files import printable, replacing
from internals.limits import Count, Natural, NonNegative, Seed
from internals.streaming import read_prompt
from internals.words import counted
from model import GPT, Attend, GPTConfig
from prepare import CharTokenizer, tokenizer_from_meta
from sample import Sampler, make_cache, stream

TEMPLATES = Path(__file__).resolve().parent / "look"
SCRIPTS = ("model.js", "weights.js", "live.js", "views.js", "text.js", "time.js", "next.js",
           "lens.js", "votes.js", "attention.js", "walk.js", "tour.js", "share.js", "page.js")
TEXT_TOKENS = 64  # length of the text, if max_new_tokens is not given
FILM_TOKENS = 60  # of the continuation by each snapshot
MAX_PARAMETERS = 12_000_000  # of a model that runs in the page
LEVELS = 127  # weights are rounded to whole numbers from -LEVELS to LEVELS, times a scale per row
SNAPSHOT_LEVELS = 31  # of the snapshots: ten of them are in the page of the quick start
MAX_MOMENTS = 10  # steps of the training in a page
MAX_WEIGHTS = 15 * 10**6  # bytes of weights in the file, about
MAX_ATTENTION = 64 * 2**20  # bytes of attention weights in the file
TOP = 10  # most likely tokens per position


@dataclass
class LookConfig:
    """The settings of a page."""

    # -- model
    init_from: str = "resume"  # resume: the checkpoint in out_dir; gpt2, ...; a folder or .pt file
    out_dir: str = "out"  # folder of a run, or a checkpoint in it
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest one available
    # -- text
    start: str | None = None  # the prompt, FILE:prompt.txt, or - for stdin; None: a line break
    # number of tokens that the model adds to the prompt; None: as many as make 64 in total
    max_new_tokens: Natural | None = None
    temperature: NonNegative = 0.8  # below 1: less random, 0: always the most likely token
    top_k: Count | None = 200  # sample from the k most likely tokens; None: from all
    seed: Seed = 1337  # of the sampled tokens
    # -- output
    out: str | None = None  # the file to write; None: look.html in out_dir


# --------------------------------------------------------------------------------------------------
# Recording: what the model computes, from its own forward pass


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
        future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores = self.scale * q @ k.mT
        self.weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        y = super().forward(q, k, v, mask)
        if self.off is not None:
            y = y.clone()
            y[:, self.off] = 0
        self.y = y
        return y


@dataclass
class Recording:
    """What a model computes for one text: L layers, T tokens."""

    logits: torch.Tensor  # (T, V)
    stream: torch.Tensor  # (L + 1, T, C): the residual stream, at first the embedding
    added: torch.Tensor  # (L, 2, T, C): what attention and MLP add to it
    attention: torch.Tensor  # (L, nh, T, T)
    heads: torch.Tensor  # (L, nh, T, hs): the output of each head, before c_proj


@torch.no_grad()
def record(model, idx):
    """A Recording of the model's forward pass on idx (1, T). The model must be in eval mode, with
    RecordingAttend modules."""
    kept = {}

    def keep(module, _, output):
        kept[module] = output[0]

    blocks = model.transformer.h
    parts = [model.transformer.drop, *blocks]
    for block in blocks:
        parts += [block.attn, block.mlp]
    hooks = [part.register_forward_hook(keep) for part in parts]
    try:
        logits = model(idx, idx)[0][0]  # with targets, it returns the logits of all positions
    finally:
        for hook in hooks:
            hook.remove()
    if not logits.isfinite().all():
        raise UserError("the model's logits are not numbers (NaN): its weights are damaged")
    added = [torch.stack((kept[block.attn], kept[block.mlp])) for block in blocks]
    return Recording(
        logits,
        stream=torch.stack([kept[part] for part in (model.transformer.drop, *blocks)]),
        added=torch.stack(added),
        attention=torch.stack([block.attn.attend.weights[0] for block in blocks]),
        heads=torch.stack([block.attn.attend.y[0] for block in blocks]))


@torch.no_grad()
def head(model, x):
    """The logits (..., V) that a residual stream x (..., C) gives if it is the last one."""
    logits = model.lm_head(model.transformer.ln_f(x))
    if model.config.softcap:
        logits = model.config.softcap * torch.tanh(logits / model.config.softcap)
    return logits


@torch.no_grad()
def ablation(model, idx, n_vocab):
    """The loss of the text (1, T) without each part, (L, nh + 1) in nats per token: without each
    head of a layer, and in the last column without its MLP."""
    n_head = model.config.n_head
    losses = torch.zeros(model.config.n_layer, n_head + 1)
    for layer, block in enumerate(model.transformer.h):
        for number in range(n_head):
            block.attn.attend.off = number
            losses[layer, number] = text_loss(model(idx, idx)[0][0], idx, n_vocab)
        block.attn.attend.off = None
        hook = block.mlp.register_forward_hook(zeros_instead)
        losses[layer, n_head] = text_loss(model(idx, idx)[0][0], idx, n_vocab)
        hook.remove()
    return losses


def zeros_instead(module, inputs, output):
    """A forward hook that switches a module off."""
    return torch.zeros_like(output)


def text_loss(logits, idx, n_vocab):
    """The mean cross-entropy of a text, in nats per token, from logits (T, V) and idx (1, T)."""
    return F.cross_entropy(logits[:-1, :n_vocab].cpu().double(), idx[0, 1:].cpu())


@torch.no_grad()
def votes(model, seen, first, second):
    """How much each part of the model adds to logit(first) - logit(second), before soft-capping.

    first, second: ids (T). Returns (T, 2 + L (nh + 1)): the embedding, for each layer its heads and
    its MLP, and the biases. The residual stream x is the sum of what the parts add to it. The final
    norm divides x by a number that depends on x; with this number given, norm and LM head are
    linear, so the contributions of the parts sum to the difference of the logits."""
    ln_f = model.transformer.ln_f
    x = seen.stream[-1]
    direction = model.lm_head.weight[first] - model.lm_head.weight[second]  # (T, C)
    constant = torch.zeros_like(x[:, 0])
    if isinstance(ln_f, nn.LayerNorm):
        if ln_f.bias is not None:
            constant = direction @ ln_f.bias
        direction = direction * ln_f.weight
        direction = direction - direction.mean(dim=-1, keepdim=True)  # the norm subtracts the mean
        size = (x.var(dim=-1, correction=0, keepdim=True) + ln_f.eps).sqrt()
    else:
        size = (x.square().mean(dim=-1, keepdim=True) + ln_f.eps).sqrt()
    direction = direction / size
    parts = [(seen.stream[0] * direction).sum(dim=-1)]
    hs = model.config.n_embd // model.config.n_head
    for layer, block in enumerate(model.transformer.h):
        c_proj = block.attn.c_proj
        wanted = direction @ c_proj.weight  # (T, C): what the heads should output
        for number in range(model.config.n_head):
            channels = slice(number * hs, (number + 1) * hs)
            parts.append((seen.heads[layer, number] * wanted[:, channels]).sum(dim=-1))
        parts.append((seen.added[layer, 1] * direction).sum(dim=-1))
        if c_proj.bias is not None:
            constant = constant + direction @ c_proj.bias
    return torch.stack([*parts, constant], dim=-1)


# --------------------------------------------------------------------------------------------------
# Weights in the page


def stored_weights(weights, settings):
    """The weights without a tied LM head, which is the token embedding."""
    stored = dict(weights)
    if settings.tied:
        stored.pop("lm_head.weight", None)
    return stored


def rounded_rows(weight, levels):
    """(whole numbers int8, scales): row i of a matrix is about numbers[i] * scales[i]."""
    scales = weight.abs().amax(dim=1) / levels
    scales = scales.clamp(min=torch.finfo(torch.float32).tiny)  # of a row of zeros
    scales = scales.bfloat16().float()  # half of its bytes are zeros, which the file does not store
    return (weight / scales[:, None]).round().clamp(-levels, levels).to(torch.int8), scales


def rounded(weights, levels):
    """The weights as the page has them: matrices are rounded, vectors are not."""
    result = {}
    for name, weight in weights.items():
        weight = weight.float().cpu()
        if weight.dim() == 2:
            numbers, scales = rounded_rows(weight, levels)
            weight = numbers * scales[:, None]
        result[name] = weight
    return result


def packed_weights(weights, settings, levels):
    """The rounded weights for the page: shapes, the rounded numbers, and scales and vectors."""
    shapes = []
    integers = []
    floats = []
    for name, weight in stored_weights(weights, settings).items():
        weight = weight.float().cpu()
        shapes.append([name, *weight.shape])
        if weight.dim() == 2:
            numbers, scales = rounded_rows(weight, levels)
            integers.append(numbers.flatten())
            floats.append(scales)
        else:
            floats.append(weight)
    return {"shapes": shapes, "integers": packed(torch.cat(integers), "<i1"),
            "floats": packed(torch.cat(floats), "<f4")}


def why_not_live(tokenizer, weights, settings):
    """Why the page cannot contain the model, as the end of a sentence; or None if it can."""
    stored = stored_weights(weights, settings)
    count = sum(weight.numel() for weight in stored.values())
    if not isinstance(tokenizer, CharTokenizer):
        return "its tokens are not single characters"
    if count > MAX_PARAMETERS:
        return (f"it has {short_count(count)} parameters, and at most "
                f"{short_count(MAX_PARAMETERS)} run in a page")
    if not all(weight.isfinite().all() for weight in stored.values()):
        return "some of its weights are not finite"
    return None


def short_count(count):
    """A number of parameters in words: 0.6M, 12M, 4,128."""
    if count < 100_000:
        return f"{count:,}"
    millions = count / 1e6
    if millions < 99.5:
        return f"{millions:.1f}M".replace(".0M", "M")
    return f"{millions:.0f}M"


# --------------------------------------------------------------------------------------------------
# From tensors to the numbers in the file


def numbers(tensor):
    """A tensor as nested lists of numbers with six digits."""
    if tensor.dim():
        return [numbers(part) for part in tensor]
    if not tensor.is_floating_point():
        return tensor.item()
    return float(f"{tensor.item():.6g}")


def packed(tensor, dtype):
    """The numbers of a tensor, compressed, in base64. dtype: of NumPy, such as "<f4"."""
    array = tensor.detach().cpu().numpy().astype(dtype)
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()


def moment(model, idx, n_vocab):
    """(what the page shows of a model, as plain values; the Recording).

    The ids from n_vocab on, which only pad the vocabulary, are left out, as in sampling. The lists
    are indexed by layer, if they depend on it, and then by position."""
    seen = record(model, idx)
    logits = seen.logits[:, :n_vocab].cpu().double()  # Apple's GPUs have no float64
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    top = probs.topk(min(TOP, n_vocab))
    came = idx[0, 1:, None].cpu()  # the token that follows each token but the last
    came_logits = logits[:-1].gather(1, came)
    lens = [head(model, x)[:, :n_vocab].softmax(dim=-1).max(dim=-1) for x in seen.stream]
    T = idx.shape[1]
    rows, columns = torch.tril_indices(T, T)
    ids = top.indices.to(idx.device)
    gap = votes(model, seen, ids[:, 0], ids[:, min(1, n_vocab - 1)])
    result = {
        "top_ids": numbers(top.indices), "top_probs": numbers(top.values),
        "entropy": numbers(-(probs * log_probs).nan_to_num().sum(dim=-1) / math.log(2)),  # bits
        "next_prob": numbers(probs[:-1].gather(1, came)[:, 0]),
        "next_rank": numbers((logits[:-1] > came_logits).sum(dim=-1) + 1),
        "next_ties": numbers((logits[:-1] == came_logits).sum(dim=-1)),
        "lens_ids": [numbers(best.indices) for best in lens],
        "lens_probs": [numbers(best.values) for best in lens],
        "votes": numbers(gap),  # for the most likely token, against the second one
        # the lower triangle, row by row, as multiples of 1/65535
        "attention": packed((seen.attention[..., rows, columns] * 65535).round(), "<u2"),
        "loss": None, "ablated_loss": None,
    }
    if T > 1:
        result["loss"] = numbers(text_loss(seen.logits, idx, n_vocab))
        result["ablated_loss"] = numbers(ablation(model, idx, n_vocab))
    return result, seen


def build_model(weights, settings, device, levels=None):
    """A GPT that can be recorded. levels: its weights are rounded as those in the page; None: they
    are not."""
    if levels is not None:
        weights = rounded(weights, levels)
    model = GPT.from_weights(settings, weights).to(device).eval()
    replace(model, Attend, RecordingAttend)
    return model


def continuation(model, tokenizer, idx, n_new, cfg):
    """(ids, probabilities) of at most n_new tokens that the model samples after idx (1, T). The
    probabilities are those before temperature and top-k."""
    sampler = Sampler([cfg.seed], tokenizer.n_vocab, cfg.temperature, cfg.top_k)
    idx = idx.to(model.transformer.wte.weight.device)
    new = []
    probs = []
    for ids, logits in itertools.islice(stream(model, idx, sampler, make_cache(model, 1)), n_new):
        if ids.item() == tokenizer.end_of_text:
            break
        new.append(ids.item())
        probs.append(logits[0].softmax(dim=-1)[ids.item()].item())
    return new, probs


def dice(seed, n):
    """The n random numbers in [0, 1) that sampling with this seed uses."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, generator=generator).item() for _ in range(n)]


def new_tokens(T, block_size, cfg):
    """The number of tokens that are sampled after a prompt of T tokens."""
    if T > block_size:
        raise UserError(f"the prompt has {T:,} tokens, but the model sees at most {block_size:,}: "
                        "use a shorter one")
    n_new = cfg.max_new_tokens
    if n_new is None:
        n_new = max(0, min(TEXT_TOKENS, block_size) - T)
    if T + n_new > block_size:
        raise UserError(f"max_new_tokens={n_new} after a prompt of {counted(T, 'token')} is longer "
                        f"than the context of the model, {counted(block_size, 'token')}: use at "
                        f"most {block_size - T:,}")
    return n_new


def chosen_steps(steps, main, limit):
    """At most `limit` of the steps. The first, the last and `main` stay; of the others, those go
    whose neighbors are closest to each other on a log scale."""
    steps = sorted({*steps, main})
    while len(steps) > max(1, limit):
        gaps = {}
        for before, step, after in zip(steps, steps[1:], steps[2:], strict=False):
            if step != main:
                gaps[step] = math.log((after + 1) / (before + 1))
        if not gaps:
            return [main] if limit == 1 else steps
        steps.remove(min(gaps, key=gaps.get))
    return steps


def text_of(tokenizer, i):
    """The text of a token. Bytes that are not UTF-8 by themselves are written as \\xe2."""
    if isinstance(tokenizer, CharTokenizer):
        return tokenizer.decode([i])
    return tokenizer.decode_bytes([i]).decode("utf-8", "backslashreplace")


def title(parameters, tokenizer, meta):
    """What the model is, in words: the heading of the page."""
    unit = "tokens"
    if isinstance(tokenizer, CharTokenizer):
        unit = "characters"
    count = short_count(parameters)
    article = "A"
    if re.match(r"8|1[18]\D", count):  # eight, eleven, eighteen
        article = "An"
    words = f"{article} {count}-parameter GPT"
    source = meta.get("source")
    if not source:
        return words
    corpus = str(source).split(", from ")[0]
    corpus = re.split(r"[/\\]", corpus)[-1]  # a page that is sent to others contains no path
    return f"{words} trained on the {unit} of {corpus}"


# --------------------------------------------------------------------------------------------------
# What there is to find


def turning_point(shown, ids, first, spaces):
    """The position at which a late layer turns a wrong guess into a confident right one.

    shown: a moment. spaces: ids of white space, which is less interesting, so it counts a quarter.
    Positions before `first`, and the last one, which no token follows, do not count.
    Returns (position, row): the row of the lens that is the first with the right answer. Without
    such a position: the one at which the model gave most to what came, and None."""
    n_rows = len(shown["lens_ids"])
    best = (0.0, None)
    for t in range(min(first, len(ids) - 2), len(ids) - 1):
        guesses = [row[t] for row in shown["lens_ids"]]
        row = n_rows - 1
        while row > 0 and guesses[row - 1] == guesses[-1]:
            row -= 1
        if row == 0 or guesses[-1] != ids[t + 1]:
            continue
        right = shown["lens_probs"][-1][t]
        wrong = shown["lens_probs"][row - 1][t]
        score = right**2 * wrong * row / (n_rows - 1)
        if guesses[-1] in spaces:
            score /= 4
        if score > best[0]:
            best = (score, (t, row))
    if best[1] is not None:
        return best[1]
    confidence = shown["next_prob"]
    t = max(range(min(first, len(ids) - 2), len(ids) - 1), key=confidence.__getitem__)
    return t, None


def largest_loss(shown, n_head):
    """(layer, head) of the head without which the loss is highest."""
    place = max(((loss, layer, number) for layer, row in enumerate(shown["ablated_loss"])
                 for number, loss in enumerate(row[:n_head])))
    return place[1], place[2]


def previous_token_head(attention):
    """(layer, head, share) of the head that gives most of its weight to the previous token.
    attention: (L, nh, T, T). The first token has none before it, and the second has few others."""
    weights = attention.diagonal(offset=-1, dim1=-2, dim2=-1)[..., 1:]  # (L, nh, T - 2)
    shares = weights.mean(dim=-1)
    place = shares.argmax().item()
    layer, number = divmod(place, shares.shape[1])
    return layer, number, shares[layer, number].item()


def most_learned(probs, ids, spaces):
    """(moment, position): the position whose next token gained most probability from one moment to
    the next. White space, which is learned first, counts a quarter. probs: at each moment, the
    probabilities (T - 1) of the tokens that came, ids[1:]."""
    probs = torch.tensor(probs)
    gains = probs[1:] - probs[:-1]
    is_space = torch.tensor([i in spaces for i in ids[1:]])
    gains[:, is_space] /= 4
    number, position = divmod(gains.argmax().item(), gains.shape[1])
    return number + 1, position


def discoveries(shown, ids, attention, n_prompt, probs, spaces):
    """Where the page opens, and three things to find in it, as settings of the page.

    spaces: the ids of white space. probs: at each moment, the probabilities of the tokens that
    came."""
    n_head = attention.shape[1]
    if len(ids) < 3:
        return {"open": {"token": 0, "layer": 0, "head": 0}, "list": []}
    token, row = turning_point(shown, ids, n_prompt - 1, spaces)
    layer, number = largest_loss(shown, n_head)
    opening = {"token": token, "layer": layer, "head": number}
    back_layer, back_head, share = previous_token_head(attention)
    found = []
    if row is not None:
        found.append({"kind": "lens", "row": row} | opening)
    found.append({"kind": "previous", "token": token, "layer": back_layer, "head": back_head,
                  "share": share})
    if len(probs) > 1:
        when, where = most_learned(probs, ids, spaces)
        found.append({"kind": "time", "moment": when} | opening | {"token": where + 1})
    found.append({"kind": "cause"} | opening)
    return {"open": opening, "list": found[:3]}


# --------------------------------------------------------------------------------------------------
# The page


@dataclass
class Page:
    """What goes into one page."""

    cfg: LookConfig
    start: checks.Checkpoint
    settings: GPTConfig
    tokenizer: object
    idx: torch.Tensor  # (1, T): the prompt, and what the model has sampled after it
    n_prompt: int  # tokens of the prompt
    why_not_live: str | None  # None: the model runs in the page


def snapshots_of(cfg):
    """{step: path} of the snapshots of a run; {} if the model is not one of a run."""
    if cfg.init_from != "resume":
        return {}
    run = Path(cfg.out_dir)
    if run.is_file():
        run = run.parent
    return checkpoint.snapshot_paths(run)


def levels_of(this, paths):
    """{step: levels} of the steps of the training that the page shows: how the weights are rounded,
    or None if they are not in the page. Snapshots are in it if at least three models fit."""
    main = this.start.step
    if this.why_not_live:
        return dict.fromkeys(chosen_steps(paths, main, MAX_MOMENTS))
    stored = stored_weights(this.start.model, this.settings)
    count = sum(weight.numel() for weight in stored.values())
    n_fit = MAX_WEIGHTS // count  # a weight takes about a byte
    if n_fit < 3:
        levels = dict.fromkeys(chosen_steps(paths, main, MAX_MOMENTS))
    else:
        steps = chosen_steps(paths, main, min(n_fit, MAX_MOMENTS))
        levels = dict.fromkeys(steps, SNAPSHOT_LEVELS)
    levels[main] = LEVELS
    return levels


def check_attention(this, n_moments):
    """Raises UserError if the attention weights would make the file too large."""
    T = this.idx.shape[1]
    size = n_moments * this.settings.n_layer * this.settings.n_head * T * (T + 1)
    if size > MAX_ATTENTION:
        raise UserError(f"the attention weights of {T:,} tokens would take {size / 2**20:,.0f} MB "
                        f"in the file, and at most {MAX_ATTENTION / 2**20:.0f} MB are allowed: use "
                        "a shorter prompt, or a smaller max_new_tokens")


def live_part(this, weights, levels, seen):
    """What the page needs to run a model: its weights, and values to check it with."""
    part = {"weights": packed_weights(weights, this.settings, levels), "exact_loss": None}
    part["logits"] = packed(seen.logits[-1], "<f4")
    if this.idx.shape[1] > 1:
        exact = GPT.from_weights(this.settings, weights).to(this.idx.device).eval()
        with torch.no_grad():
            logits = exact(this.idx, this.idx)[0][0]
        part["exact_loss"] = numbers(text_loss(logits, this.idx, this.tokenizer.n_vocab))
    return part


def moments_of(this):
    """What the page has of each step of the training, and its main model's: (moments, the number of
    the main one, its Recording, what there is to find)."""
    paths = snapshots_of(this.cfg)
    levels = levels_of(this, paths)
    check_attention(this, len(levels))
    prompt = this.idx[:, :this.n_prompt]
    moments = []
    probs = []
    for step in levels:
        is_main = step == this.start.step
        weights = this.start.model
        if not is_main:  # the checkpoint has the same weights as the snapshot of its step
            weights = checkpoint.read_snapshot(paths[step], this.start.model_args)
        model = build_model(weights, this.settings, this.idx.device, levels[step])
        shown, seen = moment(model, this.idx, this.tokenizer.n_vocab)
        probs.append(shown["next_prob"])
        if is_main:
            main = shown
            main_seen = seen
        elif levels[step] is not None:  # the page computes the rest itself
            shown = {"loss": shown["loss"]}
        if levels[step] is not None:
            shown |= live_part(this, weights, levels[step], seen)
        ids, chances = continuation(model, this.tokenizer, prompt, FILM_TOKENS, this.cfg)
        shown["step"] = step
        shown["film_ids"] = ids
        shown["film_probs"] = numbers(torch.tensor(chances))
        moments.append(shown)
    ids = this.idx[0].tolist()
    spaces = {i for i in set(ids) if not text_of(this.tokenizer, i).strip()}
    found = discoveries(main, ids, main_seen.attention, this.n_prompt, probs, spaces)
    return moments, moments.index(main), main_seen, found


def used_vocabulary(this, moments):
    """{id: text} of all tokens that a page without the model shows."""
    used = set(this.idx[0].tolist())
    for shown in moments:
        used.update(shown["film_ids"])
        for row in itertools.chain(shown["top_ids"], shown["lens_ids"]):
            used.update(row)
    return {i: text_of(this.tokenizer, i) for i in sorted(used)}


def look(start, tokenizer, prompt, cfg):
    """Everything that the page shows, as plain values. start: a Checkpoint. prompt: text."""
    settings = build(GPTConfig, start.model_args)
    device = find_device(cfg.device)
    why = why_not_live(tokenizer, start.model, settings)
    levels = LEVELS
    if why:
        levels = None
    model = build_model(start.model, settings, device, levels)
    ids = torch.from_numpy(tokenizer.encode(prompt, special=True))[None]
    n_prompt = ids.shape[1]
    n_new = new_tokens(n_prompt, settings.block_size, cfg)
    new, _ = continuation(model, tokenizer, ids, n_new, cfg)
    idx = torch.cat((ids, torch.tensor([new], dtype=torch.int64)), dim=1).to(device)
    this = Page(cfg, start, settings, tokenizer, idx, n_prompt, why)
    moments, main, seen, found = moments_of(this)

    name = cfg.init_from
    if cfg.init_from == "resume":
        name = cfg.out_dir
    unit = "token"
    if isinstance(tokenizer, CharTokenizer):
        unit = "character"
    parameters = sum(p.numel() for p in model.parameters())
    data = {
        "name": printable(Path(name).resolve().name),  # no path: the page is sent to others
        "title": printable(title(parameters, tokenizer, start.meta)),
        "unit": unit, "config": asdict(settings), "parameters": parameters, "val_loss": None,
        "n_vocab": tokenizer.n_vocab, "prompt_length": n_prompt, "ids": idx[0].tolist(),
        "moments": moments, "main": main, "why_not_live": why,
        "sampled": {"temperature": cfg.temperature, "top_k": cfg.top_k},
        "dice": dice(cfg.seed, FILM_TOKENS),
        "open": found["open"], "discoveries": found["list"],
    }
    if 0 < start.best_loss < math.inf:
        data["val_loss"] = start.best_loss
    if why:
        data["vocab"] = used_vocabulary(this, moments)
    else:
        data["vocab"] = list(tokenizer.chars)
        data["logits"] = packed(seen.logits, "<f4")
    return data


def page(data):
    """The HTML file. The data becomes JSON in ASCII, without "<", so that no text in it can end the
    script element that contains it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    scripts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS]
    parts = {"data": text, "scripts": "\n".join(scripts)}
    parts["page.css"] = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    template = (TEMPLATES / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{([\w.]+)\}\}", lambda match: parts[match[1]], template)


def main(argv=None):
    _, cfg = configure(__doc__, LookConfig, argv=argv)
    folder = Path(cfg.out_dir)
    out = Path(cfg.out or (folder.parent if folder.is_file() else folder) / "look.html")
    if out.is_dir():
        raise UserError(f"out={out} is a folder: give the name of a file")
    start = starting.to_sample_from(cfg.init_from, cfg.out_dir)
    tokenizer = tokenizer_from_meta(start.meta)
    data = look(start, tokenizer, read_prompt(cfg.start, tokenizer), cfg)
    text = page(data)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    runs = "the model runs in it"
    if data["why_not_live"]:
        runs = f"the model does not run in it, because {data['why_not_live']}"
    print(f"{out}: {len(text) / 1e6:.1f} MB; {runs}")


if __name__ == "__main__":
    with one_line_errors():
        main()
