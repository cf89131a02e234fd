"""The parts train, sample and nan of bench_gpu.py, which use the GPU in this process.

    python tools/gpu_parts.py train --nanogpt=FOLDER --minutes=3

A part prints rows of the table as JSON. A row replaces an earlier row with the same name.
"""

import copy
import gc
import json
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib import util
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from bench import our_step, seconds, stepper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from configurator import UserError, configure, one_line_errors
from internals import devices
from internals.limits import Count, Positive
from internals.optimizers import make_optimizer
from internals.recipes import expand_names
from model import GPT, GPTConfig
from sample import Sampler, make_cache, stream

ROOT = Path(__file__).resolve().parent.parent
SHARES = {"train": 10, "sample": 5, "resume": 6, "nan": 2, "twins": 8}  # relative shares
PLAIN, MODERN = "glassGPT, plain", "glassGPT, modern"
GPT2 = {PLAIN: "train_gpt2.py", "nanoGPT": "train_gpt2.py", MODERN: "train_gpt2_modern.py"}
ROW = "measured: "  # the beginning of a line in which a part prints a row of the table
FORCED = 8  # tokens that are given, not sampled: torch.compile and CUDA graphs need three


@dataclass
class GPUBenchConfig:
    """The settings of `gpu`."""

    nanogpt: str | None = None  # folder with nanoGPT's model.py, which is measured too
    minutes: Positive = 9.0  # time for all parts
    out: str = "out-bench/gpu"  # path of the results, without .json and .md
    parts: str = ",".join(SHARES)  # the parts to run, comma-separated
    batch: Count = 16  # sequences per micro-batch of GPT-2; halved if the memory is too small
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest one available
    toy: bool = False  # use tiny models, to try the command

    def __post_init__(self):
        if not set(self.parts.split(",")) <= SHARES.keys():
            raise ValueError(f"parts={self.parts} must be a comma-separated list of "
                             f"{', '.join(SHARES)}")
        if self.nanogpt and not Path(self.nanogpt, "model.py").is_file():
            raise ValueError(f"nanogpt={self.nanogpt} has no model.py: give the folder of nanoGPT")

    @property
    def sizes(self):
        return TOY if self.toy else REAL


class Sizes(NamedTuple):
    """How much is measured."""

    sequences: int  # per optimizer step of GPT-2; 512 x 1024 tokens, as in config/train_gpt2.py
    rounds: int  # measurements per candidate, if the time allows
    batches: tuple  # batch sizes for sampling
    new_tokens: int  # sampled per measurement
    steps: int  # number of steps of the resumed run
    gpt2: tuple = ()  # settings that override the config files of GPT-2
    small: tuple = ()  # settings that override those of the resumed run
    twins: tuple = ()  # settings that override the config files of the twins


TINY = ("--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=64", "--batch_size=2")
REAL = Sizes(sequences=512, rounds=7, batches=(1, 64), new_tokens=64, steps=40)
TOY = Sizes(sequences=4, rounds=2, batches=(1, 3), new_tokens=4, steps=4,
            gpt2=(*TINY, "--vocab_size=128"), small=TINY,
            twins=(*TINY, "--max_iters=8", "--eval_interval=4", "--eval_iters=2"))


# --------------------------------------------------------------------------------------------------
# The parts. until: the time.monotonic() at which no further round should begin.


def emit(name, result, note="", **values):
    """Print a row of the table for the process that collects the rows. It replaces an earlier row
    of the same name. values: its numbers, for the JSON file."""
    print(ROW + json.dumps({"name": name, "result": result, "note": note, **values}), flush=True)


def find_gpu(cfg):
    """The torch.device of the settings. Raises UserError if it is not a GPU, unless toy is set."""
    device = devices.find_device(cfg.device)
    if device.type == "cpu" and not cfg.toy:
        raise UserError("this measures a GPU, and the device is the CPU: --toy=True tries the "
                        "command with tiny models")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as train.py and nanoGPT do
    return device


def settings(cfg, name, batch):
    """(TrainConfig, GPTConfig, dtype) for a name in GPT2: its config file, with micro-batches of
    `batch` sequences and, up to rounding, the tokens per step of the file."""
    argv = [str(ROOT / "config" / GPT2[name]), *cfg.sizes.gpt2, f"--batch_size={batch}",
            f"--gradient_accumulation_steps={max(1, cfg.sizes.sequences // batch)}"]
    _, train_cfg, model_cfg = configure("", train.TrainConfig, GPTConfig, argv=argv,
                                        expand=expand_names)
    device = devices.find_device(cfg.device)
    return train_cfg, model_cfg, devices.find_dtype(train_cfg.dtype, device, model_cfg.n_embd)


