"""GPT-2's BPE by gigatoken, an optional package that is many times as fast as tiktoken.

It is used only if its ids equal those of tiktoken on the beginning of the text at hand, and never
for text with a character that the two packages classify differently.
"""

import base64
import functools
import os
import tempfile
from pathlib import Path

import numpy as np

from configurator import reason
from internals.plan import say

SAMPLE = 10_000_000  # characters that are compared
LEAST = 1 << 23  # an encoder is replaced only after it has encoded this many bytes


class Gigatoken:
    """Encodes text to the ids of GPT-2's BPE. Threads can share it.

    gigatoken remembers the ids of each word that it has seen. So when the memory of the process has
    grown by `growth` bytes, or after a fixed amount of text if the memory is not known, a new
    encoder replaces the old one. That takes a tenth of a second.

    different: what find_different returns.
    """

    def __init__(self, bpe, workers, end_of_text):
        """bpe: tiktoken's encoding, whose table is used. end_of_text: the special token, as text.
        Raises ImportError if the package is not installed."""
        from gigatoken.gigatoken_rs import BPETokenizer, PadTruncate

        self.slow = functools.partial(bpe.encode_to_numpy, allowed_special={end_of_text},
                                      disallowed_special=())
        self.no_padding = PadTruncate(0)
        self.growth = 100e6 + 50e6 * workers
        ranks = sorted(bpe._mergeable_ranks.items(), key=lambda item: item[1])
        table = b"".join(b"%s %d\n" % (base64.b64encode(token), i) for token, i in ranks)

        def new_encoder():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "gpt2.tiktoken")
                path.write_bytes(table)
                specials = {end_of_text: bpe.eot_token}
                return BPETokenizer.from_tiktoken(str(path), "gpt2", specials)

        self.new_encoder = new_encoder
        self.renew()
        self.different = find_different(self.fast, self.slow)

    def renew(self):
        self.encoder, self.n_bytes, self.memory = self.new_encoder(), 0, resident_bytes()

    def encode(self, text):
        """The ids of a text as a uint32 array; the text of the special token becomes its id."""
        if not text.isascii() and self.different[characters(text)].any():
            return self.slow(text)
        return self.fast(text)

    def fast(self, text):
        data = text.encode("utf-8")
        if self.n_bytes >= LEAST:
            memory = resident_bytes()
            grown = 4 * self.n_bytes if memory is None else memory - self.memory
            if grown > self.growth:
                self.renew()
        self.n_bytes += len(data)
        # Unlike encode, this function lets other threads run. One row needs no padding. Its own
        # threads are not used (parallel), because ours encode several units at a time.
        rows, _ = self.encoder.encode_batch_padded([data], self.no_padding, parallel=False)
        return rows[0]


def characters(text):
    """For each character of a text from U+0800 on, its index in `different`: its code point, or
    above U+FFFF, one index per group of 64. The first three bytes of its UTF-8 determine the index,
    so this is fast for text with few such characters."""
    data = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
    first = np.flatnonzero(data >= 0xE0)
    one, two, three = (data[first + i].astype(np.int64) for i in range(3))
    index = (one & 15) << 12 | (two & 63) << 6 | three & 63
    return np.where(one >= 0xF0, 0x10000 + index, index)


def find_different(fast, slow):
    """Which characters the functions fast and slow, str -> ids, classify differently, as a bool
    array for characters(). The packages know different versions of Unicode, so a new character can
    be a letter for one of them only. Raises ValueError if a character below U+0800 is different."""
    different = np.zeros(0x10000 + 0x110000 // 64, dtype=bool)

    def is_different(points):
        # after a letter, 's is one token; after a punctuation mark, the ' belongs to that
        text = "".join(f"{c}'s 1{c} {c}\n" for c in map(chr, points))
        return not np.array_equal(fast(text), slow(text))

    def groups(start, end, size):
        """The parts of a range, of this size, with a difference. Surrogates are no characters."""
        parts = [range(i, i + size) for i in range(start, end, size)]
        return [part for part in parts if not 0xD800 <= part.start < 0xE000 and is_different(part)]

    for large in groups(0, 0x40000, 2048):  # no version of Unicode has letters beyond these
        for group in groups(large.start, large.stop, 64):
            if group.start < 0x800:
                raise ValueError("its ids differ from those of tiktoken for a character in the 64 "
                                 f"from U+{group.start:04X} on")
            if group.start >= 0x10000:
                different[0x10000 + group.start // 64] = True
            else:
                different[[point for point in group if is_different([point])]] = True
    return different


def resident_bytes():
    """The memory that this process takes now; None if it is not known."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # not Linux
        return None


def pays(size):
    """Whether the comparison with tiktoken is a small part of the work. size: bytes of the text;
    None if unknown."""
    return size is None or size > 5 * SAMPLE


def verified(bpe, reader, workers, end_of_text):
    """Returns a Gigatoken; or None if it is not installed, or not right about the beginning of the
    text of the Reader. Prints which."""
    texts, compared = reader.sample(SAMPLE).blocks, 0
    try:
        fast = Gigatoken(bpe, workers, end_of_text)
        for text in texts:
            compared += len(text)
            if not np.array_equal(fast.encode(text), fast.slow(text)):
                raise ValueError("its ids differ from those of tiktoken in the first "
                                 f"{compared:,} characters")
    except ImportError:
        return None
    except Exception as error:  # whatever it is, tiktoken can do the work
        say(f"gigatoken is not used: {reason(error)}")
        return None
    say(f"gigatoken encodes: its ids are those of tiktoken in the first {compared:,} characters")
    return fast
