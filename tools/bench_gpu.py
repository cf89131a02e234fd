"""Measure a GPU: training, sampling, and what must hold on it. One command, no network.

    python tools/bench.py gpu --nanogpt=FOLDER --minutes=9
    python tools/bench.py gpu --toy=True --device=cpu    tiny models, to try the command itself

The parts, the most important first:
    train    a training step of GPT-2 (124M), plain and modern recipe, next to nanoGPT's model
    sample   sampling with that shape, with and without CUDA graphs
    resume   train.py --deterministic=True, stopped and resumed: the same bits as without the stop
    nan      an update with a NaN in a gradient is refused: it changes no bit
    twins    config/train_shakespeare_char.py and its modern version, to their best loss

Each part has a share of the time and runs in its own processes, because some errors make a GPU
unusable for the process. A part that fails or runs out of time does not stop the next one. After
each measurement, the results so far are written to OUT.json and OUT.md.
"""

import copy
import gc
import json
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from importlib import util
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from bench import our_step, seconds, stepper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import prepare
import train
from configurator import UserError, configure, one_line_errors, reason
from internals import checkpoint, devices
from internals.files import replacing
from internals.limits import Count, Positive
from internals.optimizers import make_optimizer
from internals.recipes import expand_names
from model import GPT, GPTConfig
from sample import Sampler, make_cache, stream

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"train": 10, "sample": 5, "resume": 6, "nan": 2, "twins": 8}  # relative shares of the time
STEPS = {"glassGPT, plain": "train_gpt2.py", "nanoGPT": "train_gpt2.py",
         "glassGPT, modern": "train_gpt2_modern.py"}  # candidates of `train`, and their settings
TWINS = {"plain": "train_shakespeare_char.py", "modern": "train_shakespeare_char_modern.py"}
ROW = "measured: "  # the beginning of a line in which a part prints a row of the table
GRACE = 20  # seconds from SIGTERM, after which train.py saves, to SIGKILL
FORCED = 8  # tokens that are given, not sampled: torch.compile and CUDA graphs need three


@dataclass
class GPUBenchConfig:
    """The settings of `gpu`."""

    nanogpt: str | None = None  # folder with nanoGPT's model.py, which is measured too
    minutes: Positive = 9.0  # time for all parts
    out: str = "out-bench/gpu"  # the results are written to this path with .json and with .md
    parts: str = ",".join(PARTS)  # the parts to run, comma-separated
    batch: Count = 16  # sequences per micro-batch of GPT-2; halved if the memory is too small
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest one available
    toy: bool = False  # tiny models

    def __post_init__(self):
        if not set(self.parts.split(",")) <= PARTS.keys():
            raise ValueError(f"parts={self.parts} must be a comma-separated list of "
                             f"{', '.join(PARTS)}")
        if self.nanogpt and not Path(self.nanogpt, "model.py").is_file():
            raise ValueError(f"nanogpt={self.nanogpt} has no model.py: give the folder of nanoGPT")


class Sizes(NamedTuple):
    """How much is measured."""

    sequences: int  # per optimizer step of GPT-2: 512 x 1024 tokens, as in config/train_gpt2.py
    rounds: int  # measurements per candidate, if the time allows
    batches: tuple  # samples per batch
    new_tokens: int  # sampled per measurement
    steps: int  # of the run that is resumed
    gpt2: tuple = ()  # settings that change the config files of GPT-2,
    small: tuple = ()  # ... of the run that is resumed,
    twins: tuple = ()  # ... and of the twins


TINY = ("--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=64", "--batch_size=2")
REAL = Sizes(sequences=512, rounds=7, batches=(1, 64), new_tokens=64, steps=40)
TOY = Sizes(sequences=4, rounds=2, batches=(1, 3), new_tokens=4, steps=4,
            gpt2=(*TINY, "--vocab_size=128"), small=TINY,
            twins=(*TINY, "--max_iters=8", "--eval_interval=4", "--eval_iters=2"))


def sizes_of(cfg):
    return TOY if cfg.toy else REAL


# --------------------------------------------------------------------------------------------------
# train, sample and nan: each runs in its own process, and emits rows. until: the time.monotonic()
# at which no further round should begin.


def emit(name, result, note="", **values):
    """Print a row of the table, for the process that collects them. It replaces an earlier row with
    the same name. values: the numbers in it, for the JSON file."""
    print(ROW + json.dumps({"name": name, "result": result, "note": note, **values}), flush=True)


