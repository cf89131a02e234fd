"""pytest tests/test_tour.py - the snippets of docs/tour.md run; docs/exercises.md names real tests"""

import ast
import contextlib
import io
import re
import sys

import pytest
import torch
from helpers import GPT2_TINY, ROOT, model_of, tokens

from prepare import prepare_texts
from train import main

TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
EXERCISES = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8")
# a snippet, and the output that follows it; <!-- varies --> if it depends on the trained weights
SNIPPET = re.compile(r"```python\n(.*?)```\n(?:(<!-- varies -->\n)?```text\n(.*?)```\n)?", re.DOTALL)

# of the characters that the plays have, so that the token ids are the same
CHARS = "\n !\"$&',-.24568:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
OPENING = "THESEUS:\nNow, fair Hippolyta, our nuptial hour\nDraws on apace; four happy days bring in\n"
# the model of the quick start on a CPU, after two steps
SHORT = {"device": "cpu", "dtype": "float32", "n_layer": 3, "n_head": 4, "n_embd": 128,
         "block_size": 128, "dropout": 0.0, "max_iters": 2, "eval_interval": 2, "eval_iters": 1,
         "batch_size": 2, "gradient_accumulation_steps": 1, "sample_tokens": 0}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """{variable of the tour: value}: a run of two steps on a text with the plays' characters."""
    folder = tmp_path_factory.mktemp("tour")
    prepare_texts([OPENING + CHARS * 60], folder / "data" / "plays_char", "char", "a test", "none")
    settings = SHORT | {"out_dir": folder / "out", "data_dir": folder / "data"}
    main([str(ROOT / "config" / "quickstart.py"), *(f"--{k}={v}" for k, v in settings.items())])
    return {"out_dir": str(folder / "out"), "data_dir": str(folder / "data")}


def test_every_snippet_of_the_tour_prints_what_the_page_says(places):
    assert "".join(sorted(set(CHARS))) == CHARS and len(CHARS) == 70
    names, snippets = {}, SNIPPET.findall(TOUR)
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
        places = re.findall(r"([\w/]+\.py), ([^;]+)", stop)
        assert places, stop
        for path, names in places:
            wanted = re.findall(r"`(\w+(?:\.\w+)?)`", names)
            assert wanted and wanted[0] in defined(ROOT / path), stop


def test_tests_that_the_pages_name_exist():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")]
    for name in set(re.findall(r"`(test_\w+)`", TOUR + EXERCISES)):
        assert any(f"def {name}(" in source for source in sources), name
