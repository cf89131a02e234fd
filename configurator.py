"""Settings: defaults < config files < --key=value. And what is said when one of them is wrong.

    python train.py config/quickstart.py --max_iters=500 --dropout 0.1
    python train.py --help

The defaults, types and help texts are the fields and comments of the dataclasses in train.py,
model.py and sample.py; nothing is declared twice. A config file is a Python file of assignments,
run in a namespace of its own: modules it imports and names that begin with _ are its private
matter, any other name must be a setting.
"""

import argparse
import difflib
import inspect
import re
import runpy
import sys
import traceback
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Literal, Union, get_args, get_origin


class UserError(Exception):
    """A person's mistake. The message says what is wrong, the value, the limit, and what to do."""


@contextmanager
def one_line_errors():
    """Around a script's main: a person's mistake ends in one line on stderr and exit code 2.
    A full disk or a file that cannot be read is one too. A bug of ours keeps its traceback."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # Windows would use a code page
    try:
        yield
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def reason(error):
    """The first line of what an exception says, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Parser(argparse.ArgumentParser):
    """argparse, with its errors as UserError: one line, no usage."""

    def error(self, message):
        raise UserError(f"{message} (see --help)")


def configure(description, *schemas, argv=None, expand=None):
    """Read config files and --key=value pairs into dataclasses.

    description: what --help begins with.
    schemas: dataclass types; together they make one flat set of settings.
    argv: the command line without the program's name; by default this process's own.
    expand: a function of the settings of one source, that may add others which they stand for.
    Returns (given, one instance per schema): `given` holds only what was set, by name.
    Raises UserError for an unknown setting, a value of the wrong type, or a bad config file.
    """
    settings = {field.name: field for schema in schemas for field in fields(schema)}
    comments = {name: text for schema in schemas for name, text in field_comments(schema).items()}
    parser = Parser(description=description, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="*", help="config files: Python files of assignments")
    for name, field in settings.items():
        text = f"{comments.get(name, '')} [{field.default!r}]".replace("%", "%%").strip()
        parser.add_argument(f"--{name}", metavar=type_name(field.type), help=text,
                            default=argparse.SUPPRESS)
    argv = sys.argv[1:] if argv is None else argv
    words = [word[2:].split("=")[0] for word in argv if word.startswith("--")]
    refuse_unknown([word for word in words if word != "help"], settings, "the command line")
    options = parser.parse_intermixed_args(argv)
    sources = [(path, run_config(path)) for path in options.config]
    sources.append(("the command line", {k: v for k, v in vars(options).items() if k != "config"}))

    given = {}
    for source, values in sources:
        refuse_unknown(values, settings, source)
        values = {name: convert(name, value, settings[name].type, source)
                  for name, value in values.items()}
        given |= expand(values) if expand else values
    return given, *(build(schema, given) for schema in schemas)


def refuse_unknown(names, settings, source):
    for name in names:
        if name not in settings:
            near = difflib.get_close_matches(name, settings, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists the settings"
            raise UserError(f"unknown setting {name!r} in {source}; {hint}")


def build(schema, values):
    """An instance of the dataclass from those `values` that are its fields; its ValueError (a limit
    that its __post_init__ checks) becomes a UserError."""
    names = [field.name for field in fields(schema) if field.name in values]
    try:
        return schema(**{name: values[name] for name in names})
    except ValueError as error:
        raise UserError(str(error)) from None


def run_config(path):
    """Run a config file; return its public assignments. What it raises is told in one line."""
    if not Path(path).is_file():
        near = difflib.get_close_matches(path, map(str, Path(path).parent.glob("*.py")), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"there is no config file {path}{hint}")
    try:
        names = runpy.run_path(path)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == path]
        where = f"{path}, line {getattr(error, 'lineno', None) or (lines or ['?'])[-1]}"
        raise UserError(f"{where}: {type(error).__name__}: {reason(error)}") from None
    return {name: value for name, value in names.items()
            if not name.startswith("_") and not isinstance(value, ModuleType)}


def convert(name, value, kind, source):
    """`value` as the type `kind`: text is parsed, other values are checked. An int may stand for a
    float; a bool may not stand for a number. Raises UserError."""
    for option in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if option is NoneType and value in (None, "None"):
            return None
        if option is bool and str(value) in ("True", "true", "False", "false"):
            return str(value) in ("True", "true")
        if option is str and isinstance(value, str):
            return value
        if option in (int, float) and type(value) in (str, int, option):
            with suppress(ValueError, OverflowError):
                return option(value)
    raise UserError(f"{name} must be {type_name(kind)}, not {value!r} (in {source})")


def type_name(kind):
    """A type as a person writes its values: int, 'auto' | True | False, ..."""
    if get_origin(kind) in (Union, UnionType):
        return "|".join(type_name(option) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {bool: "True|False", NoneType: "None"}.get(kind) or kind.__name__


def field_comments(schema):
    """The comment behind each field in a dataclass's source: its help text."""
    pattern = re.compile(r"^    (\w+):.*?=.*?  # (.*)$", re.MULTILINE)
    return dict(pattern.findall(inspect.getsource(schema)))
