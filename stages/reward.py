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

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F

from configurator import build, read_settings
from internals import outdir
from internals.chat import add_tokens
from internals.errors import UserError, one_line_errors
from internals.files import replacing
from internals.limits import Count
from internals.parallel import World
from internals.signals import StopSignals
from internals.stagelog import StageLog
from model import GPT, GPTConfig
from stages.common import (
    Encoding,
    Policy,
    StageConfig,
    check_length,
    start_stage,
    step_examples,
    update,
)
from stages.tasks import open_task, read_json_lines, shuffled
from train import begin, seed_step

PANELS = {"loss (nats per pair)": ("loss", "test_loss"),
          "accuracy on held-out pairs": ("accuracy", "accuracy_marked", "accuracy_worse_marked"),
          "correlation with the rule": ("correlation",)}
SCORE_TOKENS = {"char": "★", "gpt2": "<|score|>"}
PAIR = ("prompt", "chosen", "rejected")  # what a line of pairs.jsonl has
ANSWER = ("prompt", "answer", "rule")  # what a line of answers.jsonl has


@dataclass
class RewardConfig(StageConfig):
    """The settings of a reward model."""

    # -- output
    out_dir: str = "out-reward"  # folder for the checkpoint, metrics and the picture
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
        total = (by_token * is_answer).sum(dim=1)
        return total / is_answer.sum(dim=1)
    positions = torch.arange(ids.shape[1], device=ids.device)
    last = (positions * is_answer).argmax(dim=1, keepdim=True)  # (B, 1)
    return by_token.gather(1, last)[:, 0]


def preference_loss(chosen, rejected):
    """Bradley-Terry: minus the log of the probability that the chosen answer is preferred."""
    return -F.logsigmoid(chosen - rejected).mean()


def score_token(meta):
    """The id of the token whose logit is the score."""
    token = SCORE_TOKENS[meta["tokenizer"]]
    if meta["tokenizer"] == "char":
        return meta["chars"].index(token)
    return meta["added"][token]


class RewardModel:
    """A trained reward model. Its scores are shifted and scaled so that the answers of the model
    before RL have mean 0 and standard deviation 1."""

    def __init__(self, start, path, device):
        """start: its Checkpoint; path: its name. Raises UserError if it is another model."""
        found = start.meta.get("reward")
        if not is_scale(found):
            raise UserError(f"reward={path} is not a reward model: train one with "
                            "stages/reward.py, or use --reward=rule")
        config = build(GPTConfig, start.model_args)
        self.model = GPT.from_weights(config, start.model).to(device)
        self.model.eval()
        self.token = score_token(start.meta)
        self.where = found["score"]
        self.mean = found["mean"]
        self.std = found["std"]

    @torch.no_grad()
    def rewards(self, found, encoding):
        """The rewards of Answered answers, a list of numbers."""
        ids, is_answer = encoding.pad(found.prompts, found.answers)
        raw = scores(self.model, ids, is_answer, self.token, self.where)
        standardized = (raw - self.mean) / self.std
        return standardized.tolist()


def is_scale(found):
    """Whether the "reward" in the meta of a checkpoint is what `evaluate` writes there."""
    if not isinstance(found, dict) or found.get("score") not in ("mean", "last"):
        return False
    mean = found.get("mean")
    std = found.get("std")
    return isinstance(mean, float) and isinstance(std, float) and std > 0


# --------------------------------------------------------------------------------------------------
# Pairs


