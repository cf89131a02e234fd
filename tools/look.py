"""Look inside a trained model: write one HTML file that shows what it computes for a text.

    python tools/look.py --out_dir=out-quickstart --start="ROMEO:"
    python tools/look.py --out_dir=out-novel --start=FILE:prompt.txt --max_new_tokens=0
    python tools/look.py --init_from=gpt2 --start="The capital of France is"

The page needs no network and no server. It shows surprise, next-token probabilities, attention, the
logit lens, head ablation and the residual stream, and, if the run had snapshots=True, how they
changed during training. The values are recorded from the forward pass of model.py. If the tokens
are characters and the model has at most 3 million parameters, the page also contains its weights,
rounded to float16, and runs the model itself (tools/look/model.js), so that you can edit the text.
The recorded values are then computed with the rounded weights too. docs/look.md explains each view.

Left out: running larger models, or models with BPE, in the page: the file would be large.
"""

import base64
import itertools
import json
import math
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import build, configure
from internals import checkpoint, starting
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
TEXT_TOKENS = 64  # length of the text, if max_new_tokens is not given
MAX_PARAMETERS = 3_000_000  # of a model that runs in the page
MAX_SNAPSHOTS = 12  # more would make the file large; they are chosen evenly
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
    """Attend, which also keeps its weights (B, nh, T, T). Its output is that of Attend.

    off: the number of a head whose output is replaced by zeros, or None."""

    def __init__(self, old):
        super().__init__(old.dropout, old.scale)
        self.weights, self.off = None, None

    def forward(self, q, k, v, mask=None):
        future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores = self.scale * q @ k.mT
        self.weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        y = super().forward(q, k, v, mask)
        if self.off is not None:
            y = y.clone()
            y[:, self.off] = 0
        return y


@dataclass
class Recording:
    """What a model computes for one text: L layers, T tokens."""

    logits: torch.Tensor  # (T, V)
    stream: torch.Tensor  # (L + 1, T, C): the residual stream, at first the embedding
    added: torch.Tensor  # (L, 2, T, C): what attention and MLP add to it
    attention: torch.Tensor  # (L, nh, T, T)


@torch.no_grad()
def record(model, idx):
    """A Recording of the model's forward pass on idx (1, T). The model must be in eval mode, with
    RecordingAttend modules."""
    kept = {}

    def keep(module, _, output):
        kept[module] = output[0]

    blocks = model.transformer.h
    parts = [model.transformer.drop, *blocks]
    parts += [part for block in blocks for part in (block.attn, block.mlp)]
    hooks = [part.register_forward_hook(keep) for part in parts]
    try:
        logits = model(idx, idx)[0][0]  # with targets, it returns the logits of all positions
    finally:
        for hook in hooks:
            hook.remove()
    if not logits.isfinite().all():
        raise UserError("the model's logits are not numbers (NaN): its weights are damaged")
    return Recording(
        logits,
        stream=torch.stack([kept[part] for part in (model.transformer.drop, *blocks)]),
        added=torch.stack([torch.stack((kept[b.attn], kept[b.mlp])) for b in blocks]),
        attention=torch.stack([block.attn.attend.weights[0] for block in blocks]))


@torch.no_grad()
def head(model, x):
    """The logits (..., V) that a residual stream x (..., C) gives if it is the last one."""
    logits = model.lm_head(model.transformer.ln_f(x))
    if model.config.softcap:
        logits = model.config.softcap * torch.tanh(logits / model.config.softcap)
    return logits


@torch.no_grad()
def ablation(model, idx, n_vocab):
    """The loss of the text (1, T) without each head, (L, nh) in nats per token."""
    losses = torch.zeros(model.config.n_layer, model.config.n_head)
    for layer, block in enumerate(model.transformer.h):
        for number in range(model.config.n_head):
            block.attn.attend.off = number
            losses[layer, number] = text_loss(model(idx, idx)[0][0], idx, n_vocab)
        block.attn.attend.off = None
    return losses


