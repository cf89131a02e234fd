"""Logging: the lines that a run prints, metrics.jsonl, config.json, loss.png, and the tracker.

A RunLog reports a run. It prepares the files in its folder, and decides nothing about training.
"""

import importlib
import json
import math
import os
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from internals import cpu, outdir
from internals.devices import memory_bytes, mfu, num_params, peak_flops, peak_memory
from internals.errors import UserError, reason, say, warn
from internals.plots import best_evaluation, draw_losses
from internals.words import duration


def open_log(run, cfg, data, world):
    """The log of a run: a RunLog, or a DryRunLog if cfg.dry_run is set."""
    if cfg.dry_run:
        return DryRunLog(run, cfg, data, world)
    return RunLog(run, cfg, data, world)


class RunLog:
    """The log of a Run. Only the master process prints and writes, and with eval_only or dry_run it
    writes nothing. A RunLog is a context manager, which closes the tracker.

    metrics: the lines of metrics.jsonl as dicts; an empty list in the other processes.
    """

    def __init__(self, run, cfg, data, world):
        """Prepare the files of the run and print its summary. Raises UserError if the package of
        the tracker is missing."""
        self.run = run
        self.cfg = cfg
        self.world = world
        self.out_dir = Path(cfg.out_dir)
        self.writes = outdir.writes(cfg, world)
        self.metrics = []
        self.tracker = None
        self.plotted_step = None
        self.failed = set()  # the parts of the log that have failed
        if self.writes:
            self.open_files()
        self.data = data
        self.step_tokens = (cfg.gradient_accumulation_steps * cfg.batch_size
                            * run.model.config.block_size)
        self.print_summary(data)
        self.peak = peak_flops(world.device, run.dtype)
        self.step_seconds = 0.0  # of the last step
        self.mean_seconds = None  # of a step, averaged over the last lines
        self.evaluation_seconds = 0.0  # of the last evaluation
        self.started = time.perf_counter()
        self.line_time = self.started  # of the last line
        self.line_step = run.step

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.tracker:
            with self.optional(self.cfg.tracker):
                self.tracker.finish()

    def say(self, text):
        """Print a line in the master process."""
        if self.world.is_master:
            say(text)

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

    def open_files(self):
        """Prepare the files in the folder, and begin a run of the tracker."""
        found = {"device": str(self.world.device), "dtype": self.run.dtype, "compile": self.run.how,
                 "world_size": self.world.size, "process": os.getpid(),
                 "command": shlex.join(sys.argv), "torch": torch.__version__}
        settings = asdict(self.cfg) | asdict(self.run.model.config) | found
        if self.cfg.wandb_log:
            self.start_tracker(settings)
        self.metrics = outdir.prepare_folder(self.out_dir, self.run, self.cfg, settings, self.say)

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

    def print_summary(self, data):
        cfg = self.cfg
        run = self.run
        c = run.model.config
        device = self.world.device
        threads = ""
        if device.type == "cpu":
            threads = f", {torch.get_num_threads()} threads"
        epochs = cfg.max_iters * self.step_tokens / len(data.train)
        self.say(f"{self.world.size} x {device}{threads}, {run.dtype}, {run.how}")
        faster = cpu.replaced(run.model)
        if faster:
            self.say(f"internals/cpu.py replaces {', '.join(faster)}")
        self.say(data.summary())
        self.say(f"{num_params(run.model) / 1e6:.2f}M parameters: {c.n_layer} layers, {c.n_head} "
                 f"heads, {c.n_embd} channels, context of {c.block_size} tokens")
        warmup = cfg.warmup_steps if cfg.decay_lr else 0
        self.say(f"{cfg.max_iters:,} steps ({warmup} of warmup) of {self.step_tokens:,} "
                 f"tokens: {epochs:.2f} epochs")
        if cfg.decay_lr and cfg.min_lr == 0 and cfg.decay_steps < cfg.max_iters:
            self.say(f"the learning rate is 0 from step {cfg.decay_steps:,} on: set "
                     f"--lr_decay_iters={cfg.max_iters}")
        if run.step:
            best = ""
            if math.isfinite(run.best_loss):
                best = f"; the best validation loss so far is {run.best_loss:.4f}"
            self.say(f"resuming from step {run.step:,}{best}")
        if run.step >= cfg.max_iters > 0 and not cfg.eval_only:
            self.say(f"nothing left to train: the run has reached max_iters={cfg.max_iters}; to "
                     "continue it, set a larger --max_iters")

    def label(self, step):
        return f"step {step:{len(str(self.cfg.max_iters))}}/{self.cfg.max_iters}"

    def record(self, **entry):
        """Add a line to metrics.jsonl. NaN and infinity become null, because JSON lacks them."""
        if not self.world.is_master:
            return
        entry = {k: v if math.isfinite(v) else None for k, v in entry.items()}
        if self.tracker:
            with self.optional(self.cfg.tracker):
                self.tracker.log(entry, step=entry["step"])
        if self.has_already(entry):
            return
        self.metrics.append(entry)
        if self.writes:
            with (self.optional("metrics.jsonl"),
                  open(self.out_dir / "metrics.jsonl", "a", encoding="utf-8") as file):
                file.write(json.dumps(entry) + "\n")

    def has_already(self, entry):
        """Whether the metrics have the line of an evaluation already: a resumed run evaluates again
        at the step of its checkpoint."""
        if entry["step"] != self.run.first_step:
            return False
        for old in reversed(self.metrics):
            if old["step"] < entry["step"] or "restart" in old:
                return False
            if old.keys() == entry.keys():
                return True
        return False

    def evaluation(self, step, losses, better):
        """Log the losses {"train": ..., "val": ...} of an evaluation, in nats per token."""
        if math.isinf(self.run.best_loss) and best_evaluation(self.metrics):
            self.record(step=step, restart=1)  # the earlier losses are of other sequences
        perplexity = math.exp(min(losses["val"], 99))
        columns = [self.label(step), f"train {losses['train']:.4f}", f"val {losses['val']:.4f}",
                   f"perplexity {perplexity:.2f}"]
        if better:
            columns.append("best")
        self.say(" | ".join(columns))
        self.record(step=step, train_loss=losses["train"], val_loss=losses["val"])

    def sample(self, text):
        for line in text.strip().splitlines():
            self.say("    " + line)

    def after_evaluation(self, step):
        """Called after an evaluation, its checkpoints and its sample: plots the losses, and times
        the steps that follow."""
        if step > 0:
            self.plot(step)
        now = time.perf_counter()
        # of the steps since the last line
        steps_seconds = (step - self.line_step) * self.step_seconds
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
            columns.append(f"mfu {mfu(self.run.model, speed, self.peak, self.world.size):.1%}")
        evaluations = math.ceil(cfg.max_iters / cfg.eval_interval) - step // cfg.eval_interval
        left = (cfg.max_iters - step) * self.mean_seconds + evaluations * self.evaluation_seconds
        columns.append(f"eta {duration(left)}")
        if n_skipped:
            columns.append(f"not finite: skipped {n_skipped:.0f}")
        self.say(" | ".join(columns))
        self.record(step=step, loss=loss, lr=lr, norm=norm, ms=seconds * 1e3, tok_per_s=speed)

    def end(self, stopped, out_of_patience):
        """Print how the run ended, the files that it wrote, and the next command."""
        run = self.run
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
            best = ""
            if math.isfinite(run.best_loss):
                best = (f": the best validation loss is {run.best_loss:.4f}, at step "
                        f"{run.best_step:,}")
            self.say(f"done in {duration(time.perf_counter() - self.started)}{best}")
        if out_of_patience and not stopped:
            self.say(f"the validation loss has not improved since step {run.best_step:,}, for "
                     f"patience x eval_interval = {self.cfg.patience * self.cfg.eval_interval:,} "
                     "steps or more")
        if not self.writes or not step:
            return
        self.plot(step)
        checkpoints = [name for name in ("best.pt", "ckpt.pt") if (self.out_dir / name).exists()]
        self.say("  checkpoints  " + ", ".join(str(self.out_dir / name) for name in checkpoints))
        self.say(f"  metrics      {self.out_dir / 'metrics.jsonl'}")
        self.say(f"  picture      {self.out_dir / 'loss.png'}")
        if self.data.meta["tokenizer"] != "none":  # its ids have a text
            self.say(f"  sample       python sample.py --out_dir={folder}")
            self.say(f"  look inside  python tools/look.py --out_dir={folder}")


