"""Stage 3, reinforcement learning (RL): answers with a high reward become more likely.

    python stages/rl.py config/stages/sums_rl.py       the reward is a rule
    python stages/rl.py config/stages/verse_rl.py      the reward is a model (stages/reward.py)

Each step samples a group of answers to each of some prompts. An answer with more reward than the
mean of its group becomes more likely, one with less becomes less likely: the policy gradient
(Williams 1992) with the mean of the group as baseline (Shao et al. 2024, GRPO). The penalty
beta * KL keeps the model close to the one that it started from (Ziegler et al. 2019), because a
learned reward is only right about answers like those that it was trained on.

Each batch is used for one update, so the ratios and the clipping of PPO would have no effect. Like
Liu et al. (2025, "Dr. GRPO"), we divide neither by the standard deviation of a group nor by the
length of an answer: both would weigh answers by something other than their reward.

Left out: a value network; several updates per batch; several processes.
"""

if __name__ == "__main__":  # before torch is imported
    import sys
    from pathlib import Path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from internals.cores import share_cores
    share_cores()

import functools
import math
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

import torch

from internals.errors import UserError, one_line_errors
from internals.limits import Count, Fraction, NonNegative, Positive
from internals.stagelog import StageLog
from stages import common
from stages.diagnosis import check_gate, diagnosis
from stages.frozen import Frozen
from stages.tasks import open_task

PANELS = {"reward": ("reward", "test_reward"),
          "reward by the rule": ("rule", "test_rule", "right"),
          "KL to the start (nats per answer)": ("kl", "test_kl"),
          "entropy (nats per token)": ("entropy",)}


@dataclass
class RLConfig(common.StageConfig):
    """The settings of reinforcement learning."""

    # -- output
    out_dir: str = "out-rl"  # folder for the checkpoint, metrics and the picture
    # -- model and task
    init_from: str = "out-sft"  # a model, or resume
    # -- optimizer (AdamW)
    batch_size: Count = 256  # answers per step
    max_iters: Count = 100  # steps
    learning_rate: Positive = 1e-4  # peak; after the warmup it decays linearly to 0
    # -- policy gradient
    reward: str = "rule"  # that of the task, or the folder of a reward model
    group_size: Count = 8  # answers per prompt
    # group: the reward minus the mean of its group. reward: the reward itself. If it is 1 for right
    # and 0 for wrong, this is SFT on the model's own right answers (rejection sampling)
    advantage: Literal["group", "reward"] = "group"
    beta: NonNegative = 0.05  # weight of the KL penalty
    temperature: Positive = 1.0  # of sampling
    # RL does not begin if fewer prompts have a right answer among 8; for tasks with right answers
    gate: Fraction = 0.9


# --------------------------------------------------------------------------------------------------
# The loss


def advantages(rewards, cfg):
    """How much better each answer is than expected: (B,) -> (B,). Groups are neighbors.

    Subtracting the mean of the group lowers the variance of the gradient. Its expectation stays the
    same up to a factor of (group_size - 1) / group_size, because each answer is part of its mean.
    """
    if cfg.advantage == "reward":
        return rewards
    groups = rewards.view(-1, cfg.group_size)
    above_mean = groups - groups.mean(dim=1, keepdim=True)
    return above_mean.flatten()


def log_probs(model, ids, policy):
    """The log-probabilities (B, T - 1, V) of all tokens at positions 1 to T - 1 of ids. They are
    those of the distribution that is sampled from, with its temperature."""
    inputs = ids[:, :-1]
    logits, _ = model(inputs, inputs)  # with targets, it returns the logits of all positions
    logits = logits[:, :, :policy.encoding.n_vocab]  # later ids pad the vocabulary
    logits = logits / policy.cfg.temperature
    return logits.log_softmax(dim=-1)


def of_ids(log_p, ids):
    """The log-probabilities (B, T - 1) of the tokens that ids has."""
    next_ids = ids[:, 1:, None]  # (B, T - 1, 1)
    return log_p.gather(2, next_ids).squeeze(2)


def kl_divergence(log_p, log_q):
    """KL(p || q) in nats, over the vocabulary: (..., V) -> (...). It is exact, not an estimate from
    the sampled token."""
    difference = log_p.exp() * (log_p - log_q)
    return difference.sum(dim=-1)


def entropy(log_p):
    """The entropy of a distribution over the vocabulary in nats: (..., V) -> (...)."""
    surprise = log_p.exp() * -log_p
    return surprise.sum(dim=-1)


def policy_loss(log_p, log_q, ids, is_answer, advantage, cfg):
    """The loss whose negative gradient raises the reward minus beta * KL; and the KL of an answer
    in nats.

    log_p, log_q: of the policy and of the reference, (B, T - 1, V). advantage: (B,). Each token of
    an answer is credited with the advantage of the whole answer. The gradient of KL leaves out that
    a token also decides in which contexts the later ones are sampled (docs/stages.md)."""
    is_prompt = ~is_answer[:, 1:]  # and padding
    log_chosen = of_ids(log_p, ids)  # (B, T - 1)
    log_chosen = log_chosen.masked_fill(is_prompt, 0.0)
    gain = advantage[:, None] * log_chosen
    kl = kl_divergence(log_p, log_q)
    kl = kl.masked_fill(is_prompt, 0.0)
    total = (cfg.beta * kl - gain).sum()
    n = len(ids)
    loss = total / (n * cfg.max_new_tokens)
    kl_per_answer = kl.sum().item() / n
    return loss, kl_per_answer


