"""Starts scripts in processes that have imported PyTorch already, which takes three seconds of a
processor. On Linux only: elsewhere, libraries that a process has loaded do not survive a fork.

The fork server of the standard library imports the libraries once, but nothing of this project.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    "torch._dynamo", "torch.distributed.nn", "matplotlib.backends.backend_agg",
    "safetensors.torch", "tiktoken", "filelock", "tqdm"])
HANGS = 300  # seconds, after which a script is killed
ROOT = Path(__file__).resolve().parent.parent


class Script:
    """A running script, with the part of subprocess.Popen's interface that the tests use. stderr is
    the same pipe as stdout."""

    def __init__(self, command, cwd, env):
        reader, writer = SERVER.Pipe(duplex=False)
        self.process = SERVER.Process(target=become, args=(command, cwd, env, writer))
        self.process.start()
        writer.close()
        self.stdout = open(os.dup(reader.fileno()), encoding="utf-8")

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def communicate(self, timeout=HANGS):
        killer = threading.Timer(timeout, self.kill)
        killer.start()
        printed = self.stdout.read()
        self.wait()
        killer.cancel()
        return printed, None

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()


def become(command, cwd, env, stdout):
    """Run a script in this process, as `python command...` does. command: a script or `-m module`,
    and its arguments. stdout: the end of a pipe."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number in (1, 2):
        os.dup2(stdout.fileno(), number)
    stdout.close()
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    # the script may be in a copy of the program, which must not import anything from this one
    sys.path = [path for path in sys.path if not Path(path).is_relative_to(ROOT)]
    if command[0] == "-m":
        sys.argv = command[1:]
        sys.path.insert(0, str(cwd))
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).resolve().parent))
        runpy.run_path(command[0], run_name="__main__")
