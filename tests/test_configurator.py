"""pytest tests/test_configurator.py - defaults < config files < --key=value"""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Literal

import pytest
from helpers import ROOT

from configurator import build, configure
from internals.errors import UserError, one_line_errors, reason
from internals.help import field_comments, similar_dataset
from internals.limits import Count, Fraction, Natural, NonNegative, Positive, Probability, Seed
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
    kind: Literal["red", "blue"] = "red"
    folder: str | None = None

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must be 0 or more")


@dataclass
class Limited:
    count: Count = 12  # as many
    natural: Natural = 0
    # a rate
    positive: Positive = 1.0

    # -- second group
    # a comment of two lines, the first one
    # and the second one
    nonnegative: NonNegative = 0.0  # and one behind
    probability: Probability = 0.5
    fraction: Fraction = 0.5
    seed: Seed | None = None


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


def test_a_config_file_can_read_the_settings_so_far(config):
    """As in nanoGPT, whose config files run inside train.py."""
    assert read(config("rate = rate / 10\nsteps += 1")) == Settings(steps=11, rate=0.05)
    a, b = config("steps = 3\nname = 'a'", "a.py"), config("rate = steps * 2", "b.py")
    assert read(a, b, "--steps=9") == Settings(steps=9, rate=6.0, name="a")
    inside = "def _twice():\n    return 2 * steps\nrate = sum(_twice() for _ in range(steps))"
    assert read(config(inside)).rate == 200.0
    shape = config("size = 'gpt-nano'", "a.py"), config("n_embd = 16 * n_head", "b.py")
    argv = [*shape, "--n_layer=1"]
    _, _, model = configure("", TrainConfig, GPTConfig, argv=argv, expand=expand_names)
    assert (model.n_layer, model.n_head, model.n_embd) == (1, 3, 48)


def test_a_setting_that_a_config_file_only_reads_is_not_given(config):
    given, _ = configure("", Settings, argv=[config("_half = steps / 2\nrate = 0.5\nprint(name)")])
    assert given == {"rate": 0.5}


def test_a_config_file_can_use_the_modules_that_train_has_imported(config):
    text = ("name = 'bfloat16' if torch.cuda.is_bf16_supported() and torch.tensor(0) else 'x'\n"
            "rate = math.log(np.e)\nfolder = os.path.join('a', str(time.time() > 0))")
    cfg = read(config(text))
    assert (cfg.name, cfg.rate, cfg.folder) == ("x", 1.0, os.path.join("a", "True"))


def test_a_bool_can_be_given_without_a_value():
    assert read("--quick") == read("--quick", "True") == read("--quick=True")
    assert read("--quick", "--steps=2") == Settings(steps=2, quick=True)
    assert read("--quick", "false") == Settings()
    argv = ["--quick", "a", "b"]  # a is not its value
    assert configure("", Export, positional=["out_dir", "folder"], argv=argv)[1] == Export(
        "a", "b", True)


def test_both_spellings_of_an_option_work():
    assert read("--steps", "7", "--name", "y") == read("--steps=7", "--name=y")


