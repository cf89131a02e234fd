"""What several test files share: tiny models, a tiny dataset, and how a script is run."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and wait for it

import pytest
import torch

from configurator import one_line_errors
from model import GPTConfig
from prepare import main as prepare_main

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

GPT2_TINY = GPTConfig(block_size=32, vocab_size=61, n_layer=3, n_head=2, n_embd=32, bias=True)
NANO_TINY = GPTConfig(block_size=32, vocab_size=61, n_layer=3, n_head=2, n_embd=32, act="gelu")
MODERN = {"pos": "rope", "norm": "rmsnorm", "act": "relu2", "qk_norm": True, "zero_init": True,
          "tied": False, "softcap": 15.0}
MODERN_TINY = GPTConfig(block_size=32, vocab_size=61, n_layer=3, n_head=2, n_embd=32, **MODERN)
MODELS = pytest.mark.parametrize("config", [GPT2_TINY, NANO_TINY, MODERN_TINY],
                                 ids=["gpt2", "nano", "modern"])

# a run that takes a second: dropout and accumulation are on, so that an error in either shows
TINY_RUN = {
    "dataset": "tiny", "device": "cpu", "dtype": "float32", "n_layer": 2, "n_head": 2, "n_embd": 16,
    "block_size": 16, "batch_size": 4, "gradient_accumulation_steps": 2, "dropout": 0.1,
    "learning_rate": 0.01, "max_iters": 12, "warmup_iters": 2, "eval_interval": 4, "eval_iters": 2,
    "sample_tokens": 0,
}

@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with the dataset `tiny`: 4,000 characters, made by prepare.py."""
    folder = tmp_path_factory.mktemp("data")
    lines = (f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(80))
    text = "".join(lines)
    (folder / "tiny.txt").write_text(text[:4000], encoding="utf-8")
    prepare_main([str(folder / "tiny.txt"), f"--data_dir={folder}"])
    return folder


@pytest.fixture
def tiny(data_dir, tmp_path):
    """A function: the command line of a tiny run, with settings changed by name."""
    def arguments(**changes):
        settings = TINY_RUN | {"data_dir": data_dir, "out_dir": tmp_path / "out"} | changes
        return [f"--{name}={value}" for name, value in settings.items()]

    return arguments


@pytest.fixture
def mistake(capsys):
    """A function: run main(argv), which must end in one line on stderr, returned, and code 2."""
    def run(main, *argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end, one_line_errors():
            main(list(map(str, argv)))
        lines = capsys.readouterr().err.splitlines()
        assert end.value.code == 2
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return run


def script(*command, cwd=ROOT, stdout=subprocess.PIPE, **options):
    """Start one of the scripts as a user would; a Popen with stdout and stderr together."""
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=cwd, encoding="utf-8",
                            env=os.environ | {"PYTHONUNBUFFERED": "1"},
                            stdout=stdout, stderr=subprocess.STDOUT, **options)


def finished(*command, **options):
    """Run one of the scripts to its end; (exit code, what it printed)."""
    process = script(*command, **options)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def equal(a, b):
    """Whether two nested containers of tensors and plain values are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
