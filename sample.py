"""Text out of a model: one that train.py has trained, or GPT-2.

    python sample.py --out_dir=out-quickstart
    python sample.py --out_dir=out-quickstart --start="ROMEO:" --num_samples=3 --temperature=0.5
    python sample.py --out_dir=out-quickstart --interactive=True
    python sample.py --init_from=gpt2 --start=FILE:prompt.txt --out=samples.jsonl

A checkpoint is all that is needed: the tokenizer is in it. best.pt is read if it is there, else
ckpt.pt. All samples are drawn in one batch; the first appears as it is made. stdout gets the text
alone, stderr everything else.
"""

import codecs
import itertools
import json
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from configurator import UserError, build, configure, one_line_errors
from internals.checkpoint import find_checkpoint, load_start
from internals.devices import find_device, find_dtype
from internals.files import read_text, replacing
from model import GPT, GPTConfig, KVCache
from prepare import tokenizer_from_meta

SEPARATOR = "---------------"
WIDE = 256  # from this n_embd on a CPU gains by bfloat16 and by packed weights


@dataclass
class SampleConfig:
    """The settings of sampling. Names and defaults are nanoGPT's."""

    init_from: str = "resume"  # the checkpoint in out_dir; or gpt2, ..., or a folder with a model
    out_dir: str = "out"  # the folder of a run
    start: str | None = None  # the prompt, FILE:prompt.txt, or - for stdin; None: a line break
    num_samples: int = 10  # texts to draw
    max_new_tokens: int = 500  # tokens in each, unless it ends earlier by itself
    temperature: float = 0.8  # below 1: bolder, above: more varied, 0: always the most likely token
    top_k: int | None = 200  # draw from the k most likely tokens only; None: from all
    top_p: float = 1.0  # draw from the likeliest tokens that have this probability together
    min_p: float = 0.0  # draw from tokens at least this likely, compared with the likeliest
    repetition_penalty: float = 1.0  # above 1: tokens that were there already become less likely
    stop: str | None = None  # end a text before this string
    interactive: bool = False  # go on with what is typed, line by line, until Ctrl-D
    out: str | None = None  # a file.jsonl: prompt, text, tokens and their log-probabilities
    seed: int = 1337  # sample i is drawn with seed + i
    cache: bool = True  # keep keys and values of past tokens; False: the same text, slower
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of the weights
    compile: bool = False  # torch.compile: worth its minute for many tokens only

    def __post_init__(self):
        for name in ("num_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be 0 (no chance) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be 1 or more, or None for no limit")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must be at least 0 and at most 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be above 0")
        if self.stop == "":
            raise ValueError("stop must have a character, or be None")
        if self.interactive and (self.out or not self.cache):
            raise ValueError("interactive=True goes with cache=True and without out")
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"seed={self.seed} must be at least 0 and below 2**62")


def load_model(init_from, out_dir, device):
    """A model in eval mode on `device`, and its tokenizer: those of a run ("resume"), or what
    train.load_start finds under another name."""
    if init_from == "resume":
        checkpoint = find_checkpoint(Path(out_dir), "best.pt", "ckpt.pt")
    else:
        checkpoint = load_start(init_from)
    model = GPT.from_weights(build(GPTConfig, checkpoint["model_args"]), checkpoint["model"])
    return model.to(device).eval(), tokenizer_from_meta(checkpoint["meta"])


