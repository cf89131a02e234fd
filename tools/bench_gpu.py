"""Measure a GPU: the speed of training and sampling, and whether runs are exact and NaN is skipped.

    python tools/bench.py gpu --nanogpt=FOLDER --minutes=9
    python tools/bench.py gpu --toy=True --device=cpu    tiny models, to try the command itself

The parts, the most important first:
    train    a training step of GPT-2 (124M), plain and modern recipe, compared with nanoGPT's model
    sample   sampling with that shape, with and without CUDA graphs
    resume   train.py --deterministic=True, stopped and resumed: bit-identical to an unstopped run
    nan      an update with a NaN in a gradient is skipped: weights and optimizer stay the same
    twins    config/train_shakespeare_char.py and its modern version, to their best loss

Each part gets a share of the time; time that it does not use goes to the parts after it. Each part
runs in separate processes, because an error can make the GPU unusable for a process. So a part that
fails or runs out of time does not stop the next one. After each measurement, the results so far are
written to OUT.json and OUT.md. Without a network, twins needs a dataset that is already prepared.
"""

import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import gpu_parts
import torch
from gpu_parts import ROOT, ROW, SHARES, GPUBenchConfig, differences

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import prepare
from configurator import UserError, configure, one_line_errors, reason
from internals import checkpoint
from internals.files import replacing

TWINS = {"plain": "train_shakespeare_char.py", "modern": "train_shakespeare_char_modern.py"}
GRACE = 20  # seconds between SIGTERM, after which train.py saves and ends, and SIGKILL


# --------------------------------------------------------------------------------------------------
# resume and twins: they run train.py in processes, and measure them from outside


def run(command, limit, on_line):
    """Run a script with its arguments; on_line is called with each line that it prints. Returns the
    exit code. After `limit` seconds the script gets SIGTERM, and GRACE seconds later it is killed,
    together with the processes that it has started."""
    script, *argv = command
    process = subprocess.Popen([sys.executable, str(ROOT / script), *argv], encoding="utf-8",
                               errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               start_new_session=True)

    def kill():
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timers = [threading.Timer(limit, process.terminate), threading.Timer(limit + GRACE, kill)]
    for timer in timers:
        timer.start()
    try:
        for line in process.stdout:
            on_line(line.rstrip())
        return process.wait()
    finally:
        for timer in timers:
            timer.cancel()
        if process.poll() is None:  # Ctrl-C
            kill()


def finish(command, until):
    """Run a script to its end. Raises UserError if it fails or does not end in time."""
    lines = [""]
    code = run(command, until - time.monotonic(), lines.append)
    if time.monotonic() > until:
        raise UserError("this part ran out of time")
    if code != 0:
        raise UserError(f"{command[0]} ended with code {code}: {lines[-1]}")


def resume_part(cfg, report, folder, until):
    steps, whole, stopped = cfg.sizes.steps, folder / "whole", folder / "stopped"
    prepare.main(["addition", "--digits=2", f"--data_dir={folder}"])
    command = ["train.py", "--dataset=addition", f"--data_dir={folder}", "--recipe=modern",
               "--n_layer=6", "--n_head=6", "--n_embd=384", "--block_size=256", "--dropout=0.1",
               "--batch_size=32", *cfg.sizes.small, "--gradient_accumulation_steps=2",
               "--deterministic=True", f"--device={cfg.device}", "--sample_tokens=9",
               "--eval_iters=2", f"--lr_decay_iters={steps}"]
    finish([*command, f"--out_dir={whole}", f"--max_iters={steps}"], until)
    finish([*command, f"--out_dir={stopped}", f"--max_iters={steps // 2}"], until)
    finish(["train.py", "--init_from=resume", f"--out_dir={stopped}", f"--max_iters={steps}"],
           until)
    a, b = (checkpoint.read(path / "ckpt.pt") for path in (whole, stopped))
    found = differences((a.model, a.optimizer), (b.model, b.optimizer))
    how = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    note = (f"weights and optimizer state after {steps} steps, stopped after {steps // 2}; modern "
            f"recipe with dropout, {how['dtype']}, {how['compile']}")
    if found:
        note += f"; {len(found)} tensors differ, the first is {found[0]}"
    report.add("resume", "stopped and resumed", "different" if found else "bit-identical", note,
               differences=found)


def twins_part(cfg, report, folder, until):
    if cfg.toy:
        data = ["--dataset=addition", f"--data_dir={folder}"]
        prepare.main(["addition", "--digits=2", f"--data_dir={folder}"])
    else:
        data = [f"--dataset={find_shakespeare()}"]
    for number, (name, config) in enumerate(TWINS.items()):
        limit = (until - time.monotonic()) / (len(TWINS) - number)
        command = ["train.py", str(ROOT / "config" / config), *data, *cfg.sizes.twins,
                   "--patience=4", "--sample_tokens=0", f"--device={cfg.device}",
                   f"--out_dir={folder / name}"]
        measure_twin(name, command, limit, report)


