"""pytest tests/test_plot.py - tools/plot.py compares runs; loss.png shows where the loss matters"""

import json

import plot
import pytest
from matplotlib.figure import Figure

from internals.plots import cut_beginning

PNG = b"\x89PNG"
LOSSES = ((0, 4.2), (10, 2.0), (20, 1.5), (30, 1.75))


def write_run(folder, losses=LOSSES, **settings):
    """The files of a run that took 100 ms per step, without training it."""
    folder.mkdir()
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step, loss in losses:
            if step:
                print(json.dumps({"step": step, "loss": loss, "ms": 100.0}), file=file)
            print(json.dumps({"step": step, "train_loss": loss, "val_loss": loss}), file=file)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


@pytest.fixture
def compare(tmp_path, capsys):
    """A function: run the tool; the cells of the table below its head, and what is on stderr."""
    def run(*argv):
        plot.main([*argv, f"--picture={tmp_path / 'losses.png'}"])
        assert (tmp_path / "losses.png").read_bytes()[:4] == PNG
        out, err = capsys.readouterr()
        rows = []
        for line in out.splitlines()[2:]:
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
            assert len(rows[-1]) == 6
        return rows, err

    return run


def test_the_table_has_the_best_loss_its_step_the_time_and_what_differs(compare, tmp_path):
    a = write_run(tmp_path / "a", n_layer=2, seed=1, process=7, command="train.py a")
    b = write_run(tmp_path / "b", LOSSES[:2], n_layer=4, seed=1, process=8, command="train.py b")
    rows, _ = compare(a, b)
    assert rows == [[a, "1.5000", "20", "30", "0m 03s", "n_layer=2"],
                    [b, "2.0000", "10", "10", "0m 01s", "n_layer=4"]]
    c = write_run(tmp_path / "c", recipe="modern", pos="rope", optimizer="muon", softcap=0.0)
    d = write_run(tmp_path / "d", recipe=None, pos="learned", optimizer="adamw", softcap=0.0)
    rows, _ = compare(c, d)  # what follows from a recipe is not listed
    assert [row[-1] for row in rows] == ["recipe=modern", "recipe=None"]


def test_steps_after_the_last_log_line_take_time_too_and_a_restart_has_its_own_best(
        compare, tmp_path):
    folder = write_run(tmp_path / "a")
    with open(tmp_path / "a" / "metrics.jsonl", "a", encoding="utf-8") as file:
        print(json.dumps({"step": 30, "val_loss": 3.0, "restart": 1}), file=file)
        print(json.dumps({"step": 55, "val_loss": 2.5}), file=file)
    rows, _ = compare(folder)
    assert rows == [[folder, "2.5000", "55", "55", "0m 06s", "-"]]


@pytest.mark.parametrize("words, message", [
    (["nix"], "nix does not exist: give the out_dir of a run"),
    (["a", "--first_step=31"], "there is no validation loss from step 31 on in a"),
    (["a", "--picture=a"], "picture=a is a folder: give the name of a file"),
    (["damaged"], "config.json is not what train.py writes: it must be a dict"),
])
def test_a_mistake_is_one_line(mistake, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a")
    write_run(tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_text("[1]", encoding="utf-8")
    assert message in mistake(plot.main, *words)
    assert not list(tmp_path.glob("*.png*"))


def limits(*runs):
    """The lowest and highest loss on the axis, and the note above it."""
    axes = Figure().subplots()
    for run in runs:
        axes.plot(*zip(*run, strict=True))
    cut_beginning(axes, runs)
    low, high = axes.get_ylim()
    return low, high, axes.get_title(loc="left")


def test_the_beginning_is_cut_at_the_highest_loss_after_the_first_tenth():
    run = [(0, 4.25), (5, 3.0), (50, 2.0), (100, 1.5)]
    low, high, note = limits(run)
    assert low < 1.5 and 2.0 < high < 2.1 and note == "↑ 4.25 at step 0"
    short = [(0, 4.2), (1, 3.0), (2, 2.5)]  # its first tenth is its own
    assert 3.0 < limits(run, short)[1] < 3.2


@pytest.mark.parametrize("run", [
    [(0, 4.25)], [(0, 2.0), (50, 1.9), (100, 1.0)], [(0, 1.0), (100, 9.0)]])
def test_a_readable_curve_is_shown_whole(run):
    low, high, note = limits(run)
    losses = [loss for _, loss in run]
    assert low <= min(losses) and max(losses) <= high and note == ""
