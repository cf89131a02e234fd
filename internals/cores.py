"""The CPU cores that this process may use, how the threads of PyTorch wait for each other, and what
becomes of memory that is freed."""

import contextlib
import ctypes
import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")  # Linux: the limits of containers
TRIM_THRESHOLD = -1  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in glibc's malloc.h
MMAP_THRESHOLD = -3


def available_cores():
    """The number of cores that this process may use: those that it may run on or, if that is less,
    the CPU quota of its container, rounded up."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return math.ceil(quota) if quota < cores else cores


def cpu_quota():
    """How many cores the container of this process may use at a time, on average; inf if there is
    no such limit."""
    # version 2 of control groups, and version 1
    for names in ["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]:
        try:
            words = " ".join((CGROUPS / name).read_text() for name in names).split()
            quota, period = map(float, words)  # microseconds
        except (OSError, ValueError):  # there is no such file; "max": no limit
            continue
        if quota > 0 and period > 0:
            return quota / period
    return math.inf


def share_cores():
    """Let the threads of PyTorch share the cores with other programs. Must be called before torch
    is imported, because its OpenMP library (GNU's) reads these variables when it loads. Variables
    that the user has set stay as they are.

    A thread that waits for another one checks again and again, by default for milliseconds. If
    other programs use the cores too, the thread that it waits for may be the one that cannot run
    meanwhile (docs/benchmarks.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")
    cores = available_cores()
    if cores < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    keep_freed_memory()


def keep_freed_memory():
    """Let this process keep the memory that it frees, unless it is a block of 32 MB or more. glibc
    returns it to the system, which fills it with zeros, page by page, when the next training step
    gets it again: 3 to 9% of a step on a CPU (docs/benchmarks.md)."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, 32 * 2**20)  # the largest value that glibc accepts
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
