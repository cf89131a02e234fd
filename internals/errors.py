"""How a script ends: a user's mistake is one line on stderr, Ctrl-C ends it by SIGINT."""

import os
import signal
import sys
from contextlib import contextmanager, suppress


class UserError(Exception):
    """A user's mistake. The message says what is wrong, the value, the limit, and what to do."""


@contextmanager
def one_line_errors():
    """Wraps the main function of a script. A UserError or an OSError (a full disk, a file that
    cannot be read) ends in one line on stderr and exit code 2. A bug keeps its traceback."""
    for name, mode, errors in (("stdin", "r", "strict"), ("stdout", "w", "replace"),
                               ("stderr", "w", "replace")):
        if getattr(sys, name) is None:  # closed by the shell, as in `python train.py <&-`
            setattr(sys, name, open(os.devnull, mode))
        if hasattr(getattr(sys, name), "reconfigure"):  # else Windows would use a code page
            getattr(sys, name).reconfigure(encoding="utf-8", errors=errors)
    try:
        yield
        sys.stdout.flush()  # so that a full disk is noticed here, not at exit
    except BrokenPipeError:  # the reader of the output is gone, as in `| head`
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        with suppress(OSError):
            sys.stdout.flush()  # a process that ends by a signal does not do it
        print("interrupted", file=sys.stderr)
        # a shell ends its loop, or a chain with &&, only if the process ended by SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except UnicodeDecodeError as error:  # files are checked where they are read: it is stdin
        fail(f"the text on stdin is not UTF-8: {reason(error)}")
    except (UserError, OSError) as error:
        fail(str(error))


def fail(message):
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(2)


def reason(error):
    """The first line of an exception's message, at most 200 characters; its name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
