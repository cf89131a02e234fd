"""Turn text into token files: train.bin, val.bin and meta.json. This file defines the tokenizers.

    python prepare.py plays_char                                 a built-in dataset
    python prepare.py a.txt b.txt --name=mine --tokenizer=char   your own text files
    python train.py --dataset=mine

A bin is a file of token ids: raw little-endian uint16, no header. meta.json says what the ids mean
(tokenizer and vocabulary), and has the number of tokens and a checksum of each bin, and the command
that wrote them. The first 90% of the characters are for training, the rest for validation. Huge
datasets are streamed, and every 2,000th document is for validation.
"""

import hashlib
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from tqdm import tqdm

from configurator import UserError, configure, one_line_errors
from internals import dataset, usage
from internals.corpora import CORPORA, HUB_DATASETS, corpus_text, gpt2_encoding, stream_documents
from internals.dataset import MAX_VOCAB
from internals.files import DATA, locked, printable, read_text, relative, replacing
from internals.limits import Limit

END_OF_TEXT = "<|endoftext|>"


@dataclass
class PrepareConfig:
    """The settings of prepare.py."""

    # a built-in dataset (plays_char, plays, shakespeare_char, shakespeare, addition, openwebtext,
    # fineweb), or text files in UTF-8
    texts: tuple[str, ...]
    # for text files: name of the dataset, and of its folder in data_dir; None: from the first file
    name: str | None = None
    # for text files: char (one token per character), gpt2 (GPT-2's BPE, for a megabyte of text or
    # more), or the name of a prepared dataset, whose tokenizer is used
    tokenizer: str = "char"
    data_dir: str | None = None  # folder of the datasets; None: data/ next to prepare.py
    # for addition: number of digits of the two numbers that are added
    digits: Annotated[int, Limit("1, 2 or 3", least=1, most=3)] = 3
    reverse: bool = True  # for addition: write the sum with its last digit first


# --------------------------------------------------------------------------------------------------
# Tokenizers. Both classes have
#   n_vocab        the vocabulary size
#   encode(text)   str -> int64 array (n,) of ids
#   decode(ids)    ids -> str; decode_bytes(ids) -> bytes
#   end_of_text    the id of <|endoftext|>, or None
#   default_start  the prompt of sample.py if --start is not given
#   meta           the fields of meta.json from which tokenizer_from_meta restores the tokenizer


class CharTokenizer:
    """One token for each character that occurs in the text; ids are in the order of code points."""

    end_of_text = None

    def __init__(self, chars):
        """chars: a str of distinct characters. Raises UserError if there are too many."""
        if not 1 <= len(chars) <= MAX_VOCAB:
            raise UserError(f"{len(chars):,} different characters do not fit into uint16 ids "
                            f"(at most {MAX_VOCAB:,}): use --tokenizer=gpt2")
        self.chars = chars
        self.n_vocab = len(chars)
        self.default_start = "\n" if "\n" in chars else chars[0]
        self.meta = {"tokenizer": "char", "chars": chars}
        self.id_of = {char: i for i, char in enumerate(chars)}

    def encode(self, text, special=False, threads=1):
        """Raises UserError if a character is not in the vocabulary; the message names it. special,
        threads: for the interface of GPT2Tokenizer; they have no effect here."""
        try:
            ids = [self.id_of[char] for char in text]
        except KeyError as error:
            char = error.args[0]
            raise UserError(f"the character {char!r} (U+{ord(char):04X}) is not among the "
                            f"{self.n_vocab} characters of the vocabulary, which come from the "
                            "training text: remove it, or use --tokenizer=gpt2") from None
        return np.array(ids, dtype=np.int64)

    def decode(self, ids):
        return "".join(self.chars[i] for i in ids)

    def decode_bytes(self, ids):
        # "surrogatepass": nanoGPT's meta.pkl can have lone surrogates in its vocabulary
        return self.decode(ids).encode("utf-8", "surrogatepass")


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding (Radford et al. 2019, section 2.2), computed by tiktoken."""

    n_vocab = 50257
    end_of_text = 50256
    default_start = "\n"

    def __init__(self):
        self.bpe = gpt2_encoding()
        self.meta = {"tokenizer": "gpt2"}

    def encode(self, text, special=False, threads=1):
        """special: encode "<|endoftext|>" as the special token, not as text. threads: how many
        threads share the work."""
        if special:
            ids = self.bpe.encode(text, allowed_special={END_OF_TEXT})
        else:
            lists = self.bpe.encode_ordinary_batch(list(pieces(text, 1 << 16)), num_threads=threads)
            ids = [i for part in lists for i in part]
        return np.array(ids, dtype=np.int64)

    def decode_bytes(self, ids):
        """A token can end in the middle of a UTF-8 character."""
        return self.bpe.decode_bytes([int(i) for i in ids])

    def decode(self, ids):
        """Invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")


