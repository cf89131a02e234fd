"""Train a GPT: on one CPU, one GPU, or many.

    python train.py config/quickstart.py
    python train.py config/quickstart.py --dataset=novel --out_dir=out-novel
    python train.py --init_from=resume --out_dir=out-quickstart --max_iters=4000
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py

One rule makes a run exact: what is random in step t on rank r is a function of (seed, t, r), and
the i-th training window of the run a function of (seed, i). So there is no generator whose state
must be saved, an interrupted run ends as one that was not, and evaluation cannot touch training.

Left out: models that do not fit on one device, data on other machines, searches over settings.
"""

import functools
import itertools
import json
import math
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from configurator import UserError, configure, one_line_errors
from internals.checkpoint import find_checkpoint, load_start, resumed_settings, started_settings
from internals.dataset import load_bins
from internals.devices import PEAK_FLOPS, autocast_to, compiled, find_dtype
from internals.files import DATA, replacing
from internals.optimizers import make_optimizers
from internals.parallel import start_process
from internals.runlog import (
    draw_losses,
    duration,
    human,
    keep_previous,
    read_metrics,
    start_tracker,
)
from internals.signals import catch_signals
from model import GPT, GPTConfig
from prepare import CORPORA, decode, prepare_corpus, tokenizer_from_meta

SIZES = {  # name: n_layer, n_head, n_embd. minGPT's small ones, GPT-1's, and GPT-2's
    "gpt-nano": (3, 3, 48), "gpt-micro": (4, 4, 128), "gpt-mini": (6, 6, 192),
    "openai-gpt": (12, 12, 768), "gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600),
}
MAX_SKIPPED = 10  # updates in a row that cannot be made, before the run ends


