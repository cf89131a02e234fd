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

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from configurator import build, read_settings
from internals import checkpoint, outdir
from internals.errors import UserError, one_line_errors
from internals.limits import Count, Fraction, NonNegative, Positive
from internals.parallel import World
from internals.signals import StopSignals
from internals.stagelog import StageLog
from internals.starting import read_model
from model import GPT, GPTConfig
from stages.common import (
    Encoding,
    Policy,
    StageConfig,
    check_length,
    log_probs,
    start_stage,
    step_examples,
    update,
)
from stages.reward import RewardModel
from stages.tasks import open_task
from train import begin

PANELS = {"reward": ("reward", "test_reward"),
          "reward by the rule": ("rule", "test_rule", "right"),
          "KL to the start (nats per answer)": ("kl", "test_kl"),
          "entropy (nats per token)": ("entropy",)}
GATE_PROMPTS = 125  # answered group_size times before the first step
TARGET_LENGTH = 20  # characters, for reward=length


@dataclass
class RLConfig(StageConfig):
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
    # rule (that of the task), length (-|20 - characters|), or the folder of a reward model
    reward: str = "rule"
    group_size: Count = 8  # answers per prompt
    # group: the reward minus the mean of its group. reward: the reward itself. If it is 1 for right
    # and 0 for wrong, this is SFT on the model's own right answers (rejection sampling)
    advantage: Literal["group", "reward"] = "group"
    beta: NonNegative = 0.05  # weight of the KL penalty
    temperature: Positive = 1.0  # of sampling
    top_k: Count | None = None  # sample from the k most likely tokens; None: from all
    # RL does not begin if fewer prompts have a right answer among group_size; for tasks with right
    # answers only
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


def token_log_probs(model, ids, n_vocab, temperature, top_k=None):
    """The log-probabilities (B, T - 1, n_vocab) of all tokens at positions 1 to T - 1 of ids.

    They must be those of the distribution that was sampled from, with its temperature and top_k."""
    inputs = ids[:, :-1]
    logits, _ = model(inputs, inputs)  # with targets, it returns the logits of all positions
    return log_probs(logits[:, :, :n_vocab], temperature, top_k)


def chosen(log_p, ids):
    """The log-probabilities (B, T - 1) of the tokens that ids has."""
    next_ids = ids[:, 1:, None]  # (B, T - 1, 1)
    return log_p.gather(2, next_ids).squeeze(2)


def kl_divergence(log_p, log_q):
    """KL(p || q) in nats, over the vocabulary: (..., V) -> (...). It is exact, not an estimate from
    the sampled token. Tokens with p = 0, which top_k excludes, add nothing."""
    possible = log_p > -torch.inf
    difference = torch.where(possible, log_p - log_q, 0.0)
    weighted = log_p.exp() * difference
    return weighted.sum(dim=-1)


def mean_entropy(log_p, is_answer):
    """The mean entropy of the next-token distribution along answers, in nats per token."""
    possible = log_p > -torch.inf
    surprise = torch.where(possible, -log_p, 0.0)
    entropy = (log_p.exp() * surprise).sum(dim=-1)  # (B, T - 1)
    return entropy[is_answer[:, 1:]].mean().item()


def policy_loss(log_p, log_q, ids, is_answer, advantage, cfg):
    """The loss whose negative gradient raises the reward minus beta * KL; and the KL of an answer
    in nats.

    log_p, log_q: of the policy and of the model that it started from, (B, T - 1, V). advantage (B,)
    Each token of an answer is credited with the advantage of the whole answer."""
    is_prompt = ~is_answer[:, 1:]  # and padding
    log_chosen = chosen(log_p, ids).masked_fill(is_prompt, 0.0)  # (B, T - 1)
    gain = advantage[:, None] * log_chosen
    kl = kl_divergence(log_p, log_q).masked_fill(is_prompt, 0.0)
    total = (cfg.beta * kl - gain).sum()
    n = len(ids)
    return total / (n * cfg.max_new_tokens), kl.sum().item() / n


# --------------------------------------------------------------------------------------------------
# Rewards, and what can be wrong with them


