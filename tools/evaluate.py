"""Evaluate a model by numbers that can be quoted: perplexity of a text, and HellaSwag.

    python tools/evaluate.py --out_dir=out-novel --text=novel.txt --stride=32
    python tools/evaluate.py --init_from=gpt2 --hellaswag=hellaswag_val.jsonl --limit=1000

All numbers come from one: -log p, in nats, of tokens after those before them. The vocabulary of a
model may be padded (50257 to 50304, say). Padding is never sampled, so it gets no probability here
either: the softmax is over the tokenizer's n_vocab ids. Weights of GPT-2 have no padding; that of a
model made here learns to be unlikely, and train.py's loss, where it takes part, is a bit larger.

docs/evaluate.md has the definitions. Left out: other benchmarks, and several GPUs.
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

from configurator import UserError, configure, one_line_errors
from internals.devices import autocast_to, find_device, find_dtype
from internals.files import read_text
from sample import load_model


@dataclass
class EvaluateConfig:
    """The settings of an evaluation: which model, on what."""

    init_from: str = "resume"  # resume: the checkpoint in out_dir; gpt2, ...; or a folder
    out_dir: str = "out"  # the folder of a run
    text: str | None = None  # a UTF-8 file: its perplexity
    stride: int | None = None  # tokens from one window to the next; None: half of block_size
    hellaswag: str | None = None  # hellaswag_val.jsonl, or one like it: its accuracy
    limit: int | None = None  # the first examples of HellaSwag only; None: all
    batch_size: int = 4  # windows of text, or endings of HellaSwag, at a time
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"  # of matrix products

    def __post_init__(self):
        if self.text is None and self.hellaswag is None:
            raise ValueError("there is nothing to evaluate on: give --text=FILE or "
                             "--hellaswag=hellaswag_val.jsonl")
        for name in ("stride", "limit", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")


@torch.inference_mode()
def completion_nats(model, rows, n_vocab, batch_size=4):
    """The nats of the ends of rows of tokens.

    rows: a list of (ids, n); of ids, 2 to block_size + 1 of them, the last n < len(ids) are scored.
    Returns a list of floats: of each row the sum of -log p over these n. UserError where it is NaN.
    """
    device, nats = next(model.parameters()).device, []
    for start in tqdm(range(0, len(rows), batch_size), unit=" batches", disable=None, leave=False):
        batch = rows[start:start + batch_size]
        width = max(len(ids) for ids, _ in batch) - 1
        x = torch.zeros(len(batch), width, dtype=torch.int64)  # no token sees the zeros right of it
        y = torch.full_like(x, -1)
        for i, (ids, n) in enumerate(batch):
            last = len(ids) - 1
            x[i, :last] = torch.from_numpy(ids[:-1].astype(np.int64))
            y[i, last - n:last] = torch.from_numpy(ids[-n:].astype(np.int64))
        x, y = x.to(device), y.to(device)
        logits, _ = model(x, y)
        scored = y != -1
        losses = F.cross_entropy(logits[scored, :n_vocab].float(), y[scored], reduction="none")
        nats += [part.double().sum().item() for part in losses.cpu().split([n for _, n in batch])]
    if np.isnan(nats).any():
        raise UserError("the model's logits are not numbers (NaN): damaged weights, or a dtype "
                        "that is too narrow for them")
    return nats


def windows(count, size, stride):
    """Yields (begin, end, new): windows of up to `size` of `count` predictions, each `stride` after
    the one before, of which the last `new` are in no earlier window. Together: every one, once."""
    end = 0
    for begin in range(0, count, stride):
        before, end = end, min(begin + size, count)
        yield begin, end, end - before
        if end == count:
            return


def text_perplexity(model, tokenizer, text, stride=None, batch_size=4):
    """The perplexity of a text by sliding windows; every token counts once, in its first window.

    This is "Perplexity of fixed-length models" of Hugging Face's transformers documentation, but
    for the token after a window, which is predicted too, as in training: so none is lost between
    windows that do not overlap. The first token follows <|endoftext|>, as a document does in
    training; where a tokenizer has none (char), it is context only, and its bytes do not count.
    Returns a dict. Raises UserError for a text too short, or a stride beyond block_size.
    """
    size = model.block_size
    stride = max(1, size // 2) if stride is None else stride
    if not 1 <= stride <= size:
        raise UserError(f"stride={stride} must be at least 1 and at most block_size={size}")
    ids = tokenizer.encode(text)
    if tokenizer.end_of_text is not None:
        ids = np.insert(ids, 0, tokenizer.end_of_text)
    if (count := len(ids) - 1) < 1:
        raise UserError("the text is too short: there is no token that follows another")
    rows = [(ids[begin:end + 1], new) for begin, end, new in windows(count, size, stride)]
    nats = sum(completion_nats(model, rows, tokenizer.n_vocab, batch_size))
    words, octets = len(text.split()), len(tokenizer.decode_bytes(ids[1:]))
    return {"tokens": count, "words": words, "bytes": octets, "stride": stride,
            "nats_per_token": nats / count, "perplexity_per_token": perplexity(nats, count),
            "perplexity_per_word": perplexity(nats, words),
            "bits_per_byte": nats / math.log(2) / octets}


def perplexity(nats, count):
    """exp(nats / count), or inf where a float cannot hold it, as for words of unspaced scripts."""
    return math.exp(nats / count) if nats < 700 * count else math.inf


def read_hellaswag(path, limit=None):
    """The first `limit` examples of a file like hellaswag_val.jsonl: a list of (ctx, four endings,
    index of the right one). Raises UserError for a line that is not so."""
    examples = []
    for number, line in enumerate(read_text(path).rstrip("\n").split("\n")[:limit], start=1):
        try:
            example = json.loads(line)
        except (ValueError, RecursionError):
            example = None
        match example:
            case {"ctx": str(ctx), "endings": [str(), str(), str(), str()] as endings,
                  "label": int(label)} if ctx and 0 <= label < 4:
                examples.append((ctx, endings, label))
            case _:
                raise UserError(f"{path}, line {number} is not as those of hellaswag_val.jsonl: "
                                'JSON with "ctx": TEXT, "endings": [4 TEXTS], "label": 0 to 3')
    return examples


def ending_rows(tokenizer, examples, block_size):
    """Of each example four rows for `completion_nats`: ctx and an ending, whose tokens are scored.
    What is longer than the model's window is cropped on the left."""
    rows = []
    for ctx, endings, _ in tqdm(examples, unit=" examples", disable=None, leave=False):
        before = tokenizer.encode(ctx)
        for ending in (tokenizer.encode(" " + ending) for ending in endings):
            ids = np.concatenate((before, ending))[-(block_size + 1):]
            rows.append((ids, min(len(ending), len(ids) - 1)))
    return rows


