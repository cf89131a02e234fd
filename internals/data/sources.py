"""Where text comes from: files, folders, patterns and stdin. formats.py knows what is in a file."""

import glob
import hashlib
import io
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from internals.data import formats
from internals.data.formats import BLOCK, decoded, json_documents, parquet_documents
from internals.errors import UserError, say
from internals.files import make_data_folder
from internals.help import no_text_file
from internals.words import counted

TEXT, JSON, TABLES = (".txt", ".md"), (".jsonl", ".ndjson", ".json"), (".csv", ".tsv")
# what is read from a folder; .json is not, because most .json files are settings
IN_FOLDERS = (*TEXT, ".jsonl", ".ndjson", ".parquet")
COMPRESSED = (".gz", ".xz", ".zst", ".bz2")
READ = 1 << 16  # bytes that are read from a file ahead of what is decompressed
EXCERPT = 1 << 22  # characters that are read for the estimate of what the text takes
CSV_TO_JSON = ("python -c \"import csv, json, sys; [print(json.dumps(row)) for row in "
               "csv.DictReader(sys.stdin{})]\" < OLD > NEW.jsonl")


class File:
    """A file with text. size: bytes on disk. is_text: whether it is one text; otherwise it has a
    document in each line or row."""

    def __init__(self, path):
        self.path, self.name = Path(path), str(path)
        self.set_format(self.path)
        status = self.path.stat()
        self.size = status.st_size
        self.inode = status.st_dev, status.st_ino
        # distinguishes two versions of a file
        self.identity = [str(self.path.resolve()), status.st_size, status.st_mtime_ns]

    def set_format(self, path):
        """Set suffix and is_text from the name. Raises UserError if the name says that it is a
        table, or a compressed parquet file."""
        self.suffix = suffix_of(path)
        self.is_text = self.suffix not in (*JSON, ".parquet")
        if self.suffix in TABLES:
            tab = ", delimiter='\\t'" if self.suffix == ".tsv" else ""
            raise UserError(f"{self.name} is a table: convert it to JSON lines, as with "
                            f"`{CSV_TO_JSON.format(tab)}`, and choose the column with "
                            "--text_field=NAME; or to train on the table itself, rename it to .txt")
        if self.suffix == ".parquet" != path.suffix.lower():
            raise UserError(f"{self.name} is a compressed parquet file: unpack it")

    def has_known_name(self):
        """Whether the name says what is in the file."""
        return self.suffix in (*TEXT, *JSON, ".parquet")

    def open(self, advance):
        """The file, open for reading bytes. advance(n) is called for each n bytes that are read."""
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
        self.file.seek(0)
        self.identity = ["spooled", hashlib.file_digest(self.file, "sha256").hexdigest()]

    def open(self, advance):
        self.file.seek(0)
        return io.BufferedReader(CountedFile(os.dup(self.file.fileno()), advance), READ)


class Memory:
    """A text in memory."""

    is_text = True

    def __init__(self, text):
        self.text, self.size = text, len(text)
        self.identity = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def blocks(self, advance, errors):
        for i in range(0, self.size, BLOCK):
            advance(min(BLOCK, self.size - i))
            yield self.text[i:i + BLOCK]


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

    @property
    def identity(self):
        """A value for JSON that changes if the sources or the way they are read change."""
        identities = [source.identity for source in self.sources]
        return [identities, self.errors, self.text_field, self.separator]

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
        return Excerpt(blocks, sum(read), time.perf_counter() - started)


class Excerpt(NamedTuple):
    """The beginning of the text of a Reader. size: the bytes of the sources that contain it.
    seconds: the time to read it."""

    blocks: list
    size: int
    seconds: float


# --------------------------------------------------------------------------------------------------
# From the command line to files


def find_sources(words, builtin, folder, text_field=None):
    """The sources that words of the command line name: files, folders, patterns such as '*.txt',
    pipes, and - for stdin. builtin: names for "did you mean". folder: for the temporary files of
    pipes. text_field: as the user has given it; if not None, one of the sources must have it."""
    refuse_pipes_given_twice(words)
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
    look_for_json(found, text_field)
    if text_field is not None and all(source.is_text for source in found):
        raise UserError(f"text_field={text_field} is for JSON and parquet, but all sources are "
                        "text: leave it out, or rename files with JSON lines to .jsonl")
    announce_repeated([source for source in found if type(source) is File])
    return found


def announce_repeated(files):
    """Print a line if the sources name a file more than once, perhaps through links."""
    names = {}
    for file in files:
        names.setdefault(file.inode, []).append(file.name)
    most = max(names.values(), key=len, default=[])
    if len(most) > 1:
        say(f"{most[0]} is read {len(most)} times, because the sources name it that many times")


