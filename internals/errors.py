"""How a script ends: a user error is one line on stderr, and a signal ends the script as usual."""

import os
import signal
import sys
from contextlib import contextmanager, suppress

from internals.signals import Stopped, end_by


class UserError(Exception):
    """A user error. The message says what is wrong, with the value; what is allowed; what to do."""


@contextmanager
def one_line_errors():
    """A context manager around the main function of a script.

    For a UserError or an OSError (a full disk, an unreadable file), the script prints one line to
    stderr and exits with code 2. After Ctrl-C it ends by SIGINT, and if the reader of its output
    has exited, as in `| head`, by SIGPIPE; a shell then stops a loop or a chain with &&. Other
    exceptions are bugs and keep their tracebacks.
    """
    for name, mode, errors in (("stdin", "r", "strict"), ("stdout", "w", "replace"),
                               ("stderr", "w", "replace")):
        if getattr(sys, name) is None:  # closed by the shell, as in `python train.py <&-`
            setattr(sys, name, open(os.devnull, mode))
        if hasattr(getattr(sys, name), "reconfigure"):  # Windows would otherwise use a code page
            getattr(sys, name).reconfigure(encoding="utf-8", errors=errors)
    try:
        yield
        sys.stdout.flush()  # an error, such as a full disk, is then raised here and not at exit
    except (KeyboardInterrupt, BrokenPipeError) as error:
        if hasattr(sys, "ps1"):  # Jupyter's %run, or python -i: it reports the error itself
            raise
        end_by_signal_of(error)
    except UnicodeDecodeError as error:  # from stdin: read_text handles this error for files
        fail(f"the text on stdin is not UTF-8: {reason(error)}")
    except (UserError, OSError) as error:
        fail(str(error))


def end_by_signal_of(error):
    """End the process as its parent expects after a KeyboardInterrupt or a BrokenPipeError."""
    flush(sys.stdout)  # a process that ends by a signal does not
    if isinstance(error, BrokenPipeError):
        number = getattr(signal, "SIGPIPE", None)
        if number is None:  # Windows
            sys.exit(1)
    elif isinstance(error, Stopped):
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun reports the signal itself
            sys.exit(0)  # it would report anything else as a failure
        number = error.number or signal.SIGTERM  # another process of the run got it
    else:
        say_on_stderr("interrupted")
        number = signal.SIGINT
    end_by(number)


def fail(message):
    flush(sys.stdout)
    say_on_stderr("error: " + " ".join(message.splitlines()))
    sys.exit(2)


def is_master():
    """Whether this is the only process of a run, or the one with rank 0."""
    return os.environ.get("RANK") in (None, "", "0")


def say(text):
    """Print a line, in the master process only. If that fails, because the reader of a pipe has
    exited, a terminal was closed or a disk is full, the program continues without output."""
    if not is_master():
        return
    try:
        print(text, flush=True)
    except OSError as error:
        give_up(sys.stdout)
        warn(f"the output cannot be printed ({reason(error)}); the program continues without it")


def warn(message):
    """Print a warning on stderr, in the master process only."""
    if is_master():
        say_on_stderr(f"warning: {message}")


def say_on_stderr(line):
    """Print a line, unless stderr has failed too, as a terminal that was closed."""
    with suppress(OSError):
        print(line, file=sys.stderr)
    flush(sys.stderr)


def flush(stream):
    """Flush stdout or stderr, or give it up if that is not possible."""
    try:
        stream.flush()
    except OSError:
        give_up(stream)


def give_up(stream):
    """Direct stdout or stderr to nowhere, because writing to it has failed. Otherwise Python would
    try again at exit, fail, and change the exit code to 120."""
    with suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())  # fails if it is the stream of a notebook


def reason(error):
    """The first line of an exception's message, at most 200 characters; the name of its type if it
    has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def described(error):
    """`reason`, with the name of the type before it if the message alone would not say enough."""
    if isinstance(error, (UserError, ValueError, OSError)):
        return reason(error)
    return f"{type(error).__name__}: {reason(error)}"


def shown(value):
    """A value as one line of text for an error message, at most 100 characters."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an int of 5,000 digits; lists nested 5,000 deep
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= 100 else text[:97] + "..."
