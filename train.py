"""Train a GPT: on one CPU, one GPU, or many.

    python train.py config/quickstart.py
    python train.py config/quickstart.py --dataset=novel --out_dir=out-novel
    python train.py --init_from=resume --out_dir=out-quickstart --max_iters=4000
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py

One rule makes a run reproducible: all randomness in step t on rank r is a function of (seed, t, r),
and the i-th training sequence is a function of (seed, i). So there is no generator state to save, a
resumed run ends exactly like an uninterrupted one, and evaluation does not affect training.

Left out: models that do not fit on one device, and hyperparameter search.
"""

if __name__ == "__main__":  # before torch is imported
    from internals.cores import share_cores
    share_cores()

import functools
import itertools
import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from configurator import UserError, one_line_errors, read_settings
from internals import checkpoint, cpu, dataset, devices
from internals.limits import Count, Fraction, Natural, NonNegative, Positive, Probability, Seed
from internals.optimizers import make_optimizer
from internals.parallel import World
from internals.recipes import RECIPES, SIZES, expand_names
from internals.runlog import RunLog
from internals.signals import Stopped, StopSignals
from model import GPT, GPTConfig
from prepare import open_dataset
from sample import complete

MAX_SKIPPED = 10  # the run ends after this many updates in a row that were not finite
NOT_FINITE = ("loss or gradients were not finite in {n} steps in a row, before step {step}: try a "
              "learning_rate below {lr}, or dtype=float32")


@dataclass
class TrainConfig:
    """The settings of a run; GPTConfig has those of the model. nanoGPT's names are kept."""

    # -- output
    out_dir: str = "out"  # folder for checkpoints, metrics and the loss curve
    eval_interval: Count = 2000  # steps between evaluations; each saves a checkpoint
    log_interval: Count = 1  # steps between log lines
    eval_iters: Count = 200  # batches per evaluation and split: always the same sequences
    eval_only: bool = False  # evaluate once and write nothing
    dry_run: bool = False  # measure three steps, print what the run will take, and write nothing
    always_save_checkpoint: bool = True  # False: save at an evaluation only if it is the best
    snapshots: bool = False  # save the weights alone at each evaluation, for tools/look.py
    patience: Natural = 0  # stop after this many evaluations without improvement; 0: never
    sample_tokens: Natural = 200  # length of the sample shown at an evaluation; 0: none
    wandb_log: bool = False  # also log to a tracker
    tracker: Literal["wandb", "trackio"] = "wandb"  # trackio has the same interface as wandb
    wandb_project: str | None = None  # project name for the tracker; None: the dataset
    wandb_run_name: str | None = None  # run name for the tracker; None: out_dir
    # -- data
    dataset: str = "openwebtext"  # a folder in data_dir
    data_dir: str | None = None  # folder of the datasets; None: data/ next to train.py
    gradient_accumulation_steps: Count = 40  # micro-batches per step, over all processes
    batch_size: Count = 12  # sequences per micro-batch
    align: Count = 1  # sequences start at multiples of it; for lines of equal length, that length
    # -- model
    init_from: str = "scratch"  # or resume, auto (resume if possible), a folder, gpt2, ...
    recipe: Literal[*RECIPES] | None = None  # a preset; each of its settings can be set separately
    size: Literal[*SIZES] | None = None  # n_layer, n_head and n_embd by a name
    # -- optimizer
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: matrices in the blocks; the rest: AdamW
    learning_rate: Positive = 6e-4  # peak learning rate (AdamW)
    muon_lr: Positive = 0.02  # peak learning rate (Muon)
    embedding_lr: Positive | None = None  # peak for the token embedding; None: learning_rate
    weight_decay: NonNegative = 1e-1  # of matrices and embeddings, not of biases and norm scales
    beta1: Probability = 0.9  # AdamW: decay of the mean of gradients
    beta2: Probability = 0.95  # AdamW: decay of the mean of squared gradients
    momentum: Probability = 0.95  # Muon momentum
    grad_clip: NonNegative = 1.0  # largest norm of the gradient; 0: no clipping
    # -- schedule
    max_iters: Natural = 600000  # steps
    decay_lr: bool = True  # False: constant learning rates without warmup
    cooldown: Fraction = 0.0  # linear decay over this last fraction of the steps; 0: cosine decay
    warmup_iters: Natural | None = None  # linear warmup; None: 10% of lr_decay_iters, at most 2000
    lr_decay_iters: Count | None = None  # the step at which the decay ends; None: max_iters
    min_lr: NonNegative | None = None  # learning rate after the decay; None: a tenth of the peak
    # -- system
    backend: Literal["auto", "nccl", "gloo"] = "auto"  # between processes; auto: nccl for GPUs
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest one available
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto: on CUDA
    deterministic: bool = False  # the same bits every time on a GPU too, at some cost in speed
    seed: Seed = 1337  # determines everything that is random

    def __post_init__(self):
        if self.decay_lr and (self.min_lr or 0) > self.learning_rate:
            raise ValueError(f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}")

    @property
    def decay_steps(self):
        return self.lr_decay_iters or max(1, self.max_iters)  # never 0: learning_rate divides by it

    @property
    def warmup_steps(self):
        """Steps of warmup. A warmup as long as the run or the decay is cut to a tenth of it."""
        steps = self.warmup_iters
        if steps is None:
            steps = min(2000, self.decay_steps // 10)
        available = min(self.max_iters, self.decay_steps)
        return steps if steps < available else available // 10


# --------------------------------------------------------------------------------------------------
# The learning-rate schedule, the order of the data, and evaluation


def learning_rate(step, cfg):
    """The learning rate of step 0, 1, ...: linear warmup, then cosine decay from learning_rate to
    min_lr (Loshchilov & Hutter 2017). With a cooldown it stays at learning_rate instead, and decays
    linearly in the last part of the steps (Hägele et al. 2024). After the decay it is min_lr."""
    if not cfg.decay_lr:
        return cfg.learning_rate
    if step < cfg.warmup_steps:  # small steps first: AdamW has averaged few gradients so far
        return cfg.learning_rate * (step + 1) / (cfg.warmup_steps + 1)
    highest = cfg.learning_rate
    lowest = highest / 10 if cfg.min_lr is None else cfg.min_lr
    if cfg.cooldown:
        left = (1 - step / cfg.decay_steps) / cfg.cooldown  # above 1 until the cooldown begins
        return lowest + (highest - lowest) * min(1.0, max(0.0, left))
    progress = min(1.0, (step - cfg.warmup_steps) / (cfg.decay_steps - cfg.warmup_steps))
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * progress)) / 2


