"""Train a GPT: on one CPU, one GPU, or many.

    python train.py config/quickstart.py
    python train.py config/train_shakespeare_char.py --device=cpu --max_iters=2000
    python train.py --init_from=resume --out_dir=out-quickstart --max_iters=4000
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py

One rule makes a run exact: all that is random in step t on rank r is a function of (seed, t, r), and
the i-th training window of the run a function of (seed, i). So no state of any generator is saved, an
interrupted run ends as one that was not, and neither evaluation nor logging can change what is learnt.

Left out: sharded models (FSDP, tensor parallel), data on other machines, sweeps.
"""

import functools
import importlib
import json
import math
import os
import pickle
import shutil
import signal
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from configurator import UserError, build, configure, one_line_errors
from model import GPT, GPTConfig
from prepare import CORPORA, DATA, decode, load_bins, prepare_corpus, replacing, tokenizer_from_meta

MAX_SKIPPED = 10  # updates in a row with a loss or gradient that is not finite, before the run ends
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bfloat16, by NVIDIA's data sheets


@dataclass
class TrainConfig:
    """The settings of a run; the model's are GPTConfig's. Names and defaults are nanoGPT's."""

    out_dir: str = "out"  # where checkpoints, metrics and the picture go
    eval_interval: int = 2000  # steps from one evaluation, with its checkpoint, to the next
    log_interval: int = 1  # steps from one line of the log to the next
    eval_iters: int = 200  # batches an evaluation takes of each split: always the same windows
    eval_only: bool = False  # evaluate once and write nothing
    always_save_checkpoint: bool = True  # False: at an evaluation, save only if it is the best so far
    init_from: Literal["scratch", "resume"] = "scratch"  # start anew, or go on from out_dir/ckpt.pt
    patience: int = 0  # stop after this many evaluations without a better one; 0: never
    sample_tokens: int = 160  # length of the text that is shown at an evaluation; 0: none
    wandb_log: bool = False  # log to a tracker too
    tracker: Literal["wandb", "trackio"] = "wandb"  # which: a package with wandb's interface
    wandb_project: str = "owt"  # the tracker's name of the project
    wandb_run_name: str = "gpt2"  # the tracker's name of the run
    dataset: str = "openwebtext"  # a folder in data_dir
    data_dir: str = str(DATA)  # where the datasets are
    gradient_accumulation_steps: int = 40  # micro-batches a step, over all processes together
    batch_size: int = 12  # windows in a micro-batch
    learning_rate: float = 6e-4  # after warm-up
    max_iters: int = 600000  # steps
    weight_decay: float = 1e-1  # of matrices and embeddings
    beta1: float = 0.9  # AdamW's
    beta2: float = 0.95  # AdamW's
    grad_clip: float = 1.0  # largest norm of the gradient; 0: no limit
    decay_lr: bool = True  # False: learning_rate is constant, without warm-up
    warmup_iters: int | None = None  # steps of linear warm-up; None: 2000, or a tenth of a shorter schedule
    lr_decay_iters: int | None = None  # step where the cosine reaches min_lr; None: max_iters
    min_lr: float | None = None  # learning rate at the end; None: a tenth of learning_rate
    backend: str = "auto"  # of torch.distributed; auto: nccl for GPUs, gloo for CPUs
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products; auto: the fastest
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto: on CUDA
    seed: int = 1337  # of everything random

    def __post_init__(self):
        for name in ("eval_interval", "log_interval", "eval_iters", "gradient_accumulation_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        for name in ("max_iters", "patience", "sample_tokens", "weight_decay", "grad_clip", "seed", "min_lr"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate} must be above 0")
        if self.min_lr is not None and self.min_lr > self.learning_rate:
            raise ValueError(f"min_lr={self.min_lr} must not be above learning_rate={self.learning_rate}")
        if self.lr_decay_iters is not None and (self.warmup_iters or 0) >= self.lr_decay_iters:
            raise ValueError(f"warmup_iters={self.warmup_iters} must be below lr_decay_iters={self.lr_decay_iters}")
        if self.warmup_iters is not None and self.warmup_iters < 0:
            raise ValueError(f"warmup_iters={self.warmup_iters} must be 0 or more")

    @property
    def decay_steps(self):
        return self.max_iters if self.lr_decay_iters is None else self.lr_decay_iters

    @property
    def warmup_steps(self):
        """A warm-up that the run would not leave is cut to a tenth of it."""
        steps = min(2000, self.decay_steps // 10) if self.warmup_iters is None else self.warmup_iters
        return steps if steps < self.max_iters else self.max_iters // 10


# --------------------------------------------------------------------------------------------------
# Helpers: each is a function of its arguments, and can be imported


def learning_rate(step, cfg):
    """The rate of step `step` (0, 1, ...): linear warm-up, then half a cosine from learning_rate down
    to min_lr (Loshchilov & Hutter 2017; GPT-3), then min_lr."""
    if not cfg.decay_lr:
        return cfg.learning_rate
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / (cfg.warmup_steps + 1)
    lowest = cfg.learning_rate / 10 if cfg.min_lr is None else cfg.min_lr
    progress = min(1.0, (step - cfg.warmup_steps) / (cfg.decay_steps - cfg.warmup_steps))
    return lowest + (cfg.learning_rate - lowest) * 0.5 * (1.0 + math.cos(math.pi * progress))


@functools.lru_cache(maxsize=2)
def epoch_windows(epoch, n_tokens, block_size, seed):
    """Where the windows of one epoch start, in the order of training: the corpus is cut into windows of
    block_size from a random offset on, and they are shuffled. What is left over at the two ends, less
    than two windows, is other text in each epoch."""
    n = windows_per_epoch(n_tokens, block_size)
    random = np.random.default_rng((seed, epoch))
    offset = random.integers(min(block_size, n_tokens - n * block_size))
    return offset + block_size * random.permutation(n)


def windows_per_epoch(n_tokens, block_size):
    return max(1, (n_tokens - block_size) // block_size)


def training_windows(first, count, n_tokens, block_size, seed):
    """Where windows first ... first + count - 1 of the run start, counted over all its epochs."""
    n = windows_per_epoch(n_tokens, block_size)
    return [epoch_windows(i // n, n_tokens, block_size, seed)[i % n] for i in range(first, first + count)]


def evaluation_windows(n_tokens, block_size, count):
    """Where up to `count` windows start, none overlapping another, spread evenly, the same each time."""
    n = (n_tokens - 1) // block_size
    return block_size * np.linspace(0, n - 1, min(count, n)).astype(np.int64)


def batch(data, starts, block_size, device):
    """The windows of `data` that begin at `starts`: inputs and targets, each (B, T) int64 on `device`;
    the targets are the inputs one token on."""
    windows = torch.from_numpy(np.stack([data[i:i + block_size + 1] for i in starts]).astype(np.int64))
    if device.type == "cuda":
        windows = windows.pin_memory()  # so that the copy goes on while the GPU works
    windows = windows.to(device, non_blocking=True)
    return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def evaluate(model, data, starts, batch_size, device, autocast):
    """The sum of the mean losses of the windows at `starts`, in nats a token, as a tensor; no dropout."""
    model.eval()
    total = torch.zeros((), device=device)
    for i in range(0, len(starts), batch_size):
        x, y = batch(data, starts[i:i + batch_size], model.block_size, device)
        with autocast:
            total += model(x, y)[1] * len(x)
    model.train()
    return total


def seed_step(seed, step, rank):
    """Make all that torch draws from here on a function of (seed, step, rank)."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))


def find_device(name):
    """`name` as a torch.device; "auto" is a CUDA GPU, else Apple's, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name} cannot be used here ({str(error).splitlines()[0]}); "
                        "device=auto takes what there is") from None
    return device


def find_dtype(name, device, n_embd):
    """The type of matrix products: `name`, or for "auto" the fastest that trains well on the device."""
    bf16_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto" and device.type == "cuda":
        return "bfloat16" if bf16_gpu else "float16"
    if name == "auto":
        instructions = getattr(torch.cpu, "get_capabilities", dict)()  # only in recent torch
        # narrow models lose more by the conversions than they gain: measured, docs/benchmarks.md
        pays = device.type == "cpu" and instructions.get("avx512_bf16") and n_embd >= 256
        return "bfloat16" if pays else "float32"
    if name == "bfloat16" and device.type == "cuda" and not bf16_gpu:
        raise UserError(f"dtype=bfloat16 is not possible on {torch.cuda.get_device_name(device)}: use float16")
    return name


def autocast_to(dtype, device):
    """A context in which matrix products are done in `dtype`; the weights stay float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


def load_checkpoint(path, device="cpu"):
    """Read a checkpoint: tensors and plain containers only, no code is run. Raises UserError where it is
    missing, damaged, or something else."""
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}: train first, or give another out_dir")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds more than tensors and plain values: it could run code and "
                        "is not opened") from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or not a checkpoint ({str(error).splitlines()[0]})") from None
    if not isinstance(checkpoint, dict) or not {"model", "model_args", "meta"} <= checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint of train.py")
    return checkpoint


def human(number):
    """528123.0 -> '528k'"""
    for unit in ("", "k", "M"):
        if number < 1000:
            break
        number /= 1000
    return f"{number:.{3 - len(str(int(number))) if unit and number < 100 else 0}f}{unit}"


def duration(seconds):
    """3725 -> '1h 02m'"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {seconds:02d}s" if minutes else f"{seconds}s"


def draw_losses(metrics, path):
    """The picture of a run: its lines of metrics.jsonl as curves."""
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [m for m in metrics if "loss" in m]
    evals = [m for m in metrics if "val_loss" in m]
    axes.plot([m["step"] for m in steps], [m["loss"] for m in steps], color="tab:blue", alpha=0.3,
              linewidth=0.8, label="a step's batch")
    axes.plot([m["step"] for m in evals], [m["train_loss"] for m in evals], color="tab:blue", label="training")
    axes.plot([m["step"] for m in evals], [m["val_loss"] for m in evals], color="tab:orange", label="validation")
    if evals:
        best = min(evals, key=lambda m: m["val_loss"])
        axes.annotate(f"{best['val_loss']:.4f}", (best["step"], best["val_loss"]), xytext=(0, 12),
                      textcoords="offset points", ha="right", color="tab:orange")
        axes.plot(best["step"], best["val_loss"], "o", color="tab:orange")
    axes.set(xlabel="step", ylabel="loss, nats a token", title=path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)



def read_metrics(path, until):
    """The entries of metrics.jsonl that a run which goes on after step `until` keeps: what was logged
    later, by a run that was killed before its next checkpoint, will be logged again."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):  # a kill can tear the last line
            entries.append(json.loads(line))
    return [m for m in entries if m["step"] < until or m["step"] == until and "loss" in m]


def keep_previous(out_dir):
    """Move what an earlier run left in out_dir to out_dir/previous, the checkpoint last."""
    files = [out_dir / name for name in ("best.pt", "metrics.jsonl", "loss.png", "config.json", "ckpt.pt")]
    if any(file.suffix == ".pt" and file.exists() for file in files):
        shutil.rmtree(out_dir / "previous", ignore_errors=True)
        (out_dir / "previous").mkdir()
        for file in filter(Path.exists, files):
            file.rename(out_dir / "previous" / file.name)
        print(f"the earlier run in {out_dir} is kept in {out_dir / 'previous'}")


def resumed_settings(checkpoint, given):
    """Settings of a run that goes on: the checkpoint's, and over them those given now. Raises UserError
    where they would change the model's shape."""
    model_args = checkpoint["model_args"]
    for name, value in model_args.items():
        if name != "dropout" and given.get(name, value) != value:
            raise UserError(f"{name}={given[name]}, but the checkpoint to resume has {name}={value}: leave it "
                            "out, or start anew with --init_from=scratch")
    dropout = given.get("dropout", model_args["dropout"])
    return build(TrainConfig, checkpoint["config"] | given), build(GPTConfig, model_args | {"dropout": dropout})


def try_compile(model, trial_step):
    """torch.compile(model) if a step with it works, else the model itself and one warning."""
    compiled = torch.compile(model)
    try:
        trial_step(compiled)
        return compiled
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a missing compiler, an old GPU: torch has many
        torch._dynamo.reset()
        print(f"warning: torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]:.100}); "
              "training goes on without it", file=sys.stderr)
        return model


@contextmanager
def stop_requests():
    """Yields a list to which the first SIGINT or SIGTERM is added; a second one ends the process."""
    received = []

    def on_signal(number, _):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --------------------------------------------------------------------------------------------------
# A run, top to bottom


def train(cfg, model_cfg, given, checkpoint, stop):
    """Run the training that `cfg` describes.

    checkpoint: what load_checkpoint returned, to go on from there, or None.
    stop: a list; once it is not empty, the step in hand is ended, saved, and the run ends.
    Returns the metrics, a list of dicts: one per logged step, one per evaluation.
    """
    # ---- processes: torchrun starts one per GPU and tells each its number
    ddp = "RANK" in os.environ
    rank, local_rank, world = (int(os.environ.get(k, d)) for k, d in
                               (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
    master = rank == 0  # it alone prints and writes
    several_gpus = ddp and cfg.device in ("auto", "cuda") and torch.cuda.is_available()
    device = find_device(f"cuda:{local_rank}" if several_gpus else cfg.device)
    if ddp:
        backend = {"cuda": "cpu:gloo,cuda:nccl"}.get(device.type, "gloo") if cfg.backend == "auto" else cfg.backend
        dist.init_process_group(backend)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 for what is not in bfloat16
    accumulation, rest = divmod(cfg.gradient_accumulation_steps, world)
    if rest:
        raise UserError(f"gradient_accumulation_steps={cfg.gradient_accumulation_steps} is shared out over "
                        f"{world} processes, so it must be a multiple of {world}")
    say = print if master else lambda *_, **__: None

    # ---- data
    folder, T = Path(cfg.data_dir) / cfg.dataset, model_cfg.block_size
    if cfg.dataset in CORPORA and not (folder / "train.bin").exists() and master:
        say(f"{folder} is not there yet: preparing it")
        prepare_corpus(cfg.dataset, Path(cfg.data_dir))
    if ddp:
        dist.barrier()  # the others wait until it is there
    meta, data = load_bins(folder)
    for split, ids in data.items():
        if len(ids) <= T:
            raise UserError(f"{folder / split}.bin has {len(ids):,} tokens, too few for one window of "
                            f"block_size={T} and its targets: more text, or a smaller block_size")
    windows_a_step = cfg.gradient_accumulation_steps * cfg.batch_size
    tokens_a_step = windows_a_step * T

    def training_batch(step, micro):
        """Micro-batch `micro` of this rank: the ranks deal the step's windows out between them."""
        first = step * windows_a_step + (micro * world + rank) * cfg.batch_size
        starts = training_windows(first, cfg.batch_size, len(data["train"]), T, cfg.seed)
        return batch(data["train"], starts, T, device)

    evaluated = {split: evaluation_windows(len(ids), T, cfg.eval_iters * cfg.batch_size)
                 for split, ids in data.items()}

    # ---- model and optimizer
    if checkpoint is None:
        padded = -(-meta["vocab_size"] // 64) * 64 if meta["tokenizer"] == "gpt2" else meta["vocab_size"]
        model_cfg.vocab_size = given.get("vocab_size", padded)
    if model_cfg.vocab_size < meta["vocab_size"]:
        raise UserError(f"vocab_size={model_cfg.vocab_size} is too small for {folder}, which has "
                        f"{meta['vocab_size']} symbols: leave it out")
    torch.manual_seed(cfg.seed)
    raw_model = GPT(model_cfg)  # what is saved, sampled and evaluated
    raw_model.to(device)
    dtype = find_dtype(cfg.dtype, device, model_cfg.n_embd)
    autocast = autocast_to(dtype, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")  # else it does nothing
    optimizer = raw_model.configure_optimizers(
        cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2), device.type)
    step, best_loss, best_step = 0, math.inf, 0
    if checkpoint is not None:
        raw_model.load_state_dict(checkpoint["model"])
        # its moments, but the rates and decays of the settings now in force
        optimizer.load_state_dict(checkpoint["optimizer"] | {"param_groups": optimizer.state_dict()["param_groups"]})
        if checkpoint["scaler"]:
            scaler.load_state_dict(checkpoint["scaler"])
        step, best_loss, best_step = (checkpoint[k] for k in ("iter_num", "best_val_loss", "best_step"))
        checkpoint = None  # its memory
    model = raw_model
    if cfg.compile is True or cfg.compile == "auto" and device.type == "cuda":
        def trial_step(compiled):
            with autocast:
                compiled(*training_batch(step, 0))[1].backward()
            raw_model.zero_grad()

        model = try_compile(raw_model, trial_step)
    how = "eager" if model is raw_model else "compiled"
    if ddp:
        model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    # ---- what a person sees
    settings = asdict(cfg) | asdict(model_cfg) | {"device": str(device), "dtype": dtype, "compile": how}
    writes = master and not cfg.eval_only
    out_dir = Path(cfg.out_dir)
    metrics, metrics_file, tracker = [], None, None
    if writes:
        out_dir.mkdir(parents=True, exist_ok=True)
        if cfg.init_from == "scratch":
            keep_previous(out_dir)
        metrics = read_metrics(out_dir / "metrics.jsonl", step) if cfg.init_from == "resume" else []
        with replacing(out_dir / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(m) + "\n" for m in metrics), encoding="utf-8")
        metrics_file = open(out_dir / "metrics.jsonl", "a", encoding="utf-8", buffering=1)
        with replacing(out_dir / "config.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    if writes and cfg.wandb_log:
        try:
            tracker = importlib.import_module(cfg.tracker)
        except ImportError:
            raise UserError(f"wandb_log needs the package {cfg.tracker}: pip install {cfg.tracker}") from None
        tracker.init(project=cfg.wandb_project, name=cfg.wandb_run_name, config=settings)

    def record(**entry):
        entry = {k: v if math.isfinite(v) else None for k, v in entry.items()}  # JSON has no NaN
        metrics.append(entry)
        if metrics_file:
            metrics_file.write(json.dumps(entry) + "\n")
        if tracker:
            tracker.log(entry, step=entry["step"])

    def save(name):
        if not writes:
            return
        optional = ("init_from", "eval_only", "out_dir")  # of one call, not of the run
        with replacing(out_dir / name) as temporary:
            torch.save({
                "model": raw_model.state_dict(), "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(), "model_args": asdict(model_cfg), "meta": meta,
                "config": {k: v for k, v in asdict(cfg).items() if k not in optional},
                "iter_num": step, "best_val_loss": best_loss, "best_step": best_step,
            }, temporary)

    def show_sample():
        generator = torch.Generator(device).manual_seed(cfg.seed)
        start = torch.tensor(tokenizer.encode(tokenizer.default_start).astype(np.int64), device=device)[None]
        raw_model.eval()
        with autocast:
            ids = raw_model.generate(start, cfg.sample_tokens, n_vocab=tokenizer.n_vocab, generator=generator)
        raw_model.train()
        print("\n".join("  | " + line for line in decode(tokenizer, ids[0].tolist()).splitlines()))

    threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    say(f"{device}{threads}, {dtype}, {how}" + (f", {world} processes" if world > 1 else ""))
    say(f"{folder}: {len(data['train']):,} training and {len(data['val']):,} validation tokens, "
        f"{meta['vocab_size']:,} symbols ({meta['tokenizer']})")
    say(f"model: {raw_model.num_params() / 1e6:.2f}M parameters, {model_cfg.n_layer} layers, {model_cfg.n_head} "
        f"heads, {model_cfg.n_embd} wide, context {T}")
    say(f"{cfg.max_iters:,} steps of {windows_a_step} windows, {tokens_a_step:,} tokens: "
        f"{cfg.max_iters * tokens_a_step / len(data['train']):.2f} epochs, {cfg.warmup_steps} steps of warm-up")
    if step:
        say(f"going on from step {step:,}, best validation loss {best_loss:.4f}")
    tokenizer = None
    if master and cfg.sample_tokens:
        try:
            tokenizer = tokenizer_from_meta(meta)
        except UserError as error:  # the tables of a BPE cannot be had; training needs none
            print(f"warning: no samples will be shown: {error}", file=sys.stderr)

    # ---- the loop
    width = len(str(cfg.max_iters))
    peak = next((peak for name, peak in PEAK_FLOPS.items() if device.type == "cuda" and dtype != "float32"
                 and name in torch.cuda.get_device_name(device)), None)
    skipped = torch.zeros((), device=device)  # updates in a row that were not made
    started = last_time = time.perf_counter()
    first_step = last_step = saved_step = step
    raw_model.train()
    x, y = training_batch(step, 0)
    while True:
        stopping = bool(stop)
        if ddp:  # any rank's signal stops all, at the same step
            flag = torch.tensor(float(stopping))
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            stopping = bool(flag)
        if not stopping and (step % cfg.eval_interval == 0 or step == cfg.max_iters):
            losses = {}
            for split, windows in evaluated.items():
                total = evaluate(raw_model, data[split], windows[rank::world], cfg.batch_size, device, autocast)
                if ddp:
                    dist.all_reduce(total)
                losses[split] = total.item() / len(windows)
            is_best = losses["val"] < best_loss
            if is_best:
                best_loss, best_step = losses["val"], step
            record(step=step, train_loss=losses["train"], val_loss=losses["val"])
            say(f"step {step:{width}}/{cfg.max_iters} | train {losses['train']:.4f} | val {losses['val']:.4f} | "
                f"perplexity {math.exp(min(losses['val'], 99)):.2f}" + (" | best" if is_best else ""))
            if tokenizer:
                show_sample()
            if is_best and step:
                save("best.pt")
            if step > first_step and (is_best or cfg.always_save_checkpoint):
                save("ckpt.pt")
                saved_step = step
            if writes:
                draw_losses(metrics, out_dir / "loss.png")
            last_time, last_step = time.perf_counter(), step
        patient = not cfg.patience or step - best_step < cfg.patience * cfg.eval_interval
        if stopping or step >= cfg.max_iters or cfg.eval_only or not patient:
            break

        # ------------------------------------------------------------------------------------------
        # the core: forward, backward, clip, step
        seed_step(cfg.seed, step, rank)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, cfg)
        loss = torch.zeros((), device=device)
        for micro in range(accumulation):
            last = micro == accumulation - 1
            if ddp:
                model.require_backward_grad_sync = last  # add up locally; the ranks meet once a step
            with autocast:
                micro_loss = model(x, y)[1] / accumulation  # gradients add up: to a mean, not a sum
            x, y = training_batch(step + last, 0 if last else micro + 1)  # fetched while the device works
            scaler.scale(micro_loss).backward()
            loss += micro_loss.detach()
        if ddp:
            dist.all_reduce(loss)
            loss /= world
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), cfg.grad_clip or math.inf)
        finite = torch.isfinite(loss + norm)
        if not scaler.is_enabled():
            optimizer.found_inf = (~finite).float()  # fused AdamW then leaves everything as it is
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        # the rest is diagnostics
        # ------------------------------------------------------------------------------------------

        skipped = (skipped + 1) * ~finite
        if step % cfg.log_interval == 0:
            loss, norm, skipped_now = torch.stack((loss, norm, skipped)).tolist()  # waits for the device
            seconds = (time.perf_counter() - last_time) / (step - last_step)
            last_time, last_step = time.perf_counter(), step
            lr, speed = optimizer.param_groups[0]["lr"], tokens_a_step / seconds
            mfu = f" | mfu {raw_model.flops_per_token() * speed / world / peak:.1%}" if peak else ""
            say(f"step {step:{width}}/{cfg.max_iters} | loss {loss:.4f} | lr {lr:.1e} | norm {norm:.2f} | "
                f"{seconds * 1e3:.0f} ms | {human(speed)} tok/s{mfu} | eta {duration((cfg.max_iters - step) * seconds)}"
                + (" | not finite, update skipped" if skipped_now else ""))
            record(step=step, loss=loss, lr=lr, norm=norm, ms=seconds * 1e3, tokens_per_second=speed)
            if skipped_now >= MAX_SKIPPED:
                raise UserError(f"loss or gradient was not finite in {MAX_SKIPPED} steps in a row, up to step {step}: "
                                f"try a lower learning_rate than {cfg.learning_rate}, or dtype=float32")

    # ---- the end
    if metrics_file:
        metrics_file.close()
        if saved_step != step or step == 0:
            save("ckpt.pt")
            draw_losses(metrics, out_dir / "loss.png")
    if tracker:
        tracker.finish()
    if stopping:
        say(f"stopped by a signal at step {step:,} and saved; to go on: "
            f"python train.py --init_from=resume --out_dir={cfg.out_dir}")
    elif writes:
        reason = "" if step >= cfg.max_iters else f" (no better one in {cfg.patience} evaluations)"
        say(f"done in {duration(time.perf_counter() - started)}: best validation loss {best_loss:.4f} "
            f"at step {best_step:,}{reason}")
    if writes:
        say(f"  checkpoint  {out_dir / 'best.pt'}; {out_dir / 'ckpt.pt'} is the latest\n"
            f"  metrics     {out_dir / 'metrics.jsonl'}\n"
            f"  picture     {out_dir / 'loss.png'}\n"
            f"  sample      python sample.py --out_dir={cfg.out_dir}")
    return metrics


def main(argv=None):
    given, cfg, model_cfg = configure(__doc__, TrainConfig, GPTConfig, argv=argv)
    checkpoint = None
    if cfg.init_from == "resume":
        checkpoint = load_checkpoint(Path(cfg.out_dir) / "ckpt.pt")
        cfg, model_cfg = resumed_settings(checkpoint, given)
    try:
        with stop_requests() as stop:
            return train(cfg, model_cfg, given, checkpoint, stop)
    except torch.OutOfMemoryError:
        hint = ("a smaller model or block_size" if cfg.batch_size == 1 else f"--batch_size={cfg.batch_size // 2} "
                f"--gradient_accumulation_steps={cfg.gradient_accumulation_steps * 2} trains on as many tokens a step")
        raise UserError(f"out of memory with batch_size={cfg.batch_size}: {hint}") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    with one_line_errors():
        main()
