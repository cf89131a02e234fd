"""Compare fine-tuning with training from scratch, in the same number of steps.

    python studies/finetune.py                    about 10 minutes on one core

Tiny Shakespeare is an excerpt from Shakespeare's plays, so the base model is trained only on plays
that share almost no text with it. The tool then trains on Tiny Shakespeare, from the base and from
scratch, with the same settings. Each of the two uses its best learning rate, which the tool first
searches for with a seed that it does not use again. It prints the overlap of every play, the
command of every run and a table, and plots both curves to docs/finetune.png. docs/finetune.md
discusses the result.
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

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import prepare
import train
from configurator import configure
from internals.data.corpora import fetch_each_play
from internals.data.formats import read_text
from internals.errors import one_line_errors
from internals.files import DATA
from internals.plots import picture

ROOT = Path(__file__).resolve().parent.parent
TINY = "shakespeare_char"  # the name of a dataset
OTHER = "other_plays"
LENGTH = 8  # words; sequences of this length are compared
MAX_OVERLAP = 0.01  # the share of its sequences that a play may have in common with the text
# an evaluation of 109 batches with 16 sequences each covers the whole validation split
SETTINGS = [os.path.relpath(ROOT / "config" / "train_plays.py"), "--warmup_iters=None",
            "--eval_iters=109", "--sample_tokens=0"]
BASE_STEPS = 2000  # of the base model
STEPS = 300  # of each run on Tiny Shakespeare
EVAL_INTERVAL = 50
LEARNING_RATES = (2e-3, 4e-3, 8e-3)  # the search for the best one begins with these
MAX_TRIALS = 8  # learning rates that are tried at most
TRIAL_SEED = 0
SEEDS = (1, 2, 3)


def word_sequences(text):
    """The set of all sequences of LENGTH words in `text`, without case, punctuation and line
    breaks."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return {" ".join(words[i:i + LENGTH]) for i in range(len(words) - LENGTH + 1)}


def without_overlap(plays, text):
    """plays: {name: play}. Returns the plays of whose word sequences at most MAX_OVERLAP occur in
    `text`, and for all plays {name: (the number of such sequences, the number of all)}."""
    of_text = word_sequences(text)
    kept = {}
    overlaps = {}
    for name, play in plays.items():
        sequences = word_sequences(play)
        shared = len(sequences & of_text)
        overlaps[name] = (shared, len(sequences))
        if shared <= MAX_OVERLAP * len(sequences):
            kept[name] = play
    return kept, overlaps


def prepare_both(plays, data=DATA):
    """Prepare Tiny Shakespeare, and the plays without overlap. Both use the vocabulary of Tiny
    Shakespeare; characters of the plays that are not in it are removed."""
    prepare.open_dataset(TINY, data)
    tiny = read_text(data / TINY / "input.txt")
    kept, overlaps = without_overlap(plays, tiny)
    print(f"sequences of {LENGTH} words that also occur in Tiny Shakespeare:")
    by_share = sorted(overlaps.items(), key=lambda item: item[1][0] / item[1][1])
    for name, (shared, n) in by_share:
        print(f"{name:30} {shared:6,} of {n:6,}: {'kept' if name in kept else 'left out'}")
    validation = word_sequences(tiny[int(len(tiny) * 0.9):])
    text = "\n".join(kept.values())
    shared = sorted(validation & word_sequences(text))
    print(f"{len(kept)} of {len(plays)} plays are kept; they contain {len(shared)} of the "
          f"{len(validation):,} sequences of the validation text: {', '.join(shared)}")
    unknown = set(text) - set(tiny)
    known = "".join(char for char in text if char not in unknown)
    print(f"{len(text) - len(known)} of {len(text):,} characters are not in the vocabulary of Tiny "
          f"Shakespeare and were removed: {' '.join(sorted(unknown))}")
    path = data / OTHER / "input.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(known, encoding="utf-8")
    prepare.main([str(path), f"--name={OTHER}", f"--tokenizer={TINY}", f"--data_dir={data}"])


