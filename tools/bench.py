"""Measure what train.py's loop costs beside the bare one.

    python tools/bench.py loop config/quickstart.py

The bare loop is forward, backward, clip and step on a batch that stays in memory, with the same
model, precision and optimizer: no order of the data, no seeds, no checks, no log. They take turns
in one process; printed are the medians of a step's milliseconds, and the ratio round by round.
"""

import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from configurator import UserError, autocast_to, configure, find_device, find_dtype, one_line_errors
from model import GPT, GPTConfig
from prepare import load_bins

ROUNDS, STEPS = 7, 100


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare_loop(cfg, model_cfg, vocab_size):
    """Milliseconds a step of the loop with nothing around it."""
    device = find_device(cfg.device)
    torch.manual_seed(cfg.seed)
    raw_model = GPT(train.replace(model_cfg, vocab_size=vocab_size)).to(device)
    autocast = autocast_to(find_dtype(cfg.dtype, device, model_cfg.n_embd), device)
    betas = cfg.beta1, cfg.beta2
    optimizer = raw_model.configure_optimizers(cfg.weight_decay, 1e-3, betas, device.type)
    compiles = cfg.compile is True or (cfg.compile == "auto" and device.type == "cuda")
    model = torch.compile(raw_model) if compiles else raw_model
    x, y = torch.randint(vocab_size, (2, cfg.batch_size, model_cfg.block_size), device=device)
    for step in range(STEPS + STEPS // 4):
        if step == STEPS // 4:  # warm by now
            synchronize(device)
            started = time.perf_counter()
        for _ in range(cfg.gradient_accumulation_steps):
            with autocast:
                loss = model(x, y)[1] / cfg.gradient_accumulation_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(raw_model.parameters(), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    synchronize(device)
    return (time.perf_counter() - started) / STEPS * 1e3


def whole_loop(argv):
    """Milliseconds a step of train.py, by its own log, from when it is warm."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        metrics = train.main([*argv, f"--out_dir={out}", f"--max_iters={STEPS + STEPS // 4}",
                              f"--log_interval={STEPS // 4}", "--eval_interval=1000000",
                              "--eval_iters=1", "--sample_tokens=0", "--lr_decay_iters=None",
                              "--warmup_iters=None"])
    steps = [m["ms"] for m in metrics if "ms" in m]
    return statistics.mean(steps[1:])


def loop(argv):
    _, cfg, model_cfg = configure(__doc__, train.TrainConfig, GPTConfig, argv=argv)
    meta, _ = load_bins(Path(cfg.data_dir or train.DATA) / cfg.dataset)
    rounds = []
    for number in range(ROUNDS):
        rounds.append((whole_loop(argv), bare_loop(cfg, model_cfg, meta["vocab_size"])))
        print(f"round {number + 1}: train.py {rounds[-1][0]:.2f} ms, bare {rounds[-1][1]:.2f} ms a "
              f"step, ratio {rounds[-1][0] / rounds[-1][1]:.3f}", flush=True)
    whole, bare = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    print(f"median: train.py {whole:.2f} ms, bare {bare:.2f} ms a step, ratio {ratio:.3f}")


if __name__ == "__main__":
    with one_line_errors():
        if sys.argv[1:2] != ["loop"]:
            raise UserError("say what to measure: python tools/bench.py loop config/quickstart.py")
        loop(sys.argv[2:])
