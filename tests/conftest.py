"""The fixtures of the tests. Plain functions and constants are in helpers.py.

This file imports nothing that imports torch: pytest-xdist's own process, which runs no test, reads
it too, and the others start after that.
"""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and wait for it

import pytest

from internals.errors import one_line_errors
from prepare import main as prepare_main

# Under nohup and in the background of a shell script, signals are ignored, and a process inherits
# that. Tests send signals, so a handler that does nothing takes the place of that.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def no_pictures():
    """loss.png is plotted only in tests with the fixture `pictures`, because that takes three times
    as long as training one of the tiny models. Returns the function that plots it."""
    from internals import runlog

    draw_losses = runlog.draw_losses
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runlog, "draw_losses", lambda _, path: path.write_bytes(b"no picture"))
        yield draw_losses


@pytest.fixture(autouse=True)
def no_gpu(request, monkeypatch):
    """device=auto is the CPU, also on a machine with a GPU; test_gpu.py tests that one."""
    if request.module.__name__ == "test_gpu":
        return
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for scripts in other processes


@pytest.fixture
def pictures(no_pictures, monkeypatch):
    monkeypatch.setattr("internals.runlog.draw_losses", no_pictures)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with the dataset `tiny`: 4,000 characters, made by prepare.py."""
    folder = tmp_path_factory.mktemp("data")
    lines = (f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(80))
    text = "".join(lines)
    (folder / "tiny.txt").write_text(text[:4000], encoding="utf-8")
    prepare_main([str(folder / "tiny.txt"), f"--data_dir={folder}"])
    return folder


@pytest.fixture
def tiny(data_dir, tmp_path):
    """A function: the command line of a tiny run, with settings changed by name."""
    from helpers import TINY_RUN, command_line

    def arguments(**changes):
        settings = TINY_RUN | {"data_dir": data_dir, "out_dir": tmp_path / "out"} | changes
        return command_line(settings)

    return arguments


@pytest.fixture
def mistake(capsys):
    """A function: run main(argv), which must end in one line on stderr, returned, and code 2."""
    def run(main, *argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end, one_line_errors():
            main(list(map(str, argv)))
        lines = capsys.readouterr().err.splitlines()
        assert end.value.code == 2
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return run
