"""What a preparation will take and took: size, tokens, disk, time; and its progress bar."""

import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from configurator import UserError


@dataclass
class Plan:
    """An estimate. sources: their number. size: their bytes; None if unknown, as the rest is then.
    seconds: with this number of workers."""

    sources: int
    size: int | None
    workers: int
    tokens: int = 0
    seconds: float = 0.0

    @property
    def disk(self):
        return 2 * self.tokens  # an id has two bytes

    def __str__(self):
        files = "1 source" if self.sources == 1 else f"{self.sources:,} sources"
        if self.size is None:
            return f"{files} of unknown size"
        threads = "1 thread" if self.workers == 1 else f"{self.workers} threads"
        return (f"{files} of {amount(self.size)}: about {self.tokens:,} tokens, "
                f"{amount(self.disk)} of disk, {duration(self.seconds)} with {threads}")

    def check_disk(self, folder, present=0):
        """Raises UserError if the disk of `folder` is too small. present: bytes of the bins that an
        earlier run has written."""
        while not folder.exists():
            folder = folder.parent
        free, needed = shutil.disk_usage(folder).free, self.disk - present
        if needed > free:
            raise UserError(f"the bins need about {amount(needed)} of disk space, but {folder} has "
                            f"only {amount(free)} free: choose another disk with --data_dir")


def make_plan(reader, sample, encode, workers):
    """The Plan for a Reader, estimated from its Sample. encode: list of str -> ids."""
    plan = Plan(len(reader.sources), reader.size, workers)
    if reader.size is not None:
        started = time.perf_counter()
        text = "".join(sample.blocks)
        tokens = len(encode([text], False) if reader.one_text else encode(sample.blocks))
        seconds = time.perf_counter() - started
        passes = 2 if reader.one_text else 1  # the first one counts the characters
        share = reader.size / max(1, sample.size)
        plan.tokens = round(share * tokens)
        plan.seconds = share * (passes * sample.seconds + seconds / workers)
    return plan


def summary(meta, seconds):
    """One line about a dataset that was prepared in this time, from its meta.json."""
    tokens, size = (meta["train_tokens"] + meta["val_tokens"], meta["bytes"])
    documents = "one text"
    if meta["documents"] > 1:
        documents = f"{meta['documents']:,} documents ({meta['val_documents']:,} for validation)"
    return (f"{documents}, {amount(size)}, {size / tokens:.2f} bytes per token; "
            f"{tokens / seconds:,.0f} tokens/s in {duration(seconds)}")


@contextmanager
def progress(size, what):
    """A context manager with a bar on stderr, if that is a terminal. It yields the function that
    advances it by a number of bytes."""
    with tqdm(total=size, desc=what, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        yield bar.update


def available_cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def amount(size):
    """123456789 -> '123.5 MB'"""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000


def duration(seconds):
    """0.3 -> 'a second', 147 -> '2 min 27 s'"""
    if seconds < 1.5:
        return "a second"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
