"""Train a GPT: on one CPU, one GPU, or many.

    python train.py config/quickstart.py
    python train.py config/quickstart.py --dataset=novel --out_dir=out-novel
    python train.py --init_from=resume --out_dir=out-quickstart --max_iters=4000
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py

One rule makes a run reproducible: all randomness in step t of process r (its rank) is a function of
(seed, t, r), and the i-th training sequence is a function of (seed, i). So there is no generator
state to save, evaluation does not affect training, and a resumed run ends exactly like an
uninterrupted one (on a GPU with deterministic=True).

Left out: models that do not fit on one device, and hyperparameter search.
"""

if __name__ == "__main__":  # sets variables that torch reads when it is imported
    from internals.cores import share_cores
    share_cores()

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from configurator import read_settings
from internals import checkpoint, cpu, devices, graphs, outdir
from internals.errors import UserError, one_line_errors, warn
from internals.limits import Count, Fraction, Natural, NonNegative, Positive, Probability, Seed
from internals.optimizers import make_optimizer
from internals.parallel import World
from internals.recipes import RECIPES, SIZES, expand_names
from internals.run import Run
from internals.runlog import open_log
from internals.signals import Stopped, StopSignals
from internals.starting import dry_run_settings, fit_to_data, starting_point
from model import GPT, GPTConfig
from prepare import open_dataset, tokenizer_from_meta
from sample import complete

MAX_SKIPPED = 10  # a run ends after so many skipped updates in a row (checked at log lines)


