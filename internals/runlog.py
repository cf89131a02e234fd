"""Logging: the lines that a run prints, metrics.jsonl, config.json, loss.png, and the tracker.

A RunLog makes no decisions about training. It also holds the lock that prevents a second run in the
same folder.
"""

import errno
import importlib
import json
import math
import os
import shlex
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from internals import checkpoint
from internals.devices import mfu, num_params, peak_flops, peak_memory
from internals.errors import UserError, give_up, reason, warn
from internals.files import replacing
from internals.plots import picture
from prepare import tokenizer_from_meta

DRY_STEPS = 3  # of a dry run
# errors of disks that cannot lock files, as some network disks; 524 is Linux's internal ENOTSUPP
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO, 524)
# the files of a run in out_dir, in the order in which keep_previous moves them
FILES = ("best.pt", "metrics.jsonl", "loss.png", "config.json", "snapshots", "ckpt.pt")


class RunLog:
    """The log of one run. Only the master process prints and writes, and with eval_only or dry_run
    it writes nothing. A RunLog is a context manager, which closes the tracker and releases the
    lock. It raises UserError at the end if a part of the output was lost.

    metrics: the lines of metrics.jsonl as dicts; an empty list in the other processes.
    """

    def __init__(self, cfg, world):
        self.cfg, self.world = cfg, world
        self.out_dir = Path(cfg.out_dir)
        self.writes = world.is_master and not (cfg.eval_only or cfg.dry_run)
        self.metrics, self.tracker, self.lock = [], None, None
        self.tokenizer = None  # for samples; None: this process shows none
        self.step_seconds = self.evaluation_seconds = 0.0  # of the last step and evaluation
        self.mean_seconds = None  # of a step, averaged over the last lines
        self.plotted_step = None
        self.output_error = None  # the OSError that ended the output
        self.failed = set()  # the parts of the log that have failed

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.tracker:
            with self.optional(self.cfg.tracker):
                self.tracker.finish()
        if self.lock:
            self.lock.release()
        if self.output_error and kind is None:
            raise UserError("the run is done, but its output could not be printed completely "
                            f"({reason(self.output_error)})")

    def say(self, text):
        """Print a line in the master process. If that fails, because the reader of a pipe has
        exited, a terminal was closed or a disk is full, the run continues without output."""
        if not self.world.is_master:
            return
        try:
            print(text, flush=True)
        except OSError as error:
            self.output_error = error
            give_up(sys.stdout)
            warn(f"the output cannot be printed ({reason(error)}); training continues without it")

    @contextmanager
    def optional(self, part):
        """A context manager for a part of the log, such as the picture: an exception in its body is
        a warning, printed once, and never the end of a run."""
        try:
            yield
        except Exception as error:
            if part not in self.failed:
                warn(f"{part} failed ({type(error).__name__}: {reason(error)}); training continues")
            self.failed.add(part)

    def begin(self, run, data, is_compiled):
        """Print a summary of the run and prepare its files: a new run moves the files of an earlier
        run to a subfolder, and a resumed run cuts metrics.jsonl at its checkpoint and removes the
        snapshots after it.

        run: the Run. data: the Dataset. Raises UserError if another run is writing to the folder,
        or if the tracker is not installed.
        """
        cfg = self.cfg
        c = run.model.config
        device = self.world.device
        self.model = run.model
        how = "compiled" if is_compiled else "eager"
        if self.writes:
            found = {"device": str(device), "dtype": run.dtype, "compile": how,
                     "world_size": self.world.size, "process": os.getpid(),
                     "command": shlex.join(sys.argv), "torch": torch.__version__}
            settings = asdict(cfg) | asdict(c) | found
            self.take_lock()
            if cfg.wandb_log:
                self.start_tracker(settings)
            if cfg.init_from != "resume":
                keep_previous(self.out_dir, self.say)
            elif math.isinf(run.best_loss):  # evaluations use other sequences than before
                checkpoint.keep_best(self.out_dir, run.step)
            checkpoint.remove_snapshots_after(self.out_dir, run.step)
            due = run.step % cfg.eval_interval == 0 or run.step == cfg.max_iters
            self.metrics = read_metrics(self.out_dir / "metrics.jsonl", run.step, due)
            with replacing(self.out_dir / "metrics.jsonl") as temporary:
                lines = "".join(json.dumps(entry) + "\n" for entry in self.metrics)
                temporary.write_text(lines, encoding="utf-8")
            with replacing(self.out_dir / "config.json") as temporary:
                temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        self.step_tokens = cfg.gradient_accumulation_steps * cfg.batch_size * c.block_size
        self.epoch_tokens = len(data.train)
        threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        epochs = cfg.max_iters * self.step_tokens / len(data.train)
        self.say(f"{self.world.size} x {device}{threads}, {run.dtype}, {how}")
        self.say(data.summary())
        self.say(f"{num_params(run.model) / 1e6:.2f}M parameters: {c.n_layer} layers, {c.n_head} "
                 f"heads, {c.n_embd} channels, context of {c.block_size} tokens")
        self.say(f"{cfg.max_iters:,} steps ({cfg.warmup_steps} of warmup) of {self.step_tokens:,} "
                 f"tokens: {epochs:.2f} epochs")
        if run.step:
            best = ""
            if math.isfinite(run.best_loss):
                best = f"; the best validation loss so far is {run.best_loss:.4f}"
            self.say(f"resuming from step {run.step:,}{best}")
        if run.step >= cfg.max_iters > 0 and not cfg.eval_only:
            self.say(f"nothing left to train: the run has reached max_iters={cfg.max_iters}; to "
                     "continue it, set a larger --max_iters")
        self.peak = peak_flops(device, run.dtype)
        self.started = self.line_time = time.perf_counter()
        self.line_step = run.step
        self.tokenizer = self.find_tokenizer(data.meta)

    def start_tracker(self, settings):
        """Begin a run of wandb, or of trackio, which has the same interface. Raises UserError if
        the package is missing."""
        cfg = self.cfg
        try:
            tracker = importlib.import_module(cfg.tracker)
        except ImportError:
            raise UserError(f"wandb_log=True needs an additional package: pip install {cfg.tracker}"
                            ) from None
        with self.optional(cfg.tracker):  # the user may not be logged in
            tracker.init(project=cfg.wandb_project or cfg.dataset,
                         name=cfg.wandb_run_name or cfg.out_dir, config=settings)
            self.tracker = tracker

    def take_lock(self):
        """Prevent other runs in out_dir. The operating system releases the lock when this process
        ends, even if it is killed."""
        self.out_dir.mkdir(parents=True, exist_ok=True)
        # after a restart by torchrun, the old processes may take a while to stop
        patience = 60 if self.world.is_distributed else 0
        lock = FileLock(self.out_dir / ".lock")
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            other = ""
            with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
                text = (self.out_dir / "config.json").read_text(encoding="utf-8")
                other = f" (process {json.loads(text)['process']})"
            raise UserError(f"another run{other} is writing to {self.out_dir}: wait for it, or "
                            "choose another out_dir") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warn(f"the disk of {self.out_dir} has no locks ({reason(error)}): make sure that no "
                 "other run writes to this folder")
            return
        self.lock = lock

    def label(self, step):
        return f"step {step:{len(str(self.cfg.max_iters))}}/{self.cfg.max_iters}"

    def record(self, **entry):
        """Add a line to metrics.jsonl. NaN and infinity become null, because JSON lacks them."""
        if not self.world.is_master:
            return
        entry = {k: v if math.isfinite(v) else None for k, v in entry.items()}
        self.metrics.append(entry)
        if self.writes:
            with open(self.out_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        if self.tracker:
            with self.optional(self.cfg.tracker):
                self.tracker.log(entry, step=entry["step"])

    def evaluation(self, step, losses, better):
        """Log the losses {"train": ..., "val": ...} of an evaluation, in nats per token."""
        if self.cfg.dry_run:  # it is an evaluation of one batch
            return
        perplexity = math.exp(min(losses["val"], 99))
        columns = [self.label(step), f"train {losses['train']:.4f}", f"val {losses['val']:.4f}",
                   f"perplexity {perplexity:.2f}"]
        if better:
            columns.append("best")
        self.say(" | ".join(columns))
        self.record(step=step, train_loss=losses["train"], val_loss=losses["val"])

    def find_tokenizer(self, meta):
        """The tokenizer for the samples of this process; None if this process shows no samples, or
        if the tables of the tokenizer cannot be downloaded. Training does not need it."""
        if not self.world.is_master or not self.cfg.sample_tokens or self.cfg.dry_run:
            return None
        try:
            return tokenizer_from_meta(meta)
        except UserError as error:
            warn(f"training shows no samples: {error}")
            return None

    def sample(self, text):
        for line in text.strip().splitlines():
            self.say("    " + line)

    def after_evaluation(self, step):
        """Called after an evaluation, its checkpoints and its sample: plots the losses, and times
        the steps that follow."""
        if step > 0:
            self.plot(step)
        now = time.perf_counter()
        steps_seconds = (step - self.line_step) * self.step_seconds  # of steps not yet logged
        self.evaluation_seconds = max(0.0, now - self.line_time - steps_seconds)
        self.line_step, self.line_time = step, now

    def plot(self, step):
        """Write loss.png, unless it shows this step already."""
        if self.writes and self.plotted_step != step:
            with self.optional("loss.png"):
                draw_losses(self.metrics, self.out_dir / "loss.png")
            self.plotted_step = step

    def step(self, step, lr, loss, norm, n_skipped):
        """Log a training step: its learning rate, loss and gradient norm, and the number of
        consecutive skipped updates."""
        cfg, now = self.cfg, time.perf_counter()
        seconds = (now - self.line_time) / (step - self.line_step)
        self.line_step, self.line_time, self.step_seconds = step, now, seconds
        if self.mean_seconds is None:
            self.mean_seconds = seconds
        self.mean_seconds += 0.1 * (seconds - self.mean_seconds)
        speed = self.step_tokens / seconds
        columns = [self.label(step), f"loss {loss:.4f}", f"lr {lr:.1e}", f"norm {norm:.2f}",
                   f"{seconds * 1e3:.0f} ms", f"{short(speed)} tok/s"]
        if self.peak:
            columns.append(f"mfu {mfu(self.model, speed, self.peak, self.world.size):.1%}")
        evaluations = math.ceil(cfg.max_iters / cfg.eval_interval) - step // cfg.eval_interval
        left = (cfg.max_iters - step) * self.mean_seconds + evaluations * self.evaluation_seconds
        columns.append(f"eta {duration(left)}")
        if n_skipped:
            columns.append(f"not finite: skipped {n_skipped:.0f}")
        self.say(" | ".join(columns))
        self.record(step=step, loss=loss, lr=lr, norm=norm, ms=seconds * 1e3, tok_per_s=speed)

    def end(self, run, stopped, out_of_patience):
        """Print how the run ended, the files that it wrote, and the next command."""
        if self.cfg.dry_run:
            return self.end_dry_run()
        step = run.step
        folder = shlex.quote(str(self.out_dir))
        if stopped and not step:  # step 0 is not saved
            self.say("stopped by a signal before the first step")
        elif stopped and self.writes:
            command = f"python train.py --init_from=resume --out_dir={folder}"
            if self.world.is_distributed:
                command = "the same command with --init_from=resume"
            self.say(f"stopped by a signal; step {step:,} is saved; to resume: {command}")
        elif stopped:
            self.say("stopped by a signal")
        elif self.writes:
            self.say(f"done in {duration(time.perf_counter() - self.started)}: the best validation "
                     f"loss is {run.best_loss:.4f}, at step {run.best_step:,}")
        if out_of_patience and not stopped:
            self.say(f"the validation loss did not improve in the last {self.cfg.patience} "
                     "evaluations")
        if not self.writes or not step:
            return
        self.plot(step)
        checkpoints = [name for name in ("best.pt", "ckpt.pt") if (self.out_dir / name).exists()]
        self.say("  checkpoints  " + ", ".join(str(self.out_dir / name) for name in checkpoints))
        self.say(f"  metrics      {self.out_dir / 'metrics.jsonl'}")
        self.say(f"  picture      {self.out_dir / 'loss.png'}")
        self.say(f"  sample       python sample.py --out_dir={folder}")
        self.say(f"  look inside  python tools/look.py --out_dir={folder}")

    def end_dry_run(self):
        """Print what the run would take, from its first steps."""
        cfg, device = self.cfg, self.world.device
        speeds = [entry["ms"] / 1e3 for entry in self.metrics[1:]]  # the first step is slower
        if not speeds:
            return self.say("dry run: fewer than two steps were trained, so there is no estimate")
        seconds = sum(speeds) / len(speeds)
        weights = sum(p.numel() for p in self.model.parameters())
        # float32 each: weight, gradient, and AdamW's two moments (Muon has one)
        memory = f"at most {16 * weights / 1e9:.2f} GB for weights, gradients and optimizer"
        if peak := peak_memory(device):
            memory += f"; {peak / 1e9:.2f} GB at the peak of these steps"
        evaluations = cfg.max_iters // cfg.eval_interval + 1
        evaluation = self.evaluation_seconds * cfg.eval_iters  # it was of one batch
        total = cfg.max_iters * seconds + evaluations * evaluation
        self.say("dry run: nothing was written")
        self.say(f"  parameters  {weights:,}")
        self.say(f"  memory      {memory}")
        self.say(f"  data        {self.epoch_tokens:,} tokens per epoch, "
                 f"{self.epoch_tokens / self.step_tokens:,.0f} steps")
        self.say(f"  speed       {seconds * 1e3:.0f} ms per step, "
                 f"{short(self.step_tokens / seconds)} tok/s")
        self.say(f"  time        {duration(total)}: {cfg.max_iters:,} steps, and {evaluations:,} "
                 f"evaluations of {duration(evaluation)}")


def shortened(cfg, first_step):
    """The settings of a dry run: three steps and two short evaluations."""
    last_step = min(first_step + DRY_STEPS, cfg.max_iters)
    return replace(cfg, max_iters=last_step, eval_interval=10**9, eval_iters=1, log_interval=1)


def keep_previous(out_dir, say):
    """Move the files of an earlier run from out_dir to out_dir/previous-1, previous-2, ...; ckpt.pt
    is moved last, so that init_from=auto still finds the run if this is interrupted."""
    left = sorted(out_dir.glob("best-until-*.pt"))
    left += [out_dir / name for name in FILES if (out_dir / name).exists()]
    if not left:
        return
    number = 1
    while (out_dir / f"previous-{number}").exists():
        number += 1
    folder = out_dir / f"previous-{number}"
    folder.mkdir()
    for path in left:
        path.rename(folder / path.name)
    say(f"the earlier run in {out_dir} is kept in {folder}")


def read_metrics(path, step, due):
    """The lines of metrics.jsonl that a run resumed at `step` keeps. Later lines come from a run
    that was killed before its next checkpoint; their steps will be trained and logged again. The
    evaluation at `step` itself will be logged again if it is due."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError):  # a kill can cut the last line in two
            entry = json.loads(line)
            if is_entry(entry):
                entries.append(entry)
    return [m for m in entries
            if m["step"] < step or (m["step"] == step and ("loss" in m or not due))]


def is_entry(entry):
    """Whether a line is one of metrics.jsonl: a step, and numbers that can be drawn or null."""
    return isinstance(entry, dict) and type(entry.get("step")) is int and all(
        value is None or (type(value) in (int, float) and abs(value) < 1e300)
        for value in entry.values())


def draw_losses(metrics, path):
    """loss.png: the lines of metrics.jsonl as curves."""
    with picture(path, 8, 4.5) as figure:
        axes = figure.subplots()
        drawn = []
        for key, label, style in (
                ("loss", "training loss (one batch)",
                 {"color": "tab:blue", "alpha": 0.3, "linewidth": 0.8}),
                ("train_loss", "training loss", {"color": "tab:blue", "marker": "."}),
                ("val_loss", "validation loss", {"color": "tab:orange", "marker": "."})):
            points = [(m["step"], m[key]) for m in metrics if m.get(key) is not None]
            drawn += points
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **style)
            if points and key == "val_loss":
                best = min(points, key=lambda point: point[1])
                axes.plot(*best, "o", color="tab:orange", label=f"best: {best[1]:.4f}")
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.set_title(path.parent.name, parse_math=False)  # a folder's name may have a $
        axes.grid(alpha=0.3)
        cut_beginning(axes, [drawn])
        if drawn:
            axes.legend()


def cut_beginning(axes, runs):
    """End the y axis at the highest loss after the first tenth of each run. The loss of a new model
    is so high that the rest of the curve would look flat. A note says what is cut.

    runs: a list of (step, loss) for each run in `axes`."""
    points = [point for run in runs for point in run]
    later = []
    for run in runs:
        last_step = max((step for step, _ in run), default=0)
        later += [loss for step, loss in run if 10 * step > last_step]
    if not later:
        return
    step, highest = max(points, key=lambda point: point[1])
    top, bottom = max(later), min(loss for _, loss in points)
    if highest - bottom <= 1.5 * (top - bottom):
        return  # the curve is readable as it is
    margin = 0.05 * (top - bottom) or 0.05 * abs(top) or 1.0
    axes.set_ylim(bottom - margin, top + margin)
    axes.set_title(f"↑ {highest:.2f} at step {step:,}", loc="left", fontsize="medium")


def short(number):
    """528123.0 -> '528k', 24140.0 -> '24.1k'"""
    if number < 1e3:
        return f"{number:.0f}"
    scaled, unit = (number / 1e6, "M") if number >= 1e6 else (number / 1e3, "k")
    return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.1f}{unit}"


def duration(seconds):
    """3725 -> '1h 02m', 147 -> '2m 27s'"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {seconds:02d}s"
