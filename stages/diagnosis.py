"""Says in words when reinforcement learning has nothing to learn from."""

import torch

from internals.errors import UserError, say

PROMPTS = 125
SAMPLES = 8  # per prompt


def check_gate(policy):
    """Raises UserError if too few test prompts have a right answer among eight samples."""
    cfg = policy.cfg
    tests = policy.task.tests[:PROMPTS]
    found = policy.answer_each(tests, SAMPLES, (1,), cfg.temperature)
    rule = torch.tensor(found.rule)
    solved = rule.view(-1, SAMPLES).amax(dim=1)
    share = solved.mean().item()
    say(f"pass@{SAMPLES}: {share:.1%} of {len(tests)} test prompts have a right answer among "
        f"{SAMPLES} samples; {found.mean_rule():.1%} of all samples are right")
    if share < cfg.gate:
        raise UserError(
            f"pass@{SAMPLES} is {share:.1%}, below gate={cfg.gate}: RL makes right answers more "
            "likely, but it cannot reinforce an answer that is never sampled; train longer with "
            "stages/sft.py first, or set --gate=0 to begin anyway")


def diagnosis(metrics, has_end, cfg):
    """What keeps the last steps from learning, in words; "" if nothing does. cfg: an RLConfig."""
    last = [entry for entry in metrics if "no_variance" in entry][-5:]
    found = []
    if last and has_end and max(entry["ended"] for entry in last) == 0:
        found.append("no answer ends: all are cut at max_new_tokens, so the reward never sees a "
                     "complete answer; raise --max_new_tokens, or train longer with stages/sft.py")
    has_groups = cfg.group_size > 1  # a single answer has the reward of its group
    if last and has_groups and min(entry["no_variance"] for entry in last) > 0.95:
        effect = ""
        if cfg.advantage == "group":
            effect = ", so all advantages are 0"
        reward = last[-1]["reward"]
        found.append(f"in nearly all groups, the answers have the same reward (mean {reward:.3g}): "
                     f"no answer is better than another{effect}; the task is solved or too "
                     "hard, or the reward does not distinguish these answers")
    return "; ".join(found)
