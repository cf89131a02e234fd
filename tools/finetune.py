"""Fine-tuning, shown: with the same steps, a model that has read other plays ends lower.

    python tools/finetune.py

Tiny Shakespeare is cut out of Shakespeare's plays, so the base model is trained only on those that
have nothing in common with it. From the base and from scratch, the same steps with the same
settings follow on Tiny Shakespeare. Each start has the learning rate that is best for it, looked
for with a seed that is not used again. Printed are the overlap of every play, the command of every
run, and the table; both curves are drawn into docs/finetune.png. docs/finetune.md has the result.
"""

import contextlib
import io
import os
import re
import shlex
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from configurator import configure, one_line_errors
from internals.corpora import fetch_each_play
from internals.files import DATA, locked, read_text, replacing
from prepare import open_dataset, prepare_texts

ROOT = Path(__file__).resolve().parent.parent
TINY, OTHER = "shakespeare_char", "other_plays"  # the names of the datasets
RUN, LIMIT = 8, 0.01  # words in a row; the share of such runs that a play may have in common
SETTINGS = [os.path.relpath(ROOT / "config" / "train_plays.py"), "--warmup_iters=None",
            "--eval_iters=109", "--sample_tokens=0"]  # 109 x 16 windows: the whole validation split
BASE_STEPS, STEPS, EVERY = 2000, 300, 50  # the base's, those on Tiny Shakespeare, an evaluation's
RATES, MAX_TRIALS = (2e-3, 4e-3, 8e-3), 8  # where the search for the best rate begins, and ends
TRIAL_SEED, SEEDS = 0, (1, 2, 3)


def runs_of_words(text):
    """All runs of RUN words in `text`, a set: no matter how lines break, or what the case is."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return {" ".join(words[i:i + RUN]) for i in range(len(words) - RUN + 1)}


def share_in_common(play, text):
    """(runs of words of `play` that `text` has too, runs of words of `play`)"""
    mine = runs_of_words(play)
    return len(mine & runs_of_words(text)), len(mine)


def without_overlap(plays, text):
    """Of {name: play}, those that have at most LIMIT of their runs of words in common with `text`;
    and {name: (in common, all)} for every play."""
    counts = {name: share_in_common(play, text) for name, play in plays.items()}
    kept = {name: plays[name] for name, (shared, n) in counts.items() if shared <= LIMIT * n}
    return kept, counts


def prepare_both(plays, data=DATA):
    """Tiny Shakespeare, and the plays that have nothing of it, in one vocabulary: Tiny
    Shakespeare's. A character of the plays that is not in it is left out."""
    open_dataset(TINY, data)
    tiny = read_text(data / TINY / "input.txt")
    kept, counts = without_overlap(plays, tiny)
    for name, (shared, n) in sorted(counts.items(), key=lambda item: item[1][0] / item[1][1]):
        print(f"{name:30} {shared:6,} of {n:6,} runs of {RUN} words are in Tiny Shakespeare: "
              f"{'kept' if name in kept else 'left out'}")
    validation = runs_of_words(tiny[int(len(tiny) * 0.9):])
    shared = sorted(validation & runs_of_words(text := "\n".join(kept.values())))
    print(f"{len(kept)} of {len(plays)} plays are kept; of the {len(validation):,} runs of {RUN} "
          f"words in the validation text, they have {len(shared)}: {', '.join(shared)}")
    unknown = set(text) - set(tiny)
    known = "".join(char for char in text if char not in unknown)
    print(f"{len(text) - len(known)} of {len(text):,} characters are not in Tiny Shakespeare's "
          f"vocabulary, and left out: {' '.join(sorted(unknown))}")
    with locked(data / OTHER):
        prepare_texts([known], data / OTHER, TINY, "the plays without overlap",
                      "python tools/finetune.py")


