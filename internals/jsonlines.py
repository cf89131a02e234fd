"""Files of JSON lines: one JSON object per line."""

import json
from pathlib import Path

from internals.data.formats import read_text
from internals.errors import UserError
from internals.files import replacing


def read_json_lines(path, names, not_empty=()):
    """The objects in a file, as dicts that have texts of these names. not_empty: those of the names
    whose text must not be "". Raises UserError, which names the line."""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist: it must be a file of JSON lines with "
                        f"{' and '.join(names)}")
    objects = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        has_names = isinstance(content, dict) and all(name in content for name in names)
        if not has_names or not all(isinstance(content[name], str) for name in names):
            raise UserError(f"{path}, line {number}: {line!r:.60} is not a JSON object with the "
                            f"texts {' and '.join(names)}")
        for name in not_empty:
            if not content[name]:
                raise UserError(f"{path}, line {number}: {name} is empty: it must have a "
                                "character or more; write one, or remove the line")
        objects.append(content)
    return objects


def json_line(content):
    return json.dumps(content, ensure_ascii=False) + "\n"


def write_json_lines(path, objects):
    """Write dicts to a file, one per line."""
    lines = [json_line(each) for each in objects]
    with replacing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def append_json_line(path, content):
    """Add a dict to the end of a file, which need not exist."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json_line(content))
