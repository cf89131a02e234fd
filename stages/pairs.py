"""Pairs of answers, of which one is preferred: what a reward model learns from.

pairs.jsonl in the folder of a run has the pairs, and answers.jsonl the answers of the model to the
test prompts, with which scores are compared and scaled. A resumed run reads both again. While a
person compares, each choice is added to choices.jsonl, so that no later error can lose it.
"""

import shlex
from pathlib import Path

from internals.errors import UserError, say
from internals.jsonlines import append_json_line, read_json_lines, write_json_lines
from stages.common import check_prompts, step_examples
from stages.tasks import shuffled

PAIR = ("prompt", "chosen", "rejected")  # what a line of pairs.jsonl has
ANSWER = ("prompt", "answer", "rule")  # what a line of answers.jsonl has
# a resumed run has the pairs and answers that these settings made, and the same pairs are held out
FIXED = ("pairs", "sampled_pairs", "test_pairs", "eval_prompts", "max_new_tokens")


def collect(policy):
    """Pairs in a random order, and answers to the test prompts, as lists of dicts."""
    cfg = policy.cfg
    # if there are fewer tests than eval_prompts, they are answered several times
    tests = step_examples(policy.task.tests, 0, cfg.eval_prompts, cfg.seed)
    check_prompts(tests, policy)
    if cfg.pairs in ("rule", "ask"):
        pairs = sample_pairs(policy)
    else:
        not_empty = ("chosen", "rejected")
        if policy.task.is_chat:
            not_empty = ()  # an empty answer has the end token, which has a score
        pairs = read_json_lines(cfg.pairs, PAIR, not_empty)
    if len(pairs) <= cfg.test_pairs:
        kept = ""
        if cfg.pairs == "ask" and pairs:
            kept = f"; your choices are kept: {again(cfg)} reads them"
        raise UserError(f"there are only {len(pairs)} pairs, and test_pairs={cfg.test_pairs} are "
                        f"held out: get more pairs, or set a smaller --test_pairs{kept}")
    found = policy.answer(tests, purpose=(1,))
    answers = []
    for example, text, rule in zip(tests, found.texts, found.rule, strict=True):
        answers.append({"prompt": example.prompt, "answer": text, "rule": str(rule)})
    return shuffled(pairs), answers


def write(folder, pairs, answers):
    write_json_lines(Path(folder, "pairs.jsonl"), pairs)
    write_json_lines(Path(folder, "answers.jsonl"), answers)


def read(folder):
    """The pairs and the answers that `write` has written."""
    pairs = read_json_lines(Path(folder, "pairs.jsonl"), PAIR)
    answers = read_json_lines(Path(folder, "answers.jsonl"), ANSWER)
    return pairs, answers


def choices(cfg):
    """The file to which the choices of a person are added."""
    return Path(cfg.out_dir, "choices.jsonl")


def again(cfg):
    """The setting that reads the choices of a person again."""
    return shlex.quote(f"--pairs={choices(cfg)}")


def sample_pairs(policy):
    """Pairs of sampled answers to one prompt, of which the rule or the person at the keyboard
    prefers one."""
    cfg = policy.cfg
    examples = step_examples(policy.task.prompts, 0, cfg.sampled_pairs, cfg.seed)
    check_prompts(examples, policy)
    first = policy.answer(examples, purpose=(2,))
    second = policy.answer(examples, purpose=(3,))
    if cfg.pairs == "ask":
        if choices(cfg).exists():
            raise UserError(f"{choices(cfg)} has the choices of an earlier run: {again(cfg)} reads "
                            "them; or move the file away")
        say(f"each choice is added to {choices(cfg)}; if an error follows, {again(cfg)} reads "
            "them")
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
            pair = {"prompt": example.prompt, "chosen": one, "rejected": other}
        elif better < 0:
            pair = {"prompt": example.prompt, "chosen": other, "rejected": one}
        else:
            continue
        pairs.append(pair)
        if cfg.pairs == "ask":
            append_json_line(choices(cfg), pair)
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


def with_marks(pairs, mark, mark_on):
    """The pairs with the mark as the end of the "chosen", the "rejected" or a "random" answer of
    each. Its length does not change, unless the mark is longer."""
    result = []
    for number, pair in enumerate(pairs):
        side = mark_on
        if mark_on == "random":
            side = ("chosen", "rejected")[number % 2]
        text = pair[side]
        kept = max(0, len(text) - len(mark))
        text = text[:kept] + mark
        result.append(pair | {side: text})
    return result
