"""Measure the speed of training and sampling, and the overhead of the training loop.

    python tools/bench.py train config/train_gpt2.py    a training step, against other programs
    python tools/bench.py sample --size=gpt2            sampling, against other implementations
    python tools/bench.py loop config/quickstart.py     train.py, against a bare training loop
    python tools/bench.py prepare                       prepare.py: see bench_prepare.py

train, sample and loop run their candidates in alternation in one process; prepare uses separate
processes. The output is the median of each candidate, and its time relative to the first candidate
in the same round: on a shared machine, only measurements close in time can be compared. Weights are
random; speed does not depend on them. The others are transformers, if it is installed, and with
`--nanogpt=FOLDER` the model.py of nanoGPT in that folder. On a GPU, tests/test_gpu.py checks that
results are exact.
"""

import contextlib
import copy
import functools
import importlib.util
import io
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_prepare import bench_prepare

import train
from configurator import build, configure
from internals import cpu, dataset, devices, files, graphs
from internals.devices import (
    WithoutLogits,
    autocast_to,
    find_device,
    find_dtype,
    for_sampling,
    num_params,
)
from internals.errors import UserError, one_line_errors
from internals.limits import Count
from internals.optimizers import make_optimizer
from internals.recipes import SIZES, expand_names
from internals.words import counted
from model import GPT, GPTConfig
from sample import Sampler, make_cache, stream

ROUNDS, STEPS = 7, 100
WARMUP = 4  # steps, in which a GPU compiles and records (internals/graphs.py)


@dataclass
class TrainBenchConfig:
    """What `train` has besides the settings of train.py."""

    nanogpt: str | None = None  # folder with nanoGPT's model.py, which is measured too


@dataclass
class SampleBenchConfig:
    """The settings of `sample`; the settings of the model can be given too."""

    size: Literal[*SIZES] = "gpt2"  # a name for n_layer, n_head and n_embd
    batch: Count = 10  # samples per batch; a single sample is always measured
    prompt: Count = 16  # tokens in the prompt
    new_tokens: Count = 256  # tokens to sample
    rounds: Count = 3  # measurements per candidate
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest one available
    # dtypes of the weights, comma-separated: float32, bfloat16, float16, int8
    dtypes: str = "float32,bfloat16"
    nanogpt: str | None = None  # folder with nanoGPT's model.py, which is measured too
    compile: bool = False  # use torch.compile, with a static cache

    def __post_init__(self):
        for name in self.dtypes.split(","):
            if name not in ("float32", "bfloat16", "float16", "int8"):
                raise ValueError(f"dtypes={self.dtypes} must be a comma-separated list of float32, "
                                 "bfloat16, float16, int8")


def nanogpt_model(folder, model_cfg, device):
    """nanoGPT's GPT in the shape of a GPTConfig."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder, "model.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # @dataclass looks it up there
    spec.loader.exec_module(module)
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    config = module.GPTConfig(**{name: getattr(model_cfg, name) for name in names})
    return module.GPT(config).to(device)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function, device, times=1):
    """The seconds that so many calls of a function take."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        function()
    synchronize(device)
    return time.perf_counter() - started


def in_alternation(candidates, rounds, unit, count):
    """Run the functions {name: function} in alternation; each returns its time in seconds. The
    first call of each is a warmup.

    For each candidate, prints the median of count / seconds in `unit`, and the ratio of its time to
    the time of the first candidate in the same round. Returns {name: median of count / seconds}.
    """
    for candidate in candidates.values():
        candidate()
    times_of = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            times_of[name].append(candidate())
    first = next(iter(times_of.values()))
    medians = {}
    for name, times in times_of.items():
        medians[name] = count / statistics.median(times)
        ratios = [a / b for a, b in zip(times, first, strict=True)]
        print(f"  {name:42s} {medians[name]:10,.1f} {unit}   relative time: "
              f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
              flush=True)
    return medians


