"""pytest tests/test_resume.py - a run that is stopped, killed or moved ends as one that was not"""

import os
import random
import signal
import time

import pytest
import torch
from helpers import (
    MODERN,
    TINY_RUN,
    Payload,
    equal,
    finished,
    logged,
    losses,
    same_run,
    script,
    state,
    wait_for,
)

import prepare
import train
from internals import checkpoint
from internals.checkpoint import is_snapshot_step
from internals.errors import UserError
from internals.outdir import read_metrics
from internals.signals import Stopped
from train import main


def append(path, text):
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


@pytest.mark.parametrize("dtype, recipe", [
    ("float32", {}), ("float16", {}), ("bfloat16", MODERN | {"optimizer": "muon"})],
    ids=["float32", "float16", "bfloat16 and modern"])
def test_resumed_run_equals_uninterrupted_run(tiny, tmp_path, dtype, recipe):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
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


def test_a_run_that_is_resumed_after_its_best_step_remembers_both(tiny, tmp_path, capsys):
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
    assert f"step 12; the best validation loss so far is {best.best_loss:.4f}" in (
        capsys.readouterr().out)


# ---- the settings of a resumed run


@pytest.mark.parametrize("settings, line", [
    ({"min_lr": 0.0, "lr_decay_iters": 6}, "the learning rate is 0 from step 6 on: set --lr_decay"),
    ({"min_lr": 0.0, "lr_decay_iters": 6, "cooldown": 0.5}, "the learning rate is 0 from step 6"),
    ({"min_lr": 0.0}, None), ({"lr_decay_iters": 6}, None),
    ({"warmup_iters": 100}, "warmup_iters=100 is too long for this run: it is shortened to 1"),
    ({"warmup_iters": 11}, None),
], ids=str)
def test_a_schedule_that_is_hardly_meant_is_told_before_the_run(tiny, capsys, settings, line):
    metrics = main(tiny(**settings))
    printed = capsys.readouterr().out
    before, _ = printed.split("1 x cpu")
    assert before.startswith(line) if line else not before
    assert any(m.get("lr") == 0 for m in metrics) == ("rate is 0" in before)


@pytest.mark.parametrize("given, message", [
    ({"n_embd": 128}, "n_embd=128, but the model to start from has 16: leave it out"),
    ({"size": "gpt2"}, "(from size=gpt2), but the model to start from has"),
    ({"recipe": "modern"}, "optimizer=muon (from recipe=modern), but the checkpoint to resume has"),
    ({"min_lr": 0.5}, "min_lr=0.5 is above learning_rate=0.01"),
    ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
    ({"min_lr": 0.005}, None),  # above the default learning_rate, below that of the run
])
def test_settings_given_on_a_resume_are_checked_together_with_those_of_the_run(
        tiny, tmp_path, mistake, given, message):
    main(tiny(max_iters=4))
    argv = [f"--{name}={value}" for name, value in ({"max_iters": 5} | given).items()]
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
    best, content = state(out, "best.pt"), (out / "best.pt").read_bytes()
    capsys.readouterr()
    settings = {"max_iters": 13, "learning_rate": 5.0, "decay_lr": False} | given
    main([f"--out_dir={out}", "--init_from=resume"] + [
        f"--{name}={value}" for name, value in settings.items()])
    printed = capsys.readouterr().out
    kept = out / "best-until-12.pt"
    if line:
        assert f"{line}, so best.pt will be the best model from step 12 on" in printed
        assert kept.read_bytes() == content and "is inf" not in printed
        assert state(out).best_loss != best.best_loss and state(out).best_step >= 12
    else:
        assert "evaluations now use" not in printed and not kept.exists()
        assert state(out).best_loss == best.best_loss


# ---- the order of the data