def text_loss(logits, idx, n_vocab):
    """The mean cross-entropy of a text, in nats per token, from logits (T, V) and idx (1, T)."""
    return F.cross_entropy(logits[:-1, :n_vocab].cpu().double(), idx[0, 1:].cpu())


# --------------------------------------------------------------------------------------------------
# From tensors to the numbers in the file


def numbers(tensor):
    """A tensor as nested lists of numbers with six digits."""
    if tensor.dim():
        return [numbers(part) for part in tensor]
    return float(f"{tensor.item():.6g}") if tensor.is_floating_point() else tensor.item()


def packed(tensor, dtype):
    """The numbers of a tensor in base64. dtype: of NumPy, such as "<f2" for float16."""
    array = tensor.detach().cpu().numpy().astype(dtype)
    return base64.b64encode(array.tobytes()).decode()


def moment(model, idx, n_vocab, step):
    """(what the page shows of the model at one step of its training, as plain values; Recording).

    The ids from n_vocab on, which only pad the vocabulary, are left out, as in sampling. The lists
    are indexed by layer, if they depend on it, and then by position."""
    seen = record(model, idx)
    logits = seen.logits[:, :n_vocab].cpu().double()  # Apple's GPUs have no float64
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    top = probs.topk(min(TOP, n_vocab))
    came = idx[0, 1:, None].cpu()  # the token that follows each token but the last
    lens = [head(model, x)[:, :n_vocab].softmax(dim=-1).max(dim=-1) for x in seen.stream]
    T = idx.shape[1]
    rows, columns = torch.tril_indices(T, T)
    result = {
        "step": step,
        "top_ids": numbers(top.indices), "top_probs": numbers(top.values),
        "entropy": numbers(-(probs * log_probs).nan_to_num().sum(dim=-1) / math.log(2)),  # bits
        "next_prob": numbers(probs[:-1].gather(1, came)[:, 0]),
        "next_rank": numbers((logits[:-1] > logits[:-1].gather(1, came)).sum(dim=-1) + 1),
        "lens_ids": [numbers(best.indices) for best in lens],
        "lens_probs": [numbers(best.values) for best in lens],
        "stream_size": numbers(seen.stream.norm(dim=-1)),
        "added_size": numbers(seen.added.norm(dim=-1)),
        # the lower triangle, row by row, as multiples of 1/65535
        "attention": packed((seen.attention[..., rows, columns] * 65535).round(), "<u2"),
        "loss": None, "ablated_loss": None,
    }
    if T > 1:
        result["loss"] = numbers(text_loss(seen.logits, idx, n_vocab))
        result["ablated_loss"] = numbers(ablation(model, idx, n_vocab))
    return result, seen


def build_model(weights, settings, device, rounded):
    """A GPT that can be recorded. rounded: its weights are rounded to float16."""
    if rounded:
        weights = {name: weight.half().float() for name, weight in weights.items()}
    model = GPT.from_weights(settings, weights).to(device).eval()
    replace(model, Attend, RecordingAttend)
    return model


def runs_in_the_page(tokenizer, weights, settings):
    """Whether the page contains the model."""
    stored = stored_weights(weights, settings)
    return (isinstance(tokenizer, CharTokenizer)
            and sum(weight.numel() for weight in stored.values()) <= MAX_PARAMETERS
            and all(weight.half().isfinite().all() for weight in stored.values()))


def stored_weights(weights, settings):
    """The weights without a tied LM head, which is the token embedding."""
    return {name: weight for name, weight in weights.items()
            if name != "lm_head.weight" or not settings.tied}


def continued(model, tokenizer, ids, cfg):
    """ids and the tokens that the model samples after them, as idx (1, T)."""
    idx = torch.from_numpy(ids)[None]
    block_size, T = model.config.block_size, len(ids)
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
    sampler = Sampler([cfg.seed], tokenizer.n_vocab, cfg.temperature, cfg.top_k)
    new = stream(model, idx.to(model.transformer.wte.weight.device), sampler, make_cache(model, 1))
    new = (ids.item() for ids, _ in itertools.islice(new, n_new))
    new = list(itertools.takewhile(lambda i: i != tokenizer.end_of_text, new))
    return torch.cat((idx, torch.tensor([new], dtype=torch.int64)), dim=1)


