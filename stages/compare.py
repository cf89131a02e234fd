"""Compare runs of stages/rl.py: reward and rule against the distance from the start.

    python stages/compare.py out-verse-rl out-verse-rl-kl --out=docs/stages-hacking.png

The horizontal axis is the square root of the KL divergence, as in Gao et al. (2022): for small
changes of a distribution, KL grows with the square of the change. The dots are evaluations on test
prompts, the thin lines the logged training steps. Every run begins at KL 0. The table has the last
evaluation of each run, with 95% intervals.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import configure
from internals.errors import UserError, one_line_errors, reason
from internals.plots import picture

COLORS = ("tab:red", "tab:blue", "tab:green", "tab:orange", "tab:purple", "tab:brown")


@dataclass
class CompareConfig:
    """The settings of a comparison."""

    runs: tuple[str, ...]  # the folders of the runs
    out: str = "compare.png"  # the picture to write


def read_run(folder):
    """The settings and the metrics of a run: a dict, and a list of dicts. Raises UserError."""
    try:
        settings = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        lines = Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be read ({reason(error)}): give folders of runs of "
                        "stages/rl.py") from None
    if not any("rule_margin" in entry for entry in metrics):
        raise UserError(f"{folder} has no evaluation of stages/rl.py")
    return settings, metrics


def table(runs):
    """A Markdown table of the last evaluations. runs: {folder: (settings, metrics)}."""
    lines = ["| run | beta | seed | step | KL | reward | rule | right |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for folder, (settings, metrics) in runs.items():
        last = [entry for entry in metrics if "rule_margin" in entry][-1]
        right = ""
        if "right" in last:
            right = f"{last['right']:.1%}"
        if "right_margin" in last:  # runs of earlier versions lack it
            right += f" ± {last['right_margin']:.1%}"
        cells = [
            Path(folder).name,
            str(settings["beta"]),
            str(settings["seed"]),
            str(last["step"]),
            f"{last['test_kl']:.1f}",
            f"{last['test_reward']:.2f}",
            f"{last['test_rule']:.2f} ± {last['rule_margin']:.2f}",
            right]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(axes, metrics, kl, value, style):
    """A line through the entries of the metrics that have both names."""
    found = [entry for entry in metrics if entry.get(kl) is not None]
    distances = [math.sqrt(max(0.0, entry[kl])) for entry in found]
    axes.plot(distances, [entry[value] for entry in found], **style)


def draw(runs, path):
    """Reward and rule against sqrt(KL). Runs with the same beta have the same color."""
    color_of = {}
    with picture(path, 9, 3.8) as figure:
        left, right = figure.subplots(1, 2)
        for settings, metrics in runs.values():
            beta = settings["beta"]
            label = None
            if beta not in color_of:
                color_of[beta] = COLORS[len(color_of) % len(COLORS)]
                label = f"beta = {beta}"
            steps = {"color": color_of[beta], "linewidth": 0.8}
            dots = {"color": color_of[beta], "linestyle": "", "marker": "o", "label": label}
            plot(left, metrics, "kl", "reward", steps)
            plot(left, metrics, "test_kl", "test_reward", dots)
            plot(right, metrics, "kl", "rule", steps)
            plot(right, metrics, "test_kl", "test_rule", dots)
        left.set(title="the reward that RL raises", xlabel="sqrt(KL), KL in nats per answer")
        right.set(title="the rule", xlabel="sqrt(KL), KL in nats per answer")
        left.legend()
        for axes in (left, right):
            axes.grid(alpha=0.3)


def main(argv=None):
    _, cfg = configure(__doc__, CompareConfig, argv=argv, positional=("runs",))
    runs = {}
    for folder in cfg.runs:
        runs[folder] = read_run(folder)
    print(table(runs))
    draw(runs, Path(cfg.out))
    print(f"picture  {cfg.out}")


if __name__ == "__main__":
    with one_line_errors():
        main()