def sequences_per_epoch(n_tokens, block_size):
    return max(1, (n_tokens - block_size) // block_size)  # one fewer than fit: room for an offset


@functools.lru_cache(maxsize=2)
def epoch_starts(epoch, n_tokens, block_size, seed, align=1):
    """Where the sequences of one epoch start, in the order of training: from a random offset on,
    the text is cut into sequences of block_size tokens, and they are shuffled. What is left over at
    the two ends, less than two sequences, differs from epoch to epoch. The offset is a multiple of
    align."""
    n = sequences_per_epoch(n_tokens, block_size)
    random = np.random.default_rng((seed, epoch))
    offset = random.integers(min(block_size, n_tokens - n * block_size))
    return offset // align * align + block_size * random.permutation(n)


def training_starts(first, count, n_tokens, block_size, seed, align=1):
    """Where sequences first, ..., first + count - 1 of the run start, counted over all epochs."""
    n = sequences_per_epoch(n_tokens, block_size)
    return [epoch_starts(i // n, n_tokens, block_size, seed, align)[i % n]
            for i in range(first, first + count)]


def evaluation_starts(n_tokens, block_size, count):
    """Where up to `count` sequences start: always the same, spread evenly, none overlapping."""
    n = (n_tokens - 1) // block_size
    return block_size * np.linspace(0, n - 1, min(count, n)).astype(np.int64)


def batch(ids, starts, block_size, device):
    """The sequences of `ids` that begin at `starts`, as inputs and targets: each (B, T) int64 on
    `device`. The target of a token is the token that follows it."""
    sequences = ids[np.add.outer(starts, np.arange(block_size + 1))]
    sequences = torch.from_numpy(sequences.astype(np.int64))
    if device.type == "cuda":
        sequences = sequences.pin_memory()  # so that the copy runs while the GPU computes
    sequences = sequences.to(device, non_blocking=True)
    return sequences[:, :-1], sequences[:, 1:]


def training_batches(ids, cfg, block_size, consumed, world):
    """Yields the micro-batches of this process, without end. `consumed`: the number of sequences
    that the run has used so far. The processes take the micro-batches in turn, so that a step sees
    the same sequences however many processes there are."""
    for number in itertools.count(world.rank, world.size):
        first = consumed + number * cfg.batch_size
        starts = training_starts(first, cfg.batch_size, len(ids), block_size, cfg.seed, cfg.align)
        yield batch(ids, starts, block_size, world.device)


def seed_step(seed, step, rank):
    """Seed torch, so that the dropout of this step is a function of (seed, step, rank)."""
    mixed = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed[0]))


