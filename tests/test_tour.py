"""pytest tests/test_tour.py - docs/tour.md, its notebook, and docs/exercises.md are true

The snippets of the tour run and print what it says; the solutions of the exercises work."""

import ast
import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import GPT2_TINY, ROOT, finished, model_of, tokens, tracked

from prepare import prepare_corpus
from train import main

TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
EXERCISES = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8")
# a snippet, and the output that follows it; <!-- varies --> if it depends on the trained weights
SNIPPET = re.compile(r"```python\n(.*?)```\n"
                     r"(?:(<!-- varies -->\n)?```text\n(.*?)```\n)?", re.DOTALL)

# of the characters that the plays have, so that the token ids are the same
CHARS = "\n !\"$&',-.24568:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
OPENING = "THESEUS:\nNow, fair Hippolyta, our nuptial hour\nDraws on apace;\n"
# the run of the tour, after two steps
SHORT = {"device": "cpu", "dtype": "float32", "max_iters": 2, "warmup_iters": 0, "eval_interval": 2,
         "eval_iters": 1, "batch_size": 2, "sample_tokens": 0}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """{variable of the tour: value}: a run of two steps on a text with the plays' characters."""
    folder = tmp_path_factory.mktemp("tour")
    plays = folder / "data" / "plays_char"
    plays.mkdir(parents=True)
    (plays / "input.txt").write_text(OPENING + CHARS * 60)
    prepare_corpus(plays)
    command = shlex.split(re.search(r"python train.py (config/\S+ .*)", TOUR)[1])
    settings = SHORT | {"out_dir": folder / "out", "data_dir": folder / "data"}
    main([str(ROOT / command[0]), *command[1:], *(f"--{k}={v}" for k, v in settings.items())])
    return {"out_dir": str(folder / "out"), "data_dir": str(folder / "data")}


def test_every_snippet_of_the_tour_prints_what_the_page_says(places):
    assert "".join(sorted(set(CHARS))) == CHARS and len(CHARS) == 70
    names = {}
    snippets = SNIPPET.findall(TOUR)
    with torch.enable_grad():  # the tour switches gradients off and on
        for code, varies, expected in snippets:
            for name, value in places.items():
                code = re.sub(rf"^{name} = .*", f"{name} = {value!r}", code, flags=re.MULTILINE)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "docs/tour.md", "exec"), names)
            if varies:
                assert printed.getvalue(), code
            else:
                assert printed.getvalue() == expected, code
    assert len(snippets) > 25
    assert TOUR.count("```python") == len(snippets)  # the pattern misses none


def test_the_notebook_is_the_tour():
    """docs/make_notebook.py makes it, so that it has the text, the code and the outputs."""
    made = runpy.run_path(str(ROOT / "docs" / "make_notebook.py"))["notebook"](TOUR)
    cells = made["cells"]
    stored = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
    assert stored == made, "run: python docs/make_notebook.py"
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    outputs = ["".join(output["text"]) for cell in cells for output in cell.get("outputs", ())
               if output["output_type"] == "stream"]
    for snippet, _, expected in SNIPPET.findall(TOUR):
        assert snippet.rstrip("\n") in code
        assert not expected or expected in outputs
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert re.findall("^## .*", text, re.M) == re.findall("^## .*", TOUR, re.M)
    assert "```" not in text and "page only" not in text


def test_the_first_cell_of_the_notebook_finds_the_program_or_clones_it(tmp_path, monkeypatch):
    cell = runpy.run_path(str(ROOT / "docs" / "make_notebook.py"))["SETUP"]
    started = []
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(words, check):
        started.append(words)
        if words[0] == "git":
            Path("glassgpt").mkdir()
            Path("glassgpt/model.py").touch()

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(ROOT / "docs")  # where Jupyter starts
    exec(cell, {})
    assert Path.cwd() == ROOT and sys.path[0] == str(ROOT) and not started
    for _ in "first", "again":
        monkeypatch.chdir(tmp_path)
        exec(cell, {})
        assert Path.cwd() == tmp_path.resolve() / "glassgpt"
    clone, install = started
    assert f"git clone {clone[2]}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert install[1:3] == ["-m", "pip"]