@dataclass
class TrainConfig:
    """The settings of a run; GPTConfig has those of the model. nanoGPT's names are kept. Some types
    are numbers with limits: Count is at least 1, Natural at least 0 (internals/limits.py)."""

    # -- output
    out_dir: str = "out"  # folder for checkpoints, metrics and the loss curve
    eval_interval: Count = 2000  # steps between evaluations; after each, a checkpoint is saved
    log_interval: Count = 1  # steps between log lines
    eval_iters: Count = 200  # batches per evaluation and split: always the same sequences
    eval_only: bool = False  # evaluate once and write nothing
    dry_run: bool = False  # measure a few steps, print what a run takes, save nothing
    always_save_checkpoint: bool = True  # False: only after the best evaluation so far
    snapshots: bool = False  # save the weights at steps 0, 5, 10, 20, 40, ..., for look.py
    patience: Natural = 0  # stop after patience x eval_interval steps without improvement; 0: never
    sample_tokens: Natural = 200  # length of the sample shown at an evaluation; 0: none
    wandb_log: bool = False  # also log to a tracker
    tracker: Literal["wandb", "trackio"] = "wandb"  # both have the same interface
    wandb_project: str | None = None  # project name for the tracker; None: the dataset
    wandb_run_name: str | None = None  # run name for the tracker; None: out_dir
    # -- data
    dataset: str = "openwebtext"  # a folder in data_dir
    data_dir: str | None = None  # folder of the datasets; None: data/ next to train.py
    gradient_accumulation_steps: Count = 40  # micro-batches per step, over all processes
    batch_size: Count = 12  # sequences per micro-batch
    # sequences start at multiples of align, and it must divide block_size. If all lines of a text
    # are equally long, give their length: then every sequence starts with a line
    align: Count = 1
    # -- model
    init_from: str = "scratch"  # or resume, auto (resume if possible), a folder, gpt2
    recipe: Literal[*RECIPES] | None = None  # gpt2 or modern: presets of other settings
    size: Literal[*SIZES] | None = None  # n_layer, n_head and n_embd by a name
    # -- optimizer
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices in the blocks
    learning_rate: Positive = 6e-4  # peak learning rate (AdamW)
    muon_lr: Positive = 0.02  # peak learning rate (Muon)
    embedding_lr: Positive | None = None  # peak of the token embedding; None: learning_rate
    weight_decay: NonNegative = 1e-1  # of matrices and embeddings, not of vectors
    beta1: Probability = 0.9  # AdamW: decay of the mean of gradients
    beta2: Probability = 0.95  # AdamW: decay of the mean of squared gradients
    momentum: Probability = 0.95  # Muon momentum
    grad_clip: NonNegative = 1.0  # largest norm of the gradient; 0: no clipping
    # -- schedule
    max_iters: Natural = 600000  # steps
    decay_lr: bool = True  # False: constant learning rates without warmup
    cooldown: Fraction = 0.0  # linear decay over this last share of the steps; 0: cosine
    # steps of linear warmup; None: 10% of lr_decay_iters, at most 2000
    warmup_iters: Natural | None = None
    lr_decay_iters: Count | None = None  # the step at which the decay ends; None: max_iters
    min_lr: NonNegative | None = None  # after the decay; None: a tenth of the peak
    # -- system
    backend: Literal["auto", "nccl", "gloo"] = "auto"  # DDP backend; auto: nccl on GPUs
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest one available
    # dtype of matrix products
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto: on CUDA, for long runs
    cuda_graphs: bool = True  # on one GPU: record the work of a step once, and replay it
    deterministic: bool = False  # the same bits every time on a GPU too, but slower
    seed: Seed = 1337  # determines everything that is random

    def __post_init__(self):
        if self.decay_lr and (self.min_lr or 0) > self.learning_rate:
            raise ValueError(f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}")

    @property
    def decay_steps(self):
        return self.lr_decay_iters or max(1, self.max_iters)  # learning_rate() divides by it

    @property
    def warmup_steps(self):
        """Steps of warmup. If they are not fewer than the steps of the run and those of the decay,
        they become a tenth of the shorter of both."""
        steps = self.warmup_iters
        if steps is None:
            steps = min(2000, self.decay_steps // 10)
        available = min(self.max_iters, self.decay_steps)
        if steps >= available:
            steps = available // 10
        return steps


# --------------------------------------------------------------------------------------------------
# The learning-rate schedule, the order of the data, and evaluation


def learning_rate(step, cfg):
    """The learning rate of step 0, 1, ...: linear warmup, then cosine decay from learning_rate to
    min_lr (None: a tenth of learning_rate) (Loshchilov & Hutter 2017). With a cooldown it stays at
    learning_rate instead, and decays linearly in the last part of the steps (Hägele et al. 2024).
    After the decay, it stays at its lowest value."""
    if not cfg.decay_lr:
        return cfg.learning_rate
    if step < cfg.warmup_steps:  # AdamW has averaged few gradients so far
        return cfg.learning_rate * (step + 1) / (cfg.warmup_steps + 1)
    highest = cfg.learning_rate
    lowest = highest / 10
    if cfg.min_lr is not None:
        lowest = cfg.min_lr
    if cfg.cooldown:
        left = 1 - step / cfg.decay_steps
        left = left / cfg.cooldown  # above 1 until the cooldown begins
        left = min(1.0, max(0.0, left))
        return lowest + (highest - lowest) * left
    progress = (step - cfg.warmup_steps) / (cfg.decay_steps - cfg.warmup_steps)
    progress = min(1.0, progress)
    left = (1 + math.cos(math.pi * progress)) / 2  # from 1 down to 0
    return lowest + (highest - lowest) * left


def sequences_per_epoch(n_tokens, block_size):
    n = n_tokens // block_size - 1  # one fewer than fit, to leave room for a random offset
    return max(1, n)


@functools.lru_cache(maxsize=2)  # a batch can contain the end of an epoch and the next one
def epoch_starts(epoch, n_tokens, block_size, seed, align=1):
    """Where the sequences of one epoch start, in the order of training: from a random offset on,
    the text is cut into sequences of block_size tokens, and they are shuffled. The tokens that are
    left over at the two ends, fewer than two sequences, differ from epoch to epoch. The offset is a
    multiple of align."""
    n = sequences_per_epoch(n_tokens, block_size)
    random = np.random.default_rng((seed, epoch))
    left_over = n_tokens - n * block_size
    # below left_over, because the last token of the last sequence needs a target
    offset = random.integers(min(block_size, left_over))
    offset = offset // align * align
    return offset + block_size * random.permutation(n)


def training_starts(first, count, n_tokens, block_size, seed, align=1):
    """Where sequences first, ..., first + count - 1 of the run start, counted over all epochs."""
    n = sequences_per_epoch(n_tokens, block_size)
    starts = []
    for i in range(first, first + count):
        starts_of_epoch = epoch_starts(i // n, n_tokens, block_size, seed, align)
        starts.append(starts_of_epoch[i % n])
    return starts


def evaluation_starts(n_tokens, block_size, count):
    """Where up to `count` sequences start: always the same, spread evenly, none overlapping."""
    n = (n_tokens - 1) // block_size
    chosen = np.linspace(0, n - 1, min(count, n))
    return block_size * chosen.astype(np.int64)


def batch(ids, starts, block_size, device):
    """The sequences of `ids` that begin at `starts`, as inputs and targets: each (B, T) int64 on
    `device`. The target of a token is the token that follows it."""
    places = np.add.outer(starts, np.arange(block_size + 1))  # (B, T + 1)
    sequences = ids[places].astype(np.int64)
    sequences = torch.from_numpy(sequences)
    if device.type == "cuda":
        sequences = sequences.pin_memory()  # so that the copy runs while the GPU computes
    sequences = sequences.to(device, non_blocking=True)
    return sequences[:, :-1], sequences[:, 1:]


def training_batches(ids, cfg, block_size, consumed, world):
    """Yields the micro-batches of this process, without end. `consumed`: the number of sequences
    that the run has used so far. world: the processes of the run (internals/parallel.py). They take
    the micro-batches in turn, so that a step sees the same sequences however many processes there
    are."""
    for number in itertools.count(world.rank, world.size):
        first = consumed + number * cfg.batch_size
        starts = training_starts(
            first, cfg.batch_size, len(ids), block_size, cfg.seed, cfg.align)
        yield batch(ids, starts, block_size, world.device)


def seed_step(seed, step, rank):
    """Seed torch, so that the dropout of this step is a function of (seed, step, rank)."""
    # mixed, so that neighboring steps and ranks get unrelated numbers
    sequence = np.random.SeedSequence((seed, step, rank))
    mixed = sequence.generate_state(1, np.uint64)
    torch.manual_seed(int(mixed[0]))


@torch.no_grad()
def evaluate(model, data, cfg, autocast, world, signals):
    """The mean losses {"train": ..., "val": ...} of the evaluation sequences in nats per token,
    without dropout; or None if a signal interrupts it. All processes share the work."""
    losses = {}
    model.eval()
    count = cfg.eval_iters * cfg.batch_size
    for split, ids in (("train", data.train), ("val", data.val)):
        starts = evaluation_starts(len(ids), model.block_size, count)
        mine = starts[world.rank::world.size]
        total = torch.zeros((), device=world.device)
        # every process makes the same number of rounds, because world.any waits for all of them
        rounds = math.ceil(len(starts) / (cfg.batch_size * world.size))
        for i in world.progress(rounds, f"evaluating {split}"):
            if world.any(signals.arrived):
                break
            part = mine[i * cfg.batch_size:(i + 1) * cfg.batch_size]
            if len(part):
                x, y = batch(ids, part, model.block_size, world.device)
                with autocast:
                    _, loss = model(x, y)
                total += loss * len(part)
        losses[split] = world.sum(total).item() / len(starts)
    model.train()
    if world.any(signals.arrived):
        return None
    return losses


# --------------------------------------------------------------------------------------------------
# The parts of a run. `main`, at the end, puts them together


def begin(cfg, model_cfg, start, world):
    """Build the Run from a new model, from given weights, or from a checkpoint.

    start: the Checkpoint; start.model is None for a new model. To free memory, start.model and
    start.optimizer become None. world: world.device becomes the CPU if it is an Apple GPU that
    computes a wrong loss, which happens in some versions of PyTorch.
    """
    torch.manual_seed(cfg.seed)
    if start.model is None:
        model = GPT(model_cfg)
    else:
        model = GPT.from_weights(model_cfg, start.model)
    world.device = devices.trusted(world.device, model)
    device = world.device
    model = model.to(device)
    model = cpu.speed_up(model)  # on a CPU: replaces some modules by faster ones
    dtype = devices.find_dtype(cfg.dtype, device, model_cfg.n_embd)
    optimizer = make_optimizer(model, cfg, dtype)  # its docstring: why biases do not decay
    # float16 has too few exponent bits for small gradients: the scaler multiplies the loss, and
    # unscale_ divides the gradients again. With other dtypes it does nothing.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    if start.optimizer is not None:  # the run resumes
        optimizer.load_state_dict(start.optimizer)
    if start.scaler:  # {} unless the run used float16
        scaler.load_state_dict(start.scaler)
    compiled = devices.compiled(model, cfg, dtype, steps=cfg.max_iters - start.step)
    how = "eager" if compiled is model else "compiled"  # for the log
    # whether steps become CUDA graphs (halves_of_a_step). While a graph is replayed, the CPU does
    # nothing; but with several processes, or the scaler of float16, it has work within a step
    recorded = cfg.cuda_graphs and graphs.can_record(device)
    if world.is_distributed or dtype == "float16":
        recorded = False
    if recorded:
        how += ", CUDA graphs"
    run = Run.starting_at(  # the step, the best loss and so on are those of start
        start, model=model, compiled=compiled, optimizer=optimizer, scaler=scaler, dtype=dtype,
        how=how, recorded=recorded)
    start.model = None  # not earlier: starting_at reads it, to set run.was_trained
    start.optimizer = None
    return run


def save(run, cfg, data, log, name):
    """Write a checkpoint of the run into out_dir, if the run writes files."""
    if log.writes:
        checkpoint.write(run.checkpoint(cfg, data.meta), log.out_dir / name)


def sample_tokenizer(cfg, data, world):
    """The tokenizer for the samples at evaluations; None if this process shows none, or if the
    tables of the tokenizer cannot be downloaded. Training does not need it."""
    if cfg.sample_tokens == 0 or not world.is_master:
        return None
    try:
        return tokenizer_from_meta(data.meta)
    except UserError as error:
        warn(f"training shows no samples: {error}")
        return None


def evaluate_and_save(run, cfg, data, tokenizer, world, log, signals):
    """Evaluate the model, log the losses, save what should be saved, and show a sample. If a signal
    interrupts the evaluation, nothing is logged or saved."""
    autocast = devices.autocast_to(run.dtype, world.device)
    # run.model, because the compiled one is compiled for the shape of training batches
    losses = evaluate(run.model, data, cfg, autocast, world, signals)
    if losses is None:
        return
    is_better = losses["val"] < run.best_loss
    log.evaluation(run.step, losses, is_better and not cfg.eval_only)
    if is_better:
        run.best_loss = losses["val"]
        run.best_step = run.step
    if is_better and (run.step > 0 or run.was_trained):  # a new model need not be saved
        save(run, cfg, data, log, "best.pt")
    # a model that is no better is saved, too, but not where a resumed run began: it exists already
    saves_anyway = cfg.always_save_checkpoint and run.step > run.first_step
    if run.step > 0 and (is_better or saves_anyway):
        save(run, cfg, data, log, "ckpt.pt")
        run.saved_step = run.step
    if tokenizer:
        try:
            # sampling uses cumsum, which has no deterministic algorithm on CUDA
            with autocast, devices.allow_nondeterministic():
                text = complete(run.model, tokenizer, tokenizer.default_start, cfg.sample_tokens,
                                seed=cfg.seed)
            log.sample(text)
        except UserError as error:  # logits are NaN
            warn(f"there is no sample: {error}")
    log.after_evaluation(run.step)  # plots; the evaluation does not count as training time


def forward_backward(x, y, model, scaler, autocast, accumulation):
    """Forward and backward pass of a micro-batch, one of `accumulation` that this process has in a
    step: adds the gradients of loss / accumulation to those of the model. Returns
    loss / accumulation, a tensor of shape ()."""
    with autocast:
        _, loss = model(x, y)
    # backward adds up gradients; dividing each loss makes the sum their mean
    loss = loss / accumulation
    scaler.scale(loss).backward()
    return loss.detach()


def update(loss, run, cfg):
    """Clip the gradients, update the weights, and reset the gradients. Returns the norm of the
    gradients before they were clipped, and whether loss and norm are finite: tensors ()."""
    run.scaler.unscale_(run.optimizer)
    # one step along a huge gradient could undo all learning, so its norm is limited
    largest = cfg.grad_clip or math.inf
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), largest)
    finite = torch.isfinite(loss + norm)
    # If skip is true, no weight changes. It is on the device, so that the CPU does not wait. step
    # also updates the scaler, which multiplies by less after an overflow (internals/optimizers.py)
    run.optimizer.step(skip=~finite, scaler=run.scaler)
    # set them to None, which is faster. But a CUDA graph adds to the memory that it was recorded
    # with, so there they are set to zero
    run.model.zero_grad(set_to_none=not run.recorded)
    return norm, finite