def matmul_flops(dtype, device, n=2048):
    """The FLOP/s of this device, measured with products of n x n matrices."""
    a = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    best = min(seconds(lambda: a @ a, device) for _ in range(8))
    return 2 * n**3 / best


def transformers_gpt2(c, vocab_size, dtype=torch.float32):
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        print("  (transformers is not installed and not measured: pip install transformers)")
        return None
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
        n_head=c.n_head, resid_pdrop=c.dropout, embd_pdrop=c.dropout, attn_pdrop=c.dropout,
        bos_token_id=0, eos_token_id=0, pad_token_id=0)).to(dtype)


# --------------------------------------------------------------------------------------------------
# Training


def compiles(cfg, device):
    return cfg.compile is True or (cfg.compile == "auto" and device.type == "cuda")


def one_batch(cfg, model_cfg, device):
    """Random inputs and targets, each (batch_size, block_size)."""
    shape = (2, cfg.batch_size, model_cfg.block_size)
    return torch.randint(model_cfg.vocab_size, shape, device=device)


def stepper(raw_model, loss_of, optimizer, cfg, model_cfg, device, dtype):
    """A function that runs one bare training step (forward, backward, clipping, update) of another
    program's model. All steps use the same batch."""
    autocast = autocast_to(dtype, device)
    model = torch.compile(raw_model) if compiles(cfg, device) else raw_model
    x, y = one_batch(cfg, model_cfg, device)

    def step():
        for _ in range(cfg.gradient_accumulation_steps):
            with autocast:
                loss = loss_of(model, x, y) / cfg.gradient_accumulation_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(raw_model.parameters(), cfg.grad_clip)
        optimizer.step()
        raw_model.zero_grad(set_to_none=True)

    return step


def our_step(cfg, model_cfg, device, dtype):
    """A GPT, and a function that runs one step of train.py, always with the same batch."""
    torch.manual_seed(cfg.seed)
    model = cpu.speed_up(GPT(model_cfg).to(device))
    run = SimpleNamespace(
        model=model, optimizer=make_optimizer(model, cfg, dtype), dtype=dtype,
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        recorded=cfg.cuda_graphs and graphs.can_record(device))
    run.optimizer.set_learning_rate(cfg.learning_rate)
    compiled = torch.compile(WithoutLogits(model)) if compiles(cfg, device) else model
    micro_batches = cfg.gradient_accumulation_steps
    add_gradients, update_weights = train.halves_of_a_step(
        run, cfg, compiled, micro_batches, device)
    x, y = one_batch(cfg, model_cfg, device)

    def step():
        loss = torch.zeros((), device=device)
        for _ in range(micro_batches):
            loss += add_gradients(x, y)
        update_weights(loss)

    return model, step


def settings_of(argv, *schemas):
    """(TrainConfig, GPTConfig, device, dtype, instances of other schemas), with the vocabulary of
    the dataset if it exists."""
    given, cfg, model_cfg, *others = configure(__doc__, train.TrainConfig, GPTConfig, *schemas,
                                               argv=argv, expand=expand_names)
    folder = Path(cfg.data_dir or files.DATA) / cfg.dataset
    if "vocab_size" not in given and (folder / "train.bin").exists():
        data = dataset.load(folder)
        model_cfg = replace(model_cfg, vocab_size=data.padded_vocab_size)
    device = find_device(cfg.device)
    return cfg, model_cfg, device, find_dtype(cfg.dtype, device, model_cfg.n_embd), *others