class DryRunLog(RunLog):
    """The log of a run with dry_run=True, of which only a few steps are trained: its end prints
    what the whole run would take. Its cfg has the settings of the whole run."""

    def evaluation(self, step, losses, better):
        """Nothing is logged: it is an evaluation of one batch."""

    def end(self, stopped, out_of_patience):
        cfg, device = self.cfg, self.world.device
        times = [entry["ms"] / 1e3 for entry in self.metrics[1:]]  # the first step is slower
        times = times[-2:]
        if not times:
            return self.say("dry run: fewer than two steps were trained, so there is no estimate")
        seconds = sum(times) / len(times)
        weights = sum(p.numel() for p in self.run.model.parameters())
        # float32 each: weight, gradient, and AdamW's two moments (Muon has one)
        memory = f"at most {16 * weights / 1e9:.2f} GB for weights, gradients and optimizer"
        if peak := peak_memory(device):
            memory += f"; {peak / 1e9:.2f} GB at the peak of these steps"
        larger = None
        if device.type == "cuda":
            larger = larger_batch(
                cfg, self.world.size, 16 * weights, peak, memory_bytes(device))
        evaluations = math.ceil(cfg.max_iters / cfg.eval_interval) + 1
        batches = 0.0  # of an evaluation
        measured = 0.0  # of that of the dry run, with at most one of each split
        for ids in (self.data.train, self.data.val):
            available = (len(ids) - 1) // self.run.model.block_size / cfg.batch_size
            batches += min(cfg.eval_iters, available)
            measured += min(1, available)
        evaluation = self.evaluation_seconds * batches / measured
        total = cfg.max_iters * seconds + evaluations * evaluation
        self.say(f"dry run: nothing was written to {self.out_dir}")
        self.say(f"  parameters  {weights:,}")
        self.say(f"  memory      {memory}")
        if larger:
            self.say(f"  faster      {larger}")
        epoch_tokens = len(self.data.train)
        self.say(f"  data        {epoch_tokens:,} tokens per epoch, "
                 f"{epoch_tokens / self.step_tokens:,.0f} steps")
        self.say(f"  speed       {seconds * 1e3:.0f} ms per step, "
                 f"{short(self.step_tokens / seconds)} tok/s")
        self.say(f"  time        {duration(total)}: {cfg.max_iters:,} steps, and {evaluations:,} "
                 f"evaluations of {duration(evaluation)}")


def larger_batch(cfg, processes, fixed, peak, available):
    """Settings with the largest micro-batch that takes at most 90% of the memory, for the same
    number of tokens per step; None if that is the present one. Larger matrix products are faster.

    fixed: bytes that do not depend on the micro-batch. peak: bytes that the present one takes.
    available: bytes of the device."""
    per_sequence = (peak - fixed) / cfg.batch_size
    best = None
    for parts in range(2, cfg.gradient_accumulation_steps // processes + 1):
        needed = fixed + per_sequence * cfg.batch_size * parts
        if cfg.gradient_accumulation_steps % (parts * processes) == 0 and needed < 0.9 * available:
            best = (f"--batch_size={parts * cfg.batch_size} --gradient_accumulation_steps="
                    f"{cfg.gradient_accumulation_steps // parts} would take {needed / 1e9:.1f} GB")
    return best


def short(number):
    """528123.0 -> '528k', 24140.0 -> '24.1k'"""
    if number < 1e3:
        return f"{number:.0f}"
    scaled, unit = (number / 1e6, "M") if number >= 1e6 else (number / 1e3, "k")
    return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.1f}{unit}"
