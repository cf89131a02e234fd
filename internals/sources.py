"""Where text comes from: files, folders, patterns and stdin. formats.py knows what is in a file."""

import glob
import hashlib
import io
import itertools
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from configurator import UserError
from internals import usage
from internals.formats import BLOCK, decoded, json_documents, parquet_documents, unpacked

TEXT, COMPRESSED = (".txt", ".md"), (".gz", ".zst", ".xz")
READ = 1 << 16  # bytes that are read from a file ahead of what is decompressed
SAMPLE = 1 << 22  # characters that are read for the estimate of what the text takes


class File:
    """A file with text. size: bytes on disk. is_text: whether it is one text; otherwise it has a
    document in each line or row."""

    def __init__(self, path):
        self.path, self.name = Path(path), str(path)
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        self.compression = ""
        if suffixes and suffixes[-1] in COMPRESSED:
            self.compression = suffixes.pop()
        self.suffix = suffixes[-1] if suffixes else ""
        self.is_text = self.suffix not in (".jsonl", ".parquet")
        stat = self.path.stat()
        self.size = stat.st_size
        # distinguishes two versions of a file
        self.identity = [str(self.path.resolve()), stat.st_size, stat.st_mtime_ns]

    def has_known_suffix(self):
        if self.suffix == ".parquet":
            return not self.compression
        return self.suffix in (*TEXT, ".jsonl")

    def open(self, done):
        """The file, open for reading bytes. done(n) is called for each n bytes that are read."""
        return io.BufferedReader(CountedFile(self.path, done), READ)

    def blocks(self, done, errors):
        """Yields the text in blocks."""
        with self.open(done) as file:
            yield from decoded(unpacked(file, self.compression, self.name), self.name, errors)

    def documents(self, done, errors, text_field):
        """Yields each document of JSON lines or a parquet file as a str."""
        if self.suffix == ".parquet":
            yield from parquet_documents(self, done, errors, text_field)
            return
        with self.open(done) as file:
            blocks = unpacked(file, self.compression, self.name)
            yield from json_documents(blocks, self.name, errors, text_field)


class Stdin(File):
    """The text on stdin. It is copied to an unnamed temporary file in `folder`, because it is read
    more than once."""

    def __init__(self, folder):
        self.name, self.suffix, self.compression, self.is_text = "stdin", "", "", True
        folder.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.TemporaryFile(dir=folder)
        shutil.copyfileobj(sys.stdin.buffer, self.file, BLOCK)
        self.size = self.file.tell()
        self.file.seek(0)
        self.identity = ["stdin", hashlib.file_digest(self.file, "sha256").hexdigest()]

    def open(self, done):
        self.file.seek(0)
        return io.BufferedReader(CountedFile(os.dup(self.file.fileno()), done), READ)


class Memory:
    """A text in memory."""

    is_text = True

    def __init__(self, text):
        self.text, self.size = text, len(text)
        self.identity = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def blocks(self, done, errors):
        for i in range(0, self.size, BLOCK):
            done(min(BLOCK, self.size - i))
            yield self.text[i:i + BLOCK]


class CountedFile(io.FileIO):
    """An unbuffered file that reports how many bytes are read from it."""

    def __init__(self, file, done):
        super().__init__(file)
        self.done = done

    def readinto(self, buffer):
        n = super().readinto(buffer)
        self.done(n)
        return n


@dataclass
class Reader:
    """Reads sources in their order. errors: what to do with invalid UTF-8: "strict" or "replace".
    text_field: the name of the field or column that has the text."""

    sources: list
    errors: str = "strict"
    text_field: str = "text"

    @property
    def one_text(self):
        """Whether the sources are a single text, not documents."""
        return len(self.sources) == 1 and self.sources[0].is_text

    @property
    def size(self):
        """The bytes of all sources on disk; None if unknown."""
        sizes = [source.size for source in self.sources]
        return None if None in sizes else sum(sizes)

    @property
    def identity(self):
        """A value for JSON that changes if the sources or the way they are read change."""
        return [[source.identity for source in self.sources], self.errors, self.text_field]

    def documents(self, done):
        """Yields each document as an iterator over blocks of text. done(n): as in File.open."""
        for source in self.sources:
            if source.is_text:
                yield source.blocks(done, self.errors)
            else:
                for text in source.documents(done, self.errors, self.text_field):
                    yield iter([text])

    def blocks(self, done):
        """Yields the text of all documents in blocks."""
        return itertools.chain.from_iterable(self.documents(done))

    def sample(self, length=SAMPLE):
        """The Sample of the first blocks of text, with at least `length` characters if there are as
        many. Raises UserError if there is no text."""
        started = time.perf_counter()
        read, blocks, characters = [], [], 0
        for block in self.blocks(read.append):
            blocks.append(block)
            characters += len(block)
            if characters >= length:
                break
        if characters == 0:
            name = getattr(self.sources[0], "name", "the text")
            raise UserError(f"{name} is empty" if self.one_text else "the sources have no text")
        return Sample(blocks, sum(read), time.perf_counter() - started)


class Sample(NamedTuple):
    """The beginning of the text of a Reader. size: the bytes of the sources that contain it.
    seconds: the time to read it."""

    blocks: list
    size: int
    seconds: float


# --------------------------------------------------------------------------------------------------
# From the command line to files


def find_sources(words, builtin, folder):
    """The sources that words of the command line name: files, folders, patterns such as '*.txt',
    and - for stdin. builtin: names for "did you mean". folder: for the temporary file of stdin."""
    found = []
    for word in words:
        if word == "-":
            if words.count("-") > 1:
                raise UserError("- (stdin) can be given once")
            found.append(Stdin(folder))
        elif Path(word).is_dir():
            found += files_in(Path(word))
        elif Path(word).exists():
            found.append(File(word))
        elif re.search(r"[*?[]", word) and (paths := glob.glob(word, recursive=True)):
            found += [File(path) for path in sorted(map(Path, paths)) if path.is_file()]
        else:
            raise UserError(usage.no_text_file(word, builtin))
    return found


def files_in(folder):
    """The files of a folder and its subfolders whose suffix is known, sorted by path. Hidden files
    and folders, whose names begin with a dot, are left out."""
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    found = [File(path) for path in sorted(paths) if path.is_file()]
    texts = [file for file in found if file.has_known_suffix()]
    if not texts:
        raise UserError(f"{folder} has no text: none of its {len(found):,} files ends in .txt, "
                        ".md, .jsonl or .parquet, or in .txt.gz, .jsonl.zst, .md.xz and the like")
    return texts


def dataset_name(name, source, builtin):
    """`name`, or if it is None, a name for the dataset of a source: "my novel.txt.gz" becomes
    my-novel. Raises UserError if a dataset of the user cannot have it."""
    if name is None:
        if source == "-":
            raise UserError("text from stdin has no file name: give the dataset a --name")
        path = Path(source)
        if path.suffix.lower() in COMPRESSED:
            path = path.with_suffix("")
        stem = path.name if path.is_dir() else path.stem
        name = re.sub(r"[^\w.-]+", "-", stem).strip("-.")
    if name in builtin or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"your dataset cannot be called {name!r}: choose a --name of letters, "
                        "digits, '.', '_' and '-' that is not the name of a built-in dataset")
    return name