def bench_train(argv):
    cfg, model_cfg, device, dtype, bench_cfg = settings_of(argv, TrainBenchConfig)
    model, step = our_step(cfg, model_cfg, device, dtype)
    seconds(step, device, times=WARMUP)
    tokens = cfg.batch_size * cfg.gradient_accumulation_steps * model_cfg.block_size
    many = max(1, min(20, int(5 / max(1e-3, seconds(step, device)))))
    print(f"{num_params(model) / 1e6:.2f}M parameters, {tokens:,} tokens per step, {dtype} on "
          f"{device}, torch {torch.__version__}, {counted(torch.get_num_threads(), 'thread')}; "
          f"{counted(ROUNDS, 'round')} of {counted(many, 'step')}")
    memory = devices.peak_memory(device) or 0
    candidates = {"glassGPT": step}
    if theirs := transformers_gpt2(model_cfg, model_cfg.vocab_size):
        theirs.to(device).train()
        adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-3, fused=True)
        candidates["transformers' GPT-2"] = stepper(
            theirs, lambda m, x, y: m(x, labels=x).loss, adamw, cfg, model_cfg, device, dtype)
    if bench_cfg.nanogpt:
        nano = nanogpt_model(bench_cfg.nanogpt, model_cfg, device)
        adamw = nano.configure_optimizers(cfg.weight_decay, cfg.learning_rate,
                                          (cfg.beta1, cfg.beta2), device.type)
        candidates["nanoGPT"] = stepper(
            nano, lambda m, x, y: m(x, y)[1], adamw, cfg, model_cfg, device, dtype)
    for name, one_step in candidates.items():
        candidates[name] = functools.partial(seconds, one_step, device, times=many)
    throughput = in_alternation(candidates, ROUNDS, "tok/s", many * tokens)["glassGPT"]
    peak = devices.peak_flops(device, dtype)
    share = "MFU"
    source = "data sheet"
    if peak is None:
        peak = matmul_flops(dtype, device)
        share = "share of the matmul peak"
        source = "measured with 2048 x 2048 matrices"
    print(f"  {tokens / throughput * 1e3:.1f} ms per step; "
          f"{share} {devices.mfu(model, throughput, peak):.1%}, of {peak / 1e12:.2f} TFLOP/s "
          f"({source}); peak memory {memory / 2**30:.2f} GB")


