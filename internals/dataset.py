"""Prepared datasets: open and check token ids (train.bin, val.bin) and their meta.json."""

import io
import json
import pickle
import pickletools
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from internals.data.corpora import CORPORA, HUB_DATASETS
from internals.errors import UserError, reason
from internals.files import DATA, check_sha, relative
from internals.help import similar_dataset

MAX_VOCAB = 65_535  # ids are uint16, which overflows silently: 70000 would become 4464
MAX_IDS = 65_536  # of a vocabulary without text: all that uint16 can hold
GPT2_META = {"tokenizer": "gpt2", "vocab_size": 50257}  # the default for bins without a meta.json
SAMPLED = 2**20  # ids of a bin that are looked at to recognize other formats
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
        kind = self.meta["tokenizer"]
        if kind == "none":
            kind = "ids without text"
        elif not any((self.folder / name).exists() for name in ("meta.json", "meta.pkl")):
            kind = "no meta.json: read as GPT-2's tokens"
        return (f"{relative(self.folder)}: {len(self.train):,} tokens for training, "
                f"{len(self.val):,} for validation, vocabulary of {self.vocab_size:,} ({kind})")

    def same_tokenizer(self, meta):
        """Whether another meta.json describes the same tokenizer as this dataset's. Tokens that a
        fine-tuned GPT-2 has in addition do not count: the text has none of them."""
        keys = ["tokenizer", "chars"]
        if self.meta["tokenizer"] == "none":
            keys.append("vocab_size")
        return all(self.meta.get(key) == meta.get(key) for key in keys)


def prepare_command(folder):
    """The command that prepares a dataset, quoted for a shell."""
    name = folder.name
    words = ["python", "prepare.py"]
    words += [name] if name in CORPORA | HUB_DATASETS else ["FILE", f"--name={name}"]
    if folder.parent != DATA:
        words.append(f"--data_dir={folder.parent}")
    return shlex.join(words)


def load(folder, vocab_size=None):
    """Open a prepared dataset; returns a Dataset.

    vocab_size: the vocabulary size that is set for the model, or None. Bins without a meta.json are
    read as GPT-2 BPE, as in nanoGPT, unless the model's vocabulary is smaller than GPT-2's. Their
    ids then have no text.
    Raises UserError if a file is missing, does not match meta.json, or has an id outside the
    vocabulary.
    """
    again = f"`{prepare_command(folder)}`"
    if not (folder / "train.bin").exists():
        message = f"{folder / 'train.bin'} does not exist: make it with {again}"
        if folder.name in HUB_DATASETS:  # openwebtext is the default of train.py, as in nanoGPT
            message += (f", which takes {HUB_DATASETS[folder.name].gigabytes} GB; to begin with a "
                        "small dataset, run `python train.py config/quickstart.py`")
        raise UserError(message + similar_dataset(folder, CORPORA | HUB_DATASETS))
    meta = read_meta(folder)
    if meta is None:
        meta = GPT2_META
        if vocab_size is not None and vocab_size < GPT2_META["vocab_size"]:
            meta = check_meta({"tokenizer": "none", "vocab_size": vocab_size})
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
        check_foreign(ids, path, meta["vocab_size"])
    elif size <= CHECKSUM_LIMIT:  # if the checksum is right, prepare.py wrote only valid ids
        check_sha(path, sha, str(path))
    return ids


