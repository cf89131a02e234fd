"""Measure the speed and the memory of prepare.py with GPT-2's BPE.

    python tools/bench.py prepare                      Shakespeare's plays, repeated to 300 MB
    python tools/bench.py prepare --text=FILE          your own file

Candidates run in separate processes, in alternation. The time is from start to exit: it includes
reading the text, and writing and checking the bins.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import configure
from internals.cores import available_cores
from internals.data.corpora import fetch_plays
from internals.errors import UserError, one_line_errors
from internals.limits import Count
from internals.words import counted

ROOT = Path(__file__).resolve().parent.parent
# prints the peak memory in kB; ru_maxrss would be that of the parent process, if that is larger
RUN = """
import sys, prepare
prepare.main(sys.argv[1:])
print("peak", open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@dataclass
class PrepareBenchConfig:
    """The settings of `prepare`."""

    text: str | None = None  # a text file; None: the plays
    megabytes: Count = 300  # size of the repeated plays, if no text is given
    rounds: Count = 3  # measurements per candidate


def prepared(path, folder, workers):
    """Run prepare.py; returns (seconds, peak memory in MB, sha256 of the bins)."""
    command = [sys.executable, "-c", RUN, str(path), "--name=text", "--tokenizer=gpt2",
               f"--data_dir={folder}", f"--workers={workers}"]
    started = time.perf_counter()
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise UserError(f"prepare.py failed: {process.stderr.strip().splitlines()[-1]}")
    meta = json.loads(Path(folder, "text", "meta.json").read_text(encoding="utf-8"))
    peak = int(process.stdout.split("peak ")[1]) / 1000
    return seconds, peak, (meta["train_sha256"], meta["val_sha256"])


def bench_prepare(argv):
    _, cfg = configure(__doc__, PrepareBenchConfig, argv=argv)
    if not Path("/proc/self/status").exists():
        raise UserError("the memory of a process can be measured on Linux only")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(cfg.text or Path(folder, "plays.txt"))
        if cfg.text is None:
            plays = fetch_plays().encode()
            with open(path, "wb") as file:
                for _ in range(-(-cfg.megabytes * 10**6 // len(plays))):
                    file.write(plays)
        size = path.stat().st_size / 1e6
        cores = available_cores()
        print(f"{size:,.0f} MB of text, {counted(cfg.rounds, 'round')}, {counted(cores, 'core')}")
        runs = {workers: [] for workers in sorted({1, cores})}
        for _ in range(cfg.rounds):
            for workers, results in runs.items():
                results.append(prepared(path, folder, workers))
        for workers, results in runs.items():
            ratios = [a[0] / b[0] for a, b in zip(runs[1], results, strict=True)]
            speed = size / statistics.median(result[0] for result in results)
            peak = max(result[1] for result in results)
            print(f"  {counted(workers, 'thread'):24s} {speed:7.1f} MB/s, "
                  f"{statistics.median(ratios):.2f} times the first ({min(ratios):.2f} to "
                  f"{max(ratios):.2f}), peak memory {peak:.0f} MB")
        different = {result[2] for results in runs.values() for result in results}
        print(f"  the bins are {'the same' if len(different) == 1 else 'NOT the same'} in all runs")


if __name__ == "__main__":  # the same as `bench.py prepare`
    with one_line_errors():
        bench_prepare(sys.argv[1:])
