"""Help about settings and config files: the text of --help, and suggestions for wrong names."""

import difflib
import inspect
import re
import shlex
import shutil
import sys
import textwrap
import traceback
from dataclasses import MISSING, fields, is_dataclass
from os.path import expanduser
from pathlib import Path

from internals.errors import UserError, reason

ROOT = Path(__file__).resolve().parent.parent
# names of settings in other programs; used only for "did you mean ...?"
OTHER_NAMES = {
    "batch": "batch_size", "bs": "batch_size", "clip": "grad_clip", "context_length": "block_size",
    "data": "dataset", "epochs": "max_iters", "hidden_size": "n_embd", "iters": "max_iters",
    "layers": "n_layer", "lr": "learning_rate", "max_steps": "max_iters",
    "max_tokens": "max_new_tokens", "model": "init_from", "output_dir": "out_dir",
    "prompt": "start", "resume": "init_from=resume", "seq_len": "block_size", "steps": "max_iters",
    "temp": "temperature", "warmup": "warmup_iters", "wd": "weight_decay",
}
COLUMN = 28  # the help texts begin here


def suggestion(name, settings):
    """"did you mean ...?" for a name that is not a setting; None if no setting is similar."""
    plain = name.replace("-", "_").lower()
    other = OTHER_NAMES.get(plain, "")
    if other.split("=")[0] in settings:
        return f"did you mean {other}?"
    if plain.startswith("no_") and plain[3:] in settings:
        return f"did you mean {plain[3:]}=False?"
    similar = difflib.get_close_matches(plain, settings, n=1)
    return f"did you mean {similar[0]}?" if similar else None


def find_config(word, settings):
    """The path of the config file that a word on the command line names. If it is not in the
    current folder, it is looked for next to the scripts. Raises UserError if it does not exist."""
    path = expanduser(word)
    if not Path(path).exists() and (ROOT / path).is_file():
        path = str(ROOT / path)
        print(f"config   {path}", file=sys.stderr)
    if not Path(path).is_file() or not path.endswith(".py"):
        raise UserError(no_config_file(path, settings))
    return path


def no_config_file(path, settings):
    """The error message for a word on the command line that is not a config file."""
    if Path(path).exists():
        message = f"{path} is not a config file, which ends in .py"
        if "out_dir" in settings:  # sample.py out-novel
            message += "; did you mean " + shlex.quote(f"--out_dir={path}") + "?"
        return message
    name = path.lstrip("-").partition("=")[0]
    if name in settings:  # train.py max_iters=500
        return f"there is no config file {path}; did you mean --{path.lstrip('-')}?"
    configs = {file.stem: f"config/{file.name}" for file in (ROOT / "config").glob("*.py")}
    similar = difflib.get_close_matches(Path(path).stem, configs, n=1)
    hint = f"; did you mean {configs[similar[0]]}?" if similar else ""
    return f"there is no config file {path}{hint}"


def config_error(error, path, names):
    """The error message for an exception in a config file. names: what the file can read."""
    message = f"{path}, line {line_of(error, path)}: {type(error).__name__}: {reason(error)}"
    if isinstance(error, NameError) and error.name in sys.stdlib_module_names:
        message += f"; add `import {error.name}` to the file"
    elif isinstance(error, NameError):
        similar = difflib.get_close_matches(str(error.name), names, n=1)
        message += f"; did you mean {similar[0]}?" if similar else ""
    return message


def similar_dataset(folder, builtin):
    """"; did you mean ...?" for a folder that has no dataset, or "" if no name is similar. builtin:
    names besides those of the datasets in the same data folder."""
    names = [path.parent.name for path in sorted(folder.parent.glob("*/train.bin"))]
    names = {*names, *builtin} - {folder.name}
    similar = difflib.get_close_matches(folder.name.lower(), sorted(names), n=1)
    return f"; did you mean {similar[0]}?" if similar else ""


def no_text_file(path, builtin):
    """The error message if there is no source `path` for prepare.py. builtin: the names of the
    built-in datasets."""
    if path in builtin:
        return f"{path} is a built-in dataset: give it alone, as in `python prepare.py {path}`"
    if path.startswith(("http://", "https://")):
        return (f"{path} is a URL: download the file, as in `curl -LO {shlex.quote(path)}`, and "
                "give the name of the file")
    hint = suggestion(path, builtin) or f"the built-in datasets are {', '.join(builtin)}"
    return f"there is no file {path}; {hint}"


def line_of(error, path):
    """The number of the line of a config file that caused an exception; "?" if unknown."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == path]
    return getattr(error, "lineno", None) or (lines or ["?"])[-1]


def field_comments(schema):
    """{field: (group, text)} from the comments in the source of a dataclass.

    The text consists of the comment lines directly above the field and the comment at the end of
    its line. A comment line `# -- name` begins a group. Fields above the first such line are in a
    group with the name of the file: all of GPTConfig in model.py is in the group "model". A schema
    also has the comments of the dataclass from which it inherits fields.
    """
    group, above, found = Path(inspect.getfile(schema)).stem, [], {}
    for base in schema.__bases__:
        if is_dataclass(base):
            found |= field_comments(base)
    names = {field.name for field in fields(schema)}
    for line in inspect.getsource(schema).splitlines():
        field = re.match(r"    (\w+):", line)
        if header := re.match(r"    # -- (.+)", line):
            group, above = header[1].strip(), []
        elif comment := re.match(r"    # (.+)", line):
            above.append(comment[1])
        elif field and field[1] in names:
            at_end = re.findall(r"  # (.+)", line)
            found[field[1]] = group, " ".join(above + at_end)
            above = []
        else:
            above = []
    return found


def help_text(description, schemas, given, positional, type_name, limit_of):
    """The text of --help: one line of usage, the description, and the settings by group.

    given: {name: value} that is shown instead of the default, for example from a config file.
    type_name, limit_of: the functions of configurator.py.
    """
    words = [name.upper() for name in positional] or ["[CONFIG.py ...]"]
    usage = " ".join(["usage:", Path(sys.argv[0]).name, *words, "[--name=value ...]"])
    groups = {}
    for schema in schemas:
        comments = field_comments(schema)
        for field in fields(schema):
            group, text = comments[field.name]
            value = given.get(field.name, field.default)
            head = f"--{field.name}"
            if field.name in positional:
                head = field.name.upper()
            elif value is not MISSING:
                head += "=" + shlex.quote(str(value))
            limit = limit_of(field)
            kind = type_name(field.type) + (f", {limit.text}" if limit else "")
            text = f"{text} ({kind.replace('|', ' | ')})".strip()  # lines break at spaces only
            groups.setdefault(group, []).append(two_columns(head, text))
    parts = [usage, description.strip()]
    if groups:
        parts.append("Settings and their current values:")
    parts += ["\n".join([group, *lines]) for group, lines in groups.items()]
    return "\n\n".join(parts)


def two_columns(head, text):
    """The help of one setting. A `head` that is too long for its column gets a separate line."""
    indent = " " * COLUMN
    width = max(2 * COLUMN, shutil.get_terminal_size().columns - 1)
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent,
                          break_on_hyphens=False, break_long_words=False)
    first = f"  {head}"
    if len(first) < COLUMN:
        lines[0] = first.ljust(COLUMN) + lines[0].strip()
        return "\n".join(lines)
    return "\n".join([first, *lines])