@dataclass
class Judge:
    """Rewards answers, with the reward that is set. reward_model: a RewardModel, or None."""

    cfg: RLConfig
    encoding: Encoding
    reward_model: RewardModel | None

    def rewards(self, found):
        """The rewards of Answered answers, a list of numbers."""
        if self.cfg.reward == "rule":
            return found.rule
        if self.cfg.reward == "length":
            lengths = [len(text) for text in found.texts]
            return [-abs(TARGET_LENGTH - length) for length in lengths]
        return self.reward_model.rewards(found, self.encoding)


def sample(policy, examples, purpose):
    """Answered, with the temperature and top_k that are set."""
    cfg = policy.cfg
    return policy.answer(examples, purpose, cfg.temperature, cfg.top_k)


def repeated(examples, group_size):
    """Each example group_size times, side by side."""
    return [example for example in examples for _ in range(group_size)]


def check_gate(policy, log):
    """Raises UserError if too few test prompts have a right answer among group_size samples."""
    cfg = policy.cfg
    tests = policy.task.tests[:GATE_PROMPTS]
    found = sample(policy, repeated(tests, cfg.group_size), purpose=(1,))
    rule = torch.tensor(found.rule)
    solved = rule.view(-1, cfg.group_size).amax(dim=1)
    share = solved.mean().item()
    log.say(f"pass@{cfg.group_size}: {share:.1%} of {len(tests)} test prompts have a right answer "
            f"among {cfg.group_size} samples; {found.mean_rule():.1%} of all samples are right")
    if share < cfg.gate:
        raise UserError(
            f"pass@{cfg.group_size} is {share:.1%}, below gate={cfg.gate}: RL makes right answers "
            "more likely, but it cannot reinforce an answer that is never sampled; train longer "
            "with stages/sft.py first, or set --gate=0 to begin anyway")


def diagnosis(metrics, has_end):
    """What keeps the last steps from learning, in words; "" if nothing does."""
    last = [entry for entry in metrics if "no_variance" in entry][-5:]
    found = []
    if last and has_end and max(entry["ended"] for entry in last) == 0:
        found.append("no answer ends: all are cut at max_new_tokens, so the reward never sees a "
                     "complete answer; raise --max_new_tokens, or train longer with stages/sft.py")
    if last and min(entry["no_variance"] for entry in last) > 0.95:
        found.append("in nearly all groups, the answers have the same reward (mean "
                     f"{last[-1]['reward']:.3g}): no answer is better than another, so all "
                     "advantages are 0; the task is solved or too hard, or the reward does not "
                     "distinguish these answers")
    return "; ".join(found)


# --------------------------------------------------------------------------------------------------
# Training


@torch.no_grad()
def evaluate(policy, reference, judge):
    """Sample one answer to each test prompt. Returns values for the log, and an Answered. If the
    task has right answers, "right" is the share of them by greedy decoding."""
    cfg = policy.cfg
    n_vocab = policy.encoding.n_vocab
    tests = policy.task.tests[:cfg.eval_prompts]
    reward = 0.0
    rule = 0.0
    kl = 0.0
    for first in range(0, len(tests), cfg.batch_size):
        some = tests[first:first + cfg.batch_size]
        found = sample(policy, some, purpose=(2, first))
        reward += sum(judge.rewards(found))
        rule += sum(found.rule)
        ids, is_answer = policy.encoding.pad(found.prompts, found.answers)
        log_p = token_log_probs(policy.model, ids, n_vocab, cfg.temperature, cfg.top_k)
        log_q = token_log_probs(reference, ids, n_vocab, cfg.temperature)
        by_token = kl_divergence(log_p, log_q)
        kl += by_token[is_answer[:, 1:]].sum().item()
    n = len(tests)
    values = {"test_reward": reward / n, "test_rule": rule / n, "test_kl": kl / n}
    if policy.task.is_chat:
        values["right"] = policy.greedy(tests).mean_rule()
    return values, found