def run(out_dir, dataset, steps, every, rate, seed, data, start="scratch"):
    """Train by train.py; {step: loss over the whole validation split}."""
    argv = [*SETTINGS, f"--dataset={dataset}", f"--out_dir={out_dir}", f"--init_from={start}",
            f"--max_iters={steps}", f"--eval_interval={every}", f"--learning_rate={rate}",
            f"--seed={seed}"] + [f"--data_dir={data}"] * (data != DATA)
    print("python train.py " + shlex.join(argv), flush=True)
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = train.main(argv)
    curve = {m["step"]: m["val_loss"] for m in metrics if "val_loss" in m}
    print(f"    validation loss {curve[0]:.4f} at step 0, {curve[steps]:.4f} at step {steps}")
    return curve


def best_rate(loss, rates=RATES):
    """The rate with the lowest loss(rate); tried are `rates`, and as long as the best one is at
    an end, its half or its double. So it lies between two that are worse."""
    tried = {rate: loss(rate) for rate in rates}
    while len(tried) < MAX_TRIALS:
        best = min(tried, key=tried.get)
        if min(tried) < best < max(tried):
            break
        new = best / 2 if best == min(tried) else best * 2
        tried[new] = loss(new)
    return min(tried, key=tried.get)


def draw(curves, path):
    """curves: {label: [{step: loss}, ...]}, a list of seeds. Lines are means, and the shades
    around them reach from the lowest to the highest seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for (label, seeds), color in zip(curves.items(), ("tab:orange", "tab:blue"), strict=True):
        steps = list(seeds[0])
        losses = [[seed[step] for seed in seeds] for step in steps]  # (steps, seeds)
        means = list(map(statistics.mean, losses))
        axes.plot(steps, means, marker=".", color=color, label=label)
        axes.fill_between(steps, list(map(min, losses)), list(map(max, losses)), color=color,
                          alpha=0.25, linewidth=0)
        for i, place in (0, (8, 5)), (-1, (-4, 8)):
            axes.annotate(f"{means[i]:.2f}", (steps[i], means[i]), place, color=color,
                          textcoords="offset points", ha="right" if i else "left")
    axes.set(xlabel="steps on Tiny Shakespeare", ylabel="validation loss (nats a character)",
             title=f"The same steps on Tiny Shakespeare, mean of {len(seeds)} seeds")
    axes.margins(y=0.09)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def table(curves):
    """The curves as Markdown: means, and at the end the lowest and the highest seed too."""
    steps = list(next(iter(curves.values()))[0])
    lines = ["| loss over the whole validation split at step | " + " | ".join(map(str, steps))
             + " | lowest to highest |", "| --- |" + " --- |" * (len(steps) + 1)]
    for label, seeds in curves.items():
        means = [f"{statistics.mean(seed[step] for seed in seeds):.3f}" for step in steps]
        ends = [seed[steps[-1]] for seed in seeds]
        lines.append(" | ".join([f"| {label}", *means, f"{min(ends):.3f} to {max(ends):.3f} |"]))
    return "\n".join(lines)


def main(plays, data=DATA, out=Path("out-finetune"), picture=ROOT / "docs" / "finetune.png"):
    started = time.perf_counter(), time.process_time()
    prepare_both(plays, data)
    base = out / "base"
    run(base, OTHER, BASE_STEPS, BASE_STEPS, 4e-3, TRIAL_SEED, data)
    curves = {}
    for start, label in (base, "fine-tuned"), ("scratch", "from scratch"):
        folder = out / label.replace(" ", "-")
        rate = best_rate(lambda rate, folder=folder, start=start: run(
            folder / f"rate-{rate}", TINY, STEPS, STEPS, rate, TRIAL_SEED, data, start)[STEPS])
        after = f", after {BASE_STEPS:,} steps on other plays" * (start == base)
        curves[f"{label} (learning rate {rate}){after}"] = [
            run(folder / f"seed-{seed}", TINY, STEPS, EVERY, rate, seed, data, start)
            for seed in SEEDS]
    draw(curves, picture)
    wall, busy = time.perf_counter() - started[0], time.process_time() - started[1]
    print(f"{table(curves)}\n{wall / 60:.1f} minutes, {busy / 60:.1f} of a processor's; {picture}")
    return curves


if __name__ == "__main__":
    with one_line_errors():
        configure(__doc__)  # it has no settings, but a --help
        main(fetch_each_play())
