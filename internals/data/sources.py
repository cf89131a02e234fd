"""Where text comes from: files, folders, patterns and stdin. formats.py knows what is in a file."""

import glob
import io
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from internals.data import formats
from internals.data.formats import BLOCK, REPLACED, decoded, json_documents, parquet_documents
from internals.errors import UserError, say
from internals.files import make_data_folder
from internals.help import no_text_file

TEXT, JSON, TABLES = (".txt", ".md"), (".jsonl", ".ndjson", ".json"), (".csv", ".tsv")
# what is read from a folder; .json is not, because most .json files are settings
IN_FOLDERS = (*TEXT, ".jsonl", ".ndjson", ".parquet")
COMPRESSED = (".gz", ".xz", ".zst", ".bz2")
READ = 1 << 16  # bytes that are read from a file ahead of what is decompressed
EXCERPT = 1 << 22  # characters that are read for the estimate of what the text takes
MOST_REPLACED = 0.1  # the share of these characters; above that, the text has another encoding


class File:
    """A file with text. size: bytes on disk. is_text: whether it is one text; otherwise it has a
    document in each line or row."""

    def __init__(self, path):
        self.path, self.name = Path(path), str(path)
        self.set_format(self.path)
        self.size = self.path.stat().st_size

    def set_format(self, path):
        """Set suffix and is_text from the name. Raises UserError if the name says that it is a
        table, or a compressed parquet file."""
        self.suffix = suffix_of(path)
        self.is_text = self.suffix not in (*JSON, ".parquet")
        if self.suffix in TABLES:
            raise UserError(f"{self.name} is a table: convert it to JSON lines, for example with "
                            "csv.DictReader of Python, and choose the column with "
                            "--text_field=NAME; or to train on the table itself, rename it to .txt")
        if self.suffix == ".parquet" != path.suffix.lower():
            raise UserError(f"{self.name} is a compressed parquet file: unpack it")

    def has_known_name(self):
        """Whether the name says what is in the file."""
        return self.suffix in (*TEXT, *JSON, ".parquet")

    def open(self, advance):
        """The file, open for reading bytes. advance(n) is called for n bytes that are read, before
        their text is used."""
        return io.BufferedReader(CountedFile(self.name, advance), READ)

    def content(self, advance):
        """Yields the decompressed bytes in blocks. Raises UserError if they are not text."""
        with self.open(advance) as file:
            yield from formats.checked(formats.unpacked(file, self.name), self.name)

    def blocks(self, advance, errors):
        """Yields the text in blocks."""
        yield from decoded(self.content(advance), self.name, errors)

    def documents(self, advance, errors, text_field):
        """Yields each document of JSON or a parquet file as a str."""
        if self.suffix == ".parquet":
            yield from parquet_documents(self, advance, errors, text_field)
        else:
            yield from json_documents(self.content(advance), self.name, errors, text_field)


class Spooled(File):
    """The text of stdin or a pipe. It is copied to an unnamed temporary file in `folder`, because
    it is read more than once."""

    def __init__(self, stream, name, folder):
        self.name = name
        self.set_format(Path(name))
        if self.suffix == ".parquet":
            raise UserError(f"{name} is a pipe, but parquet is read only from a file")
        make_data_folder(folder)
        self.file = tempfile.TemporaryFile(dir=folder)
        shutil.copyfileobj(stream, self.file, BLOCK)
        self.size = self.file.tell()
        if not self.size:
            raise UserError(f"{name} is empty; if it is given twice, give it once")

    def open(self, advance):
        self.file.seek(0)
        return io.BufferedReader(CountedFile(os.dup(self.file.fileno()), advance), READ)


class CountedFile(io.FileIO):
    """An unbuffered file that reports how many bytes are read from it."""

    def __init__(self, file, advance):
        super().__init__(file)
        self.advance = advance

    def readinto(self, buffer):
        n = super().readinto(buffer)
        self.advance(n)
        return n


