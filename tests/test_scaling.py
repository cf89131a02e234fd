"""pytest tests/test_scaling.py - scaling laws: the fit, its interval, and the five commands"""

import functools
import json
import math
import os
import re
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import ROOT, command_line

sys.path.insert(0, str(ROOT / "tools"))

import scaling

from internals.errors import UserError
from internals.scaling_law import LAWS, Fit, Law, fit_law, non_negative
from model import GPT, GPTConfig

N = np.repeat([7.3e3, 26.8e3, 86e3], 5)  # a ladder of three sizes and five horizons
D = np.tile(51_200 * 2.0 ** np.arange(5), 3)
TARGET = 236e3, 2.66e6
LAW = Law(E=1.3, A=0.15, B=0.5, a=0.35, b=0.45)
VOCABULARY = 41  # of the dataset `tiny`
SIZES = "2x16,2x32,3x48,3x64,3x96,4x128"


def fake_train(settings, folder):
    """Like train_once, but without training: the loss follows LAW, is lowest for learning rates
    that depend on width and steps, and differs by 0.4% between seeds."""
    if (folder / "result.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    out = folder.parent
    if out.name == "runs":
        out = out.parent
    calls = out / "calls.txt"
    with open(calls, "a", encoding="utf-8") as file:
        file.write(folder.name + "\n")
    if (out / "stop").exists() and len(calls.read_text().splitlines()) > 40:
        time.sleep(0.1)  # meanwhile, scaling.py can take back the runs that have not begun
        raise UserError("the power failed")
    width = settings["n_embd"]
    steps = settings["max_iters"]
    weights = 12 * settings["n_layer"] * width**2 + VOCABULARY * width
    best = 0.01 * (width / 80) ** -0.9 * (steps / 5200) ** -0.3
    loss = LAW.loss(weights, steps * 512)
    loss *= 1 + 0.01 * math.log(settings["learning_rate"] / best) ** 2
    random = np.random.default_rng([width, steps, settings["seed"]])
    loss *= 1 + 0.004 * random.normal()
    (folder / "config.json").write_text(json.dumps({"max_iters": steps, "dropout": 0.0}))
    seconds = 3.0 + steps / 100 + weights * steps / 1e7
    (folder / "result.json").write_text(json.dumps({"loss": loss, "seconds": seconds}))


CONFIG = '''
dataset = "tiny"
n_layer, n_head, n_embd, block_size = 3, 5, 80, 64
batch_size = 8
gradient_accumulation_steps = 1
learning_rate = 0.012
max_iters = 5200
'''


@pytest.fixture
def study(tmp_path, data_dir, monkeypatch):
    """A function: run a command of scaling.py, a list of words, on tiny data with fake_train. The
    folder of the study is study.out."""
    (tmp_path / "big.py").write_text(CONFIG, encoding="utf-8")
    monkeypatch.setattr(scaling, "train_once", fake_train)
    monkeypatch.setattr(scaling, "MOST_EPOCHS", 20_000)  # the text has 3,600 characters

    def command(words, **settings):
        settings = {"out_dir": tmp_path / "out", "data_dir": data_dir, "sizes": SIZES} | settings
        options = command_line(settings)
        scaling.main([*map(str, words), *options])

    command.config = tmp_path / "big.py"
    command.out = tmp_path / "out"
    command.target = tmp_path / "out" / "target-3x80-5200"
    return command


@pytest.fixture
def ladder(study):
    """A study whose ladder is trained."""
    study(["plan", study.config])
    study(["run"])
    return study


@pytest.fixture
def predicted(ladder):
    """A study whose large run is predicted, and then trained."""
    ladder(["predict", ladder.config])
    ladder(["run"])
    return ladder


def noisy(law, random, noise=0.0045, seeds=2):
    """Losses (cells, seeds) of the ladder, with relative noise."""
    return law.loss(N, D)[:, None] * (1 + noise * random.normal(size=(len(N), seeds)))


def test_least_squares_without_negative_coefficients():
    columns = np.array([[[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
    found, misfit = non_negative(columns, np.array([[1.0, -1.0, 2.0]]))  # 2 of one, -1 of the other
    assert found == pytest.approx(np.array([[1.5, 0.0]])) and misfit == pytest.approx(1.5)


@pytest.mark.parametrize("q", LAWS)
@pytest.mark.parametrize("law", [LAW, Law(0.8, 0.5, 0.6, 0.2, 0.3), Law(1.6, 0.1, 0.4, 0.6, 0.7)])
def test_the_fit_recovers_five_known_parameters(law, q):
    law = replace(law, q=q)
    losses = law.loss(N, D)
    found = fit_law(N, D, losses, q=q)
    for name in "EABab":
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-4)
    assert Fit(N, D, np.stack([losses, losses], axis=1)).law.q == q
    fixed = fit_law(N, D, losses, fixed_E=law.E, q=q)
    assert fixed.B == pytest.approx(law.B, rel=1e-4)
    assert fixed.b == pytest.approx(law.b, rel=1e-4)


def test_the_80_percent_interval_covers_70_to_90_of_100_measurements():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        fit = Fit(N, D, noisy(LAW, random))
        measured = LAW.loss(*TARGET) * (1 + 0.0045 * random.normal())
        error = measured / fit.law.loss(*TARGET) - 1
        hits += abs(error) <= scaling.Z80 * fit.deviation(*TARGET)
    assert 70 <= hits <= 90


def test_a_large_run_is_predicted_trained_and_checked(ladder, capsys):
    ladder(["fit"])
    fitted = capsys.readouterr().out
    assert "| 3x48-1600 | 84,912 | 819,200 |" in fitted  # 12 * 3 * 48^2 + 41 * 48
    assert "| both |" in fitted and "q = 1 describes the ladder best" in fitted
    powers = re.search(r"width\^(\S+) steps\^(\S+),", fitted)
    assert float(powers[1]) == pytest.approx(-0.9, abs=0.25)
    assert float(powers[2]) == pytest.approx(-0.3, abs=0.15)

    ladder(["predict", ladder.config])
    prediction = json.loads((ladder.target / "prediction.json").read_bytes())
    low, high = prediction["interval_80"]
    lowest, highest = prediction["interval_95"]
    assert lowest < low < prediction["loss"] < high < highest
    assert prediction["N"] == 12 * 3 * 80**2 + VOCABULARY * 80
    assert prediction["D"] == 5200 * 512
    assert prediction["settings"]["learning_rate"] == pytest.approx(0.01, rel=0.35)
    power_law, same_loss = prediction["baselines"].values()
    assert power_law < prediction["loss"] < same_loss
    before = (ladder.out / "scaling.png").read_bytes()

    ladder(["run"])
    capsys.readouterr()
    ladder(["check", ladder.target])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"loss: predicted {prediction['loss']:.4f} ({low:.4f} to ")
    assert ", measured 1.5" in printed[0] and printed[0].endswith("a hit")
    assert len(printed) == 4 and "+" in printed[2]  # the baselines, of which the last is too high
    assert (ladder.out / "scaling.png").read_bytes() != before  # the star of the measured loss


def test_a_killed_run_continues_and_a_done_one_trains_nothing(study, mistake):
    def calls():
        return (study.out / "calls.txt").read_text().splitlines()

    study(["plan", study.config])
    (study.out / "stop").touch()
    assert "the power failed" in mistake(study, "run")
    (study.out / "stop").unlink()
    first = calls()
    assert len(first) < 50  # of 58: after the error, no other run is started
    done = {path.parent.name for path in study.out.glob("runs/*/result.json")}
    study(["run"])
    both = calls()
    assert 38 <= len(done) <= 41 and not set(both[len(first):]) & done  # two runs at a time
    assert set(both) == {path.name for path in study.out.glob("runs/*")}
    study(["run"])
    assert calls() == both


def test_a_prediction_counts_only_for_its_own_later_run(predicted, mistake):
    assert "must be made before the run" in mistake(predicted, "predict", predicted.config)
    config = predicted.target / "config.json"
    earlier = time.time() - 100
    os.utime(config, (earlier, earlier))
    assert "s before its prediction was written" in mistake(predicted, "check", predicted.target)
    config.write_text(json.dumps({"max_iters": 5200, "dropout": 0.5}))
    error = mistake(predicted, "check", predicted.target)
    assert "was trained with dropout=0.5, but the prediction is for 0.0" in error


def test_a_changed_setting_or_dataset_is_never_mixed_with_old_runs(predicted, mistake, monkeypatch):
    predicted(["plan", predicted.config])  # the same plan
    predicted.config.write_text(CONFIG + "dropout = 0.1\n", encoding="utf-8")
    assert "dropout=0.1" in mistake(predicted, "predict", predicted.config)
    assert "has predictions of another plan" in mistake(predicted, "plan", predicted.config)
    identify = scaling.identify
    monkeypatch.setattr(scaling, "identify", lambda settings: identify(settings) | {"val": "new"})
    assert "has changed since the plan was made" in mistake(predicted, "run")


def test_a_run_on_other_text_has_another_folder(ladder):
    plan = scaling.read_plan(ladder.out)
    other = scaling.Plan(ladder.out, plan.settings, plan.data | {"train": "new"})
    assert plan.folder(plan.target) != other.folder(plan.target)


def test_the_best_learning_rates_must_be_among_those_that_were_tried(study, mistake):
    study.config.write_text(CONFIG + "learning_rate = 0.2\n", encoding="utf-8")
    study(["plan", study.config])
    assert "change learning_rate in the config" in mistake(study, "run")


def test_no_prediction_if_the_ladder_allows_two_values_of_E_that_disagree(ladder, mistake):
    _, _, _, fit = scaling.read_study(scaling.read_plan(ladder.out), None)
    allowed = fit.law.E - 1.8 * math.sqrt(fit.covariance[0, 0])
    ladder(["predict", ladder.config], fixed_E=allowed)  # they disagree only far away
    far = functools.partial(ladder, n_embd=304, max_iters=80_000)  # 19 heads of 16
    error = mistake(functools.partial(far, fixed_E=allowed), "predict", ladder.config)
    assert "the ladder does not determine E" in error
    far(["predict", ladder.config], fixed_E=0.0)  # disagrees more, but the data exclude it


def test_N_counts_what_a_token_is_multiplied_with(ladder):
    plan = scaling.read_plan(ladder.out)
    for run in plan.ladder(plan.guess)[::10]:
        model = GPT(GPTConfig(n_layer=run.n_layer, n_embd=run.n_embd, n_head=1,
                              vocab_size=VOCABULARY, block_size=64))
        linear = [part.weight for part in model.modules() if isinstance(part, torch.nn.Linear)]
        N, D = plan.shape(run)
        assert N == sum(weight.numel() for weight in linear)
        assert D == 8 * 64 * run.steps
        assert plan.settings_of(run)["n_head"] == run.n_embd // 16  # as in the large run


def test_one_run_is_an_ordinary_run_of_train(tmp_path, data_dir):
    settings = {"dataset": "tiny", "data_dir": data_dir, "n_layer": 1, "n_head": 1, "n_embd": 8,
                "block_size": 8, "batch_size": 2, "gradient_accumulation_steps": 1, "max_iters": 3,
                "eval_iters": 1, "sample_tokens": 0}
    scaling.train_once(settings, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_bytes())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert result["loss"] == json.loads(lines[-1])["val_loss"] and result["seconds"] > 0
    assert "1 threads" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("words", "settings", "message"), [
    (["fit"], {}, "plan.json does not exist"),
    (["check"], {}, "check needs the large run"),
    (["plan", "CONFIG"], {"max_iters": 10**7}, "epochs"),
    (["plan", "CONFIG"], {"minutes": 0.0001}, "minutes=0.0001 on 2 cores is too short"),
    (["plan", "CONFIG"], {"max_iters": 800}, "less than 8 times"),
    (["plan", "CONFIG"], {"dataset": "missing"}, "does not exist"),
    (["plan", "CONFIG"], {"sizes": "2x16,2x32,wide"}, "must be like 2x16,2x32,3x48"),
    (["plan", "CONFIG"], {"sizes": "2x16,2x32,2x40"}, "40 channels are not a multiple of 16"),
    (["plan", "CONFIG"], {"sizes": "2x16,2x32"}, "at least 3 different sizes"),
])
def test_bad_input_is_one_line(study, mistake, words, settings, message):
    words = [study.config if word == "CONFIG" else word for word in words]
    assert message in mistake(functools.partial(study, **settings), *words)
