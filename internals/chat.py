"""The chat format: tokens that say who speaks, and where an answer ends.

    ␅What is 12+34?␆46␄                                     character models
    <|user|>What is 12+34?<|assistant|>46<|end|>            GPT-2's tokenizer

A base model has no such tokens. add_tokens appends them to its vocabulary, and rows to its weights.
The ids that exist keep their meaning, and the new meta says that of the new ones, so the checkpoint
needs no other program than before. The characters are the pictures of ASCII's enquiry (ENQ),
acknowledge (ACK) and end of transmission (EOT): visible, and in hardly any text.
"""

from dataclasses import astuple, dataclass, replace

import torch

from internals.dataset import check_meta
from internals.errors import UserError


@dataclass(frozen=True)
class ChatFormat:
    """The three tokens, as text."""

    user: str
    assistant: str
    end: str

    def prompt(self, text):
        """The text with which the model answers a question. Raises UserError if the question
        contains one of the three tokens, because it could then contain an answer."""
        self.refuse_tokens(text)
        return self.user + text + self.assistant

    def answer(self, text):
        """The text of an answer, which the end token completes. An answer that a model has sampled
        can contain the three tokens."""
        return text + self.end

    def refuse_tokens(self, text):
        for token in astuple(self):
            if token in text:
                raise UserError(f"the text {text!r:.60} contains {token}, which marks who "
                                "speaks in a chat: remove it")


CHARACTERS = ChatFormat("␅", "␆", "␄")
SPECIAL_TOKENS = ChatFormat("<|user|>", "<|assistant|>", "<|end|>")


def chat_format(meta):
    """The ChatFormat of a model with this meta (of a checkpoint or tokenizer); None if it has not
    been trained to chat."""
    for chat in (CHARACTERS, SPECIAL_TOKENS):
        vocabulary = meta.get("chars", meta.get("added", ()))
        if all(token in vocabulary for token in astuple(chat)):
            return chat
    return None


def add_chat_tokens(start, new_chars="", seed=0):
    """A Checkpoint whose vocabulary also has the tokens of the chat format, and the characters
    new_chars. Tokens that it has already are not added again. See add_tokens."""
    chat = CHARACTERS
    if start.meta["tokenizer"] == "gpt2":
        chat = SPECIAL_TOKENS
        new_chars = ""  # its bytes can spell any text
    return add_tokens(start, [*astuple(chat), *new_chars], seed)


def add_tokens(start, tokens, seed=0):
    """A Checkpoint whose vocabulary also has these tokens, with the next free ids. Their rows of
    the embedding and of the LM head are the mean of the known rows, which disturbs the predictions
    least (Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html), and a little noise, because
    equal rows would be equally likely. Raises UserError if the ids of the model have no text."""
    meta = dict(start.meta)
    before = meta["vocab_size"]
    if meta["tokenizer"] == "none":
        raise UserError("the token ids of this model have no text, so it cannot answer: train a "
                        "base with a text that prepare.py has prepared")
    if meta["tokenizer"] == "char":
        for token in tokens:
            if token not in meta["chars"]:
                meta["chars"] += token
        meta["vocab_size"] = len(meta["chars"])
    else:
        added = dict(meta.get("added", {}))
        for token in tokens:
            if token not in added:
                added[token] = 50257 + len(added)
        meta["added"] = added
        meta["vocab_size"] = 50257 + len(added)
    check_meta(meta)
    weights = dict(start.model)
    generator = torch.Generator().manual_seed(seed)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        weights[name] = with_rows(weights[name], before, meta["vocab_size"], generator)
    if start.model_args["tied"]:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    rows = len(weights["lm_head.weight"])
    return replace(start, model=weights, model_args=start.model_args | {"vocab_size": rows},
                   meta=meta)


def with_rows(weight, before, after, generator):
    """weight (V, C), of which `before` rows belong to tokens, with new rows for the tokens from
    `before` to `after`. Rows that pad the vocabulary are replaced first."""
    known = weight[:before]
    noise = torch.randn(after - before, weight.shape[1], generator=generator)
    new = known.mean(dim=0) + 0.1 * known.std(dim=0) * noise
    return torch.cat((known, new, weight[after:]))
