"""pytest tests/test_configurator.py - defaults < config files < --key=value"""

from dataclasses import dataclass
from typing import Literal

import pytest

from configurator import UserError, configure
from model import GPTConfig
from sample import SampleConfig
from train import TrainConfig


@dataclass
class Settings:
    steps: int = 10  # how long
    rate: float = 0.5  # how fast, in % a step
    name: str = "x"  # what it is called
    quick: bool = False
    mode: bool | Literal["auto"] = "auto"  # three ways
    limit: int | None = None  # none at all, or so many
    kind: Literal["red", "blue"] = "red"

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must be 0 or more")


def read(*argv):
    return configure("", Settings, argv=list(argv))[1]


@pytest.fixture
def config(tmp_path):
    def write(text, name="config.py"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_command_line_beats_config_file_beats_default(config):
    file = config("steps = 20\nrate = 2.5\n")
    assert read() == Settings()
    assert read(file) == Settings(steps=20, rate=2.5)
    assert read(file, "--steps=30") == read("--steps=30", file) == Settings(steps=30, rate=2.5)


def test_later_config_files_beat_earlier_ones(config):
    files = config("steps = 1\nname = 'a'", "a.py"), config("steps = 2", "b.py")
    assert read(files[0], "--quick=True", files[1]) == Settings(steps=2, name="a", quick=True)


def test_both_spellings_of_an_option_work():
    assert read("--steps", "7", "--name", "y") == read("--steps=7", "--name=y")


@pytest.mark.parametrize("word, value", [
    ("--rate=1", 1.0), ("--rate=1e-3", 1e-3), ("--quick=True", True), ("--quick=false", False),
    ("--mode=False", False), ("--mode=auto", "auto"), ("--limit=None", None), ("--limit=3", 3),
    ("--name=a=b", "a=b"), ("--name=True", "True"), ("--name=None", "None"), ("--name=", ""),
    ("--kind=blue", "blue"),
])
def test_values_have_the_type_of_their_setting(word, value):
    got = getattr(read(word), word[2:].split("=")[0])
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("line, value", [
    ("rate = 1", 1.0), ("mode = False", False), ("limit = None", None), ("steps = 5 * 8", 40),
])
def test_values_of_a_config_file_are_checked_too(config, line, value):
    got = getattr(read(config(line)), line.split()[0])
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("word, message", [
    ("--steps=1.5", "steps must be int, not '1.5'"),
    ("--steps=many", "steps must be int, not 'many'"),
    ("--rate=fast", "rate must be float, not 'fast'"),
    ("--quick=maybe", "quick must be True|False, not 'maybe'"),
    ("--mode=perhaps", "mode must be True|False|auto, not 'perhaps'"),
    ("--kind=green", "kind must be red|blue, not 'green'"),
    ("--steps=-1", "steps=-1 must be 0 or more"),
])
def test_a_value_of_the_wrong_type_is_refused(word, message):
    with pytest.raises(UserError) as error:
        read(word)
    assert message in str(error.value)


@pytest.mark.parametrize("line", ["steps = True", "quick = 1", "name = 3", "rate = None"])
def test_a_value_of_the_wrong_type_in_a_config_file_is_refused(config, line):
    with pytest.raises(UserError, match=f"{line.split()[0]} must be .*config.py"):
        read(config(line))


@pytest.mark.parametrize("words", [["--step=3"], ["--step", "3"], ["--stepz=3", "--rate=1"]])
def test_misspelled_setting_is_refused(words):
    message = r"unknown setting 'stepz?' in the command line; did you mean steps"
    with pytest.raises(UserError, match=message):
        read(*words)


def test_misspelled_setting_in_a_config_file_is_refused(config):
    with pytest.raises(UserError, match=r"'raet' in .*config.py; did you mean rate"):
        read(config("raet = 1.0"))


def test_modules_and_private_names_of_a_config_file_are_its_own(config):
    assert read(config("import os\nimport os.path as p\n_half = 21\nsteps = 2 * _half")).steps == 42


def test_config_files_do_not_see_each_other_or_the_program(config):
    a = config("_x = 1\nsteps = 1", "a.py")
    with pytest.raises(UserError, match=r"b.py, line 2: NameError: name '_x'"):
        read(a, config("\nsteps = _x", "b.py"))


@pytest.mark.parametrize("text, message", [
    ("steps = 1 / 0", "line 1: ZeroDivisionError"),
    ("\nsteps = (", "line 2: SyntaxError"),
])
def test_a_config_file_that_raises_is_told_with_its_line(config, text, message):
    with pytest.raises(UserError, match=message):
        read(config(text))


def test_a_missing_config_file_is_named_with_its_neighbour(config):
    file = config("steps = 1", "train_tiny.py")
    with pytest.raises(UserError, match=r".*/tain_tiny.py; did you mean .*/train_tiny.py"):
        read(file.replace("train_", "tain_"))


def test_help_shows_every_setting_with_default_and_comment(capsys):
    with pytest.raises(SystemExit) as end:
        read("--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "--steps int how long [10]" in printed and "how fast, in % a step [0.5]" in printed
    assert "--mode True|False|auto three ways ['auto']" in printed


@pytest.mark.parametrize("schema", [TrainConfig, GPTConfig, SampleConfig])
def test_every_setting_of_the_scripts_has_a_comment(schema):
    from dataclasses import fields

    from configurator import field_comments
    assert [f.name for f in fields(schema)] == list(field_comments(schema))


def test_settings_of_train_and_model_are_one_flat_set():
    given, cfg, model_cfg = configure("", TrainConfig, GPTConfig,
                                      argv=["--n_layer=3", "--batch_size=2"])
    assert given == {"n_layer": 3, "batch_size": 2}
    assert cfg.batch_size == 2 and model_cfg.n_layer == 3


def test_names_and_defaults_are_nanogpts():
    """nanoGPT's train.py; device, dtype and compile are `auto` here, and these three follow others:
    warmup_iters, lr_decay_iters and min_lr, with the same result (test_train.py)."""
    nanogpt = {
        "out_dir": "out", "eval_interval": 2000, "log_interval": 1, "eval_iters": 200,
        "eval_only": False, "always_save_checkpoint": True, "init_from": "scratch",
        "wandb_log": False, "wandb_project": "owt", "wandb_run_name": "gpt2",
        "dataset": "openwebtext", "gradient_accumulation_steps": 40, "batch_size": 12,
        "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768, "dropout": 0.0,
        "bias": False, "learning_rate": 6e-4, "max_iters": 600000, "weight_decay": 1e-1,
        "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0, "decay_lr": True,
    }
    ours = vars(TrainConfig()) | vars(GPTConfig())
    assert {name: ours[name] for name in nanogpt} == nanogpt
    sampling = {"out_dir": "out", "num_samples": 10, "max_new_tokens": 500, "temperature": 0.8,
                "top_k": 200, "seed": 1337, "compile": False, "init_from": "resume"}
    ours = vars(SampleConfig())
    assert {name: ours[name] for name in sampling} == sampling
