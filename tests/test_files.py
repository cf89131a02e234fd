"""pytest tests/test_files.py - files that are written: links, devices and pipes; pictures"""

import os
import threading

import pytest
from helpers import ROOT, finished

from internals.files import replacing
from internals.plots import picture


def write(path, text):
    with replacing(path) as temporary:
        temporary.write_text(text)


@pytest.mark.parametrize("target", ["far/target.txt", "far/new.txt", "empty/new.txt"])
def test_a_link_stays_and_its_target_is_replaced(tmp_path, target):
    """As if ckpt.pt is a link to a larger disk."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "target.txt").write_text("old")
    links = [tmp_path / "link", tmp_path / "link to link"]
    links[0].symlink_to(target)
    links[1].symlink_to("link")
    write(links[1], "new")
    assert (tmp_path / target).read_text() == "new" and not (tmp_path / target).is_symlink()
    assert all(link.is_symlink() for link in links)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"link", "link to link", "target.txt", (tmp_path / target).name}


def test_a_device_and_a_named_pipe_are_written_to_and_a_folder_is_not_replaced(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe, "through the pipe")
    reader.join()
    assert read == ["through the pipe"] and pipe.is_fifo()
    device = tmp_path / "device"
    device.symlink_to(os.devnull)  # the file itself must not be put at risk by a test
    write(device, "nothing")
    assert device.is_symlink() and device.is_char_device() and not list(tmp_path.glob("*.tmp"))
    with pytest.raises(IsADirectoryError, match=str(tmp_path)), replacing(tmp_path):
        raise AssertionError("the work begins before the mistake is noticed")


PICTURE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from internals.plots import picture
with picture(Path(sys.argv[1]), 4, 3) as figure:
    figure.subplots().set(title="title", xlabel="step")
"""


def test_no_setting_of_the_users_machine_changes_a_picture(tmp_path):
    """Jupyter exports MPLBACKEND to the scripts that it starts; matplotlibrc can ask for LaTeX."""
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nfigure.figsize: 1, 1\nbackend: TkAgg\nsavefig.format: pdf\n")
    theirs = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    code, printed = finished("-c", PICTURE, "theirs.png", ROOT, cwd=tmp_path, env=theirs)
    assert code == 0, printed
    with picture(tmp_path / "plain.png", 4, 3) as figure:
        figure.subplots().set(title="title", xlabel="step")
    assert (tmp_path / "theirs.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