def chosen_snapshots(folder):
    """{step: path} of at most MAX_SNAPSHOTS snapshots, the first and the last among them."""
    paths = checkpoint.snapshot_paths(folder)
    steps = list(paths)
    n = min(len(steps), MAX_SNAPSHOTS)
    places = [round(i * (len(steps) - 1) / max(1, n - 1)) for i in range(n)]
    return {steps[place]: paths[steps[place]] for place in places}


def text_of(tokenizer, i):
    """The text of a token. Bytes that are not UTF-8 by themselves are written as \\xe2."""
    if isinstance(tokenizer, CharTokenizer):
        return tokenizer.decode([i])
    return tokenizer.decode_bytes([i]).decode("utf-8", "backslashreplace")


def look(start, tokenizer, prompt, cfg):
    """Everything that the page shows, as plain values. start: a Checkpoint. prompt: text."""
    settings, device = build(GPTConfig, start.model_args), find_device(cfg.device)
    live = runs_in_the_page(tokenizer, start.model, settings)
    ids, n_vocab = tokenizer.encode(prompt, special=True), tokenizer.n_vocab
    plain = GPT.from_weights(settings, start.model).to(device).eval()
    idx = continued(plain, tokenizer, ids, cfg).to(device)

    snapshots = {}
    if cfg.init_from == "resume":
        run = Path(cfg.out_dir)
        snapshots = chosen_snapshots(run.parent if run.is_file() else run)
        snapshots.pop(start.step, None)  # the checkpoint has the same weights
    T = idx.shape[1]
    size = (len(snapshots) + 1) * settings.n_layer * settings.n_head * T * (T + 1)
    if size > MAX_ATTENTION:
        raise UserError(f"the attention weights of {T:,} tokens would take {size / 2**20:,.0f} MB "
                        f"in the file, and at most {MAX_ATTENTION / 2**20:.0f} MB are allowed: use "
                        "a shorter prompt, or a smaller max_new_tokens")
    model = build_model(start.model, settings, device, live)
    shown, seen = moment(model, idx, n_vocab, start.step)
    moments = [shown]
    for step, path in snapshots.items():
        weights = checkpoint.read_snapshot(path, start.model_args)
        snapshot = build_model(weights, settings, device, live)
        moments.append(moment(snapshot, idx, n_vocab, step)[0])
    moments.sort(key=lambda shown: shown["step"])

    data = {
        "name": printable(cfg.out_dir if cfg.init_from == "resume" else cfg.init_from),
        "config": asdict(settings), "parameters": sum(p.numel() for p in model.parameters()),
        "val_loss": start.best_loss if 0 < start.best_loss < math.inf else None,
        "n_vocab": n_vocab, "prompt_length": len(ids), "ids": idx[0].tolist(),
        "moments": moments, "main": moments.index(shown),
        "sampled": {"temperature": cfg.temperature, "top_k": cfg.top_k},
    }
    if live:
        stored = stored_weights(model.state_dict(), settings)
        data["vocab"] = list(tokenizer.chars)
        data["logits"] = packed(seen.logits, "<f4")
        data["shapes"] = [[name, weight.numel()] for name, weight in stored.items()]
        data["weights"] = packed(torch.cat([w.flatten() for w in stored.values()]), "<f2")
    else:
        used = set(data["ids"])
        for shown in moments:
            for row in itertools.chain(shown["top_ids"], shown["lens_ids"]):
                used.update(row)
        data["vocab"] = {i: text_of(tokenizer, i) for i in sorted(used)}
    return data


def page(data):
    """The HTML file. The data becomes JSON in ASCII, without "<", so that no text in it can end the
    script element that contains it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {"data": text}
    for name in ("page.css", "model.js", "live.js", "views.js", "page.js"):
        parts[name] = (TEMPLATES / name).read_text(encoding="utf-8")
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
    runs = "the model runs in it" if "weights" in data else "it shows recorded values"
    print(f"{out}: {len(text) / 1e6:.1f} MB; {runs}")


if __name__ == "__main__":
    with one_line_errors():
        main()
