"""What is in a file: compression, UTF-8, JSON, parquet, and what is refused because it is not text.

These are generators that hold blocks of 256 kB, so memory does not depend on the size of a file.
"""

import bz2
import codecs
import functools
import importlib
import itertools
import json
import lzma
import re
import zlib

from internals.errors import UserError, reason, shown

BLOCK = 1 << 18  # bytes
# bytes of a line of JSON, of an array, or of a document up to the separator: each must be in memory
# as a whole
LONGEST_LINE = 1 << 26
# compressed bytes at a time: repetitive text can become thousands of times as large
PACKED = 1 << 11
ZSTD_WINDOW = 1 << 31  # bytes; that of `zstd --long=31`, the largest of the command zstd
REPLACED = "\ufffd"  # takes the place of invalid UTF-8

ICONV = "save it as UTF-8, for example with `iconv -f {} -t UTF-8 < OLD > NEW`"
EXPORT = "save it as plain text, and give that"
CONVERT = "convert it to JSON lines"
HEAD = 512  # bytes that show the format of a file
# (how a file begins that is not text, what it is, what to do)
NOT_TEXT = [
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32", ICONV.format("UTF-32")),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", ICONV.format("UTF-16")),
    (rb".{257}ustar", "a tar archive", "unpack it with `tar -xf`"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive, or a .docx, .xlsx or .epub file",
     "unpack it, or save it as plain text"),
    (rb"7z\xbc\xaf|Rar!\x1a", "a 7z or rar archive", "unpack it"),
    (rb"\x1f[\x8b\x9d]|BZh[1-9]1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18",
     "compressed in a way that is not supported, or twice", "unpack it"),
    (rb"%PDF-", "a PDF file", "convert it to text, for example with pdftotext"),
    (rb"\{\\rtf", "a document in RTF", EXPORT),
    (rb"\xd0\xcf\x11\xe0", "an Office document", EXPORT),
    (rb"PAR1[\x15\x19\x1c]", "a parquet file",
     "prepare.py reads it as an uncompressed file whose name ends in .parquet"),
    (rb"version https://git-lfs", "a pointer of Git LFS", "get the file with `git lfs pull`"),
]


def unpacked(file, name):
    """Yields the content of an open file in blocks, decompressed. Its first bytes decide whether it
    is compressed, because some programs unpack a file and keep its name. Each frame (gzip calls it
    a member, xz a stream) must have an end; more frames, or zeros, can follow."""
    new_decompressor = find_decompressor(file.peek(HEAD), name)
    if new_decompressor is None:
        while block := file.read(BLOCK):
            yield block
        return
    frame = None
    content = b""
    try:
        while packed := file.read(PACKED):
            while packed:
                if frame is None:
                    packed = packed.lstrip(b"\0")
                    frame = new_decompressor() if packed else None
                if frame is not None:
                    content += frame.decompress(packed)
                    packed = b""
                    if frame.eof:
                        packed = frame.unused_data
                        frame = None
            if len(content) >= BLOCK:
                yield content
                content = b""
        if frame is not None:
            raise EOFError("it ends within a frame")
    except Exception as error:  # each format has its own
        if getattr(error, "errno", None):  # the disk has failed
            raise
        raise damaged(name, error) from None
    if content:
        yield content


