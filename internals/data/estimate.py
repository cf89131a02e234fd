"""Estimates before a preparation, a report after it, and its progress bar."""

import shutil
import time
from contextlib import contextmanager

from tqdm import tqdm

from internals.errors import UserError, say
from internals.words import counted, duration

ENCODED = 1 << 20  # characters that are encoded for the estimate


def announce(reader, excerpt, encode, workers, folder, is_char):
    """Print what the preparation of the text of a Reader will take: tokens, disk and time. Raises
    UserError if the disk of `folder` is too small.

    excerpt: the Excerpt that the estimate is from. encode: encodes its documents. workers: threads.
    is_char: whether tokens are characters.
    """
    sources = counted(len(reader.sources), "source")
    if reader.size is None:
        say(f"{sources} of unknown size")
        return
    blocks, characters = [], 0  # encoding all of the excerpt would take a while
    for block in excerpt.blocks:
        if characters < ENCODED:
            blocks.append(block)
            characters += len(block)
    started = time.perf_counter()
    tokens = len(encode(["".join(blocks)], False) if reader.one_text else encode(blocks))
    encode_seconds = time.perf_counter() - started
    share = reader.size / excerpt.size  # of all text to the excerpt
    encoded_share = share * excerpt.characters / characters
    passes = 2 if reader.one_text or is_char else 1  # the first one counts the characters
    seconds = share * passes * excerpt.seconds + encoded_share * encode_seconds / workers
    tokens *= encoded_share
    needed = 2 * tokens  # a token has two bytes
    say(f"{sources} of {amount(reader.size)}: about {tokens:,.0f} tokens, "
        f"{amount(needed)} of disk, {duration(seconds)} with {counted(workers, 'thread')}")
    free = free_bytes(folder)
    if needed > free:
        raise UserError(f"the bins need about {amount(needed)} of disk space, but {folder} has "
                        f"only {amount(free)} free: choose another disk with --data_dir")


def free_bytes(folder):
    """The disk space for the dataset in `folder`, which need not exist. What a killed
    process has written there counts as free, because it will be removed."""
    present = sum(path.stat().st_size for path in folder.glob("partial/*.bin"))
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free + present


def report(data, seconds):
    """Print the summary of a Dataset that was prepared in this time."""
    tokens, meta = len(data.train) + len(data.val), data.meta
    documents = "one text"
    if meta["documents"] > 1:
        documents = f"{meta['documents']:,} documents ({meta['val_documents']:,} for validation)"
    say(data.summary())
    say(f"{documents}, {amount(meta['bytes'])}, {meta['bytes'] / tokens:.2f} bytes per token; "
        f"{tokens / seconds:,.0f} tokens/s in {duration(seconds)}")


def remark(counts, reader):
    """Print what may be unexpected in the text. counts: the units.Counts of all of it."""
    if counts.replaced and reader.errors == "replace":
        say(f"{counts.replaced:,} characters are U+FFFD, which replaces invalid UTF-8")
    if reader.separator is not None and counts.documents <= len(reader.sources):
        say(f"the separator {reader.separator!r} does not occur in the text")
    has_text = any(source.is_text for source in reader.sources)
    if counts.ends and has_text and reader.separator is None:
        say(f"<|endoftext|> occurs {counts.ends:,} times in the text, and was encoded as plain "
            "text: to end documents there, give --separator='<|endoftext|>'")


def named(characters, most=12):
    """['é', 'ß'] -> "'é' (U+00E9), 'ß' (U+00DF)". At most `most` characters are named."""
    names = [f"{char!r} (U+{ord(char):04X})" for char in characters[:most]]
    if len(characters) > most:
        names.append(f"and {len(characters) - most:,} others")
    return ", ".join(names)


@contextmanager
def progress(size, what):
    """A context manager with a bar on stderr, if that is a terminal. It yields the function that
    advances it by a number of bytes."""
    with tqdm(total=size, desc=what, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        yield bar.update


def amount(size):
    """123456789 -> '123.5 MB'"""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000


