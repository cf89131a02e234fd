"""What the three stages share: settings, prompts and answers as token ids, sampling, an update."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch

from internals import cpu
from internals.chat import chat_format
from internals.errors import UserError
from internals.limits import Count, Natural, NonNegative, Positive, Probability, Seed
from internals.starting import starting_point
from model import GPT
from prepare import tokenizer_from_meta
from sample import KVCache, Sampler, stream
from stages.tasks import Task
from train import learning_rate, training_starts

SAMPLED = 128  # prompts that are answered at once: the keys and values of more need more memory


@dataclass
class StageConfig:
    """The settings that all stages have."""

    # -- output
    out_dir: str = "out-stage"  # folder for the checkpoint, metrics and the picture
    eval_interval: Count = 50  # steps between evaluations; each saves a checkpoint
    log_interval: Count = 10  # steps between log lines
    # -- model and task
    init_from: str = "out-quickstart"  # a model, or resume
    task: str = "sums"  # sums, instructions, verse, or a .jsonl file with prompt and answer
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


def start_stage(given, schema):
    """The settings of a stage, and the Checkpoint that it starts from. given: the settings that are
    set explicitly. Raises UserError if it is not the checkpoint of a trained model."""
    cfg, _, start = starting_point(given, schema, learning_rate)
    if start.model is None:
        raise UserError(f"init_from={given['init_from']} is not a trained model: a stage starts "
                        "from the folder of one, or resumes with --init_from=resume")
    return cfg, start


# --------------------------------------------------------------------------------------------------
# Prompts and answers as token ids


class Encoding:
    """How prompts and answers become token ids: with the chat format, or as plain text.

    meta: of the model. n_vocab: the vocabulary size. end: the id of the token that ends an answer;
    None for plain text. device: of the tensors that `pad` returns."""

    def __init__(self, meta, is_chat, device):
        self.meta = meta
        self.device = device
        self.tokenizer = tokenizer_from_meta(meta)
        self.n_vocab = self.tokenizer.n_vocab
        self.chat = None
        self.end = None
        if is_chat:
            self.chat = chat_format(meta)
            if self.chat is None:
                raise UserError("the model has no chat format: train it with stages/sft.py first")
            self.end = self.ids(self.chat.end)[0]

    def ids(self, text):
        return self.tokenizer.encode(text, special=True).tolist()

    def prompt(self, text):
        """The ids of a prompt, up to the token after which the answer begins."""
        if self.chat:
            text = self.chat.prompt(text)
        return self.ids(text)

    def answer(self, text):
        """The ids of an answer, with the end token."""
        if self.chat:
            text = self.chat.answer(text)
        return self.ids(text)

    def text(self, answer):
        """The text of an answer, a list of ids, without the end token."""
        if answer and answer[-1] == self.end:
            answer = answer[:-1]
        return self.tokenizer.decode(answer)

    def pad(self, prompts, answers):
        """Two lists of lists of ids -> ids (B, T), and is_answer (B, T), which is True where a
        token belongs to an answer.

        Shorter rows are padded with id 0 at their end. This changes nothing: attention is causal,
        so no token sees what follows it, and is_answer is False there, so no loss does either."""
        B = len(prompts)
        T = 0
        for prompt, answer in zip(prompts, answers, strict=True):
            T = max(T, len(prompt) + len(answer))
        ids = torch.zeros(B, T, dtype=torch.int64)
        is_answer = torch.zeros(B, T, dtype=torch.bool)
        for row in range(B):
            begin = len(prompts[row])
            end = begin + len(answers[row])
            ids[row, :end] = torch.tensor(prompts[row] + answers[row])
            is_answer[row, begin:end] = True
        return ids.to(self.device), is_answer.to(self.device)


def check_length(longest, block_size, what):
    """Raises UserError if a prompt with its answer does not fit into the context."""
    if longest > block_size:
        raise UserError(f"{what} take up to {longest:,} tokens, but the context of the model has "
                        f"{block_size:,}: shorten them, or start from a model with a larger "
                        "block_size")


def step_examples(examples, step, count, seed):
    """The `count` examples of a step. Each epoch has all of them, in an order that is a function of
    (seed, epoch)."""
    # training_starts leaves room for a target after the last sequence, which examples do not need
    starts = training_starts(step * count, count, len(examples) + 1, 1, seed)
    return [examples[start] for start in starts]


# --------------------------------------------------------------------------------------------------
# Sampling, with sample.py and its KV cache


@dataclass
class Answered:
    """Sampled answers to examples: prompts and answers as ids, the log-probabilities of the tokens
    of each answer, the answers as text, and their rewards by the rule of the task."""

    examples: list
    prompts: list
    answers: list
    logprobs: list
    texts: list
    rule: list

    def mean_rule(self):
        return sum(self.rule) / len(self.rule)

    def ended(self, end):
        """The share of the answers that end with the id `end`; the others are cut."""
        ended = [answer[-1] == end for answer in self.answers]
        return sum(ended) / len(ended)

    def shown(self):
        """The first two prompts and answers, to be read."""
        lines = []
        for example, text in zip(self.examples[:2], self.texts[:2], strict=True):
            lines.append(f"{example.prompt} > {text}")
        return "\n".join(lines)


@dataclass
class Policy:
    """A model that answers the prompts of a task; in RL, what chooses an action is called so."""

    model: GPT
    task: Task
    encoding: Encoding
    cfg: StageConfig

    def answer(self, examples, purpose, temperature=1.0, top_k=None):
        """Sample an answer to each Example, of at most cfg.max_new_tokens tokens; returns Answered.

        purpose: a tuple of whole numbers, such as (2, step). The random numbers of answer i are a
        function of (cfg.seed, purpose, i). The model must be in eval mode."""
        encoding = self.encoding
        prompts = [encoding.prompt(example.prompt) for example in examples]
        seeds = [mix(self.cfg.seed, *purpose, i) for i in range(len(prompts))]
        answers = [None] * len(prompts)
        logprobs = [None] * len(prompts)
        for rows in batches(prompts):
            idx = torch.tensor([prompts[row] for row in rows], device=encoding.device)
            row_seeds = [seeds[row] for row in rows]
            sampler = Sampler(row_seeds, encoding.n_vocab, temperature, top_k)
            ids, scores = continuations(
                self.model, idx, sampler, encoding.end, self.cfg.max_new_tokens)
            for row, new, new_scores in zip(rows, ids, scores, strict=True):
                length = len(new)
                if encoding.end in new:  # what follows it is not part of the answer
                    length = new.index(encoding.end) + 1
                answers[row] = new[:length]
                logprobs[row] = new_scores[:length]
        texts = [encoding.text(ids) for ids in answers]
        rule = []
        for example, text in zip(examples, texts, strict=True):
            rule.append(self.task.rule(example, text))
        return Answered(examples, prompts, answers, logprobs, texts, rule)

    def greedy(self, examples):
        """The answers of greedy decoding, as Answered."""
        return self.answer(examples, purpose=(), temperature=0.0)


def mix(*numbers):
    """A seed below 2**63 that is a function of whole numbers."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def batches(prompts):
    """Yields lists of at most SAMPLED rows whose prompts are equally long, so that they need no
    padding."""
    rows_of = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(len(prompt), []).append(row)
    for rows in rows_of.values():
        for first in range(0, len(rows), SAMPLED):
            yield rows[first:first + SAMPLED]


