"""Compare runs of stages/rl.py: reward and rule against the distance from the start.

    python stages/compare.py out-verse-rl out-verse-rl-kl --out=docs/stages-hacking.png

The horizontal axis is the square root of the KL divergence, as in Gao et al. (2022): for small
changes of a distribution, KL grows with the square of the change. Each point is an evaluation on
test prompts; a line begins where the run began, at KL 0. The table has the last evaluation of each
run, with 95% intervals (normal approximation) for shares.
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


def evaluations(folder):
    """The settings of a run, and its evaluations: a list of dicts. Raises UserError."""
    try:
        settings = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        lines = Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        found = [entry for entry in entries if "test_kl" in entry]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be read ({reason(error)}): give folders of runs of "
                        "stages/rl.py") from None
    if not found:
        raise UserError(f"{folder} has no evaluation of stages/rl.py")
    return settings, found


def table(runs):
    """A Markdown table of the last evaluations. runs: {folder: (settings, evaluations)}."""
    lines = ["| run | beta | seed | KL | reward | rule | right |", "| --- | --- | --- | --- | --- "
             "| --- | --- |"]
    for folder, (settings, found) in runs.items():
        last = found[-1]
        right = ""
        if last.get("right") is not None:
            share = last["right"]
            margin = 1.96 * math.sqrt(share * (1 - share) / settings["eval_prompts"])
            right = f"{share:.1%} ± {margin:.1%}"
        cells = [Path(folder).name, settings["beta"], settings["seed"], f"{last['test_kl']:.1f}",
                 f"{last['test_reward']:.2f}", f"{last['test_rule']:.2f}", right]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def draw(runs, path):
    """Reward and rule against sqrt(KL), one line per run."""
    with picture(path, 9, 3.8) as figure:
        left, right = figure.subplots(1, 2)
        for i, folder in enumerate(runs):
            _, found = runs[folder]
            distance = [math.sqrt(max(0.0, entry["test_kl"])) for entry in found]
            style = {"color": COLORS[i % len(COLORS)], "marker": "."}
            left.plot(distance, [entry["test_reward"] for entry in found], **style)
            right.plot(distance, [entry["test_rule"] for entry in found],
                       label=Path(folder).name, **style)
        left.set(title="the reward that RL raises", xlabel="sqrt(KL)")
        right.set(title="the rule", xlabel="sqrt(KL)")
        right.legend()
        for axes in (left, right):
            axes.grid(alpha=0.3)


def main(argv=None):
    _, cfg = configure(__doc__, CompareConfig, argv=argv, positional=("runs",))
    runs = {}
    for folder in cfg.runs:
        runs[folder] = evaluations(folder)
    print(table(runs))
    draw(runs, Path(cfg.out))
    print(f"picture  {cfg.out}")


if __name__ == "__main__":
    with one_line_errors():
        main()
