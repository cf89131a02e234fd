"""Where text comes from: files, folders, stdin; plain or compressed text, JSON lines, parquet.

Everything is read in blocks of 256 kB, so memory does not depend on the size of a source.
"""

import codecs
import glob
import gzip
import hashlib
import importlib
import io
import itertools
import json
import lzma
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from configurator import UserError, reason
from internals import usage

TEXT, COMPRESSED = (".txt", ".md"), (".gz", ".zst", ".xz")
BLOCK = 1 << 18  # bytes
READ = 1 << 16  # bytes that are read from a file ahead of what is decompressed
SAMPLE = 1 << 22  # characters that are read for the estimate of what the text takes
LONGEST_LINE = 1 << 26  # bytes of a line of JSON, which must be in memory as a whole
ZSTD_BLOCK = 1 << 11  # compressed bytes at a time: a block of them can be 60 times as large or more


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
        # what tells apart two versions of a file
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
        path = Path(source)
        if path.suffix.lower() in COMPRESSED:
            path = path.with_suffix("")
        stem = path.name if path.is_dir() else path.stem
        name = re.sub(r"[^\w.-]+", "-", stem).strip("-.")
    if name in builtin or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"your dataset cannot be called {name!r}: choose a --name of letters, "
                        "digits, '.', '_' and '-' that is not the name of a built-in dataset")
    return name


# --------------------------------------------------------------------------------------------------
# Formats


def unpacked(file, compression, name):
    """Yields the content of an open file in blocks, decompressed."""
    if compression == ".zst":
        yield from unpacked_zstd(file, name)
        return
    stream = file
    if compression == ".gz":
        stream = gzip.GzipFile(fileobj=file)
    elif compression == ".xz":
        stream = lzma.LZMAFile(file)
    try:
        while block := stream.read(BLOCK):
            yield block
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise damaged(name, error) from None


def unpacked_zstd(file, name):
    """The reader of the zstandard package takes a truncated file for a complete one. So each frame
    is decompressed here, and checked to have an end."""
    zstandard = package("zstandard", name)
    frame = None
    try:
        while packed := file.read(ZSTD_BLOCK):
            while packed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if block := frame.decompress(packed):
                    yield block
                packed = b""
                if frame.eof:
                    packed, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise damaged(name, error) from None
    if frame is not None:
        raise damaged(name, "it ends within a frame")


def damaged(name, error):
    return UserError(f"{name} is damaged or incomplete ({reason(error)}): get the file again")


def decoded(blocks, name, errors):
    """Yields blocks of bytes as text, without byte order mark, with line ends as \\n. Raises
    UserError with the position if they are not UTF-8, unless errors is "replace"."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    position, begun, cut = 0, False, ""
    for block in itertools.chain(blocks, [b""]):
        waiting = len(decoder.getstate()[0])  # bytes of a character that the last block cut
        try:
            text = cut + decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise not_utf8(name, position - waiting + error.start) from None
        position += len(block)
        if text and not begun:
            text, begun = text.removeprefix("\ufeff"), True
        cut = "\r" if block and text.endswith("\r") else ""  # \n may follow in the next block
        if "\r" in text:
            text = text.removesuffix(cut).replace("\r\n", "\n").replace("\r", "\n")
        if text:
            yield text


def not_utf8(name, position):
    return UserError(f"{name} is not UTF-8, at byte {position}: save it as UTF-8, or replace what "
                     "is invalid with --errors=replace")


def json_documents(blocks, name, errors, text_field):
    """Yields the text of each line, which is a JSON object. Empty lines are skipped."""
    for number, (position, line) in enumerate(lines(blocks, name), start=1):
        try:
            text = line.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise not_utf8(name, position + error.start) from None
        if not text.strip():
            continue
        where = f"{name}, line {number:,}"
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON ({reason(error)}): correct or remove it"
                            ) from None
        if not isinstance(entry, dict) or text_field not in entry:
            fields = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
            raise UserError(f"{where} has no field {text_field!r}, but {fields[:100]!r}: choose a "
                            "field with --text_field=NAME")
        text = "" if entry[text_field] is None else entry[text_field]
        if not isinstance(text, str):
            raise UserError(f"{where}: {text_field} is {usage.shown(text)}, not a text: choose "
                            "another field with --text_field=NAME")
        if rb"\u" in line:
            text = without_surrogates(text, where, errors)
        yield text


def lines(blocks, name):
    """Yields (position in bytes, line) of each line of the blocks."""
    position, rest = 0, b""
    for block in itertools.chain(blocks, [b"\n"]):
        *complete, rest = (rest + block).split(b"\n")
        for line in complete:
            yield position, line.removeprefix(codecs.BOM_UTF8) if position == 0 else line
            position += len(line) + 1
        if len(rest) > LONGEST_LINE:
            raise UserError(f"{name} has a line of more than {LONGEST_LINE / 1e6:.0f} MB, at byte "
                            f"{position}: split its document, or give it as a text file")


def without_surrogates(text, where, errors):
    """JSON can contain one half of a surrogate pair, \\ud83d, which is not a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        if errors == "strict":
            raise UserError(f"{where} has half of a surrogate pair, which is not a character: "
                            "correct it, or replace it with --errors=replace") from None
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def parquet_documents(file, done, errors, text_field):
    """Yields the text of each row."""
    arrow, parquet = package("pyarrow", file.name), package("pyarrow.parquet", file.name)
    try:
        with parquet.ParquetFile(file.path, pre_buffer=False, buffer_size=BLOCK) as table:
            names, rows = table.schema_arrow.names, table.metadata.num_rows
            if text_field not in names:
                raise UserError(f"{file.name} has no column {text_field!r}, but "
                                f"{', '.join(names)[:100]!r}: choose one with --text_field=NAME")
            read = 0
            for batch in table.iter_batches(64, columns=[text_field], use_threads=False):
                for text in batch.column(0).cast(arrow.binary()).to_pylist():
                    yield (text or b"").decode("utf-8", errors)
                done(file.size * (read + len(batch)) // rows - file.size * read // rows)
                read += len(batch)
    except UnicodeDecodeError:
        raise UserError(f"{file.name}, column {text_field} is not UTF-8 after row {read:,}: "
                        "replace what is invalid with --errors=replace") from None
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{file.name}, column {text_field} cannot be read as text "
                        f"({reason(error)})") from None


def package(name, what):
    """Import a package that is optional."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{what} needs an additional package: pip install "
                        f"{name.split('.')[0]}") from None
