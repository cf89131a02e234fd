"""Text out of a model that train.py has trained.

    python sample.py --out_dir=out-quickstart
    python sample.py --out_dir=out-quickstart --start="ROMEO:" --num_samples=3 --temperature=0.5
    python sample.py --out_dir=out-quickstart --start=FILE:prompt.txt

The checkpoint is all that is needed: the tokenizer is in it. best.pt is read if it is there, else
ckpt.pt. The text goes to stdout as it is made, everything else to stderr.
"""

import codecs
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from configurator import (
    UserError,
    autocast_to,
    build,
    configure,
    find_device,
    find_dtype,
    one_line_errors,
)
from model import GPT, GPTConfig
from prepare import read_text, tokenizer_from_meta
from train import find_checkpoint

SEPARATOR = "---------------"


@dataclass
class SampleConfig:
    """The settings of sampling. Names and defaults are nanoGPT's."""

    init_from: Literal["resume"] = "resume"  # from the checkpoint in out_dir
    out_dir: str = "out"  # the folder of a run
    start: str | None = None  # the prompt, or FILE:prompt.txt; None: a line break
    num_samples: int = 10  # texts to draw
    max_new_tokens: int = 500  # tokens in each, unless it ends earlier by itself
    temperature: float = 0.8  # below 1: bolder, above: more varied, 0: always the most likely token
    top_k: int | None = 200  # draw from the k most likely tokens only; None: from all
    seed: int = 1337  # sample i is drawn with seed + i
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products
    compile: bool = False  # torch.compile: worth its minute for many samples only

    def __post_init__(self):
        for name in ("num_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be 0 (no chance) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be 1 or more, or None for no limit")
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"seed={self.seed} must be at least 0 and below 2**62")


def load_model(out_dir, device):
    """The model of a run, in eval mode on `device`, and its tokenizer."""
    checkpoint = find_checkpoint(out_dir, "best.pt", "ckpt.pt")
    model = GPT(build(GPTConfig, checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval(), tokenizer_from_meta(checkpoint["meta"])


def encode_prompt(start, tokenizer, block_size):
    """The prompt, and its int64 ids (1, T). Raises UserError if it is empty or has a character
    that the tokenizer does not know."""
    if start is None:
        start = tokenizer.default_start
    elif start.startswith("FILE:"):
        start = read_text(start.removeprefix("FILE:"))
    if not start:
        raise UserError("start is empty: the model needs one character to go on from")
    ids = tokenizer.encode(start, special=True)
    if len(ids) > block_size:
        print(f"warning: the prompt has {len(ids):,} tokens; the model sees the last "
              f"{block_size:,} of them", file=sys.stderr)
    return start, torch.from_numpy(ids.astype(np.int64))[None]


def main(argv=None):
    _, cfg = configure(__doc__, SampleConfig, argv=argv)
    device = find_device(cfg.device)
    model, tokenizer = load_model(Path(cfg.out_dir), device)
    start, idx = encode_prompt(cfg.start, tokenizer, model.block_size)
    idx = idx.to(device)
    if cfg.compile:
        model.compile(dynamic=True)  # in place: `stream` calls it too

    # one token at a time is bound by reading the weights, and on a CPU float32 is as quick
    dtype = "float32" if cfg.dtype == "auto" and device.type != "cuda" else cfg.dtype
    with autocast_to(find_dtype(dtype, device, model.config.n_embd), device):
        for i in range(cfg.num_samples):
            print(start, end="", flush=True)
            generator = torch.Generator(device).manual_seed(cfg.seed + i)
            # a token can end inside a character: its bytes wait for the next one
            text = codecs.getincrementaldecoder("utf-8")("replace")
            for ids in model.stream(idx, cfg.max_new_tokens, cfg.temperature, cfg.top_k,
                                    n_vocab=tokenizer.n_vocab, generator=generator):
                if (token := ids.item()) == tokenizer.end_of_text:
                    break
                print(text.decode(tokenizer.decode_bytes([token])), end="", flush=True)
            print(text.decode(b"", final=True))
            print(SEPARATOR, flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