def find_gpu(cfg):
    device = devices.find_device(cfg.device)
    torch.set_float32_matmul_precision("high")  # as train.py and nanoGPT do
    return device


def settings(cfg, config, batch):
    """(TrainConfig, GPTConfig) of a config file of GPT-2, with `batch` sequences per micro-batch
    and, up to rounding, the tokens per step of the file."""
    sizes = sizes_of(cfg)
    argv = [str(ROOT / "config" / config), *sizes.gpt2, f"--batch_size={batch}",
            f"--gradient_accumulation_steps={max(1, sizes.sequences // batch)}"]
    return configure("", train.TrainConfig, GPTConfig, argv=argv, expand=expand_names)[1:]


def with_memory(measure, batch):
    """measure(batch), again with half the batch as long as the memory is too small for it."""
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
    """How many times as fast as `base` a candidate is: a text with the median of the rounds; "" if
    base was not measured."""
    if name == base or base not in times:
        return ""
    ratios = [slow / fast for fast, slow in zip(times[name], times[base], strict=True)]
    return (f"{statistics.median(ratios):.3f} times as fast as {base} ({min(ratios):.3f} to "
            f"{max(ratios):.3f}), ")


def train_part(cfg, until):
    device = find_gpu(cfg)
    with_memory(lambda batch: measure_steps(cfg, device, batch, until), cfg.batch)


def measure_steps(cfg, device, batch, until):
    """Measure one optimizer step of each of STEPS, with micro-batches of `batch` sequences."""
    models, steps = {}, {}

    def show(times):
        for name in times:
            emit_step(name, models[name], times, train_cfg, device, dtype)

    for name, config in STEPS.items():
        train_cfg, model_cfg = settings(cfg, config, batch)
        dtype = devices.find_dtype(train_cfg.dtype, device, model_cfg.n_embd)
        if name != "nanoGPT":
            models[name], step = our_step(train_cfg, model_cfg, device, dtype)
        elif cfg.nanogpt:
            models[name] = models["glassGPT, plain"]  # the same shape, so the same FLOPs
            step = nanogpt_step(cfg.nanogpt, train_cfg, model_cfg, device, dtype)
        else:
            emit(name, "not measured", "give its folder with --nanogpt=FOLDER")
            continue
        print(f"{name}: {seconds(step, device):.0f} s for the first step, with its compilation")
        steps[name] = partial(seconds, step, device)
        show({name: [steps[name]()]})  # in case that the time ends during the next compilation
    for times in alternate(steps, sizes_of(cfg).rounds, until):
        show(times)


def emit_step(name, model, times, cfg, device, dtype):
    tokens = cfg.batch_size * cfg.gradient_accumulation_steps * model.block_size
    middle = statistics.median(times[name])
    result, values = f"{tokens / middle:,.0f} tok/s", {"tok_per_s": tokens / middle}
    peak = devices.peak_flops(device, dtype)
    if peak:
        values["mfu"] = devices.mfu(model, tokens / middle, peak)
        result += f", MFU {values['mfu']:.1%}"
    note = (f"{speedup(times, name, 'nanoGPT')}{middle * 1e3:,.1f} ms per step of {tokens:,} "
            f"tokens, micro-batches of {cfg.batch_size}, {dtype}, rounds: {len(times[name])}")
    emit(name, result, note, seconds=times[name], batch=cfg.batch_size, **values)


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


def sample_part(cfg, until):
    device, sizes = find_gpu(cfg), sizes_of(cfg)
    for number, batch in enumerate(sizes.batches):
        # the first batch size may use half the time
        now = time.monotonic()
        stop = now + (until - now) / (len(sizes.batches) - number)
        with_memory(lambda batch, stop=stop: measure_sampling(cfg, device, batch, stop), batch)
        torch._dynamo.reset()


class ForcedSampler:
    """A Sampler that first returns given ids, so that two models see the same tokens."""

    def __init__(self, forced, sampler):
        """forced: a list of ids (B, 1). sampler: chooses the tokens after them."""
        self.forced, self.sampler, self.n_vocab = iter(forced), sampler, sampler.n_vocab

    def __call__(self, logits, ids):
        given = next(self.forced, None)
        return self.sampler(logits, ids) if given is None else given


