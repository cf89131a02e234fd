"""Candidates for the modern recipe: changes that helped other projects, each in a few lines.

    python tools/candidates.py                  five seeds; 20 minutes on two cores
    python tools/candidates.py --seeds=1,2      two seeds, for a first impression

Each candidate is one change to the full recipe, in the setting of tools/ablate.py. With the same
seed, all candidates see the same sequences. So the improvement is computed for each seed and then
averaged. The output is a table in Markdown. docs/modern.md discusses the results and says which
changes were adopted.
"""

import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ablate

import train
from configurator import configure, one_line_errors
from internals.limits import Count
from internals.plan import counted


def x0_shortcut(model):
    """Before each block, x = a x + b x0, where x0 is the embedding. Learned: a and b per layer."""
    a, b = torch.ones(model.config.n_layer), torch.zeros(model.config.n_layer)
    model.keep, model.shortcut = nn.Parameter(a), nn.Parameter(b)
    first = {}

    def mix(block, args):
        x, *others = args
        i = block.attn.layer
        if i == 0:
            first["x"] = x
        return (model.keep[i] * x + model.shortcut[i] * first["x"], *others)

    for block in model.transformer.h:
        block.register_forward_pre_hook(mix)


def value_residual(model):
    """From the second layer on, the values are mixed with those of the first layer. Learned: one
    weight per layer, zero at first (Zhou et al. 2024)."""
    model.value_mix = nn.Parameter(torch.zeros(model.config.n_layer))
    first = {}

    def mix(i):
        def hook(c_attn, args, output):
            q, k, v = output.chunk(3, dim=2)
            if i == 0:
                first["v"] = v
            v = v + model.value_mix[i].to(v.dtype) * (first["v"] - v)
            return torch.cat((q, k, v), dim=2)
        return hook

    for i, block in enumerate(model.transformer.h):
        block.attn.c_attn.register_forward_hook(mix(i))


def momentum_warmup(optimizer, steps=150):
    """The momentum of Muon rises from 0.85 to its final value in the first 150 steps."""
    final, done = optimizer.param_groups[-1]["momentum"], 0

    def warm_up(muon, args, kwargs):
        nonlocal done
        for group in muon.param_groups:
            group["momentum"] = 0.85 + (final - 0.85) * min(1, done / steps)
        done += 1

    optimizer.optimizers[1].register_step_pre_hook(warm_up)


def cautious_weight_decay(optimizer):
    """Muon decays a weight only if the update moves it toward zero too."""
    muon, before = optimizer.optimizers[1], []

    def remember(muon, args, kwargs):
        before[:] = [[p.detach().clone() for p in group["params"]] for group in muon.param_groups]

    @torch.no_grad()
    def undo(muon, args, kwargs):
        for group, olds in zip(muon.param_groups, before, strict=True):
            for p, old in zip(group["params"], olds, strict=True):
                decay = group["lr"] * group["weight_decay"] * old
                update = p - old + decay  # what the step has added besides the decay
                p.add_(decay.where(update * old >= 0, 0.0))

    muon.register_step_pre_hook(remember)
    muon.register_step_post_hook(undo)


def unchanged(model_or_optimizer):
    """Some candidates are only settings."""


FULL = list(ablate.variants(leave_out=False).values())[-1]


@dataclass
class Candidate:
    """A change, and what it is compared with."""

    name: str
    lines: int  # of code that model.py, sample.py or the optimizer would need
    settings: dict
    change_model: Callable = unchanged
    change_optimizer: Callable = unchanged
    baseline: str = "full recipe"


CANDIDATES = [
    Candidate("full recipe", 0, FULL),
    Candidate("without smear", 7, FULL | {"smear": False}),
    Candidate("without attention scale", 1, FULL | {"attn_scale": 1.0}),
    Candidate("momentum warmup", 3, FULL, change_optimizer=momentum_warmup),
    Candidate("x0 shortcut", 4, FULL, change_model=x0_shortcut),
    Candidate("value residual", 4, FULL, change_model=value_residual),
    Candidate("cooldown over the entire run", 0, FULL | {"cooldown": 1.0}),
    Candidate("weight decay 0.1", 0, FULL | {"weight_decay": 0.1}),
    Candidate("cautious weight decay 0.1", 2, FULL | {"weight_decay": 0.1},
              change_optimizer=cautious_weight_decay, baseline="weight decay 0.1"),
]


@dataclass
class CandidatesConfig:
    """The settings of the comparison."""

    steps: Count = 300  # training steps per run
    seeds: str = "1,2,3,4,5"  # comma-separated; every candidate is trained once with each of them
    eval_iters: Count = 40  # batches per evaluation
    dataset: str = ablate.SHARED["dataset"]  # name of a prepared or built-in dataset
    data_dir: str | None = None  # folder of the datasets; None: data/ of this repository


def final_loss(candidate, settings):
    """Train with a candidate; returns the validation loss after the last step."""
    original = train.make_optimizer

    def make_optimizer(model, cfg, dtype):
        candidate.change_model(model)
        optimizer = original(model, cfg, dtype)
        candidate.change_optimizer(optimizer)
        return optimizer

    with (mock.patch.object(train, "make_optimizer", make_optimizer),
          tempfile.TemporaryDirectory() as out_dir):
        return ablate.run(candidate.settings | settings, out_dir)[-1][2]


def table(losses):
    """The lines of a Markdown table. losses: {name of a candidate: [loss per seed]}."""
    yield "| change | lines | mean loss | improvement ± standard error | better in |"
    yield "| --- | --- | --- | --- | --- |"
    for candidate in CANDIDATES:
        own, baseline = losses[candidate.name], losses[candidate.baseline]
        cells = [candidate.name, str(candidate.lines), f"{statistics.mean(own):.3f}", "", ""]
        if own is not baseline:
            gains = [b - a for a, b in zip(own, baseline, strict=True)]  # seed by seed
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else math.nan
            cells[3] = f"{statistics.mean(gains):+.4f} ± {error:.4f}"
            cells[4] = f"{sum(gain > 0 for gain in gains)} of {counted(len(gains), 'seed')}"
        yield f"| {' | '.join(cells)} |"


def main(argv=None):
    _, cfg = configure(__doc__, CandidatesConfig, argv=argv)
    losses = {candidate.name: [] for candidate in CANDIDATES}
    for seed in ablate.parse_seeds(cfg.seeds):
        settings = {"seed": seed, "max_iters": cfg.steps, "eval_interval": cfg.steps,
                    "eval_iters": cfg.eval_iters, "dataset": cfg.dataset}
        if cfg.data_dir is not None:
            settings["data_dir"] = cfg.data_dir
        for candidate in CANDIDATES:
            loss = final_loss(candidate, settings)
            losses[candidate.name].append(loss)
            print(f"seed {seed}  {candidate.name:30s} loss {loss:.4f}", file=sys.stderr, flush=True)
    print("\n".join(table(losses)))


if __name__ == "__main__":
    with one_line_errors():
        main()