def train(run, policy, reference, judge, log, signals):
    """Sample, reward and update until the run is done. Returns the metrics: a list of dicts.

    The model stays in eval mode: with dropout, the update would be that of another model than the
    one that was sampled from."""
    cfg = policy.cfg
    encoding = policy.encoding
    policy.model.eval()
    signals.catch()
    while True:
        is_last = run.step == cfg.max_iters
        if run.step % cfg.eval_interval == 0 or is_last:
            values, found = evaluate(policy, reference, judge)
            log.values(run.step, values)
            log.sample(found.shown())
            if run.step > run.first_step:
                log.save(run, encoding.meta)
        if is_last or signals.arrived:
            break

        # sample group_size answers to each prompt, and reward them
        n_prompts = cfg.batch_size // cfg.group_size
        examples = step_examples(policy.task.prompts, run.step, n_prompts, cfg.seed)
        examples = repeated(examples, cfg.group_size)
        found = sample(policy, examples, purpose=(3, run.step))
        rewards = torch.tensor(judge.rewards(found), dtype=torch.float32)
        rewards = rewards.to(encoding.device)
        advantage = advantages(rewards, cfg)

        # make the better ones more likely
        ids, is_answer = encoding.pad(found.prompts, found.answers)
        log_p = token_log_probs(policy.model, ids, encoding.n_vocab, cfg.temperature, cfg.top_k)
        with torch.no_grad():
            log_q = token_log_probs(reference, ids, encoding.n_vocab, cfg.temperature)
        loss, kl = policy_loss(log_p, log_q, ids, is_answer, advantage, cfg)
        norm = update(run, loss, cfg)

        if run.step % cfg.log_interval == 0:
            groups = rewards.view(-1, cfg.group_size)
            is_same = groups.amax(dim=1) == groups.amin(dim=1)
            log.values(run.step, {
                "loss": loss.item(),
                "norm": norm,
                "reward": rewards.mean().item(),
                "rule": found.mean_rule(),
                "kl": kl,
                "entropy": mean_entropy(log_p.detach(), is_answer),
                "length": is_answer.sum().item() / len(ids),
                "ended": found.ended(encoding.end),
                "no_variance": is_same.float().mean().item()})
    problem = diagnosis(log.metrics, has_end=encoding.end is not None)
    if problem:
        log.say(f"the last steps learned nothing: {problem}")
    log.finish(run, encoding.meta, signals)
    return log.metrics


def open_copy(cfg, path, name):
    """The Checkpoint of a model that does not change in the run. A new run copies it from `path`
    into out_dir, so that it resumes with the same weights, whatever `path` has then."""
    copy = Path(cfg.out_dir, name)
    if cfg.init_from != "resume":
        checkpoint.write(read_model(path), copy)
    return checkpoint.read(copy)


def main(argv=None):
    """Reinforcement learning with the settings of a command line. Returns the metrics."""
    given = read_settings(__doc__, RLConfig, argv=argv)
    cfg, start = start_stage(given, RLConfig)
    if cfg.batch_size % cfg.group_size:
        raise UserError(f"batch_size={cfg.batch_size} must be a multiple of group_size="
                        f"{cfg.group_size}")
    task = open_task(cfg.task, cfg.data_dir)
    model_cfg = build(GPTConfig, start.model_args)
    with World(cfg.device) as world, StopSignals() as signals:
        device = world.device
        encoding = Encoding(start.meta, task.is_chat, device)
        longest = 0
        for example in task.prompts + task.tests:
            longest = max(longest, len(encoding.prompt(example.prompt)))
        longest += cfg.max_new_tokens
        check_length(longest, model_cfg.block_size, "a prompt and max_new_tokens")
        with outdir.locked(cfg, world):
            judge = Judge(cfg, encoding, None)
            if cfg.reward not in ("rule", "length"):
                found = open_copy(cfg, cfg.reward, "reward.pt")
                judge.reward_model = RewardModel(found, cfg.reward, device)
            found = open_copy(cfg, cfg.init_from, "reference.pt")
            reference = GPT.from_weights(model_cfg, found.model).to(device)
            reference.eval()
            run = begin(cfg, model_cfg, start, world)
            run.model.eval()
            policy = Policy(run.model, task, encoding, cfg)
            with StageLog(run, cfg, world, PANELS) as log:
                has_gate = task.is_chat and cfg.reward == "rule" and cfg.gate > 0
                if run.step == 0 and has_gate:
                    check_gate(policy, log)
                return train(run, policy, reference, judge, log, signals)


if __name__ == "__main__":
    with one_line_errors():
        main()
