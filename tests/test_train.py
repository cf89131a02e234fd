"""pytest tests/test_train.py - the schedule, the order of the data, and what a run leaves behind"""

import itertools
import json
import math
import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import equal, log_of, logged, losses, state

import train
from configurator import configure
from internals import dataset, devices, outdir, runlog, signals
from internals.errors import UserError, one_line_errors
from model import GPT
from train import (
    TrainConfig,
    epoch_starts,
    evaluation_starts,
    learning_rate,
    main,
    sequences_per_epoch,
    training_starts,
)

# ---- the schedule


def test_learning_rate_warms_up_then_falls_along_a_cosine_and_stays_at_its_minimum():
    cfg = TrainConfig(learning_rate=1.0, min_lr=0.2, warmup_iters=10, max_iters=110)
    rates = [learning_rate(step, cfg) for step in range(200)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.6)
    assert all(a > b for a, b in itertools.pairwise(rates[10:111]))
    assert rates[110:] == [0.2] * 90
    constant = replace(cfg, decay_lr=False)
    assert {learning_rate(step, constant) for step in (0, 1, 3000)} == {1.0}


def test_defaults_of_the_schedule_are_nanogpts():
    cfg = TrainConfig()
    assert (cfg.warmup_steps, cfg.decay_steps, cfg.max_iters) == (2000, 600000, 600000)
    assert learning_rate(600000, cfg) == pytest.approx(6e-5)


@pytest.mark.parametrize("settings, warmup", [
    ({"max_iters": 100}, 10),
    ({"max_iters": 50, "warmup_iters": 100, "lr_decay_iters": 5000}, 5),
    ({"max_iters": 500, "warmup_iters": 100}, 100),
    ({"max_iters": 0}, 0),
])
def test_a_short_run_leaves_warm_up(settings, warmup):
    assert TrainConfig(**settings).warmup_steps == warmup


# ---- the order of the data


@pytest.mark.parametrize("n_tokens, T", [(1000, 16), (17, 16), (31, 16), (48, 16)])
def test_each_token_comes_once_an_epoch(n_tokens, T):
    ever_left_out = set()
    for epoch in range(20):
        targets = []
        for start in epoch_starts(epoch, n_tokens, T, seed=1):
            targets += range(start + 1, start + T + 1)
        left_out = set(range(1, n_tokens)) - set(targets)
        assert len(targets) == len(set(targets)) and min(targets) >= 1 and max(targets) < n_tokens
        assert len(left_out) < max(2 * T, n_tokens - T)
        ever_left_out |= left_out
    if n_tokens >= 3 * T:
        assert len(ever_left_out) > T  # it is not always the same text that is left out


def test_training_windows_are_a_function_of_their_number_and_the_seed():
    n = sequences_per_epoch(1000, 16)
    run = training_starts(0, 3 * n, 1000, 16, seed=5)
    assert run[:n] == list(epoch_starts(0, 1000, 16, 5))
    assert run[n:2 * n] != run[:n]
    assert training_starts(0, n, 1000, 16, seed=6) != run[:n]
    epoch_starts.cache_clear()
    assert training_starts(n - 3, 10, 1000, 16, seed=5) == run[n - 3:n + 7]


def test_aligned_windows_begin_with_a_line():
    places = set()
    for seed in range(20):
        run = training_starts(0, 300, 1000, 20, seed, align=10)
        places |= {start % 20 for start in run}
        assert len(set(run[:49])) == 49  # an epoch: none comes twice
    assert places == {0, 10}


def test_evaluation_windows_are_spread_over_the_split_and_do_not_overlap():
    starts = evaluation_starts(1000, 16, 10)
    assert len(starts) == 10 and starts[0] == 0 and starts[-1] == 16 * 61
    assert np.diff(starts).min() >= 16 and np.diff(starts).max() <= 16 * 7
    whole = evaluation_starts(1000, 16, 10**9)
    assert whole.tolist() == list(range(0, 999 - 15, 16))


