"""Ctrl-C and other signals: a run that gets one saves a checkpoint, and then ends with that signal.

If this module is imported before torch, a Ctrl-C during the other imports prints one line instead
of a traceback.
"""

import os
import signal
import sys
import threading
import time

_stopped_by = None  # the signal that stopped a run in this process


class StopSignals:
    """Catches SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal was closed), so that the program
    can stop when it is ready.

    with StopSignals() as signals:
        signals.catch()        # from here to the end of the block
        if signals: ...        # a signal has arrived

    Another signal ends the process as soon as the current operation of PyTorch returns, if it
    arrives at least a second after the first. Within this second, it is taken for the same Ctrl-C,
    because the terminal and torchrun both send one. SIGHUP stays ignored under nohup. Outside the
    main thread, Python allows no signal handlers, and no signal is caught.
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
            # print is not safe here: the signal may have interrupted a print
            os.write(2, b"stopping after this step; press Ctrl-C again to exit at once\n")
            self.received, self.at = number, time.monotonic()
            _stopped_by = number
        elif time.monotonic() - self.at >= 1:
            end_by(number)


def end_by(number):
    """End this process by a signal, so that the parent process knows that it was stopped."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def end_by_signal():
    """If a signal stopped the run, end this process by it. Then `&&`, a shell loop and a scheduler
    know that the run is not complete. Under torchrun this does nothing, because torchrun would
    report a failure."""
    if _stopped_by is not None and "RANK" not in os.environ:
        sys.stdout.flush()
        end_by(_stopped_by)


def _one_line_for_ctrl_c(kind, error, traceback):
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, traceback)
    print("interrupted", file=sys.stderr)
    end_by(signal.SIGINT)


sys.excepthook = _one_line_for_ctrl_c