@torch.no_grad()
def measure_sampling(cfg, device, batch, until):
    """Measure what sample.py does with --compile=False, and with --compile=True: a static cache and
    CUDA graphs."""
    sizes = sizes_of(cfg)
    model_cfg = settings(cfg, STEPS["glassGPT, plain"], 1)[1]
    torch.manual_seed(0)
    model = GPT(model_cfg).to(device).eval()
    prompt, *forced = torch.randint(model_cfg.vocab_size, (1 + FORCED, batch, 1), device=device)
    runs, logits = {}, {}
    torch._dynamo.utils.counters.clear()
    for compiles in (False, True):
        # without a GPU, this tries the static cache alone
        fast = devices.for_sampling(copy.deepcopy(model), "auto",
                                    compiles and device.type == "cuda")
        sampler = ForcedSampler(forced, Sampler(range(batch), temperature=0.8, top_k=200))
        tokens = stream(fast, prompt, sampler, make_cache(fast, batch, static=compiles))
        logits[compiles] = torch.stack([each.float() for _, each in islice(tokens, FORCED)])
        runs[f"compile={compiles}"] = partial(seconds, partial(read, tokens, sizes.new_tokens),
                                              device)
    for run_once in runs.values():
        run_once()  # warmup of the sampler
    found = torch._dynamo.utils.counters  # errors in torch.compile are suppressed, so we look
    check = (f"graphs compiled: {found['stats']['unique_graphs']}, not captured: "
             f"{found['inductor']['cudagraph_skips']}; logits differ by at most "
             f"{(logits[True] - logits[False]).abs().max():.4f}, their standard deviation is "
             f"{logits[False].std():.4f}")
    dtype = str(fast.transformer.wte.weight.dtype).removeprefix("torch.")
    for times in alternate(runs, sizes.rounds, until):
        for name in times:
            speed = batch * sizes.new_tokens / statistics.median(times[name])
            note = (f"{speedup(times, name, 'compile=False')}{batch / speed * 1e3:.3f} ms per step,"
                    f" {dtype}, rounds: {len(times[name])}")
            if name == "compile=True":
                note += f"; {check}"
            emit(f"batch {batch}, {name}", f"{speed:,.0f} tok/s", note, tok_per_s=speed,
                 batch=batch, seconds=times[name])


def read(tokens, count):
    """Sample `count` tokens as sample.py does: to print a token, it waits for the GPU."""
    for ids, _ in islice(tokens, count):
        ids[:, 0].tolist()


def nan_part(cfg, until):
    device = find_gpu(cfg)
    for name in ("glassGPT, plain", "glassGPT, modern"):
        train_cfg, model_cfg = settings(cfg, STEPS[name], 1)
        dtype = devices.find_dtype(train_cfg.dtype, device, model_cfg.n_embd)
        torch.manual_seed(0)
        model = GPT(model_cfg).to(device)
        optimizer = make_optimizer(model, train_cfg, dtype)
        x, y = torch.randint(model_cfg.vocab_size, (2, 1, model_cfg.block_size), device=device)

        def update(poisoned, model=model, optimizer=optimizer, x=x, y=y, dtype=dtype):
            """One update as in train.py; returns the weights and the optimizer's state after it."""
            with devices.autocast_to(dtype, device):
                loss = model(x, y)[1]
            loss.backward()
            if poisoned:
                model.transformer.h[0].mlp.c_fc.weight.grad[0, 0] = torch.nan
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(skip=~torch.isfinite(loss + norm))
            model.zero_grad(set_to_none=True)
            return copy.deepcopy((model.state_dict(), optimizer.state_dict()))

        before = update(poisoned=False)
        refused = not differences(before, update(poisoned=True))
        learned = bool(differences(before, update(poisoned=False)))
        emit(f"NaN in one gradient, {name}", "refused" if refused and learned else "NOT REFUSED",
             f"after it, weights and optimizer state are {'' if refused else 'not '}bit-identical; "
             f"the next update {'changes' if learned else 'does not change'} them",
             refused=refused, learned=learned)