@torch.no_grad()
def continuations(model, idx, sampler, end, max_new_tokens):
    """Continue idx (B, T) until every row has the id `end`. Returns the new ids and their
    log-probabilities, a list of lists each."""
    tokens = []
    logprobs = []
    ended = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)
    longest = idx.shape[1] + max_new_tokens  # a cache for the whole context would be slower
    cache = KVCache(len(idx), longest, cpu.cache_dtype(model))
    new = stream(model, idx, sampler, cache)
    for ids, logits in itertools.islice(new, max_new_tokens):
        if sampler.temperature > 0:
            scores = log_probs(logits, sampler.temperature, sampler.top_k).gather(1, ids)
        else:
            scores = torch.zeros(ids.shape)  # greedy: the choice is certain
        tokens.append(ids)
        logprobs.append(scores)
        ended |= ids == end
        if ended.all():
            break
    return torch.cat(tokens, dim=1).tolist(), torch.cat(logprobs, dim=1).tolist()


def log_probs(logits, temperature, top_k):
    """The log-probabilities (..., V) with which sample.py chooses a token from logits (..., V)."""
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        most_likely = logits.topk(top_k, dim=-1).values
        least = most_likely[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return logits.log_softmax(dim=-1)


# --------------------------------------------------------------------------------------------------
# One update


def update(run, loss, cfg):
    """One step of AdamW, as in train.py. Returns the norm of the gradient before clipping. Raises
    UserError if the loss or the gradient is not finite."""
    lr = learning_rate(run.step, cfg)
    for group in run.optimizer.param_groups:
        group["lr"] = lr * group["scale"]
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
