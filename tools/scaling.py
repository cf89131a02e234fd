"""Predict the loss of a large training run from small runs, before it starts: a scaling law.

    python tools/scaling.py plan config/scaling.py       choose the small runs: sizes x horizons
    python tools/scaling.py run                          train them; continues after a kill
    python tools/scaling.py fit                          fit a law L(N, D) to their losses
    python tools/scaling.py predict config/scaling.py    write down the loss of the large run
    python tools/scaling.py run                          train it, too
    python tools/scaling.py check out-scaling/target-4x160-3500    was the prediction right?

N: the weights of linear layers, the LM head included, because every token is multiplied with them;
the token embedding is only looked up. D: training tokens. Losses are in nats per token. Every run
is an ordinary run of train.py in its own process on one thread, and seconds are the CPU seconds of
that process. internals/scaling_law.py has the law and its fit, docs/scaling.md explains the method.
Left out: GPUs, and Windows, which has no wait4.
"""

import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import plot

from configurator import build, configure, read_settings
from internals.dataset import load
from internals.errors import UserError, one_line_errors
from internals.files import DATA, replacing
from internals.limits import Count, NonNegative, Positive
from internals.plots import picture
from internals.recipes import expand_names
from internals.scaling_law import Z80, Z95, Fit, fit_law, interval, non_negative
from model import GPTConfig
from train import TrainConfig

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
HORIZONS = [100, 200, 400, 800, 1600, 3200, 6400]  # steps
FEWEST_SIZES = 3  # of a ladder
FEWEST_HORIZONS = 5  # a 16-fold range of D
SEEDS = (1, 2)  # two runs per cell of the ladder: how far they are apart is the noise
RATES = (1 / 3, 1, 3)  # the learning rates that are tried in a corner, times a first guess
RATE_SETTINGS = ("learning_rate", "embedding_lr", "muon_lr", "min_lr")
LEAST_RATIO = 8  # FLOPs of the large run, divided by those of the ladder's largest run
MOST_EPOCHS = 4  # beyond, a repeated token is worth less than a new one (Muennighoff et al. 2023)
HIT_SECONDS = 0.2  # a prediction of the seconds is a hit if it is wrong by at most this share


@dataclass
class ScalingConfig:
    """The settings of a study."""

    command: Literal["plan", "run", "fit", "predict", "check"]
    # plan and predict: the config file of the large run; check: its folder
    target: str | None = None
    out_dir: str = "out-scaling"  # folder of the study
    minutes: Positive = 15  # plan: time for the ladder on quiet cores
    processes: Count = 2  # runs at a time, each on one thread
    # plan: the sizes to choose from, as n_layer x n_embd, the smallest first
    sizes: str = "2x32,3x48,3x96,4x128,4x160"
    dataset: str | None = None  # a dataset instead of the one in the config file
    data_dir: str | None = None  # folder of the datasets; None: data/ of this repository
    n_layer: Count | None = None  # layers of the large run; None: as in its config file
    n_embd: Count | None = None  # channels of the large run
    max_iters: Count | None = None  # steps of the large run
    # E of the second fit, in nats per token; None: two thirds of the lowest loss of the ladder
    fixed_E: NonNegative | None = None


# --------------------------------------------------------------------------------------------------
# The runs


@dataclass(frozen=True)
class Run:
    """What differs between the runs of a study. factor: of the learning rates of the config."""

    n_layer: int
    n_embd: int
    steps: int
    factor: float
    seed: int

    def __str__(self):
        return f"{self.n_layer}x{self.n_embd}-{self.steps}"


