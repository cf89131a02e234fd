"""pytest tests/test_tools.py - the benchmarks and the ablation run and compute what they say"""

import functools
import os
import re
import runpy
import sys

import ablate
import bench
import pytest
from helpers import MODERN, ROOT, tracked


def numbers(line):
    return [float(word.replace(",", "")) for word in re.findall(r"\d[\d,]*\.?\d*", line)]


def test_sampling_is_measured(capsys):
    bench.bench_sample(["--size=gpt-nano", "--vocab_size=101", "--block_size=64", "--batch=3",
                        "--new_tokens=8", "--prompt=4", "--rounds=1", "--device=cpu",
                        "--dtypes=float32,bfloat16"])
    out = capsys.readouterr().out
    assert out.count("glassGPT float32") == out.count("transformers bfloat16") == 2
    for line in out.splitlines()[-3:]:
        assert all(number > 0 for number in numbers(line))


def test_candidates_alternate_and_ratios_compare_the_same_round(capsys):
    def candidate(name):
        order.append(name)
        return next(times[name])

    order = []
    times = {"a": iter((9.0, 1.0, 10.0, 4.0)), "b": iter((1.0, 2.0, 30.0, 4.0))}
    candidates = {name: functools.partial(candidate, name) for name in times}
    throughput = bench.in_alternation(candidates, 3, "tok/s", 120)
    assert order == ["a", "b"] * 4 and throughput == {"a": 30.0, "b": 30.0}
    assert "2.000 (1.000 to 3.000)" in capsys.readouterr().out.splitlines()[1]


def test_the_ablation_adds_one_change_at_a_time_and_prints_its_improvement(data_dir, tmp_path,
                                                                           capsys, monkeypatch):
    small = {"n_layer": 1, "n_embd": 16, "block_size": 16, "batch_size": 2}
    monkeypatch.setattr(ablate, "SHARED", ablate.SHARED | small)
    monkeypatch.setattr(ablate, "CHANGES", ablate.CHANGES[:2])
    ablate.main(["--steps=8", "--seeds=1,2", "--dataset=tiny", f"--data_dir={data_dir}",
                 "--eval_iters=2", f"--picture={tmp_path / 'ablation.png'}"])
    head, line, *rows = capsys.readouterr().out.splitlines()
    assert head.count("|") == line.count("|") == 6 and len(rows) == len(ablate.CHANGES)
    mean, low, high = numbers(rows[0])[1:4]  # after the 2 of GPT-2
    assert low <= mean <= high
    changed = numbers(rows[1])[0]
    improvement = float(rows[1].split("|")[3])
    assert improvement == pytest.approx(mean - changed, abs=0.0015)
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"


TOOLS = sorted(path.stem for path in tracked("tools/*.py"))
SCRIPTS = ["train", "sample", "prepare"]


def ended(script, *argv, monkeypatch):
    """The exit code of a script or a tool; None if it returns."""
    folder = ROOT if script in SCRIPTS else ROOT / "tools"
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *argv])
    try:
        runpy.run_path(str(folder / f"{script}.py"), run_name="__main__")
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("name", SCRIPTS + TOOLS)
def test_every_script_has_a_help_and_ends_in_one_line_for_a_wrong_word(name, capsys, monkeypatch,
                                                                       tmp_path):
    monkeypatch.chdir(tmp_path)
    assert ended(name, "--help", monkeypatch=monkeypatch) in (None, 0)
    printed = capsys.readouterr()
    command = name if name in SCRIPTS else f"tools/{name.replace('bench_', 'bench.py ')}"
    assert f"python {command.removesuffix('.py')}" in printed.out and printed.err == ""
    for word in "--nosuch=3", "nosuch":
        assert ended(name, word, monkeypatch=monkeypatch) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ")
        assert len(printed.err.splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool, options", [
    ("add", []), ("look", []), ("evaluate", ["--text=text"]), ("export", ["--folder=new"]),
])
def test_a_folder_without_a_checkpoint_is_named(tool, options, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("text", encoding="utf-8")
    for folder in "missing", ".":
        assert ended(tool, f"--out_dir={folder}", *options, monkeypatch=monkeypatch) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"error: {folder} has no checkpoint: train first")
        assert len(printed.err.splitlines()) == 1 and printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_variants_differ_by_one_change_and_all_changes_are_the_modern_recipe():
    up = list(ablate.variants(leave_out=False).values())
    down = list(ablate.variants(leave_out=True).values())
    full = down[0]
    assert up[0] == ablate.SHARED and up[-1] == full
    assert full.items() >= MODERN.items()
    for before, after, without in zip(up, up[1:], down[1:], strict=False):
        change = dict(after.items() - before.items())
        rest = {name: value for name, value in full.items() if name not in change}
        assert change and not change.items() & without.items()
        assert without.items() >= rest.items()


def test_the_time_to_a_loss_is_interpolated_between_the_points_of_the_curve():
    curve = [(0, 0.0, 4.0), (10, 1.0, 3.0), (20, 2.0, 2.0)]
    assert ablate.time_to(curve, 2.5) == 1.5
    assert ablate.time_to(curve, 2.0) == 2.0
    assert ablate.time_to(curve, 1.9) is None
    assert ablate.mean_curve([curve, [(0, 2.0, 2.0)] * 3])[0].tolist() == [0, 1.0, 3.0]