def halves_of_a_step(run, cfg, model, accumulation, device):
    """(add_gradients, update_weights): forward_backward and update for this run. One GPU records
    them as CUDA graphs and replays them, because Python is too slow to start the kernels of a small
    model one by one (internals/graphs.py). A replay runs no Python: if you let them depend on
    something like run.step, or print, set --cuda_graphs=False."""
    autocast = devices.autocast_to(run.dtype, device)  # in it, matrix products have this dtype
    add_gradients = functools.partial(
        forward_backward, model=model, scaler=run.scaler, autocast=autocast,
        accumulation=accumulation)
    update_weights = functools.partial(update, run=run, cfg=cfg)
    if run.recorded:
        add_gradients = graphs.recorded(add_gradients, device)
        update_weights = graphs.recorded(update_weights, device)
    return add_gradients, update_weights


def train(run, cfg, data, world, log, signals):
    """Train until the run is done. Returns the metrics: a dict for each logged step and each
    evaluation. Raises Stopped, a KeyboardInterrupt, if a signal stops the run.

    run: the Run (internals/run.py), which this changes: model, optimizer, scaler, step, sequences
    (used so far), best_loss (the lowest validation loss) and best_step (its step), saved_step (of
    the newest ckpt.pt of this process).
    data: a Dataset. world, log, signals: the processes, the RunLog and the StopSignals.
    """
    device = world.device
    # run.model with torch.compile and DDP around it, to compute the loss. It is a local variable,
    # because DDP must be gone before the processes disconnect
    model = world.wrap(run.compiled)
    micro_batches = cfg.gradient_accumulation_steps
    # the name of the setting is for the error message, if the division has a remainder
    accumulation = world.per_process(micro_batches, "gradient_accumulation_steps")
    step_sequences = micro_batches * cfg.batch_size
    add_gradients, update_weights = halves_of_a_step(run, cfg, model, accumulation, device)
    tokenizer = sample_tokenizer(cfg, data, world)
    patience = cfg.patience * cfg.eval_interval  # in steps
    batches = training_batches(data.train, cfg, run.model.block_size, run.sequences, world)
    x, y = next(batches)
    n_skipped = torch.zeros((), device=device)  # updates skipped in a row
    signals.catch()  # from here on, a signal such as Ctrl-C only sets signals.arrived
    while True:
        # evaluate, if it is time
        is_last = run.step == cfg.max_iters or cfg.eval_only
        is_due = run.step % cfg.eval_interval == 0 or is_last
        if is_due and not world.any(signals.arrived):
            evaluate_and_save(run, cfg, data, tokenizer, world, log, signals)
        # does the run end here?
        stopping = world.any(signals.arrived)  # a signal to one process stops all, at one step
        out_of_patience = is_due and 0 < patience <= run.step - run.best_step
        is_past = run.step > cfg.max_iters  # resumed with a smaller max_iters
        ends = stopping or out_of_patience or is_last or is_past
        # for tools/look.py: a snapshot of some steps, and of the last one. (A step at which a
        # signal stops the run is not its last one.)
        is_snapshot = checkpoint.is_snapshot_step(run.step) or (ends and not stopping)
        if is_snapshot and cfg.snapshots and log.writes:
            checkpoint.write_snapshot(log.out_dir, run.step, run.model)
        if ends:
            break

        # ------------------------------------------------------------------------------------------
        # the core: forward, backward, clip, step
        seed_step(cfg.seed, run.step, world.rank)
        lr = learning_rate(run.step, cfg)
        run.optimizer.set_learning_rate(lr)  # scales it for Muon and the token embedding
        loss = torch.zeros((), device=device)
        for micro in range(accumulation):
            if world.size > 1:  # DDP averages gradients over processes in the last backward only
                model.require_backward_grad_sync = micro == accumulation - 1
            loss += add_gradients(x, y)
            x, y = next(batches)  # the CPU prepares it while the GPU computes
        loss = world.mean(loss)  # of the processes: if one has a NaN, all see it
        norm, finite = update_weights(loss)
        run.step += 1  # even if the update was skipped
        run.sequences += step_sequences
        # end of the core. Below: logging, and ending a run that skips every update
        # ------------------------------------------------------------------------------------------

        n_skipped = torch.where(finite, 0.0, n_skipped + 1)
        is_logged = run.step % cfg.log_interval == 0
        if is_logged or run.step == cfg.max_iters:
            # one copy to the CPU, which waits for the GPU
            loss, norm, skipped = torch.stack((loss, norm, n_skipped)).tolist()
            if is_logged:
                log.step(run.step, lr, loss, norm, skipped)
            if skipped >= MAX_SKIPPED:
                raise UserError(
                    f"loss or gradients were not finite in the last {skipped:.0f} steps, before "
                    f"step {run.step}: try a learning_rate below {cfg.learning_rate}, or "
                    "dtype=float32")

    # Save the end, unless this process has saved it already. (A resumed run that ends at once saves
    # its new settings.) A run that is stopped before its first step has nothing to save
    has_begun = run.step > 0 or not stopping
    if run.saved_step != run.step and has_begun and not is_past:
        save(run, cfg, data, log, "ckpt.pt")
    log.end(stopping, out_of_patience)
    if stopping or signals.arrived:  # a signal may have come while the end was saved
        raise Stopped(signals.received)  # the first signal
    return log.metrics


