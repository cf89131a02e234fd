"""pytest tests/test_terminal.py - a run survives its terminal, its pipe and the disk of its log"""

import errno
import os
import pty
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
from helpers import ROOT, finished, logged, script, state, torchrun

import train
from internals import errors, runlog
from internals.errors import one_line_errors
from internals.signals import Stopped

ENDLESS = {"max_iters": 10**6, "eval_interval": 10**6}


def trains(out_dir):
    """Whether the run in out_dir has logged some steps."""
    path = out_dir / "metrics.jsonl"
    return path.exists() and len(path.read_bytes().splitlines()) > 20


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_ctrl_c_while_tee_writes_the_log_saves_the_run(tiny, tmp_path, processes):
    """As in `python train.py ... 2>&1 | tee log`: the Ctrl-C reaches tee too, which ends first."""
    command = ["train.py", *tiny(**ENDLESS)]
    if processes > 1:
        command = torchrun(processes, *command)
    run = script(*command)
    tee = subprocess.Popen(["tee", tmp_path / "log"], stdin=run.stdout, stdout=subprocess.DEVNULL)
    run.stdout.close()
    while not trains(tmp_path / "out"):
        assert run.poll() is None
        time.sleep(0.05)
    tee.kill()
    tee.wait()
    run.send_signal(signal.SIGINT)
    assert run.wait() == (-signal.SIGINT if processes == 1 else 1)
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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is full")
def test_a_log_on_a_full_disk_does_not_end_the_run(tiny, tmp_path, monkeypatch, capsys):
    with open("/dev/full", "w") as full, one_line_errors():
        monkeypatch.setattr(sys, "stdout", full)
        train.main(tiny())
    warning, = capsys.readouterr().err.splitlines()
    assert state(tmp_path / "out").step == 12
    assert warning.startswith("warning: the output cannot be printed ([Errno 28]")


def test_a_script_ends_by_a_signal_unless_it_is_a_guest_or_torchrun_started_it(monkeypatch):
    """In Jupyter (%run) and under python -i, the interpreter gets the exception and lives on."""
    ended_by = []
    monkeypatch.setattr(errors, "end_by", ended_by.append)
    ends = [(KeyboardInterrupt(), signal.SIGINT), (Stopped(signal.SIGHUP), signal.SIGHUP),
            (Stopped(None), signal.SIGTERM), (BrokenPipeError(), signal.SIGPIPE)]
    for error, number in ends:
        with one_line_errors():
            raise error
        assert ended_by.pop() == number
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end, one_line_errors():
        patch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun would report it as a failure
        raise Stopped(None)
    assert end.value.code == 0
    monkeypatch.setattr(sys, "ps1", "In [1]: ", raising=False)
    for error, _ in ends:
        with pytest.raises(type(error)), one_line_errors():
            raise error
    assert not ended_by


def test_an_import_changes_nothing_in_the_host_program():
    code = """
import os, signal, sys, numpy, torch, torch.distributed.nn, tqdm, filelock
state = lambda: (sys.excepthook, dict(os.environ), signal.getsignal(signal.SIGINT), sys.stdout,
                 sys.stdout.encoding, torch.are_deterministic_algorithms_enabled(),
                 torch.get_float32_matmul_precision(), torch.get_num_threads(), sys.argv, sys.path)
before = state()
import model, train, sample, prepare, configurator
sys.exit(state() != before)
"""
    assert finished("-c", code) == (0, "")


def test_metrics_a_picture_and_a_tracker_that_fail_are_one_warning_each(
        tiny, tmp_path, capsys, monkeypatch):
    def full(path, *args, **kwargs):
        if str(path).endswith("metrics.jsonl"):
            raise OSError(28, "No space left on device")
        return open(path, *args, **kwargs)

    fail = mock.Mock(side_effect=RuntimeError("no LaTeX"))
    monkeypatch.setattr(runlog, "open", full, raising=False)
    monkeypatch.setattr(runlog, "draw_losses", fail)
    monkeypatch.setitem(sys.modules, "trackio", mock.Mock(log=fail))
    train.main(tiny(wandb_log=True, tracker="trackio"))
    assert state(tmp_path / "out").step == 12
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "warning: loss.png failed (RuntimeError: no LaTeX); training continues",
        "warning: metrics.jsonl failed (OSError: [Errno 28] No space left on device); training "
        "continues",
        "warning: trackio failed (RuntimeError: no LaTeX); training continues"]


def test_a_disk_without_locks_is_a_warning(tiny, capsys, monkeypatch):
    no_locks = mock.Mock(side_effect=OSError(errno.ENOLCK, "no locks"))
    monkeypatch.setattr("fcntl.flock", no_locks)
    train.main(tiny(max_iters=1))
    assert "has no locks" in capsys.readouterr().err