def test_targets_are_the_inputs_one_token_on():
    data = np.arange(100, dtype=np.uint16)
    x, y = train.batch(data, [0, 83], 16, torch.device("cpu"))
    assert x[1].tolist() == list(range(83, 99)) and y[1].tolist() == list(range(84, 100))
    assert x.dtype == y.dtype == torch.int64


def test_evaluation_logging_and_samples_change_no_loss_by_one_bit(tiny):
    plain = losses(main(tiny()))
    assert len(plain) == 12
    assert losses(main(tiny(eval_interval=3, eval_iters=5, sample_tokens=7))) == plain
    assert losses(main(tiny(eval_interval=10**6, log_interval=2))) == plain[1::2]


def test_accumulated_steps_have_the_losses_of_one_big_batch(tiny):
    one = losses(main(tiny(dropout=0, gradient_accumulation_steps=1, batch_size=8)))
    four = losses(main(tiny(dropout=0, gradient_accumulation_steps=4, batch_size=2)))
    np.testing.assert_allclose(one, four, atol=1e-5)


# ---- what is passed on to the step


def test_every_step_is_seeded_by_the_seed_the_step_and_the_rank():
    numbers = []
    for arguments in ((1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (1, 2, 3)):
        train.seed_step(*arguments)
        numbers.append(torch.rand(1).item())
    assert len(set(numbers)) == 4 and numbers[0] == numbers[4]


def test_dropout_is_on_in_every_step_and_off_in_every_evaluation_and_sample(tiny, monkeypatch):
    def spy(self, idx, targets=None, **options):
        calls.append((targets is not None, self.training))
        return forward(self, idx, targets, **options)

    calls = []
    forward = GPT.forward
    monkeypatch.setattr(GPT, "forward", spy)
    main(tiny(max_iters=4, eval_interval=2, eval_iters=1, sample_tokens=3))
    evaluation = [(True, False)] * 2 + [(False, False)] * 3  # train and val, three tokens
    steps = [(True, True)] * 4  # two steps of two micro-batches
    assert calls == evaluation + steps + evaluation + steps + evaluation


def test_each_group_of_parameters_has_its_multiple_of_the_learning_rate(tiny, tmp_path):
    metrics = main(tiny(max_iters=3, optimizer="muon", embedding_lr=0.05, muon_lr=0.04))
    lr = metrics[-2]["lr"]  # the last line is an evaluation
    adamw, muon = state(tmp_path / "out").optimizer
    scales = [group["lr"] / lr for group in adamw["param_groups"]]
    assert scales == pytest.approx([5, 1, 1])
    assert all(group["lr"] == pytest.approx(4 * lr) for group in muon["param_groups"])


def test_a_grad_clip_of_zero_is_no_clipping(tiny):
    plain = losses(main(tiny(max_iters=4, grad_clip=0)))
    assert plain == losses(main(tiny(max_iters=4, grad_clip=1e9)))
    assert plain != losses(main(tiny(max_iters=4, grad_clip=1e-9)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_that_of_training_and_of_evaluation(tiny, tmp_path, dtype):
    wide, wide_step, _ = main(tiny(dtype="float32", max_iters=1, dropout=0))
    narrow, narrow_step, _ = main(tiny(dtype=dtype, max_iters=1, dropout=0))
    assert narrow["val_loss"] != wide["val_loss"] and narrow_step["loss"] != wide_step["loss"]
    assert narrow["val_loss"] == pytest.approx(wide["val_loss"], abs=0.02)
    assert narrow_step["loss"] == pytest.approx(wide_step["loss"], abs=0.02)
    # in float16 the loss, and with it the gradients, are first multiplied by 65536
    assert narrow_step["norm"] == pytest.approx(wide_step["norm"], rel=0.02)
    assert bool(state(tmp_path / "out").scaler) == (dtype == "float16")


# ---- what a run leaves


def test_a_run_learns_and_leaves_its_files(tiny, tmp_path, data_dir, capsys, pictures):
    metrics = main(tiny(max_iters=40, eval_interval=10, sample_tokens=20))
    out = tmp_path / "out"
    printed = capsys.readouterr().out
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert written == metrics
    evaluations = [m["val_loss"] for m in metrics if "val_loss" in m]
    assert len(evaluations) == 5 and len(losses(metrics)) == 40  # 40 updates, not 41
    assert evaluations[-1] < evaluations[0] - 0.5
    assert json.loads((out / "config.json").read_text())["max_iters"] == 40
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock", "best.pt", "ckpt.pt", "config.json", "loss.png", "metrics.jsonl"]
    saved = state(out)
    assert saved.step == 40 and saved.config["learning_rate"] == 0.01
    assert saved.meta == json.loads((data_dir / "tiny" / "meta.json").read_text())
    assert f"python sample.py --out_dir={out}" in printed
    assert f"| perplexity {math.exp(evaluations[-1]):.2f} |" in printed
    assert "of 128 tokens: 1.42 epochs" in printed  # 40 steps of 2 x 4 x 16, of 3,600
    step = metrics[1]
    assert step["tok_per_s"] * step["ms"] / 1e3 == pytest.approx(128)
    line = next(line for line in printed.splitlines() if line.startswith("step 20/40 | loss"))
    assert re.fullmatch(r"step 20/40 \| loss \d\.\d{4} \| lr \d\.\de-\d\d \| norm \d+\.\d\d \| "
                        r"\d+ ms \| [\d.]+[kM]? tok/s \| eta \d+m \d\ds", line)


@pytest.mark.parametrize("patience, expected", [(1, 4), (3, 11), (0, 21)])
def test_patience_counts_the_evaluations_since_the_best_one(
        tiny, monkeypatch, capsys, patience, expected):
    """The validation losses are given. `expected`: how many evaluations the run makes."""
    val = iter([5.0, 4.0, 3.0, 3.1, 2.9, 3.0, 3.0, 2.8] + [3.0] * 13)
    monkeypatch.setattr(train, "evaluate", lambda *_: {"train": 3.0, "val": next(val)})
    metrics = main(tiny(max_iters=40, eval_interval=2, patience=patience))
    if patience == 3:
        assert "has not improved since step 14, for patience x eval_interval = 6 steps" in (
            capsys.readouterr().out)
    assert len([m for m in metrics if "val_loss" in m]) == expected
    assert len(losses(metrics)) == 2 * (expected - 1)  # it ends at an evaluation


def test_only_better_ones_are_saved_on_request(tiny, monkeypatch):
    """The validation losses are given, at steps 0, 5, 10, 15 and 17."""
    def save(run, cfg, data, log, name):
        saved.append((run.step, name))

    saved = []
    val = iter([5.0, 4.0, 4.5, 4.6, 4.7])
    monkeypatch.setattr(train, "evaluate", lambda *_: {"train": 3.0, "val": next(val)})
    monkeypatch.setattr(train, "save", save)
    main(tiny(max_iters=17, eval_interval=5, always_save_checkpoint=False))
    assert saved == [(5, "best.pt"), (5, "ckpt.pt"), (17, "ckpt.pt")]


def test_a_new_run_keeps_the_one_that_was_there(tiny, tmp_path, capsys):
    main(tiny(max_iters=4, snapshots=True))
    out = tmp_path / "out"
    previous = out / "previous-1"
    before = (out / "ckpt.pt").read_bytes()
    main(tiny(max_iters=8, seed=2))
    assert (previous / "ckpt.pt").read_bytes() == before
    assert (previous / "snapshots").is_dir() and not (out / "snapshots").exists()
    assert state(out).step == 8 and "is kept in" in capsys.readouterr().out
    assert outdir.FILES[-1] == "ckpt.pt"  # moved last: init_from=auto finds it if that is cut off


@pytest.mark.parametrize("mode, last_step", [("eval_only", 12), ("dry_run", 15)])
def test_eval_only_and_a_dry_run_write_nothing(tiny, tmp_path, capsys, mode, last_step):
    main(tiny(**{mode: True}))
    assert "| best" not in capsys.readouterr().out  # nothing is saved, so nothing is best
    out = tmp_path / "out"
    assert not out.exists()
    main(tiny())
    before = {path: path.read_bytes() for path in out.iterdir()}
    metrics = main(tiny(init_from="resume", max_iters=50, **{mode: True}))
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert metrics[-1]["step"] == last_step


def test_a_constant_learning_rate_has_no_warmup(tiny, capsys):
    main(tiny(max_iters=1, decay_lr=False))
    assert "1 steps (0 of warmup)" in capsys.readouterr().out


def test_a_refusal_leaves_the_folder_as_it_was(tiny, tmp_path, monkeypatch, mistake):
    def cannot_share(*_):
        raise UserError("3 processes cannot share 4 micro-batches")

    main(tiny())
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(train.World, "per_process", cannot_share)
    for start in ("scratch", "resume"):
        assert "cannot share" in mistake(main, *tiny(init_from=start))
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_model_of_another_program_is_not_moved_away(tiny, tmp_path, mistake):
    path = tmp_path / "out" / "config.json"
    path.parent.mkdir()
    path.write_text('{"model_type": "gpt2"}')
    (tmp_path / "out" / "optimizer.pt").touch()
    assert "another program wrote it" in mistake(main, *tiny())
    assert not (tmp_path / "out" / ".lock").exists()
    assert path.read_text() == '{"model_type": "gpt2"}'


def test_a_dry_run_says_what_the_run_takes(tiny, capsys):
    main(tiny(dry_run=True, max_iters=1000, eval_interval=100, eval_iters=10**6))
    printed = capsys.readouterr().out
    assert printed.count("/1000 | loss") == 3 and "val " not in printed
    parameters = 2 * (12 * 16**2 + 2 * 16) + 16 * (16 + 41) + 16  # 41 characters
    assert f"  parameters  {parameters:,}\n" in printed
    assert "GB at the peak" in printed
    assert "3,600 tokens per epoch, 28 steps\n" in printed  # 8 sequences of 16 tokens each
    # an evaluation has at most the sequences of the text: 62 batches of 4
    assert re.search(r"1,000 steps, and 11 evaluations of \dm \d\ds", printed)


def test_eval_only_can_evaluate_both_splits_completely(tiny, data_dir):
    metrics = main(tiny(eval_only=True, eval_iters=10**6, batch_size=3))
    _, _, config = configure("", TrainConfig, train.GPTConfig, argv=tiny())
    data = dataset.load(data_dir / "tiny")
    torch.manual_seed(1337)
    model = GPT(replace(config, vocab_size=data.vocab_size)).eval()
    for split, ids in (("train", data.train), ("val", data.val)):
        starts = range(0, len(ids) - 16, 16)
        x, y = train.batch(ids, starts, 16, torch.device("cpu"))
        _, loss = model(x, y)
        assert metrics[0][f"{split}_loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_a_tracker_gets_what_the_metrics_get(tiny, monkeypatch):
    tracker = mock.Mock()
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    metrics = main(tiny(wandb_log=True, tracker="trackio", wandb_project="p", wandb_run_name="n"))
    given = tracker.init.call_args.kwargs
    assert (given["project"], given["name"], given["config"]["n_layer"]) == ("p", "n", 2)
    assert tracker.log.call_args_list == [mock.call(m, step=m["step"]) for m in metrics]
    tracker.finish.assert_called_once()


def poison(monkeypatch, steps, what="loss"):
    """Make the training loss, or only its gradient, NaN in these steps."""
    def watched(seed, step, rank):
        now.append(step)
        seed_step(seed, step, rank)

    def poisoned(self, idx, targets=None, **options):
        logits, loss = forward(self, idx, targets, **options)
        if self.training and now[-1] in steps:
            if what == "loss":
                loss = loss * math.nan
            else:
                loss.register_hook(lambda gradient: gradient * math.nan)
        return logits, loss

    now = []
    seed_step = train.seed_step
    forward = GPT.forward
    monkeypatch.setattr(train, "seed_step", watched)
    monkeypatch.setattr(GPT, "forward", poisoned)


@pytest.mark.parametrize("optimizer, dtype, what", [
    ("adamw", "float32", "loss"), ("adamw", "float32", "gradient"), ("muon", "float16", "loss")])
def test_a_step_that_is_not_finite_changes_nothing(tiny, tmp_path, monkeypatch, capsys, optimizer,
                                                   dtype, what):
    main(tiny(max_iters=4, optimizer=optimizer, dtype=dtype))
    before = state(tmp_path / "out")
    poison(monkeypatch, range(4, 9), what)
    metrics = main(tiny(init_from="resume", max_iters=9))
    after = state(tmp_path / "out")
    assert after.step == 9 and equal(before.model, after.model)
    assert after.sequences == 9 * 8  # a skipped step has used its sequences
    for was, now in zip(before.optimizer, after.optimizer, strict=True):
        assert equal(was["state"], now["state"])
    if what == "loss":
        assert [loss for step, loss in losses(metrics) if step > 4] == [None] * 5
    assert capsys.readouterr().out.count("not finite: skipped") == 5


@pytest.mark.parametrize("log_interval, n", [(1, 10), (1000, 17)])
def test_ten_bad_steps_in_a_row_end_the_run_when_it_logs_and_at_its_end(
        tiny, tmp_path, monkeypatch, mistake, log_interval, n):
    poison(monkeypatch, range(3, 99))
    line = mistake(main, *tiny(max_iters=20, log_interval=log_interval, eval_interval=5))
    assert f"in the last {n} steps, before step {3 + n}" in line and "learning_rate" in line
    weights = state(tmp_path / "out").model.values()
    assert all(weight.isfinite().all() for weight in weights)


def test_a_compiler_that_fails_gives_one_warning_and_training_continues(tiny, monkeypatch, capsys):
    def broken(model):
        raise RuntimeError("no C++ compiler\nin many words")

    plain = losses(main(tiny(compile=False)))
    monkeypatch.setattr(torch, "compile", broken)
    assert losses(main(tiny(compile=True))) == plain
    warning, = capsys.readouterr().err.splitlines()
    assert "torch.compile failed" in warning and "no C++ compiler" in warning


def test_out_of_memory_names_the_settings_to_change(tiny, monkeypatch, mistake):
    monkeypatch.setattr(GPT, "forward", mock.Mock(side_effect=torch.OutOfMemoryError("CUDA")))
    line = mistake(main, *tiny())
    assert "a smaller batch_size with more gradient_accumulation_steps needs less" in line


# ---- what happens at the edges of a run


def test_a_validation_loss_that_is_nan_shows_no_sample_and_saves_the_checkpoint(
        tiny, tmp_path, capsys):
    main(tiny(learning_rate=1e15, warmup_iters=0, max_iters=9, sample_tokens=20, grad_clip=0))
    printed, err = capsys.readouterr()
    assert "val nan" in printed and state(tmp_path / "out").step == 9
    assert "there is no sample: the model's logits are not numbers (NaN)" in err
    assert not (tmp_path / "out" / "best.pt").exists()
    assert "best.pt" not in printed  # it names what there is


def test_fine_tuning_that_only_gets_worse_keeps_the_model_it_began_with(tiny, tmp_path):
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    main(tiny(out_dir=base, max_iters=30))
    main(tiny(out_dir=tuned, init_from=base, learning_rate=5.0, max_iters=6, eval_interval=3))
    best = state(tuned, "best.pt")
    assert best.step == 0 and equal(best.model, state(base, "best.pt").model)


def test_a_second_run_in_the_same_folder_is_refused(tiny, tmp_path, mistake):
    out = tmp_path / "out"
    main(tiny(max_iters=4))
    before = (out / "ckpt.pt").read_bytes()
    with FileLock(out / ".lock"):
        line = mistake(main, *tiny())
    assert f"another run is writing to {out}" in line
    assert (out / "ckpt.pt").read_bytes() == before and not (out / "previous-1").exists()


def test_a_run_does_not_overwrite_what_another_one_has_saved_since_it_was_read(
        tiny, tmp_path, mistake, monkeypatch):
    """As after a restart by torchrun, when the old process takes a while to stop."""
    main(tiny(max_iters=4, eval_interval=4))
    out = tmp_path / "out"
    begin = train.begin

    def begin_while_another_run_saves(*arguments):
        path = out / "ckpt.pt"
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
        return begin(*arguments)

    monkeypatch.setattr(train, "begin", begin_while_another_run_saves)
    line = mistake(main, "--init_from=resume", f"--out_dir={out}", "--max_iters=8")
    assert "has written a checkpoint to" in line and "run the command again" in line
    assert state(out).step == 4 and logged(out)[-1]["step"] == 4


def test_a_bug_of_ours_keeps_its_traceback_and_releases_the_lock(tiny, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError) as kept:
        patch.setattr(train, "learning_rate", lambda step, cfg: 1 / 0)
        with one_line_errors():
            main(tiny(max_iters=1))
    main(tiny(max_iters=1))
    assert kept.traceback  # which keeps the objects of the run alive


def test_a_run_works_in_a_thread(tiny):
    """There Python allows no signal handlers; notebooks and web servers do it."""
    with ThreadPoolExecutor(1) as pool:
        metrics = pool.submit(main, tiny(max_iters=4)).result()
    assert len(losses(metrics)) == 4


def test_signal_handlers_are_as_before_when_a_run_is_over(tiny):
    before = [signal.getsignal(number) for number in signal.valid_signals()]
    main(tiny(max_iters=2))
    assert [signal.getsignal(number) for number in signal.valid_signals()] == before


def test_a_run_stopped_before_its_first_step_does_not_say_that_it_is_saved(
        tiny, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(tiny())
    printed = capsys.readouterr().out
    assert "stopped by a signal before the first step" in printed and "saved" not in printed
    assert not list((tmp_path / "out").glob("*.pt"))


def test_a_log_line_has_the_mean_time_of_its_steps_and_the_rest_of_the_run(
        tmp_path, monkeypatch, capsys):
    def at(seconds):
        monkeypatch.setattr(runlog.time, "perf_counter", lambda: seconds)

    at(0.0)
    cfg = TrainConfig(max_iters=100, eval_interval=20, log_interval=10, out_dir=str(tmp_path),
                      eval_only=True)
    log = log_of(cfg, size=8)
    log.step_tokens = 10
    log.peak = 10 * devices.flops_per_token(log.run.model)
    at(30.0)
    log.after_evaluation(0)  # it took half a minute
    at(35.0)
    log.step(10, 1e-3, 4.0, 1.0, 0)
    assert [(m["ms"], m["tok_per_s"]) for m in log.metrics] == [(500, 20)]
    # each of the 8 processes could do 10 tokens per second; 90 steps of half a second, and
    # evaluations at 20, 40, 60, 80 and 100
    assert "| mfu 25.0% | eta 3m 15s" in capsys.readouterr().out


def test_a_second_signal_within_a_second_is_the_same_one(monkeypatch):
    """A Ctrl-C under torchrun arrives twice: from the terminal and from torchrun."""
    ended = []
    monkeypatch.setattr(signals, "end_by", ended.append)
    with signals.StopSignals() as received:
        received.catch()
        for now in (5.0, 5.9):
            monkeypatch.setattr(signals.time, "monotonic", lambda now=now: now)
            signal.raise_signal(signal.SIGINT)
        assert received.arrived and not ended
        monkeypatch.setattr(signals.time, "monotonic", lambda: 6.1)
        signal.raise_signal(signal.SIGTERM)
    assert ended == [signal.SIGTERM]