def check_foreign(ids, path, vocab_size):
    """Raises UserError if the bin of another program does not hold uint16 ids of the vocabulary."""
    first = ids[:SAMPLED]
    lower = set(np.unique(first % 256).tolist())
    upper = set(np.unique(first // 256).tolist())
    shared = len(lower & upper) / len(lower | upper)
    kind = None
    if first[:3].tobytes() == b"\x93NUMPY":
        kind = "a header of NumPy's .npy format"
    elif len(first) >= 8 and first.any() and not first[1::2].any():  # every second uint16 is 0
        kind = "uint32 or int64 numbers"
    # Bytes that are read in pairs have the same values in both halves. The halves of ids below
    # 52,000 share at most 80% of their values, because the upper half ends at 203.
    elif vocab_size < 52_000 and len(lower) > 2 and shared > 0.8:
        kind = "uint8 numbers, text, or other numbers"
    if kind:
        raise UserError(f"{path} seems to hold {kind}, but token ids must be uint16, without a "
                        "header: convert it, as in np.array(ids, dtype=np.uint16).tofile(path)")
    largest = int(ids.max())
    if largest >= vocab_size:
        raise UserError(f"{path} has the token id {largest}, but the vocabulary ends at "
                        f"{vocab_size - 1}: the bin was made with another tokenizer (a meta.pkl "
                        "next to it can tell the vocab_size), or its ids are not uint16")


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
    tokenizer = meta.get("tokenizer")
    n = meta.get("vocab_size")
    if type(n) is not int or not 1 <= n <= MAX_IDS:
        raise ValueError(f"vocab_size must be a whole number from 1 to {MAX_IDS:,}, not {n!r:.50}")
    if tokenizer == "char":
        chars = meta.get("chars")
        if not isinstance(chars, str) or not 1 <= len(set(chars)) == len(chars) == n <= MAX_VOCAB:
            raise ValueError("chars must be a text of distinct characters, as many as vocab_size, "
                             f"{n:,}, and at most {MAX_VOCAB:,}")
    elif tokenizer == "gpt2":
        expected = GPT2_META["vocab_size"] + len(check_added(meta.get("added", {})))
        if n != expected:
            raise ValueError(f"vocab_size must be {expected} for gpt2, not {n}")
    elif tokenizer != "none":
        raise ValueError(f"tokenizer must be char, gpt2 or none, not {tokenizer!r:.50}")
    if tokenizer != "char" and "chars" in meta:
        raise ValueError("chars are only for tokenizer=char")
    for split in ("train", "val"):
        tokens = meta.get(f"{split}_tokens", 1)
        if type(tokens) is not int or not 1 <= tokens < 2**63:
            raise ValueError(f"{split}_tokens must be a whole number, 1 or more")
        if not isinstance(meta.get(f"{split}_sha256", ""), str):
            raise ValueError(f"{split}_sha256 must be a text")
    return meta


def check_added(added):
    """Returns {token: id} of tokens that a model has besides GPT-2's, if it is valid; raises
    ValueError if not."""
    first = GPT2_META["vocab_size"]
    if not isinstance(added, dict) or list(added.values()) != list(
            range(first, first + len(added))):
        raise ValueError(f"added tokens must have the ids {first}, {first + 1}, ... in this order, "
                         f"not {added!r:.80}")
    for token in added:
        if not token or any(other != token and other.startswith(token) for other in added):
            raise ValueError(f"the added token {token!r:.50} is empty or begins another one")
    return added


class PlainUnpickler(pickle.Unpickler):
    """Unpickles plain values only. Raises UnpicklingError if the pickle refers to a function or a
    class, because unpickling could call it."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def parse_pickle(content):
    """Convert nanoGPT's meta.pkl to a dict like meta.json. It has {id: character}, or the list of
    characters, as itos. Programs for music, DNA or other tokenizers have another itos, or only a
    vocab_size; their ids have no text. A vocab_size of 50257 alone is GPT-2's."""
    try:
        # The unpickler allocates a list as long as the highest memo index, so a few damaged bytes
        # could allocate gigabytes. genops checks all other lengths against the content.
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name.endswith("PUT") and not 0 <= argument <= len(content):
                raise ValueError("it is damaged")
        found = PlainUnpickler(io.BytesIO(content)).load()
    except (ValueError, pickle.UnpicklingError):
        raise
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not isinstance(found, dict) or not {"itos", "vocab_size"} & found.keys():
        raise ValueError("it has neither itos nor vocab_size")
    itos = found.get("itos", [])
    if isinstance(itos, dict):
        if "vocab_size" not in found and itos.keys() != set(range(len(itos))):
            raise ValueError("itos must have the ids 0, 1, 2, ...")
        itos = [itos.get(i) for i in range(len(itos))]  # None if an id has no text
    if not isinstance(itos, (list, tuple, str)):
        raise ValueError(f"itos must be a dict or a list, not {type(itos).__name__}")
    n = found.get("vocab_size", len(itos))
    has_text = all(isinstance(char, str) and len(char) == 1 for char in itos)
    if has_text and n == len(itos):
        return {"tokenizer": "char", "chars": "".join(itos), "vocab_size": n}
    if not itos and n == GPT2_META["vocab_size"]:
        return GPT2_META
    return {"tokenizer": "none", "vocab_size": n}
