"""The log of a stage (stages/): the files and lines of a run, with the values of that stage."""

import json
import shlex
import sys
import time
from dataclasses import asdict

from internals import checkpoint
from internals.devices import num_params
from internals.errors import UserError
from internals.files import replacing
from internals.plots import picture
from internals.runlog import RunLog, duration, keep_previous, read_metrics
from internals.signals import Stopped


class StageLog(RunLog):
    """A RunLog whose values, such as reward and KL, are chosen by the stage. The folder, its lock
    and its files are as in train.py; the picture has one panel for each of `panels`, {title: names
    of values}."""

    def __init__(self, cfg, world, panels):
        super().__init__(cfg, world)
        if world.is_distributed:
            raise UserError("the stages run in one process: start them without torchrun")
        self.panels = panels

    def __enter__(self):
        self.take_lock()
        return self

    def begin_stage(self, run):
        """Prepare the files: a new run moves those of an earlier one to a subfolder, a resumed one
        cuts metrics.jsonl at its checkpoint."""
        cfg = self.cfg
        if cfg.init_from != "resume":
            keep_previous(self.out_dir, self.say)
        is_due = run.step % cfg.eval_interval == 0 or run.step == cfg.max_iters
        path = self.out_dir / "metrics.jsonl"
        self.metrics = read_metrics(path, run.step, is_due)
        with replacing(path) as temporary:
            lines = "".join(json.dumps(entry) + "\n" for entry in self.metrics)
            temporary.write_text(lines, encoding="utf-8")
        with replacing(self.out_dir / "config.json") as temporary:
            settings = asdict(cfg) | {"command": shlex.join(sys.argv)}
            temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        self.say(f"{num_params(run.model) / 1e6:.2f}M parameters, {cfg.max_iters:,} steps of "
                 f"{cfg.batch_size} answers")
        if run.step:
            self.say(f"resuming from step {run.step:,}")
        self.started = time.perf_counter()
        self.line_time = self.started
        self.line_step = run.step

    def values(self, step, values):
        """Print and record the values of a step, {name: number}, or of an evaluation, which has no
        loss."""
        columns = [self.label(step)]
        for name, value in values.items():
            columns.append(f"{name} {value:.4g}")
        now = time.perf_counter()
        if "loss" in values:
            seconds = (now - self.line_time) / (step - self.line_step)
            columns.append(f"{1e3 * seconds:.0f} ms")
        self.line_step = step
        self.line_time = now
        self.say(" | ".join(columns))
        self.record(step=step, **values)

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
        if signals:
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
