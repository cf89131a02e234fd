"""pytest tests/test_tools.py - the benchmarks and the ablation run and compute what they say"""

import re
import runpy
import sys
from functools import partial
from itertools import pairwise

import ablate
import bench
import pytest
import torch
from helpers import GPT2_TINY, MODERN, ROOT, tracked
from matplotlib.figure import Figure
from matplotlib.text import Text

import train
from configurator import configure
from internals import plots
from model import GPT, GPTConfig


def numbers(line):
    return [float(word.replace(",", "")) for word in re.findall(r"\d[\d,]*\.?\d*", line)]


def test_the_loop_is_compared_with_a_bare_one(tiny, monkeypatch, capsys):
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "STEPS", 8)
    bench.bench_loop([word for word in tiny() if "out_dir" not in word])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    whole, bare, ratio = numbers(lines[-1])
    assert whole > 0 and bare > 0 and ratio > 0


NANOGPT = """
import dataclasses
import torch

@dataclasses.dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = torch.nn.Embedding(config.vocab_size, config.n_embd)

    def forward(self, x, y):
        logits = self.wte(x) @ self.wte.weight.T
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas)
"""


@pytest.mark.parametrize("recipe", [{}, MODERN | {"optimizer": "muon"}], ids=["gpt2", "modern"])
def test_a_training_step_is_compared_with_other_programs(
        tiny, tmp_path, monkeypatch, capsys, recipe):
    (tmp_path / "model.py").write_text(NANOGPT, encoding="utf-8")
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "matmul_flops", partial(bench.matmul_flops, n=256))
    bench.bench_train(tiny(nanogpt=tmp_path, **recipe))
    head, ours, *rest = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in rest[:2]] == ["transformers'", "nanoGPT"]
    assert "128 tokens per step, float32 on cpu" in head
    assert "glassGPT" in ours and "1.000 (1.000 to 1.000)" in ours
    assert "ms per step; share of the matmul peak" in rest[-1] and 0 < numbers(rest[-1])[1] < 100


def test_sampling_is_measured_and_the_cache_is_what_its_formula_says(capsys):
    bench.bench_sample(["--size=gpt-nano", "--vocab_size=101", "--block_size=64", "--batch=3",
                        "--new_tokens=8", "--prompt=4", "--rounds=1", "--device=cpu",
                        "--dtypes=float32,bfloat16,int8"])
    out = capsys.readouterr().out
    assert out.count("glassGPT float32") == 2 and out.count("linear layers alone allow") == 2
    held, formula = numbers(out.splitlines()[-1])[1:3]
    assert held == formula == 2 * 3 * 3 * 64 * 48


def test_candidates_alternate_and_ratios_compare_the_same_round(capsys):
    order, times = [], {"a": iter((1.0, 10.0, 4.0)), "b": iter((2.0, 30.0, 4.0))}
    candidates = {name: lambda name=name: order.append(name) or next(times[name])
                  for name in times}
    throughput = bench.in_alternation(candidates, 3, "tok/s", 120)
    assert order == ["a", "b"] * 3 and throughput == {"a": 30.0, "b": 30.0}
    assert "2.000 (1.000 to 3.000)" in capsys.readouterr().out.splitlines()[1]


def test_the_lower_bound_runs_every_linear_layer_and_nothing_else():
    model = GPT(GPT2_TINY)
    shapes = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, x, y: shapes.append((*x[0].shape, y.shape[1])))
    bench.linear_layers(model, 2, torch.device("cpu"))()
    layer = [(2, 32, 96), (2, 32, 32), (2, 32, 128), (2, 128, 32)]
    assert shapes == layer * 3 + [(2, 32, 61)]


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
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("leave_out", [False, True])
def test_train_accepts_the_settings_of_every_variant(monkeypatch, leave_out, tmp_path):
    """Without data_dir, train.py uses its default folder, not a folder called None."""
    ran = []

    def fake_train(argv):
        ran.append(configure("", train.TrainConfig, GPTConfig, argv=argv)[1])
        return [{"step": 8, "ms": 1.0, "val_loss": 1.0}] * 8

    monkeypatch.setattr(ablate.train, "main", fake_train)
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: path.touch())
    options = ["--steps=8", "--seeds=1", f"--leave_out={leave_out}",
               f"--picture={tmp_path / 'x.png'}"]
    ablate.main(options)
    assert len(ran) == 12 and all(cfg.data_dir is None for cfg in ran)
    ablate.main([*options, f"--data_dir={tmp_path}"])
    assert all(cfg.data_dir == str(tmp_path) for cfg in ran[12:])