def run(out_dir, dataset, steps, eval_interval, learning_rate, seed, data, start="scratch"):
    """Run train.py; returns {step: loss over the whole validation split}."""
    argv = [*SETTINGS, f"--dataset={dataset}", f"--out_dir={out_dir}", f"--init_from={start}",
            f"--max_iters={steps}", f"--eval_interval={eval_interval}",
            f"--learning_rate={learning_rate}", f"--seed={seed}"]
    if data != DATA:
        argv.append(f"--data_dir={data}")
    print("python train.py " + shlex.join(argv), flush=True)
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = train.main(argv)
    curve = {m["step"]: m["val_loss"] for m in metrics if "val_loss" in m}
    print(f"    validation loss {curve[0]:.4f} at step 0, {curve[steps]:.4f} at step {steps}")
    return curve


def best_learning_rate(loss):
    """The learning rate with the lowest loss(learning_rate). The search tries LEARNING_RATES, and
    then halves or doubles the best one until a worse one has been tried on both sides of it."""
    losses = {rate: loss(rate) for rate in LEARNING_RATES}
    while len(losses) < MAX_TRIALS:
        best = min(losses, key=losses.get)
        if min(losses) < best < max(losses):
            break
        new = best * 2
        if best == min(losses):
            new = best / 2
        losses[new] = loss(new)
    return min(losses, key=losses.get)


def plot(curves, path):
    """curves: {label: [{step: loss}, ...]}, one dict per seed. The lines are means over the seeds;
    the shaded areas reach from the lowest to the highest loss."""
    with picture(path, 8, 4.5) as figure:
        axes = figure.subplots()
        for (label, seeds), color in zip(curves.items(), ("tab:orange", "tab:blue"), strict=True):
            steps = list(seeds[0])
            losses = np.array([list(seed.values()) for seed in seeds])  # (seeds, steps)
            means = losses.mean(axis=0)
            axes.plot(steps, means, marker=".", color=color, label=label)
            axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=color,
                              alpha=0.25, linewidth=0)
            for i, offset in (0, (8, 5)), (-1, (-4, 8)):
                axes.annotate(f"{means[i]:.2f}", (steps[i], means[i]), offset, color=color,
                              textcoords="offset points", ha="right" if i else "left")
        axes.set(xlabel="steps on Tiny Shakespeare", ylabel="validation loss (nats per character)",
                 title=f"Validation loss on Tiny Shakespeare, mean of {len(seeds)} seeds")
        axes.margins(y=0.09)
        axes.grid(alpha=0.3)
        axes.legend()


def table(curves):
    """A Markdown table of the mean losses, and the lowest and highest final loss."""
    steps = list(next(iter(curves.values()))[0])
    lines = ["| loss over the whole validation split at step | " + " | ".join(map(str, steps))
             + " | lowest to highest |", "| --- |" + " --- |" * (len(steps) + 1)]
    for label, seeds in curves.items():
        means = [f"{statistics.mean(seed[step] for seed in seeds):.3f}" for step in steps]
        ends = [seed[steps[-1]] for seed in seeds]
        lines.append(" | ".join([f"| {label}", *means, f"{min(ends):.3f} to {max(ends):.3f} |"]))
    return "\n".join(lines)


def main(plays, data=DATA, out=Path("out-finetune"), image=ROOT / "docs" / "finetune.png"):
    started = time.perf_counter()
    cpu_started = time.process_time()
    prepare_both(plays, data)
    base = out / "base"
    run(base, OTHER, BASE_STEPS, BASE_STEPS, 4e-3, TRIAL_SEED, data)
    curves = {}
    for start, label in (base, "fine-tuned"), ("scratch", "from scratch"):
        folder = out / label.replace(" ", "-")
        rate = best_learning_rate(lambda rate, folder=folder, start=start: run(
            folder / f"rate-{rate}", TINY, STEPS, STEPS, rate, TRIAL_SEED, data, start)[STEPS])
        label = f"{label} (learning rate {rate})"
        if start == base:
            label += f", after {BASE_STEPS:,} steps on other plays"
        curves[label] = [
            run(folder / f"seed-{seed}", TINY, STEPS, EVAL_INTERVAL, rate, seed, data, start)
            for seed in SEEDS]
    wall = time.perf_counter() - started
    cpu = time.process_time() - cpu_started
    print(f"{table(curves)}\n{wall / 60:.1f} minutes ({cpu / 60:.1f} minutes of CPU time)",
          flush=True)  # first: a picture can fail
    plot(curves, image)
    print(f"picture  {image}")
    return curves


if __name__ == "__main__":
    with one_line_errors():
        configure(__doc__)  # the tool has no settings, only --help
        main(fetch_each_play())
