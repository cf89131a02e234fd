"""Ctrl-C and other signals: a run that gets one saves first, and then ends by that signal.

Importing this module before torch makes a Ctrl-C during the imports one line, not a traceback.
"""

import os
import signal
import sys
import threading
import time

_stopped_by = None  # the signal that stopped a run in this process


class StopSignals:
    """SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal was closed), remembered and not acted on.

    with StopSignals() as signals:
        signals.catch()        # from here to the end of the block
        if signals: ...        # one has arrived

    A second signal, a second or more after the first, ends the process as soon as Python runs
    again: a backward pass is one long call. Within that second it counts as the same Ctrl-C, which
    a terminal and torchrun both send. SIGHUP stays ignored
    under nohup. Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    def __init__(self):
        self.received, self.at, self.previous = None, 0.0, {}

    def __bool__(self):
        return self.received is not None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def catch(self):
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self.previous[number] = signal.signal(number, self.on_signal)

    def on_signal(self, number, _):
        global _stopped_by
        if self.received is None:
            # not print: the signal may have interrupted a print
            os.write(2, b"stopping after this step; press Ctrl-C again to exit at once\n")
            self.received, self.at = number, time.monotonic()
            _stopped_by = number
        elif time.monotonic() - self.at >= 1:
            end_by(number)


def end_by(number):
    """End this process by a signal, so that whoever started it sees that it was stopped."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def end_by_signal():
    """End this process by the signal that stopped its run, if one did: then `&&`, a shell loop and
    a scheduler see that the run is not done. Not under torchrun, which would report a failure."""
    if _stopped_by is not None and "RANK" not in os.environ:
        sys.stdout.flush()
        end_by(_stopped_by)


def _one_line_for_ctrl_c(kind, error, traceback):
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, traceback)
    print("interrupted", file=sys.stderr)
    end_by(signal.SIGINT)


sys.excepthook = _one_line_for_ctrl_c
