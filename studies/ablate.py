"""What each change of the modern recipe is worth: an ablation study.

    python studies/ablate.py                     add one change at a time; 15 minutes on two cores
    python studies/ablate.py --leave_out=True    remove one change at a time from the full recipe

All variants train for the same number of steps; for one seed, they see the same sequences in the
same order. The output is a table in Markdown. The loss curves, against tokens and against time, are
plotted to docs/ablation.png, or to docs/leave_out.png with --leave_out=True. All variants train
with one seed before the next seed begins, so that a slowdown of the machine affects all of them.
docs/modern.md discusses the results.
"""

import contextlib
import io
import statistics
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from configurator import configure
from internals.errors import UserError, one_line_errors
from internals.limits import Count, Limit
from internals.plots import label_ends, picture
from internals.recipes import RECIPES

ROOT = Path(train.__file__).parent

# The settings that all variants share. Half and twice the learning rate were worse for the
# baseline, and half and twice muon_lr were worse for the full recipe.
SHARED = {"dataset": "plays_char", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64,
          "batch_size": 16, "gradient_accumulation_steps": 1, "learning_rate": 4e-3, "min_lr": 0.0,
          "beta2": 0.95, "weight_decay": 0.0, "sample_tokens": 0, "log_interval": 1}


def from_recipe(name, **learning_rates):
    """A setting of the modern recipe, and the learning rates that it needs."""
    return {name: RECIPES["modern"][name]} | learning_rates


CHANGES = [  # (name, the settings that it changes)
    ("GPT-2's recipe (baseline)", {}),
    ("+ RoPE", from_recipe("pos")),
    ("+ RMSNorm", from_recipe("norm")),
    ("+ QK-norm", from_recipe("qk_norm")),
    ("+ ReLU²", from_recipe("act")),
    ("+ zero-init", from_recipe("zero_init")),
    ("+ untied head", from_recipe("tied", embedding_lr=0.04)),
    ("+ softcap", from_recipe("softcap")),
    ("+ Muon", from_recipe("optimizer", muon_lr=0.02, learning_rate=1.6e-2)),
    ("+ linear cooldown", from_recipe("cooldown")),
    ("+ attention scale", from_recipe("attn_scale")),
    ("+ smear", from_recipe("smear")),
]


@dataclass
class AblateConfig:
    """The settings of an ablation study."""

    steps: Annotated[int, Limit("8 or more", least=8)] = 300  # training steps per run
    seeds: str = "1,2,3"  # comma-separated; every variant is trained once with each of them
    dataset: str = SHARED["dataset"]  # name of a prepared or built-in dataset
    data_dir: str | None = None  # folder of the datasets; None: data/ of this repository
    eval_iters: Count = 40  # batches per evaluation
    leave_out: bool = False  # remove one change at a time instead of adding one
    picture: str | None = None  # file to write; None: docs/ablation.png or docs/leave_out.png


def parse_seeds(text):
    """"1,2,3" -> [1, 2, 3]. Raises UserError if it is something else."""
    if not all(seed.isdecimal() for seed in text.split(",")):
        raise UserError(f"seeds={text} must be whole numbers with commas between them")
    return [int(seed) for seed in text.split(",")]


def run(settings, out_dir):
    """Train; returns the evaluations as (tokens, seconds of training, validation loss)."""
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = train.main([f"--{name}={value}" for name, value in settings.items()]
                             + [f"--out_dir={out_dir}"])
    tokens = settings["batch_size"] * settings["block_size"]
    seconds = 0.0
    curve = []
    for entry in metrics:
        seconds += entry.get("ms", 0.0) / 1e3
        if "val_loss" in entry:
            curve.append((entry["step"] * tokens, seconds, entry["val_loss"]))
    return curve


def variants(leave_out):
    """{name: settings}. Each variant has one change more than the one before it or, if leave_out is
    true, all changes but one."""
    cumulative = {}
    full = {}
    for name, change in CHANGES:
        full = full | change
        cumulative[name] = SHARED | full
    if not leave_out:
        return cumulative
    reduced = {"full recipe": SHARED | full}
    for name, change in CHANGES[1:]:
        rest = {key: value for key, value in full.items() if key not in change}
        reduced[name.replace("+", "without")] = SHARED | rest
    return reduced