def tokenizer_from_meta(meta):
    """The tokenizer that a meta.json describes; checkpoints contain a copy of that file."""
    if meta["tokenizer"] == "char":
        return CharTokenizer(meta["chars"])
    return GPT2Tokenizer()


def pieces(text, size):
    """Split `text` into pieces of about `size` characters such that encoding the pieces and
    concatenating gives the same BPE ids as encoding the whole text. GPT-2's pattern always splits
    before the first white space after a word, so `text` is split only there."""
    before_space = re.compile(r"(?<=\S)(?=\s)")
    start = 0
    while start < len(text):
        match = before_space.search(text, start + size)
        end = match.start() if match else len(text)
        yield text[start:end]
        start = end


# --------------------------------------------------------------------------------------------------
# Text -> bins


def text_chunks(texts, tokenizer, size=1 << 22):
    """Yields (split, ids): the first 90% of all characters are for training. If there are several
    texts and the tokenizer is BPE, <|endoftext|> follows each text."""
    total = sum(map(len, texts))
    cut = int(total * 0.9)
    position = 0  # of the current text: the number of characters before it
    with tqdm(total=total, unit=" characters", unit_scale=True, disable=None, leave=False) as bar:
        for text in texts:
            before_cut = min(max(cut - position, 0), len(text))
            for split, part in ("train", text[:before_cut]), ("val", text[before_cut:]):
                for piece in pieces(part, size):
                    yield split, tokenizer.encode(piece, threads=os.cpu_count())
                    bar.update(len(piece))
            position += len(text)
            if len(texts) > 1 and tokenizer.end_of_text is not None:
                yield "train" if position <= cut else "val", [tokenizer.end_of_text]


def document_chunks(batches, tokenizer):
    """Yields (split, ids) of each document. batches: lists of documents. Every 2,000th document is
    for validation."""
    number = 0
    for texts in tqdm(batches, unit=" batches of documents", disable=None):
        for ids in tokenizer.bpe.encode_ordinary_batch(texts):
            yield "train" if number % 2000 else "val", [*ids, tokenizer.end_of_text]
            number += 1


def write_bins(folder, tokenizer, chunks, source, command):
    """Write train.bin, val.bin and meta.json.

    folder: data/<name>. chunks: an iterator of ("train" or "val", ids).
    source, command: the origin of the text, and the command that prepares it, for meta.json.
    The old train.bin is removed first and the new one comes last. So an interrupted run leaves the
    old dataset, or one without train.bin, but never a mixture of both.
    """
    replaces = (folder / "train.bin").exists()
    if replaces and not (folder / "meta.json").exists():
        raise UserError(f"{folder / 'train.bin'} has no meta.json next to it, so prepare.py did "
                        "not write it: move it away, or choose another --name")
    if replaces:
        print(f"{relative(folder)}: this replaces the dataset of that name")
    meta = {**tokenizer.meta, "vocab_size": tokenizer.n_vocab, "source": printable(source),
            "command": printable(command)}
    # the new files get their names when this block ends: val.bin first, then train.bin
    with replacing(folder / "train.bin") as train, replacing(folder / "val.bin") as val:
        with open(train, "wb") as train_file, open(val, "wb") as val_file:
            files = {"train": train_file, "val": val_file}
            hashes = {"train": hashlib.sha256(), "val": hashlib.sha256()}
            for split, ids in chunks:
                data = np.asarray(ids).astype("<u2").tobytes()
                files[split].write(data)
                hashes[split].update(data)
            for split, file in files.items():
                meta[f"{split}_tokens"] = file.tell() // 2
                meta[f"{split}_sha256"] = hashes[split].hexdigest()
                if file.tell() == 0:
                    raise UserError(f"the text is too short: {split}.bin would be empty")
        (folder / "train.bin").unlink(missing_ok=True)
        with replacing(folder / "meta.json") as temporary:
            text = json.dumps(meta, indent=1, ensure_ascii=False)
            temporary.write_text(text, encoding="utf-8", errors="surrogatepass")