def hellaswag_accuracy(model, tokenizer, examples, batch_size=4):
    """HellaSwag (Zellers et al. 2019) by completion: which of four endings is likeliest after ctx?

    As in build-nanogpt's hellaswag.py: ctx, and " " + ending, are tokenized each by itself, and
    only the ending's tokens are scored.
    Returns a dict: acc takes the ending of fewest nats, acc_norm of fewest nats per token.
    """
    rows = ending_rows(tokenizer, examples, model.block_size)
    total = np.array(completion_nats(model, rows, tokenizer.n_vocab, batch_size)).reshape(-1, 4)
    mean = total / np.array([n for _, n in rows]).reshape(-1, 4)
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
    with autocast_to(find_dtype(cfg.dtype, device, model.config.n_embd), device):
        if text is not None:
            results |= text_perplexity(model, tokenizer, text, cfg.stride, cfg.batch_size)
            print("{tokens:,} tokens, {words:,} words, {bytes:,} bytes; stride {stride}\n"
                  "nats per token        {nats_per_token:.4f}\n"
                  "perplexity per token  {perplexity_per_token:.3f}\n"
                  "perplexity per word   {perplexity_per_word:.3f}\n"
                  "bits per byte         {bits_per_byte:.4f}".format(**results), flush=True)
        if examples is not None:
            results |= hellaswag_accuracy(model, tokenizer, examples, cfg.batch_size)
            print("{examples:,} examples of HellaSwag\n"
                  "acc, by the sum        {acc:.4f}\n"
                  "acc_norm, by the mean  {acc_norm:.4f}".format(**results))
    return results


if __name__ == "__main__":
    with one_line_errors():
        main()
