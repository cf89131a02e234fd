"""Answers: prompts and answers as token ids, and sampling with sample.py and its KV cache."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from internals import cpu
from internals.chat import chat_format
from internals.errors import UserError
from model import GPT
from prepare import tokenizer_from_meta
from sample import KVCache, Sampler, stream
from stages.tasks import Task

SCORE_TOKENS = {"char": "★", "gpt2": "<|score|>"}  # their logit is the score of a reward model
SAMPLED = 128  # prompts that are answered at once: the keys and values of more need more memory


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
        try:
            return self.tokenizer.encode(text, special=True).tolist()
        except UserError as error:
            advice = "or add them with --new_chars of stages/sft.py"
            raise UserError(f"{error}, {advice}") from None

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
            both = prompts[row] + answers[row]
            begin = len(prompts[row])
            end = len(both)
            ids[row, :end] = torch.tensor(both)
            is_answer[row, begin:end] = True
        return ids.to(self.device), is_answer.to(self.device)

    def pad_texts(self, prompts, answers):
        """The same for two lists of texts."""
        prompts = [self.prompt(text) for text in prompts]
        answers = [self.answer(text) for text in answers]
        return self.pad(prompts, answers)


def score_token(meta):
    """The id of the token whose logit is the score. meta: of a reward model."""
    token = SCORE_TOKENS[meta["tokenizer"]]
    if meta["tokenizer"] == "char":
        return meta["chars"].index(token)
    return meta["added"][token]


@dataclass
class Answered:
    """Sampled answers to examples: prompts and answers as ids, the answers as text, and their
    rewards by the rule of the task."""

    examples: list
    prompts: list
    answers: list
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
        for example, text in zip(self.examples, self.texts, strict=True):
            lines.append(f"{example.prompt} > {text}")
        return "\n".join(lines[:2])


@dataclass
class Policy:
    """A model that answers the prompts of a task; in RL, what chooses an action is called so.
    cfg: a StageConfig."""

    model: GPT
    task: Task
    encoding: Encoding
    cfg: object

    def answer(self, examples, purpose, temperature=1.0):
        """Sample an answer to each Example, of at most cfg.max_new_tokens tokens; returns Answered.

        purpose: a tuple of whole numbers, such as (2, step). The random numbers of answer i are a
        function of (cfg.seed, purpose, i). The model must be in eval mode."""
        encoding = self.encoding
        prompts = [encoding.prompt(example.prompt) for example in examples]
        answers = [None] * len(prompts)
        for rows in batches(prompts):
            idx = [prompts[row] for row in rows]
            idx = torch.tensor(idx, device=encoding.device)
            seeds = [mix(self.cfg.seed, *purpose, row) for row in rows]
            sampler = Sampler(seeds, encoding.n_vocab, temperature)
            ids = continuations(self.model, idx, sampler, encoding.end, self.cfg.max_new_tokens)
            for row, new in zip(rows, ids, strict=True):
                if encoding.end in new:  # what follows it is not part of the answer
                    new = new[:new.index(encoding.end) + 1]
                answers[row] = new
        texts = []
        rule = []
        for example, ids in zip(examples, answers, strict=True):
            text = encoding.text(ids)
            texts.append(text)
            rule.append(self.task.rule(example, text))
        return Answered(examples, prompts, answers, texts, rule)

    def answer_each(self, examples, count, purpose, temperature):
        """Sample `count` answers to each Example, which are neighbors in what it returns."""
        repeated = []
        for example in examples:
            repeated += [example] * count
        return self.answer(repeated, purpose, temperature)

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
    """Continue idx (B, T) until every row has the id `end`. Returns the new ids, a list of lists.
    """
    tokens = []
    ended = torch.zeros_like(idx[:, :1], dtype=torch.bool)  # (B, 1)
    longest = idx.shape[1] + max_new_tokens  # a cache for the whole context would be slower
    cache = KVCache(len(idx), longest, cpu.cache_dtype(model))
    new = stream(model, idx, sampler, cache)
    for ids, _ in itertools.islice(new, max_new_tokens):
        tokens.append(ids)
        ended |= ids == end
        if ended.all():
            break
    return torch.cat(tokens, dim=1).tolist()
