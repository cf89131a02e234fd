"""Measure how many sums a model computes exactly, out of those that it was not trained on.

    python train.py config/train_addition.py
    python tools/add.py --out_dir=out-addition

The prompt is a line of val.bin up to its "=". The model continues it by greedy decoding. A sum is
exact if all its digits and the end of the line are right. By default, sums are written with their
last digit first. The sums can also be your own text, in lines of one length.
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import configure
from internals import dataset
from internals.checkpoint import first_undamaged
from internals.devices import find_device
from internals.errors import UserError, one_line_errors
from internals.files import DATA
from sample import Sampler, load_model, make_cache, stream

BATCH, SHOWN = 5000, 5  # sums per batch, wrong sums to print


@dataclass
class AddConfig:
    """The settings of the measurement."""

    out_dir: str = "out-addition"  # the folder of a run
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest one available


def held_out(out_dir):
    """The validation ids of the run in out_dir. Raises UserError unless both bins are the ones that
    the run used: other bins may hold out sums that this model was trained on."""
    checkpoint = first_undamaged(out_dir, "best.pt", "ckpt.pt")
    config = checkpoint.config or {}
    folder = Path(config.get("data_dir") or DATA) / config.get("dataset", "addition")
    data = dataset.load(folder)
    for name in ("train_sha256", "val_sha256"):
        if data.meta.get(name, "none") != checkpoint.meta.get(name):
            raise UserError(f"{folder} is not what the model in {out_dir} was trained on: prepare "
                            "it with the same settings, or train again")
    return data.val


def whole_lines(text):
    """The lines of a validation text. The first one is left out if the cut between the splits is
    inside it; the last one gets a newline if it has none."""
    lines = (text.removesuffix("\n") + "\n").splitlines(keepends=True)
    if len(lines) > 1 and len(lines[0]) < len(lines[1]):
        return lines[1:]
    return lines


def answers(model, tokenizer, lines, device):
    """Yields each line as the model completes it after its "=". All lines must be equally long."""
    cut = lines[0].index("=") + 1
    # greedy decoding uses no random numbers, so one seed is enough for the whole batch
    greedy = Sampler([0], tokenizer.n_vocab, temperature=0)
    for i in tqdm(range(0, len(lines), BATCH), unit_scale=BATCH, disable=None, leave=False):
        ids = np.stack([tokenizer.encode(line) for line in lines[i:i + BATCH]])
        prompts = torch.from_numpy(ids[:, :cut]).to(device)
        tokens = stream(model, prompts, greedy, make_cache(model, len(prompts)))
        new = [ids for ids, _ in itertools.islice(tokens, len(lines[0]) - cut)]  # (B, 1) each
        completed = torch.cat((prompts, *new), dim=1)
        yield from (tokenizer.decode(row) for row in completed.tolist())


def main(argv=None):
    _, cfg = configure(__doc__, AddConfig, argv=argv)
    device = find_device(cfg.device)
    model, tokenizer = load_model("resume", cfg.out_dir, device)
    lines = whole_lines(tokenizer.decode(held_out(Path(cfg.out_dir))))
    if len({(line.find("="), len(line)) for line in lines}) > 1 or "=" not in lines[0]:
        raise UserError(f"{cfg.out_dir} was not trained on sums in lines of one length, such as "
                        "012+345=7530 (see --help)")
    pairs = zip(lines, answers(model, tokenizer, lines, device), strict=True)
    wrong = [(line, answer) for line, answer in pairs if line != answer]
    exact = len(lines) - len(wrong)
    print(f"exact: {exact:,} of {len(lines):,} ({exact / len(lines):.2%})")
    for line, answer in wrong[:SHOWN]:
        print(f"  {answer.rstrip()}, but the correct line is {line.rstrip()}")


if __name__ == "__main__":
    with one_line_errors():
        main()
