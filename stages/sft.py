"""Stage 1, supervised fine-tuning (SFT): a base model learns to answer from examples.

    python stages/sft.py config/stages/sums_sft.py
    python stages/sft.py --init_from=out-novel --task=questions.jsonl --out_dir=out-chat
    python sample.py --out_dir=out-chat --interactive=True

A base model continues a text. Here it sees prompts and answers, with tokens in between that say who
speaks (internals/chat.py), and learns to predict the answers alone: the loss ignores the tokens of
the prompt, because the person writes them. The token that ends an answer belongs to it, so the
model learns to stop, too.

Left out: conversations of several turns; packing several examples into one sequence, which saves
padding; several processes.
"""

if __name__ == "__main__":  # before torch is imported
    import sys
    from pathlib import Path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from internals.cores import share_cores
    share_cores()

import functools
import shlex
from dataclasses import dataclass
from statistics import fmean

import torch

from internals.chat import add_chat_tokens
from internals.errors import UserError, one_line_errors
from internals.stagelog import StageLog
from stages import common
from stages.tasks import open_task
from train import seed_step

PANELS = {"loss on answers (nats per token)": ("loss", "test_loss"),
          "share of the test prompts": ("right", "ended")}


@dataclass
class SFTConfig(common.StageConfig):
    """The settings of supervised fine-tuning."""

    # -- output
    out_dir: str = "out-sft"  # folder for the checkpoint, metrics and the picture
    # -- model and task
    # characters that a character model gets besides those of the chat format, such as 0123456789
    new_chars: str = ""


def masked(ids, is_answer):
    """ids (B, T) -> inputs and targets, each (B, T - 1). The target of a token is the token that
    follows it if that one belongs to an answer, else -1, which the loss of model.py ignores."""
    targets = ids.masked_fill(~is_answer, -1)
    return ids[:, :-1], targets[:, 1:]


def answer_loss(model, examples, encoding):
    """The mean cross-entropy of the tokens of the answers, in nats, and their number."""
    prompts = [example.prompt for example in examples]
    answers = [example.answer for example in examples]
    ids, is_answer = encoding.pad_texts(prompts, answers)
    inputs, targets = masked(ids, is_answer)
    _, loss = model(inputs, targets)
    return loss, is_answer.sum().item()


@torch.no_grad()
def evaluate(policy):
    """Answer the test prompts by greedy decoding. Returns values for the log, and a text."""
    cfg = policy.cfg
    policy.model.eval()
    tests = policy.task.tests[:cfg.eval_prompts]
    total = 0.0
    n_tokens = 0
    for first in range(0, len(tests), cfg.batch_size):
        some = tests[first:first + cfg.batch_size]
        loss, count = answer_loss(policy.model, some, policy.encoding)
        total += loss.item() * count
        n_tokens += count
    found = policy.greedy(tests)
    policy.model.train()
    values = {
        "test_loss": total / n_tokens,
        "right": found.mean_rule(),
        "ended": found.ended(policy.encoding.end)}
    return values, found.shown()


def train(run, policy, log, signals):
    """Fine-tune until the run is done. Returns the metrics: a list of dicts."""
    cfg = policy.cfg
    for step in common.steps(run, policy, log, signals, functools.partial(evaluate, policy)):
        seed_step(cfg.seed, step, rank=0)  # for dropout
        examples = common.step_examples(policy.task.examples, step, cfg.batch_size, cfg.seed)
        loss, _ = answer_loss(run.model, examples, policy.encoding)
        norm = common.update(run, loss, cfg)
        log.step(run.step, {"loss": loss.item(), "norm": norm})
    folder = shlex.quote(cfg.out_dir)
    log.say(f"  chat         python sample.py --out_dir={folder} --interactive=True")
    return log.metrics


def main(argv=None):
    """Fine-tune with the settings of a command line. Returns the metrics."""
    cfg, start = common.read_stage(__doc__, SFTConfig, argv, fixed=["new_chars"])
    if cfg.init_from != "resume":
        start = add_chat_tokens(start, cfg.new_chars, cfg.seed)
    task = open_task(cfg.task, cfg.data_dir)
    examples = task.examples + task.tests
    if not task.examples:
        raise UserError(f"task={cfg.task} has no examples of right answers to learn from")
    with common.opened(cfg, start) as (world, signals):
        run, policy = common.begin_stage(cfg, start, task, world)
        prompts = [example.prompt for example in examples]
        answers = [example.answer for example in examples]
        for answer in answers:
            policy.encoding.chat.refuse_tokens(answer)
        lengths = common.check_length(prompts, answers, policy)
        common.check_prompts(task.tests, policy)
        with StageLog(run, cfg, world, PANELS) as log:
            log.say(f"examples have {fmean(lengths):.1f} tokens on average, at most {max(lengths)}")
            return train(run, policy, log, signals)


if __name__ == "__main__":
    with one_line_errors():
        main()
