"""From documents to token ids: pieces of bounded size, the split, and threads that share the work.

The text is cut into units by rules that depend on the text alone, so the ids are the same for any
number of threads.
"""

import hashlib
import itertools
import math
import operator
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from internals.data.estimate import named
from internals.data.formats import REPLACED
from internals.errors import UserError, say
from internals.words import counted

END_OF_TEXT = "<|endoftext|>"
PIECE = 1 << 18  # characters; another number would change the split of documents that are longer
# A place before white space. \s would be wrong: in Python, unlike in GPT-2's pattern, it also
# matches \x1c to \x1f.
BEFORE_SPACE = re.compile(r"(?<=[^\s\x1c-\x1f])(?=[ \t\n\r])")


class Unit(NamedTuple):
    """Text that is encoded in one call. texts: documents, or a piece of one. ends: whether the last
    one is complete."""

    split: str  # "train" or "val"
    texts: list
    ends: bool


@dataclass
class Counts:
    """What was read. bytes: of UTF-8. replaced: characters U+FFFD. ends: how often the text of
    END_OF_TEXT occurs."""

    documents: int = 0
    val_documents: int = 0
    train_bytes: int = 0
    val_bytes: int = 0
    replaced: int = 0
    ends: int = 0

    def add(self, split, text):
        n = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        self.replaced += text.count(REPLACED)
        self.ends += text.count(END_OF_TEXT)
        if split == "train":
            self.train_bytes += n
        else:
            self.val_bytes += n

    def meta(self):
        """The fields of meta.json."""
        return {"documents": self.documents, "val_documents": self.val_documents,
                "train_bytes": self.train_bytes, "val_bytes": self.val_bytes,
                "bytes": self.train_bytes + self.val_bytes}


def pieces(blocks, size=PIECE, reach=PIECE):
    """Cut a text, given in blocks, into pieces of at least `size` characters such that encoding the
    pieces gives the same BPE ids as encoding the whole text.

    GPT-2's pattern always splits before white space that follows another character, so the text is
    cut at the first such place after `size` characters. If there is none in the next `reach`
    characters, the text is cut after them anyway, and only then can the ids differ. Without this
    rule, a gigabyte without a space would have to be encoded in one call.
    """
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > size + reach:
            match = BEFORE_SPACE.search(rest, start + size, start + size + reach)
            end = match.start() if match else start + size + reach
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def text_units(blocks, n_characters, val_fraction, counts):
    """Yields the units of one text with this number of characters. The first characters are for
    training, the last val_fraction for validation."""
    counts.documents = 1
    unread = n_characters
    parts = cut_blocks(blocks, int(n_characters * (1 - val_fraction)))
    for split, group in itertools.groupby(parts, key=operator.itemgetter(0)):
        for piece in pieces(part for _, part in group):
            counts.add(split, piece)
            unread -= len(piece)
            yield Unit(split, [piece], ends=False)
    if unread:
        raise UserError("the text changed while it was read: run the command again")


def cut_blocks(blocks, n):
    """Yields ("train", block) until the blocks have n characters, and then ("val", block)."""
    for block in blocks:
        if n > 0:
            yield "train", block[:n]
        if n < len(block):
            yield "val", block[max(0, n):]
        n -= len(block)


def document_units(documents, val_fraction, counts):
    """Yields the units of documents, each an iterator over blocks of text. Empty documents are left
    out.

    A hash of the document decides its split. It covers the first piece, so a document of any size
    is read once, and documents with the same beginning are in the same split.
    """
    waiting = {"train": [], "val": []}
    lengths = {"train": 0, "val": 0}

    def waiting_documents(split):
        texts = waiting[split]
        waiting[split] = []
        lengths[split] = 0
        if texts:
            yield Unit(split, texts, ends=True)

    for blocks in documents:
        parts = pieces(blocks)
        piece = next(parts, "")
        if not piece:
            continue
        split = "train"
        counts.documents += 1
        if split_score(piece) < val_fraction:
            split = "val"
            counts.val_documents += 1
        counts.add(split, piece)
        for following in parts:  # a long document: one unit for each piece
            yield from waiting_documents(split)
            yield Unit(split, [piece], ends=False)
            counts.add(split, following)
            piece = following
        waiting[split].append(piece)
        lengths[split] += len(piece)
        if lengths[split] >= PIECE:
            yield from waiting_documents(split)
    yield from waiting_documents("train")
    yield from waiting_documents("val")


def usable_fraction(reader, val_fraction):
    """`val_fraction`; or the nearest fraction that leaves a document in each split, if the Reader
    has so few documents that all of them would be in one. Reads the beginnings of documents until
    both splits have one. Raises UserError if fewer than two documents differ."""
    lowest = math.inf
    highest = -math.inf
    for blocks in reader.documents(advance=lambda n: None):
        piece = next(pieces(blocks), "")
        if piece:
            score = split_score(piece)
            lowest = min(lowest, score)
            highest = max(highest, score)
        if lowest < val_fraction <= highest:
            return val_fraction
    if lowest == highest:
        raise UserError("the sources have only one distinct document, so none is left for "
                        "validation: add others, or give the text as one .txt file without "
                        "--separator, of which the last tenth is for validation")
    if val_fraction <= lowest:
        return math.nextafter(lowest, 2)  # the document with the lowest score is for validation
    return highest  # the document with the highest score is for training


def split_score(text):
    """A number in [0, 1) from a hash of the text: the same for the same text on every machine."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def encoded(units, encode, workers):
    """Yields (split, ids) of each unit in order.

    encode(texts, ends): the ids of a unit. workers: the number of threads that call it; tiktoken
    and numpy let threads run at the same time. At most three units per thread are in memory.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for split, texts, ends in units:
            waiting.append((split, pool.submit(encode, texts, ends)))
            if len(waiting) >= 3 * workers:
                split, result = waiting.popleft()
                yield split, result.result()
        for split, result in waiting:
            yield split, result.result()


def survey(blocks, vocabulary=True):
    """(number of characters, the distinct characters in the order of code points) of blocks of
    text. vocabulary: False leaves the distinct characters out, which is faster."""
    seen = np.zeros(0x110000, dtype=bool)
    n_characters = 0
    for block in blocks:
        if vocabulary:
            seen[code_points(block)] = True
        n_characters += len(block)
    return n_characters, "".join(map(chr, np.flatnonzero(seen).tolist()))


def check_vocabulary(tokenizer, name, chars, errors):
    """Look for characters of a text that are not in the vocabulary of the dataset `name`.

    tokenizer: its CharTokenizer. chars: the distinct characters of the text. If errors is
    "replace", the tokenizer will remove the unknown ones; otherwise, raises UserError."""
    unknown = sorted(set(chars) - set(tokenizer.chars))
    if not unknown:
        return
    what = (f"{counted(len(unknown), 'character')} of the text are not among the "
            f"{tokenizer.n_vocab} of {name}: {named(unknown)}")
    if errors == "strict":
        raise UserError(f"{what}; replace them in the text, or remove them with --errors=replace")
    say(f"all of these are removed: {what}")
    tokenizer.remove_unknown = True


def code_points(text):
    """The code points of a text as a uint32 array."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