def find_shakespeare():
    """The dataset for the twins: Tiny Shakespeare or, if it cannot be prepared, all plays. Raises
    UserError if neither can."""
    try:
        return prepare.open_dataset("shakespeare_char").folder.name
    except UserError as error:
        print(f"  {error}", flush=True)
        return prepare.open_dataset("plays_char").folder.name


def measure_twin(name, command, limit, report):
    """Run train.py. The row has the lowest validation loss so far, and how many seconds after the
    start of the process it was printed."""
    started, curve, lines = time.monotonic(), [], [""]
    evaluation = re.compile(r"step +(\d+)/(\d+) \| train \S+ \| val (\d+\.\d+)")

    def on_line(line):
        lines.append(line)
        match = evaluation.match(line)
        if match:
            now = time.monotonic() - started
            curve.append((int(match[1]), now, float(match[3])))
            step, at, loss = min(curve, key=lambda point: point[2])
            report.add("twins", name, f"loss {loss:.4f} after {at:.1f} s",
                       f"on the validation split, at step {step}; last evaluation: step {match[1]} "
                       f"of {match[2]}, after {now:.1f} s; {command[2]}", curve=curve)

    code = run(command, limit, on_line)
    if code != 0 and time.monotonic() - started < limit:
        report.add("twins", name, "failed", lines[-1] or f"exit code {code}", curve=curve)
    elif not curve:
        report.add("twins", name, "incomplete", f"it ran out of time ({limit:.0f} s)")


# --------------------------------------------------------------------------------------------------
# The command


class Report:
    """The table. Each new row is printed, and written to OUT.json and OUT.md at once."""

    def __init__(self, out, facts):
        """facts: {name: value} of the machine and the command."""
        self.out, self.facts, self.rows = out, facts, {}

    def add(self, part, name, result, note="", **values):
        """Add a row, or replace the one with the same part and name."""
        row = {"part": part, "name": name, "result": result, "note": note, **values}
        self.rows[part, name] = row
        print(f"{part} | {name} | {result} | {note}", flush=True)
        text = json.dumps(self.facts | {"rows": list(self.rows.values())}, indent=1)
        with replacing(Path(f"{self.out}.json")) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        lines = [f"- {key}: {value}" for key, value in self.facts.items()]
        lines += ["", "| part | measurement | result | notes |", "| --- | --- | --- | --- |"]
        for row in self.rows.values():
            cells = [row[key].replace("|", "/") for key in ("part", "name", "result", "note")]
            lines.append(f"| {' | '.join(cells)} |")
        with replacing(Path(f"{self.out}.md")) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def facts_of(device, argv):
    """What the figures depend on: {name: value}."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    commit = ""
    with suppress(OSError):  # git is not installed
        git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"device": f"{device} ({name})", "torch": torch.__version__,
            "cuda": str(torch.version.cuda), "commit": commit or "unknown",
            "date": time.strftime("%Y-%m-%d"),
            "command": shlex.join(["python", "tools/bench.py", "gpu", *argv])}


def in_own_process(part, cfg, report, until):
    """Run a part of gpu_parts.py in its own process, and add its rows to the report."""
    limit, others = until - time.monotonic(), [""]
    options = [f"--{field.name}={getattr(cfg, field.name)}" for field in fields(cfg)]

    def on_line(line):
        if line.startswith(ROW):
            report.add(part, **json.loads(line.removeprefix(ROW)))
        elif line:
            others.append(line)
            print(f"  {line}", flush=True)

    # the process gets less time than the part has, so that it ends before it is stopped
    command = ["tools/gpu_parts.py", part, *options, f"--minutes={0.9 * limit / 60}"]
    code = run(command, limit, on_line)
    if time.monotonic() > until:
        report.add(part, "stopped", "incomplete", f"this part ran out of time ({limit:.0f} s)")
    elif code != 0:
        report.add(part, "stopped", "failed", others[-1] or f"exit code {code}")


def main(argv):
    _, cfg = configure(__doc__, GPUBenchConfig, argv=argv)
    report = Report(cfg.out, facts_of(gpu_parts.find_gpu(cfg), argv))
    end = time.monotonic() + 60 * cfg.minutes
    left = [part for part in SHARES if part in cfg.parts.split(",")]
    while left:
        limit = (end - time.monotonic()) * SHARES[left[0]] / sum(SHARES[part] for part in left)
        part, until = left.pop(0), time.monotonic() + limit
        print(f"{part}: at most {limit:.0f} s", flush=True)
        try:
            if part in gpu_parts.PARTS:
                in_own_process(part, cfg, report, until)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    WITH_TRAIN[part](cfg, report, Path(folder), until)
        except Exception as error:  # whatever it is, the next part is measured
            report.add(part, "stopped", "failed", f"{type(error).__name__}: {reason(error)}")
    print(f"the results are in {cfg.out}.json and {cfg.out}.md")


WITH_TRAIN = {"resume": resume_part, "twins": twins_part}

if __name__ == "__main__":  # the same as `bench.py gpu`
    with one_line_errors():
        main(sys.argv[1:])
