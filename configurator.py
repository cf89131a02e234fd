"""Settings: defaults < config files < --key=value.

    python train.py config/quickstart.py --max_iters=500 --dropout 0.1
    python train.py --help

The settings of a script are the fields of its dataclasses (TrainConfig, GPTConfig, ...). Each field
has a type, usually a default, and possibly a limit. Its help text is the comment in the lines above
it or at the end of its line.

A config file is a Python file of assignments. Modules, functions, classes and names that begin with
_ are private; every other name must be a setting. It can read the settings so far, as in
`min_lr = learning_rate / 10`. Config files override defaults, and later config files override
earlier ones. The command line overrides all config files, wherever they are on it. (In nanoGPT, the
order of the arguments decides.)
"""

import builtins
import runpy
import sys
from contextlib import suppress
from dataclasses import MISSING, fields
from numbers import Real
from pathlib import PurePath
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from internals import help
from internals.errors import UserError, shown
from internals.limits import OF_MODEL
from internals.words import expand_home

# nanoGPT runs a config file inside train.py, so the file can use these modules without importing
# them: {name in the file: module}
MODULES = {"math": "math", "np": "numpy", "os": "os", "time": "time", "torch": "torch"}


def configure(description, *schemas, argv=None, expand=None, positional=()):
    """Read config files and --key=value pairs into dataclasses.

    description: the text of --help.
    schemas: dataclass types; their fields together are the settings.
    argv: the command line without the program's name; None: sys.argv[1:].
    expand: a function that gets the settings of one source, as {name: value}, and returns them with
        shorthands expanded (for example, size=gpt2 adds n_layer, n_head and n_embd).
    positional: names of the settings that are given as words without --, in this order; a tuple
        takes all remaining words. If empty, words without -- are config files.
    Returns (given, one instance per schema); given: see read_settings. Raises UserError.
    """
    given = read_settings(description, *schemas, argv=argv, expand=expand, positional=positional)
    instances = [build(schema, given) for schema in schemas]
    return given, *instances


def read_settings(description, *schemas, argv=None, expand=None, positional=()):
    """Like configure, but returns only `given`: {name: value} of the settings that a config file or
    the command line sets, even if the value is the default. Limits are not checked yet. Raises
    UserError for an unknown setting, a value of the wrong type, or a bad config file."""
    types = {}
    defaults = {}
    for schema in schemas:
        for field in fields(schema):
            types[field.name] = field.type
            if field.default is not MISSING:
                defaults[field.name] = field.default
    options, words = split(sys.argv[1:] if argv is None else argv, types)
    wants_help = options.pop("--help", False)
    given = {}
    if positional:
        options |= place(words, positional, options, types)
    else:
        for word in words:
            path = help.find_config(word, types)
            values = run_config(path, types, defaults | given)
            given |= converted(values, types, f"in {path}", expand)
    given |= converted(options, types, "on the command line", expand)
    if wants_help:
        print(help.help_text(description, schemas, given, positional, type_name, limit_of))
        sys.exit(0)
    return given


def split(argv, types):
    """Split a command line into ({name: value} of --name=value and --name value, other words). A
    setting of type bool can be given without a value: --name is --name=True."""
    options = {}
    others = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in ("--help", "-h"):
            options["--help"] = True
        elif not word.startswith("--"):
            others.append(word)
        else:
            name, equals, value = word[2:].partition("=")
            refuse_unknown(name, types, "on the command line")
            if not equals:
                # --snapshots config/x.py: the next word need not be the value of a bool
                has_value = bool(words) and not words[0].startswith("--")
                if types[name] is bool and not (has_value and is_bool(words[0])):
                    value = "True"
                elif has_value:
                    value = words.pop(0)
                else:
                    raise UserError(f"--{name} needs a value: --{name}=VALUE")
            options[name] = value
    return options, others


def place(words, positional, options, types):
    """Assign the words without -- to the positional settings that are not among the options;
    returns {name: value}."""
    values = {}
    for name in positional:
        if name in options:
            continue
        if words and get_origin(types[name]) is tuple:
            values[name] = tuple(words)
            words = []
        elif words:
            values[name] = words[0]
            words = words[1:]
    if words:
        raise UserError(f"unexpected argument {words[0]!r}: only {', '.join(positional)} can be "
                        "given without --, each once (see --help)")
    return values


