"""Turn text into token files: train.bin, val.bin and meta.json. This file defines the tokenizers.

    python prepare.py plays_char                                        a built-in dataset
    python prepare.py novel.txt                                         your own text
    python prepare.py notes/ wiki.jsonl.zst --name=mine --tokenizer=gpt2
    python train.py --dataset=mine

A bin is a file of token ids: raw little-endian uint16, no header. meta.json says what the ids mean
(tokenizer and vocabulary), and has the counts and a checksum of each bin, and the command that
wrote them. The text can be larger than memory. An old dataset stays until the new one is complete.
In internals/data, sources.py reads the text, units.py cuts it into units (pieces of bounded
size) and encodes them in threads with a tokenizer of this file, and bins.py writes the ids.
"""

import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from configurator import configure
from internals import dataset
from internals.cores import available_cores
from internals.data import bins, corpora, estimate, sources, units
from internals.data.corpora import CORPORA, HUB_DATASETS, gpt2_encoding, with_special_tokens
from internals.data.formats import normalized
from internals.data.sources import Reader
from internals.data.units import END_OF_TEXT
from internals.dataset import MAX_VOCAB
from internals.errors import UserError, one_line_errors, say
from internals.files import DATA, locked, printable, relative
from internals.help import similar_dataset
from internals.limits import Count, Limit, ProperFraction


@dataclass
class PrepareConfig:
    """The settings of prepare.py."""

    # a built-in dataset (plays_char, plays, shakespeare_char, shakespeare, addition, openwebtext,
    # fineweb); or your text: files, folders, patterns such as 'notes/*.md', or - for stdin. Files
    # are .jsonl, .json, .parquet, or text in UTF-8; .gz, .xz, .bz2 and .zst are decompressed
    sources: tuple[str, ...]
    # for your text: name of the dataset, and of its folder in data_dir; None: from the first source
    name: str | None = None
    # for your text: char (one token per character), gpt2 (GPT-2's BPE, for a megabyte of text or
    # more), or the name of a prepared dataset, whose tokenizer is used
    tokenizer: str = "char"
    data_dir: str | None = None  # folder of the datasets; None: data/ next to prepare.py
    # for your text: the share for validation. For a single text, it is the end of the text. For
    # documents (several files, or lines or rows), a hash of each document decides
    val_fraction: ProperFraction = 0.1
    text_field: str = "text"  # the field of JSON objects, or column of parquet files, with the text
    # ends a document in a text file, as in --separator='<|endoftext|>'; None: a file is a document
    separator: str | None = None
    # replace: invalid UTF-8 becomes U+FFFD; with --tokenizer=DATASET, characters that are not in
    # its vocabulary are removed
    errors: Literal["strict", "replace"] = "strict"
    workers: Count | None = None  # threads that encode; None: one per CPU core
    dry_run: bool = False  # print what the preparation will take, and stop
    # for addition: number of digits of the two numbers that are added
    digits: Annotated[int, Limit("1, 2 or 3", least=1, most=3)] = 3
    # for addition: write the sum with its last digit first, in the order of adding on paper
    reverse: bool = True