def defined(path):
    """The functions and classes of a file, and Class.method."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body
                      if isinstance(part, ast.FunctionDef)}
    return names


def test_every_stop_of_the_tour_names_functions_that_exist():
    stops = re.findall(r"^## \d+\. .*\n\n(.+)\n", TOUR, re.MULTILINE)
    assert len(stops) == TOUR.count("\n## ") - 1  # without the end, "What next"
    for stop in stops:
        files = re.findall(r"([\w/]+\.py), ([^;]+)", stop)
        assert files, stop
        for path, names in files:
            wanted = re.findall(r"`(\w+(?:\.\w+)?)`", names)
            assert wanted and wanted[0] in defined(ROOT / path), stop


def test_tests_that_the_pages_name_exist():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")]
    for name in set(re.findall(r"`(test_\w+)`", TOUR + EXERCISES)):
        assert any(f"def {name}(" in source for source in sources), name
    named = re.findall(r"`(tests/\w+\.py)::(test_\w+)`", TOUR)
    assert len(named) == 3
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), name


# ---- the solutions in docs/exercises.md

needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


def solved(number, setting, folder):
    """A copy of the program in `folder`, with the diff of a solution. If the program has the
    setting already, because you did the exercise, then your solution is tested."""
    shutil.copytree(ROOT / "internals", folder / "internals")
    for path in tracked("*.py"):
        shutil.copy(path, folder)
    if setting not in (ROOT / "model.py").read_text(encoding="utf-8"):
        diff = re.search(rf"^## {number}\. .*?^```diff\n(.*?)^```", EXERCISES, re.DOTALL | re.M)[1]
        # as a reader of the page would do it; the line numbers of its hunks may be old
        applied = subprocess.run(["git", "apply", "-"], cwd=folder, input=diff, text=True,
                                 capture_output=True)
        assert applied.returncode == 0, applied.stderr
    return folder


def run_in(folder, code):
    """Run Python code next to a copy of the program."""
    (folder / "check.py").write_text(code, encoding="utf-8")
    code, printed = finished("check.py", cwd=folder)
    assert code == 0, printed


@needs_git
def test_the_solution_with_another_activation_is_that_activation(tmp_path):
    run_in(solved(1, "silu", tmp_path), """
import torch
from model import GPTConfig, MLP
x = torch.randn(5, 8)
mlp = MLP(GPTConfig(n_head=1, n_embd=8, act="silu"))
assert torch.allclose(mlp.act(x), x * x.sigmoid())
assert type(MLP(GPTConfig(n_head=1, n_embd=8)).act) is torch.nn.GELU
""")


@needs_git
def test_the_solution_with_grouped_queries_is_the_old_model_by_default(tmp_path):
    """And with one head of keys and values it is causal, has a smaller cache, and trains."""
    model, idx = model_of(GPT2_TINY), tokens(GPT2_TINY, 2, 20)
    torch.save((model.state_dict(), idx, model(idx, idx)[0].detach()), tmp_path / "plain.pt")
    (tmp_path / "solved").mkdir()
    run_in(solved(10, "n_kv_head", tmp_path / "solved"), """
import torch
from model import GPT, GPTConfig
from internals.optimizers import make_optimizer
from sample import KVCache, next_logits
from train import TrainConfig
weights, idx, logits = torch.load("../plain.pt")
shape = {"block_size": 32, "vocab_size": 61, "n_layer": 3, "n_head": 2, "n_embd": 32, "bias": True}
for setting in {}, {"n_kv_head": 2}:
    model = GPT.from_weights(GPTConfig(**shape, **setting), weights)
    assert torch.equal(model(idx, idx)[0], logits)
config = GPTConfig(**shape, n_kv_head=1)
model = GPT(config).eval()
assert model.transformer.h[0].attn.c_attn.weight.shape == (64, 32)
cache = KVCache(2, 32)
cache.append(idx, n_kept=32)
with torch.no_grad():
    assert torch.allclose(next_logits(model, cache), model(idx)[0], atol=1e-5)
    short = idx[:, :9]
    assert torch.allclose(model(idx, idx)[0][:, :9], model(short, short)[0], atol=1e-5)
assert cache.layers[0][0].shape == (2, 1, 32, 16)
before = model(idx, idx)[1]
before.backward()
make_optimizer(model, TrainConfig(optimizer="muon"), "float32").step(skip=torch.tensor(False))
assert model(idx, idx)[1] < before
""")