@pytest.mark.parametrize("tool, argv, message", [
    (ablate.main, ["--steps=7"], "steps=7 must be 8 or more"),
    (ablate.main, ["--seeds=1,x"], "seeds=1,x must be whole numbers with commas between them"),
    (ablate.main, ["--eval_iters=0"], "eval_iters=0 must be 1 or more"),
    (ablate.main, ["--seeds=1,²"], "seeds=1,² must be whole numbers with commas between them"),
    (ablate.main, ["--picture=."], "picture=. is a folder: give the name of a file"),
    (bench.bench_sample, ["--nanogpt=nowhere"], "nanogpt=nowhere has no model.py: give the folder"),
    (bench.bench_sample, ["--batch=0"], "batch=0 must be 1 or more"),
    (bench.bench_sample, ["--rounds=0"], "rounds=0 must be 1 or more"),
    (bench.bench_sample, ["--dtypes=float8"], "dtypes=float8 must be a comma-separated list of"),
])
def test_tools_refuse_what_is_outside_a_limit(mistake, tool, argv, message):
    assert message in mistake(tool, *argv)


TOOLS = sorted(path.stem for path in tracked("tools/*.py"))


def ended(tool, *argv, monkeypatch):
    """The exit code of a tool; None if it returns."""
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *argv])
    try:
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_has_a_help(tool, capsys, monkeypatch):
    assert ended(tool, "--help", monkeypatch=monkeypatch) in (None, 0)
    printed = capsys.readouterr()
    script = tool.replace("bench_", "bench.py ").removesuffix(".py")
    assert f"python tools/{script}" in printed.out and printed.err == ""


@pytest.mark.parametrize("word", ["--nosuch=3", "nosuch", "--out_dir=nosuch"])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_wrong_word_ends_every_tool_in_one_line(tool, word, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert ended(tool, word, monkeypatch=monkeypatch) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool, options", [
    ("add", []), ("look", []), ("evaluate", ["--text=text"]), ("export", ["--folder=new"]),
])
def test_a_folder_without_a_checkpoint_is_named(tool, options, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("text", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for folder in "missing", "empty":
        assert ended(tool, f"--out_dir={folder}", *options, monkeypatch=monkeypatch) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"error: {folder} has no checkpoint: train first")
        assert len(printed.err.splitlines()) == 1 and printed.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"text", "empty"}


def test_variants_differ_by_one_change_and_all_changes_are_the_modern_recipe():
    up, down = (list(ablate.variants(leave_out).values()) for leave_out in (False, True))
    assert up[0] == ablate.SHARED and up[-1] == down[0]
    full = down[0].items()
    assert full >= MODERN.items()
    for before, after, without in zip(up, up[1:], down[1:], strict=False):
        change = after.items() - before.items()
        assert change and not change & without.items()
        assert without.items() >= {k: v for k, v in full if k not in dict(change)}.items()


@pytest.mark.parametrize("leave_out", [False, True])
def test_the_tables_in_the_docs_have_the_columns_and_rows_of_the_tool(leave_out):
    curves = {name: [[(0, 0.0, 4.0), (10, 1.0, 3.0)]] for name in ablate.variants(leave_out)}
    docs = (ROOT / "docs" / "modern.md").read_text(encoding="utf-8").splitlines()
    head, line, *rows = ablate.table(curves, leave_out)
    at = docs.index(head)
    assert docs[at + 1] == line
    for row, written in zip(rows, docs[at + 2:], strict=False):
        assert row.split("|")[1] == written.split("|")[1]


def test_labels_at_the_ends_of_lines_do_not_overlap(tmp_path):
    with plots.picture(tmp_path / "x.png", 8, 4) as figure:
        axes = figure.subplots()
        ends = [(1.0, y, name, "black") for y, name in ((2.0, "a"), (2.001, "b"), (3.0, "c"))]
        for x, y, _, _ in ends:
            axes.plot([0.0, x], [4.0, y])
        plots.label_ends(axes, ends)
    boxes = sorted((Text.get_window_extent(label) for label in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 3 and all(low.y1 <= high.y0 for low, high in pairwise(boxes))


def test_the_time_to_a_loss_is_interpolated_between_the_points_of_the_curve():
    curve = [(0, 0.0, 4.0), (10, 1.0, 3.0), (20, 2.0, 2.0)]
    assert ablate.time_to(curve, 2.5) == 1.5
    assert ablate.time_to(curve, 2.0) == 2.0 and ablate.time_to(curve, 1.9) is None
    assert ablate.mean_curve([curve, [(0, 2.0, 2.0)] * 3])[0] == (0, 1.0, 3.0)
