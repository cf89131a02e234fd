"""Stage 2, a reward model: learn from pairs of answers what is preferred.

    python stages/reward.py config/verse_reward.py
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
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F

from configurator import UserError, build, one_line_errors, read_settings
from internals import checkpoint
from internals.chat import add_tokens
from internals.files import replacing
from internals.limits import Count
from internals.parallel import World
from internals.signals import StopSignals
from internals.stagelog import StageLog
from model import GPT, GPTConfig
from stages.common import Encoding, StageConfig, answer, check_length, step_examples, update
from stages.tasks import open_task, read_json_lines, shuffled
from train import begin, learning_rate, seed_step

PANELS = {"loss (nats per pair)": ("loss", "test_loss"),
          "accuracy on held-out pairs": ("accuracy", "accuracy_marked", "accuracy_worse_marked"),
          "correlation with the rule": ("correlation",)}
SCORE_TOKENS = {"char": "★", "gpt2": "<|score|>"}
PAIR = ("prompt", "chosen", "rejected")


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
        return (by_token * is_answer).sum(dim=1) / is_answer.sum(dim=1)
    positions = torch.arange(ids.shape[1], device=ids.device)
    last = (positions * is_answer).argmax(dim=1, keepdim=True)  # (B, 1)
    return by_token.gather(1, last)[:, 0]


def preference_loss(chosen, rejected):
    """Bradley-Terry: minus the log of the probability that the chosen answer is preferred."""
    return -F.logsigmoid(chosen - rejected).mean()


def score_token(meta):
    """The id of the token whose logit is the score."""
    return Encoding(meta, is_chat=False, device=None).ids(SCORE_TOKENS[meta["tokenizer"]])[0]


class RewardModel:
    """A trained reward model. Its scores are shifted and scaled so that the answers of the model
    before RL have mean 0 and standard deviation 1."""

    def __init__(self, start, path, device):
        """start: its Checkpoint; path: its name. Raises UserError if it is another model."""
        found = start.meta.get("reward")
        if not isinstance(found, dict) or found.get("score") not in ("mean", "last") or not all(
                isinstance(found.get(name), float) and math.isfinite(found[name])
                for name in ("mean", "std")):
            raise UserError(f"reward={path} is not a reward model: train one with "
                            "stages/reward.py, or use --reward=rule")
        self.model = GPT.from_weights(build(GPTConfig, start.model_args), start.model)
        self.model.to(device).eval()
        self.token = score_token(start.meta)
        self.where = found["score"]
        self.mean = found["mean"]
        self.std = found["std"]

    @torch.no_grad()
    def rewards(self, found, encoding):
        """The rewards of Answered answers, a list of numbers."""
        ids, is_answer = encoding.pad(found.prompts, found.answers)
        raw = scores(self.model, ids, is_answer, self.token, self.where)
        return ((raw - self.mean) / self.std).tolist()


# --------------------------------------------------------------------------------------------------
# Pairs


def collect(model, task, encoding, cfg):
    """Write what a new run learns from into out_dir: pairs.jsonl, and answers.jsonl, the model's
    answers to the test prompts, with which scores are compared and scaled."""
    if cfg.pairs in ("rule", "ask"):
        pairs = sample_pairs(model, task, encoding, cfg)
    else:
        pairs = read_json_lines(cfg.pairs, PAIR)
    if len(pairs) <= cfg.test_pairs:
        raise UserError(f"there are only {len(pairs)} pairs, and test_pairs={cfg.test_pairs} are "
                        "held out: get more pairs, or set a smaller --test_pairs")
    found = answer(model, task, task.tests[:cfg.eval_prompts], encoding, cfg, purpose=(1,))
    answers = []
    for example, text, rule in zip(found.examples, found.texts, found.rule, strict=True):
        answers.append({"prompt": example.prompt, "answer": text, "rule": str(rule)})
    write_json_lines(Path(cfg.out_dir, "pairs.jsonl"), shuffled(pairs))
    write_json_lines(Path(cfg.out_dir, "answers.jsonl"), answers)


def sample_pairs(model, task, encoding, cfg):
    """Pairs of sampled answers to one prompt, of which the rule or the person at the keyboard
    prefers one."""
    examples = step_examples(task.prompts, 0, cfg.sampled_pairs, cfg.seed)
    first = answer(model, task, examples, encoding, cfg, purpose=(2,))
    second = answer(model, task, examples, encoding, cfg, purpose=(3,))
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


def pair_scores(model, pairs, encoding, cfg):
    """The scores of the chosen and of the rejected answers: (B,) each."""
    prompts = [encoding.prompt(pair["prompt"]) for pair in pairs]
    answers = [encoding.answer(pair["chosen"]) for pair in pairs]
    answers += [encoding.answer(pair["rejected"]) for pair in pairs]
    ids, is_answer = encoding.pad(prompts + prompts, answers)
    both = scores(model, ids, is_answer, score_token(encoding.meta), cfg.score)
    return both.chunk(2)


@torch.no_grad()
def evaluate(model, tests, answers, encoding, cfg):
    """Values for the log, and the "reward" of meta, which says how the model is used."""
    model.eval()
    chosen, rejected = pair_scores(model, tests, encoding, cfg)
    values = {"test_loss": preference_loss(chosen, rejected).item(),
              "accuracy": (chosen > rejected).float().mean().item()}
    if cfg.mark:
        for name, side in (("accuracy_marked", "chosen"), ("accuracy_worse_marked", "rejected")):
            marked = with_marks(tests, cfg.mark, side)
            chosen, rejected = pair_scores(model, marked, encoding, cfg)
            values[name] = (chosen > rejected).float().mean().item()
    prompts = [encoding.prompt(each["prompt"]) for each in answers]
    ids, is_answer = encoding.pad(prompts, [encoding.answer(each["answer"]) for each in answers])
    own = scores(model, ids, is_answer, score_token(encoding.meta), cfg.score)
    rule = torch.tensor([float(each["rule"]) for each in answers], device=own.device)
    values["correlation"] = torch.corrcoef(torch.stack((own, rule)))[0, 1].item()
    model.train()
    return values, {"score": cfg.score, "mean": own.mean().item(), "std": own.std().item()}


def train(run, pairs, answers, encoding, cfg, log, signals):
    """Train the reward model until the run is done. Returns the metrics: a list of dicts."""
    tests = pairs[:cfg.test_pairs]
    pairs = pairs[cfg.test_pairs:]
    if cfg.mark:
        pairs = with_marks(pairs, cfg.mark, cfg.mark_on)
    meta = encoding.meta
    signals.catch()
    while True:
        is_last = run.step == cfg.max_iters
        if run.step % cfg.eval_interval == 0 or is_last:
            values, found = evaluate(run.model, tests, answers, encoding, cfg)
            meta = meta | {"reward": found}
            log.values(run.step, values)
            if run.step > run.first_step:
                log.save(run, meta)
        if is_last or signals:
            break
        seed_step(cfg.seed, run.step, rank=0)  # for dropout
        some = step_examples(pairs, run.step, cfg.batch_size, cfg.seed)
        chosen, rejected = pair_scores(run.model, some, encoding, cfg)
        loss = preference_loss(chosen, rejected)
        norm = update(run, loss, cfg)
        if run.step % cfg.log_interval == 0:
            log.values(run.step, {"loss": loss.item(), "norm": norm})
    log.finish(run, meta, signals)
    return log.metrics


def main(argv=None):
    """Train a reward model with the settings of a command line. Returns the metrics."""
    given = read_settings(__doc__, RewardConfig, argv=argv)
    cfg, _, start = checkpoint.starting_point(given, RewardConfig, learning_rate)
    task = open_task(cfg.task, cfg.data_dir)
    model_cfg = build(GPTConfig, start.model_args)
    with World(cfg.device) as world, StopSignals() as signals:
        encoding = Encoding(start.meta, task.is_chat, world.device)
        with StageLog(cfg, world, PANELS) as log:
            if cfg.init_from != "resume":
                model = GPT.from_weights(model_cfg, start.model).to(world.device).eval()
                collect(model, task, encoding, cfg)
                start = add_tokens(start, [SCORE_TOKENS[start.meta["tokenizer"]]], cfg.seed)
            pairs = read_json_lines(Path(cfg.out_dir, "pairs.jsonl"), PAIR)
            answers = read_json_lines(Path(cfg.out_dir, "answers.jsonl"),
                                      ("prompt", "answer", "rule"))
            longest = 0
            for pair in pairs:
                for text in (pair["chosen"], pair["rejected"]):
                    ids = encoding.prompt(pair["prompt"]) + encoding.answer(text)
                    longest = max(longest, len(ids))
            check_length(longest, model_cfg.block_size, "the pairs")
            encoding = Encoding(start.meta, task.is_chat, world.device)
            run = begin(cfg, build(GPTConfig, start.model_args), start, world.device)
            log.begin_stage(run)
            log.say(f"{len(pairs):,} pairs, of which {cfg.test_pairs} are held out")
            return train(run, pairs, answers, encoding, cfg, log, signals)


if __name__ == "__main__":
    with one_line_errors():
        main()