def run_config(path, types, settings):
    """Run a config file and return the settings that it assigns. settings: {name: value} that it
    can read. Exceptions in it become a UserError."""
    readable = dict(settings)
    for name, module in MODULES.items():
        if module in sys.modules:  # importing torch for a config file would take seconds
            readable[name] = sys.modules[module]
    try:
        # So that `names` has only what the file itself assigns, the settings that it can read are
        # passed as built-in names: the file finds them as it finds print
        names = runpy.run_path(path, {"__builtins__": vars(builtins) | readable})
    except (Exception, SystemExit) as error:
        raise UserError(help.config_error(error, path, readable)) from None
    values = {}
    for name, value in names.items():
        is_helper = name.startswith("_") or isinstance(value, ModuleType) or callable(value)
        if is_helper and name not in types:
            continue
        refuse_unknown(name, types, f"in {path}", " (a helper variable must begin with _)")
        values[name] = value
    return values


def refuse_unknown(name, types, source, advice=""):
    if name not in types:
        hint = help.suggestion(name, types) or "--help lists the settings"
        raise UserError(f"unknown setting {name!r} {source}; {hint}{advice}")


def converted(values, types, source, expand):
    """The settings of one source: their values converted, and shorthands expanded."""
    result = {}
    for name, value in values.items():
        result[name] = expand_home(name, convert(name, value, types[name], source))
    return expand(result) if expand else result


def build(schema, values):
    """An instance of a dataclass from a dict of values; names that are not its fields are ignored.
    Raises UserError for a wrong type, a value outside its limit, or a ValueError in
    __post_init__."""
    arguments = {}
    for field in fields(schema):
        if field.name in values:  # they can come from a checkpoint, so they are converted again
            arguments[field.name] = convert(field.name, values[field.name], field.type)
        elif field.default is MISSING:
            raise UserError(f"{field.name} must be given (see --help)")
    try:
        for field in fields(schema):
            check_limit(field, arguments.get(field.name))
        return schema(**arguments)
    except ValueError as error:
        raise UserError(str(error)) from None


def check_limit(field, value):
    limit = limit_of(field)
    if limit and isinstance(value, (int, float)) and not limit.allows(value):
        raise ValueError(f"{field.name}={value} must be {limit.text}")


def limit_of(field):
    """The Limit in the type of a dataclass field, such as Count or Count | None; None if the type
    has no limit."""
    # The types of GPTConfig are plain, because model.py imports nothing of the project. OF_MODEL
    # has the same with limits
    kind = OF_MODEL.get(field.name, field.type)
    for part in (kind, *get_args(kind)):
        if get_origin(part) is Annotated:
            return part.__metadata__[0]  # Annotated[int, Limit(...)]: the Limit
    return None


def alternatives(kind):
    """The plain types in a type, for example [int, NoneType] for Count | None."""
    parts = [kind]
    if get_origin(kind) in (Union, UnionType):
        parts = get_args(kind)
    return [part.__origin__ if get_origin(part) is Annotated else part for part in parts]


def convert(name, value, kind, source="in the settings"):
    """Convert `value` to the type `kind`: text is parsed, other values are checked. Raises
    UserError."""
    # str comes last, because every text is a valid str: for str | None, "None" must become None
    options = alternatives(kind)
    options.sort(key=lambda option: option is str)
    for option in options:
        with suppress(ValueError, OverflowError, RecursionError):
            return parse(value, option)  # the first type that takes the value
    raise UserError(f"{name} must be {type_name(kind)}, not {shown(value)} ({source})")


def parse(value, kind):
    """Convert `value` to a plain type. An int can be used as a float, and 1e3 as an int; a bool
    cannot be used as a number. A number can be one of NumPy, and a text can be a Path. Raises
    ValueError, or OverflowError if a number is too large."""
    text = str(value)
    if kind is NoneType and text == "None":
        return None
    if kind is bool and is_bool(text):
        return text in ("True", "true")
    if kind is str and isinstance(value, (str, PurePath)):
        return text
    if get_origin(kind) is tuple and isinstance(value, (str, tuple)):
        return (value,) if isinstance(value, str) else value
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if str(choice) == text:
                return choice
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if kind in (int, float) and (is_number or isinstance(value, str)):
        number = float(value)
        if kind is float:
            return number
        is_whole = abs(number) <= 2**63 and number.is_integer()  # no setting needs larger ones
        if is_whole and ("." in text or "e" in text.lower()):  # 1e3
            return int(number)
        if is_whole:
            return int(value)  # exact: a float has 53 bits only
    raise ValueError(f"{text} is not {kind}")


def is_bool(text):
    return text in ("True", "true", "False", "false")


def type_name(kind):
    """A type as text, for messages: int, True|False|auto, str|None."""
    names = []
    for option in alternatives(kind):
        if get_origin(option) is Literal:
            names += map(str, get_args(option))
        elif option is bool:
            names.append("True|False")
        elif option is NoneType:
            names.append("None")
        else:
            names.append(option.__name__)
    return "|".join(names)