def differences(a, b, path=""):
    """The places at which two nested containers of tensors and plain values are not the same to the
    last bit: a list of texts."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [each for key in a for each in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [each for i in range(len(a)) for each in differences(a[i], b[i], f"{path}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    return [] if a == b else [path]


# --------------------------------------------------------------------------------------------------
# resume and twins: they run train.py, and are timed from outside


def run(command, limit, on_line):
    """Run a Python command; on_line is called with each line that it prints. Returns its exit code.
    After `limit` seconds it gets SIGTERM, on which train.py saves and ends, and GRACE seconds later
    it is killed, with the processes that it has started."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
                               start_new_session=True)

    def kill():
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timers = [threading.Timer(limit, process.terminate), threading.Timer(limit + GRACE, kill)]
    try:
        for timer in timers:
            timer.start()
        for line in process.stdout:
            on_line(line.rstrip())
        return process.wait()
    finally:
        for timer in timers:
            timer.cancel()
        if process.poll() is None:
            kill()


def finish(command, until):
    """Run a command of train.py to its end. Raises UserError if it fails or the time is over."""
    lines = []
    code = run(command, until - time.monotonic(), lines.append)
    if time.monotonic() > until:
        raise UserError("the time was over")
    if code != 0:
        raise UserError(f"train.py ended with code {code}: {(lines or [''])[-1]}")


def resume_part(cfg, report, folder, until):
    sizes, out = sizes_of(cfg), {name: folder / name for name in ("whole", "stopped")}
    prepare.main(["addition", "--digits=2", f"--data_dir={folder}"])
    command = ["train.py", "--dataset=addition", f"--data_dir={folder}", "--recipe=modern",
               "--n_layer=6", "--n_head=6", "--n_embd=384", "--block_size=256", "--dropout=0.1",
               "--batch_size=32", *sizes.small, "--gradient_accumulation_steps=2",
               "--deterministic=True", f"--device={cfg.device}", "--sample_tokens=0",
               "--eval_iters=2", f"--lr_decay_iters={sizes.steps}"]
    whole, half = f"--max_iters={sizes.steps}", f"--max_iters={sizes.steps // 2}"
    finish([*command, f"--out_dir={out['whole']}", whole], until)
    finish([*command, f"--out_dir={out['stopped']}", half], until)
    finish(["train.py", "--init_from=resume", f"--out_dir={out['stopped']}", whole], until)
    ends = [checkpoint.read(path / "ckpt.pt") for path in out.values()]
    found = differences(*((end.model, end.optimizer) for end in ends))
    settings = json.loads((out["whole"] / "config.json").read_text(encoding="utf-8"))
    note = (f"weights and optimizer state after {sizes.steps} steps, stopped after "
            f"{sizes.steps // 2}; {settings['dtype']}, {settings['compile']}, dropout, Muon")
    if found:
        note += f"; {len(found)} tensors differ, the first is {found[0]}"
    report.add("resume", "stopped and resumed", "different" if found else "bit-identical", note,
               differences=found)


def twins_part(cfg, report, folder, until):
    if cfg.toy:
        data = ["--dataset=addition", f"--data_dir={folder}"]
        prepare.main(["addition", "--digits=2", f"--data_dir={folder}"])
    else:
        data = [f"--dataset={find_shakespeare()}"]
    for number, (name, config) in enumerate(TWINS.items()):
        now = time.monotonic()
        limit = (until - now) / (len(TWINS) - number)
        command = ["train.py", f"config/{config}", *data, *sizes_of(cfg).twins, "--patience=4",
                   "--sample_tokens=0", f"--device={cfg.device}", f"--out_dir={folder / name}"]
        measure_twin(f"{name} twin", command, limit, report)


def find_shakespeare():
    """The dataset of the twins: Tiny Shakespeare, or all plays if it cannot be prepared. Raises
    UserError if neither can."""
    reasons = []
    for name in ("shakespeare_char", "plays_char"):
        try:
            prepare.open_dataset(name)
            return name
        except UserError as error:
            reasons.append(str(error))
    raise UserError("; ".join(reasons))


def measure_twin(name, command, limit, report):
    """Run train.py, and add the lowest validation loss and the seconds from the start of the
    process to it."""
    started, curve, lines = time.monotonic(), [], []
    evaluation = re.compile(r"step +(\d+)/(\d+) \| train \S+ \| val (\d+\.\d+)")

    def on_line(line):
        lines.append(line)
        if not (match := evaluation.match(line)):
            return
        now = time.monotonic() - started
        curve.append((int(match[1]), now, float(match[3])))
        step, second, loss = min(curve, key=lambda point: point[2])
        report.add("twins", name, f"{loss:.4f} after {second:.1f} s",
                   f"validation loss at step {step} of {match[2]}; {now:.1f} s until step "
                   f"{match[1]}, the last one; {command[2]}", curve=curve)

    code = run(command, limit, on_line)
    if code != 0 and time.monotonic() - started < limit:
        report.add("twins", name, "failed", (lines or [f"exit code {code}"])[-1], curve=curve)