def collect(policy):
    """Write what a new run learns from into out_dir: pairs.jsonl, and answers.jsonl, the model's
    answers to the test prompts, with which scores are compared and scaled."""
    cfg = policy.cfg
    if cfg.pairs in ("rule", "ask"):
        pairs = sample_pairs(policy)
    else:
        pairs = read_json_lines(cfg.pairs, PAIR)
    if len(pairs) <= cfg.test_pairs:
        raise UserError(f"there are only {len(pairs)} pairs, and test_pairs={cfg.test_pairs} are "
                        "held out: get more pairs, or set a smaller --test_pairs")
    # if there are fewer tests than eval_prompts, they are answered several times
    tests = step_examples(policy.task.tests, 0, cfg.eval_prompts, cfg.seed)
    found = policy.answer(tests, purpose=(1,))
    answers = []
    for example, text, rule in zip(tests, found.texts, found.rule, strict=True):
        answers.append({"prompt": example.prompt, "answer": text, "rule": str(rule)})
    write_json_lines(Path(cfg.out_dir, "pairs.jsonl"), shuffled(pairs))
    write_json_lines(Path(cfg.out_dir, "answers.jsonl"), answers)


def sample_pairs(policy):
    """Pairs of sampled answers to one prompt, of which the rule or the person at the keyboard
    prefers one."""
    cfg = policy.cfg
    examples = step_examples(policy.task.prompts, 0, cfg.sampled_pairs, cfg.seed)
    first = policy.answer(examples, purpose=(2,))
    second = policy.answer(examples, purpose=(3,))
    pairs = []
    for i, example in enumerate(examples):
        one = first.texts[i]
        other = second.texts[i]
        better = first.rule[i] - second.rule[i]
        if cfg.pairs == "ask":
            better = ask(example.prompt, one, other)
        if better is None:
            break
        if better > 0:
            pairs.append({"prompt": example.prompt, "chosen": one, "rejected": other})
        elif better < 0:
            pairs.append({"prompt": example.prompt, "chosen": other, "rejected": one})
    return pairs


def ask(prompt, one, other):
    """1, -1 or 0 if the first, the second or neither of two answers is better; None at the end of
    the input."""
    print(f"\n{prompt}\n--- 1:\n{one}\n--- 2:\n{other}")
    meaning = {"1": 1, "2": -1, "0": 0}
    choice = ""
    while choice not in meaning:
        try:
            choice = input("better (1, 2, 0: neither, Ctrl-D: enough)? ").strip()
        except EOFError:
            return None
    return meaning[choice]


def write_json_lines(path, objects):
    with replacing(path) as temporary:
        lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in objects]
        temporary.write_text("".join(lines), encoding="utf-8")


def with_marks(pairs, mark, mark_on):
    """The pairs with the mark as the end of the "chosen", the "rejected" or a "random" answer of
    each. Its length does not change."""
    result = []
    for number, pair in enumerate(pairs):
        side = mark_on
        if mark_on == "random":
            side = ("chosen", "rejected")[number % 2]
        text = pair[side]
        text = text[:len(text) - len(mark)] + mark
        result.append(pair | {side: text})
    return result


# --------------------------------------------------------------------------------------------------
# Training


def pair_scores(policy, pairs):
    """The scores of the chosen and of the rejected answers: (B,) each."""
    chosen = [pair["chosen"] for pair in pairs]
    rejected = [pair["rejected"] for pair in pairs]
    prompts = [pair["prompt"] for pair in pairs]
    both = text_scores(policy, prompts + prompts, chosen + rejected)
    return both.chunk(2)


def text_scores(policy, prompts, answers):
    """The scores (B,) of answers to prompts, two lists of texts."""
    encoding = policy.encoding
    prompts = [encoding.prompt(text) for text in prompts]
    answers = [encoding.answer(text) for text in answers]
    ids, is_answer = encoding.pad(prompts, answers)
    token = score_token(encoding.meta)
    return scores(policy.model, ids, is_answer, token, policy.cfg.score)


def accuracy(policy, pairs):
    """The share of pairs in which the chosen answer has the higher score."""
    chosen, rejected = pair_scores(policy, pairs)
    return (chosen > rejected).float().mean().item()