@dataclass
class Reader:
    """Reads sources in their order. errors: what to do with invalid UTF-8: "strict" or "replace".
    text_field: the name of the field or column that has the text. separator: the string that ends a
    document in a text; None: a text is one document."""

    sources: list
    errors: str = "strict"
    text_field: str = "text"
    separator: str | None = None

    @property
    def one_text(self):
        """Whether the sources are a single text, not documents."""
        return len(self.sources) == 1 and self.sources[0].is_text and self.separator is None

    @property
    def size(self):
        """The bytes of all sources on disk; None if unknown."""
        sizes = [source.size for source in self.sources]
        return None if None in sizes else sum(sizes)

    def documents(self, advance):
        """Yields each document as an iterator over blocks of text. advance(n): as in File.open."""
        for source in self.sources:
            if source.is_text and self.separator is None:
                yield source.blocks(advance, self.errors)
                continue
            if source.is_text:
                blocks = source.blocks(advance, self.errors)
                texts = formats.split_at(blocks, self.separator, source.name)
            else:
                texts = source.documents(advance, self.errors, self.text_field)
            for text in texts:
                yield iter([text])

    def blocks(self, advance):
        """Yields the text of all documents in blocks."""
        return itertools.chain.from_iterable(self.documents(advance))

    def excerpt(self, length=EXCERPT):
        """The Excerpt of the first blocks of text, with at least `length` characters if it has as
        many. Raises UserError if there is no text, or if much of it is not UTF-8."""
        started = time.perf_counter()
        read = size = characters = replaced = 0
        blocks = []

        def advance(n):
            nonlocal read
            read += n

        for block in self.blocks(advance):
            # A block that needs no more bytes is counted, because bytes are read ahead: all of an
            # array in JSON, or the first bytes of an archive, which can be a long text
            if characters >= length and read > size:
                break
            size = read
            if characters < length:
                blocks.append(block)
            characters += len(block)
            replaced += block.count(REPLACED)
        name = self.sources[0].name
        if characters == 0:
            raise UserError(f"{name} is empty" if self.one_text else "the sources have no text")
        if self.errors == "replace" and replaced > MOST_REPLACED * characters:
            raise UserError(f"{name} is not UTF-8: {replaced:,} of the first {characters:,} "
                            f"characters are invalid; {formats.ICONV.format('ENCODING')}")
        return Excerpt(blocks, characters, size, time.perf_counter() - started)


class Excerpt(NamedTuple):
    """The beginning of the text of a Reader. blocks: its first blocks. characters: how many were
    read, which can be more than the blocks have. size: the bytes of the sources that contain them.
    seconds: the time to read them."""

    blocks: list
    characters: int
    size: int
    seconds: float


# --------------------------------------------------------------------------------------------------
# From the command line to files


def find_sources(words, builtin, folder, text_field=None, separator=None):
    """The sources that words of the command line name: files, folders, patterns such as '*.txt',
    pipes, and - for stdin. builtin: names for "did you mean". folder: for the temporary files of
    pipes. text_field, separator: as the user has given them; if not None, they must apply to one of
    the sources."""
    found = []
    for word in words:
        path = Path(word)
        if word == "-":
            found.append(Spooled(sys.stdin.buffer, "stdin", folder))
        elif word and path.is_dir():
            found += files_in(path)
        elif word and path.exists():
            found.append(open_source(path, folder))
        else:
            files = files_of_pattern(word) if re.search(r"[*?[]", word) else []
            if not files:
                raise UserError(no_text_file(word, builtin))
            found += files
    # if the name does not say what is in a file, its beginning does. Of the files whose names say
    # that they are text, only the first is looked at
    for number, source in enumerate(found):
        if not source.is_text or (source.has_known_name() and number > 0):
            continue
        is_json = formats.begins_with_object(next(source.content(lambda n: None), b""))
        if is_json and source.has_known_name():
            say(f"{source.name} begins with JSON, but is read as text, as its name says: to read "
                "one field of each object, rename it to .jsonl")
        else:
            source.is_text = not is_json
    if text_field is not None and all(source.is_text for source in found):
        raise UserError(f"text_field={text_field} is for JSON and parquet, but all sources are "
                        "text: leave it out, or rename files with JSON lines to .jsonl")
    if separator is not None and not any(source.is_text for source in found):
        raise UserError(f"separator={separator!r} is for text files, but all sources are JSON "
                        "or parquet, in which each object or row is a document: leave it out, or "
                        "rename files with text to .txt")
    return found