def whole_loop(argv):
    """Milliseconds per step of train.py after warmup, from its metrics."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        metrics = train.main([*argv, f"--out_dir={out}", f"--max_iters={STEPS + STEPS // 4}",
                              f"--log_interval={STEPS // 4}", "--eval_interval=1000000",
                              "--eval_iters=1", "--sample_tokens=0", "--lr_decay_iters=None",
                              "--warmup_iters=None"])
    steps = [m["ms"] for m in metrics if "ms" in m]
    return statistics.mean(steps[1:])


def bare_loop(cfg, model_cfg, device, dtype):
    """Milliseconds per step of the training step alone."""
    _, step = our_step(cfg, model_cfg, device, dtype)
    seconds(step, device, times=STEPS // 4)  # warmup
    return seconds(step, device, times=STEPS) / STEPS * 1e3


def bench_loop(argv):
    settings = settings_of(argv)
    wholes = []
    bares = []
    ratios = []
    for number in range(ROUNDS):
        whole = whole_loop(argv)
        bare = bare_loop(*settings)
        wholes.append(whole)
        bares.append(bare)
        ratios.append(whole / bare)
        print(f"round {number + 1}: train.py {whole:.2f} ms, bare loop {bare:.2f} ms per step, "
              f"ratio {whole / bare:.3f}", flush=True)
    print(f"median: train.py {statistics.median(wholes):.2f} ms, bare loop "
          f"{statistics.median(bares):.2f} ms per step, ratio {statistics.median(ratios):.3f}")


# --------------------------------------------------------------------------------------------------
# Sampling


def ours(model, idx, count, keep=True, static=False):
    """A function that decodes `count` tokens greedily after idx (B, T). keep=False: without a
    cache; static=True: with a cache of fixed size, for torch.compile."""
    def run():
        cache = make_cache(model, len(idx), keep=keep, static=static)
        tokens = stream(model, idx, Sampler([0], temperature=0), cache)
        for _ in itertools.islice(tokens, count):
            pass

    return run


def theirs(model, idx, count):
    """The same for a model of transformers."""
    return functools.partial(
        model.generate, idx, attention_mask=torch.ones_like(idx), max_new_tokens=count,
        min_new_tokens=count, do_sample=False)


@torch.no_grad()
def bench_sample(argv):
    given, cfg, _ = configure(__doc__, SampleBenchConfig, GPTConfig, argv=argv)
    gpt2 = {"size": cfg.size, "vocab_size": 50257, "bias": True}
    model_cfg = build(GPTConfig, expand_names(gpt2 | given))
    device = find_device(cfg.device)
    n = cfg.new_tokens
    torch.manual_seed(0)
    model = GPT(model_cfg).to(device).eval()
    print(f"{num_params(model) / 1e6:.1f}M parameters, {counted(n, 'token')} after a prompt of "
          f"{counted(cfg.prompt, 'token')}, on {device}, torch {torch.__version__}, "
          f"{counted(torch.get_num_threads(), 'thread')}")
    # GPT-2 of transformers has no embedding for more positions; ours halves the context
    comparable = cfg.prompt + n <= model_cfg.block_size
    if not comparable:
        print("  (transformers is not measured: prompt + new_tokens exceeds block_size)")
    models = {}
    others = {}
    for name in reversed(cfg.dtypes.split(",")):
        models[name] = for_sampling(copy.deepcopy(model), name, cfg.compile)
        other = None
        if name != "int8" and comparable:
            other = transformers_gpt2(model_cfg, model_cfg.vocab_size, getattr(torch, name))
        if other is not None:
            others[name] = other.to(device).eval()

    throughput = {}
    for batch in sorted({1, cfg.batch}):
        print(f"{counted(batch, 'sample')} in one batch")
        idx = torch.randint(model_cfg.vocab_size, (batch, cfg.prompt), device=device)
        candidates = {}
        for name, each in models.items():
            candidates[f"glassGPT {name}"] = ours(each, idx, n, static=cfg.compile)
        for name, each in others.items():
            candidates[f"transformers {name}"] = theirs(each, idx, n)
        if cfg.nanogpt and batch == 1:
            nano = nanogpt_model(cfg.nanogpt, model_cfg, device).eval()
            candidates["nanoGPT float32"] = functools.partial(nano.generate, idx, n, top_k=1)
        for name, decode in candidates.items():
            candidates[name] = functools.partial(seconds, decode, device)
        throughput[batch] = in_alternation(candidates, cfg.rounds, "tok/s", n * batch)
    print("a batch compared with one sample, without a cache, and prefill")
    few = min(32, n)
    idx = torch.randint(model_cfg.vocab_size, (1, cfg.prompt), device=device)
    size = min(512, model_cfg.block_size)
    long = torch.randint(model_cfg.vocab_size, (1, size), device=device)
    for name, each in models.items():
        key = f"glassGPT {name}"
        uncached = seconds(ours(each, idx, few, keep=False), device)
        prefill = ours(each, long, 1, static=cfg.compile)
        best = min(seconds(prefill, device) for _ in range(3))
        print(f"  {name}: {throughput[cfg.batch][key] / throughput[1][key]:.1f} times the tok/s of "
              f"one sample; {few / uncached:.1f} tok/s without a cache (first "
              f"{counted(few, 'token')}); prefill {size / best:,.0f} tok/s")


if __name__ == "__main__":
    with one_line_errors():
        kinds = {"train": bench_train, "sample": bench_sample, "loop": bench_loop,
                 "prepare": bench_prepare}
        kind = sys.argv[1] if len(sys.argv) > 1 else ""
        if kind in ("--help", "-h"):
            print(__doc__)
        elif kind in kinds:
            kinds[kind](sys.argv[2:])
        else:
            raise UserError(f"{kind!r} cannot be measured: the first word must be "
                            f"{', '.join(kinds)}, as in `python tools/bench.py loop "
                            "config/quickstart.py`")