class Packed(torch.nn.Module):
    """A linear layer on a CPU, its weights in the order in which oneDNN's kernels read them: one
    token takes two thirds of the time (docs/benchmarks.md). torch.compile does the same to a model
    that it may freeze; torch 2.13 has no public name for it."""

    def __init__(self, linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias, self.in_features = linear.bias, linear.in_features

    def forward(self, x):  # (..., in) -> (..., out)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def packed(model):
    """The model with its linear layers Packed, where the machine can and where it pays."""
    weight, mkldnn = model.transformer.wte.weight, torch.backends.mkldnn.is_available()
    can = {torch.float32: mkldnn,
           torch.bfloat16: mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()}
    if weight.device.type == "cpu" and can.get(weight.dtype) and model.config.n_embd >= WIDE:
        for module in list(model.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, torch.nn.Linear):
                    setattr(module, name, Packed(layer))
    return model


def quantized(model, device):
    """The model with int8 weights in its linear layers, one scale for each matrix; what they are
    multiplied with is rounded to int8 too, token by token. A quarter of the memory to read."""
    if device.type != "cpu":
        raise UserError(f"dtype=int8 is for CPUs, and the device is {device}: use bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to move this into a package of its own
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)


def read_prompt(start, tokenizer):
    """The text to go on from. Raises UserError if it is empty."""
    if start is None:
        start = tokenizer.default_start
    elif start == "-":
        start = sys.stdin.read()
    elif start.startswith("FILE:"):
        start = read_text(start.removeprefix("FILE:"))
    if not start:
        raise UserError("start is empty: the model needs one character to go on from")
    return start


class Sample:
    """One text as it comes, token by token: whole characters only, up to the stop string or the end
    of text."""

    def __init__(self, prompt, tokenizer, stop):
        self.text, self.begin, self.shown = prompt, len(prompt), 0
        self.tokenizer, self.stop = tokenizer, stop
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.tokens, self.logprobs, self.done = [], [], False

    def add(self, token, logprob):
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token == self.tokenizer.end_of_text:
            return self.end()
        # a token can end inside a character: its bytes wait for the next one
        self.text += self.utf8.decode(self.tokenizer.decode_bytes([token]))
        if self.stop and (at := self.text.find(self.stop, self.begin)) >= 0:
            self.text, self.done = self.text[:at], True

    def end(self):
        if not self.done:
            self.text, self.done = self.text + self.utf8.decode(b"", final=True), True

    def show(self):
        """Print what is new. What may be the beginning of the stop string waits."""
        end = len(self.text) - (len(self.stop) - 1 if self.stop and not self.done else 0)
        print(self.text[self.shown:end], end="", flush=True)
        self.shown = max(self.shown, end)


def show(samples, separator):
    """Print what is new of the first sample that is not yet printed whole, and, where it is done,
    of the one after it. Returns those that are not printed whole."""
    for i, sample in enumerate(samples):
        sample.show()
        if not sample.done:
            return samples[i:]
        print(separator, end="", flush=True)
    return []


def continue_text(model, tokenizer, cfg, prompt, seeds, cache):
    """Draw the continuations of `prompt`, one for each seed, and print them. Returns Samples."""
    ids = tokenizer.encode(prompt, special=True).astype(np.int64)
    if len(ids) > model.block_size:
        print(f"warning: the prompt has {len(ids):,} tokens; the model sees the last "
              f"{model.block_size:,} of them", file=sys.stderr)
    idx = torch.from_numpy(ids)[None].to(model.transformer.wte.weight.device)
    samples = [Sample("" if cfg.interactive else prompt, tokenizer, cfg.stop) for _ in seeds]
    separator = "\n" if cfg.interactive else f"\n{SEPARATOR}\n"
    waiting = show(samples, separator)
    stream = model.stream(idx, cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p,
                          cfg.repetition_penalty, tokenizer.n_vocab, seeds, cache)
    with suppress(KeyboardInterrupt if cfg.interactive else ()):  # Ctrl-C ends the answer alone
        for next_ids, logits in stream:
            logprobs = logits.float().log_softmax(dim=-1).gather(1, next_ids)
            for sample, *drawn in zip(samples, next_ids[:, 0].tolist(), logprobs[:, 0].tolist(),
                                      strict=True):
                if not sample.done:
                    sample.add(*drawn)
            waiting = show(waiting, separator)
            if all(sample.done for sample in samples):
                break
    for sample in samples:
        sample.end()
    show(waiting, separator)
    return samples


def interact(model, tokenizer, cfg):
    """Take lines from the keyboard until Ctrl-D. A line goes behind all that was said before."""
    with suppress(ImportError):
        import readline  # noqa: F401  # arrows and history in input(); not on Windows
    cache = KVCache(1, model.block_size, static=cfg.compile)
    for turn in itertools.count():
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return print()
        before = tokenizer.default_start if turn or not line else ""
        try:
            continue_text(model, tokenizer, cfg, before + line, [cfg.seed + turn], cache)
        except UserError as error:  # a character that it does not know
            print(f"error: {error}", file=sys.stderr)


def main(argv=None):
    _, cfg = configure(__doc__, SampleConfig, argv=argv)
    device = find_device(cfg.device)
    model, tokenizer = load_model(cfg.init_from, cfg.out_dir, device)
    dtype = cfg.dtype
    if dtype == "auto" and device.type == "cpu" and model.config.n_embd < WIDE:
        dtype = "float32"
    if dtype == "int8":
        model = quantized(model, device)
    else:
        model.to(getattr(torch, find_dtype(dtype, device, model.config.n_embd)))
        if not cfg.compile:  # the compiler does not take them
            packed(model)
    if cfg.compile:
        torch._dynamo.config.suppress_errors = True  # where it cannot, go on without
        model.compile(mode="reduce-overhead" if device.type == "cuda" else "default")
    if cfg.interactive:
        return interact(model, tokenizer, cfg)
    prompt = read_prompt(cfg.start, tokenizer)
    seeds = range(cfg.seed, cfg.seed + cfg.num_samples)
    cache = cfg.cache and KVCache(cfg.num_samples, model.block_size, static=cfg.compile)
    started = time.perf_counter()
    samples = continue_text(model, tokenizer, cfg, prompt, seeds, cache)
    seconds, count = time.perf_counter() - started, sum(len(s.tokens) for s in samples)
    print(f"{count:,} tokens in {seconds:.2f} s: {count / seconds:.0f} tok/s", file=sys.stderr)
    if cfg.out:
        lines = [{"prompt": prompt, "text": s.text[s.begin:], "tokens": s.tokens,
                  "logprobs": s.logprobs} for s in samples]
        with replacing(Path(cfg.out)) as temporary:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
