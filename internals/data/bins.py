"""The bins of a dataset while they are written, and how they replace the dataset before.

They grow in the folder `partial` of the dataset. The old dataset stays until they are complete.
"""

import hashlib
import json
import os
from contextlib import suppress

import numpy as np

from internals.dataset import read_meta
from internals.errors import UserError, say
from internals.files import relative, replacing

SPLITS = ("train", "val")


class Partial:
    """train.bin and val.bin of a dataset that is not complete. A context manager: at its end, they
    are removed unless they were published."""

    def __init__(self, folder):
        """folder: of the dataset."""
        self.target = folder
        self.folder = folder / "partial"
        self.remove()  # of a process that was killed
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files = {split: open(self.path(split), "wb") for split in SPLITS}
        self.hashes = {split: hashlib.sha256() for split in SPLITS}

    def path(self, split):
        return self.folder / f"{split}.bin"

    def remove(self):
        """Remove the bins and their folder, but nothing else that is in it."""
        with suppress(OSError):
            for split in SPLITS:
                self.path(split).unlink(missing_ok=True)
            self.folder.rmdir()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in self.files.values():
            with suppress(OSError):  # on a full disk, closing cannot write the buffer
                file.close()
        self.remove()
        with suppress(OSError):  # it stays if it has a dataset
            self.target.rmdir()

    def add(self, split, ids):
        """Append a chunk of ids."""
        data = np.asarray(ids).astype("<u2", copy=False).tobytes()
        self.files[split].write(data)
        self.hashes[split].update(data)

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


def announce_replacing(folder):
    """Say that a new dataset replaces the one in `folder`, if there is one. Raises UserError if
    another program made it, or if `partial` has other files than the bins."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder: move it away, or choose another --name")
    partial = folder / "partial"
    others = [path for path in partial.glob("*") if path.name not in ("train.bin", "val.bin")]
    if partial.is_file() or partial.is_symlink():
        others = [partial]
    if others:
        raise UserError(f"{others[0]} is in the way, because prepare.py uses the folder {partial} "
                        "for bins that are not complete: move it away, or choose another --name")
    names = ("train.bin", "val.bin", "meta.json")
    found = [name for name in names if (folder / name).exists()]
    if not found:
        return
    meta = None
    with suppress(UserError):  # it is damaged
        meta = read_meta(folder)
    # an interrupted `publish` leaves a meta.json with checksums too, so it can be repeated
    if meta is None or "train_sha256" not in meta:
        raise UserError(f"{folder} has {' and '.join(found)}, but no meta.json with checksums, so "
                        "prepare.py did not write that: move it away, or choose another --name")
    say(f"{relative(folder)}: this replaces the dataset of that name")
