"""Signals."""

import os
import signal
import time


def catch_signals():
    """From now on SIGINT and SIGTERM only add their time to the list that is returned. One that
    comes a second or more after the first ends the process; sooner, it is the same Ctrl-C, which a
    terminal sends to all processes, and torchrun passes on to its own."""
    received = []

    def on_signal(number, _):
        if not received:
            os.write(2, b"stopping after this step; once more to leave at once\n")
        received.append(time.monotonic())
        if received[-1] - received[0] > 1:
            os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return received
