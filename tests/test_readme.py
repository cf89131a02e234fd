"""pytest tests/test_readme.py - the README's commands run, and what it names is there"""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, SHARED, finished, tracked

from configurator import configure
from model import GPTConfig
from train import TrainConfig

README = (ROOT / "README.md").read_text(encoding="utf-8")
NANOGPT = (ROOT / "docs" / "nanogpt.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", README + NANOGPT, re.DOTALL)
         for line in block.splitlines() if not line.startswith("#")]
EXAMPLE = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]

# what makes a command short enough for a test, and changes nothing in what it does
SHORT = {
    "train.py": "--max_iters=3 --lr_decay_iters=None --warmup_iters=None --eval_interval=3 "
                "--eval_iters=1 --sample_tokens=5",
    "sample.py": "--num_samples=1 --max_new_tokens=5",
    "prepare.py": "",
    "tools/export.py": "",
    "tools/look.py": "--max_new_tokens=3",
}


def shortened(line):
    words = shlex.split(line)
    return [sys.executable, *words[1:], *SHORT[words[1]].split()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The program alone, in an empty folder, with a novel beside it."""
    folder = tmp_path_factory.mktemp("clone")
    for path in tracked("*.py"):
        shutil.copy(path, folder)
    for name in ("internals", "tools", "config"):
        shutil.copytree(ROOT / name, folder / name)
    text = "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 99
    (folder / "novel.txt").write_text(text, encoding="utf-8")
    if SHARED.exists():
        plays = folder / "data" / "shakespeare_char"
        plays.mkdir(parents=True)
        (plays / "input.txt").symlink_to(SHARED / "tinyshakespeare.txt")
    return folder


# runs scripts one after the other in one process, which imports torch once
RUNNER = """
import json, runpy, sys
for words in json.load(open("commands.json", encoding="utf-8")):
    print("$", *words, flush=True)
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
"""


def test_readme_commands_run(clone):
    """In their order, because later ones read what earlier ones write; then the Python example.
    The plays need a package index."""
    commands = []
    for line in LINES:
        line = line.removeprefix("pip install -r requirements.txt && ")
        if line.startswith("python ") and ("shakespeare" not in line or SHARED.exists()):
            commands.append(shortened(line)[1:])
    (clone / "example.py").write_text(EXAMPLE, encoding="utf-8")
    commands.append(["example.py"])
    (clone / "runner.py").write_text(RUNNER, encoding="utf-8")
    (clone / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    code, printed = finished("runner.py", cwd=clone)
    assert code == 0, printed
    assert printed.count("$ ") == len(commands) >= 7 and "ROMEO:" in printed


def test_the_test_command_is_the_one_that_ci_runs():
    install, test = next(line for line in LINES if "requirements-dev" in line).split(" && ")
    ci = (ROOT / ".ci" / "run").read_text().replace("--quiet ", "").splitlines()
    assert install in ci and test in ci


def test_the_torch_for_laptops_is_the_version_that_is_tested():
    pinned, = re.findall(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), re.M)
    assert f"pip install {pinned} --index-url https://download.pytorch.org/whl/cpu\n" in README


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_git_ignores_what_the_commands_in_the_docs_write():
    written = ["losses.png", "wandb/run", "plays-hf/config.json", "tuned-hf/config.json",
               "samples.jsonl", "tuned.gguf", "hellaswag_val.jsonl", "out-novel/ckpt.pt",
               "out-bench/gpu.md", "data/mine/train.bin", "docs/leave_out.png", "llama.cpp/x"]
    ignored = subprocess.run(["git", "check-ignore", *written], cwd=ROOT, capture_output=True)
    assert ignored.stdout.decode().split() == written


def test_files_that_the_readme_names_are_there():
    names = re.findall(r"\]\(([\w./-]+)\)", README)
    names += re.findall(r"(?:config|docs|studies|tests|tools)/[\w.-]+\.\w+", README)
    for name in names:
        assert (ROOT / name).exists(), name


def test_commands_in_tables_and_docstrings_have_settings_that_exist():
    texts = [README, *(path.read_text(encoding="utf-8") for path in tracked("*.py", "docs/*.md"))]
    command = r"(?:python|torchrun[^\n]*) (train\.py [^`\n|]+)"
    commands = {match for text in texts for match in re.findall(command, text)}
    assert len(commands) > 5
    for command in commands:
        if not re.search(r"[\[{]|--help", command):  # not a line of code
            words = shlex.split(command)[1:]
            words = [str(ROOT / w) if w.startswith("config/") else w for w in words]
            configure("", TrainConfig, GPTConfig, argv=words)


@pytest.mark.parametrize("path", tracked("config/*.py"), ids=lambda path: path.name)
def test_every_config_file_is_read(path):
    given, cfg, model = configure("", TrainConfig, GPTConfig, argv=[str(path)])
    assert given["dataset"]
    if cfg.eval_only:  # it writes nothing, and takes no step
        assert cfg.init_from != "scratch" and given["batch_size"] and given["eval_iters"]
    else:
        assert given["out_dir"] and cfg.max_iters == given["max_iters"]
    if path.name == "train_gpt2.py":  # half a million tokens per step, as for GPT-2
        assert cfg.batch_size * cfg.gradient_accumulation_steps * model.block_size == 2**19