def train_variants(cfg):
    """The curves of each variant: {name: [curve of a seed, ...]}."""
    curves = {name: [] for name in variants(cfg.leave_out)}
    for seed in parse_seeds(cfg.seeds):
        common = {"seed": seed, "max_iters": cfg.steps, "eval_iters": cfg.eval_iters,
                  "eval_interval": max(1, cfg.steps // 5), "dataset": cfg.dataset}
        if cfg.data_dir is not None:
            common["data_dir"] = cfg.data_dir
        for name, settings in variants(cfg.leave_out).items():
            with tempfile.TemporaryDirectory() as out_dir:
                curves[name].append(run(settings | common, out_dir))
            tokens, seconds, loss = curves[name][-1][-1]
            print(f"seed {seed}  {name:26s} loss {loss:.4f} after {tokens:,} tokens, "
                  f"{seconds:.1f} s", file=sys.stderr, flush=True)
    return curves


def table(curves, leave_out=False):
    """The lines of a Markdown table: the final loss of each variant, and its improvement over the
    variant before it or, if leave_out is true, over the full recipe."""
    target = "the full recipe's loss" if leave_out else "baseline loss"
    yield f"| change | loss: mean (lowest to highest) | improvement | seconds | time to {target} |"
    yield "| --- | --- | --- | --- | --- |"
    first = mean_curve(next(iter(curves.values())))
    before = None
    for name, runs in curves.items():
        losses = [curve[-1][2] for curve in runs]
        seconds = [curve[-1][1] for curve in runs]
        mean = statistics.mean(losses)
        improvement = "" if before is None else f"{before - mean:+.3f}"
        time = time_to(mean_curve(runs), first[-1][2])
        share = f"{time / first[-1][1]:.2f}" if time else "not reached"
        yield (f"| {name} | {mean:.3f} ({min(losses):.3f} to {max(losses):.3f}) | {improvement} | "
               f"{statistics.median(seconds):.1f} | {share} |")
        if before is None or not leave_out:
            before = mean


def mean_curve(runs):
    """The mean over seeds, point by point: an array (points, 3)."""
    return np.mean(runs, axis=0)


def time_to(curve, loss):
    """The seconds after which a curve reaches a loss, interpolated between its points; None if it
    does not reach it."""
    for (_, t0, l0), (_, t1, l1) in pairwise(curve):
        if l1 <= loss:
            return t0 + (t1 - t0) * (l0 - loss) / (l0 - l1) if l0 > loss else t0
    return None


def plot(curves, path, leave_out=False):
    """The mean curves against tokens and against time. The full recipe is highlighted."""
    first, *_, last = curves
    full = first if leave_out else last
    with picture(path, 12, 5.5, dpi=120) as figure:
        against_tokens, against_time = figure.subplots(1, 2, sharey=True)
        token_ends = []
        time_ends = []
        for name, runs in curves.items():
            label = name
            text_color = "0.3"
            style = {"color": "0.6", "linewidth": 1.2, "zorder": 2}
            if name == full:
                label = name if leave_out else f"{name} (full recipe)"
                text_color = "tab:blue"
                style = {"color": text_color, "linewidth": 2.5, "zorder": 3}
            tokens, seconds, losses = mean_curve(runs)[1:].T
            tokens = tokens / 1e3
            against_tokens.plot(tokens, losses, marker=".", **style)
            against_time.plot(seconds, losses, marker=".", **style)
            token_ends.append((tokens[-1], losses[-1], label, text_color))
            if name in (first, full):  # the lines of the others end too close together
                time_ends.append((seconds[-1], losses[-1], label, text_color))
        against_tokens.set(xlabel="thousand tokens",
                           ylabel="validation loss (nats per character)")
        against_time.set(xlabel="seconds of training")
        for axes, ends in (against_tokens, token_ends), (against_time, time_ends):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            label_ends(axes, ends)


def main(argv=None):
    _, cfg = configure(__doc__, AblateConfig, argv=argv)
    file = "leave_out.png" if cfg.leave_out else "ablation.png"
    path = Path(cfg.picture or ROOT / "docs" / file)
    if path.is_dir():
        raise UserError(f"picture={cfg.picture} is a folder: give the name of a file")
    curves = train_variants(cfg)
    print("\n".join(table(curves, cfg.leave_out)), flush=True)  # first: a picture can fail
    plot(curves, path, cfg.leave_out)


if __name__ == "__main__":
    with one_line_errors():
        main()
