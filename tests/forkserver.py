"""Starts scripts that need not import PyTorch first, which takes three seconds of a processor. On
Linux only: elsewhere, libraries that a process has loaded do not survive a fork.

The server is one process per test process, started when it is first needed. It has imported
libraries, but nothing of this project, and has computed nothing. For each script it forks twice:
the grandchild becomes the script, and ends as any Python process does; the child waits for it and
reports its exit code.
"""

import atexit
import gc
import importlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

LIBRARIES = ("torch", "torch._dynamo", "torch.distributed.nn", "torch.distributed.run",
             "matplotlib.backends.backend_agg", "safetensors.torch", "tiktoken", "filelock", "tqdm")


class Script:
    """A running script, with the part of subprocess.Popen's interface that the tests use."""

    server = None  # the connection to the server

    def __init__(self, args, cwd, env, stdin=None, stderr=None):
        """args: a script or `-m module`, and its arguments. stdin, stderr: files. stdout is a pipe,
        and stderr is the same one if it is None."""
        if Script.server is None:
            Script.server, theirs = socket.socketpair()
            with theirs:
                process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())],
                                           env=os.environ | {"PYTHONUNBUFFERED": "1"},
                                           pass_fds=[theirs.fileno()])
            atexit.register(process.wait, 60)  # `time pytest` counts the scripts too
            atexit.register(Script.server.close)  # comes first: this ends the server
        self.args, self.returncode = args, None
        self.report, theirs = Pipe()
        read, write = os.pipe()
        self.stdout = open(read, encoding="utf-8")
        with theirs, open(os.devnull) as nothing, open(write, "w") as stdout:
            files = theirs, stdin or nothing, stdout, stderr or stdout
            socket.send_fds(Script.server, [b"x"], [file.fileno() for file in files])
        self.report.send((args, cwd, env))
        self.pid = self.report.recv()

    def poll(self, timeout=0):
        if self.returncode is None and self.report.poll(timeout):
            self.returncode = self.report.recv()
        return self.returncode

    def wait(self, timeout=None):
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        printed = []
        reader = threading.Thread(target=lambda: printed.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(timeout)
        return printed[0], None

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def serve(server):
    """Fork for each script. Returns only in a process that is to become one: its request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C ends pytest, and that ends the server
    while descriptors := socket.recv_fds(server, 1, 4)[1]:
        if os.fork() == 0:
            server.close()
            return fork_again(Connection(descriptors[0]), descriptors[1:])
        for descriptor in descriptors:
            os.close(descriptor)
        with suppress(ChildProcessError):  # all children that have ended are waited for
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os._exit(0)


def fork_again(report, streams):
    """Returns the request in the grandchild. The child never returns."""
    request = report.recv()
    pid = os.fork()
    for number, descriptor in enumerate(streams):
        if pid == 0:
            os.dup2(descriptor, number)
        os.close(descriptor)
    if pid == 0:
        report.close()
        return request
    report.send(pid)
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):  # nobody asks any more
        report.send(os.waitstatus_to_exitcode(status))
    os._exit(0)


def become(args, cwd, env):
    """Run a script in this process, as `python args...` does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.stdin = open(0, closefd=False)  # the old ones remember what kind of files they had
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
    if args[0] == "-m":
        sys.argv, sys.path[0] = args[1:], str(cwd)
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = args, str(Path(args[0]).resolve().parent)
        runpy.run_path(args[0], run_name="__main__")


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # the garbage collector of a script leaves alone what was made here
    become(*serve(socket.socket(fileno=int(sys.argv[1]))))
