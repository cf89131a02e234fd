"""How a script ends: a user error is one line on stderr, and Ctrl-C ends it by SIGINT."""

import os
import signal
import sys
from contextlib import contextmanager, suppress


class UserError(Exception):
    """A user error. The message says what is wrong, with the value; what is allowed; what to do."""


@contextmanager
def one_line_errors():
    """A context manager around the main function of a script. For a UserError or an OSError (a full
    disk, an unreadable file), the script prints one line to stderr and exits with code 2. Other
    exceptions are bugs and keep their tracebacks."""
    for name, mode, errors in (("stdin", "r", "strict"), ("stdout", "w", "replace"),
                               ("stderr", "w", "replace")):
        if getattr(sys, name) is None:  # closed by the shell, as in `python train.py <&-`
            setattr(sys, name, open(os.devnull, mode))
        if hasattr(getattr(sys, name), "reconfigure"):  # Windows would otherwise use a code page
            getattr(sys, name).reconfigure(encoding="utf-8", errors=errors)
    try:
        yield
        sys.stdout.flush()  # an error, such as a full disk, is then raised here and not at exit
    except BrokenPipeError:  # the reader of the output has exited, as in `| head`
        # Python flushes stdout once more when it exits; a second error would make the exit code 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        with suppress(OSError):
            sys.stdout.flush()  # a process that ends by a signal does not flush it
        print("interrupted", file=sys.stderr)
        # a shell aborts a loop or a chain with && only if the process was ended by SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except UnicodeDecodeError as error:  # from stdin: read_text handles this error for files
        fail(f"the text on stdin is not UTF-8: {reason(error)}")
    except (UserError, OSError) as error:
        fail(str(error))


def fail(message):
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(2)


def reason(error):
    """The first line of an exception's message, at most 200 characters; the name of its type if it
    has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def say(line, file=None):
    """Print a line in the master process only, before there is a World."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=file)
