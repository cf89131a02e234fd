"""pytest tests/test_bench_gpu.py - the measurement of a GPU, tried on a CPU with tiny models"""

import json
import runpy
import sys
import time

import pytest
import torch
from helpers import GPT2_TINY, ROOT

from internals.optimizers import Optimizers
from model import GPT

sys.path.insert(0, str(ROOT / "tools"))

import bench_gpu
import gpu_parts

# as much of nanoGPT's model.py as is used
NANOGPT = """
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)

    def forward(self, x, y):
        logits = self.wte(x) @ self.wte.weight.T
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas)
"""


@pytest.fixture
def arguments(tmp_path):
    """The command line of a tiny measurement of some parts."""
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "model.py").write_text(NANOGPT, encoding="utf-8")
    return lambda *parts: ["--toy=True", "--device=cpu", "--batch=2", "--minutes=3",
                           f"--nanogpt={tmp_path / 'nano'}", f"--out={tmp_path / 'out' / 'gpu'}",
                           f"--parts={','.join(parts)}"]


def run_in_this_process(command, limit, on_line, capsys):
    """What bench_gpu.run does, without the seconds that a new process needs to import torch."""
    script, *argv = command
    capsys.readouterr()
    if script == "train.py":
        gpu_parts.train.main(argv)
    else:
        part, *argv = argv
        cfg = gpu_parts.configure("", gpu_parts.GPUBenchConfig, argv=argv)[1]
        gpu_parts.PARTS[part](cfg, time.monotonic() + limit)
    for line in capsys.readouterr().out.splitlines():
        on_line(line)
    return 0


def test_all_parts_run_and_each_row_is_in_both_files(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_gpu, "run",
                        lambda *given: run_in_this_process(*given, capsys=capsys))
    bench_gpu.main(arguments(*gpu_parts.SHARES))
    found = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))
    assert found["torch"] == torch.__version__ and "bench.py gpu --toy=True" in found["command"]
    rows = {(row["part"], row["name"]): row for row in found["rows"]}
    assert list(rows) == [
        ("train", "glassGPT, plain"), ("train", "nanoGPT"), ("train", "glassGPT, modern"),
        ("sample", "batch 1, compile=False"), ("sample", "batch 1, compile=True"),
        ("sample", "batch 3, compile=False"), ("sample", "batch 3, compile=True"),
        ("resume", "stopped and resumed"), ("nan", "glassGPT, plain"), ("nan", "glassGPT, modern"),
        ("twins", "plain"), ("twins", "modern")]
    for (part, _), row in rows.items():
        if part in ("train", "sample"):
            assert len(row["seconds"]) == 2 and row["tok_per_s"] > 0
        if part == "nan":
            assert row["result"] == "refused"
        if part == "twins":
            assert [step for step, _, _ in row["curve"]] == [0, 4, 8]
    assert "times as fast as nanoGPT" in rows["train", "glassGPT, plain"]["note"]
    assert "logits differ by at most 0.0000" in rows["sample", "batch 3, compile=True"]["note"]
    assert rows["resume", "stopped and resumed"]["result"] == "bit-identical"
    table = (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8").splitlines()
    assert [line.count(" | ") for line in table[-len(rows):]] == [3] * len(rows)


def test_a_part_that_fails_is_reported_and_the_next_one_is_measured(arguments, tmp_path):
    """In processes, as for a user. nanoGPT's model.py raises an exception when it is imported."""
    (tmp_path / "nano" / "model.py").write_text("1 / 0", encoding="utf-8")
    bench_gpu.main(arguments("train", "nan"))
    rows = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["part"], row["name"], row["result"]) for row in rows[1:]] == [
        ("train", "stopped", "failed"), ("nan", "glassGPT, plain", "refused"),
        ("nan", "glassGPT, modern", "refused")]
    assert rows[0]["name"] == "glassGPT, plain" and rows[0]["tok_per_s"] > 0  # measured before
    assert rows[1]["note"] == "ZeroDivisionError: division by zero"


def test_bench_passes_its_arguments_on(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "gpu", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "tools" / "bench.py"), run_name="__main__")
    assert "--nanogpt" in capsys.readouterr().out


@pytest.mark.parametrize("part", gpu_parts.PARTS)
def test_a_part_alone_needs_a_gpu_too(mistake, part, tmp_path):
    def main(*_):
        cfg = gpu_parts.configure("", gpu_parts.GPUBenchConfig, argv=["--device=cpu"])[1]
        gpu_parts.PARTS[part](cfg, time.monotonic() + 60)

    assert "this measures a GPU" in mistake(main)


def test_a_process_that_ignores_its_time_limit_is_killed(monkeypatch, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                      "print('begun', flush=True)\ntime.sleep(100)\n", encoding="utf-8")
    monkeypatch.setattr(bench_gpu, "GRACE", 1)
    lines = []
    assert bench_gpu.run([script], 1, lines.append) == -9
    assert lines in (["begun"], [])  # [] if Python needs a second to start


def test_the_batch_is_halved_until_the_memory_is_enough():
    tried = []

    def measure(batch):
        tried.append(batch)
        if batch > 2:
            raise torch.OutOfMemoryError("out of memory")
        return "measured"

    assert gpu_parts.with_memory(measure, 12) == "measured"
    assert tried == [12, 6, 3, 1]


def test_an_update_that_is_not_refused_is_reported(arguments, monkeypatch, capsys):
    refuse = Optimizers.step
    monkeypatch.setattr(Optimizers, "step", lambda self, skip: refuse(self, skip & False))
    cfg = gpu_parts.configure("", gpu_parts.GPUBenchConfig, argv=arguments("nan"))[1]
    gpu_parts.nan_part(cfg, time.monotonic())
    assert capsys.readouterr().out.count("NOT REFUSED") == 2


def test_a_single_bit_is_a_difference():
    a, b = GPT(GPT2_TINY).state_dict(), {}
    for name, tensor in a.items():
        b[name] = tensor.clone()
    assert gpu_parts.differences([a, 1], [b, 1]) == []
    weight = b["transformer.h.0.attn.c_proj.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert gpu_parts.differences([a, 1], [b, 2]) == ["/0/transformer.h.0.attn.c_proj.weight", "/1"]


@pytest.mark.parametrize("argv, message", [
    (["--parts=train,speed"], "parts=train,speed must be a comma-separated list of train, sample"),
    (["--nanogpt=nowhere"], "nanogpt=nowhere has no model.py"),
    (["--minutes=0"], "minutes=0.0 must be above 0"),
    (["--device=cpu"], "this measures a GPU, and the device is the CPU: --toy=True tries"),
])
def test_wrong_settings_end_in_one_line(mistake, argv, message):
    assert message in mistake(bench_gpu.main, *argv)
