"""The bins of a dataset while they are written: an interrupted run continues where it stopped.

They grow in the folder `partial` of the dataset, next to a journal that says how much of them is
complete and from which sources and settings they come. The old dataset stays until they are done.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from contextlib import suppress

import numpy as np

from internals.errors import UserError, say
from internals.files import relative, replacing

JOURNAL_SECONDS = 2  # between two entries in the journal
SPLITS = ("train", "val")


class Partial:
    """train.bin and val.bin of a dataset that is not complete. A context manager: after a user
    error, such as invalid text, nothing is kept; after any other interruption, the files are.

    n_chunks: how many chunks the files contain.
    """

    def __init__(self, folder, identity=None):
        """folder: of the dataset. identity: a value for JSON that is equal only for runs that write
        the same bins; a run continues the files of another one only if it is. None: never, and
        nothing is kept."""
        self.target, self.folder = folder, folder / "partial"
        self.keep = identity is not None
        self.identity = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self.n_chunks, self.journal_at = 0, time.monotonic()
        self.files = {}
        if self.resume():
            tokens = sum(file.tell() for file in self.files.values()) // 2
            say(f"continuing an interrupted run after its first {tokens:,} tokens")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.n_chunks = 0
            self.files = {split: open(self.path(split), "wb") for split in SPLITS}
            self.hashes = {split: hashlib.sha256() for split in SPLITS}

    def path(self, split):
        return self.folder / f"{split}.bin"

    def resume(self):
        """Open the files of an earlier run at the end of the part that its journal covers. Returns
        whether there is such a run."""
        try:
            journal = json.loads((self.folder / "journal.json").read_text(encoding="utf-8"))
            if journal["identity"] != self.identity:
                return False
            self.n_chunks = journal["chunks"]
            self.hashes = {split: beginning_hash(self.path(split), journal[split]["bytes"])
                           for split in SPLITS}
            # checked because the files are not synced at each entry: if the machine stops, data in
            # the page cache is lost
            if any(self.hashes[split].hexdigest() != journal[split]["sha256"] for split in SPLITS):
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self.files = {split: open(self.path(split), "rb+") for split in SPLITS}
        for split, file in self.files.items():
            file.truncate(journal[split]["bytes"])
            file.seek(0, os.SEEK_END)
        return True

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and self.keep and not issubclass(kind, UserError):
            # if the disk is full, or the files are closed already, the last entry counts
            with suppress(OSError, ValueError):
                self.write_journal()
            self.close()
            if issubclass(kind, KeyboardInterrupt):
                print("the same command will continue from here", file=sys.stderr)
        elif kind is not None:
            self.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self):
        for file in self.files.values():
            with suppress(OSError):  # on a full disk, closing cannot write the buffer
                file.close()

    def add(self, split, ids):
        """Append a chunk of ids."""
        data = np.asarray(ids).astype("<u2", copy=False).tobytes()
        self.files[split].write(data)
        self.hashes[split].update(data)
        self.n_chunks += 1
        if self.keep and time.monotonic() - self.journal_at >= JOURNAL_SECONDS:
            self.write_journal()

    def write_journal(self):
        journal = {"identity": self.identity, "chunks": self.n_chunks}
        for split, file in self.files.items():
            file.flush()
            journal[split] = {"bytes": file.tell(), "sha256": self.hashes[split].hexdigest()}
        with replacing(self.folder / "journal.json") as temporary:
            temporary.write_text(json.dumps(journal), encoding="utf-8")
        self.journal_at = time.monotonic()

    def publish(self, meta):
        """Replace the dataset: write meta.json with `meta` and the counts and checksums of the
        bins, and move the bins to their place.

        The old train.bin is removed first and the new one comes last. So an interruption leaves the
        old dataset, or one without train.bin, but never a mixture of both.
        """
        meta = dict(meta)
        for split, file in self.files.items():
            if file.tell() == 0:
                raise UserError(f"the text is too short: {split}.bin would be empty")
            meta[f"{split}_tokens"] = file.tell() // 2
            meta[f"{split}_sha256"] = self.hashes[split].hexdigest()
            file.flush()
            os.fsync(file.fileno())  # the data must reach the disk before the rename does
            file.close()
        (self.target / "train.bin").unlink(missing_ok=True)
        with replacing(self.target / "meta.json") as temporary:
            text = json.dumps(meta, indent=1, ensure_ascii=False)
            temporary.write_text(text, encoding="utf-8", errors="surrogatepass")
        for split in ("val", "train"):
            os.replace(self.path(split), self.target / f"{split}.bin")
        shutil.rmtree(self.folder, ignore_errors=True)


def announce_replacing(folder):
    """Say that a new dataset replaces the one in `folder`, if there is one. Raises UserError if
    another program made it."""
    if (folder / "train.bin").exists():
        if not (folder / "meta.json").exists():
            raise UserError(f"{folder / 'train.bin'} has no meta.json next to it, so prepare.py "
                            "did not write it: move it away, or choose another --name")
        say(f"{relative(folder)}: this replaces the dataset of that name")


def beginning_hash(path, size):
    """The sha256 of the first `size` bytes of a file. Raises ValueError if it is shorter."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size:
            block = file.read(min(size, 1 << 20))
            if not block:
                raise ValueError(f"{path} is too short")
            digest.update(block)
            size -= len(block)
    return digest
