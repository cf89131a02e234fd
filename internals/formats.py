"""What is in a file: decompression, UTF-8, JSON lines, parquet.

These are generators that hold blocks of 256 kB, so memory does not depend on the size of a file.
"""

import codecs
import gzip
import importlib
import itertools
import json
import lzma
import zlib

from configurator import UserError, reason
from internals import usage

BLOCK = 1 << 18  # bytes
LONGEST_LINE = 1 << 26  # bytes of a line of JSON, which must be in memory as a whole
# compressed bytes that are decompressed at a time, because zstandard does not limit the result;
# repetitive text can become thousands of times as large
ZSTD_BLOCK = 1 << 11


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
