"""Compare runs: their validation losses in one picture, and a Markdown table of their settings.

    python tools/plot.py out-*
    python tools/plot.py out-a out-b --picture=comparison.png

The table has the lowest validation loss of each run, the step of that loss, the number of steps,
the training time, and the settings in which the runs differ. A run that is still training can be
compared too. Left out: the training loss, which is in the loss.png of each run.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import configure
from internals.errors import UserError, one_line_errors, reason
from internals.files import printable
from internals.limits import Limit, Natural
from internals.outdir import read_metrics
from internals.plots import best_evaluation, cut_beginning, label_ends, picture
from internals.recipes import RECIPES
from internals.words import duration

CONFIG_LIMIT = 2**20  # bytes; the config.json of a run has about 2,000
NOT_COMPARED = {"out_dir", "process", "tracker", "wandb_log", "wandb_project", "wandb_run_name",
                "eval_interval", "log_interval", "sample_tokens", "command"}  # they change no loss


@dataclass
class PlotConfig:
    """The settings of a comparison."""

    out_dirs: tuple[str, ...]  # the folders of the runs
    picture: str = "losses.png"  # file to write
    first_step: Natural = 0  # the picture begins at this step
    height: Annotated[int, Limit("from 2 to 50", least=2, most=50)] = 5  # of the picture, in inches


@dataclass
class Run:
    """What the folder of a run says about it. losses: the validation losses, as (step, loss)."""

    name: str
    settings: dict
    losses: list = field(default_factory=list)
    best: tuple | None = None  # (step, loss) of the lowest
    steps: int = 0
    seconds: float = 0.0  # of the training steps, without evaluations


def read_run(name):
    """The Run in a folder; None if it has no metrics. Raises UserError if the folder does not exist
    or its config.json is damaged."""
    folder = Path(name)
    if not folder.exists():
        raise UserError(f"{name} does not exist: give the out_dir of a run")
    metrics = read_metrics(folder / "metrics.jsonl")
    if not metrics:
        return None
    run = Run(printable(name.rstrip("/")), read_settings(folder / "config.json"))
    run.best = best_evaluation(metrics)
    logged = 0
    ms = 0.0  # per step
    for entry in metrics:
        step = entry["step"]
        run.steps = max(run.steps, step)
        if entry.get("val_loss") is not None:
            run.losses.append((step, entry["val_loss"]))
        if entry.get("ms") is not None:  # the mean over the steps since the last line
            ms = entry["ms"]
            run.seconds += (step - logged) * ms / 1e3
            logged = step
    run.seconds += (run.steps - logged) * ms / 1e3
    return run


def read_settings(path):
    """The settings in a config.json; none if it does not exist."""
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise ValueError(f"it has more than {CONFIG_LIMIT:,} bytes")
        settings = json.loads(path.read_bytes())
        if not isinstance(settings, dict):
            raise ValueError("it must be a dict")
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not what train.py writes: {reason(error)}") from None
    return {key: value for key, value in settings.items() if key not in NOT_COMPARED}


def differences(runs):
    """For each run {name: value} of the settings that are not the same in all runs. If the recipes
    differ, the settings that follow from a run's recipe are left out."""
    names = {name: None for run in runs for name in run.settings}  # a dict keeps the order
    differ = [name for name in names
              if any(run.settings.get(name) != runs[0].settings.get(name) for run in runs)]
    found = []
    for run in runs:
        named = RECIPES.get(str(run.settings.get("recipe") or "gpt2"), {})
        if "recipe" not in differ:
            named = {}
        found.append({name: run.settings[name] for name in differ if name in run.settings
                      and not (name in named and named[name] == run.settings[name])})
    return found


def table(runs):
    """The comparison as lines of Markdown."""
    lines = ["| run | best loss | at step | steps | training time | settings that differ |",
             "| --- | --- | --- | --- | --- | --- |"]
    for run, settings in zip(runs, differences(runs), strict=True):
        best, at_step = "-", "-"
        if run.best:
            step, loss = run.best
            best, at_step = f"{loss:.4f}", f"{step:,}"
        differ = ", ".join(f"{name}={value}" for name, value in settings.items()) or "-"
        cells = [run.name, best, at_step, f"{run.steps:,}", duration(run.seconds), differ]
        cells = [" ".join(cell.replace("|", r"\|").split()) for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw_runs(runs, path, first_step=0, height=5):
    """A picture of the validation losses. The name of a run is at the end of its line."""
    with picture(path, 9, height) as figure:
        axes = figure.subplots()
        curves, ends = [], []
        for i, run in enumerate(runs):
            points = [point for point in run.losses if point[0] >= first_step]
            if points:
                color = f"C{i % 10}"
                axes.plot(*zip(*points, strict=True), marker=".", color=color)
                curves.append(points)
                ends.append((*points[-1], run.name, color))
        cut_beginning(axes, curves)
        axes.set(xlabel="step", ylabel="validation loss (nats per token)")
        axes.grid(alpha=0.3)
        for side in "top", "right":
            axes.spines[side].set_visible(False)
        label_ends(axes, ends)


def main(argv=None):
    _, cfg = configure(__doc__, PlotConfig, argv=argv, positional=["out_dirs"])
    path = Path(cfg.picture)
    if path.is_dir():
        raise UserError(f"picture={cfg.picture} is a folder: give the name of a file")
    runs = []
    for name in dict.fromkeys(cfg.out_dirs):
        run = read_run(name)
        if run is None:  # out-* may find more than runs
            print(f"{name} is left out: it has no metrics.jsonl of a run", file=sys.stderr)
        else:
            runs.append(run)
    if not any(step >= cfg.first_step for run in runs for step, _ in run.losses):
        raise UserError(f"there is no validation loss from step {cfg.first_step:,} on in "
                        f"{', '.join(cfg.out_dirs):.200}: train a run, or use a lower first_step")
    print("\n".join(table(runs)))
    draw_runs(runs, path, cfg.first_step, cfg.height)
    print(f"picture  {path}", file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors():
        main()
