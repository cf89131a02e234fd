"""pytest tests/test_terminal.py - a run survives its terminal, its pipe and the disk of its log"""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from helpers import ROOT, finished, log_of, logged, same_run, script, state, torchrun

import train
from internals import errors, outdir, runlog
from internals.errors import UserError, one_line_errors
from internals.runlog import RunLog
from internals.signals import Stopped, StopSignals
from train import TrainConfig

ENDLESS = {"max_iters": 10**6, "eval_interval": 10**6}


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trains(out_dir):
    """Whether the run in out_dir has logged some steps."""
    path = out_dir / "metrics.jsonl"
    return path.exists() and len(path.read_bytes().splitlines()) > 20


def python(*command, **options):
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, **options)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_ctrl_c_while_tee_writes_the_log_saves_the_run(tiny, tmp_path, processes):
    """As in `python train.py ... 2>&1 | tee log`: the Ctrl-C reaches tee too, which ends first."""
    command = ["train.py", *tiny(**ENDLESS)]
    if processes > 1:
        command = torchrun(processes, *command)
    run = python(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    tee = subprocess.Popen(["tee", tmp_path / "log"], stdin=run.stdout, stdout=subprocess.DEVNULL)
    run.stdout.close()
    wait_until(lambda: trains(tmp_path / "out"))
    tee.kill()
    tee.wait()
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == (-signal.SIGINT if processes == 1 else 1)
    assert state(tmp_path / "out").step == logged(tmp_path / "out")[-1]["step"] > 20


def test_a_run_whose_terminal_is_closed_saves_and_ends_by_the_hangup(tiny, tmp_path):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "train.py", *tiny(**ENDLESS)])
    while not trains(tmp_path / "out"):
        os.read(terminal, 1 << 16)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGHUP
    assert state(tmp_path / "out").step > 10


@pytest.mark.parametrize("streams", [["stdout"], ["stdout", "stderr"]])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is full")
def test_a_log_on_a_full_disk_does_not_end_the_run(tiny, tmp_path, streams):
    with open("/dev/full", "w") as full, open(tmp_path / "errors", "w+") as errors_file:
        files = {"stdout": subprocess.DEVNULL, "stderr": errors_file}
        run = python("train.py", *tiny(), **files | dict.fromkeys(streams, full))
        assert run.wait(60) == 2 and state(tmp_path / "out").step == 12
    printed = (tmp_path / "errors").read_text().splitlines()
    if streams == ["stdout"]:
        assert "warning: the output cannot be printed ([Errno 28]" in printed[0]
        assert "error: the run is done, but its output could not be printed" in printed[1]
    assert len(printed) == 4 - 2 * len(streams)


def test_a_reader_that_exits_does_not_end_the_run(tiny, tmp_path):
    """As in `python train.py ... 2>&1 | head -1`. The exit code says that output was lost."""
    run = script("train.py", *tiny())
    run.stdout.readline()
    run.stdout.close()
    assert run.wait(60) == 2 and state(tmp_path / "out").step == 12


@pytest.mark.parametrize("accident", ["the folder is removed", "metrics.jsonl is a folder"])
def test_a_run_that_cannot_write_its_metrics_saves_a_last_checkpoint(
        tiny, tmp_path, monkeypatch, mistake, accident):
    out = tmp_path / "out"

    def seed_step(seed, step, rank, original=train.seed_step):
        if step == 6 and accident == "the folder is removed":
            shutil.rmtree(out)
        elif step == 6:
            (out / "metrics.jsonl").unlink()
            (out / "metrics.jsonl").mkdir()
        original(seed, step, rank)

    monkeypatch.setattr(train, "seed_step", seed_step)
    assert "metrics.jsonl" in mistake(train.main, *tiny())
    assert state(out).step == 7


def test_a_stopped_run_is_a_keyboard_interrupt_for_a_program_that_calls_it(
        tiny, tmp_path, monkeypatch):
    """A notebook then shows the interrupt, and lives on."""
    def seed_step(seed, step, rank, original=train.seed_step):
        original(seed, step, rank)
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "seed_step", seed_step)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train.main(tiny())
    assert stopped.value.number == signal.SIGINT and state(tmp_path / "out").step == 6


# ---- how a script ends


@pytest.fixture
def ended_by(monkeypatch):
    """The signals by which the process would have ended."""
    numbers = []
    monkeypatch.setattr(errors, "end_by", numbers.append)
    return numbers


