"""pytest tests/test_layout.py - the layout: five scripts to read, internals/ to trust"""

import ast
import pickle
import subprocess
import sys
import tokenize

import pytest
from helpers import MODELS, ROOT, model_of, tokens, tracked

SCRIPTS = ["model.py", "train.py", "sample.py", "prepare.py", "configurator.py"]
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
           tokenize.ENDMARKER, tokenize.ENCODING)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
INTERNALS = [str(path.relative_to(ROOT)) for path in tracked("internals/*.py")]


def parsed(name):
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def imports(node):
    """The modules that the code of a node imports, as dotted names."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            found |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            found |= {part.module} | {f"{part.module}.{alias.name}" for alias in part.names}
    return found


def project_imports(name):
    """The files of the project that a file imports when it is imported: not inside functions."""
    top = ast.Module([part for part in parsed(name).body
                      if not isinstance(part, (ast.FunctionDef, ast.ClassDef))], [])
    paths = {module.replace(".", "/") + ".py" for module in imports(top)}
    return {path for path in paths if (ROOT / path).exists()}


def function(name, of):
    """The lines of a function in a file, as its AST node."""
    return next(part for part in ast.walk(parsed(of))
                if isinstance(part, ast.FunctionDef) and part.name == name)


def lines_of(node):
    """The numbers of the lines of a node."""
    return set(range(node.lineno, node.end_lineno + 1))


def test_the_root_has_the_five_scripts_and_no_other():
    assert {path.name for path in tracked("*.py")} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_one_idea_per_line(name):
    """Lines are cheap, density is not. nanoGPT has 9.0 tokens per line, 10.9 in its model.py."""
    tree = parsed(name)
    docstrings = set()
    pairs = 0
    for part in ast.walk(tree):
        if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
            docstrings |= lines_of(part)
        if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Tuple):
            pairs += isinstance(part.value, ast.Tuple)
        if isinstance(part, COMPREHENSIONS):
            assert sum(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(part)) == 1
    lines = set()
    tokens = 0
    inside = 0  # f-strings: each counts as one token, but Python 3.12 and later give its parts
    with open(ROOT / name, "rb") as file:
        for token in tokenize.tokenize(file.readline):
            kind = tokenize.tok_name[token.type]
            if kind == "FSTRING_END":
                inside -= 1
            elif token.type not in NO_CODE and token.start[0] not in docstrings:
                lines |= set(range(token.start[0], token.end[0] + 1))
                tokens += inside == 0
            if kind == "FSTRING_START":
                inside += 1
    assert tokens / len(lines) <= (10.0 if name == "model.py" else 9.0)
    assert 1000 * pairs / len(lines) <= 10


def test_model_imports_nothing_of_the_project():
    assert project_imports("model.py") == set()


@pytest.mark.parametrize("name", INTERNALS)
def test_internals_do_not_import_what_stands_on_them(name):
    above = {"train", "sample", "prepare", "tools", "studies", "stages"}
    assert not {module.split(".")[0] for module in imports(parsed(name))} & above


def test_there_is_no_circle_of_imports():
    graph = {name: project_imports(name)
             for name in [*SCRIPTS, *INTERNALS]}
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph


@pytest.mark.parametrize("script", ["configurator", "prepare"])
def test_preparing_data_does_not_wait_for_torch(script):
    code = f"import sys, {script}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@MODELS
def test_model_has_no_workaround(config):
    """No test of the device, no lambda stored on a module: every GPT can be pickled."""
    source = (ROOT / "model.py").read_text(encoding="utf-8")
    assert "device.type" not in source and "is_cuda" not in source
    assert not any(isinstance(part, ast.Lambda) for part in ast.walk(parsed("model.py")))
    model, idx = model_of(config), tokens(config, 2, 9)
    copy = pickle.loads(pickle.dumps(model))
    assert (copy(idx)[0] == model(idx)[0]).all()


def test_the_loop_fits_on_a_screen():
    train = function("train", of="train.py")
    loop = next(part for part in train.body if isinstance(part, ast.While))
    lines = (ROOT / "train.py").read_text(encoding="utf-8").splitlines()
    first, last = [n for n in sorted(lines_of(loop)) if "# ------" in lines[n - 1]]
    assert len(lines_of(train)) <= 120 and len(lines_of(loop)) <= 60 and last - first - 1 <= 30