def prepare_texts(texts, folder, tokenizer, source, command):
    """Tokenize texts and write the bins to `folder`. tokenizer: "char", "gpt2", or the name of a
    dataset in the same data folder, whose tokenizer is used."""
    if tokenizer == "char":
        tokenizer = CharTokenizer("".join(sorted(set().union(*texts))))
    elif tokenizer == "gpt2":
        tokenizer = GPT2Tokenizer()
    else:
        meta = dataset.read_meta(folder.parent / tokenizer)
        if meta is None:
            raise UserError(f"tokenizer={tokenizer} is neither char nor gpt2, nor a dataset in "
                            f"{folder.parent}")
        tokenizer = tokenizer_from_meta(meta)
    write_bins(folder, tokenizer, text_chunks(texts, tokenizer), source, command)


def prepare_corpus(folder, command=None, **options):
    """Prepare the built-in dataset that has the name of `folder`. options: digits and reverse, for
    addition."""
    command = command or dataset.prepare_command(DATA / folder.name)
    if folder.name in HUB_DATASETS:
        batches = stream_documents(folder.name, folder)
        tokenizer = GPT2Tokenizer()
        source = f"the Hugging Face hub, {HUB_DATASETS[folder.name].address}"
        write_bins(folder, tokenizer, document_chunks(batches, tokenizer), source, command)
    else:
        text, source = corpus_text(folder.name, folder, **options)
        prepare_texts([text], folder, CORPORA[folder.name].tokenizer, source, command)


def open_dataset(name, data_dir=None):
    """Open a dataset; returns an internals.dataset.Dataset. data_dir: None is data/. If a built-in
    dataset is missing, one process prepares it, and the others wait."""
    folder = Path(data_dir or DATA) / name
    if name in CORPORA and not (folder / "train.bin").exists():
        with locked(folder):
            if not (folder / "train.bin").exists():  # otherwise another process prepared it
                print(f"{relative(folder)} is missing: preparing it")
                prepare_corpus(folder)
    return dataset.load(folder)


# --------------------------------------------------------------------------------------------------
# The command line


def main(argv=None):
    given, cfg = configure(__doc__, PrepareConfig, argv=argv, positional=["texts"])
    command = shlex.join(["python", "prepare.py", *(sys.argv[1:] if argv is None else argv)])
    data_dir = Path(cfg.data_dir or DATA)
    builtin = CORPORA | HUB_DATASETS
    first = cfg.texts[0]
    options = {name: given[name] for name in ("digits", "reverse") if name in given}
    if options and first != "addition":
        raise UserError(f"--{next(iter(options))} applies only to addition, not to {first}")

    if first in builtin:
        if len(cfg.texts) > 1 or "name" in given or "tokenizer" in given:
            raise UserError(f"{first} is a built-in dataset with a fixed name and tokenizer: "
                            "give it alone, without --name and --tokenizer")
        with locked(data_dir / first):
            prepare_corpus(data_dir / first, command if options else None, **options)
        return print(dataset.load(data_dir / first).summary())

    for path in cfg.texts:
        problem = usage.no_text_file(path, builtin)
        if problem:
            raise UserError(problem)
    name = cfg.name
    if name is None:  # "my novel.txt" becomes my-novel
        name = re.sub(r"[^\w.-]+", "-", Path(first).stem).strip("-.")
    if name in builtin or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"your dataset cannot be called {name!r}: choose a --name of letters, "
                        "digits, '.', '_' and '-' that is not the name of a built-in dataset")
    texts = [read_text(path) for path in cfg.texts]
    with locked(data_dir / name):
        prepare_texts(texts, data_dir / name, cfg.tokenizer, ", ".join(cfg.texts), command)
    print(dataset.load(data_dir / name).summary())


if __name__ == "__main__":
    with one_line_errors():
        main()
