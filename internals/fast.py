"""GPT-2's BPE by gigatoken, an optional package that is many times as fast as tiktoken.

It is used only if its ids equal those of tiktoken on the beginning of the text at hand.
"""

import base64
import os
import tempfile
from pathlib import Path

import numpy as np

from configurator import reason

SAMPLE = 10_000_000  # characters that are compared
LEAST = 1 << 23  # bytes of text that an encoder encodes before it is replaced


class Gigatoken:
    """Encodes text to the ids of GPT-2's BPE. Threads can share it.

    gigatoken remembers the ids of each word that it has seen. So when the memory of the process has
    grown by `growth` bytes, or after a fixed amount of text if the memory is not known, a new
    encoder replaces the old one. That takes a tenth of a second.
    """

    def __init__(self, bpe, workers, end_of_text):
        """bpe: tiktoken's encoding, whose table is used. end_of_text: the special token, as text.
        Raises ImportError if the package is not installed."""
        from gigatoken.gigatoken_rs import BPETokenizer, PadTruncate

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

    def renew(self):
        self.encoder, self.n_bytes, self.memory = self.new_encoder(), 0, resident_bytes()

    def encode(self, text):
        """The ids of a text as a uint32 array; the text of the special token becomes its id."""
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
    return size is None or size > 2 * SAMPLE


def verified(bpe, reader, workers, end_of_text):
    """Returns a Gigatoken; or None if it is not installed, or not right about the beginning of the
    text of the Reader. Prints which."""
    texts, compared = reader.sample(SAMPLE).blocks, 0
    try:
        fast = Gigatoken(bpe, workers, end_of_text)
        for text in texts:
            ids = fast.encode(text)
            expected = bpe.encode_to_numpy(text, allowed_special={end_of_text},
                                           disallowed_special=())
            compared += len(text)
            if not np.array_equal(ids, expected):
                raise ValueError("its ids differ from those of tiktoken in the first "
                                 f"{compared:,} characters")
    except ImportError:
        return None
    except Exception as error:  # whatever it is, tiktoken can do the work
        print(f"gigatoken is not used: {reason(error)}")
        return None
    print(f"gigatoken encodes: its ids are those of tiktoken in the first {compared:,} characters")
    return fast