@torch.no_grad()
def evaluate(policy, tests, answers):
    """Values for the log, and the "reward" of meta, which says how the model is used."""
    cfg = policy.cfg
    policy.model.eval()
    chosen, rejected = pair_scores(policy, tests)
    values = {
        "test_loss": preference_loss(chosen, rejected).item(),
        "accuracy": accuracy(policy, tests)}
    if cfg.mark:
        marked = with_marks(tests, cfg.mark, "chosen")
        values["accuracy_marked"] = accuracy(policy, marked)
        marked = with_marks(tests, cfg.mark, "rejected")
        values["accuracy_worse_marked"] = accuracy(policy, marked)
    prompts = [each["prompt"] for each in answers]
    texts = [each["answer"] for each in answers]
    own = text_scores(policy, prompts, texts)
    rule = torch.tensor([float(each["rule"]) for each in answers])
    both = torch.stack((own.cpu(), rule))
    correlation = torch.corrcoef(both)[0, 1]
    values["correlation"] = correlation.item()
    policy.model.train()
    std = max(own.std().item(), 1e-3)  # if the model always answers the same
    return values, {"score": cfg.score, "mean": own.mean().item(), "std": std}


def train(run, policy, pairs, answers, log, signals):
    """Train the reward model until the run is done. Returns the metrics: a list of dicts."""
    cfg = policy.cfg
    meta = policy.encoding.meta
    tests = pairs[:cfg.test_pairs]
    pairs = pairs[cfg.test_pairs:]
    if cfg.mark:
        pairs = with_marks(pairs, cfg.mark, cfg.mark_on)
    signals.catch()
    while True:
        is_last = run.step == cfg.max_iters
        if run.step % cfg.eval_interval == 0 or is_last:
            values, scale = evaluate(policy, tests, answers)
            meta = meta | {"reward": scale}
            log.values(run.step, values)
            if run.step > run.first_step:
                log.save(run, meta)
        if is_last or signals.arrived:
            break
        seed_step(cfg.seed, run.step, rank=0)  # for dropout
        some = step_examples(pairs, run.step, cfg.batch_size, cfg.seed)
        chosen, rejected = pair_scores(policy, some)
        loss = preference_loss(chosen, rejected)
        norm = update(run, loss, cfg)
        if run.step % cfg.log_interval == 0:
            log.values(run.step, {"loss": loss.item(), "norm": norm})
    log.finish(run, meta, signals)
    return log.metrics


def longest_pair(pairs, encoding):
    """The length in tokens of the longest prompt with an answer."""
    longest = 0
    for pair in pairs:
        prompt = encoding.prompt(pair["prompt"])
        for side in ("chosen", "rejected"):
            answer = encoding.answer(pair[side])
            longest = max(longest, len(prompt) + len(answer))
    return longest


def main(argv=None):
    """Train a reward model with the settings of a command line. Returns the metrics."""
    given = read_settings(__doc__, RewardConfig, argv=argv)
    cfg, start = start_stage(given, RewardConfig)
    task = open_task(cfg.task, cfg.data_dir)
    with World(cfg.device) as world, StopSignals() as signals:
        device = world.device
        model_cfg = build(GPTConfig, start.model_args)
        encoding = Encoding(start.meta, task.is_chat, device)
        with outdir.locked(cfg, world):
            if cfg.init_from != "resume":
                writer = GPT.from_weights(model_cfg, start.model).to(device)
                collect(Policy(writer.eval(), task, encoding, cfg))
                token = SCORE_TOKENS[start.meta["tokenizer"]]
                start = add_tokens(start, [token], cfg.seed)
                model_cfg = build(GPTConfig, start.model_args)
                encoding = Encoding(start.meta, task.is_chat, device)
            pairs = read_json_lines(Path(cfg.out_dir, "pairs.jsonl"), PAIR)
            answers = read_json_lines(Path(cfg.out_dir, "answers.jsonl"), ANSWER)
            longest = longest_pair(pairs, encoding)
            check_length(longest, model_cfg.block_size, "the pairs")
            run = begin(cfg, model_cfg, start, world)
            policy = Policy(run.model, task, encoding, cfg)
            with StageLog(run, cfg, world, PANELS) as log:
                log.say(f"{len(pairs):,} pairs, of which {cfg.test_pairs} are held out")
                return train(run, policy, pairs, answers, log, signals)


if __name__ == "__main__":
    with one_line_errors():
        main()