def with_memory(measure, batch):
    """measure(batch), repeated with half the batch as long as the memory is too small for it."""
    while True:
        try:
            return measure(batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        # after the except block, because the traceback refers to the tensors
        print(f"out of memory with a batch of {batch}: trying half of it", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        torch._dynamo.reset()  # otherwise the new shapes would be compiled as dynamic ones
        batch //= 2


def alternate(candidates, rounds, until):
    """Run the functions {name: function} in alternation, so that the clock of the GPU is the same
    for all. Each returns its time in seconds. Yields {name: [seconds, ...]} after each round."""
    times = {name: [] for name in candidates}
    for number in range(rounds):
        if number > 0 and time.monotonic() > until:
            break
        for name, candidate in candidates.items():
            times[name].append(candidate())
        yield times


def speedup(times, name, base):
    """The speed of a candidate relative to `base`, round by round, as a text; "" if there is
    nothing to compare."""
    if name == base or base not in times:
        return ""
    ratios = [slow / fast for fast, slow in zip(times[name], times[base], strict=True)]
    return (f"{statistics.median(ratios):.3f} times as fast as {base} ({min(ratios):.3f} to "
            f"{max(ratios):.3f}), ")


def train_part(cfg, until):
    with_memory(lambda batch: measure_steps(cfg, batch, until), cfg.batch)


def measure_steps(cfg, batch, until):
    """Measure an optimizer step of each candidate in GPT2, with micro-batches of `batch`."""
    device, models, steps = find_gpu(cfg), {}, {}

    def show(times):
        for name in times:
            train_cfg, _, dtype = settings(cfg, name, batch)
            emit_step(name, models[name], times, train_cfg, dtype, device)

    for name in GPT2:
        train_cfg, model_cfg, dtype = settings(cfg, name, batch)
        if name != "nanoGPT":
            models[name], step = our_step(train_cfg, model_cfg, device, dtype)
        elif cfg.nanogpt:
            models[name] = models[PLAIN]  # the same shape, so the same FLOPs
            step = nanogpt_step(cfg.nanogpt, train_cfg, model_cfg, device, dtype)
        else:
            emit(name, "not measured", "give its folder with --nanogpt=FOLDER")
            continue
        print(f"{name}: the first step, with compilation, took {seconds(step, device):.0f} s")
        steps[name] = partial(seconds, step, device)
        show({name: [steps[name]()]})  # in case the time ends during the next compilation
    for times in alternate(steps, cfg.sizes.rounds, until):
        show(times)


def emit_step(name, model, times, train_cfg, dtype, device):
    tokens = (train_cfg.batch_size * train_cfg.gradient_accumulation_steps
              * model.config.block_size)
    middle, peak = statistics.median(times[name]), devices.peak_flops(device, dtype)
    result, values = f"{tokens / middle:,.0f} tok/s", {"tok_per_s": tokens / middle}
    if peak:
        values["mfu"] = devices.mfu(model, tokens / middle, peak)
        result += f", MFU {values['mfu']:.1%}"
    note = (f"{speedup(times, name, 'nanoGPT')}{middle * 1e3:,.1f} ms per step of {tokens:,} "
            f"tokens, micro-batches of {train_cfg.batch_size}, {dtype}, "
            f"rounds: {len(times[name])}")
    emit(name, result, note, seconds=times[name], batch=train_cfg.batch_size, **values)


def nanogpt_step(folder, cfg, model_cfg, device, dtype):
    """A training step of nanoGPT's model with its optimizer, made as in nanoGPT's train.py."""
    spec = util.spec_from_file_location("nanogpt_model", Path(folder, "model.py"))
    nano = sys.modules[spec.name] = util.module_from_spec(spec)  # @dataclass looks it up there
    spec.loader.exec_module(nano)
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    model = nano.GPT(nano.GPTConfig(**{name: getattr(model_cfg, name) for name in names}))
    model.to(device).block_size = model_cfg.block_size  # where `stepper` looks for it
    optimizer = model.configure_optimizers(cfg.weight_decay, cfg.learning_rate,
                                           (cfg.beta1, cfg.beta2), device.type)
    return stepper(model, lambda m, x, y: m(x, y)[1], cfg, device, dtype, optimizer,
                   model_cfg.vocab_size)


class ForcedSampler:
    """A Sampler that first returns given ids, so that two models see the same tokens."""

    def __init__(self, forced, sampler):
        """forced: a list of ids (B, 1). sampler: chooses the tokens after them."""
        self.forced, self.sampler, self.n_vocab = iter(forced), sampler, sampler.n_vocab

    def __call__(self, logits, ids):
        given = next(self.forced, None)
        return self.sampler(logits, ids) if given is None else given


def read(tokens, count):
    """Take `count` tokens from `stream` as sample.py does: it waits for each, to print it."""
    for ids, _ in islice(tokens, count):
        ids[:, 0].tolist()


def sample_part(cfg, until):
    batches = cfg.sizes.batches
    for number, batch in enumerate(batches):
        now = time.monotonic()
        stop = now + (until - now) / (len(batches) - number)
        with_memory(partial(measure_sampling, cfg, stop), batch)
        torch._dynamo.reset()


@torch.no_grad()
def measure_sampling(cfg, until, batch):
    """Measure what sample.py does with --compile=False, and with --compile=True: a static cache and
    CUDA graphs."""
    device = find_gpu(cfg)
    _, model_cfg, _ = settings(cfg, PLAIN, 1)
    torch.manual_seed(0)
    model = GPT(model_cfg).to(device).eval()
    prompt, *forced = torch.randint(model_cfg.vocab_size, (1 + FORCED, batch, 1), device=device)
    runs, logits, found = {}, {}, torch._dynamo.utils.counters
    found.clear()
    for compiles in (False, True):
        # without a GPU, compile=True tries the static cache alone
        fast = devices.for_sampling(copy.deepcopy(model), "auto",
                                    compiles and device.type == "cuda")
        sampler = ForcedSampler(forced, Sampler(range(batch), temperature=0.8, top_k=200))
        tokens = stream(fast, prompt, sampler, make_cache(fast, batch, static=compiles))
        logits[compiles] = torch.stack([each.float() for _, each in islice(tokens, FORCED)])
        read(tokens, cfg.sizes.new_tokens)  # warmup of the sampler
        runs[f"compile={compiles}"] = partial(seconds, partial(read, tokens, cfg.sizes.new_tokens),
                                              device)
    # if torch.compile fails, for_sampling lets the model run without it: these numbers show it
    check = (f"graphs compiled: {found['stats']['unique_graphs']}, not captured: "
             f"{found['inductor']['cudagraph_skips']}; logits differ by at most "
             f"{(logits[True] - logits[False]).abs().max():.4f}, their standard deviation is "
             f"{logits[False].std():.4f}")
    dtype = str(fast.transformer.wte.weight.dtype).removeprefix("torch.")
    for times in alternate(runs, cfg.sizes.rounds, until):
        for name in times:
            speed = batch * cfg.sizes.new_tokens / statistics.median(times[name])
            note = (f"{speedup(times, name, 'compile=False')}{batch / speed * 1e3:.3f} ms per step,"
                    f" {dtype}, rounds: {len(times[name])}")
            if name == "compile=True":
                note += f"; {check}"
            emit(f"batch {batch}, {name}", f"{speed:,.0f} tok/s", note, tok_per_s=speed,
                 batch=batch, seconds=times[name])


def nan_part(cfg, until):
    for name in (PLAIN, MODERN):
        device, (train_cfg, model_cfg, dtype) = find_gpu(cfg), settings(cfg, name, 1)
        torch.manual_seed(0)
        model = GPT(model_cfg).to(device)
        optimizer = make_optimizer(model, train_cfg, dtype)
        before = state_after_update(model, optimizer, dtype, poisoned=False)
        refused = not differences(before, state_after_update(model, optimizer, dtype, True))
        learned = bool(differences(before, state_after_update(model, optimizer, dtype, False)))
        note = (f"after a NaN in one gradient, weights and optimizer state are "
                f"{'' if refused else 'not '}bit-identical; the next update "
                f"{'changes' if learned else 'does not change'} them")
        emit(name, "refused" if refused and learned else "NOT REFUSED", note)


def state_after_update(model, optimizer, dtype, poisoned):
    """Make one update as in train.py. Returns a copy of the weights and the optimizer's state.
    poisoned: one number of one gradient is NaN."""
    device = model.lm_head.weight.device
    x, y = torch.randint(model.config.vocab_size, (2, 1, model.block_size), device=device)
    with devices.autocast_to(dtype, device):
        loss = model(x, y)[1]
    loss.backward()
    if poisoned:
        model.transformer.h[0].mlp.c_fc.weight.grad[0, 0] = torch.nan
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(skip=~torch.isfinite(loss + norm))
    model.zero_grad(set_to_none=True)
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def differences(a, b, path=""):
    """Where two nested containers of tensors and plain values differ: a list of paths. Both must
    have the same structure."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict):
        return [each for key in a for each in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        return [each for i in range(len(a)) for each in differences(a[i], b[i], f"{path}/{i}")]
    return [] if a == b else [path]


PARTS = {"train": train_part, "sample": sample_part, "nan": nan_part}

if __name__ == "__main__":
    with one_line_errors():
        name, *argv = sys.argv[1:] or [""]
        if name in ("--help", "-h"):
            configure(__doc__, GPUBenchConfig, argv=[name])
        if name not in PARTS:
            raise UserError(f"{name!r} cannot be measured: the first word must be "
                            f"{', '.join(PARTS)}")
        _, cfg = configure(__doc__, GPUBenchConfig, argv=argv)
        PARTS[name](cfg, time.monotonic() + 60 * cfg.minutes)
