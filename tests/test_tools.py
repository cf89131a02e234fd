"""pytest tests/test_tools.py - what stands beside the core runs"""

import re
import sys

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import bench


def test_the_loop_is_measured_beside_the_bare_one(tiny, monkeypatch, capsys):
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "STEPS", 8)
    bench.loop([word for word in tiny() if "out_dir" not in word])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    whole, bare, ratio = map(float, re.findall(r"\d+\.\d+", lines[-1]))
    assert whole > 0 and bare > 0 and ratio > 0