def main(argv=None):
    """Train with the settings of a command line. Returns the metrics: a list of dicts."""
    given = read_settings(__doc__, TrainConfig, GPTConfig, argv=argv, expand=expand_names)
    # start: the checkpoint or weights that init_from names. cfg, model_cfg: the settings given and,
    # in a resumed run, those of the checkpoint
    cfg, model_cfg, start = starting_point(given, TrainConfig)
    # needed only for bins without a meta.json (see dataset.load)
    vocab_size = given.get("vocab_size", start.model_args.get("vocab_size"))
    with World(cfg.device, cfg.backend, cfg.deterministic) as world:
        world.must_agree(start.step, "the processes found different checkpoints: out_dir must be "
                         "on a disk that all of them see")
        with world.master_first():  # one process prepares a corpus that is missing
            data = open_dataset(cfg.dataset, cfg.data_dir, vocab_size)
        # a new model gets the vocabulary size of the dataset; another one is compared with it
        model_cfg = fit_to_data(model_cfg, data, cfg, start, given)
        devices.check_model_fits(model_cfg, world.device, training=not cfg.eval_only)
        # an error before anything is written, if the processes cannot share the micro-batches
        world.per_process(cfg.gradient_accumulation_steps, "gradient_accumulation_steps")
        with devices.training_memory_hint(cfg), StopSignals() as signals:
            run = begin(cfg, model_cfg, start, world)
            # the lock fails if another run is alive, or has written since `start` was read
            with (outdir.locked(cfg, world, start.written_at),
                  open_log(run, cfg, data, world) as log):
                if cfg.dry_run:
                    cfg = dry_run_settings(cfg, run)
                return train(run, cfg, data, world, log, signals)


if __name__ == "__main__":
    with one_line_errors():
        main()
