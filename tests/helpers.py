"""What several test files share: tiny models, how a script is run, how two runs are compared."""

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import ROOT, Script

from internals import checkpoint
from internals.recipes import RECIPES
from internals.runlog import RunLog
from model import GPT, GPTConfig

SHARED = ROOT.parent / "shared" / "data"

GPT2_TINY = GPTConfig(block_size=32, vocab_size=61, n_layer=3, n_head=2, n_embd=32, bias=True)
NANO_TINY = GPTConfig(block_size=32, vocab_size=61, n_layer=3, n_head=2, n_embd=32, act="gelu")
# the model settings of the modern recipe
MODERN = {field.name: RECIPES["modern"][field.name] for field in fields(GPTConfig)
          if field.name in RECIPES["modern"]}
MODERN_TINY = GPTConfig(block_size=32, vocab_size=61, n_layer=3, n_head=2, n_embd=32, **MODERN)
MODELS = pytest.mark.parametrize("config", [GPT2_TINY, NANO_TINY, MODERN_TINY],
                                 ids=["gpt2", "nano", "modern"])

# texts for tokenizers
AWKWARD = [
    "plain words, and   many    spaces\n\n\n \t end ", "CRLF\r\nand\rmore", "\0null\0bytes",
    "emoji 👩‍👩‍👧‍👦 🇺🇳 🏴‍☠️", "العربية من اليمين", "e\u0301 a\u0308 \u0301alone", "x" * 3000,
    "日本語の文章、中文字符。" * 20, "a" + " " * 500 + "b", "don't I'll they've 'tis",
    "1234567890 ½ ²", "\u2028\u00a0\ufeffodd white\u3000space", " ", "\n", "<|endoftext|>",
    "!\x1c! " * 100,  # which is white space for Python, but not for GPT-2's pattern
]

# a run that takes a second: dropout and accumulation are on, so that an error in either shows
TINY_RUN = {
    "dataset": "tiny", "device": "cpu", "dtype": "float32", "n_layer": 2, "n_head": 2, "n_embd": 16,
    "block_size": 16, "batch_size": 4, "gradient_accumulation_steps": 2, "dropout": 0.1,
    "learning_rate": 0.01, "max_iters": 12, "warmup_iters": 2, "eval_interval": 4, "eval_iters": 2,
    "sample_tokens": 0,
}


def command_line(settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def tracked(*patterns):
    """The files of the project that match patterns such as "tools/*.py". Files that a user has
    added to the clone are left out; without git, they cannot be told apart."""
    found = []
    for pattern in patterns:
        found += sorted(ROOT.glob(pattern))
    try:
        git = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
        listed = subprocess.run(git, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or not a clone
        return found
    names = {os.fsdecode(name) for name in listed.split(b"\0")}
    return [path for path in found if path.relative_to(ROOT).as_posix() in names]


def model_of(config, seed=0, spread=None):
    """A GPT with seeded weights, in eval mode. spread: the standard deviation of all its weights
    and biases, so that no part of the model is idle; None: as GPT initializes them."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    if spread is not None:
        for p in model.parameters():
            p.data.normal_(0.0, spread)
    return model


def tokens(config, batch, length, seed=1):
    """(batch, length) seeded ids of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def script(*command, cwd=ROOT, env=None, **options):
    """Start a script as a user would. Its stdout and stderr are one pipe. env: variables that it
    has besides ours. Returns a Script; or a Popen, if there are other options (those of Popen), the
    command does not import torch, or this is not Linux."""
    command = [str(word) for word in command]
    env = os.environ | {"PYTHONUNBUFFERED": "1"} | (env or {})
    imports_torch = command[0] not in ("prepare.py", "-c")
    if imports_torch and sys.platform == "linux" and not options:
        return Script(command, cwd, env)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    return subprocess.Popen([sys.executable, *command], cwd=cwd, env=env, encoding="utf-8",
                            **options)


def finished(*command, **options):
    """Run one of the scripts to its end; (exit code, what it printed)."""
    process = script(*command, **options)
    output, _ = process.communicate()
    return process.returncode, output


def wait_for(process, text):
    """Read what a script prints up to a line with `text`; the line."""
    printed = []
    while text not in (line := process.stdout.readline()):
        printed.append(line)
        assert line or process.poll() is None, "".join(printed)
    return line


def torchrun(processes, *command, extra=("--standalone",)):
    """The command line that runs a script in this many processes."""
    return ("-m", "torch.distributed.run", *extra, f"--nproc_per_node={processes}", *command)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def ranks(processes, *command):
    """Run a script in this many processes without torchrun; (the largest exit code, what they
    printed)."""
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost",
             "MASTER_PORT": str(free_port())}
    runs = []
    for rank in range(processes):
        ranked = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        runs.append(script(*command, env=ranked))
    printed = ""
    for run in runs:
        output, _ = run.communicate()
        printed += output
    return max(abs(run.returncode) for run in runs), printed


def equal(a, b):
    """Whether two nested containers of tensors and plain values are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def state(out_dir, name="ckpt.pt"):
    """A Checkpoint of the run in out_dir."""
    return checkpoint.read(Path(out_dir, name))


def logged(out_dir):
    """metrics.jsonl without what depends on the clock."""
    entries = []
    for line in (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        entry.pop("ms", None)
        entry.pop("tok_per_s", None)
        entries.append(entry)
    return entries


def losses(metrics):
    """[(step, training loss), ...]"""
    return [(m["step"], m["loss"]) for m in metrics if "loss" in m]


def same_run(a, b):
    """Whether two runs ended bit-identically, in all that they wrote about it."""
    parts = ("model", "optimizer", "scaler", "step", "sequences", "best_loss", "best_step")
    for name in ("ckpt.pt", "best.pt"):
        one, other = state(a, name), state(b, name)
        for part in parts:
            assert equal(getattr(one, part), getattr(other, part)), (name, part)
    assert logged(a) == logged(b)
    return True


def log_of(cfg, size=1):
    """A RunLog with these settings, of a new run of a tiny model, in the first of `size` processes.
    """
    model = model_of(GPT2_TINY)
    run = SimpleNamespace(model=model, step=0, best_loss=math.inf, dtype="float32", how="eager",
                          first_step=0, restarts_best=False)
    data = SimpleNamespace(train=range(1000), summary=lambda: "")
    world = SimpleNamespace(is_master=True, size=size, is_distributed=False,
                            device=torch.device("cpu"))
    return RunLog(run, cfg, data, world)


class Payload:
    """What unpickles as a command: it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