@pytest.mark.parametrize("error, number", [
    (KeyboardInterrupt(), signal.SIGINT), (Stopped(signal.SIGTERM), signal.SIGTERM),
    (BrokenPipeError(), signal.SIGPIPE)])
def test_a_script_ends_by_a_signal_unless_it_is_a_guest(monkeypatch, ended_by, error, number):
    """In Jupyter (%run) and under python -i, the interpreter gets the exception and lives on."""
    with one_line_errors():
        raise error
    assert ended_by == [number]
    monkeypatch.setattr(sys, "ps1", "In [1]: ", raising=False)
    with pytest.raises(type(error)), one_line_errors():
        raise error
    assert ended_by == [number]


def test_torchrun_is_not_told_of_a_failure_when_a_run_was_stopped(monkeypatch, ended_by):
    """A scheduler that starts the processes itself is: to it, 0 would mean that the run is done."""
    monkeypatch.setenv("RANK", "1")
    with one_line_errors():
        raise Stopped(None)
    assert ended_by == [signal.SIGTERM]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise Stopped(None)
    assert end.value.code == 0 and ended_by == [signal.SIGTERM]


def test_a_best_loss_that_could_not_be_logged_is_found_again(tiny, tmp_path, monkeypatch, mistake):
    """Otherwise the checkpoint would have the loss of a best.pt that was never written."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    train.main(tiny(out_dir=whole))
    record = RunLog.record

    def fail_at_8(log, **entry):
        if entry["step"] == 8 and "val_loss" in entry:
            raise OSError(28, "No space left on device")
        record(log, **entry)

    monkeypatch.setattr(RunLog, "record", fail_at_8)
    assert "No space left" in mistake(train.main, *tiny(out_dir=out))
    monkeypatch.undo()
    assert state(out).step == 8 and state(out).best_step == 4
    train.main(tiny(out_dir=out, init_from="resume"))
    assert same_run(whole, out)


def test_a_handler_of_a_host_program_in_c_is_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with StopSignals() as signals:
        signals.catch()
    assert not signals.previous


@pytest.mark.parametrize("name", ["model", "train", "sample", "prepare", "configurator"])
def test_an_import_changes_nothing_in_the_host_program(name):
    code = f"""
import os, signal, sys, numpy, torch, torch.distributed.nn, tqdm, filelock
state = lambda: (sys.excepthook, dict(os.environ), signal.getsignal(signal.SIGINT), sys.stdout,
                 sys.stdout.encoding, torch.are_deterministic_algorithms_enabled(),
                 torch.get_float32_matmul_precision(), torch.get_num_threads(), sys.argv, sys.path)
before = state()
import {name}
sys.exit(state() != before)
"""
    assert finished("-c", code) == (0, "")


# ---- parts that never end a run

MASTER = SimpleNamespace(is_master=True, is_distributed=False)


@pytest.fixture
def log(tmp_path):
    cfg = TrainConfig(out_dir=str(tmp_path), max_iters=10)
    return log_of(cfg)


def test_a_picture_and_a_tracker_that_fail_are_one_warning_each(log, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no LaTeX")

    monkeypatch.setattr(runlog, "draw_losses", fail)
    log.tracker = SimpleNamespace(log=fail, finish=fail)
    with log:
        for step in (1, 2, 3):
            log.plot(step)
            log.record(step=step, loss=1.0)
    assert capsys.readouterr().err.splitlines() == [
        "warning: loss.png failed (RuntimeError: no LaTeX); training continues",
        "warning: wandb failed (RuntimeError: no LaTeX); training continues"]
    assert [entry["step"] for entry in logged(log.out_dir)] == [1, 2, 3]


@pytest.mark.parametrize("number", outdir.NO_LOCKS)
def test_a_disk_without_locks_is_a_warning(tmp_path, capsys, monkeypatch, number):
    monkeypatch.setattr("fcntl.flock", lambda *_: raise_error(OSError(number, "no locks")))
    with outdir.locked(TrainConfig(out_dir=str(tmp_path)), MASTER):
        pass
    assert "has no locks" in capsys.readouterr().err


def raise_error(error):
    raise error


def test_a_folder_in_which_no_lock_can_be_made_is_an_error(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OSError), outdir.locked(TrainConfig(out_dir=str(tmp_path)), MASTER):
        pass


def test_lost_output_is_an_error_at_the_end_of_a_run(log):
    with pytest.raises(UserError, match="the run is done, but its output"), log:
        log.output_error = OSError(5, "Input/output error")
