"""What the three stages share: their settings, how a run begins, and the steps of training."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from configurator import build, read_settings
from internals import outdir
from internals.errors import UserError
from internals.limits import Count, Natural, NonNegative, Positive, Probability, Seed
from internals.parallel import World
from internals.signals import StopSignals
from internals.starting import starting_point
from model import GPTConfig
from prepare import tokenizer_from_meta
from stages.answers import Encoding, Policy
from train import begin, learning_rate, training_starts


@dataclass
class StageConfig:
    """The settings that all stages have."""

    # -- output
    out_dir: str = "out-stage"  # folder for the checkpoint, metrics and the picture
    eval_interval: Count = 50  # steps between evaluations; each saves a checkpoint
    log_interval: Count = 10  # steps between log lines
    # -- model and task
    init_from: str = "out-quickstart"  # a model, or resume
    # sums, instructions, verse, length, or a .jsonl file with prompt and answer
    task: str = "sums"
    data_dir: str | None = None  # folder of the datasets; None: data/ next to train.py
    eval_prompts: Count = 500  # prompts per evaluation; no stage trains on them
    max_new_tokens: Count = 16  # limit of an answer
    # -- optimizer (AdamW)
    batch_size: Count = 32  # answers per step
    max_iters: Count = 500  # steps
    learning_rate: Positive = 1e-3  # peak; after the warmup it decays linearly to 0
    warmup_iters: Natural | None = None  # steps of linear warmup; None: 5% of max_iters
    weight_decay: NonNegative = 0.0  # of matrices and embeddings
    beta1: Probability = 0.9  # decay of the mean of gradients
    beta2: Probability = 0.95  # decay of the mean of squared gradients
    grad_clip: Positive = 1.0  # largest norm of the gradient
    # -- system
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest one available
    seed: Seed = 1337  # determines everything that is random

    # settings of train.py that are constants here, because its functions read them
    dtype = "float32"  # log-probabilities at sampling and in the update are then the same
    compile = False
    cuda_graphs = False  # the length of a batch varies
    cooldown = 1.0  # linear decay from the first step on
    min_lr = 0.0
    decay_lr = True
    optimizer = "adamw"
    embedding_lr = None
    eval_only = False
    dry_run = False
    wandb_log = False

    @property
    def decay_steps(self):
        return self.max_iters

    @property
    def warmup_steps(self):
        if self.warmup_iters is None:
            return self.max_iters // 20
        return min(self.warmup_iters, self.max_iters - 1)


# --------------------------------------------------------------------------------------------------
# The beginning of a run


def read_stage(doc, schema, argv, fixed):
    """The settings of a command line, and the Checkpoint that the stage starts from. fixed: names
    of settings that a resumed run cannot change; other stages lack the first. Raises UserError if
    the checkpoint is not that of a trained model, or of this stage if the run resumes, or if the
    token ids of the model have no text."""
    given = read_settings(doc, schema, argv=argv)
    cfg, _, start = starting_point(given, schema, fixed)
    if start.model is None:
        raise UserError(f"init_from={given['init_from']} is not a trained model: a stage starts "
                        "from the folder of one, or resumes with --init_from=resume")
    tokenizer_from_meta(start.meta)
    return cfg, start


@contextmanager
def opened(cfg, start):
    """A context manager for a run: its World, and its StopSignals. No other run can write to
    out_dir meanwhile."""
    with World(cfg.device) as world, StopSignals() as signals:
        with outdir.locked(cfg, world, start.written_at):
            yield world, signals


def begin_stage(cfg, start, task, world):
    """The Run of a stage (see begin in train.py), and the Policy with its model."""
    model_cfg = build(GPTConfig, start.model_args)
    run = begin(cfg, model_cfg, start, world)
    encoding = Encoding(start.meta, task.is_chat, world.device)
    return run, Policy(run.model, task, encoding, cfg)


def check_length(prompts, answers, policy):
    """The numbers of tokens of prompts with their answers, two lists of texts; an answer of None
    has max_new_tokens. Raises UserError if one of them does not fit into the context."""
    encoding = policy.encoding
    lengths = []
    for prompt, answer in zip(prompts, answers, strict=True):
        n_answer = policy.cfg.max_new_tokens
        if answer is not None:
            n_answer = len(encoding.answer(answer))
        lengths.append(len(encoding.prompt(prompt)) + n_answer)
    longest = max(lengths)
    block_size = policy.model.block_size
    if longest > block_size:
        raise UserError(f"the longest prompt with its answer has {longest:,} tokens, but the "
                        f"context of the model has {block_size:,}: shorten it, set a smaller "
                        "--max_new_tokens, or start from a model with a larger block_size")
    return lengths


def check_prompts(examples, policy):
    """Raises UserError if a sampled answer to one of the Examples may not fit into the context."""
    prompts = [example.prompt for example in examples]
    check_length(prompts, [None] * len(prompts), policy)


# --------------------------------------------------------------------------------------------------
# Training


def steps(run, policy, log, signals, evaluate):
    """Yields the number of each step that is left. Between them, evaluates and saves the model at
    steps that are due and before a signal ends the run, and at the end says what to do next.

    evaluate: a function that returns values for the log, {name: number}, and a text to show. Raises
    Stopped if a signal ends the run."""
    cfg = policy.cfg
    meta = policy.encoding.meta
    signals.catch()
    while True:
        is_last = run.step >= cfg.max_iters
        if run.step % cfg.eval_interval == 0 or is_last or signals.arrived:
            # also before a signal ends the run: reward.py stores the scale of these weights in meta
            values, text = evaluate()
            log.evaluation(run.step, values)
            log.sample(text)
            if run.step > run.first_step:
                log.save(run, meta)
            if is_last or signals.arrived:
                break
        yield run.step
    log.finish(run, meta, signals)


def step_examples(examples, step, count, seed):
    """The `count` examples of a step. Each epoch has all of them, in an order that is a function of
    (seed, epoch)."""
    # training_starts leaves room for a target after the last sequence, which examples do not need
    starts = training_starts(step * count, count, len(examples) + 1, 1, seed)
    return [examples[start] for start in starts]


def update(run, loss, cfg):
    """One step of AdamW, as in train.py. Returns the norm of the gradient before clipping. Raises
    UserError if the loss or the gradient is not finite."""
    lr = learning_rate(run.step, cfg)
    run.optimizer.set_learning_rate(lr)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), cfg.grad_clip)
    if not torch.isfinite(loss + norm):
        raise UserError(f"loss or gradients are not finite after step {run.step}: try a "
                        f"learning_rate below {cfg.learning_rate}")
    run.optimizer.step(skip=torch.zeros((), device=loss.device))
    run.model.zero_grad(set_to_none=True)
    run.step += 1
    run.sequences += cfg.batch_size
    return norm.item()
