"""pytest tests/test_resume.py - a run that is stopped, killed or moved ends as one that was not"""

import json
import os
import random
import signal
import time

import pytest
import torch
from conftest import MODERN, equal, finished, script

import train
from internals.checkpoint import load_checkpoint
from train import main


def state(out_dir, name="ckpt.pt"):
    return load_checkpoint(out_dir / name)


def logged(out_dir):
    """metrics.jsonl without what depends on the clock."""
    lines = map(json.loads, (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{k: v for k, v in line.items() if k not in ("ms", "tok_per_s")} for line in lines]


def same_run(a, b):
    """Whether two runs ended bit-identically, in all that they wrote about it."""
    parts = ("model", "optimizer", "scaler", "iter_num", "best_val_loss", "best_step")
    for name in ("ckpt.pt", "best.pt"):
        one, other = state(a, name), state(b, name)
        for part in parts:
            assert equal(one[part], other[part]), (name, part)
    assert logged(a) == logged(b)
    return True


@pytest.mark.parametrize("recipe", [{}, MODERN | {"optimizer": "muon"}], ids=["gpt2", "modern"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_resumed_run_equals_uninterrupted_run(tiny, tmp_path, dtype, recipe):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = {"dtype": dtype, "lr_decay_iters": 12, **recipe}
    main(tiny(out_dir=whole, max_iters=12, **settings))
    main(tiny(out_dir=parts, max_iters=6, **settings))
    assert not equal(state(whole)["model"], state(parts)["model"])
    main([f"--out_dir={parts}", "--init_from=resume", "--max_iters=12"])
    # the short run ended with an evaluation of its own, at its last step
    lines = (parts / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not ('"val_loss"' in line and '"step": 6,' in line)]
    (parts / "metrics.jsonl").write_text("".join(kept))
    assert same_run(whole, parts)


def test_resume_takes_its_settings_from_the_checkpoint(tiny, tmp_path, capsys):
    main(tiny())
    out = tmp_path / "out"
    main([f"--out_dir={out}", "--init_from=resume", "--max_iters=14", "--weight_decay=0.5"])
    after = state(out)
    assert after["iter_num"] == 14 and after["config"]["dataset"] == "tiny"
    assert after["config"]["learning_rate"] == 0.01
    decays = [group["weight_decay"] for group in after["optimizer"][0]["param_groups"]]
    assert decays == [0.5, 0.0]  # what is given now is in force
    assert "going on from step 12" in capsys.readouterr().out


def test_killed_run_resumes_bit_identically(tiny, tmp_path):
    """SIGKILL at random moments, four times, then to the end; test_faults.py has a hundred."""
    settings = {"max_iters": 300, "eval_interval": 20, "eval_iters": 4, "dropout": 0.2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(tiny(out_dir=whole, **settings))
    chance, kills = random.Random(0), 0
    while kills < 4:
        start = "resume" if (killed / "ckpt.pt").exists() else "scratch"
        run = script("train.py", *tiny(out_dir=killed, init_from=start, **settings))
        while "| val" not in run.stdout.readline():  # it has begun
            assert run.poll() is None
        time.sleep(chance.uniform(0, 0.7))
        run.kill()
        rest, _ = run.communicate()
        if "done in" in rest:
            break
        kills += 1
    assert kills >= 2
    code, printed = finished("train.py", *tiny(out_dir=killed, init_from="resume", **settings))
    assert code == 0, printed
    assert same_run(whole, killed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first(tiny, tmp_path, number):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = {"max_iters": 200, "eval_interval": 190}
    run = script("train.py", *tiny(out_dir=stopped, **settings))
    while "step  30/200 | loss" not in run.stdout.readline():
        assert run.poll() is None
    run.send_signal(number)
    printed, _ = run.communicate(timeout=60)
    step = state(stopped)["iter_num"]
    assert run.returncode == 0 and 30 <= step < 190
    assert f"stopped by a signal, step {step} is saved" in printed
    assert f"python train.py --init_from=resume --out_dir={stopped}" in printed
    main([f"--out_dir={stopped}", "--init_from=resume"])  # as it says
    main(tiny(out_dir=whole, **settings))
    assert same_run(whole, stopped)


def test_an_evaluation_that_a_signal_put_off_keeps_the_best_too(tiny, tmp_path, monkeypatch):
    """The run stops where it would have evaluated; the resumed one begins with that evaluation."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = {"max_iters": 10, "eval_interval": 4, "learning_rate": 0.001}
    main(tiny(out_dir=whole, **settings))

    def signal_in_step_7(seed, step, rank):
        seed_step(seed, step, rank)
        if step == 7:
            signal.raise_signal(signal.SIGTERM)

    seed_step = train.seed_step
    monkeypatch.setattr(train, "seed_step", signal_in_step_7)
    main(tiny(out_dir=stopped, **settings))
    monkeypatch.undo()
    assert state(stopped)["iter_num"] == 8 and state(stopped, "best.pt")["iter_num"] == 4
    main([f"--out_dir={stopped}", "--init_from=resume", "--max_iters=8"])
    assert state(stopped, "best.pt")["iter_num"] == 8
    main([f"--out_dir={stopped}", "--init_from=resume", "--max_iters=10"])
    assert same_run(whole, stopped)


@pytest.mark.parametrize("write", range(1, 10))
def test_a_disk_that_fills_up_loses_nothing(tiny, tmp_path, monkeypatch, mistake, write):
    """ENOSPC at each write of a resumed run in turn: metrics, settings, and three times best.pt,
    ckpt.pt and loss.png, with half of the file written."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    settings = {"lr_decay_iters": 16, "eval_interval": 4}
    main(tiny(out_dir=whole, max_iters=16, **settings))
    main(tiny(max_iters=4, **settings))
    before = {path.name: path.read_bytes() for path in out.glob("*.pt")}
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == write:
            os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    line = mistake(main, *tiny(init_from="resume", max_iters=16, **settings))
    assert "No space left on device" in line
    if write <= 3:
        assert {path.name: path.read_bytes() for path in out.glob("*.pt")} == before
    assert not list(out.glob("*.tmp"))
    monkeypatch.undo()
    main(tiny(init_from="resume", max_iters=16, **settings))
    assert same_run(whole, out)


def test_what_a_killed_run_logged_after_its_checkpoint_is_not_kept(tiny, tmp_path):
    main(tiny())
    before, file = logged(tmp_path / "out"), tmp_path / "out" / "metrics.jsonl"
    later = '{"step": 13, "loss": 1.0}\n{"step": 14, "lo'  # torn by the kill
    file.write_text(file.read_text() + later)
    main([f"--out_dir={tmp_path / 'out'}", "--init_from=resume"])
    assert logged(tmp_path / "out") == before


class Payload:
    """What unpickles as a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def malicious(tiny, tmp_path):
    """An out_dir whose ckpt.pt makes a folder when it is unpickled, and that folder."""
    main(tiny())
    trap = tmp_path / "trap"
    torch.save({**state(tmp_path / "out"), "meta": Payload(trap)}, tmp_path / "out" / "ckpt.pt")
    return tmp_path / "out", trap


def test_a_pickle_is_never_run(malicious, mistake):
    out, trap = malicious
    (out / "best.pt").unlink()
    assert "could run code and is not opened" in mistake(
        main, f"--out_dir={out}", "--init_from=resume")
    assert not trap.exists()
    torch.load(out / "ckpt.pt", weights_only=False)  # the trap does work
    assert trap.exists()


@pytest.mark.parametrize("damage", ["malicious", "truncated", "emptied"])
def test_the_newest_whole_checkpoint_is_taken(malicious, capsys, damage):
    out, trap = malicious
    if damage != "malicious":
        os.truncate(out / "ckpt.pt", 1000 if damage == "truncated" else 0)
    main([f"--out_dir={out}", "--init_from=resume", "--max_iters=14"])
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and f"taking {out / 'best.pt'}" in warning
    assert state(out)["iter_num"] == 14 and not trap.exists()


def test_auto_resumes_if_there_is_something_to_resume(tiny, tmp_path, capsys):
    main(tiny(init_from="auto", max_iters=5))
    assert "going on" not in capsys.readouterr().out
    main(tiny(init_from="auto", max_iters=9))
    assert "going on from step 5" in capsys.readouterr().out
    assert state(tmp_path / "out")["iter_num"] == 9


def test_a_second_signal_leaves_at_once(tiny, tmp_path):
    slow = {"n_embd": 512, "n_layer": 8, "block_size": 128, "batch_size": 64, "max_iters": 3}
    run = script("train.py", *tiny(eval_iters=1, **slow))
    while "epochs" not in run.stdout.readline():
        assert run.poll() is None
    time.sleep(1)
    started = time.monotonic()
    run.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert run.poll() is None  # the step in hand goes on
    run.send_signal(signal.SIGINT)
    run.communicate()
    assert run.returncode == 130 and time.monotonic() - started < 10
    assert not list((tmp_path / "out").glob("*.tmp"))
