"""pytest -m faults tests/test_faults.py - a hundred SIGKILLs, and the run ends to the same bit"""

import random
import time

import pytest
from conftest import finished, script
from test_resume import same_run

from train import main

KILLS = 100


@pytest.mark.faults
@pytest.mark.parametrize("dtype", ["float32"])
def test_a_hundred_kills_at_random_moments_change_nothing(tiny, tmp_path, dtype):
    """At each life the run is killed at a random moment of steps, evaluation and saving; it has
    dropout, accumulation and an evaluation with two checkpoints every few steps."""
    settings = {"max_iters": 4000, "eval_interval": 25, "eval_iters": 8, "dropout": 0.2,
                "dtype": dtype, "log_interval": 5}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(tiny(out_dir=whole, **settings))
    chance, kills, lives = random.Random(0), 0, 0
    while kills < KILLS:
        run = script("train.py", *tiny(out_dir=killed, init_from="auto", **settings))
        while "| val" not in run.stdout.readline():  # it has begun
            assert run.poll() is None, run.stdout.read()
        time.sleep(chance.uniform(0, 0.6))
        run.kill()
        rest, _ = run.communicate()
        lives += 1
        assert "done in" not in rest, f"it ended after {kills} kills: more steps are needed"
        kills += 1
    code, printed = finished("train.py", *tiny(out_dir=killed, init_from="auto", **settings))
    assert code == 0, printed
    print(f"{kills} kills; the run has {settings['max_iters']} steps")
    assert same_run(whole, killed)
