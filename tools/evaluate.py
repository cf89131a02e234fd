"""Evaluate a model: its perplexity on a text, and its accuracy on HellaSwag.

    python tools/evaluate.py --out_dir=out-novel --text=sequel.txt --stride=32
    python tools/evaluate.py --init_from=gpt2 --hellaswag=hellaswag_val.jsonl --limit=1000

Every number is computed from -log p, in nats, of a token given the tokens before it. The vocabulary
of a model may be padded, for example from 50257 ids to 50304. The padding is never sampled, so it
gets no probability here either: the softmax is over the tokenizer's n_vocab ids. The loss that
train.py logs includes the padding, so it is slightly larger.

docs/evaluate.md defines all metrics. Left out: other benchmarks, and multiple GPUs.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import configure
from internals.data.formats import read_text
from internals.devices import (
    attention_without_plans,
    autocast_to,
    find_device,
    find_dtype,
    out_of_memory_hint,
)
from internals.errors import UserError, one_line_errors
from internals.limits import Count
from internals.words import counted
from sample import load_model

LABELS = ("0", "1", "2", "3")


@dataclass
class EvaluateConfig:
    """The settings of an evaluation: a model, and a text or HellaSwag."""

    # resume: the checkpoint in out_dir; gpt2, gpt2-medium, ...: from the Hugging Face hub; or the
    # folder of a run or of a model in Hugging Face's format, or a .pt file
    init_from: str = "resume"
    out_dir: str = "out"  # folder of a run, or a checkpoint file
    # a UTF-8 file, compressed or not, whose perplexity is measured
    text: str | None = None
    stride: Count | None = None  # tokens from one window to the next; None: half of block_size
    hellaswag: str | None = None  # hellaswag_val.jsonl, or a file in its format
    limit: Count | None = None  # use only this many examples of HellaSwag, the first; None: all
    batch_size: Count = 4  # windows of the text, or HellaSwag endings, per batch
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest one available
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"  # of matrix products

    def __post_init__(self):
        if self.text is None and self.hellaswag is None:
            raise ValueError("there is nothing to evaluate on: give --text=FILE or "
                             "--hellaswag=hellaswag_val.jsonl")


@torch.inference_mode()
def completion_nats(model, rows, n_vocab, batch_size=4):
    """The total loss of the last tokens of each row, in nats.

    rows: a list of (ids, n): 2 to block_size + 1 ids, of which the last n < len(ids) are scored.
    Returns a list of floats: for each row, the sum of -log p over these n ids. Raises UserError if
    the sum is NaN.
    """
    device = next(model.parameters()).device
    nats = []
    for start in tqdm(range(0, len(rows), batch_size), unit=" batches", disable=None, leave=False):
        batch = rows[start:start + batch_size]
        width = max(len(ids) for ids, _ in batch) - 1
        # rows are padded on the right with zeros; attention is causal, so no token attends to them
        x = torch.zeros(len(batch), width, dtype=torch.int64)
        y = torch.full_like(x, -1)
        for i, (ids, n) in enumerate(batch):
            last = len(ids) - 1
            x[i, :last] = torch.from_numpy(ids[:-1].astype(np.int64))
            y[i, last - n:last] = torch.from_numpy(ids[-n:].astype(np.int64))
        y = y.to(device)
        logits, _ = model(x.to(device), y)
        scored = y != -1
        losses = F.cross_entropy(logits[scored, :n_vocab].float(), y[scored], reduction="none")
        lengths = [n for _, n in batch]
        for of_row in losses.cpu().split(lengths):
            nats.append(of_row.double().sum().item())
    if np.isnan(nats).any():
        raise UserError("the model's logits are not numbers (NaN): its weights are damaged, or "
                        "the dtype is too narrow for them")
    return nats


def windows(count, size, stride):
    """Yields windows (begin, end, new) over `count` predictions. A window has at most `size`
    predictions and begins `stride` after the window before it. Its last `new` predictions are in no
    earlier window, so every prediction is new in exactly one window."""
    done = 0
    for begin in range(0, count, stride):
        end = min(begin + size, count)
        yield begin, end, end - done
        done = end
        if end == count:
            return


def text_perplexity(model, tokenizer, text, stride=None, batch_size=4):
    """The perplexity of a text by sliding windows; every token counts once, in its first window.

    This follows "Perplexity of fixed-length models" in the documentation of Hugging Face's
    transformers, except that the token after a window is predicted too, as in training. Otherwise
    each window would lose a token if windows do not overlap. The first token is predicted from
    <|endoftext|>, as the first token of a document is in training. If the tokenizer has no such
    token (char), the first character only serves as context, and its bytes do not count.
    Returns a dict. Raises UserError if the text is too short, or if stride exceeds block_size.
    """
    size = model.block_size
    stride = max(1, size // 2) if stride is None else stride
    if not 1 <= stride <= size:
        raise UserError(f"stride={stride} must be at least 1 and at most block_size={size}")
    ids = tokenizer.encode(text)
    if tokenizer.end_of_text is not None:
        ids = np.insert(ids, 0, tokenizer.end_of_text)
    count = len(ids) - 1
    if count < 1:
        raise UserError("the text is too short: it has no token to predict")
    rows = [(ids[begin:end + 1], new) for begin, end, new in windows(count, size, stride)]
    nats = sum(completion_nats(model, rows, tokenizer.n_vocab, batch_size))
    words = len(text.split())
    octets = len(tokenizer.decode_bytes(ids[1:]))
    return {"tokens": count, "words": words, "bytes": octets, "stride": stride,
            "nats_per_token": nats / count, "perplexity_per_token": perplexity(nats, count),
            "perplexity_per_word": perplexity(nats, words),
            "bits_per_byte": nats / math.log(2) / octets}


def perplexity(nats, count):
    """exp(nats / count), or inf if that overflows, for example per word in scripts without
    spaces."""
    return math.exp(nats / count) if nats < 700 * count else math.inf


def read_hellaswag(path, limit=None):
    """The first `limit` examples of a file like hellaswag_val.jsonl: a list of (ctx, four endings,
    index of the correct ending). Raises UserError for a line in another format."""
    examples = []
    for number, line in enumerate(read_text(path).rstrip("\n").split("\n")[:limit], start=1):
        try:
            example = json.loads(line)
        except (ValueError, RecursionError):
            example = None
        match example:
            case {"ctx": str(ctx), "endings": [str(), str(), str(), str()] as endings,
                  "label": int() | str() as label} if ctx and str(label).strip() in LABELS:
                examples.append((ctx, endings, int(label)))  # the hub's files have "2" for 2
            case _:
                raise UserError(f"{path}, line {number} does not have the format of "
                                'hellaswag_val.jsonl: JSON with "ctx": TEXT, '
                                '"endings": [4 TEXTS], "label": 0 to 3 (a "label": "" '
                                "is of the test split, whose answers are not published)")
    return examples


def ending_rows(tokenizer, examples, block_size):
    """Four rows per example for `completion_nats`: ctx and an ending, with the ending scored. Rows
    that are longer than block_size are cropped on the left."""
    rows = []
    for ctx, endings, _ in tqdm(examples, unit=" examples", disable=None, leave=False):
        before = tokenizer.encode(ctx)
        for ending in endings:
            scored = tokenizer.encode(" " + ending)
            ids = np.concatenate((before, scored))[-(block_size + 1):]
            rows.append((ids, min(len(scored), len(ids) - 1)))
    return rows


def hellaswag_accuracy(model, tokenizer, examples, batch_size=4):
    """HellaSwag (Zellers et al. 2019) by completion: which of four endings is most likely after
    ctx?

    As in hellaswag.py of build-nanogpt, ctx and " " + ending are tokenized separately, and only the
    tokens of the ending are scored.
    Returns a dict. For acc, the model chooses the ending with the lowest total loss; for acc_norm,
    the one with the lowest loss per token.
    """
    rows = ending_rows(tokenizer, examples, model.block_size)
    nats = completion_nats(model, rows, tokenizer.n_vocab, batch_size)
    lengths = [n for _, n in rows]
    total = np.reshape(nats, (-1, 4))  # (examples, endings)
    mean = total / np.reshape(lengths, (-1, 4))
    labels = np.array([label for _, _, label in examples])
    return {"examples": len(examples), "acc": float((total.argmin(axis=1) == labels).mean()),
            "acc_norm": float((mean.argmin(axis=1) == labels).mean())}


def main(argv=None):
    _, cfg = configure(__doc__, EvaluateConfig, argv=argv)
    text = None if cfg.text is None else read_text(cfg.text)
    examples = None if cfg.hellaswag is None else read_hellaswag(cfg.hellaswag, cfg.limit)
    device = find_device(cfg.device)
    model, tokenizer = load_model(cfg.init_from, Path(cfg.out_dir), device)
    results = {}
    autocast = autocast_to(find_dtype(cfg.dtype, device, model.config.n_embd), device)
    memory = out_of_memory_hint(
        f"batch_size={cfg.batch_size}", "use a smaller one, or a smaller model")
    with autocast, memory, attention_without_plans():  # batches differ in their length
        if text is not None:
            results |= text_perplexity(model, tokenizer, text, cfg.stride, cfg.batch_size)
            counts = [counted(results[f"{noun}s"], noun) for noun in ("token", "word", "byte")]
            print(f"{', '.join(counts)}; stride {results['stride']}\n"
                  f"nats per token        {results['nats_per_token']:.4f}\n"
                  f"perplexity per token  {results['perplexity_per_token']:.3f}\n"
                  f"perplexity per word   {results['perplexity_per_word']:.3f}\n"
                  f"bits per byte         {results['bits_per_byte']:.4f}", flush=True)
        if examples is not None:
            results |= hellaswag_accuracy(model, tokenizer, examples, cfg.batch_size)
            print(f"{counted(len(examples), 'example')} of HellaSwag\n"
                  f"acc, by total loss           {results['acc']:.4f}\n"
                  f"acc_norm, by loss per token  {results['acc_norm']:.4f}")
    return results


if __name__ == "__main__":
    with one_line_errors():
        main()