@pytest.mark.parametrize("first, then", [
    ({"batch_size": 8, "gradient_accumulation_steps": 1}, {"batch_size": 5}),
    ({"batch_size": 4, "gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 6}),
])
def test_a_run_resumed_with_another_batch_size_takes_the_next_sequence(
        tiny, tmp_path, monkeypatch, first, then):
    seen, original = [], train.batch

    def spy(ids, starts, block_size, device):
        if isinstance(starts, list):  # those of training; evaluation has an array
            seen.extend(starts)
        return original(ids, starts, block_size, device)

    monkeypatch.setattr(train, "batch", spy)
    main(tiny(max_iters=7, **first))
    consumed = state(tmp_path / "out").sequences
    used = seen[:consumed]
    assert consumed == 7 * 8
    seen.clear()
    resumed = tiny(init_from="resume", max_iters=17, **first | then)
    main(resumed)
    total = state(tmp_path / "out").sequences
    used += seen[:total - consumed]
    step = (first | then)["batch_size"] * (first | then)["gradient_accumulation_steps"]
    assert total == consumed + 10 * step
    assert used == train.training_starts(0, total, 3600, 16, 1337)  # in order, none twice


# ---- kills and signals


def test_killed_run_resumes_bit_identically(tiny, tmp_path):
    """SIGKILL at a random moment, then to the end; test_faults.py has a hundred."""
    settings = {"max_iters": 120, "eval_interval": 30, "eval_iters": 4, "dropout": 0.2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(tiny(out_dir=whole, **settings))
    run = script("train.py", *tiny(out_dir=killed, init_from="auto", **settings))
    wait_for(run, "| val")  # it has begun
    time.sleep(random.uniform(0, 0.4))
    run.kill()
    rest, _ = run.communicate()
    assert "done in" not in rest
    code, printed = finished("train.py", *tiny(out_dir=killed, init_from="auto", **settings))
    assert code == 0, printed
    assert same_run(whole, killed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_then_ends_the_process_by_that_signal(tiny, tmp_path, number):
    """So a shell loop and `&&` stop, and a scheduler sees that the run is not done."""
    stopped = tmp_path / "stopped it's"
    settings = {"max_iters": 2000, "eval_interval": 1990}
    run = script("train.py", *tiny(out_dir=stopped, **settings))
    wait_for(run, "step   30/2000 | loss")
    run.send_signal(number)
    printed, _ = run.communicate(timeout=60)
    step = state(stopped).step
    assert run.returncode == -number and 30 <= step < 1990
    assert f"stopped by a signal; step {step:,} is saved" in printed
    assert "python train.py --init_from=resume --out_dir='" in printed  # it can be pasted
    assert "best.pt" not in printed and not (stopped / "best.pt").exists()  # it was never written


def signal_in_step(monkeypatch, step, number=signal.SIGTERM):
    """This process gets a signal while it computes this step."""
    def watched(seed, t, rank):
        seed_step(seed, t, rank)
        if t == step:
            signal.raise_signal(number)

    seed_step = train.seed_step
    monkeypatch.setattr(train, "seed_step", watched)


def test_under_nohup_a_hangup_is_ignored(tiny, tmp_path, monkeypatch):
    signal_in_step(monkeypatch, 5, signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    main(tiny())
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN
    assert state(tmp_path / "out").step == 12


def test_a_signal_interrupts_an_evaluation(tiny, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = {"max_iters": 10, "eval_interval": 4, "eval_iters": 20, "batch_size": 1}
    main(tiny(out_dir=whole, **settings))
    batches, original = [], train.batch

    def signal_in_the_second_evaluation(ids, starts, *others):
        if not isinstance(starts, list):
            batches.append(len(starts))
            if len(batches) == 50:  # the first evaluation has 40
                signal.raise_signal(signal.SIGTERM)
        return original(ids, starts, *others)

    monkeypatch.setattr(train, "batch", signal_in_the_second_evaluation)
    with pytest.raises(Stopped):
        main(tiny(out_dir=stopped, **settings))
    evaluated = [m["step"] for m in logged(stopped) if "val_loss" in m]
    assert len(batches) == 50 and evaluated == [0]
    monkeypatch.undo()
    assert state(stopped).step == 4
    main([f"--out_dir={stopped}", "--init_from=resume"])
    assert same_run(whole, stopped)


# ---- files


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """An undisturbed run of 16 steps, and the settings that it has besides TINY_RUN."""
    folder = tmp_path_factory.mktemp("whole")
    settings = TINY_RUN | {"data_dir": data_dir, "lr_decay_iters": 16, "max_iters": 16}
    main([f"--{name}={value}" for name, value in (settings | {"out_dir": folder}).items()])
    return folder


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="file names are found in /proc")
@pytest.mark.parametrize("name", [
    "metrics.jsonl", "config.json", "best.pt", "ckpt.pt"])
def test_a_disk_that_fills_up_loses_nothing(whole, tiny, tmp_path, monkeypatch, mistake, name):
    """ENOSPC when a resumed run writes this file, with half of it written."""
    out = tmp_path / "out"
    main(tiny(max_iters=4, lr_decay_iters=16))
    before = {path.name: path.read_bytes() for path in out.glob("*.pt")}
    fsync = os.fsync

    def full(descriptor):
        if os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).startswith(name):
            os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    line = mistake(main, *tiny(init_from="resume", max_iters=16, lr_decay_iters=16))
    assert "No space left on device" in line
    assert (out / name).exists() and not list(out.glob("*.tmp"))
    if name != "ckpt.pt":  # best.pt is written before ckpt.pt
        assert {path.name: path.read_bytes() for path in out.glob("*.pt")} == before
    monkeypatch.undo()
    main(tiny(init_from="resume", max_iters=16, lr_decay_iters=16))
    assert same_run(whole, out)


def test_what_a_killed_run_logged_after_its_checkpoint_is_not_kept(tiny, tmp_path):
    main(tiny())
    before, file = logged(tmp_path / "out"), tmp_path / "out" / "metrics.jsonl"
    append(file, '{"step": 13, "loss": 1.0}\n{"step": 14, "lo')  # cut by the kill
    main([f"--out_dir={tmp_path / 'out'}", "--init_from=resume"])
    assert logged(tmp_path / "out") == before


def test_the_evaluation_at_the_end_of_a_run_stays_when_it_is_trained_longer(tiny, tmp_path):
    """It is not due again at that step, so nothing would replace it."""
    main(tiny(max_iters=6, eval_interval=4))
    main(tiny(max_iters=12, eval_interval=4, init_from="resume"))
    steps = [m["step"] for m in logged(tmp_path / "out") if "val_loss" in m]
    assert steps == [0, 4, 6, 8, 12]


def snapshots(out_dir):
    """{step: weights} of the snapshots in the folder of a run."""
    model_args = state(out_dir).model_args
    return {step: checkpoint.read_snapshot(path, model_args)
            for step, path in checkpoint.snapshot_paths(out_dir).items()}


def test_snapshots_are_the_weights_on_a_log_scale_of_steps_and_change_nothing_else(tiny, tmp_path):
    plain, out = tmp_path / "plain", tmp_path / "out"
    main(tiny(out_dir=plain))
    main(tiny(snapshots=True))
    assert same_run(plain, out)
    kept = snapshots(out)
    assert list(kept) == [0, 5, 10, 12] and equal(kept[12], state(out).model)
    assert not equal(kept[0], kept[5]) and not (plain / "snapshots").exists()
    names = sorted(path.name for path in (out / "snapshots").iterdir())
    assert names == [f"step-{step:06}.safetensors" for step in kept]  # no temporary files


def test_snapshot_steps_double_from_5_on():
    assert [step for step in range(1000) if is_snapshot_step(step)] == [
        0, 5, 10, 20, 40, 80, 160, 320, 640]


def test_snapshots_after_the_checkpoint_to_resume_are_removed_and_written_again(tiny, tmp_path):
    """A resumed run has its settings, so snapshots too."""
    out = tmp_path / "out"
    main(tiny(snapshots=True, max_iters=8, lr_decay_iters=12))
    later = out / "snapshots" / "step-000012.safetensors"
    later.write_bytes(b"of a run that was killed before it saved step 12")
    (out / "snapshots" / "step-000016.safetensors").write_bytes(b"of a longer run")
    main([f"--out_dir={out}", "--init_from=resume", "--max_iters=12"])
    kept = snapshots(out)
    assert list(kept) == [0, 5, 8, 10, 12] and equal(kept[12], state(out).model)


def test_a_snapshot_that_does_not_fit_is_reported(tiny, tmp_path):
    main(tiny(snapshots=True, max_iters=0, eval_iters=1))
    path = tmp_path / "out" / "snapshots" / "step-000000.safetensors"
    content = path.read_bytes()
    for damaged, message in ((content[:-9], "is damaged"),
                             (content.replace(b"wpe", b"wtf"), "lacks the weight transformer.wpe")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{path.name} is not a snapshot .*{message}"):
            snapshots(tmp_path / "out")


def test_lines_that_are_no_metrics_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n[]\n7\n{"loss": 1}\n{"step": "2"}\n{"step": true}\n')
    assert read_metrics(path, 5, is_due=True) == [{"step": 1, "loss": 2.0}]


def test_a_pickle_is_never_run_and_the_first_undamaged_checkpoint_is_taken(
        tiny, tmp_path, mistake, capsys):
    out, trap = tmp_path / "out", tmp_path / "trap"
    best, last = out / "best.pt", out / "ckpt.pt"
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
    torch.save(Payload(trap), last)
    torch.load(last, weights_only=False)  # the trap does work
    assert trap.exists()


def test_auto_resumes_if_there_is_something_to_resume(tiny, tmp_path, capsys):
    main(tiny(init_from="auto", max_iters=5))
    assert "resuming" not in capsys.readouterr().out
    main(tiny(init_from="auto", max_iters=9))
    assert "resuming from step 5" in capsys.readouterr().out
    assert state(tmp_path / "out").step == 9


def test_a_resumed_run_has_the_losses_of_the_steps_before_it(tiny):
    first = losses(main(tiny(max_iters=5)))
    assert losses(main(tiny(max_iters=9, init_from="resume")))[:5] == first
