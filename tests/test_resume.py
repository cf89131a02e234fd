"""pytest tests/test_resume.py - a run that is stopped, killed or moved ends as one that was not"""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import (
    MODERN,
    Payload,
    command_line,
    equal,
    finished,
    logged,
    same_run,
    script,
    state,
    torchrun,
    wait_for,
)

import prepare
import train
from internals import checkpoint, outdir
from internals.errors import UserError
from internals.plots import best_evaluation
from internals.signals import Stopped
from train import main


@pytest.mark.parametrize("dtype, recipe", [
    ("float32", {}), ("float16", {}), ("bfloat16", MODERN | {"optimizer": "muon"})],
    ids=["float32", "float16", "bfloat16 and modern"])
def test_resumed_run_equals_uninterrupted_run(tiny, tmp_path, dtype, recipe):
    whole = tmp_path / "whole"
    parts = tmp_path / "parts"
    settings = {"dtype": dtype, "lr_decay_iters": 12, **recipe}
    main(tiny(out_dir=whole, max_iters=12, **settings))
    main(tiny(out_dir=parts, max_iters=8, **settings))
    assert not equal(state(whole).model, state(parts).model)
    main([f"--out_dir={parts}", "--init_from=resume", "--max_iters=12"])
    assert same_run(whole, parts)


def test_resume_takes_its_settings_from_the_checkpoint(tiny, tmp_path, capsys):
    main(tiny())
    out = tmp_path / "out"
    main([f"--out_dir={out}", "--init_from=resume", "--max_iters=14", "--weight_decay=0.5"])
    after = state(out)
    assert after.step == 14 and after.config["dataset"] == "tiny"
    assert after.config["learning_rate"] == 0.01
    decays = [group["weight_decay"] for group in after.optimizer[0]["param_groups"]]
    assert decays == [0.5, 0.5, 0.0]  # what is given now is in force
    assert "resuming from step 12" in capsys.readouterr().out


def test_a_run_of_no_steps_can_be_resumed_and_a_run_can_be_resumed_for_no_more_steps(tiny):
    main(tiny(max_iters=0))
    assert main(tiny(init_from="resume", max_iters=2))[-1]["step"] == 2
    assert main(tiny(init_from="resume", max_iters=0))[-1]["step"] == 2


def test_a_run_that_is_resumed_after_its_best_step_remembers_both(tiny, tmp_path):
    """At step 12, where it is resumed, the loss is worse than at step 8."""
    settings = {"eval_interval": 4, "decay_lr": False}
    main(tiny(max_iters=8, **settings))
    best = state(tmp_path / "out", "best.pt")
    assert best.step == best.best_step == 8
    for steps in (12, 16):
        main(tiny(max_iters=steps, init_from="resume", learning_rate=5.0, **settings))
        last = state(tmp_path / "out")
        assert (last.step, last.best_step, last.best_loss) == (steps, 8, best.best_loss)
    assert equal(state(tmp_path / "out", "best.pt").model, best.model)


# ---- the settings of a resumed run


@pytest.mark.parametrize("min_lr", [0.0, 1e-4])
def test_steps_with_a_learning_rate_of_zero_are_told(tiny, capsys, min_lr):
    metrics = main(tiny(min_lr=min_lr, lr_decay_iters=6, cooldown=0.5))
    message = "the learning rate is 0 from step 6 on: set --lr_decay_iters=12"
    assert (message in capsys.readouterr().out) == (min_lr == 0)
    assert any(m.get("lr") == 0 for m in metrics) == (min_lr == 0)


@pytest.mark.parametrize("given, message", [
    ({"n_embd": 128}, "n_embd=128, but the model to start from has 16: leave it out"),
    ({"recipe": "modern"}, "optimizer=muon, but the checkpoint to resume has"),
    ({"block_size": 8}, "block_size=8, but the checkpoint to resume has 16"),
    ({"min_lr": 0.5}, "min_lr=0.5 is above learning_rate=0.01"),
    ({"min_lr": 0.005}, None),  # above the default learning_rate, below that of the run
])
def test_settings_given_on_a_resume_are_checked_together_with_those_of_the_run(
        tiny, tmp_path, mistake, given, message):
    main(tiny(max_iters=4))
    argv = command_line({"max_iters": 5} | given)
    resume = [f"--out_dir={tmp_path / 'out'}", "--init_from=resume", *argv]
    if message:
        assert message in mistake(main, *resume)
    else:
        assert main(resume)[-1]["step"] == 5