def find_decompressor(head, name):
    """A function that makes a decompressor for a file that begins with these bytes; None if it is
    not compressed."""
    if head.startswith(b"\x1f\x8b"):
        return functools.partial(zlib.decompressobj, wbits=31)  # 31: gzip's header and checksum
    if head.startswith((b"\xfd7zXZ", b"]\0\0")):
        return lzma.LZMADecompressor
    if re.match(rb"BZh[1-9](1AY&SY|\x17rE8P)", head):
        return bz2.BZ2Decompressor
    if re.match(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", head):
        zstandard = package("zstandard", name)
        return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj
    return None


def damaged(name, error):
    return UserError(f"{name} is damaged or incomplete ({reason(error)}): get the file again")


def checked(blocks, name):
    """Yields the blocks of bytes. Raises UserError if they are not text: if they begin as a file of
    another format does, or have a NUL byte. The first block has HEAD bytes or more, if there are as
    many."""
    blocks = iter(blocks)
    head = b""
    for block in blocks:
        head += block
        if len(head) >= HEAD:
            break
    refuse_other_formats(head, name)
    position = 0
    for block in itertools.chain([head], blocks):
        nul = block.find(b"\0")
        if nul >= 0:
            raise UserError(
                f"{name} is not text, because it has a NUL, at byte {position + nul}: if it is "
                "UTF-16, convert it with `iconv -f UTF-16LE -t UTF-8 < OLD > NEW`; if it is text "
                "with a few NULs, remove them with `tr -d '\\000' < OLD > NEW`")
        position += len(block)
        yield block


def refuse_other_formats(head, name):
    """Raises UserError if a file that begins with these bytes is of one of the formats in NOT_TEXT.
    """
    for beginning, what, advice in NOT_TEXT:
        if re.match(beginning, head, re.DOTALL):
            raise UserError(f"{name} is {what}: {advice}")


def normalized(text):
    """The form that all text has: line ends are \\n, and there is no byte order mark, which is also
    found inside a text, where files were joined."""
    if "\r" in text:  # the test is faster than two replacements of nothing
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\ufeff", "")


def decoded(blocks, name, errors):
    """Yields blocks of bytes as normalized text. Raises UserError with the position if they are not
    UTF-8, unless errors is "replace"."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    position = 0
    cut = ""
    for block in itertools.chain(blocks, [b""]):
        waiting = len(decoder.getstate()[0])  # bytes of a character that the last block cut
        try:
            text = cut + decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise not_utf8(name, position - waiting + error.start) from None
        position += len(block)
        # \r\n is one line end even if the block ends between the two
        cut = "\r" if block and text.endswith("\r") else ""
        text = normalized(text.removesuffix(cut))
        if text:
            yield text


def not_utf8(name, position):
    return UserError(f"{name} is not UTF-8, at byte {position}: save it as UTF-8; prepare.py can "
                     "also replace what is invalid, with --errors=replace")


def split_at(blocks, separator, name):
    """Yields the documents of a text in blocks, as str: what is between two separators, without the
    line break that follows a separator. Documents of white space are left out."""
    rest = ""
    line_break = ""  # what is removed; no separator precedes the first document
    for block in blocks:
        *complete, rest = (rest + block).split(separator)
        for document in complete:
            if document.strip():
                yield document.removeprefix(line_break)
            line_break = "\n"
        if len(rest) > LONGEST_LINE:
            raise UserError(f"{name} has more than {LONGEST_LINE / 1e6:.0f} million characters "
                            f"without the separator {separator!r}: give another --separator")
    if rest.strip():
        yield rest.removeprefix(line_break)


def begins_with_object(beginning):
    """Whether bytes begin as JSON with objects does, one per line or in an array."""
    return re.match(rb'(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"', beginning) is not None


def json_documents(blocks, name, errors, text_field):
    """Yields the text of each object of JSON lines, or of an array of objects."""
    blocks = iter(blocks)
    first = next(blocks, b"")
    blocks = itertools.chain([first], blocks)
    if first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        entries = entries_of_array(blocks, name, errors)
    else:
        entries = entries_of_lines(blocks, name, errors)
    for where, entry in entries:
        if not isinstance(entry, dict) or text_field not in entry:
            fields = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
            raise UserError(f"{where} has no field {text_field!r}, but {fields[:100]!r}: choose a "
                            "field with --text_field=NAME")
        text = "" if entry[text_field] is None else entry[text_field]
        if not isinstance(text, str):
            raise UserError(f"{where}: {text_field} is {shown(text)}, not a text: choose "
                            "another field with --text_field=NAME")
        if not text.isascii():
            text = without_surrogates(text, where, errors)
        yield normalized(text)


def entries_of_lines(blocks, name, errors):
    """Yields (where, value) of each line. Empty lines are skipped."""
    for number, (position, line) in enumerate(lines(blocks, name), start=1):
        if line.strip():
            where = f"{name}, line {number:,}"
            yield where, parsed(line, name, position, where, errors)


def entries_of_array(blocks, name, errors):
    """Yields (where, value) of each element."""
    content = []
    size = 0
    for block in blocks:
        content.append(block)
        size += len(block)
        if size > LONGEST_LINE:
            raise UserError(f"{name} is an array of more than {LONGEST_LINE / 1e6:.0f} MB: convert "
                            "it to JSON lines, for example with `jq -c '.[]' OLD > NEW.jsonl`")
    array = parsed(b"".join(content).removeprefix(codecs.BOM_UTF8), name, 0, name, errors)
    for number, entry in enumerate(array, start=1):
        yield f"{name}, entry {number:,}", entry


def parsed(content, name, position, where, errors):
    """The value of JSON in bytes, which are at this position of the file."""
    try:
        return json.loads(content.decode("utf-8", errors))
    except UnicodeDecodeError as error:
        raise not_utf8(name, position + error.start) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({reason(error)}): correct or remove it; each line "
                        "must be an object, or the file an array of objects") from None


def lines(blocks, name):
    """Yields (position in bytes, line) of each line of the blocks, without a byte order mark."""
    position, rest = 0, b""
    for block in itertools.chain(blocks, [b"\n"]):
        *complete, rest = (rest + block).split(b"\n")
        for line in complete:
            yield position, line.removeprefix(codecs.BOM_UTF8)
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


def parquet_documents(file, advance, errors, text_field):
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
                    # before the text is used: an estimate may stop after the first row. A row can
                    # have less than a byte, because equal texts are stored once
                    advance(file.size / rows)
                    read += 1
                    yield normalized((text or b"").decode("utf-8", errors))
    except UnicodeDecodeError:
        raise UserError(f"{file.name}, column {text_field} is not UTF-8 in row {read:,}: "
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


def read_text(path):
    """The text of a UTF-8 file, which may be compressed, as `normalized`. Raises UserError if the
    file is empty, not UTF-8, or not text."""
    with open(path, "rb") as file:
        blocks = checked(unpacked(file, path), path)
        text = "".join(decoded(blocks, path, "strict"))
    if not text:
        raise UserError(f"{path} is empty")
    return text
