"""What each idea of the modern recipe buys: a ladder from GPT-2's, one idea added at a time.

    python tools/ablate.py                                     about 12 minutes on two cores
    python tools/ablate.py --leave_out=True                    the other way: all but one of them

Every rung trains on the same windows of text, in the same order for one seed, for as many steps.
Printed is a table in markdown; the curves, loss against tokens and against time, go to
docs/ablation.png. Seeds take turns outside and rungs inside, so that a slow hour of the machine
slows all rungs alike.
"""

import contextlib
import io
import statistics
import sys
import tempfile
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from configurator import UserError, configure, one_line_errors
from internals.files import replacing
from internals.limits import Count, Limit
from internals.recipes import RECIPES

ROOT = Path(train.__file__).parent

# what all rungs share; for the first one half and twice its rate are worse, as for Muon in the last
SAME = {"dataset": "plays_char", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64,
        "batch_size": 16, "gradient_accumulation_steps": 1, "learning_rate": 4e-3, "min_lr": 0.0,
        "beta2": 0.95, "weight_decay": 0.0, "sample_tokens": 0, "log_interval": 1}


def of_recipe(name, **rates):
    """A setting of the modern recipe, and the learning rates that it needs."""
    return {name: RECIPES["modern"][name]} | rates


LADDER = [  # name, settings that it adds
    ("GPT-2's recipe", {}),
    ("+ RoPE", of_recipe("pos")),
    ("+ RMSNorm", of_recipe("norm")),
    ("+ QK-norm", of_recipe("qk_norm")),
    ("+ ReLU²", of_recipe("act")),
    ("+ zero-init", of_recipe("zero_init")),
    ("+ untied head", of_recipe("tied", embedding_lr=0.04)),
    ("+ softcap", of_recipe("softcap")),
    ("+ Muon", of_recipe("optimizer", muon_lr=0.02, learning_rate=1.6e-2)),
    ("+ linear cooldown", of_recipe("cooldown")),
]


@dataclass
class AblateConfig:
    """The settings of the ladder."""

    steps: Annotated[int, Limit("8 or more", least=8)] = 300  # of each run
    seeds: str = "1,2,3"  # with commas between them
    dataset: str = SAME["dataset"]  # as train.py's
    data_dir: str | None = None  # as train.py's
    eval_iters: Count = 40  # batches of each evaluation
    leave_out: bool = False  # all ideas at once, then without each of them
    picture: str | None = None  # where the curves go; None: docs/ablation.png, or leave_out.png


def run(settings, out_dir):
    """Train; returns the evaluations as (tokens, seconds of training, validation loss)."""
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = train.main([f"--{name}={value}" for name, value in settings.items()]
                             + [f"--out_dir={out_dir}"])
    if metrics[-1]["step"] < settings["max_iters"]:
        raise KeyboardInterrupt  # train.py has ended in good order; so shall the ladder
    tokens = settings["batch_size"] * settings["block_size"]
    ms = [0.0, *accumulate(m["ms"] for m in metrics if "ms" in m)]
    return [(m["step"] * tokens, ms[m["step"]] / 1e3, m["val_loss"])
            for m in metrics if "val_loss" in m]


def rungs(leave_out):
    """{name: the settings of a rung}: one idea more than the one before, or all but one."""
    if not leave_out:
        sums = accumulate((idea for _, idea in LADDER), lambda before, idea: before | idea)
        return {name: SAME | ideas for (name, _), ideas in zip(LADDER, sums, strict=True)}
    whole = {key: value for _, idea in LADDER for key, value in idea.items()}
    without = {name.replace("+", "without"): {k: v for k, v in whole.items() if k not in idea}
               for name, idea in LADDER[1:]}
    return {name: SAME | ideas for name, ideas in ({"all ideas": whole} | without).items()}


def climb(cfg):
    """The curves of each rung: {name: [curve of seed, ...]}."""
    curves = {name: [] for name in rungs(cfg.leave_out)}
    for seed in map(int, cfg.seeds.split(",")):
        same = {"seed": seed, "max_iters": cfg.steps, "eval_iters": cfg.eval_iters,
                "eval_interval": max(1, cfg.steps // 5), "dataset": cfg.dataset}
        if cfg.data_dir is not None:
            same["data_dir"] = cfg.data_dir
        for name, settings in rungs(cfg.leave_out).items():
            with tempfile.TemporaryDirectory() as out_dir:
                curves[name].append(run(settings | same, out_dir))
            tokens, seconds, loss = curves[name][-1][-1]
            print(f"seed {seed} {name:20s} {loss:.4f} after {tokens:,} tokens, {seconds:.1f} s",
                  file=sys.stderr, flush=True)
    return curves


def table(curves, leave_out=False):
    """The last losses of each rung, and what it gained on the one before (leave_out: on the first),
    as lines of markdown."""
    yield "| rung | loss: mean (lowest to highest) | gained | seconds | time to the first's loss |"
    yield "| --- | --- | --- | --- | --- |"
    first = mean_curve(next(iter(curves.values())))
    before = None
    for name, runs in curves.items():
        losses, seconds = [curve[-1][2] for curve in runs], [curve[-1][1] for curve in runs]
        mean = statistics.mean(losses)
        gain = "" if before is None else f"{before - mean:+.3f}"
        when = time_to(mean_curve(runs), first[-1][2])
        share = f"{when / first[-1][1]:.2f}" if when else "not reached"
        yield (f"| {name} | {mean:.3f} ({min(losses):.3f} to {max(losses):.3f}) | {gain} | "
               f"{statistics.median(seconds):.1f} | {share} |")
        if before is None or not leave_out:
            before = mean


def mean_curve(runs):
    """The mean over seeds, point by point."""
    return [tuple(statistics.mean(column) for column in zip(*points, strict=True))
            for points in zip(*runs, strict=True)]


def time_to(curve, loss):
    """The seconds at which a curve comes down to a loss, between its points on a line; or None."""
    for (_, t0, l0), (_, t1, l1) in pairwise(curve):
        if l1 <= loss:
            return t0 + (t1 - t0) * (l0 - loss) / (l0 - l1) if l0 > loss else t0
    return None


def draw(curves, path):
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    against_tokens, against_time = figure.subplots(1, 2, sharey=True)
    colors = colormaps["viridis"]
    for i, (name, runs) in enumerate(curves.items()):
        curve = mean_curve(runs)[1:]
        style = {"color": colors(i / len(curves)), "marker": ".", "label": name}
        tokens, seconds, losses = zip(*curve, strict=True)
        against_tokens.plot([n / 1e3 for n in tokens], losses, **style)
        against_time.plot(seconds, losses, **style)
    against_tokens.set(xlabel="thousand tokens", ylabel="validation loss (nats a character)")
    against_time.set(xlabel="seconds of training")
    for axes in (against_tokens, against_time):
        axes.grid(alpha=0.3)
    against_time.legend(fontsize=8)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main(argv=None):
    _, cfg = configure(__doc__, AblateConfig, argv=argv)
    if not all(seed.isdigit() for seed in cfg.seeds.split(",")):
        raise UserError(f"seeds={cfg.seeds} must be numbers with commas between them")
    curves = climb(cfg)
    file = "leave_out.png" if cfg.leave_out else "ablation.png"
    draw(curves, cfg.picture or ROOT / "docs" / file)
    print("\n".join(table(curves, cfg.leave_out)))


if __name__ == "__main__":
    with one_line_errors():
        main()
