"""pytest tests/test_configurator.py - defaults < config files < --key=value"""

import os
import re
from dataclasses import dataclass, fields
from typing import Literal

import pytest
from helpers import ROOT

from configurator import build, configure
from internals.errors import UserError, one_line_errors
from internals.help import field_comments
from internals.limits import Count, NonNegative, Positive, Probability, Seed
from internals.recipes import expand_names
from model import GPTConfig
from prepare import PrepareConfig
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
    folder: str | None = None

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must be 0 or more")


@dataclass
class Limited:
    count: Count = 12  # as many
    # a rate
    positive: Positive = 1.0

    # -- second group
    # a comment of two lines, the first one
    # and the second one
    nonnegative: NonNegative = 0.0  # and one behind
    probability: Probability = 0.5
    seed: Seed | None = None


@dataclass
class Export:
    """Two settings that have no default."""

    out_dir: str  # where from
    folder: str  # where to
    quick: bool = False


def read(*argv, schema=Settings, positional=()):
    return configure("", schema, argv=list(argv), positional=positional)[1]


@pytest.fixture
def config(tmp_path):
    def write(text, name="config.py"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_command_line_beats_later_config_files_beat_earlier_ones_beat_defaults(config):
    a = config("steps = 1\nname = 'a'\nrate = 2.5", "a.py")
    b = config("steps = 2", "b.py")
    assert read() == Settings()
    assert read(a, "--quick=True", b) == Settings(steps=2, rate=2.5, name="a", quick=True)
    assert read(a, "--steps=30") == read("--steps=30", a) == Settings(30, 2.5, "a")


def test_a_config_file_can_read_the_settings_so_far_and_use_modules(config):
    """As in nanoGPT, whose config files run inside train.py."""
    a = config("steps = 3\nname = 'a'", "a.py")
    b = config("rate = steps * 2", "b.py")
    assert read(a, b, "--steps=9") == Settings(steps=9, rate=6.0, name="a")
    modules = "rate = math.log(np.e)\nfolder = os.path.join('a', str(time.time() > 0))"
    assert read(config(modules)) == Settings(rate=1.0, folder=os.path.join("a", "True"))


def test_a_config_file_can_read_what_a_size_sets(config):
    argv = [config("size = 'gpt-nano'", "a.py"), config("n_embd = 16 * n_head", "b.py")]
    _, _, model = configure("", TrainConfig, GPTConfig, argv=argv, expand=expand_names)
    assert (model.n_layer, model.n_head, model.n_embd) == (3, 3, 48)


def test_settings_of_train_and_model_are_one_flat_set_and_only_what_is_set_is_given(config):
    file = config("_half = max_iters / 2\nbeta1 = 0.9\nprint(dataset)")  # reading is not setting
    given, cfg, model_cfg = configure("", TrainConfig, GPTConfig,
                                      argv=["--n_layer=3", "--batch_size=2", file])
    assert given == {"n_layer": 3, "batch_size": 2, "beta1": 0.9}
    assert cfg.batch_size == 2 and model_cfg.n_layer == 3


def test_helpers_of_a_config_file_are_its_own(config):
    text = ("import os\nimport os.path as p\nfrom pathlib import Path\nfrom math import sqrt\n"
            "def twice(): return 2 * _half\nclass Shape: pass\n_half = 21\nsteps = twice()")
    assert read(config(text)).steps == 42
    with pytest.raises(UserError, match=r"b.py, line 2: NameError: name '_half'"):
        read(config(text), config("\nsteps = _half", "b.py"))


# ---- values


def test_a_bool_can_be_given_without_a_value_and_others_after_a_space():
    assert read("--quick", "--steps", "2", "--name", "y") == Settings(2, name="y", quick=True)
    assert read("--quick", "false") == Settings()


@pytest.mark.parametrize("word, value", [
    ("--rate=1e-3", 1e-3), ("--quick=false", False), ("--mode=False", False),
    ("--mode=auto", "auto"), ("--limit=None", None), ("--limit=3", 3), ("--name=a=b", "a=b"),
    ("--name=None", "None"), ("--name=", ""), ("--folder=None", None),
    ("--steps=1e3", 1000), (f"--steps={2**63 - 1}", 2**63 - 1),
    # in a config file
    ("rate = 1", 1.0), ("mode = False", False), ("steps = 1e3", 1000), ("folder = 'None'", None),
    ("steps = np.int64(3)", 3), ("folder = __import__('pathlib').Path('a')", "a"),
])
def test_values_have_the_type_of_their_setting(config, word, value):
    name = word.strip("-").split("=")[0].strip()
    got = getattr(read(word if word.startswith("--") else config(word)), name)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("word, message", [
    ("--steps=1.5", "steps must be int, not '1.5'"),
    ("--steps", "--steps needs a value: --steps=VALUE"),
    ("--mode=perhaps", r"mode must be True\|False\|auto, not 'perhaps'"),
    ("--steps=-1", "steps=-1 must be 0 or more"),
    ("--step=3", "unknown setting 'step' on the command line; did you mean steps?"),
    ("steps=3", "there is no config file steps=3; did you mean --steps=3?"),
    ("quickstart", "there is no config file quickstart; did you mean config/quickstart.py?"),
    # in a config file
    ("raet = 1.0", r"'raet' in .*config.py; did you mean rate\? \(a helper variable must begin wi"),
    ("steps = 1 / 0", "line 1: ZeroDivisionError"),
    ("steps = random.randint(1, 2)", "line 1: NameError: .*; add `import random` to the file$"),
])
def test_a_wrong_word_or_line_is_refused(config, word, message):
    is_line = " = " in word
    with pytest.raises(UserError, match=message):
        read(config(word) if is_line else word)


@pytest.mark.parametrize("line", [
    "steps = True", "quick = 1", "name = 3", "rate = None", "steps = 10**5000", "name = len",
    "rate = 10**400", "steps = np.arange(3)",
    "rate = [[]]\nfor _ in range(99999): rate = [rate]",
])
def test_a_value_of_the_wrong_type_in_a_config_file_is_refused(config, line):
    with pytest.raises(UserError, match=f"{line.split()[0]} must be .*config.py"):
        read(config(line))


def test_a_config_file_is_also_looked_for_next_to_the_scripts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = os.path.join("config", "train_plays.py")
    assert configure("", TrainConfig, GPTConfig, argv=[file])[1].out_dir == "out-plays"
    assert capsys.readouterr().err == f"config   {ROOT / file}\n"


def test_a_tilde_that_the_shell_leaves_in_a_path_is_the_home_folder(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    assert read("--folder=~/run") == read("--folder", "~/run") == Settings(folder=f"{tmp_path}/run")
    assert read("--folder=a/~").folder == "a/~"
    config("steps = 4\nfolder = '~/run'")
    assert read("~/config.py") == Settings(steps=4, folder=f"{tmp_path}/run")
    cfg = read("~/a", "b", schema=PrepareConfig, positional=["sources"])
    assert cfg.sources == (f"{tmp_path}/a", "b")
    assert read("--start=FILE:~/x", schema=SampleConfig).start == f"FILE:{tmp_path}/x"


@pytest.mark.parametrize("text", ["'Tis'", '"Yes"', "~/x", "' '"])
def test_a_prompt_and_a_separator_keep_their_quotes_and_their_tilde(text):
    cfg = read(f"--start={text}", "--stop", text, schema=SampleConfig)
    assert (cfg.start, cfg.stop) == (text, text)
    cfg = read("a", f"--separator={text}", schema=PrepareConfig, positional=["sources"])
    assert cfg.separator == text


@pytest.mark.parametrize("name, good, bad, limit", [
    ("count", [1, 10**12], [0, -1], "1 or more"),
    ("positive", [1e-300, 1e300], [0.0, -1.0, float("inf"), float("nan")], "above 0"),
    ("probability", [0.0, 0.999], [1.0, -0.1, float("nan")], "at least 0 and below 1"),
    ("seed", [0, 2**63 - 1, None], [-1, 2**63], "at least 0 and below 2**63"),
])
def test_the_limit_of_a_type_is_checked(name, good, bad, limit):
    for value in good:
        cfg = read(f"--{name}={value}", schema=Limited)
        assert getattr(cfg, name) == value and cfg == build(Limited, {name: value, "unknown": 4})
    for value in bad:
        message = re.escape(f"{name}={value} must be {limit}") + "$"
        with pytest.raises(UserError, match=message):
            read(f"--{name}={value}", schema=Limited)
        with pytest.raises(UserError, match=message):
            build(Limited, {name: value})


def test_words_without_dashes_can_be_settings():
    names = ["out_dir", "folder"]
    for argv in ["a", "--quick=True", "b"], ["--quick", "a", "b"], ["b", "--quick", "--out_dir=a"]:
        assert read(*argv, schema=Export, positional=names) == Export("a", "b", True)
    cfg = read("a", "--name", "y", "b", "c.py", schema=PrepareConfig, positional=["sources"])
    assert cfg == PrepareConfig(("a", "b", "c.py"), "y")
    for words, message in (([], "out_dir must be given"), (["a"], "folder must be given"),
                           (["a", "b", "c"], "unexpected argument 'c': only out_dir, folder")):
        with pytest.raises(UserError, match=message):
            read(*words, schema=Export, positional=names)


def help_of(capsys, *schemas, argv=("--help",), **options):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        configure("What it is.", *schemas, argv=list(argv), **options)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_usage_and_every_setting_with_default_type_limit_and_comment(capsys, config):
    argv = [config("steps = 77"), "--rate=3", "--help"]  # with the values so far
    usage, *rest = help_of(capsys, Settings, Limited, argv=argv).splitlines()
    assert usage.startswith("usage: ") and "CONFIG.py" in usage
    titles = [line for line in rest if line and not line.startswith(" ")]
    assert titles == ["What it is.", "Settings and their current values:", "test_configurator",
                      "second group"]
    printed = " ".join(" ".join(rest).split())
    for part in ("--steps=77 how long (int)", "--rate=3.0 how fast, in % a step (float)",
                 "--mode=auto three ways (True | False | auto)", "--folder=None (str | None)",
                 "--count=12 as many (int, 1 or more)", "--positive=1.0 a rate (float, above 0)",
                 "--nonnegative=0.0 a comment of two lines, the first one and the second one and"):
        assert part in printed
    usage = help_of(capsys, Export, positional=["out_dir", "folder"]).splitlines()[0]
    assert usage.endswith(" OUT_DIR FOLDER [--name=value ...]")


@pytest.mark.parametrize("schema", [TrainConfig, GPTConfig, SampleConfig])
def test_every_setting_of_the_scripts_has_a_comment_and_its_help_fits(capsys, schema):
    texts = field_comments(schema)
    assert [field.name for field in fields(schema)] == list(texts)
    assert all(text for _, text in texts.values())
    printed = help_of(capsys, schema)
    assert max(map(len, printed.splitlines())) <= 100
    assert not re.search(r"gpt-?$", printed, re.M)  # a choice on two lines


def test_an_error_is_one_line_whatever_its_message_has(capsys):
    with pytest.raises(SystemExit), one_line_errors():
        raise UserError("a\nb\r\nc\udce9")
    assert capsys.readouterr().err == "error: a b c?\n"


@pytest.mark.parametrize("schemas, nanogpt", [
    ((TrainConfig, GPTConfig), {
        "out_dir": "out", "eval_interval": 2000, "log_interval": 1, "eval_iters": 200,
        "eval_only": False, "always_save_checkpoint": True, "init_from": "scratch",
        "wandb_log": False, "dataset": "openwebtext", "gradient_accumulation_steps": 40,
        "batch_size": 12, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768,
        "dropout": 0.0, "bias": False, "learning_rate": 6e-4, "max_iters": 600000,
        "weight_decay": 1e-1, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0, "decay_lr": True}),
    ((SampleConfig,), {
        "out_dir": "out", "num_samples": 10, "max_new_tokens": 500, "temperature": 0.8,
        "top_k": 200, "seed": 1337, "compile": False, "init_from": "resume"}),
], ids=["train", "sample"])
def test_names_and_defaults_are_nanogpts(schemas, nanogpt):
    """Except for the names of the run in a tracker; device, dtype and compile are `auto` here, and
    these three follow others: warmup_iters, lr_decay_iters and min_lr, with the same result
    (test_train.py)."""
    ours = {}
    for schema in schemas:
        ours |= vars(schema())
    assert {name: ours[name] for name in nanogpt} == nanogpt
