"""Ctrl-C and other signals: a run that gets one saves a checkpoint, and then ends with that signal.

    with StopSignals() as signals:
        signals.catch()               # from here to the end of the block
        if signals.arrived: ...
    raise Stopped(signals.received)   # the run is saved
"""

import os
import signal
import threading
import time
from contextlib import suppress


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal. In a notebook or a program that calls train.main, it is a
    KeyboardInterrupt like any other; a script ends by the signal (errors.py).

    number: the signal; None if another process of the run got it."""

    def __init__(self, number):
        super().__init__("the run was stopped by a signal")
        self.number = number


class StopSignals:
    """Catches SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal was closed), so that the program
    can stop when it is ready. received: the first signal that has arrived, or None. arrived:
    whether there is one.

    Another signal ends the process as soon as the current operation of PyTorch returns, if it
    arrives at least a second after the first. Within this second, it is taken for the same Ctrl-C,
    because the terminal and torchrun both send one. SIGHUP stays ignored under nohup. Outside the
    main thread, Python allows no signal handlers, and no signal is caught.
    """

    def __init__(self):
        self.received, self.at, self.previous = None, 0.0, {}

    @property
    def arrived(self):
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
            if number is None:
                continue
            # None: a handler of a host program in C, which could not be restored
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self.previous[number] = signal.signal(number, self.on_signal)

    def on_signal(self, number, _):
        if self.received is None:
            self.received, self.at = number, time.monotonic()
            # The terminal or the reader of a pipe may be gone: that is often why the signal comes.
            # print is not safe here, because the signal may have interrupted a print.
            with suppress(OSError):
                os.write(2, b"stopping after this step; press Ctrl-C again to exit at once\n")
        elif time.monotonic() - self.at >= 1:
            end_by(number)


def end_by(number):
    """End this process by a signal, so that the parent process knows that it was stopped."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