# --------------------------------------------------------------------------------------------------
# Training


def margin(values):
    """The 95% interval of the mean of values is the mean ± this."""
    standard_error = pstdev(values) / math.sqrt(len(values))
    return 1.96 * standard_error


@torch.no_grad()
def evaluate(policy, frozen):
    """Sample one answer to each test prompt. Returns values for the log, and a text. If the task
    has right answers, "right" is the share of them by greedy decoding."""
    cfg = policy.cfg
    tests = policy.task.tests[:cfg.eval_prompts]
    rewards = []
    rule = []
    kl = []
    for first in range(0, len(tests), cfg.batch_size):
        some = tests[first:first + cfg.batch_size]
        found = policy.answer(some, (2, first), cfg.temperature)
        ids, is_answer = policy.encoding.pad(found.prompts, found.answers)
        log_p = log_probs(policy.model, ids, policy)
        log_q = log_probs(frozen.reference, ids, policy)
        by_token = kl_divergence(log_p, log_q) * is_answer[:, 1:]
        reward = frozen.rewards(found, ids, is_answer)
        rewards += reward.tolist()
        rule += found.rule
        kl += by_token.sum(dim=1).tolist()
    values = {
        "test_reward": fmean(rewards),
        "test_rule": fmean(rule),
        "rule_margin": margin(rule),
        "test_kl": fmean(kl)}
    if policy.task.is_chat:
        greedy = policy.greedy(tests)
        values["right"] = greedy.mean_rule()
        values["right_margin"] = margin(greedy.rule)
    return values, found.shown()


def train(run, policy, frozen, log, signals):
    """Sample, reward and update until the run is done. Returns the metrics: a list of dicts.

    The model stays in eval mode: with dropout, the update would be that of another model than the
    one that was sampled from."""
    cfg = policy.cfg
    encoding = policy.encoding
    n_prompts = cfg.batch_size // cfg.group_size
    has_end = encoding.end is not None
    evaluation = functools.partial(evaluate, policy, frozen)
    for step in common.steps(run, policy, log, signals, evaluation):
        # sample group_size answers to each prompt, and reward them
        prompts = common.step_examples(policy.task.prompts, step, n_prompts, cfg.seed)
        found = policy.answer_each(prompts, cfg.group_size, (3, step), cfg.temperature)
        ids, is_answer = encoding.pad(found.prompts, found.answers)
        rewards = frozen.rewards(found, ids, is_answer)
        advantage = advantages(rewards, cfg)

        # make the better ones more likely
        log_p = log_probs(policy.model, ids, policy)
        with torch.no_grad():
            log_q = log_probs(frozen.reference, ids, policy)
        loss, kl = policy_loss(log_p, log_q, ids, is_answer, advantage, cfg)
        norm = common.update(run, loss, cfg)

        groups = rewards.view(-1, cfg.group_size)
        highest = groups.amax(dim=1)
        lowest = groups.amin(dim=1)
        is_same = highest == lowest
        by_token = entropy(log_p.detach())  # (B, T - 1)
        in_answers = by_token[is_answer[:, 1:]]
        log.step(run.step, {
            "loss": loss.item(),
            "norm": norm,
            "reward": rewards.mean().item(),
            "rule": found.mean_rule(),
            "kl": kl,
            "entropy": in_answers.mean().item(),
            "length": len(in_answers) / len(ids),
            "ended": found.ended(encoding.end),
            "no_variance": is_same.float().mean().item()})
    problem = diagnosis(log.metrics, has_end, cfg)
    if problem:
        log.say(f"the last steps learned nothing: {problem}")
    return log.metrics


def main(argv=None):
    """Reinforcement learning with the settings of a command line. Returns the metrics."""
    cfg, start = common.read_stage(__doc__, RLConfig, argv, fixed=["reward"])
    if cfg.batch_size % cfg.group_size:
        raise UserError(f"batch_size={cfg.batch_size} must be a multiple of group_size="
                        f"{cfg.group_size}")
    if cfg.advantage == "group" and cfg.group_size == 1:
        raise UserError("group_size=1 makes every advantage 0: the mean of a group is then its "
                        "only answer; set a larger --group_size, or --advantage=reward")
    task = open_task(cfg.task, cfg.data_dir)
    with common.opened(cfg, start) as (world, signals):
        run, policy = common.begin_stage(cfg, start, task, world)
        policy.model.eval()
        common.check_prompts(task.prompts + task.tests, policy)
        frozen = Frozen(cfg, start.meta, world.device)
        if run.step == 0 and task.is_chat and cfg.reward == "rule":
            check_gate(policy)
        with StageLog(run, cfg, world, PANELS) as log:
            frozen.write_copies()
            return train(run, policy, frozen, log, signals)


if __name__ == "__main__":
    with one_line_errors():
        main()