class Plan:
    """A ladder, small runs of all sizes x all horizons x all seeds, for a large run.

    settings: those of the config file of the large run. data: what identifies its dataset."""

    def __init__(self, out_dir, settings, data, sizes=(), horizons=()):
        self.out_dir = Path(out_dir)
        self.settings = settings
        self.data = data
        self.sizes = [tuple(size) for size in sizes]
        self.horizons = list(horizons)
        self.stored = {"settings": settings, "data": data, "sizes": self.sizes,
                       "horizons": self.horizons}
        self.train = build(TrainConfig, settings)
        self.model = build(GPTConfig, settings | {"vocab_size": data["vocab_size"]})
        self.head = self.model.n_embd // self.model.n_head  # channels, the same in all sizes
        self.target = Run(self.model.n_layer, self.model.n_embd, self.train.max_iters, 1.0,
                          self.train.seed)

    def settings_of(self, run):
        """The settings of a run of train.py. All others are those of the config file."""
        settings = self.settings | {
            "n_layer": run.n_layer, "n_embd": run.n_embd, "n_head": run.n_embd // self.head,
            "size": None, "max_iters": run.steps, "lr_decay_iters": None, "seed": run.seed,
            "init_from": "scratch", "device": "cpu", "dtype": "float32", "eval_only": False,
            "eval_interval": 10**9, "patience": 0, "sample_tokens": 0, "snapshots": False}
        for name in RATE_SETTINGS:
            rate = getattr(self.train, name)
            if rate:
                settings[name] = rate * run.factor
        return settings

    def folder(self, run):
        """Where a run of the ladder is stored. The name has a hash of all of its settings and of
        the data, so that a run with other settings is never taken for this one."""
        identity = json.dumps([self.settings_of(run), self.data], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
        return self.out_dir / "runs" / f"{run}-seed{run.seed}-{digest}"

    def shape(self, run):
        """N and D of a run."""
        # attention has 4 n_embd^2 weights per layer, the MLP 8; the LM head has V n_embd
        N = 12 * run.n_layer * run.n_embd**2 + self.data["vocab_size"] * run.n_embd
        sequences = self.train.gradient_accumulation_steps * self.train.batch_size
        return float(N), float(run.steps * sequences * self.model.block_size)

    def shapes(self, runs):
        """N and D of runs, as two arrays."""
        return np.array([self.shape(run) for run in runs]).T

    def corners(self):
        """The runs that search for the learning rates: the smallest and the largest size with the
        shortest and the longest horizon, in the order (4 corners, RATES, SEEDS)."""
        runs = []
        for size, steps, rate, seed in product(self.sizes[::len(self.sizes) - 1],
                                               self.horizons[::len(self.horizons) - 1],
                                               RATES, SEEDS):
            runs.append(Run(*size, steps, rate * self.guess(size[1], steps), seed))
        return runs

    def ladder(self, factor):
        """The runs of the ladder, in the order (sizes, horizons, SEEDS). factor(n_embd, steps): of
        their learning rates."""
        runs = []
        for size, steps, seed in product(self.sizes, self.horizons, SEEDS):
            runs.append(Run(*size, steps, factor(size[1], steps), seed))
        return runs

    def guess(self, n_embd, steps):
        """A first guess of the factor: the config's learning rates are about right for its large
        run, and smaller or shorter runs need higher ones."""
        return (n_embd / self.target.n_embd) ** -0.8 * (steps / self.target.steps) ** -0.4

    def jobs(self, runs):
        """What train_all needs for runs."""
        return [(self.settings_of(run), self.folder(run)) for run in runs]

    def results(self, runs):
        """Losses and CPU seconds of runs, as two arrays. Raises UserError if one is not done."""
        found = [read_json(self.folder(run) / "result.json") for run in runs]
        losses = np.array([each["loss"] for each in found])
        return losses, np.array([each["seconds"] for each in found])


# The files of a study, and what must be in them.
KEYS = {"plan.json": {"settings", "data", "sizes", "horizons"},
        "result.json": {"loss", "seconds"},
        "prediction.json": {"settings", "time", "loss", "interval_80", "interval_95", "baselines",
                            "seconds"}}


def write_json(path, content):
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_json(path):
    """The dict in one of the files of a study. Raises UserError if it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
        damaged = not KEYS[path.name] <= set(content)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: the steps are plan, run, fit, predict, run, check "
                        "(see --help)") from None
    except (ValueError, TypeError):
        damaged = True
    if damaged:
        raise UserError(f"{path} is damaged: remove it, and make it again")
    return content


def read_plan(out_dir):
    return Plan(out_dir, **read_json(Path(out_dir) / "plan.json"))


def train_once(settings, folder):
    """Run train.py in its own process on one thread, unless the folder has a result. A run that was
    interrupted begins again, so that its loss and its seconds are those of one process."""
    path = folder / "result.json"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    words = [f"--{name}={value}" for name, value in settings.items() if name != "out_dir"]
    command = [sys.executable, TRAIN, *words, f"--out_dir={folder}"]
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                   env=os.environ | {"OMP_NUM_THREADS": "1"})
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        raise UserError(f"train.py failed, see {folder / 'log.txt'}: {' '.join(lines[-1:])}")
    loss = plot.read_run(str(folder)).losses[-1][1]
    seconds = usage.ru_utime + usage.ru_stime
    write_json(path, {"loss": loss, "seconds": seconds})
    print(f"{folder.name:32} loss {loss:.4f}  {seconds:5.0f} CPU seconds", flush=True)


def train_all(jobs, processes):
    """Train what is not trained yet. jobs: a list of (settings, folder)."""
    pool = ThreadPoolExecutor(processes)
    try:
        futures = [pool.submit(train_once, *job) for job in jobs]
        for future in as_completed(futures):
            future.result()
    finally:  # after an error or Ctrl-C, no other run is started
        pool.shutdown(cancel_futures=True)


# --------------------------------------------------------------------------------------------------
# What follows from the results: learning rates, noise, the law, seconds


class Rule:
    """The factor of the learning rates: exp(p0) width^p1 steps^p2, with width and steps relative to
    those of the config.

    In each corner, a parabola c + s x + k x^2 is fitted to the relative loss, where x is the log of
    the factor; its minimum is at x = -s / 2k. Least squares fit k (p0 + ...) to -s / 2: a corner
    whose loss hardly depends on the learning rate has a small k, and so a small weight."""

    def __init__(self, plan):
        self.plan = plan
        runs = plan.corners()
        losses, _ = plan.results(runs)
        losses = losses.reshape(-1, len(RATES) * len(SEEDS))  # one row per corner
        self.corners = runs[::losses.shape[1]]
        self.searched = losses.reshape(-1, len(RATES), len(SEEDS)).mean(axis=2)
        rows = []
        values = []
        for corner, of_corner in zip(self.corners, losses, strict=True):
            guess = math.log(plan.guess(corner.n_embd, corner.steps))
            x = guess + np.log(RATES).repeat(len(SEEDS))
            k, s, _ = np.polyfit(x, of_corner / of_corner.mean(), 2)
            rows.append(max(k, 1e-6) * self.terms(corner.n_embd, corner.steps))
            values.append(-s / 2)
        rows = np.array(rows)
        self.curvature = rows[-1, 0]  # k of the largest run
        self.p, squares, _, _ = np.linalg.lstsq(rows, np.array(values))
        # the variance of s / 2: from the misfit or, if it is larger, from the noise between seeds
        by_seed = losses.reshape(-1, len(SEEDS))
        noise = by_seed.var(axis=1, ddof=1) / by_seed.mean(axis=1) ** 2
        variance = noise.mean() / (4 * len(SEEDS) * np.log(RATES).var() * len(RATES))
        variance = max(variance, squares.sum())
        self.covariance = variance * np.linalg.inv(rows.T @ rows)
        for run in self.corners:
            offset = self.factor(run.n_embd, run.steps) / plan.guess(run.n_embd, run.steps)
            if not min(RATES) <= offset <= max(RATES):
                raise UserError(
                    f"the best learning rates of {run} seem to be {offset:.2g} times the first "
                    f"guess, but only {min(RATES):.2g} to {max(RATES):g} times it were tried: "
                    "change learning_rate in the config, and plan again")

    def terms(self, n_embd, steps):
        width = n_embd / self.plan.target.n_embd
        horizon = steps / self.plan.target.steps
        return np.array([1.0, math.log(width), math.log(horizon)])

    def factor(self, n_embd, steps):
        factor = np.exp(self.terms(n_embd, steps) @ self.p)
        return float(f"{factor:.4g}")  # rounded, because it is part of the hash of a folder

    def penalty(self, run):
        """By which share the loss of a run is higher because its factor is uncertain: k var(x)."""
        terms = self.terms(run.n_embd, run.steps)
        return float(self.curvature * terms @ self.covariance @ terms)


def read_study(plan, fixed_E):
    """What the results of a plan say: its Rule, the runs of its ladder, their CPU seconds, and the
    Fit."""
    rule = Rule(plan)
    runs = plan.ladder(rule.factor)
    losses, seconds = plan.results(runs)
    N, D = plan.shapes(runs[::len(SEEDS)])
    return rule, runs, seconds, Fit(N, D, losses.reshape(-1, len(SEEDS)), fixed_E)


def seconds_terms(N, D):
    """CPU seconds are a sum of four terms: the start of a process, the overhead of the steps, the
    products of matrices, and the evaluations. (..., 4)"""
    return np.stack([np.ones_like(N), D / 1e6, N * D / 1e12, N / 1e6], axis=-1)


def fit_seconds(N, D, seconds):
    """The coefficients (4,) of seconds_terms."""
    terms = seconds_terms(N, D) / seconds[:, None]
    coefficients, _ = non_negative(terms[None], np.ones((1, len(seconds))))
    return coefficients[0]


# --------------------------------------------------------------------------------------------------
# The commands


def read_target(cfg):
    """The Plan, without a ladder, of the large run: a config file and the command line."""
    settings = read_settings(__doc__, TrainConfig, GPTConfig, argv=[cfg.target],
                             expand=expand_names)
    settings.pop("out_dir", None)
    if cfg.n_embd is not None:  # the head size stays the same
        model = build(GPTConfig, settings)
        settings["n_head"] = max(1, cfg.n_embd * model.n_head // model.n_embd)
    for name in ("dataset", "data_dir", "n_layer", "n_embd", "max_iters"):
        if getattr(cfg, name) is not None:
            settings[name] = getattr(cfg, name)
    plan = Plan(cfg.out_dir, settings, identify(settings))
    _, D = plan.shape(plan.target)
    epochs = D / plan.data["train_tokens"]
    if epochs > MOST_EPOCHS:
        raise UserError(f"max_iters={plan.target.steps} is {epochs:.1f} epochs, but the law is "
                        f"about new tokens, and repeated ones are nearly as good only for up to "
                        f"{MOST_EPOCHS} epochs: use fewer steps or a larger text")
    return plan


def identify(settings):
    """What identifies the dataset of a run."""
    train = build(TrainConfig, settings)
    data = load(Path(train.data_dir or DATA) / train.dataset)
    return {"vocab_size": data.padded_vocab_size, "train_tokens": len(data.train),
            "train": hashlib.sha256(data.train).hexdigest(),
            "val": hashlib.sha256(data.val).hexdigest()}


def read_unchanged_plan(out_dir):
    """The plan. Raises UserError if its dataset is a different one now."""
    plan = read_plan(out_dir)
    if identify(plan.settings) != plan.data:
        raise UserError(f"the dataset {plan.train.dataset} has changed since the plan was made: "
                        "plan again")
    return plan


def parse_sizes(text, head):
    """"2x16,2x32" -> [(2, 16), (2, 32)]. head: the channels of a head, which divide each width."""
    sizes = []
    for size in text.split(","):
        if not re.fullmatch("[1-9][0-9]*x[1-9][0-9]*", size):
            raise UserError(f"sizes={text} must be like 2x16,2x32,3x48: layers x channels")
        n_layer, n_embd = map(int, size.split("x"))
        if n_embd % head:
            raise UserError(f"sizes={text}: {n_embd} channels are not a multiple of {head}, the "
                            "head size of the large run")
        sizes.append((n_layer, n_embd))
    if len(set(sizes)) < max(len(sizes), FEWEST_SIZES):
        raise UserError(f"sizes={text} must be at least {FEWEST_SIZES} different sizes")
    return sizes


def plan_ladder(cfg):
    """Choose the largest ladder that fits into the minutes, time for the learning rates included,
    and whose largest run has at most 1 / LEAST_RATIO of the FLOPs of the large run."""
    alone = read_target(cfg)
    sizes = parse_sizes(cfg.sizes, alone.head)
    print("timing four short runs", flush=True)
    probes = [Run(*size, steps, 1.0, SEEDS[0])
              for size in (sizes[0], sizes[FEWEST_SIZES - 1]) for steps in (10, 60)]
    train_all(alone.jobs(probes), 1)
    _, seconds = alone.results(probes)
    coefficients = fit_seconds(*alone.shapes(probes), seconds)
    N, D = alone.shape(alone.target)
    most = 0.0
    chosen = None
    for n_sizes, n_horizons in product(range(FEWEST_SIZES, len(sizes) + 1),
                                       range(FEWEST_HORIZONS, len(HORIZONS) + 1)):
        ladder = Plan(cfg.out_dir, alone.settings, alone.data, sizes[:n_sizes],
                      HORIZONS[:n_horizons])
        shapes = ladder.shapes(ladder.corners() + ladder.ladder(ladder.guess))
        minutes = (seconds_terms(*shapes) @ coefficients).sum() / 60 / cfg.processes
        ratio = N * D / (shapes[0] * shapes[1]).max()
        if most < minutes <= cfg.minutes and ratio >= LEAST_RATIO:
            most = minutes
            chosen = ladder
    if chosen is None:
        raise UserError(f"minutes={cfg.minutes:g} on {cfg.processes} cores is too short for a "
                        f"ladder of {FEWEST_SIZES} sizes and {FEWEST_HORIZONS} horizons, or the "
                        f"large run ({6 * N * D:.1e} FLOPs) has less than {LEAST_RATIO} "
                        "times the FLOPs of its largest run: use more minutes or a larger run")
    if predictions(cfg.out_dir) and read_plan(cfg.out_dir).stored != chosen.stored:
        raise UserError(f"{cfg.out_dir} has predictions of another plan: choose another --out_dir")
    write_json(Path(cfg.out_dir) / "plan.json", chosen.stored)
    runs = [*chosen.ladder(chosen.guess)[::len(SEEDS)], chosen.target]
    N, D = chosen.shapes(runs)
    needed = seconds_terms(N, D) @ coefficients
    print("\n| run | N | D | FLOPs | seconds |\n| --- | --- | --- | --- | --- |")
    for run, n, d, each in zip(runs, N, D, needed, strict=True):
        print(f"| {run} | {n:,.0f} | {d:,.0f} | {6 * n * d:.1e} | {each:.0f} |")
    print(f"\nThe last line is the large run. The ladder has {len(SEEDS)} runs of each other line, "
          f"and {len(chosen.corners())} runs search\nfor learning rates: about {most:.0f} minutes "
          f"on {cfg.processes} quiet cores. Next: python tools/scaling.py run "
          f"--out_dir={shlex.quote(cfg.out_dir)}")


def train_runs(cfg):
    """Train the search for learning rates, the ladder, and the large runs that are predicted."""
    plan = read_unchanged_plan(cfg.out_dir)
    train_all(plan.jobs(plan.corners()), cfg.processes)
    jobs = plan.jobs(plan.ladder(Rule(plan).factor))
    for path in predictions(cfg.out_dir):
        jobs.append((read_json(path)["settings"], path.parent))
    train_all(jobs, cfg.processes)
    print(f"done. Next: python tools/scaling.py fit --out_dir={shlex.quote(cfg.out_dir)}")


def predictions(out_dir):
    return sorted(Path(out_dir).glob("target-*/prediction.json"))


def print_fit(cfg):
    """Print the fit, and how well it predicts the largest run of the ladder without it."""
    plan = read_plan(cfg.out_dir)
    rule, runs, _, found = read_study(plan, cfg.fixed_E)
    law = found.law
    errors = law.loss(found.N, found.D) / found.losses - 1
    print("| search for learning rates | guess x 1/3 | x 1 | x 3 | factor by the rule |")
    print("| --- | --- | --- | --- | --- |")
    for corner, losses in zip(rule.corners, rule.searched, strict=True):
        cells = " | ".join(f"{loss:.4f}" for loss in losses)
        factor = rule.factor(corner.n_embd, corner.steps)
        guess = plan.guess(corner.n_embd, corner.steps)
        print(f"| {corner} | {cells} | {factor:.2f} = guess x {factor / guess:.2f} |")
    print("\n| run | N | D | learning rates | loss | error of the fit |")
    print("| --- | --- | --- | --- | --- | --- |")
    for i, cell in enumerate(runs[::len(SEEDS)]):
        print(f"| {cell} | {found.N[i]:,.0f} | {found.D[i]:,.0f} | x {cell.factor:.2f} | "
              f"{found.losses[i]:.4f} | {errors[i]:+.2%} |")
    print("\n| left out of the fit | loss of the largest run | predicted | error |")
    print("| --- | --- | --- | --- |")
    longest = found.D == found.D.max()
    largest = found.N == found.N.max()
    measured = found.losses[-1]
    for name, left_out in (("the longest horizon", longest), ("the largest size", largest),
                           ("both", longest | largest)):
        kept = ~left_out
        smaller = fit_law(found.N[kept], found.D[kept], found.losses[kept], q=law.q)
        predicted = smaller.loss(found.N[-1], found.D[-1])
        print(f"| {name} | {measured:.4f} | {predicted:.4f} | {predicted / measured - 1:+.2%} |")
    verdict = "exclude" if found.excludes_fixed else "do not exclude"
    if found.noise > 1.5 * found.seed_noise:
        print("\nThe law misses the losses by more than the noise between seeds explains: it does "
              "not describe\nthese runs exactly. The intervals are wider because of that.")
    print(f"\nlearning rates: width^{rule.p[1]:.2f} steps^{rule.p[2]:.2f}, "
          f"{math.exp(rule.p[0]):.2f} times those of the config for its run\n"
          f"noise of one run: {found.noise:.2%} (between seeds {found.seed_noise:.2%})\n"
          "L = E + (x^q + y^q)^(1/q), x: size, y: data")
    for each in found.laws:
        print(f"q = {each.q:g}: {each.described(len(errors))}")
    print(f"q = {law.q:g} describes the ladder best\n"
          f"E fixed: {found.fixed.described(len(errors))}\n"
          f"E is {law.E:.3f} ± {math.sqrt(found.covariance[0, 0]):.3f}; the data {verdict} "
          f"{found.fixed.E:.3f}")
    draw(plan, found)


def predict_target(cfg):
    """Write prediction.json for a large run that has not begun."""
    plan = read_unchanged_plan(cfg.out_dir)
    asked = read_target(cfg)
    for name in asked.settings.keys() | plan.settings.keys():
        value = asked.settings.get(name)
        if name not in ("n_layer", "n_head", "n_embd", "size", "max_iters"):
            if value != plan.settings.get(name):
                raise UserError(f"{name}={value} in {cfg.target}, but {plan.settings.get(name)} in "
                                "the ladder: a prediction holds for the settings of the ladder")
    rule, runs, run_seconds, found = read_study(plan, cfg.fixed_E)
    target = replace(asked.target, factor=rule.factor(asked.target.n_embd, asked.target.steps))
    folder = Path(cfg.out_dir) / f"target-{target}"
    if (folder / "config.json").exists():
        raise UserError(f"{folder} has a run already: a prediction must be made before the run")
    N, D = plan.shape(target)
    flops = 6 * N * D
    loss = float(found.law.loss(N, D))
    fixed_loss = float(found.fixed.loss(N, D))
    penalty = rule.penalty(target)
    deviation = found.deviation(N, D, penalty)
    if found.disagree(N, D, deviation):
        raise UserError(f"the ladder does not determine E: E={found.law.E:.3f} predicts a loss of "
                        f"{loss:.4f}, E={found.fixed.E:.3f} fits as well and predicts "
                        f"{fixed_loss:.4f}, and the 80% interval is only ±{Z80 * deviation:.1%}: "
                        "use a ladder with a larger range")
    coefficients = fit_seconds(*plan.shapes(runs), run_seconds)
    seconds = float(seconds_terms(N, D) @ coefficients)
    low, high = interval(loss, deviation, Z80)
    lowest, highest = interval(loss, deviation, Z95)
    evidence = json.dumps([plan.stored, found.by_seed.tolist()])
    write_json(folder / "prediction.json", {
        "config": cfg.target, "N": N, "D": D, "flops": flops, "loss": loss,
        "interval_80": [low, high], "interval_95": [lowest, highest],
        "noise_of_one_run": found.noise, "deviation_of_learning_rate": penalty,
        "q": found.law.q, "loss_with_fixed_E": fixed_loss, "baselines": found.baselines(flops),
        "seconds": seconds,
        "settings": plan.settings_of(target), "time": time.time(),
        "sha256_of_fit": hashlib.sha256(evidence.encode()).hexdigest()})
    ratio = N * D / (found.N * found.D).max()
    best_N, best_D = found.law.optimal(flops)
    print(f"{target}: N={N:,.0f}, D={D:,.0f}, {flops:.1e} FLOPs, {ratio:.1f} times those of "
          "the ladder's largest run\n"
          f"loss {loss:.4f}; 80%: {low:.4f} to {high:.4f}; 95%: {lowest:.4f} to {highest:.4f}; "
          f"with E fixed {fixed_loss:.4f}\n"
          f"{seconds:.0f} CPU seconds; learning rates x {target.factor:.3f}\n"
          f"compute-optimal for these FLOPs: N={best_N:,.0f}, D={best_D:,.0f}, loss "
          f"{found.law.loss(best_N, best_D):.4f}\n"
          f"written to {folder / 'prediction.json'}. Next: python tools/scaling.py run "
          f"--out_dir={shlex.quote(cfg.out_dir)}")
    draw(plan, found)


def check_target(cfg):
    """Compare a large run with its prediction, and with two simpler predictions."""
    folder = Path(cfg.target)
    prediction = read_json(folder / "prediction.json")
    result = read_json(folder / "result.json")
    trained = plot.read_settings(folder / "config.json")
    settings = prediction["settings"]
    expected = asdict(build(TrainConfig, settings)) | asdict(build(GPTConfig, settings))
    for name, value in expected.items():
        if name not in ("vocab_size", "compile") and trained.get(name, value) != value:
            raise UserError(f"{folder} was trained with {name}={trained[name]}, but the "
                            f"prediction is for {value}: train it again with `run`")
    # train.py writes config.json when a run begins
    early = prediction["time"] - (folder / "config.json").stat().st_mtime
    if early > 0:
        raise UserError(f"the run in {folder} began {early:.0f} s before its prediction was "
                        "written: only a run that begins later can test it")
    loss = result["loss"]
    low, high = prediction["interval_80"]
    lowest, highest = prediction["interval_95"]
    verdict = "a miss"
    if low <= loss <= high:
        verdict = "a hit"
    elif lowest <= loss <= highest:
        verdict = "a miss, but inside the 95% interval"
    predicted = prediction["loss"]
    print(f"loss: predicted {predicted:.4f} ({low:.4f} to {high:.4f}), measured {loss:.4f}: "
          f"{predicted / loss - 1:+.2%}, {verdict}")
    for name, value in prediction["baselines"].items():
        print(f"baseline, {name}: {value:.4f}: {value / loss - 1:+.2%}")
    seconds = result["seconds"]
    error = prediction["seconds"] / seconds - 1
    verdict = "a miss"
    if abs(error) <= HIT_SECONDS:
        verdict = "a hit"
    print(f"CPU seconds: predicted {prediction['seconds']:.0f}, measured {seconds:.0f}: "
          f"{error:+.0%}, {verdict} (within {HIT_SECONDS:.0%})")
    plan = read_plan(folder.parent)
    draw(plan, read_study(plan, cfg.fixed_E)[-1])


def draw(plan, found):
    """The picture. Left: loss against FLOPs, one curve of the law per size. Right: the large runs,
    predicted and measured."""
    path = plan.out_dir / "scaling.png"
    law = found.law
    flops = 6 * found.N * found.D
    with picture(path, 11, 5.5) as figure:
        axes, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        x = np.geomspace(flops.min(), LEAST_RATIO * flops.max(), 100)
        for i, (n_layer, n_embd) in enumerate(plan.sizes):
            chosen = slice(i * len(plan.horizons), (i + 1) * len(plan.horizons))
            N = found.N[chosen][0]
            of_size = x[x >= flops[chosen].min()]
            axes.plot(flops[chosen], found.losses[chosen], "o", color=f"C{i}")
            axes.plot(of_size, law.loss(N, of_size / 6 / N), color=f"C{i}",
                      label=f"{n_layer} layers, {n_embd} channels: N = {N / 1e3:.0f}k")
        best = [law.loss(*law.optimal(each)) for each in x]
        axes.plot(x, best, "--", color="0.4", label="best size for these FLOPs, by the law")
        axes.set(xscale="log", yscale="log", xlabel="FLOPs of training, 6 N D",
                 ylabel="validation loss (nats per token)", title="the ladder and the law")
        axes.yaxis.set_major_formatter("{x:.2f}")
        axes.yaxis.set_minor_formatter("{x:.2f}")
        axes.legend()
        draw_targets(right, plan.out_dir)
        for each in (axes, right):
            each.grid(alpha=0.3, which="both")
    print(f"picture  {path}", file=sys.stderr)


def draw_targets(axes, out_dir):
    """The large runs, one column each."""
    labels = []
    for i, file in enumerate(predictions(out_dir)):
        prediction = read_json(file)
        labels.append(file.parent.name.removeprefix("target-").replace("-", "\n") + " steps")
        axes.plot([i, i], prediction["interval_95"], color="black", linewidth=1)
        axes.plot([i, i], prediction["interval_80"], color="0.6", linewidth=7,
                  solid_capstyle="butt")
        axes.plot(i, prediction["loss"], "_", color="black", markersize=14)
        axes.plot([i, i], list(prediction["baselines"].values()), "x", color="tab:brown")
        if (file.parent / "result.json").exists():
            loss = read_json(file.parent / "result.json")["loss"]
            axes.plot(i, loss, "*", color="red", markersize=12)
    axes.plot([], [], color="0.6", linewidth=7, label="predicted, 80%")
    axes.plot([], [], color="black", linewidth=1, label="95%")
    axes.plot([], [], "*", color="red", markersize=12, label="measured")
    axes.plot([], [], "x", color="tab:brown", label="baselines")
    axes.set(xlim=(-0.6, max(len(labels), 1) - 0.4), title="large runs")
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.legend()


COMMANDS = {"plan": plan_ladder, "run": train_runs, "fit": print_fit,
            "predict": predict_target, "check": check_target}


def main(argv=None):
    _, cfg = configure(__doc__, ScalingConfig, argv=argv, positional=["command", "target"])
    if cfg.target is None and cfg.command in ("plan", "predict", "check"):
        raise UserError(f"{cfg.command} needs the large run: plan and predict its config file, "
                        "check its folder (see --help)")
    COMMANDS[cfg.command](cfg)


if __name__ == "__main__":
    with one_line_errors():
        main()