def refuse_pipes_given_twice(words):
    """Raises UserError if stdin or a pipe is given twice, because it can be read once."""
    seen = set()
    for word in words:
        try:
            status = os.fstat(sys.stdin.fileno()) if word == "-" else os.stat(word)
        except (OSError, ValueError):  # the file does not exist, or stdin is not one
            continue
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            continue
        if (status.st_dev, status.st_ino) in seen:
            raise UserError(f"{word} is given twice, but a pipe can be read once: leave one out")
        seen.add((status.st_dev, status.st_ino))
    if words.count("-") > 1:
        raise UserError("- (stdin) can be given once")


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


def look_for_json(sources, text_field):
    """Read sources as JSON that are, if the user has given text_field and their names do not say
    that they are text. Print a line about other text that looks like JSON; sources whose names say
    that they are text are looked at only if they are among the first ten."""
    suspects = []
    for number, source in enumerate(sources):
        if not source.is_text or (source.has_known_name() and number >= 10):
            continue
        first = next(source.content(lambda n: None), b"")
        if text_field is not None and not source.has_known_name() and formats.is_json(first):
            source.is_text = False
        elif formats.begins_with_object(first):
            suspects.append(source)
    if suspects:
        rename = ", and rename it to .jsonl" if suspects[0].has_known_name() else ""
        say(f"{suspects[0].name} begins with JSON, but is read as plain text: to read one field of "
            f"each object, give --text_field=NAME{rename}")


def files_in(folder):
    """The files of a folder and its subfolders whose suffix is known, sorted by path. Hidden files
    and folders, whose names begin with a dot, are left out. Prints what else is left out."""
    paths, left_out = [], Counter()
    for parent, names in walk(folder, left_out):
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    texts = []
    for path in sorted(paths):
        if is_for_folders(path):
            texts += readable(path, left_out)
        else:
            left_out[path.suffix.lower() or "without a suffix"] += 1
    if not texts and left_out["unreadable"]:
        unreadable = counted(left_out["unreadable"], "file")
        raise UserError(f"{folder} has no text that can be read: {unreadable} cannot be opened")
    if not texts:
        raise UserError(f"{folder} has no text: none of its {len(paths):,} files ends in .txt, "
                        ".md, .jsonl or .parquet, or in .txt.gz, .jsonl.zst, .md.xz and the like; "
                        f"others can be given as a pattern, '{folder}/*.json'")
    announce_left_out(folder, left_out)
    return texts


def walk(folder, left_out):
    """Yields (path, names of the files) of a folder and its subfolders, each once. Links to folders
    are followed last, so that a file has a path without links if there is one."""
    def failed(error):
        left_out["unreadable folder"] += 1

    waiting, seen = deque([folder]), set()
    while waiting:
        for parent, folders, names in os.walk(waiting.popleft(), onerror=failed):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            waiting += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
            yield parent, names


def files_of_pattern(pattern):
    """The files that match a pattern, sorted by path. Prints what is left out."""
    found, left_out = [], Counter()
    for path in sorted(set(matches(pattern.replace(os.sep, "/"), left_out))):
        if not ("**" in pattern and path.is_dir()):  # ** reads what is in them
            found += readable(path, left_out)
    announce_left_out(pattern, left_out)
    return found


def matches(pattern, left_out):
    """The paths that match a pattern. glob would follow two links that form loops forever, so **
    is replaced by each of the folders that walk yields."""
    parts = re.split(r"(?:^|(?<=/))\*\*(?:/|$)", pattern, maxsplit=1)
    if len(parts) == 1:
        return [Path(path) for path in glob.glob(pattern)]
    root, rest = parts
    found = []
    for folder in glob.glob(root or "."):
        for parent, _ in walk(folder, left_out):
            found += matches(os.path.join(glob.escape(str(parent)), rest or "*"), left_out)
    return found


def readable(path, left_out):
    """[File], or [] if the path is not a file that can be read, which is counted in left_out."""
    if os.path.isdir(path):
        left_out["folder"] += 1
    elif not os.access(path, os.R_OK):  # or a link to nothing
        left_out["unreadable"] += 1
    elif not os.path.isfile(path):
        left_out["special file"] += 1  # such as a pipe
    else:
        return [File(path)]
    return []


def announce_left_out(where, left_out):
    """Print how many files of a folder or pattern were left out. left_out: {kind: number}."""
    if left_out:
        nouns = ("folder", "unreadable folder", "special file")
        kinds = [counted(n, kind) if kind in nouns else f"{n:,} {kind}"
                 for kind, n in left_out.most_common(8)]
        more = ", ..." if len(left_out) > 8 else ""
        say(f"{where}: left out {left_out.total():,}: {', '.join(kinds)}{more}")


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
