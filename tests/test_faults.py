"""pytest -m faults - the long campaigns: a hundred SIGKILLs, and a disk that is really full"""

import os
import random
import signal
import subprocess
import time

import pytest
from helpers import MODERN, finished, same_run, script, state, torchrun, wait_for

from internals.errors import UserError
from train import main

pytestmark = pytest.mark.faults
KILLS = 25  # of each of the four


@pytest.mark.parametrize("optimizer, dtype, processes", [
    ("adamw", "float32", 1), ("muon", "bfloat16", 1), ("adamw", "bfloat16", 1),
    ("muon", "float32", 2)])
def test_kills_at_random_moments_change_nothing(tiny, tmp_path, optimizer, dtype, processes):
    """In each life the run is killed at a random moment of steps, evaluation and saving."""
    settings = {"max_iters": 4000, "eval_interval": 25, "eval_iters": 8, "dropout": 0.2,
                "dtype": dtype, "optimizer": optimizer, "log_interval": 5}
    if optimizer == "muon":
        settings |= MODERN

    def command(out_dir, start):
        run = ("train.py", *tiny(out_dir=out_dir, init_from=start, **settings))
        return run if processes == 1 else torchrun(processes, *run)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, printed = finished(*command(whole, "scratch"))
    assert code == 0, printed
    chance = random.Random(0)
    for kill in range(KILLS):
        run = script(*command(killed, "auto"), start_new_session=True)
        wait_for(run, "| val")  # it has begun
        time.sleep(chance.uniform(0, 0.6))
        os.killpg(run.pid, signal.SIGKILL)
        rest, _ = run.communicate()
        assert "done in" not in rest, f"it ended after {kill} kills: more steps are needed"
    code, printed = finished(*command(killed, "auto"))
    assert code == 0, printed
    assert same_run(whole, killed)


@pytest.fixture
def small_disk(tmp_path):
    """A function: a folder on a disk of so many kilobytes, a tmpfs."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kilobytes):
        result = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs",
                                 str(folder)], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"a small disk needs the right to mount one: {result.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


@pytest.mark.parametrize("kilobytes", range(8, 600, 24))
def test_a_full_disk_ends_in_one_line_and_keeps_the_newest_checkpoint(
        tiny, tmp_path, small_disk, kilobytes):
    """Disks of many sizes are full at many different writes."""
    disk = small_disk(kilobytes)
    settings = {"max_iters": 24, "eval_interval": 4, "out_dir": disk / "out"}
    try:
        main(tiny(**settings))
    except (UserError, OSError) as error:  # what one_line_errors prints
        assert "No space left" in str(error) or "disk" in str(error)
    if (disk / "out" / "best.pt").exists():
        assert state(disk / "out", "best.pt").step % 4 == 0
    if (disk / "out" / "ckpt.pt").exists():  # of any step, if metrics.jsonl did not fit
        assert 0 < state(disk / "out").step <= 24
    assert not list((disk / "out").glob("*.tmp"))
