"""Count how many of the sums that a model has never seen it gets exactly right.

    python train.py config/train_addition.py
    python tools/add.py --out_dir=out-addition

Every line of val.bin is cut behind its "=", and the model goes on from there, with the most likely
token each time. A sum is exact if all digits, and the end of the line, are as they were.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import UserError, configure, one_line_errors
from internals.checkpoint import find_checkpoint
from internals.dataset import load_bins
from internals.devices import find_device
from internals.files import DATA
from prepare import decode
from sample import load_model

BATCH, SHOWN = 5000, 5  # sums at a time, wrong ones to print


@dataclass
class AddConfig:
    """The settings of the count."""

    out_dir: str = "out-addition"  # the folder of a run
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest there is


def held_out(out_dir):
    """The validation text of the run in out_dir. Raises UserError unless both bins are as they were
    in training, for in others sums may be held out that this model was trained on."""
    checkpoint = find_checkpoint(out_dir, "best.pt", "ckpt.pt")
    config = checkpoint.get("config", {})
    folder = Path(config.get("data_dir") or DATA) / config.get("dataset", "addition")
    meta, bins = load_bins(folder)
    for name in ("train_sha256", "val_sha256"):
        if meta.get(name, "none") != checkpoint["meta"].get(name):
            raise UserError(f"{folder} is not what the model in {out_dir} was trained on: prepare "
                            "it as it was, or train anew")
    return bins["val"]


def answers(model, tokenizer, lines, device):
    """What the model makes of lines, all of one length, from their "=" on: as many lines."""
    cut = lines[0].index("=") + 1
    for i in tqdm(range(0, len(lines), BATCH), unit_scale=BATCH, disable=None, leave=False):
        ids = np.stack([tokenizer.encode(line) for line in lines[i:i + BATCH]]).astype(np.int64)
        prompts = torch.from_numpy(ids[:, :cut]).to(device)
        made = model.generate(prompts, ids.shape[1] - cut, temperature=0.0)
        yield from (decode(tokenizer, row) for row in made.tolist())


def main(argv=None):
    _, cfg = configure(__doc__, AddConfig, argv=argv)
    device = find_device(cfg.device)
    model, tokenizer = load_model("resume", cfg.out_dir, device)
    lines = decode(tokenizer, held_out(Path(cfg.out_dir))).splitlines(keepends=True)
    if len({(line.find("="), len(line)) for line in lines}) > 1 or "=" not in lines[0]:
        raise UserError(f"{cfg.out_dir} was not trained on sums, but on another text: see --help")
    pairs = zip(lines, answers(model, tokenizer, lines, device), strict=True)
    wrong = [(line, answer) for line, answer in pairs if line != answer]
    exact = len(lines) - len(wrong)
    print(f"exact: {exact:,} of {len(lines):,} ({exact / len(lines):.2%})")
    for line, answer in wrong[:SHOWN]:
        print(f"  {answer.rstrip()}, but it is {line.rpartition('=')[2].rstrip()}")


if __name__ == "__main__":
    with one_line_errors():
        main()
