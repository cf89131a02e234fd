"""The tasks of the three stories: examples to imitate, and a rule that rewards an answer.

    sums          two-digit sums: the rule computes the sum, so it is a verifier
    instructions  upper, reverse or double a word of the plays
    verse         continue a play cheerfully: the rule is what a person is supposed to prefer
    length        continue a play with 20 characters: an example of a reward that may never differ
    FILE.jsonl    your own: a line is {"prompt": "...", "answer": "..."}; right is what is equal

A task splits its prompts into three parts that share none: examples for supervised fine-tuning,
prompts for reinforcement learning, and tests. So a test counts what was learned, not remembered.
"""

import functools
import random
import re
from dataclasses import dataclass

from internals.errors import UserError
from internals.jsonlines import read_json_lines
from prepare import open_dataset, tokenizer_from_meta

CHEERFUL = set("""
    happy merry joy joyful love loving lovely sweet sweetly sweetest sweetness gentle fair fairest
    kind kindly kindness dear dearest friend friends friendly good goodness heaven heavenly blessed
    bless blessing bliss delight delightful pleasure pleasant please pleased laugh laughing smile
    smiles smiling sing song music dance feast welcome gladly glad hope peace beauty
""".split())
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


@dataclass
class Example:
    """A prompt and the right answer; "" if the task has no single right answer."""

    prompt: str
    answer: str


@dataclass
class Task:
    """examples: for SFT. prompts: Examples for RL, which uses their answers only in the rule.
    tests: Examples that no stage trains on. rule: a function of an Example and the text of an
    answer that returns its reward. is_chat: whether prompts and answers have the chat format, and
    the reward is 1.0 for right and 0.0 for wrong; otherwise the model continues the prompt as text.
    """

    examples: list
    prompts: list
    tests: list
    rule: object
    is_chat: bool = True


def open_task(name, data_dir=None):
    """The Task of this name. data_dir: the folder of datasets. Raises UserError if it is unknown,
    or if a line of a file is not an example."""
    if name == "sums":
        return sums()
    if name == "instructions":
        return instructions(data_dir)
    if name == "verse":
        return verse(data_dir, cheerful)
    if name == "length":
        return verse(data_dir, right_length)
    if name.endswith(".jsonl"):
        return read_examples(name)
    raise UserError(f"task={name} is unknown: use sums, instructions, verse, length, or a .jsonl "
                    "file of prompts and answers")


def exact(example, text):
    """The rule of tasks with one right answer: 1.0 if the text is that answer, else 0.0."""
    return float(text == example.answer)


def exact_result(example, text):
    """The rule of sums: 1.0 if what follows "so" is right, however the model got there."""
    _, _, result = text.rpartition(" so ")
    _, _, expected = example.answer.rpartition(" so ")
    return float(result == expected)


def shuffled(items):
    """The items in an order that is always the same."""
    items = list(items)
    random.Random(0).shuffle(items)
    return items


# --------------------------------------------------------------------------------------------------
# Sums


def sums():
    """The 8,100 sums of two numbers from 10 to 99: 1,000 examples, 1,000 tests, 6,100 prompts.

    The answer to 68+62 is "10 so 130": first the sum of the last digits, then the result. Such an
    intermediate step is called a chain of thought (Wei et al. 2022). Without it, the small model
    learns more slowly, because it must write the first digit before it has computed the carry."""
    examples = []
    for a in range(10, 100):
        for b in range(10, 100):
            answer = f"{a % 10 + b % 10} so {a + b}"
            examples.append(Example(f"{a}+{b}", answer))
    examples = shuffled(examples)
    return Task(examples[:1000], examples[2000:], examples[1000:2000], exact_result)


# --------------------------------------------------------------------------------------------------
# Instructions


def instructions(data_dir):
    """Three things to do with a word of the plays. The words of the tests occur in no example."""
    words = set()
    for word in WORD.findall(plays(data_dir, "train")):
        if word.islower() and 3 <= len(word) <= 7 and "'" not in word:
            words.add(word)
    words = shuffled(sorted(words))
    parts = []
    for some in (words[400:], words[400:], words[:400]):
        examples = []
        for word in some:
            examples.append(Example(f"upper: {word}", word.upper()))
            examples.append(Example(f"reverse: {word}", word[::-1]))
            examples.append(Example(f"double: {word}", f"{word} {word}"))
        parts.append(shuffled(examples))
    return Task(*parts, exact)


@functools.cache
def plays(data_dir, split):
    """The text of train.bin or val.bin of plays_char."""
    data = open_dataset("plays_char", data_dir)
    return tokenizer_from_meta(data.meta).decode(getattr(data, split))


# --------------------------------------------------------------------------------------------------
# Cheerful verse


def verse(data_dir, rule):
    """Prompts: the last 16 characters before a speech, so they end with the name of the speaker.
    The tests are from the validation text."""
    prompts = shuffled(before_speeches(plays(data_dir, "train")))
    tests = shuffled(before_speeches(plays(data_dir, "val")))
    return Task([], prompts, tests, rule, is_chat=False)


def before_speeches(text, length=16):
    found = []
    for match in re.finditer(r"\n\n[A-Z][A-Z ]+:\n", text):
        if match.end() >= length:
            found.append(Example(text[match.end() - length:match.end()], ""))
    return found


def cheerful(example, text):
    """The number of different cheerful words, or 0 if the text does not look like verse: it needs
    at least 8 words, 80% of them different, and 3 letters or spaces in 4 characters."""
    words = [word.lower() for word in WORD.findall(text)]
    different = set(words)
    if len(words) < 8 or len(different) < 0.8 * len(words):
        return 0.0
    letters = sum(char.isalpha() or char.isspace() for char in text)
    if letters < 0.75 * len(text):
        return 0.0
    return float(len(different & CHEERFUL))


def right_length(example, text):
    """The negative distance of the length from 20 characters. If all answers are cut at the same
    length, all have the same reward, and there is nothing to learn."""
    return -abs(20.0 - len(text))


# --------------------------------------------------------------------------------------------------
# Your own examples


def read_examples(path):
    """A Task from JSON lines. Every tenth line is a test; RL uses the prompts of the others."""
    lines = read_json_lines(path, ("prompt", "answer"))
    examples = [Example(line["prompt"], line["answer"]) for line in lines]
    if len(examples) < 10:
        raise UserError(f"{path} has {len(examples)} examples, but every tenth is a test: give at "
                        "least 10")
    tests = examples[9::10]
    tested = {example.prompt for example in tests}
    examples = [example for example in examples if example.prompt not in tested]
    if not examples:
        raise UserError(f"{path} has only one prompt: it cannot be split into training and tests")
    return Task(examples, examples, tests, exact)
