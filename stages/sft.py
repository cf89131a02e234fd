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

from dataclasses import dataclass

import torch

from configurator import build, read_settings
from internals import outdir
from internals.chat import add_chat_tokens
from internals.errors import one_line_errors
from internals.parallel import World
from internals.signals import StopSignals
from internals.stagelog import StageLog
from model import GPTConfig
from stages.common import (
    Encoding,
    Policy,
    StageConfig,
    check_length,
    start_stage,
    step_examples,
    update,
)
from stages.tasks import open_task
from train import begin, seed_step

PANELS = {"loss on answers (nats per token)": ("loss", "test_loss"),
          "share of the test prompts": ("right", "ended")}


@dataclass
class SFTConfig(StageConfig):
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
    prompts = [encoding.prompt(example.prompt) for example in examples]
    answers = [encoding.answer(example.answer) for example in examples]
    ids, is_answer = encoding.pad(prompts, answers)
    inputs, targets = masked(ids, is_answer)
    _, loss = model(inputs, targets)
    return loss, is_answer.sum().item()


@torch.no_grad()
def evaluate(policy):
    """Answer the test prompts by greedy decoding. Returns values for the log, and an Answered."""
    cfg = policy.cfg
    encoding = policy.encoding
    policy.model.eval()
    tests = policy.task.tests[:cfg.eval_prompts]
    total = 0.0
    n_tokens = 0
    for first in range(0, len(tests), cfg.batch_size):
        some = tests[first:first + cfg.batch_size]
        loss, count = answer_loss(policy.model, some, encoding)
        total += loss.item() * count
        n_tokens += count
    found = policy.greedy(tests)
    policy.model.train()
    values = {
        "test_loss": total / n_tokens,
        "right": found.mean_rule(),
        "ended": found.ended(encoding.end)}
    return values, found


def train(run, policy, log, signals):
    """Fine-tune until the run is done. Returns the metrics: a list of dicts."""
    cfg = policy.cfg
    encoding = policy.encoding
    signals.catch()
    while True:
        is_last = run.step == cfg.max_iters
        if run.step % cfg.eval_interval == 0 or is_last:
            values, found = evaluate(policy)
            log.values(run.step, values)
            log.sample(found.shown())
            if run.step > run.first_step:
                log.save(run, encoding.meta)
        if is_last or signals.arrived:
            break
        seed_step(cfg.seed, run.step, rank=0)  # for dropout
        examples = step_examples(policy.task.examples, run.step, cfg.batch_size, cfg.seed)
        loss, _ = answer_loss(policy.model, examples, encoding)
        norm = update(run, loss, cfg)
        if run.step % cfg.log_interval == 0:
            log.values(run.step, {"loss": loss.item(), "norm": norm})
    log.finish(run, encoding.meta, signals)
    return log.metrics


def longest_example(task, encoding):
    """The length in tokens of the longest example or test."""
    longest = 0
    for example in task.examples + task.tests:
        prompt = encoding.prompt(example.prompt)
        answer = encoding.answer(example.answer)
        longest = max(longest, len(prompt) + len(answer))
    return longest


def main(argv=None):
    """Fine-tune with the settings of a command line. Returns the metrics."""
    given = read_settings(__doc__, SFTConfig, argv=argv)
    cfg, start = start_stage(given, SFTConfig)
    if cfg.init_from != "resume":
        start = add_chat_tokens(start, cfg.new_chars, cfg.seed)
    task = open_task(cfg.task, cfg.data_dir)
    model_cfg = build(GPTConfig, start.model_args)
    with World(cfg.device) as world, StopSignals() as signals:
        encoding = Encoding(start.meta, is_chat=True, device=world.device)
        longest = longest_example(task, encoding)
        check_length(longest, model_cfg.block_size, "the examples")
        run = begin(cfg, model_cfg, start, world)
        policy = Policy(run.model, task, encoding, cfg)
        with outdir.locked(cfg, world), StageLog(run, cfg, world, PANELS) as log:
            metrics = train(run, policy, log, signals)
            log.say(f"  chat         python sample.py --out_dir={cfg.out_dir} --interactive=True")
            return metrics


if __name__ == "__main__":
    with one_line_errors():
        main()