@torch.no_grad()
def evaluate(model, data, cfg, autocast, world, signals):
    """The mean losses {"train": ..., "val": ...} of the evaluation sequences in nats per token,
    without dropout; or None if a signal interrupts it. All processes share the work."""
    losses = {}
    model.eval()
    for split, ids in (("train", data.train), ("val", data.val)):
        starts = evaluation_starts(len(ids), model.block_size, cfg.eval_iters * cfg.batch_size)
        mine = starts[world.rank::world.size]
        total = torch.zeros((), device=world.device)
        # every process makes the same number of rounds, so that all check for signals together
        rounds = math.ceil(len(starts) / (cfg.batch_size * world.size))
        for i in tqdm(range(rounds), f"evaluating {split}", delay=3, leave=False,
                      disable=None if world.is_master else True):
            if world.any(signals):
                break
            part = mine[i * cfg.batch_size:(i + 1) * cfg.batch_size]
            if len(part):
                x, y = batch(ids, part, model.block_size, world.device)
                with autocast:
                    total += model(x, y)[1] * len(part)
        losses[split] = world.sum(total).item() / len(starts)
    model.train()
    return None if world.any(signals) else losses


# --------------------------------------------------------------------------------------------------
# A run, from top to bottom


def train(cfg, model_cfg, data, start, world, log, signals):
    """Run the training that the settings describe. Returns the metrics: a dict for each logged step
    and each evaluation. Raises Stopped, a KeyboardInterrupt, if a signal stops the run.

    data: a Dataset. start: the Checkpoint to start or resume from; its model is None from scratch.
    world, log, signals: the processes, the RunLog and the StopSignals of this run.
    """
    device, T = world.device, model_cfg.block_size
    accumulation = world.share(cfg.gradient_accumulation_steps, "gradient_accumulation_steps")
    step_sequences = cfg.gradient_accumulation_steps * cfg.batch_size

    # ---- raw_model is saved, evaluated and sampled; `model` may add torch.compile and DDP
    torch.manual_seed(cfg.seed)
    pretrained = start.model is not None
    raw_model = GPT.from_weights(model_cfg, start.model) if pretrained else GPT(model_cfg)
    raw_model = cpu.speed_up(raw_model.to(device))  # on a CPU: faster Attend and Dropout modules
    dtype = devices.find_dtype(cfg.dtype, device, model_cfg.n_embd)
    autocast = devices.autocast_to(dtype, device)
    # float16 has too few exponent bits for small gradients: the scaler multiplies the loss, and
    # unscale_ divides the gradients again. With other dtypes it does nothing.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    optimizer = make_optimizer(raw_model, cfg, dtype)  # its docstring: why biases do not decay
    if start.optimizer is not None:  # the run resumes
        optimizer.load_state_dict(start.optimizer)
    if start.scaler:
        scaler.load_state_dict(start.scaler)
    step, consumed = start.step, start.sequences
    best_loss, best_step = start.best_loss, start.best_step
    start.model = start.optimizer = None  # frees their memory

    batches = training_batches(data.train, cfg, T, consumed, world)
    x, y = next(batches)
    model = devices.compiled(raw_model, cfg.compile, x, y, autocast)
    log.begin(raw_model, data, dtype, model is not raw_model, step, best_loss)
    model = world.wrap(model)
    tokenizer = log.find_tokenizer(data.meta)

    def save(name):
        if log.writes:
            log.save = None  # if saving fails, the log must not try it again
            checkpoint.write(checkpoint.Checkpoint(
                model=raw_model.state_dict(), model_args=asdict(model_cfg), meta=data.meta,
                config=asdict(cfg), optimizer=optimizer.state_dict(), scaler=scaler.state_dict(),
                step=step, sequences=consumed, best_loss=best_loss, best_step=best_step,
            ), log.out_dir / name)
            log.save = save

    log.save = save  # if writing the log fails, it saves a last checkpoint

    # ---- the loop
    first_step = saved_step = step
    skipped = longest = torch.zeros((), device=device)  # non-finite steps in a row: now, maximum
    signals.catch()
    while True:
        due = step % cfg.eval_interval == 0 or step == cfg.max_iters or cfg.eval_only
        if due and not world.any(signals):
            losses = evaluate(raw_model, data, cfg, autocast, world, signals)
            if losses is not None:
                better = losses["val"] < best_loss
                if better:
                    best_loss, best_step = losses["val"], step
                log.evaluation(step, losses, better)
                # step 0 is worth saving only if the run started from a trained model
                if better and (step > 0 or pretrained):
                    save("best.pt")
                if step > 0 and (better or (cfg.always_save_checkpoint and step > first_step)):
                    save("ckpt.pt")
                    saved_step = step
                if tokenizer and math.isfinite(losses["val"]):
                    with autocast, devices.any_algorithm():
                        log.sample(complete(raw_model, tokenizer, tokenizer.default_start,
                                            cfg.sample_tokens, seed=cfg.seed))
                log.after_evaluation(step)
        stopping = world.any(signals)  # a signal to one process stops all of them, at one step
        out_of_patience = cfg.patience and step - best_step >= cfg.patience * cfg.eval_interval
        if stopping or out_of_patience or step >= cfg.max_iters or cfg.eval_only:
            break

        # ------------------------------------------------------------------------------------------
        # the core: forward, backward, clip, step
        seed_step(cfg.seed, step, world.rank)
        lr = learning_rate(step, cfg)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"]  # scale: for example, muon_lr / learning_rate
        loss = torch.zeros((), device=device)
        for micro in range(accumulation):
            if world.size > 1:  # average gradients over the processes only in the last backward
                model.require_backward_grad_sync = micro == accumulation - 1
            with autocast:
                # backward adds up gradients; dividing each loss makes the sum their mean
                micro_loss = model(x, y)[1] / accumulation
            x, y = next(batches)  # the CPU prepares it while the GPU computes
            scaler.scale(micro_loss).backward()
            loss += micro_loss.detach()
        loss = world.mean(loss)  # over the processes, so that all of them see a NaN in any of them
        scaler.unscale_(optimizer)
        # one step along a huge gradient could undo all learning, so its norm is limited
        norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), cfg.grad_clip or math.inf)
        finite = torch.isfinite(loss + norm)
        optimizer.step(skip=~finite)  # decided on the device: the CPU does not wait for it
        scaler.update()  # float16: halves its factor after an overflow, and later doubles it again
        raw_model.zero_grad(set_to_none=True)
        step, consumed = step + 1, consumed + step_sequences  # even if the update was skipped
        # end of the core. Below: logging, and ending a run that skips every update
        # ------------------------------------------------------------------------------------------

        skipped = torch.where(finite, 0.0, skipped + 1)
        longest = torch.maximum(longest, skipped)  # read every 10 steps: reading waits for the GPU
        if step % cfg.log_interval == 0:
            logged = torch.stack((loss, norm, skipped)).tolist()  # waits for the GPU
            log.step(step, lr, *logged)
        if (step % MAX_SKIPPED == 0 or step == cfg.max_iters) and longest >= MAX_SKIPPED:
            raise UserError(NOT_FINITE.format(n=MAX_SKIPPED, step=step, lr=cfg.learning_rate))

    if saved_step != step or (step == 0 and not stopping):  # max_iters=0 saves the new model
        save("ckpt.pt")
    log.end(step, best_loss, best_step, stopping, out_of_patience)
    if stopping:
        raise Stopped(signals.received)
    return log.metrics


def main(argv=None):
    """Train with the settings of a command line. Returns the metrics: a list of dicts."""
    given = read_settings(__doc__, TrainConfig, GPTConfig, argv=argv, expand=expand_names)
    cfg, model_cfg, start = checkpoint.starting_point(given, TrainConfig, learning_rate)
    vocab_size = given.get("vocab_size", start.model_args.get("vocab_size"))
    with World(cfg.device, cfg.backend, cfg.deterministic) as world:
        world.must_agree(start.step, "the processes found different checkpoints: out_dir must be "
                         "on a disk that all of them see")
        with world.master_first():  # one process prepares a corpus that is missing
            data = open_dataset(cfg.dataset, cfg.data_dir, vocab_size)
        model_cfg = dataset.match(model_cfg, data, cfg, start, given)
        devices.check_model_fits(model_cfg, world.device, training=not cfg.eval_only)
        with devices.out_of_memory_hint(cfg), RunLog(cfg, world) as log, StopSignals() as signals:
            return train(log.shortened(start.step), model_cfg, data, start, world, log, signals)


if __name__ == "__main__":
    with one_line_errors():
        main()