@pytest.mark.parametrize("given, line", [
    ({"eval_iters": 3}, "evaluations now use 12 sequences instead of 8"),
    ({"dataset": "second"}, "evaluations now use another text"),
    ({"eval_iters": 4, "batch_size": 2}, None), ({"dataset": "copy"}, None),
])
def test_losses_of_other_sequences_are_not_compared(tiny, data_dir, tmp_path, capsys, given, line):
    """The best model so far is kept in a file of its own."""
    text = (data_dir / "tiny.txt").read_text()
    for name, content in ("copy", text), ("second", text[-3000:] + text[:1000]):
        (tmp_path / f"{name}.txt").write_text(content)
        prepare.main([str(tmp_path / f"{name}.txt"), f"--data_dir={data_dir}", "--tokenizer=tiny"])
    main(tiny())
    out = tmp_path / "out"
    best = state(out, "best.pt")
    content = (out / "best.pt").read_bytes()
    capsys.readouterr()
    settings = {"max_iters": 13, "learning_rate": 5.0, "decay_lr": False} | given
    options = command_line(settings)
    main([f"--out_dir={out}", "--init_from=resume", *options])
    printed = capsys.readouterr().out
    kept = out / "best-until-12.pt"
    if line:
        assert f"{line}, so best.pt will be the best model from step 12 on" in printed
        assert kept.read_bytes() == content and "is inf" not in printed
        assert state(out).best_loss != best.best_loss and state(out).best_step >= 12
        found = state(out)
        assert best_evaluation(logged(out)) == (found.best_step, found.best_loss)  # of the picture
    else:
        assert "evaluations now use" not in printed and not kept.exists()
        # another batch size can change the last bit
        assert state(out).best_loss == pytest.approx(best.best_loss, abs=1e-6)
    if line:  # the loss of the other sequences is a line of its own
        assert [m["step"] for m in logged(out) if "val_loss" in m].count(12) == 2


def test_a_restart_between_two_evaluations_is_one_too(tiny, tmp_path):
    main(tiny(max_iters=10, eval_interval=4))
    out = tmp_path / "out"
    for eval_iters in 1, 3:
        main([f"--out_dir={out}", "--init_from=resume", "--eval_interval=4", "--max_iters=11",
              "--learning_rate=5", f"--eval_iters={eval_iters}"])
        found = state(out)
        assert best_evaluation(logged(out)) == (found.best_step, found.best_loss)


def test_a_resume_with_other_evaluations_that_is_killed_before_it_saves_is_forgotten(
        tiny, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise SystemExit

    main(tiny(max_iters=10, eval_interval=4))
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train, "forward_backward", killed)
        main([f"--out_dir={out}", "--init_from=resume", "--max_iters=20", "--eval_iters=1"])
    main([f"--out_dir={out}", "--init_from=resume", "--max_iters=16", "--learning_rate=5"])
    found = state(out)
    assert found.best_step <= 10
    assert best_evaluation(logged(out)) == (found.best_step, found.best_loss)


def test_the_best_model_is_kept_once_even_if_the_run_is_killed_and_resumed_again(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"the best of the run")
    outdir.keep_best(tmp_path, 12)
    (tmp_path / "best.pt").write_bytes(b"the first after the change")
    outdir.keep_best(tmp_path, 12)
    assert (tmp_path / "best-until-12.pt").read_bytes() == b"the best of the run"


@pytest.mark.parametrize("batch_size, accumulation", [(5, 1), (4, 6)])
def test_a_run_resumed_with_another_batch_size_takes_the_next_sequence(
        tiny, tmp_path, monkeypatch, batch_size, accumulation):
    def spy(ids, starts, block_size, device):
        if isinstance(starts, list):  # those of training; evaluation has an array
            seen.extend(starts)
        return batch(ids, starts, block_size, device)

    seen = []
    batch = train.batch
    monkeypatch.setattr(train, "batch", spy)
    main(tiny(max_iters=7))
    consumed = state(tmp_path / "out").sequences
    used = seen[:consumed]
    assert consumed == 7 * 8
    seen.clear()
    main(tiny(init_from="resume", max_iters=17, batch_size=batch_size,
              gradient_accumulation_steps=accumulation))
    total = state(tmp_path / "out").sequences
    used += seen[:total - consumed]
    assert total == consumed + 10 * batch_size * accumulation
    assert used == train.training_starts(0, total, 3600, 16, 1337)  # in order, none twice


# ---- kills and signals


