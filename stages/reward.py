"""Stage 2, a reward model: learn from pairs of answers what is preferred.

    python stages/reward.py config/stages/verse_reward.py
    python stages/reward.py --init_from=out-chat --task=questions.jsonl --pairs=ask
    python stages/reward.py --init_from=out-chat --task=questions.jsonl --pairs=pairs.jsonl

People can hardly say how good an answer is, but they can say which of two is better (Christiano et
al. 2017). The model of Bradley & Terry (1952) explains such choices by a score r of each answer:
one is preferred with probability sigmoid(r_chosen - r_rejected). The loss is minus its logarithm.

The score is read from the transformer that writes the answers: at each token it is the logit of one
more token of the vocabulary, ★ or <|score|>, which occurs in no text. That row of the LM head is
the linear layer which other programs put in place of the head, so the checkpoint has its usual
format.

Left out: rankings of more than two answers; several processes.
"""

if __name__ == "__main__":  # before torch is imported
    import sys
    from pathlib import Path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from internals.cores import share_cores
    share_cores()

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from internals.chat import add_tokens
from internals.errors import one_line_errors
from internals.limits import Count, Several
from internals.stagelog import StageLog
from stages import common
from stages import pairs as pairs_of
from stages.answers import SCORE_TOKENS, Encoding, Policy, score_token
from stages.tasks import open_task
from train import seed_step

PANELS = {"loss (nats per pair)": ("loss", "test_loss"),
          "accuracy on held-out pairs": ("accuracy", "accuracy_marked", "accuracy_worse_marked"),
          "correlation with the rule": ("correlation",)}


@dataclass
class RewardConfig(common.StageConfig):
    """The settings of a reward model."""

    # -- output
    out_dir: str = "out-reward"  # folder for the checkpoint, metrics and the picture
    # -- model and task
    eval_prompts: Several = 500  # prompts whose answers set the scale of scores
    # -- pairs
    # who prefers: rule (that of the task), ask (you, at the keyboard), or a .jsonl file of pairs
    # with prompt, chosen and rejected
    pairs: str = "rule"
    sampled_pairs: Count = 2560  # pairs of answers to sample; those with equal rewards are left out
    test_pairs: Count = 100  # pairs that are held out
    # a planted shortcut: in the training pairs, this text is the end of one answer
    mark: str = ""
    mark_on: Literal["chosen", "random"] = "chosen"  # the preferred answer, or either one
    # -- score
    score: Literal["mean", "last"] = "mean"  # over all tokens of the answer, or at its last token


# --------------------------------------------------------------------------------------------------
# The score of an answer, and the loss


def scores(model, ids, is_answer, token, where):
    """The scores (B,) of answers in ids (B, T). token: the id whose logit is the score. where:
    "mean" or "last", as in RewardConfig."""
    logits, _ = model(ids, ids)  # with targets, the model returns the logits of all positions
    by_token = logits[:, :, token]  # (B, T): the score of the text up to each token
    if where == "mean":
        in_answer = by_token * is_answer
        total = in_answer.sum(dim=1)
        count = is_answer.sum(dim=1)
        return total / count
    n_so_far = is_answer.cumsum(dim=1)
    last = n_so_far.argmax(dim=1, keepdim=True)  # (B, 1): the first position with the largest count
    return by_token.gather(1, last).squeeze(1)


def preference_loss(chosen, rejected):
    """Bradley-Terry: minus the log of the probability that the chosen answer is preferred."""
    log_p = F.logsigmoid(chosen - rejected)
    return -log_p.mean()


# --------------------------------------------------------------------------------------------------
# Training


def text_scores(policy, prompts, answers):
    """The scores (B,) of answers to prompts, two lists of texts."""
    encoding = policy.encoding
    token = score_token(encoding.meta)
    where = policy.cfg.score
    count = 2 * policy.cfg.batch_size  # as in a step; all at once need more memory
    found = []
    for first in range(0, len(prompts), count):
        last = first + count
        ids, is_answer = encoding.pad_texts(prompts[first:last], answers[first:last])
        found.append(scores(policy.model, ids, is_answer, token, where))
    return torch.cat(found)


