"""Prepared datasets: what the ids in a folder mean, and the ids."""

import io
import json
import pickle

import numpy as np

from configurator import UserError
from internals.corpora import prepare_command
from internals.files import DATA, check_sha

GPT2_META = {"tokenizer": "gpt2", "vocab_size": 50257}  # of bins without a meta.json
CHECKSUM_LIMIT = 2**30  # bytes; a bigger bin is compared with its meta.json by its size alone


class PlainUnpickler(pickle.Unpickler):
    """Opens pickles of plain values; refuses one that names a function or a class, to call it."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def read_meta(folder):
    """What the ids in a folder mean: its meta.json, or nanoGPT's meta.pkl, as a dict; None where
    there is neither. Raises UserError for one that is something else."""
    for path in folder / "meta.json", folder / "meta.pkl":
        try:
            if path.suffix == ".json":
                meta = json.loads(path.read_text(encoding="utf-8"))
            else:
                itos = PlainUnpickler(io.BytesIO(path.read_bytes())).load()["itos"]
                chars = "".join(itos[i] for i in range(len(itos)))
                meta = {"tokenizer": "char", "chars": chars, "vocab_size": len(itos)}
            if meta["tokenizer"] not in ("char", "gpt2"):
                raise ValueError(f"unknown tokenizer {meta['tokenizer']!r}")
            if meta["tokenizer"] == "char" and type(meta["chars"]) is not str:
                raise ValueError("chars must be a string")
            if type(meta["vocab_size"]) is not int:
                raise ValueError("vocab_size must be a number")
            return meta
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} is not what prepare.py writes "
                            f"({type(error).__name__}: {error})") from None


def load_bins(folder):
    """Open a prepared dataset.

    Returns (meta, {"train": ids, "val": ids}): the dict of meta.json, and memory-mapped uint16 ids.
    Raises UserError where a file is missing, is not what meta.json says, or has an id outside the
    vocabulary. Bins alone are GPT-2 BPE, as in nanoGPT.
    """
    elsewhere = "" if folder.parent == DATA else f" --data_dir={folder.parent}"
    make = f"`{prepare_command(folder.name)}{elsewhere}`"
    if not (folder / "train.bin").exists():
        raise UserError(f"there is no {folder / 'train.bin'}: make it with {make}")
    meta, bins = read_meta(folder) or GPT2_META, {}
    for split in ("train", "val"):
        path = folder / f"{split}.bin"
        if not path.exists() or not (size := path.stat().st_size) or size % 2:
            raise UserError(f"{path} is missing, empty or of odd size, so not uint16 token ids: "
                            f"{make} makes it anew")
        if size != 2 * meta.get(f"{split}_tokens", size // 2):
            raise UserError(f"{path} has {size // 2:,} tokens, but meta.json beside it says "
                            f"{meta[f'{split}_tokens']:,}: {make} makes both anew")
        ids = bins[split] = np.memmap(path, dtype="<u2", mode="r")
        if f"{split}_sha256" in meta:  # of ids that write_bins got from the tokenizer itself
            if size <= CHECKSUM_LIMIT:
                check_sha(path, meta[f"{split}_sha256"], str(path))
        elif (largest := int(ids.max())) >= meta["vocab_size"]:
            raise UserError(f"{path} has the token id {largest}, but the vocabulary ends at "
                            f"{meta['vocab_size'] - 1}: the bin was made with another tokenizer")
    return meta, bins