@dataclass
class TrainConfig:
    """The settings of a run; the model's are GPTConfig's. Names and defaults are nanoGPT's."""

    out_dir: str = "out"  # where checkpoints, metrics and the picture go
    eval_interval: int = 2000  # steps from one evaluation, with its checkpoint, to the next
    log_interval: int = 1  # steps from one line of the log to the next
    eval_iters: int = 200  # batches an evaluation takes of each split: always the same windows
    eval_only: bool = False  # evaluate once and write nothing
    always_save_checkpoint: bool = True  # False: at an evaluation, save only if it is the best
    init_from: str = "scratch"  # or resume, auto (resume if possible), a run's folder, gpt2, ...
    patience: int = 0  # stop after this many evaluations without a better one; 0: never
    sample_tokens: int = 200  # length of the text shown at an evaluation; 0: none
    wandb_log: bool = False  # log to a tracker too
    tracker: Literal["wandb", "trackio"] = "wandb"  # which: a package with wandb's interface
    wandb_project: str = "owt"  # the tracker's name of the project
    wandb_run_name: str = "gpt2"  # the tracker's name of the run
    dataset: str = "openwebtext"  # a folder in data_dir
    data_dir: str | None = None  # where the datasets are; None: data/ beside train.py
    gradient_accumulation_steps: int = 40  # micro-batches a step, of all processes together
    batch_size: int = 12  # windows in a micro-batch
    align: int = 1  # windows begin at multiples of it: the length of lines that all have the same
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices in the blocks
    learning_rate: float = 6e-4  # AdamW's, after warm-up
    muon_lr: float = 0.02  # Muon's
    embedding_lr: float | None = None  # of the token embedding; None: learning_rate
    max_iters: int = 600000  # steps
    size: Literal[*SIZES] | None = None  # n_layer, n_head and n_embd by a name
    weight_decay: float = 1e-1  # of matrices and embeddings
    beta1: float = 0.9  # AdamW's
    beta2: float = 0.95  # AdamW's
    momentum: float = 0.95  # Muon's
    grad_clip: float = 1.0  # largest norm of the gradient; 0: no limit
    decay_lr: bool = True  # False: the rates are constant, without warm-up
    cooldown: float = 0.0  # the last part of the steps in which rates fall in a line; 0: cosine
    warmup_iters: int | None = None  # linear warm-up; None: 2000, or a tenth of a shorter schedule
    lr_decay_iters: int | None = None  # where the cosine reaches min_lr; None: max_iters
    min_lr: float | None = None  # None: a tenth of learning_rate
    backend: str = "auto"  # of torch.distributed; auto: nccl for GPUs, gloo for CPUs
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto: on CUDA
    deterministic: bool = False  # the same bits each time on a GPU too, at some cost
    seed: int = 1337  # of all that is random

    def __post_init__(self):
        def check(valid, names, limits):
            for name in names.split():
                if (value := getattr(self, name)) is not None and not valid(value):
                    raise ValueError(f"{name}={value} must be {limits}")

        check(lambda x: x >= 1, "eval_interval log_interval eval_iters batch_size align "
              "gradient_accumulation_steps lr_decay_iters", "1 or more")
        check(lambda x: 0 <= x < math.inf, "max_iters patience sample_tokens weight_decay "
              "grad_clip warmup_iters min_lr", "0 or more")
        check(lambda x: 0 <= x < 2**63, "seed", "at least 0 and below 2**63")
        check(lambda x: x, "out_dir", "the name of a folder")
        if self.batch_size * self.gradient_accumulation_steps > 2**20:
            raise ValueError(f"batch_size={self.batch_size} x gradient_accumulation_steps="
                             f"{self.gradient_accumulation_steps} must be at most 1,048,576")
        check(lambda x: 0 < x < math.inf, "learning_rate muon_lr embedding_lr", "above 0")
        check(lambda x: 0 <= x < 1, "beta1 beta2 momentum", "at least 0 and below 1")
        check(lambda x: 0 <= x <= 1, "cooldown", "at least 0 and at most 1")
        if self.decay_lr:
            check(lambda x: x <= self.learning_rate, "min_lr",
                  f"at most learning_rate={self.learning_rate}")
        if self.lr_decay_iters is not None:
            check(lambda x: x < self.lr_decay_iters, "warmup_iters",
                  f"below lr_decay_iters={self.lr_decay_iters}")

    @property
    def decay_steps(self):
        return self.max_iters if self.lr_decay_iters is None else self.lr_decay_iters

    @property
    def warmup_steps(self):
        """A warm-up that the run would not leave is cut to a tenth of it."""
        steps = self.warmup_iters
        if steps is None:
            steps = min(2000, self.decay_steps // 10)
        return steps if steps < self.max_iters else self.max_iters // 10


# --------------------------------------------------------------------------------------------------
# The schedule and the data: functions of their arguments alone


def learning_rate(step, cfg):
    """The rate of step 0, 1, ...: linear warm-up, then half a cosine from learning_rate down to
    min_lr (Loshchilov & Hutter 2017), or, with a cooldown, learning_rate and a straight line down
    in that last part of the steps (Hägele et al. 2024); then min_lr."""
    if not cfg.decay_lr:
        return cfg.learning_rate
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / (cfg.warmup_steps + 1)
    lowest = cfg.learning_rate / 10 if cfg.min_lr is None else cfg.min_lr
    if cfg.cooldown:
        left = (1 - step / cfg.decay_steps) / cfg.cooldown
        return lowest + (cfg.learning_rate - lowest) * min(1.0, max(0.0, left))
    progress = min(1.0, (step - cfg.warmup_steps) / (cfg.decay_steps - cfg.warmup_steps))
    return lowest + (cfg.learning_rate - lowest) * (1 + math.cos(math.pi * progress)) / 2


def windows_per_epoch(n_tokens, block_size):
    return max(1, (n_tokens - block_size) // block_size)


@functools.lru_cache(maxsize=2)
def epoch_windows(epoch, n_tokens, block_size, seed, align=1):
    """Where the windows of one epoch start, in the order of training: from a random offset on, the
    corpus is cut into windows of block_size, and they are shuffled. What is left over at its two
    ends, less than two windows, is other text in each epoch. The offset is a multiple of align."""
    n = windows_per_epoch(n_tokens, block_size)
    random = np.random.default_rng((seed, epoch))
    offset = random.integers(min(block_size, n_tokens - n * block_size))
    return offset // align * align + block_size * random.permutation(n)


def training_windows(first, count, n_tokens, block_size, seed, align=1):
    """Where windows first ... first + count - 1 of the run start, counted over all its epochs."""
    n = windows_per_epoch(n_tokens, block_size)
    return [epoch_windows(i // n, n_tokens, block_size, seed, align)[i % n]
            for i in range(first, first + count)]


def evaluation_windows(n_tokens, block_size, count):
    """Where up to `count` windows start: always the same, spread evenly, none overlapping."""
    n = (n_tokens - 1) // block_size
    return block_size * np.linspace(0, n - 1, min(count, n)).astype(np.int64)


def batch(data, starts, block_size, device):
    """The windows of `data` that begin at `starts`, as inputs and targets: each (B, T) int64 on
    `device`, the targets being the inputs one token on."""
    windows = data[np.add.outer(starts, np.arange(block_size + 1))]
    windows = torch.from_numpy(windows.astype(np.int64))
    if device.type == "cuda":
        windows = windows.pin_memory()  # so that the copy need not wait, nor the GPU for it
    windows = windows.to(device, non_blocking=True)
    return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def evaluate(model, data, starts, batch_size, device, autocast):
    """The losses of the windows at `starts`, in nats a token, added up: a tensor. No dropout."""
    model.eval()
    total = torch.zeros((), device=device)
    for i in range(0, len(starts), batch_size):
        x, y = batch(data, starts[i:i + batch_size], model.block_size, device)
        with autocast:
            total += model(x, y)[1] * len(x)
    model.train()
    return total


def seed_step(seed, step, rank):
    """Make all that torch draws from here on, dropout, a function of (seed, step, rank)."""
    mixed = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed[0]))


# --------------------------------------------------------------------------------------------------
# A run, top to bottom


def train(cfg, model_cfg, given, checkpoint):
    """Run the training that the settings describe.

    given: the names and values that were set by hand.
    checkpoint: what load_checkpoint returned, to go on from there; or None.
    Returns the metrics: a dict for each logged step and for each evaluation.
    """
    # ---- processes
    rank, world, device = start_process(cfg)
    ddp, master = dist.is_initialized(), rank == 0  # the master prints and writes
    resuming = cfg.init_from == "resume"
    accumulation, rest = divmod(cfg.gradient_accumulation_steps, world)
    if rest:
        raise UserError(f"gradient_accumulation_steps={cfg.gradient_accumulation_steps} is shared "
                        f"out over {world} processes, so it must be a multiple of {world}")

    # ---- data
    data_dir, T = Path(cfg.data_dir or DATA), model_cfg.block_size
    if T % cfg.align:
        raise UserError(f"block_size={T} must be a multiple of align={cfg.align}, else only the "
                        "first window of an epoch is aligned")
    folder = data_dir / cfg.dataset
    if master and cfg.dataset in CORPORA and not (folder / "train.bin").exists():
        print(f"{folder} is not there yet: preparing it")
        prepare_corpus(cfg.dataset, data_dir)
    if ddp:
        dist.barrier()  # the others wait for it
    meta, data = load_bins(folder)
    for split, ids in data.items():
        if len(ids) <= T:
            raise UserError(f"{folder / split}.bin has {len(ids):,} tokens; a window of block_size="
                            f"{T:,} and its target needs more: more text, or a smaller block_size")
    step_windows = cfg.gradient_accumulation_steps * cfg.batch_size
    step_tokens = step_windows * T
    eval_windows = {split: evaluation_windows(len(ids), T, cfg.eval_iters * cfg.batch_size)
                    for split, ids in data.items()}

    def training_batch(step, micro):
        """Micro-batch `micro` of this rank: the ranks deal the step's windows out among them."""
        first = step * step_windows + (micro * world + rank) * cfg.batch_size
        starts = training_windows(first, cfg.batch_size, len(data["train"]), T, cfg.seed, cfg.align)
        return batch(data["train"], starts, T, device)

    # ---- model and optimizer
    if checkpoint is None:
        n = meta["vocab_size"]  # GPT-2's is padded to a multiple of 64, which is faster
        padded = -(-n // 64) * 64 if meta["tokenizer"] == "gpt2" else n
        model_cfg = replace(model_cfg, vocab_size=given.get("vocab_size", padded))
    elif checkpoint["meta"].get("chars") != meta.get("chars"):
        raise UserError(f"{folder} has another tokenizer than the model to start from: prepare the "
                        "text with --tokenizer= and the name of the dataset it was trained on")
    elif resuming and master and checkpoint["meta"].get("train_sha256") != meta.get("train_sha256"):
        print(f"warning: {folder} is not what this run was trained on so far", file=sys.stderr)
    if model_cfg.vocab_size < meta["vocab_size"]:
        raise UserError(f"vocab_size={model_cfg.vocab_size} is less than the {meta['vocab_size']} "
                        f"symbols of {folder}: leave it out")
    torch.manual_seed(cfg.seed)
    raw_model = (GPT(model_cfg) if checkpoint is None
                 else GPT.from_weights(model_cfg, checkpoint["model"]))
    raw_model.to(device)  # this one is saved, evaluated and sampled
    dtype = find_dtype(cfg.dtype, device, model_cfg.n_embd)
    autocast = autocast_to(dtype, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")  # else it does nothing
    optimizers = make_optimizers(raw_model, cfg, dtype)
    step, best_loss, best_step = 0, math.inf, 0
    if resuming:
        states = checkpoint["optimizer"]
        states = states if isinstance(states, list) else [states]  # nanoGPT has the one
        for optimizer, state in zip(optimizers, states, strict=True):
            # the moments are the checkpoint's, rates and decays those of the settings in force
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict(state | {"param_groups": groups})
        if checkpoint["scaler"]:
            scaler.load_state_dict(checkpoint["scaler"])
        step, best_step = checkpoint["iter_num"], checkpoint["best_step"]
        best_loss = checkpoint["best_val_loss"]
    checkpoint = None  # frees its memory
    if ddp:
        steps = torch.tensor([step, -step])
        dist.all_reduce(steps, op=dist.ReduceOp.MAX)
        if steps.sum():
            raise UserError("the processes found different checkpoints: out_dir must be on a disk "
                            "that all of them see")
    model = raw_model
    if cfg.compile is True or (cfg.compile == "auto" and device.type == "cuda"):
        def try_out(model):
            with autocast:
                model(*training_batch(step, 0))[1].backward()

        model = compiled(raw_model, try_out)
        raw_model.zero_grad()
    how = "eager" if model is raw_model else "compiled"
    if ddp:
        model = DistributedDataParallel(model, [device] if device.type == "cuda" else None)

    # ---- what a person sees
    writes = master and not cfg.eval_only
    say = functools.partial(print, flush=True) if master else lambda _: None
    out_dir = Path(cfg.out_dir)
    found = {"device": str(device), "dtype": dtype, "compile": how, "world_size": world}
    settings = asdict(cfg) | asdict(model_cfg) | found
    tokenizer, metrics = None, []
    tracker = start_tracker(cfg, settings) if writes and cfg.wandb_log else None
    if writes:
        out_dir.mkdir(parents=True, exist_ok=True)
        if not resuming:
            keep_previous(out_dir)
        metrics = read_metrics(out_dir / "metrics.jsonl", until=step)
        with replacing(out_dir / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(m) + "\n" for m in metrics), encoding="utf-8")
        with replacing(out_dir / "config.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    if master and cfg.sample_tokens:
        try:
            tokenizer = tokenizer_from_meta(meta)
        except UserError as error:  # a BPE whose tables cannot be had; training needs none
            print(f"warning: no samples will be shown: {error}", file=sys.stderr)

    def record(**entry):
        entry = {k: v if math.isfinite(v) else None for k, v in entry.items()}  # JSON has no NaN
        metrics.append(entry)
        if writes:
            with open(out_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        if tracker:
            tracker.log(entry, step=entry["step"])

    def save(name):
        of_this_call = ("init_from", "eval_only", "out_dir")
        kept = {k: v for k, v in asdict(cfg).items() if k not in of_this_call}
        with replacing(out_dir / name) as temporary:
            torch.save({
                "model": raw_model.state_dict(),
                "optimizer": [optimizer.state_dict() for optimizer in optimizers],
                "scaler": scaler.state_dict(), "model_args": asdict(model_cfg), "config": kept,
                "meta": meta, "iter_num": step, "best_val_loss": best_loss, "best_step": best_step,
            }, temporary)

    def show_sample():
        start = tokenizer.encode(tokenizer.default_start).astype(np.int64)
        raw_model.eval()
        with autocast:
            ids = raw_model.generate(torch.tensor(start, device=device)[None], cfg.sample_tokens,
                                     0.8, 200, n_vocab=tokenizer.n_vocab, seeds=[cfg.seed])
        raw_model.train()
        for line in decode(tokenizer, ids[0].tolist()).strip().splitlines():
            print("    " + line)

    say(f"{world} x {device}" + f", {torch.get_num_threads()} threads" * (device.type == "cpu")
        + f", {dtype}, {how}")
    say(f"{folder}: {len(data['train']):,} tokens to train, {len(data['val']):,} to validate, "
        f"{meta['vocab_size']:,} symbols ({meta['tokenizer']})")
    say(f"{raw_model.num_params() / 1e6:.2f}M parameters: {model_cfg.n_layer} layers, "
        f"{model_cfg.n_head} heads, {model_cfg.n_embd} wide, context {T}")
    say(f"{cfg.max_iters:,} steps, {cfg.warmup_steps} of warm-up, {step_tokens:,} tokens each: "
        f"{cfg.max_iters * step_tokens / len(data['train']):.2f} epochs")
    if step:
        say(f"going on from step {step:,}; the best validation loss so far is {best_loss:.4f}")

    # ---- the loop
    peak = None
    if device.type == "cuda" and dtype != "float32":
        gpu = torch.cuda.get_device_name(device)
        peak = next((flops for name, flops in PEAK_FLOPS.items() if name in gpu), None)
    label = f"step {{:{len(str(cfg.max_iters))}}}/{cfg.max_iters}"
    skipped = torch.zeros((), device=device)  # updates in a row that could not be made
    first_step = saved_step = last_step = step
    started = last_time = time.perf_counter()
    x, y = training_batch(step, 0)
    signals = catch_signals()
    while True:
        stopping = torch.tensor(float(bool(signals)))
        if ddp:  # a signal to one rank stops all of them, at the same step
            dist.all_reduce(stopping, op=dist.ReduceOp.MAX)
        due = step % cfg.eval_interval == 0 or step == cfg.max_iters or cfg.eval_only
        if due and not stopping:
            losses = {}
            for split, starts in eval_windows.items():
                total = evaluate(raw_model, data[split], starts[rank::world], cfg.batch_size,
                                 device, autocast)
                if ddp:
                    dist.all_reduce(total)
                losses[split] = total.item() / len(starts)
            better = losses["val"] < best_loss
            if better:
                best_loss, best_step = losses["val"], step
            say(f"{label.format(step)} | train {losses['train']:.4f} | val {losses['val']:.4f} | "
                f"perplexity {math.exp(min(losses['val'], 99)):.2f}" + " | best" * better)
            record(step=step, train_loss=losses["train"], val_loss=losses["val"])
            if tokenizer:
                show_sample()
            # at first_step all is saved already, unless a signal had put the evaluation off
            if writes and step and (better or step > first_step):
                if better:
                    save("best.pt")
                if better or cfg.always_save_checkpoint:
                    save("ckpt.pt")
                    saved_step = step
                draw_losses(metrics, out_dir / "loss.png")
            last_step, last_time = step, time.perf_counter()
        out_of_patience = 0 < cfg.patience * cfg.eval_interval <= step - best_step
        if stopping or step >= cfg.max_iters or cfg.eval_only or out_of_patience:
            break

        # ------------------------------------------------------------------------------------------
        # the core: forward, backward, clip, step
        if model_cfg.dropout:  # nothing else in a step is drawn
            seed_step(cfg.seed, step, rank)
        lr = learning_rate(step, cfg)
        for group in itertools.chain(*(optimizer.param_groups for optimizer in optimizers)):
            group["lr"] = lr * group["scale"]
        loss = torch.zeros((), device=device)
        for micro in range(accumulation):
            last = micro == accumulation - 1
            if ddp:
                model.require_backward_grad_sync = last  # the ranks add up theirs once a step
            with autocast:
                micro_loss = model(x, y)[1] / accumulation  # gradients add up, and shall be a mean
            x, y = training_batch(step + last, 0 if last else micro + 1)  # while the device works
            scaler.scale(micro_loss).backward()
            loss += micro_loss.detach()
        if ddp:
            dist.all_reduce(loss)
            loss /= world
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), cfg.grad_clip or math.inf)
        finite = torch.isfinite(loss + norm)
        for optimizer in optimizers:
            optimizer.found_inf = (~finite).float()  # at 1, they leave everything as it is
            optimizer.step()
        scaler.update()
        raw_model.zero_grad(set_to_none=True)
        step += 1
        # everything below is diagnostics
        # ------------------------------------------------------------------------------------------

        skipped = (skipped + 1) * ~finite
        if step % cfg.log_interval == 0:
            loss, norm, n_skipped = torch.stack((loss, norm, skipped)).tolist()  # waits for the GPU
            now = time.perf_counter()
            seconds = (now - last_time) / (step - last_step)
            last_step, last_time = step, now
            speed = step_tokens / seconds
            mfu = raw_model.flops_per_token() * speed / world / peak if peak else 0
            say(f"{label.format(step)} | loss {loss:.4f} | lr {lr:.1e} | norm {norm:.2f} | "
                f"{seconds * 1e3:.0f} ms | {human(speed)} tok/s" + f" | mfu {mfu:.1%}" * bool(mfu)
                + f" | eta {duration((cfg.max_iters - step) * seconds)}"
                + " | not finite: skipped" * bool(n_skipped))
            record(step=step, loss=loss, lr=lr, norm=norm, ms=seconds * 1e3, tok_per_s=speed)
            if n_skipped >= MAX_SKIPPED:
                raise UserError(f"loss or gradient was not finite in {n_skipped:.0f} steps in a "
                                f"row, up to step {step}: try a learning_rate below "
                                f"{cfg.learning_rate}, or dtype=float32; the checkpoints are good")

    # ---- the end
    if writes and (saved_step != step or (step == 0 and not stopping)):
        save("ckpt.pt")
        draw_losses(metrics, out_dir / "loss.png")
    if tracker:
        tracker.finish()
    if stopping:
        say(f"stopped by a signal, step {step:,} is saved; to go on: "
            f"python train.py --init_from=resume --out_dir={cfg.out_dir}")
    elif writes:
        say(f"done in {duration(time.perf_counter() - started)}: the best validation loss is "
            f"{best_loss:.4f}, of step {best_step:,}"
            + f", and {cfg.patience} evaluations gave no better one" * out_of_patience)
    if writes and step:
        say(f"  checkpoints  {out_dir / 'best.pt'}, and the latest: {out_dir / 'ckpt.pt'}\n"
            f"  metrics      {out_dir / 'metrics.jsonl'}\n"
            f"  picture      {out_dir / 'loss.png'}\n"
            f"  sample       python sample.py --out_dir={cfg.out_dir}")
    return metrics


def sized(settings):
    """The settings, and under them those that a size among them stands for."""
    if settings.get("size") is None:
        return settings
    shape = zip(("n_layer", "n_head", "n_embd"), SIZES[settings["size"]], strict=True)
    return dict(shape) | settings


def main(argv=None):
    given, cfg, model_cfg = configure(__doc__, TrainConfig, GPTConfig, argv=argv, expand=sized)
    checkpoint, out_dir = None, Path(cfg.out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"out_dir={out_dir} is a file: give the name of a folder")
    if cfg.init_from == "auto":
        cfg.init_from = "resume" if (out_dir / "ckpt.pt").exists() else "scratch"
    if cfg.init_from == "resume":
        checkpoint = find_checkpoint(out_dir, "ckpt.pt", "best.pt")
        cfg, model_cfg = resumed_settings(TrainConfig, checkpoint, given | {"init_from": "resume"})
    elif cfg.init_from != "scratch":
        checkpoint = load_start(cfg.init_from)
        model_cfg = started_settings(checkpoint, given)
    try:
        return train(cfg, model_cfg, given, checkpoint)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is the latter
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and "allocate memory" not in str(error):  # as a CPU's says
            raise
        parts = 2 if cfg.batch_size % 2 == 0 else cfg.batch_size
        less = (f"--batch_size={cfg.batch_size // parts} --gradient_accumulation_steps="
                f"{parts * cfg.gradient_accumulation_steps} takes less, for as many tokens a step")
        hint = less if cfg.batch_size > 1 else "it takes a smaller model or block_size"
        raise UserError(f"out of memory with batch_size={cfg.batch_size}: {hint}") from None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    with one_line_errors():
        main()