def open_source(path, folder):
    """The File or Spooled of a path that is not a folder."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return File(path)
    if stat.S_ISFIFO(mode):
        with open(path, "rb") as stream:
            return Spooled(stream, str(path), folder)
    raise UserError(f"{path} is a device or a socket, which may have no end: give a file, a pipe, "
                    "or - for stdin")


def files_in(folder):
    """The files of a folder and its subfolders whose suffix is known, sorted by path. Hidden files
    and folders, whose names begin with a dot, are left out. Prints what else is left out."""
    paths = []
    for parent, names in walk(folder):
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    left_out = Counter()
    texts = []
    for path in sorted(paths):
        if is_for_folders(path):
            texts.append(path)
        else:
            left_out[path.suffix.lower() or "without a suffix"] += 1
    if not texts:
        raise UserError(f"{folder} has no text: none of its {len(paths):,} files ends in .txt, "
                        ".md, .jsonl or .parquet, or in .txt.gz, .jsonl.zst, .md.xz and the like; "
                        f"others can be given as a pattern, '{folder}/*.json'")
    return opened(folder, texts, left_out)


def walk(folder):
    """Yields (path, names of the files) of a folder and its subfolders. Links to folders are
    followed, but each folder is read once."""
    def refuse(error):
        raise error  # the folder cannot be read

    seen = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield parent, names


def files_of_pattern(pattern):
    """The files that match a pattern, sorted by path. Prints what is left out."""
    paths = sorted(set(map(Path, matches(pattern.replace(os.sep, "/")))))
    if "**" in pattern:  # it reads what is in folders
        paths = [path for path in paths if not path.is_dir()]
    return opened(pattern, paths, Counter())


def matches(pattern):
    """The paths that match a pattern. glob would follow two links that form loops forever, so **
    is replaced by each of the folders that walk yields."""
    parts = re.split(r"(?:^|(?<=/))\*\*(?:/|$)", pattern, maxsplit=1)
    if len(parts) == 1:
        return glob.glob(pattern)
    root, rest = parts
    found = []
    for folder in glob.glob(root or "."):
        for parent, _ in walk(folder):
            found += matches(os.path.join(glob.escape(parent), rest or "*"))
    return found


def opened(where, paths, left_out):
    """The Files of paths. Prints how many are left out, with those that are not files, such as
    folders, pipes and broken links. left_out: {kind: number}."""
    files = [File(path) for path in paths if path.is_file()]
    others = len(paths) - len(files)
    if others:
        left_out["not a file"] = others
    if left_out:
        kinds = [f"{n:,} {kind}" for kind, n in left_out.most_common(8)]
        more = ", ..." if len(left_out) > 8 else ""
        say(f"{where}: left out {left_out.total():,}: {', '.join(kinds)}{more}")
    return files


def suffix_of(path):
    """The suffix that says what is in a file: .jsonl for a.JSONL.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_for_folders(path):
    """Whether a file is read if its folder is given."""
    if suffix_of(path) == ".parquet":
        return path.suffix.lower() == ".parquet"
    return suffix_of(path) in IN_FOLDERS


def dataset_name(name, source, builtin):
    """`name`, or if it is None, a name for the dataset of a source: "my novel.txt.gz" becomes
    my-novel. Raises UserError if a dataset of the user cannot have it."""
    if name is None:
        if source == "-" or source.startswith("/dev/"):
            raise UserError(f"text from {source} has no file name: give the dataset a --name")
        path = Path(source)
        if path.suffix.lower() in COMPRESSED:
            path = path.with_suffix("")
        stem = path.name if path.is_dir() else path.stem
        name = re.sub(r"[^\w.-]+", "-", stem).strip("-.")
    if name in builtin or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"your dataset cannot be called {name!r}: choose a --name of letters, "
                        "digits, '.', '_' and '-' that is not the name of a built-in dataset")
    return name
