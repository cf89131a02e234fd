"""pytest -m faults - the long campaign: a hundred SIGKILLs"""

import os
import random
import signal
import time

import pytest
from helpers import MODERN, finished, same_run, script, torchrun, wait_for

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