@pytest.mark.parametrize("word, value", [
    ("--rate=1", 1.0), ("--rate=1e-3", 1e-3), ("--quick=True", True), ("--quick=false", False),
    ("--mode=False", False), ("--mode=auto", "auto"), ("--limit=None", None), ("--limit=3", 3),
    ("--name=a=b", "a=b"), ("--name=True", "True"), ("--name=None", "None"), ("--name=", ""),
    ("--kind=blue", "blue"), ("--folder=None", None), ("--folder=", ""), ("--folder=x", "x"),
    ("--steps=1e3", 1000), ("--steps=2.0", 2), ("--rate=1e400", float("inf")),
])
def test_values_have_the_type_of_their_setting(word, value):
    got = getattr(read(word), word[2:].split("=")[0])
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("line, value", [
    ("rate = 1", 1.0), ("mode = False", False), ("limit = None", None), ("steps = 5 * 8", 40),
    ("steps = 1e3", 1000), ("folder = 'None'", None), ("folder = None", None),
    ("steps = np.int64(3)", 3), ("steps = np.float64(1e3)", 1000), ("rate = np.float32(0.5)", 0.5),
    ("rate = np.uint8(2)", 2.0), ("quick = np.bool_(True)", True), ("limit = np.int8(-1)", -1),
    ("name = np.str_('y')", "y"), ("folder = __import__('pathlib').Path('a') / 'b'",
                                  os.path.join("a", "b")),
])
def test_values_of_a_config_file_are_checked_too(config, line, value):
    got = getattr(read(config(line)), line.split()[0])
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("word, message", [
    ("--steps=1.5", "steps must be int, not '1.5'"),
    ("--steps=1e400", "steps must be int, not '1e400'"),
    ("--steps=" + "9" * 5000, "steps must be int, not '9999"),
    ("--steps", "--steps needs a value: --steps=VALUE"),
    ("--mode", "--mode needs a value: --mode=VALUE"),
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


@pytest.mark.parametrize("line", [
    "steps = True", "quick = 1", "name = 3", "rate = None", "steps = 1.5", "steps = 10**5000",
    "name = len", "mode = [[]]", "kind = {}", "steps = float('nan')", "rate = 10**400",
    "rate = [[]]\nfor _ in range(99999): rate = [rate]", "steps = np.bool_(True)",
    "steps = np.arange(3)", "rate = (np.float64(1),)", "name = b'x'", "steps = 3j", "name = ('x',)",
])
def test_a_value_of_the_wrong_type_in_a_config_file_is_refused(config, line):
    with pytest.raises(UserError, match=f"{line.split()[0]} must be .*config.py"):
        read(config(line))


@pytest.mark.parametrize("words", [["--step=3"], ["--step", "3"], ["--stepz=3", "--rate=1"]])
def test_misspelled_setting_is_refused(words):
    message = r"unknown setting 'stepz?' on the command line; did you mean steps"
    with pytest.raises(UserError, match=message):
        read(*words)


def test_misspelled_setting_in_a_config_file_is_refused(config):
    with pytest.raises(UserError, match=r"'raet' in .*config.py; did you mean rate"):
        read(config("raet = 1.0"))


@pytest.mark.parametrize("words, setting", [
    ("--lr=1", "learning_rate"), ("--learning-rate=1", "learning_rate"), ("--bs=4", "batch_size"),
    ("--epochs=3", "max_iters"), ("--steps=3", "max_iters"), ("--n_layers=2", "n_layer"),
    ("--resume", "init_from=resume"), ("--model=gpt2", "init_from"), ("--DROPOUT=0", "dropout"),
    ("--no-compile", "compile=False"), ("--no_bias=True", "bias=False"),
    ("--wd 0.1", "weight_decay"), ("--context_length 64", "block_size"),
])
def test_a_setting_by_the_name_it_has_elsewhere_gets_a_hint(words, setting):
    with pytest.raises(UserError, match=f"did you mean {setting}\\?$"):
        configure("", TrainConfig, GPTConfig, argv=words.split())


@pytest.mark.parametrize("word, setting", [
    ("--prompt=x", "start"), ("--temp=1", "temperature"), ("--max_tokens=9", "max_new_tokens"),
    ("--temperature-like=1", "temperature"),
])
def test_hints_name_settings_of_the_same_script_only(word, setting):
    with pytest.raises(UserError, match=f"did you mean {setting}\\?$"):
        configure("", SampleConfig, argv=[word])
    with pytest.raises(UserError, match="--help lists the settings"):
        configure("", Limited, argv=[word])


def test_helpers_of_a_config_file_are_its_own(config):
    text = ("import os\nimport os.path as p\nfrom pathlib import Path\nfrom math import sqrt\n"
            "def twice(x): return 2 * x\nclass Shape: pass\n_half = 21\nsteps = twice(_half)")
    assert read(config(text)).steps == 42


@pytest.mark.parametrize("line, message", [
    ("tokens_per_iter = 99", "'tokens_per_iter' in .*config.py.*helper variable must begin with _"),
    ("lr = 1e-3", "'lr' in .*config.py.*a helper variable must begin with _"),
    ("for i in range(3): steps = i", r"'i' in .*config.py; .* \(a helper variable must begin with"),
    ("stepz = 3", r"did you mean steps\? \(a helper variable must begin with _\)"),
])
def test_a_variable_that_is_not_a_setting_is_an_error_that_says_how_helpers_are_named(
        config, line, message):
    with pytest.raises(UserError, match=message):
        read(config(line))


def test_a_folder_or_a_checkpoint_in_place_of_a_config_file_gets_a_hint(tmp_path):
    for path in (tmp_path / "out fr", tmp_path / "best.pt"):
        path.mkdir() if path.suffix == "" else path.write_bytes(b"PK")
        with pytest.raises(UserError) as error:
            configure("", SampleConfig, argv=[str(path)])
        assert str(error.value).startswith(f"{path} is not a config file")
        assert "did you mean" in str(error.value) and "--out_dir=" in str(error.value)
        if " " in path.name:
            assert f"'--out_dir={path}'?" in str(error.value)  # quoted for a shell
    with pytest.raises(UserError, match=r"is not a config file, which ends in \.py$"):
        read(str(tmp_path))


def test_config_files_do_not_see_each_other_or_the_program(config):
    a = config("_x = 1\nsteps = 1", "a.py")
    with pytest.raises(UserError, match=r"b.py, line 2: NameError: name '_x'"):
        read(a, config("\nsteps = _x", "b.py"))


@pytest.mark.parametrize("text, message", [
    ("steps = 1 / 0", "line 1: ZeroDivisionError"),
    ("\nsteps = (", "line 2: SyntaxError"),
    ("steps = random.randint(1, 2)", "line 1: NameError: .*; add `import random` to the file$"),
    ("rate = step / 2", "line 1: NameError: name 'step' is not defined; did you mean steps\\?$"),
    ("rate = quux", "line 1: NameError: name 'quux' is not defined$"),
    ("limit = limit / 2", "line 1: TypeError: unsupported operand"),
])
def test_a_config_file_that_raises_is_told_with_its_line(config, text, message):
    with pytest.raises(UserError, match=message):
        read(config(text))


def test_a_missing_config_file_is_named_with_its_neighbour(config):
    file = config("steps = 1", "train_tiny.py")
    with pytest.raises(UserError, match=r".*/tain_tiny.py; did you mean .*/train_tiny.py"):
        read(file.replace("train_", "tain_"))


@pytest.mark.parametrize("word, hint", [
    ("quickstart", "config/quickstart.py"), ("config/quikstart.py", "config/quickstart.py"),
    ("train_gpt2", "config/train_gpt2.py"), ("steps=3", "--steps=3"), ("-steps=3", "--steps=3"),
])
def test_a_word_that_is_almost_a_config_file_gets_a_hint(tmp_path, monkeypatch, word, hint):
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        with pytest.raises(UserError) as error:
            read(word)
        assert str(error.value) == f"there is no config file {word}; did you mean {hint}?"


def test_a_dataset_or_a_tokenizer_with_a_similar_name_is_proposed(tmp_path):
    for name in ("novel", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "novel" / "train.bin").touch()
    for name, hint in ("novl", "; did you mean novel?"), ("notes2", ""), ("xyz", ""):
        assert similar_dataset(tmp_path / name, []) == hint
    for name in "gpt-2", "GPT2", "gpt":
        assert similar_dataset(tmp_path / name, ["char", "gpt2"]) == "; did you mean gpt2?"


def test_a_config_file_is_also_looked_for_next_to_the_scripts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = os.path.join("config", "train_plays.py")
    argv = [file, "--data_dir=x"]
    assert configure("", TrainConfig, GPTConfig, argv=argv)[1].out_dir == "out-plays"
    assert capsys.readouterr().err == f"config   {ROOT / file}\n"
    (tmp_path / "config").mkdir()
    (tmp_path / file).write_text("out_dir = 'mine'", encoding="utf-8")
    assert configure("", TrainConfig, GPTConfig, argv=argv)[1].out_dir == "mine"
    assert capsys.readouterr().err == ""


# ---- what shells leave in the words


@pytest.mark.parametrize("word, value", [
    ("--name='cpu'", "cpu"), ('--name="cpu"', "cpu"), ("'--name=cpu'", "cpu"), ("--name=''", ""),
    ("--name='a b'", "a b"), ("--name=''a''", "'a'"), ("--name='a", "'a"), ("--name='", "'"),
    ("--name=it's", "it's"), ("--steps='3'", 3), ("--mode='False'", False),
])
def test_one_pair_of_quotes_that_the_shell_keeps_is_removed(word, value):
    got = vars(read(word))
    assert got[word.strip("'\"")[2:].split("=")[0]] == value


def test_a_tilde_that_the_shell_leaves_in_a_path_is_the_home_folder(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    assert read("--folder=~/run") == read("--folder", "~/run") == Settings(folder=f"{tmp_path}/run")
    assert read("--folder='~/a b'").folder == f"{tmp_path}/a b"
    assert read("--folder=a/~").folder == "a/~"
    assert read(config("folder = '~/run'")).folder == f"{tmp_path}/run"
    config("steps = 4")
    assert read("~/config.py").steps == 4
    argv = ["~/a", "'b'", "~/c*"]
    assert configure("", Files, positional=["what"], argv=argv)[1].what == (
        f"{tmp_path}/a", "b", f"{tmp_path}/c*")
    cfg = configure("", SampleConfig, argv=["--out=~/s.jsonl", "--start=FILE:~/x", "--stop=~"])[1]
    assert (cfg.out, cfg.start, cfg.stop) == (f"{tmp_path}/s.jsonl", f"FILE:{tmp_path}/x", "~")


@pytest.mark.parametrize("text", ["'Tis'", '"Yes"', "~/x", "~", "' '"])
def test_a_prompt_keeps_its_quotes_and_its_tilde(text):
    cfg = configure("", SampleConfig, argv=[f"--start={text}", "--stop", text])[1]
    assert (cfg.start, cfg.stop) == (text, text)


# ---- limits


@pytest.mark.parametrize("name, good, bad, limit", [
    ("count", [1, 10**12], [0, -1], "1 or more"),
    ("natural", [0, 1], [-1], "0 or more"),
    ("positive", [1e-300, 1e300], [0, -1, "inf", "nan", "-inf"], "above 0"),
    ("nonnegative", [0, 1e300], [-1e-9, "inf", "nan"], "0 or more"),
    ("probability", [0, 0.999], [1, -0.1, "nan"], "at least 0 and below 1"),
    ("fraction", [0, 1], [1.001, -0.1, "nan"], "at least 0 and at most 1"),
    ("seed", [0, 2**63 - 1, "None"], [-1, 2**63], "at least 0 and below 2**63"),
])
def test_the_limit_of_a_type_is_checked(name, good, bad, limit):
    for value in good:
        _, cfg = configure("", Limited, argv=[f"--{name}={value}"])
        assert getattr(cfg, name) == (None if value == "None" else value)
    for value in bad:
        number = float(value) if name not in ("count", "natural", "seed") else value
        message = f"{name}={number} must be {limit}"
        with pytest.raises(UserError) as error:
            configure("", Limited, argv=[f"--{name}={value}"])
        assert str(error.value) == message
        with pytest.raises(UserError) as error:
            build(Limited, {name: number})
        assert str(error.value) == message


def test_a_seed_keeps_all_its_digits():
    seed = 2**63 - 1
    assert configure("", Limited, argv=[f"--seed={seed}"])[1].seed == seed


def test_settings_from_a_file_are_built_with_the_same_checks():
    assert build(Limited, {"count": 3, "unknown": 4}) == Limited(count=3)
    for values in ({"count": "x"}, {"count": [3]}, {"count": None}, {"positive": {}},
                   {"count": 0}, {"seed": 0.5}):
        with pytest.raises(UserError, match=next(iter(values))):
            build(Limited, values)


@dataclass
class Export:
    """Two settings that have no default."""

    out_dir: str  # where from
    folder: str  # where to
    quick: bool = False


@dataclass
class Files:
    """A setting that takes all words."""

    what: tuple[str, ...]  # files
    name: str = "x"


def test_words_without_dashes_can_be_settings():
    given, cfg = configure("", Export, positional=["out_dir", "folder"],
                           argv=["a", "--quick=True", "b"])
    assert cfg == Export("a", "b", True)
    assert given == {"out_dir": "a", "folder": "b", "quick": True}
    for argv in ["--folder=b", "a"], ["a", "--folder", "b"], ["b", "--out_dir=a"]:
        assert configure("", Export, positional=["out_dir", "folder"], argv=argv)[1] == (
            Export("a", "b"))
    assert configure("", Files, positional=["what"], argv=["--what=a"])[1] == Files(("a",))
    cfg = configure("", Files, positional=["what"], argv=["a", "--name", "y", "b", "c.py"])[1]
    assert cfg == Files(("a", "b", "c.py"), "y")
    for words, message in (([], "out_dir must be given"), (["a"], "folder must be given"),
                           (["a", "b", "c"], "unexpected argument 'c': only out_dir, folder"),
                           (["a", "b", "--folder=c"], "unexpected argument 'b': only out_dir"),
                           (["a", "--out_dir=b", "--folder=c"], "argument 'a': only out_dir")):
        with pytest.raises(UserError, match=message):
            configure("", Export, positional=["out_dir", "folder"], argv=words)
    with pytest.raises(UserError, match="what must be given"):
        configure("", Files, positional=["what"], argv=[])


# ---- help


def help_of(capsys, *schemas, argv=("--help",), **options):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        configure("What it is.", *schemas, argv=list(argv), **options)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_shows_every_setting_with_default_type_limit_and_comment(capsys):
    printed = " ".join(help_of(capsys, Settings, Limited).split())
    assert "--steps=10 how long (int)" in printed
    assert "--rate=0.5 how fast, in % a step (float)" in printed
    assert "--mode=auto three ways (True | False | auto)" in printed
    assert "--folder=None (str | None)" in printed
    assert "--count=12 as many (int, 1 or more)" in printed
    assert "--positive=1.0 a rate (float, above 0)" in printed
    assert "--nonnegative=0.0 a comment of two lines, the first one and the second one and one" in (
        printed)


def test_help_has_one_line_of_usage_and_the_settings_in_groups(capsys):
    usage, blank, description, *rest = help_of(capsys, Limited, GPTConfig).splitlines()
    assert usage.startswith("usage: ") and "CONFIG.py" in usage
    assert blank == "" and description == "What it is."
    titles = [line for line in rest if line and not line.startswith(" ")]
    assert titles == ["Settings and their current values:", "test_configurator",
                      "second group", "model"]
    for schema in (TrainConfig, GPTConfig, SampleConfig):
        assert all(len(line) <= 100 for line in help_of(capsys, schema).splitlines())
        assert not re.search(r"gpt-?$", help_of(capsys, schema), re.M)  # a choice on two lines
    usage = help_of(capsys, Export, positional=["out_dir", "folder"]).splitlines()[0]
    assert usage.endswith(" OUT_DIR FOLDER [--name=value ...]")


def test_help_after_a_config_file_shows_its_values(capsys, config):
    argv = [config("steps = 77"), "--rate=3", "--help"]
    printed = help_of(capsys, Settings, argv=argv)
    assert "--steps=77 " in printed and "--rate=3.0 " in printed and "--name=x " in printed


@pytest.mark.parametrize("schema", [TrainConfig, GPTConfig, SampleConfig])
def test_every_setting_of_the_scripts_has_a_comment(schema):
    texts = field_comments(schema)
    assert [field.name for field in fields(schema)] == list(texts)
    assert all(text for _, text in texts.values())


# ---- how a script ends


def python(code, *redirections, **options):
    """Run `code` after `from internals.errors import *`, in a shell with these redirections."""
    command = [sys.executable, "-c", f"from internals.errors import *\nimport sys\n{code}"]
    shell = ["bash", "-c", '"$@" ' + " ".join(redirections), "bash", *command]
    return subprocess.run(shell, cwd=ROOT, capture_output=True, **options)


def test_ctrl_c_is_one_line_and_ends_the_process_by_sigint():
    code = "with one_line_errors():\n print('before')\n raise KeyboardInterrupt"
    run = subprocess.run([sys.executable, "-c", f"from internals.errors import *\n{code}"],
                         cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONUNBUFFERED": ""})
    assert run.returncode == -signal.SIGINT
    assert run.stderr == b"interrupted\n"
    assert run.stdout == b"before\n"


def test_closed_streams_are_empty_ones():
    code = ("with one_line_errors():\n assert sys.stdin.read() == '' and not sys.stdin.isatty()\n"
            " assert not sys.stdout.isatty()\n print('x')\n raise UserError('wrong')")
    run = python(code, "<&-", ">&-")
    assert (run.returncode, run.stderr) == (2, b"error: wrong\n")
    assert python(code, "<&-", "2>&-").returncode == 2


def test_stdin_is_utf8_whatever_the_locale_and_nothing_else():
    code = "with one_line_errors():\n print(ascii(sys.stdin.read()))"
    for locale in ({"PYTHONIOENCODING": "latin-1"},
                   {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        run = python(code, input="the é".encode(), env=os.environ | locale)
        assert run.stdout.decode().split() == [r"'the", r"\xe9'"]
        run = python(code, input=b"the \xe9", env=os.environ | locale)
        assert run.returncode == 2 and run.stderr.count(b"\n") == 1
        assert run.stderr.startswith(b"error: the text on stdin is not UTF-8")


def test_a_full_disk_behind_stdout_is_one_line():
    run = python("with one_line_errors():\n print('x')", ">/dev/full")
    assert run.returncode == 2 and run.stderr == b"error: [Errno 28] No space left on device\n"


def test_an_error_is_one_line_whatever_its_message_has(capsys):
    with pytest.raises(SystemExit), one_line_errors():
        raise UserError("a\nb\r\nc\udce9")
    assert capsys.readouterr().err == "error: a b c?\n"
    assert reason(ValueError("\n first \nsecond")) == "first "
    assert reason(ValueError("")) == "ValueError"
    assert len(reason(ValueError("x" * 9999))) == 200


# ---- the settings of the scripts


def test_settings_of_train_and_model_are_one_flat_set():
    given, cfg, model_cfg = configure("", TrainConfig, GPTConfig,
                                      argv=["--n_layer=3", "--batch_size=2"])
    assert given == {"n_layer": 3, "batch_size": 2}
    assert cfg.batch_size == 2 and model_cfg.n_layer == 3


def test_names_and_defaults_are_nanogpts():
    """nanoGPT's train.py, except for the names of the run in a tracker; device, dtype and compile
    are `auto` here, and these three follow others: warmup_iters, lr_decay_iters and min_lr, with
    the same result (test_train.py)."""
    nanogpt = {
        "out_dir": "out", "eval_interval": 2000, "log_interval": 1, "eval_iters": 200,
        "eval_only": False, "always_save_checkpoint": True, "init_from": "scratch",
        "wandb_log": False,
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


@pytest.mark.parametrize("separator", ["~", "'''", '"', "'a'"])
def test_a_separator_is_text_and_not_a_path(separator):
    _, cfg = configure("", PrepareConfig, argv=["a", f"--separator={separator}"],
                       positional=["sources"])
    assert cfg.separator == separator
