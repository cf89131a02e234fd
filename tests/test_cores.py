"""pytest tests/test_cores.py - the cores that a process may use, and threads that share them"""

import os

import pytest

from internals import cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function: a machine with 8 cores and these files in /sys/fs/cgroup."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "cgroup")

    def make(files):
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return make


@pytest.mark.parametrize("files, expected", [
    ({}, 8), ({"cpu.max": "max 100000\n"}, 8), ({"cpu.max": "damaged"}, 8),
    ({"cpu.max": "150000 100000\n"}, 2),  # docker run --cpus=1.5
    ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
])
def test_a_containers_quota_limits_the_cores(machine, files, expected):
    machine(files)
    assert cores.available_cores() == expected


@pytest.mark.parametrize("files, before, after", [
    ({}, {}, {"GOMP_SPINCOUNT": "4000"}),
    ({}, {"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ({"cpu.max": "200000 100000"}, {}, {"GOMP_SPINCOUNT": "4000", "OMP_NUM_THREADS": "2"}),
    ({"cpu.max": "200000 100000"}, {"OMP_NUM_THREADS": "4"},
     {"GOMP_SPINCOUNT": "4000", "OMP_NUM_THREADS": "4"}),
])
def test_threads_share_the_cores_unless_the_user_has_decided(
        machine, monkeypatch, files, before, after):
    machine(files)
    monkeypatch.setattr(os, "environ", dict(before))
    cores.share_cores()
    assert os.environ == after


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(cores.ctypes, "CDLL", lambda name: object())  # without mallopt
    cores.keep_freed_memory()
