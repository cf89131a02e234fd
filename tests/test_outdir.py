"""pytest tests/test_outdir.py - the folder of a run: what another run or a kill has left there"""

import os
from types import SimpleNamespace

import pytest
from helpers import logged, state

import train
from internals import outdir
from internals.errors import UserError
from train import TrainConfig, main

MASTER = SimpleNamespace(is_master=True, is_distributed=False)


def test_a_run_does_not_overwrite_what_another_one_has_saved_since_it_was_read(
        tiny, tmp_path, mistake, monkeypatch):
    """As after a restart by torchrun, when the old process takes a while to stop."""
    main(tiny(max_iters=4, eval_interval=4))
    out, begin = tmp_path / "out", train.begin

    def begin_while_another_run_saves(*arguments):
        path = out / "ckpt.pt"
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
        return begin(*arguments)

    monkeypatch.setattr(train, "begin", begin_while_another_run_saves)
    line = mistake(main, "--init_from=resume", f"--out_dir={out}", "--max_iters=8")
    assert "has written a checkpoint to" in line and "run the command again" in line
    assert state(out).step == 4 and logged(out)[-1]["step"] == 4


def test_the_best_model_is_kept_once_even_if_the_run_is_killed_and_resumed_again(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"the best of the run")
    outdir.keep_best(tmp_path, 12)
    (tmp_path / "best.pt").write_bytes(b"the first after the change")
    outdir.keep_best(tmp_path, 12)
    assert (tmp_path / "best-until-12.pt").read_bytes() == b"the best of the run"


def test_a_run_without_a_finite_loss_names_no_best_one(tiny, tmp_path, capsys):
    main(tiny())
    capsys.readouterr()
    main(["--init_from=resume", f"--out_dir={tmp_path / 'out'}", "--max_iters=7", "--eval_iters=3"])
    printed = capsys.readouterr().out
    assert "nothing left to train" in printed and "inf" not in printed


def test_patience_ends_a_run_only_after_an_evaluation(tiny, tmp_path):
    out = tmp_path / "out"
    metrics = main(tiny(max_iters=9, eval_interval=4, patience=1, learning_rate=1e-9, min_lr=1e-9))
    assert "val_loss" in metrics[-1]
    with pytest.raises(UserError):
        with outdir.locked(TrainConfig(out_dir=str(out)), MASTER, written_at=[1, 2]):
            pass