# --------------------------------------------------------------------------------------------------
# The command


class Report:
    """The table. Each new row is printed and written to OUT.json and OUT.md at once."""

    def __init__(self, out, facts):
        """facts: {name: value} of the machine and the command."""
        self.out, self.facts, self.rows = Path(out), facts, {}

    def add(self, part, name, result, note="", **values):
        """A row with the same part and name is replaced."""
        self.rows[part, name] = {"part": part, "name": name, "result": result, "note": note,
                                 **values}
        print(f"{part}: {name}: {result}; {note}", flush=True)
        rows = list(self.rows.values())
        with replacing(self.out.with_name(self.out.name + ".json")) as temporary:
            text = json.dumps(self.facts | {"rows": rows}, indent=1)
            temporary.write_text(text, encoding="utf-8")
        lines = [f"{name}: {value}  " for name, value in self.facts.items()]
        lines += ["", "| part | measurement | result | notes |", "| --- | --- | --- | --- |"]
        for row in rows:
            cells = (row[key].replace("|", "/") for key in ("part", "name", "result", "note"))
            lines.append(f"| {' | '.join(cells)} |")
        with replacing(self.out.with_name(self.out.name + ".md")) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def facts_of(device, argv):
    """What a figure depends on, besides the code: {name: value}."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    commit = ""
    with suppress(OSError):  # git is not installed
        git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"device": f"{device} ({name})", "torch": torch.__version__,
            "cuda": str(torch.version.cuda), "commit": commit or "unknown",
            "date": time.strftime("%Y-%m-%d"),
            "command": shlex.join(["python", "tools/bench.py", "gpu", *argv])}


def in_own_process(part, cfg, report, until):
    """Run a part of this file in a process of its own, and add its rows to the report."""
    limit = until - time.monotonic()
    options = [f"--{field.name}={getattr(cfg, field.name)}" for field in fields(cfg)]
    # it stops earlier than it would be killed
    command = ["tools/bench_gpu.py", part, *options, f"--minutes={0.9 * limit / 60}"]
    last = [""]

    def on_line(line):
        if line.startswith(ROW):
            report.add(part, **json.loads(line.removeprefix(ROW)))
        elif line:
            last[0] = line
            print(f"  {line}", flush=True)

    code = run(command, limit, on_line)
    if time.monotonic() >= until:
        report.add(part, "stopped", "incomplete", f"the time of this part, {limit:.0f} s, was over")
    elif code != 0:
        report.add(part, "stopped", "failed", last[0] or f"exit code {code}")


def main(argv):
    _, cfg = configure(__doc__, GPUBenchConfig, argv=argv)
    report = Report(cfg.out, facts_of(devices.find_device(cfg.device), argv))
    end = time.monotonic() + 60 * cfg.minutes
    left = [part for part in PARTS if part in cfg.parts.split(",")]
    while left:
        # what a part does not use goes to the parts after it
        share = PARTS[left[0]] / sum(PARTS[part] for part in left)
        limit = (end - time.monotonic()) * share
        part, until = left.pop(0), time.monotonic() + limit
        print(f"{part}: at most {limit:.0f} s", flush=True)
        try:
            if part in IN_PROCESS:
                in_own_process(part, cfg, report, until)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    AROUND[part](cfg, report, Path(folder), until)
        except Exception as error:  # of any kind: the next part is measured all the same
            report.add(part, "stopped", "failed", f"{type(error).__name__}: {reason(error)}")
    print(f"the results are in {cfg.out}.json and {cfg.out}.md")


IN_PROCESS = {"train": train_part, "sample": sample_part, "nan": nan_part}
AROUND = {"resume": resume_part, "twins": twins_part}

if __name__ == "__main__":
    with one_line_errors():
        name, *argv = sys.argv[1:] or ["--help"]
        if name not in IN_PROCESS:
            sys.exit("this file is run by `python tools/bench.py gpu`")
        _, cfg = configure(__doc__, GPUBenchConfig, argv=argv)
        IN_PROCESS[name](cfg, time.monotonic() + 60 * cfg.minutes)
