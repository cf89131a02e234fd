"""The log of a stage (stages/): the files and lines of a run, with the values of that stage."""

import shlex
import time
from pathlib import Path

from internals import checkpoint
from internals.devices import num_params
from internals.errors import UserError
from internals.plots import picture
from internals.runlog import RunLog
from internals.signals import Stopped
from internals.words import duration


class StageLog(RunLog):
    """A RunLog whose values, such as reward and KL, are chosen by the stage. The files are as in
    train.py; the picture has one panel for each of `panels`, {title: names of values}."""

    def __init__(self, run, cfg, world, panels):
        """Prepare the files of the run and print its summary."""
        if world.is_distributed:
            raise UserError("the stages run in one process: start them without torchrun")
        self.run = run
        self.cfg = cfg
        self.world = world
        self.panels = panels
        self.out_dir = Path(cfg.out_dir)
        self.writes = True
        self.metrics = []
        self.tracker = None
        self.output_error = None
        self.failed = set()
        self.open_files()
        self.say(f"{num_params(run.model) / 1e6:.2f}M parameters, {cfg.max_iters:,} steps of "
                 f"{cfg.batch_size} answers")
        if run.step:
            self.say(f"resuming from step {run.step:,}")
        self.started = time.perf_counter()
        self.line_time = self.started  # of the last line
        self.line_step = run.step

    def step(self, step, values):
        """Log the values of a step, {name: number}, if the step is a multiple of log_interval."""
        if step % self.cfg.log_interval == 0:
            seconds = (time.perf_counter() - self.line_time) / (step - self.line_step)
            self.values(step, values, f"{1e3 * seconds:.0f} ms")

    def evaluation(self, step, values):
        self.values(step, values)

    def values(self, step, values, *more):
        """Print and record the values of a step. more: other columns of the line."""
        columns = [f"{name} {value:.4g}" for name, value in values.items()]
        self.say(" | ".join([self.label(step), *columns, *more]))
        self.record(step=step, **values)
        self.line_step = step
        self.line_time = time.perf_counter()

    def save(self, run, meta):
        checkpoint.write(run.checkpoint(self.cfg, meta), self.out_dir / "ckpt.pt")
        run.saved_step = run.step

    def finish(self, run, meta, signals):
        """Save the last step, draw the picture, and print the next command. Raises Stopped if a
        signal has ended the run."""
        if run.saved_step != run.step:
            self.save(run, meta)
        with self.optional("picture.png"):
            draw(self.metrics, self.panels, self.out_dir / "picture.png")
        folder = shlex.quote(str(self.out_dir))
        if signals.arrived:
            self.say(f"stopped by a signal; step {run.step:,} is saved; to resume: the same "
                     "command with --init_from=resume")
            raise Stopped(signals.received)
        self.say(f"done in {duration(time.perf_counter() - self.started)}: {folder} has ckpt.pt, "
                 "metrics.jsonl and picture.png")
        self.say(f"  look inside  python tools/look.py --out_dir={folder}")


def draw(metrics, panels, path):
    """The values of a run by step, one panel for each title in panels, {title: names}."""
    with picture(path, 4 * len(panels), 3.2) as figure:
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, title in zip(all_axes, panels, strict=True):
            for name in panels[title]:
                entries = [entry for entry in metrics if entry.get(name) is not None]
                if entries:
                    steps = [entry["step"] for entry in entries]
                    axes.plot(steps, [entry[name] for entry in entries], marker=".", label=name)
                    axes.legend()
            axes.set(title=title, xlabel="step")
            axes.grid(alpha=0.3)