# --------------------------------------------------------------------------------------------------
# Tokenizers. Both classes have
#   n_vocab        the vocabulary size
#   encode(text, special)   str -> int64 array (n,) of ids; special: <|endoftext|> is one token
#   encode_documents(texts, ends)   list of str -> uint16 array (n,) of ids, for a bin. Each text is
#                  a document; ends=False: the last one is not complete, and continues in the
#                  next call
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
        self.default_start = chars[0]
        if "\n" in chars:
            self.default_start = "\n"
        self.meta = {"tokenizer": "char", "chars": chars}
        # id_of[code point]: the id, or MAX_VOCAB, which is not an id. The last entry stands for all
        # larger code points
        points = units.code_points(chars)
        self.id_of = np.full(points.max() + 2, MAX_VOCAB, dtype=np.uint16)
        self.id_of[points] = np.arange(len(chars))
        self.remove_unknown = False  # units.check_vocabulary sets it if errors=replace

    def encode(self, text, special=False):
        """Raises UserError if characters are not in the vocabulary; the message names them.
        special: for the interface of GPT2Tokenizer; it has no effect here."""
        points = units.code_points(text)
        points = np.minimum(points, len(self.id_of) - 1)
        ids = self.id_of[points]
        known = ids != MAX_VOCAB
        if self.remove_unknown:
            ids = ids[known]
        elif not known.all():
            unknown = estimate.named(sorted(set(text) - set(self.chars)))
            raise UserError(
                f"the text has characters that are not among the {self.n_vocab} of the vocabulary, "
                f"which come from the training text: {unknown}; remove them, or prepare the text "
                "with --tokenizer=gpt2")
        return ids.astype(np.int64)

    def encode_documents(self, texts, ends=True):
        """A document that does not end with a newline gets one, if the vocabulary has it."""
        complete = texts
        continued = []
        if not ends:
            complete = texts[:-1]
            continued = texts[-1:]
        if "\n" in self.chars:
            complete = [text.removesuffix("\n") + "\n" for text in complete]
        ids = self.encode("".join(complete + continued))
        return ids.astype(np.uint16)

    def decode(self, ids):
        return "".join(self.chars[i] for i in ids)

    def decode_bytes(self, ids):
        # "surrogatepass": nanoGPT's meta.pkl can have lone surrogates in its vocabulary
        return self.decode(ids).encode("utf-8", "surrogatepass")


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding (Radford et al. 2019, section 2.2), computed by tiktoken."""

    end_of_text = 50256
    default_start = "\n"

    def __init__(self, added=None):
        """added: {token: id} of the special tokens that a fine-tuned model has besides GPT-2's."""
        self.bpe = gpt2_encoding()
        self.meta = {"tokenizer": "gpt2"}
        if added:
            self.bpe = with_special_tokens(self.bpe, added)
            self.meta["added"] = added
        self.special = self.bpe.special_tokens_set
        self.n_vocab = self.bpe.n_vocab

    def encode(self, text, special=False):
        """special: encode "<|endoftext|>" and added tokens as special tokens, not as text."""
        if special:  # a prompt, which is short
            ids = self.bpe.encode(text, allowed_special=self.special)
        else:
            ids = []
            # tiktoken is slow with very long texts: cut them where no token can be on both sides
            for piece in units.pieces([text]):
                ids += self.bpe.encode_ordinary(piece)
        return np.array(ids, dtype=np.int64)

    def encode_documents(self, texts, ends=True):
        """<|endoftext|> follows each document."""
        # If a document contains it as text, it must not become the special token there
        if any(END_OF_TEXT in text for text in texts):
            ids = []
            for text in texts:
                ids += self.bpe.encode_ordinary(text)
                ids.append(self.end_of_text)
            if not ends:
                ids.pop()
            return np.array(ids, dtype=np.uint16)
        joined = END_OF_TEXT.join(texts)
        if ends:
            joined += END_OF_TEXT
        # unlike encode_ordinary, encode_to_numpy makes no Python object for each id.
        # disallowed_special=(): the names of other special tokens are ordinary text
        ids = self.bpe.encode_to_numpy(
            joined, allowed_special={END_OF_TEXT}, disallowed_special=())
        return ids.astype(np.uint16)

    def decode_bytes(self, ids):
        """A token can end in the middle of a UTF-8 character."""
        return self.bpe.decode_bytes([int(i) for i in ids])

    def decode(self, ids):
        """Invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")


def tokenizer_from_meta(meta):
    """The tokenizer that a meta.json describes; checkpoints contain a copy of that file. Raises
    UserError if the ids have no text."""
    if meta["tokenizer"] == "char":
        return CharTokenizer(meta["chars"])
    if meta["tokenizer"] == "none":
        raise UserError(f"the vocabulary of {meta['vocab_size']:,} token ids has no text: another "
                        "program made the ids, and only it can turn them into text")
    return GPT2Tokenizer(meta.get("added"))


def tokenizer_named(kind, data_dir):
    """The tokenizer for `kind`: gpt2, or a dataset in data_dir. None for char:
    its characters are not known before the text is read."""
    if kind == "char":
        return None
    if kind == "gpt2":
        return GPT2Tokenizer()
    meta = dataset.read_meta(data_dir / kind)
    if meta is None:
        hint = similar_dataset(data_dir / kind, ("char", "gpt2"))
        raise UserError(f"tokenizer={kind} is neither char nor gpt2, nor a dataset in {data_dir}"
                        f"{hint}")
    return tokenizer_from_meta(meta)


# --------------------------------------------------------------------------------------------------
# Text -> bins


def prepare_sources(reader, folder, kind, source, command, cfg):
    """Tokenize the text of a Reader, write the bins to `folder`, which is data/<name>, and print a
    summary. If cfg.dry_run is set, it only prints an estimate.

    reader: its blocks() are the text in pieces, its documents() one by one; one_text: whether the
    text is not divided into documents; excerpt(): its beginning.
    kind: "char", "gpt2", or the name of a dataset in the same data folder, whose tokenizer is used.
    source, command: the origin of the text, and the command that prepares it, for meta.json.
    cfg: a PrepareConfig, for val_fraction, workers and dry_run.
    """
    started = time.perf_counter()
    tokenizer = tokenizer_named(kind, folder.parent)
    excerpt = reader.excerpt()
    trial = tokenizer  # for the estimate of time and size that is printed first
    # The vocabulary of the text is not known yet, and that of another dataset may lack characters,
    # which write_bins will report. So the estimate uses the characters of the excerpt
    if not isinstance(tokenizer, GPT2Tokenizer):
        _, chars = units.survey(excerpt.blocks)  # the number of characters, and the distinct ones
        trial = CharTokenizer(chars)
    workers = cfg.workers or available_cores()
    is_char = isinstance(trial, CharTokenizer)
    estimate.announce(reader, excerpt, trial.encode_documents, workers, folder, is_char)
    if cfg.dry_run:
        return
    bins.announce_replacing(folder)
    with locked(folder):  # processes that prepare the same dataset run one after the other
        counts = write_bins(reader, folder, tokenizer, kind, source, command, cfg)
    estimate.report(dataset.load(folder), time.perf_counter() - started)
    estimate.remark(counts, reader)


def write_bins(reader, folder, tokenizer, kind, source, command, cfg):
    """Write train.bin, val.bin and meta.json of prepare_sources. tokenizer: None if its vocabulary
    is that of the text. Returns units.Counts."""
    is_char = not isinstance(tokenizer, GPT2Tokenizer)  # None becomes a CharTokenizer
    n_characters = None  # used only for one text: where its last part, for validation, begins
    if reader.one_text or is_char:
        with estimate.progress(reader.size, "reading") as advance:
            n_characters, chars = units.survey(reader.blocks(advance), vocabulary=is_char)
    if tokenizer is None:
        if not reader.one_text:
            chars = "".join(sorted({*chars, "\n"}))  # documents end with a newline
        tokenizer = CharTokenizer(chars)
    elif is_char:
        units.check_vocabulary(tokenizer, kind, chars, reader.errors)

    val_fraction = cfg.val_fraction
    if not reader.one_text:
        # with few documents: the closest fraction that leaves a document in each split
        val_fraction = units.usable_fraction(reader, val_fraction)
    counts = units.Counts()
    workers = cfg.workers or available_cores()
    # the old files stay until `publish`
    with bins.Partial(folder) as partial, estimate.progress(reader.size, "encoding") as advance:
        if reader.one_text:
            blocks = reader.blocks(advance)
            parts = units.text_units(blocks, n_characters, val_fraction, counts)
        else:
            parts = units.document_units(reader.documents(advance), val_fraction, counts)
        for split, ids in units.encoded(parts, tokenizer.encode_documents, workers):
            partial.add(split, ids)
        meta = dict(tokenizer.meta)
        meta["vocab_size"] = tokenizer.n_vocab
        meta["source"] = printable(source)
        meta["command"] = printable(command)
        partial.publish(meta | counts.meta())
    return counts


def prepare_corpus(folder, command=None, cfg=None, **options):
    """prepare_sources for the built-in dataset that has the name of `folder`. options: digits and
    reverse, for addition."""
    command = command or dataset.prepare_command(DATA / folder.name)  # for meta.json
    cfg = cfg or PrepareConfig(sources=(folder.name,))
    if folder.name in HUB_DATASETS:
        hub = corpora.HubDocuments(folder.name, folder)
        cfg = replace(cfg, val_fraction=corpora.HUB_VAL_FRACTION)
        prepare_sources(Reader([hub]), folder, "gpt2", hub.source, command, cfg)
    else:
        path, source = corpora.corpus_file(folder.name, folder, **options)
        reader = Reader([sources.File(path)])
        tokenizer = CORPORA[folder.name].tokenizer
        prepare_sources(reader, folder, tokenizer, source, command, cfg)


def open_dataset(name, data_dir=None, vocab_size=None):
    """Open a dataset; returns an internals.dataset.Dataset. data_dir: None: data/. vocab_size: see
    internals.dataset.load. If one of CORPORA is missing, one process prepares it, and the others
    wait. (openwebtext and fineweb are large: run prepare.py for them yourself.)"""
    folder = Path(data_dir or DATA) / name
    if name in CORPORA and not (folder / "train.bin").exists():
        with locked(folder):
            if not (folder / "train.bin").exists():  # otherwise another process prepared it
                say(f"{relative(folder)} is missing: preparing it")
                prepare_corpus(folder)  # it locks the folder again, as a process may do
    return dataset.load(folder, vocab_size)


# --------------------------------------------------------------------------------------------------
# The command line


def main(argv=None):
    given, cfg = configure(__doc__, PrepareConfig, argv=argv, positional=["sources"])
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "prepare.py", *words])
    data_dir = Path(cfg.data_dir or DATA)
    builtin = CORPORA | HUB_DATASETS
    first = cfg.sources[0]
    options = {name: given[name] for name in ("digits", "reverse") if name in given}
    if options and first != "addition":
        raise UserError(f"--{' and --'.join(options)} applies only to addition, not to {first}")
    if cfg.separator is not None:
        cfg = replace(cfg, separator=normalized(cfg.separator))  # as the text is
    if cfg.separator == "":
        raise UserError("separator is empty: give the string that ends a document")

    if first in builtin:
        fixed = {"name", "tokenizer", "val_fraction", "errors", "text_field", "separator"}
        if len(cfg.sources) > 1 or fixed & given.keys():
            raise UserError(f"{first} is a built-in dataset with a fixed name and tokenizer: "
                            "give it alone, without --name, --tokenizer, --val_fraction, --errors, "
                            "--text_field, --separator")
        if not options:
            command = None  # meta.json then gets the shortest command that makes the dataset
        prepare_corpus(data_dir / first, command, cfg, **options)
    else:
        folder = data_dir / sources.dataset_name(cfg.name, first, builtin)
        found = sources.find_sources(
            cfg.sources, builtin, data_dir, given.get("text_field"), cfg.separator)
        reader = Reader(found, cfg.errors, cfg.text_field, cfg.separator)
        source = ", ".join(cfg.sources)
        prepare_sources(reader, folder, cfg.tokenizer, source, command, cfg)


if __name__ == "__main__":
    with one_line_errors():
        main()