def pair_scores(policy, pairs):
    """The scores of the chosen and of the rejected answers: (B,) each."""
    prompts = [pair["prompt"] for pair in pairs]
    chosen = [pair["chosen"] for pair in pairs]
    rejected = [pair["rejected"] for pair in pairs]
    both = text_scores(policy, prompts + prompts, chosen + rejected)
    return both.chunk(2)


def accuracy(policy, pairs):
    """The share of pairs in which the chosen answer has the higher score."""
    chosen, rejected = pair_scores(policy, pairs)
    agrees = chosen > rejected
    return agrees.float().mean().item()


@torch.no_grad()
def evaluate(policy, tests, answers):
    """Compare scores with the held-out pairs, and with the rule. Returns values for the log, and an
    empty text. Sets meta["reward"], which says how the scores are used."""
    cfg = policy.cfg
    policy.model.eval()
    chosen, rejected = pair_scores(policy, tests)
    loss = preference_loss(chosen, rejected)
    prompts = [each["prompt"] for each in answers]
    texts = [each["answer"] for each in answers]
    own = text_scores(policy, prompts, texts)
    rule = [float(each["rule"]) for each in answers]
    rule = torch.tensor(rule)
    both = torch.stack((own.cpu(), rule))
    correlation = torch.corrcoef(both)[0, 1]
    values = {
        "test_loss": loss.item(),
        "accuracy": accuracy(policy, tests),
        "correlation": correlation.item()}
    if cfg.mark:
        marked = pairs_of.with_marks(tests, cfg.mark, "chosen")
        values["accuracy_marked"] = accuracy(policy, marked)
        marked = pairs_of.with_marks(tests, cfg.mark, "rejected")
        values["accuracy_worse_marked"] = accuracy(policy, marked)
    policy.model.train()
    mean = own.mean().item()
    std = own.std().item()
    policy.encoding.meta["reward"] = {
        "score": cfg.score,
        "mean": mean,
        "std": max(std, 1e-3)}  # it is 0 if the model always answers the same
    return values, ""


def train(run, policy, pairs, answers, log, signals):
    """Train the reward model until the run is done. Returns the metrics: a list of dicts."""
    cfg = policy.cfg
    tests = pairs[:cfg.test_pairs]
    pairs = pairs[cfg.test_pairs:]
    if cfg.mark:
        pairs = pairs_of.with_marks(pairs, cfg.mark, cfg.mark_on)
    log.say(f"{len(pairs):,} pairs to learn from, and {len(tests)} that are held out")
    evaluation = functools.partial(evaluate, policy, tests, answers)
    for step in common.steps(run, policy, log, signals, evaluation):
        seed_step(cfg.seed, step, rank=0)  # for dropout
        some = common.step_examples(pairs, step, cfg.batch_size, cfg.seed)
        chosen, rejected = pair_scores(policy, some)
        loss = preference_loss(chosen, rejected)
        norm = common.update(run, loss, cfg)
        log.step(run.step, {"loss": loss.item(), "norm": norm})
    return log.metrics


def main(argv=None):
    """Train a reward model with the settings of a command line. Returns the metrics."""
    cfg, start = common.read_stage(__doc__, RewardConfig, argv, pairs_of.FIXED)
    task = open_task(cfg.task, cfg.data_dir)
    is_new = cfg.init_from != "resume"
    writer_meta = start.meta
    if is_new:
        token = SCORE_TOKENS[start.meta["tokenizer"]]
        start = add_tokens(start, [token], cfg.seed)
    with common.opened(cfg, start) as (world, signals):
        run, policy = common.begin_stage(cfg, start, task, world)
        if is_new:  # the answers are written before the model learns to score, and without ★
            encoding = Encoding(writer_meta, task.is_chat, world.device)
            run.model.eval()
            writer = Policy(run.model, task, encoding, cfg)
            pairs, answers = pairs_of.collect(writer)
        else:
            pairs, answers = pairs_of.read(cfg.out_dir)
        prompts = [pair["prompt"] for pair in pairs]
        for side in ("chosen", "rejected"):
            texts = [pair[side] for pair in pairs]
            common.check_length(prompts, texts, policy)
        with StageLog(run, cfg, world, PANELS) as log:
            pairs_of.write(log.out_dir, pairs, answers)
            return train(run, policy, pairs, answers, log, signals)


if __name__ == "__main__":
    with one_line_errors():
        main()
