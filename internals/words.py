"""Words: a ~ that the shell leaves in a path is replaced; numbers and times become text."""

from os.path import expanduser

# settings whose value is text, so a ~ in it has no meaning
TEXTS = ("start", "stop", "separator", "new_chars", "mark")


def expand_home(name, value):
    """The value of a setting, with the home folder in place of a ~ at the beginning of a path.
    Shells leave the ~ of `--name=~/folder`."""
    if isinstance(value, tuple):
        return tuple(expanduser(path) for path in value)
    if not isinstance(value, str):
        return value
    if name == "start" and value.startswith("FILE:"):
        return "FILE:" + expanduser(value.removeprefix("FILE:"))
    return value if name in TEXTS else expanduser(value)


def counted(n, noun):
    """'1 source', '2 sources'"""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def duration(seconds):
    """3725 -> '1h 02m', 147 -> '2m 27s'"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {seconds:02d}s"