def kill_processes_with(word):
    """Kill the processes whose command line contains a word."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            if word.encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


@pytest.mark.parametrize("optimizer, dtype, processes, kills", [
    ("adamw", "float32", 1, 1), *(pytest.param(*each, marks=pytest.mark.faults) for each in [
        ("adamw", "float32", 1, 25), ("muon", "bfloat16", 1, 25), ("adamw", "bfloat16", 1, 25),
        ("muon", "float32", 2, 25)])])
def test_a_run_that_is_killed_at_random_moments_ends_bit_identically(
        tiny, tmp_path, optimizer, dtype, processes, kills):
    """In each life the run is killed at a random moment of steps, evaluation and saving."""
    settings = {"max_iters": 160 * kills, "eval_interval": 25, "eval_iters": 8, "dropout": 0.2,
                "dtype": dtype, "optimizer": optimizer, "log_interval": 5}
    if optimizer == "muon":
        settings |= MODERN

    def command(out_dir, start):
        run = ("train.py", *tiny(out_dir=out_dir, init_from=start, **settings))
        return run if processes == 1 else torchrun(processes, *run)

    def to_the_end(out_dir, start):
        if processes == 1:
            main(tiny(out_dir=out_dir, init_from=start, **settings))
        else:
            code, printed = finished(*command(out_dir, start))
            assert code == 0, printed

    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    to_the_end(whole, "scratch")
    for kill in range(kills):
        run = script(*command(killed, "auto"), start_new_session=True)
        wait_for(run, "| val")  # it has begun
        time.sleep(random.uniform(0, 0.4))
        os.killpg(run.pid, signal.SIGKILL)
        if processes > 1:  # torchrun's processes are in groups of their own
            kill_processes_with(f"--out_dir={killed}")
        rest, _ = run.communicate()
        assert "done in" not in rest, f"it ended after {kill} kills: more steps are needed"
    to_the_end(killed, "auto")
    assert same_run(whole, killed)


def test_a_signal_saves_and_then_ends_the_process_by_that_signal(tiny, tmp_path):
    """So a shell loop and `&&` stop, and a scheduler sees that the run is not done."""
    stopped = tmp_path / "stopped it's"
    run = script("train.py", *tiny(out_dir=stopped, max_iters=2000, eval_interval=1990))
    wait_for(run, "step   30/2000 | loss")
    run.send_signal(signal.SIGTERM)
    printed, _ = run.communicate()
    step = state(stopped).step
    assert run.returncode == -signal.SIGTERM and 30 <= step < 1990
    assert f"stopped by a signal; step {step:,} is saved" in printed
    assert "python train.py --init_from=resume --out_dir='" in printed  # it can be pasted


def signal_in_step(monkeypatch, step, number):
    """This process gets a signal while it computes this step."""
    def watched(seed, t, rank):
        seed_step(seed, t, rank)
        if t == step:
            signal.raise_signal(number)

    seed_step = train.seed_step
    monkeypatch.setattr(train, "seed_step", watched)


def test_a_stopped_run_is_a_keyboard_interrupt_for_a_program_that_calls_it(
        tiny, tmp_path, monkeypatch):
    """A notebook then shows the interrupt, and lives on."""
    signal_in_step(monkeypatch, 5, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        main(tiny(snapshots=True))
    assert stopped.value.number == signal.SIGINT and state(tmp_path / "out").step == 6
    assert list(snapshots(tmp_path / "out")) == [0, 5]  # 6 is not the end of the run


def test_under_nohup_a_hangup_is_ignored(tiny, tmp_path, monkeypatch):
    signal_in_step(monkeypatch, 5, signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    main(tiny())
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN
    assert state(tmp_path / "out").step == 12


def test_a_signal_interrupts_an_evaluation(tiny, tmp_path, monkeypatch):
    def signal_in_the_second_evaluation(ids, starts, *others):
        if not isinstance(starts, list):
            batches.append(len(starts))
            if len(batches) == 50:  # the first evaluation has 40
                signal.raise_signal(signal.SIGTERM)
        return batch(ids, starts, *others)

    whole = tmp_path / "whole"
    stopped = tmp_path / "stopped"
    settings = {"max_iters": 10, "eval_interval": 4, "eval_iters": 20, "batch_size": 1}
    main(tiny(out_dir=whole, **settings))
    batches = []
    batch = train.batch
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(train, "batch", signal_in_the_second_evaluation)
        main(tiny(out_dir=stopped, **settings))
    evaluated = [m["step"] for m in logged(stopped) if "val_loss" in m]
    assert len(batches) == 50 and evaluated == [0]
    assert state(stopped).step == 4
    main([f"--out_dir={stopped}", "--init_from=resume"])
    assert same_run(whole, stopped)


def test_a_resume_that_ends_in_its_first_evaluation_loses_no_line_and_keeps_its_settings(
        tiny, tmp_path, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGTERM)

    main(tiny())
    out = tmp_path / "out"
    before = logged(out)
    monkeypatch.setattr(train, "evaluate", interrupted)
    with pytest.raises(Stopped):
        main([f"--out_dir={out}", "--init_from=resume", "--max_iters=20"])
    assert logged(out) == before
    assert state(out).config["max_iters"] == 20


# ---- files


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="file names are found in /proc")
@pytest.mark.parametrize("name", ["metrics.jsonl", "best.pt", "ckpt.pt"])
def test_a_disk_that_fills_up_loses_nothing(tiny, tmp_path, monkeypatch, mistake, name):
    """ENOSPC when a resumed run writes this file, with half of it written."""
    def full(descriptor):
        if os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).startswith(name):
            os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    whole = tmp_path / "whole"
    out = tmp_path / "out"
    main(tiny(out_dir=whole))
    main(tiny(max_iters=4, lr_decay_iters=12))
    before = {path.name: path.read_bytes() for path in out.glob("*.pt")}
    again = tiny(init_from="resume", max_iters=12)
    fsync = os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left on device" in mistake(main, *again)
    assert (out / name).exists() and not list(out.glob("*.tmp"))
    if name != "ckpt.pt":  # best.pt is written before ckpt.pt
        assert {path.name: path.read_bytes() for path in out.glob("*.pt")} == before
    main(again)
    assert same_run(whole, out)


def test_what_a_killed_run_left_after_its_checkpoint_is_removed(tiny, tmp_path):
    main(tiny())
    out = tmp_path / "out"
    before = logged(out)
    with open(out / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 13, "loss": 1.0}\n{"step": 14, "lo')  # cut by the kill
    for name in ("ckpt.pt", "loss.png"):
        (out / f"{name}.0123abcd.tmp").touch()  # which it had half written
    main([f"--out_dir={out}", "--init_from=resume"])
    assert logged(out) == before and not list(out.glob("*.tmp"))


def snapshots(out_dir):
    """{step: weights} of the snapshots in the folder of a run."""
    model_args = state(out_dir).model_args
    return {step: checkpoint.read_snapshot(path, model_args)
            for step, path in checkpoint.snapshot_paths(out_dir).items()}


def test_snapshots_are_the_weights_on_a_log_scale_of_steps_and_change_nothing_else(tiny, tmp_path):
    """Those after the checkpoint to resume are removed, and written again."""
    plain = tmp_path / "plain"
    out = tmp_path / "out"
    main(tiny(out_dir=plain))
    main(tiny(snapshots=True, max_iters=8, lr_decay_iters=12))
    later = out / "snapshots" / "step-000012.safetensors"
    later.write_bytes(b"of a run that was killed before it saved step 12")
    (out / "snapshots" / "step-000016.safetensors").write_bytes(b"of a longer run")
    main([f"--out_dir={out}", "--init_from=resume", "--max_iters=12"])
    assert same_run(plain, out) and not (plain / "snapshots").exists()
    kept = snapshots(out)
    assert list(kept) == [0, 5, 8, 10, 12] and equal(kept[12], state(out).model)
    assert not equal(kept[0], kept[5])
    names = sorted(path.name for path in (out / "snapshots").iterdir())
    assert names == [f"step-{step:06}.safetensors" for step in kept]  # no temporary files


def test_a_snapshot_that_does_not_fit_is_reported(tiny, tmp_path):
    main(tiny(snapshots=True, max_iters=0, eval_iters=1))
    path = tmp_path / "out" / "snapshots" / "step-000000.safetensors"
    path.write_bytes(path.read_bytes().replace(b"wpe", b"wtf"))
    with pytest.raises(UserError, match=f"{path.name} is not a snapshot .*Unexpected key"):
        snapshots(tmp_path / "out")


def test_a_pickle_is_never_run_and_the_first_undamaged_checkpoint_is_taken(
        tiny, tmp_path, mistake, capsys):
    out = tmp_path / "out"
    trap = tmp_path / "trap"
    best = out / "best.pt"
    last = out / "ckpt.pt"
    resume = [f"--out_dir={out}", "--init_from=resume", "--max_iters=14"]
    main(tiny())
    torch.save({**torch.load(last), "meta": Payload(trap)}, last)
    best.rename(tmp_path / "aside")
    assert "could run code and is not opened" in mistake(main, *resume)
    (tmp_path / "aside").rename(best)
    main(resume)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and str(best) in warning
    assert state(out).step == 14 and not trap.exists()
