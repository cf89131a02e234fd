"""Prepared datasets: open and check token ids (train.bin, val.bin) and their meta.json."""

import io
import json
import pickle
import pickletools
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configurator import UserError, reason
from internals.corpora import CORPORA, HUB_DATASETS
from internals.files import DATA, check_sha, relative

MAX_VOCAB = 65_535  # ids are uint16, which overflows silently: 70000 would become 4464
GPT2_META = {"tokenizer": "gpt2", "vocab_size": 50257}  # the default for bins without a meta.json
META_LIMIT = 2**24  # bytes; the largest valid meta.json, with 65,535 characters, is below 1 MB
CHECKSUM_LIMIT = 2**30  # bytes; for larger bins, only the size is compared with meta.json


@dataclass
class Dataset:
    """An open dataset. train, val: memory-mapped uint16 ids."""

    folder: Path
    meta: dict
    train: np.ndarray
    val: np.ndarray

    @property
    def vocab_size(self):
        return self.meta["vocab_size"]

    @property
    def padded_vocab_size(self):
        """The vocabulary size of a new model. GPT-2's vocabulary is padded to a multiple of 64,
        which makes matrix products faster."""
        if self.meta["tokenizer"] == "gpt2":
            return -(-self.vocab_size // 64) * 64
        return self.vocab_size

    def summary(self):
        """One line: the folder, the number of tokens, and the vocabulary."""
        return (f"{relative(self.folder)}: {len(self.train):,} tokens for training, "
                f"{len(self.val):,} for validation, vocabulary of {self.vocab_size:,} "
                f"({self.meta['tokenizer']})")

    def same_tokenizer(self, meta):
        """Whether another meta.json describes the same tokenizer as this dataset's."""
        return all(self.meta.get(key) == meta.get(key) for key in ("tokenizer", "chars"))


def prepare_command(folder):
    """The command that prepares a dataset, quoted for a shell."""
    name = folder.name
    words = ["python", "prepare.py"]
    words += [name] if name in CORPORA | HUB_DATASETS else ["FILE", f"--name={name}"]
    if folder.parent != DATA:
        words.append(f"--data_dir={folder.parent}")
    return shlex.join(words)


def load(folder):
    """Open a prepared dataset; returns a Dataset.

    Raises UserError if a file is missing, does not match meta.json, or has an id outside the
    vocabulary. Bins without a meta.json are read as GPT-2 BPE, as in nanoGPT.
    """
    again = f"`{prepare_command(folder)}`"
    if not (folder / "train.bin").exists():
        message = f"{folder / 'train.bin'} does not exist: make it with {again}"
        if folder.name in HUB_DATASETS:  # openwebtext is the default of train.py, as in nanoGPT
            message += (f", which takes {HUB_DATASETS[folder.name].gigabytes} GB; to begin with a "
                        "small dataset, run `python train.py config/quickstart.py`")
        raise UserError(message)
    meta = read_meta(folder) or GPT2_META
    train = open_bin(folder / "train.bin", meta, again)
    val = open_bin(folder / "val.bin", meta, again)
    return Dataset(folder, meta, train, val)


def open_bin(path, meta, again):
    """The ids of a bin, checked against its meta.json. again: the command that prepares it, for
    error messages."""
    size = path.stat().st_size if path.exists() else 0
    if size == 0 or size % 2:
        raise UserError(f"{path} is missing, empty or of odd size, so it does not hold uint16 "
                        f"token ids: prepare it again with {again}")
    tokens = meta.get(f"{path.stem}_tokens")
    if tokens is not None and size != 2 * tokens:
        raise UserError(f"{path} has {size // 2:,} tokens, but the meta.json next to it says "
                        f"{tokens:,}: prepare both again with {again}")
    ids = np.memmap(path, dtype="<u2", mode="r")
    sha = meta.get(f"{path.stem}_sha256")
    if sha is None:
        largest = int(ids.max())
        if largest >= meta["vocab_size"]:
            raise UserError(f"{path} has the token id {largest}, but the vocabulary ends at "
                            f"{meta['vocab_size'] - 1}: the bin was made with another tokenizer")
    elif size <= CHECKSUM_LIMIT:  # if the checksum is right, prepare.py wrote only valid ids
        check_sha(path, sha, str(path))
    return ids


def read_meta(folder):
    """The meta.json of a folder as a dict, or nanoGPT's meta.pkl in the same form; None if the
    folder has neither. Raises UserError if the file is damaged."""
    for path, parse in (folder / "meta.json", json.loads), (folder / "meta.pkl", parse_pickle):
        try:
            if path.stat().st_size > META_LIMIT:
                raise ValueError(f"it has more than {META_LIMIT:,} bytes")
            return check_meta(parse(path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (ValueError, RecursionError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} is not what prepare.py writes: {reason(error)}") from None
    return None


def check_meta(meta):
    """Returns `meta` if it is valid; raises ValueError if not."""
    if not isinstance(meta, dict):
        raise ValueError("it must be a dict")
    tokenizer, n = meta.get("tokenizer"), meta.get("vocab_size")
    if tokenizer not in ("char", "gpt2"):
        raise ValueError(f"tokenizer must be char or gpt2, not {tokenizer!r:.50}")
    if tokenizer == "gpt2" and (type(n) is not int or n != GPT2_META["vocab_size"]):
        raise ValueError(f"vocab_size must be {GPT2_META['vocab_size']} for gpt2")
    if tokenizer == "char":
        chars = meta.get("chars")
        if not isinstance(chars, str) or not 1 <= len(chars) <= MAX_VOCAB:
            raise ValueError(f"chars must be a text of 1 to {MAX_VOCAB:,} characters")
        if len(set(chars)) != len(chars):
            raise ValueError("chars must be distinct characters")
        if type(n) is not int or n != len(chars):
            raise ValueError(f"vocab_size must be {len(chars)}, the number of chars")
    elif "chars" in meta:
        raise ValueError("chars are only for tokenizer=char")
    for split in ("train", "val"):
        tokens, sha = meta.get(f"{split}_tokens", 1), meta.get(f"{split}_sha256", "")
        if type(tokens) is not int or not 1 <= tokens < 2**63:
            raise ValueError(f"{split}_tokens must be a whole number, 1 or more")
        if not isinstance(sha, str):
            raise ValueError(f"{split}_sha256 must be a text")
    return meta


class PlainUnpickler(pickle.Unpickler):
    """Unpickles plain values only. Raises UnpicklingError if the pickle refers to a function or a
    class, because unpickling could call it."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def parse_pickle(content):
    """Convert nanoGPT's meta.pkl, which has {id: character}, to a dict like meta.json."""
    try:
        # The unpickler allocates a list as long as the highest memo index, so a few damaged bytes
        # could allocate gigabytes. genops checks all other lengths against the content.
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name.endswith("PUT") and not 0 <= argument <= len(content):
                raise ValueError("it is damaged")
        itos = PlainUnpickler(io.BytesIO(content)).load()["itos"]
        chars = [itos[i] for i in range(len(itos))]
    except (ValueError, pickle.UnpicklingError):
        raise
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not all(isinstance(char, str) and len(char) == 1 for char in chars):
        raise ValueError("itos must have one character for each id")
    return {"tokenizer": "char", "chars": "".join(chars), "vocab_size": len(chars)}


def match(model_cfg, data, cfg, start, given):
    """Returns model_cfg; for a new model, with the vocabulary size of the dataset.

    start: the Checkpoint that training starts from; its model is None for a new model.
    given: {name: value} of the settings that are set explicitly.
    Raises UserError if the dataset, the settings and the checkpoint do not fit together.
    """
    T = model_cfg.block_size
    if cfg.batch_size * cfg.gradient_accumulation_steps > 2**20:
        raise UserError(f"batch_size={cfg.batch_size} x gradient_accumulation_steps="
                        f"{cfg.gradient_accumulation_steps} must be at most 1,048,576")
    if T % cfg.align:
        raise UserError(f"block_size={T} must be a multiple of align={cfg.align}; otherwise only "
                        "the first sequence of an epoch would be aligned")
    for split, ids in (("train", data.train), ("val", data.val)):
        if len(ids) <= T:
            raise UserError(f"block_size={T:,} is too long for {data.folder / split}.bin "
                            f"({len(ids):,} tokens); use a smaller block_size or more text")
    if start.model is None and "vocab_size" not in given:
        model_cfg = replace(model_cfg, vocab_size=data.padded_vocab_size)
    if start.model is not None and not data.same_tokenizer(start.meta):
        name = "gpt2" if start.meta.get("tokenizer") == "gpt2" else "NAME, the model's dataset"
        raise UserError(f"{data.folder} has a different tokenizer than the model to start from: "
                        f"prepare the text with --tokenizer={name}")
    if model_cfg.vocab_size < data.vocab_size:
        raise UserError(f"vocab_size={model_cfg.vocab_size} is less than the {data.vocab_size} "
                        f"tokens in the vocabulary of {data.folder}: leave it out")
    return model_cfg
