"""Stream sampled text token by token: only whole characters, and nothing after a stop string."""

import codecs
import json
import math
import sys

from internals.data.formats import normalized, read_text
from internals.errors import UserError
from internals.files import replacing

SEPARATOR = "---------------"  # between samples


class Sample:
    """A text that is being sampled, up to the stop string, <|endoftext|>, or the token `end`.

    text: the prompt and the sampled text. tokens, logprobs: the sampled ids and their
    log-probabilities. done: whether the text is complete.
    """

    def __init__(self, prompt, tokenizer, stop=None, end=None):
        self.text, self.begin, self.shown = prompt, len(prompt), 0
        self.tokenizer, self.stop = tokenizer, stop
        self.ends = (tokenizer.end_of_text, end)
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.tokens, self.logprobs, self.done = [], [], False

    def add(self, token, logprob):
        """Add a sampled id; after the end of the text, nothing happens. Raises UserError if its
        log-probability is NaN."""
        if math.isnan(logprob):
            raise UserError("the model's logits are not numbers (NaN): its weights are damaged, or "
                            "the dtype is too narrow for them")
        if self.done:
            return
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.ends:
            return self.end()
        # a token can end in the middle of a character; its bytes then wait for the next token
        self.text += self.utf8.decode(self.tokenizer.decode_bytes([token]))
        if self.stop and (at := self.text.find(self.stop, self.begin)) >= 0:
            self.text, self.done = self.text[:at], True

    def end(self):
        if not self.done:
            self.text += self.utf8.decode(b"", final=True)
            self.done = True

    def show(self):
        """Print the new text, except for characters at its end that may begin the stop string."""
        end = len(self.text)
        if self.stop and not self.done:
            end = max(0, end - (len(self.stop) - 1))
        print(self.text[self.shown:end], end="", flush=True)
        self.shown = max(self.shown, end)


def show(samples, separator):
    """Print the new text of the first sample and, if it is done, of the next one, and so on.
    Returns the samples that are not yet printed completely."""
    for i, sample in enumerate(samples):
        sample.show()
        if not sample.done:
            return samples[i:]
        print(separator, end="", flush=True)
    return []


def write_samples(path, prompt, samples):
    """Write samples to a file, one JSON object per line."""
    lines = []
    for sample in samples:
        entry = {"prompt": prompt, "text": sample.text[sample.begin:], "tokens": sample.tokens,
                 "logprobs": sample.logprobs}
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    with replacing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def read_prompt(start, tokenizer):
    """The prompt that --start describes: text, FILE:path, "-" for stdin, or None for the default
    of the tokenizer. Raises UserError if it is empty."""
    if start is None:
        start = tokenizer.default_start
    elif start == "-":
        start = normalized(sys.stdin.read())
    elif start.startswith("FILE:"):
        start = read_text(start.removeprefix("FILE:"))
    if not start:
        raise UserError("start is empty: the model needs at least one character to continue")
    return start.encode("utf-8", "replace").decode()  # a command line can contain invalid UTF-8
