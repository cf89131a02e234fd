"""pytest tests/test_sources.py - text from files, folders and stdin, of any size and format"""

import bz2
import codecs
import gzip
import io
import itertools
import json
import lzma
import os
import random
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT, finished, script

import prepare
from internals.data import bins, formats, sources, units
from internals.data.formats import decoded, json_documents, read_text
from internals.data.sources import File, find_sources
from internals.dataset import load
from internals.errors import UserError
from internals.streaming import read_prompt
from prepare import CharTokenizer, GPT2Tokenizer, main, tokenizer_from_meta

WORDS = "the quick brown fox jumps over a lazy dog and sleeps in warm grass until evening".split()


def story(seed, words=200):
    """A text that is different for each seed."""
    chance = random.Random(seed)
    return " ".join(chance.choices(WORDS, k=words)) + f" {seed}.\n"


@pytest.fixture(scope="module")
def bpe():
    return GPT2Tokenizer()


@pytest.fixture(autouse=True)
def tables_are_loaded_once(bpe, monkeypatch):
    monkeypatch.setattr(prepare, "gpt2_encoding", lambda: bpe.bpe)


@pytest.fixture
def run(tmp_path):
    """A function: prepare sources as the dataset `d` with settings; returns it."""
    def prepared(*words, **settings):
        options = [f"--{name}={value}" for name, value in settings.items()]
        main([*map(str, words), f"--data_dir={tmp_path / 'data'}", "--name=d", *options])
        return load(tmp_path / "data" / "d")

    return prepared


def texts_of(data):
    """The documents of both splits, in GPT-2's BPE."""
    tokenizer = tokenizer_from_meta(data.meta)
    return [tokenizer.decode(ids).split("<|endoftext|>")[:-1] for ids in (data.train, data.val)]


def write_lines(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


# ---- documents and their split


def test_documents_end_with_end_of_text_and_a_hash_decides_their_split(run, tmp_path):
    texts = [story(i) for i in range(50)]
    train, val = texts_of(run(write_lines(tmp_path / "a.jsonl", [{"text": t} for t in texts]),
                              tokenizer="gpt2"))
    assert sorted(train + val) == sorted(texts) and 0 < len(val) < 15
    assert [t for t in texts if t in val] == val  # in their order
    assert all((units.split_score(text) < 0.1) == (text in val) for text in texts)


def test_more_documents_do_not_move_the_others_and_a_copy_is_on_the_same_side(run, tmp_path):
    texts = [story(i) for i in range(30)]
    more = [story(i) for i in range(30, 60)] + texts
    few, many = ([{"text": t} for t in some] for some in (texts, more))
    _, val = texts_of(run(write_lines(tmp_path / "a.jsonl", few), tokenizer="gpt2"))
    train, more_val = texts_of(run(write_lines(tmp_path / "b.jsonl", many), tokenizer="gpt2"))
    assert set(val) == set(more_val) & set(texts) and not set(train) & set(more_val)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("val_fraction", [0.0001, 0.9999])
def test_a_few_files_have_one_for_each_split(run, tmp_path, n, val_fraction):
    texts = [story(i) for i in range(n)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    train, val = texts_of(run(*tmp_path.glob("*.txt"), tokenizer="gpt2", val_fraction=val_fraction))
    scores = sorted(texts, key=units.split_score)
    if val_fraction < 0.5:
        assert val == scores[:1] and sorted(train) == sorted(scores[1:])
    else:
        assert train == scores[-1:] and sorted(val) == sorted(scores[:-1])


def test_documents_without_a_difference_are_refused(mistake, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "same"}] * 3)
    line = mistake(main, path, f"--data_dir={tmp_path}")
    assert "only one distinct document" in line and "as one .txt file" in line
    assert not (tmp_path / "a").exists()


def test_documents_of_characters_end_with_a_newline(run, tmp_path):
    for name, text in (("a.txt", "first\n"), ("b.txt", "second"), ("c.txt", "third")):
        (tmp_path / name).write_text(text)
    data = run(tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt")
    tokenizer = tokenizer_from_meta(data.meta)
    whole = [tokenizer.decode(data.train), tokenizer.decode(data.val)]
    assert sorted("".join(whole).splitlines(keepends=True)) == ["first\n", "second\n", "third\n"]
    (tmp_path / "no_newline.txt").write_text("defhirstcon" * 9)
    main([str(tmp_path / "no_newline.txt"), f"--data_dir={tmp_path / 'data'}"])
    ids = tokenizer_from_meta(load(tmp_path / "data" / "no_newline").meta).encode_documents(["f"])
    assert len(ids) == 1  # its vocabulary has no newline


def test_empty_documents_are_left_out_and_the_others_counted(run, tmp_path):
    texts = ["", "é", "ab", "", "x" * 50]
    data = run(write_lines(tmp_path / "a.jsonl", [{"text": t} for t in texts] + [{"text": None}]),
               tokenizer="gpt2", val_fraction=0.5)
    assert sorted(itertools.chain(*texts_of(data))) == sorted(filter(None, texts))
    meta = data.meta
    assert (meta["documents"], meta["bytes"]) == (3, 54)
    assert meta["train_bytes"] + meta["val_bytes"] == 54 and meta["val_documents"] in (1, 2)


def test_end_of_text_inside_a_document_is_text(bpe, run, tmp_path):
    texts = ["a<|endoftext|>b", "<|endoftext|>", "c", "<|endoftext|"]
    ids = [bpe.encode(text).tolist() for text in texts]
    expected = [i for each in ids for i in [*each, 50256]]
    assert bpe.encode_documents(texts).tolist() == expected
    assert bpe.encode_documents(texts, ends=False).tolist() == expected[:-1]
    assert bpe.encode_documents(texts[2:]).tolist() == [*ids[2], 50256, *ids[3], 50256]
    assert bpe.encode_documents(texts[2:], ends=False).tolist() == [*ids[2], 50256, *ids[3]]
    (tmp_path / "a.txt").write_text(texts[0] * 9)
    assert 50256 not in run(tmp_path / "a.txt", tokenizer="gpt2").train


def test_the_share_for_validation_can_be_set(run, tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 250)
    data = run(tmp_path / "a.txt", val_fraction=0.25)
    assert (len(data.train), len(data.val)) == (750, 250)


# ---- pieces, and the same ids for any number of threads


@pytest.mark.parametrize("text", ["x" * 1000, " " * 1000, "日本" * 500, "ab " * 300 + "y" * 500],
                         ids=["letters", "spaces", "kanji", "mixed"])
def test_pieces_depend_on_the_text_alone_and_are_never_long(text):
    whole = list(units.pieces([text], size=50, reach=70))
    assert "".join(whole) == text and max(map(len, whole)) <= 120
    for step in (1, 7, 119, 120, 121, 999):
        blocks = [text[i:i + step] for i in range(0, len(text), step)]
        assert list(units.pieces(blocks, size=50, reach=70)) == whole


def test_control_codes_that_python_takes_for_white_space_are_no_place_to_cut(bpe):
    text = "!\x1c! " * 500
    cut = list(units.pieces([text], size=3, reach=100))
    assert len(cut) > 100 and all(piece[0] == " " for piece in cut[1:])
    assert [i for piece in cut for i in bpe.bpe.encode_ordinary(piece)] == bpe.encode(text).tolist()


def test_the_cut_between_the_splits_is_at_the_character_for_any_blocks():
    text = "".join(map(chr, range(0x100, 0x100 + 100)))
    for step in (1, 9, 10, 45, 90, 91, 100):
        blocks = [text[i:i + step] for i in range(0, 100, step)]
        counts = units.Counts()
        parts = {"train": "", "val": ""}
        for unit in units.text_units(blocks, 100, 0.1, counts):
            parts[unit.split] += "".join(unit.texts)
        assert (parts["train"], parts["val"]) == (text[:90], text[90:])
        assert (counts.train_bytes, counts.val_bytes) == (180, 20)


def test_a_text_that_grows_while_it_is_read_is_noticed():
    with pytest.raises(UserError, match="changed while it was read"):
        list(units.text_units(["abc"], 2, 0.1, units.Counts()))


@pytest.fixture(scope="module")
def difficult(tmp_path_factory):
    """Files with every difficulty, as a function of nothing."""
    folder = tmp_path_factory.mktemp("difficult")
    (folder / "sub").mkdir()
    hard = "emoji 👩‍👩‍👧‍👦\r\nCR\rcontrol\1 \x1c!\x1c " + " " * 100_000 + "z" * 50_000 + "\n"
    (folder / "a.txt").write_bytes((hard + story(1)).encode())
    (folder / "b.md").write_bytes(b"\xef\xbb\xbf" + ("日本語。" * 40_000).encode())
    (folder / "empty.txt").write_text("")
    (folder / "one.txt").write_text("x")
    (folder / "bad.txt").write_bytes(b"caf\xe9 au lait " * 1000 + b"\xf0\x9f")
    (folder / "long.txt").write_text("".join(story(i) for i in range(1000)))
    write_lines(folder / "c.jsonl", [{"text": story(i, i % 50)} for i in range(300)])
    with gzip.open(folder / "sub" / "d.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"{i} 🙂"}) + "\n\n" for i in range(100))
    return folder


def sha(data):
    return data.meta["train_sha256"], data.meta["val_sha256"]


@pytest.mark.parametrize("tokenizer", ["gpt2", "char"])
def test_the_bins_are_the_same_for_any_number_of_threads(run, difficult, monkeypatch, tokenizer):
    monkeypatch.setattr(units, "PIECE", 20_000)
    monkeypatch.setattr(units.pieces, "__defaults__", (20_000, 20_000))
    results = {sha(run(difficult, tokenizer=tokenizer, errors="replace", workers=workers))
               for workers in (1, 2, 4)}
    assert len(results) == 1


def test_threads_give_their_results_in_order_and_stop_at_an_error():
    def work(texts, ends):
        time.sleep(random.random() / 1000)
        return 1 // texts[0]

    parts = (units.Unit("train", [i], True) for i in range(1, 50))
    assert [ids for _, ids in units.encoded(parts, work, 4)] == [1] + [0] * 48
    parts = (units.Unit("train", [20 - i], True) for i in range(50))
    with pytest.raises(ZeroDivisionError):
        list(units.encoded(parts, work, 4))
    begun = []
    parts = (units.Unit("train", [begun.append(i) or i], True) for i in range(10**9))
    assert next(units.encoded(parts, lambda texts, ends: texts[0], 2, skip=5)) == ("train", 5)
    assert len(begun) <= 5 + 6  # the queue is bounded


# ---- formats


def test_every_format_gives_the_same_bins(run, tmp_path):
    parquet, zstandard = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("zstandard")
    import pyarrow
    texts = [story(i) + "é🙂\r\n" for i in range(40)] + [""]
    plain = write_lines(tmp_path / "a.jsonl", [{"id": 1, "body": t} for t in texts])
    content = plain.read_bytes()
    halves = content[:3000], content[3000:]  # of two members or frames
    (tmp_path / "b.jsonl.gz").write_bytes(b"".join(map(gzip.compress, halves)))
    (tmp_path / "c.jsonl.xz").write_bytes(b"".join(map(lzma.compress, halves)))
    (tmp_path / "d.JSONL.ZST").write_bytes(b"".join(map(zstandard.compress, halves)))
    for name, kind in (("e", pyarrow.string()), ("f", pyarrow.large_string())):
        table = pyarrow.table({"body": pyarrow.array([*texts, None], kind), "id": [1] * 42})
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=7)
    results = {path.name: sha(run(path, tokenizer="gpt2", text_field="body"))
               for path in sorted(tmp_path.glob("?.*"))}
    assert len(results) == 6 and len(set(results.values())) == 1, results


def test_a_compressed_text_is_the_same_text(run, tmp_path):
    (tmp_path / "a.txt").write_text(story(0))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(story(0).encode()))
    (tmp_path / "c.gz").write_bytes(gzip.compress(story(0).encode()))
    results = [run(tmp_path / name) for name in ("a.txt", "b.txt.gz", "c.gz")]
    assert len({sha(data) for data in results}) == 1


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("content", [
    "é日🙂\r\nb\rc\n\r\n".encode() * 3, b"\xef\xbb\xbfabc", b"\xef\xbb\xbf",
    b"ab\xff\xfec\xf0\x9f", b"\r", b"a\r", b"",
])
def test_text_is_decoded_in_blocks_as_a_whole(blocks, content):
    parts = [content[i:i + blocks] for i in range(0, len(content), blocks)]
    text = "".join(decoded(parts, "a.txt", "replace"))
    with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", errors="replace") as file:
        assert text == file.read()


@pytest.mark.parametrize("before", [0, 1, 2**20 - 2, 2**20 - 1, 2**20, 2**20 + 5])
def test_invalid_utf8_is_named_with_its_position(tmp_path, before):
    content = b"a" * before + b"\xe6\x97" + b"b" * 10
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt is not UTF-8, at byte {before}: .*--errors=rep"):
        list(File(tmp_path / "a.txt").blocks(lambda n: None, "strict"))
    read = []
    text = "".join(File(tmp_path / "a.txt").blocks(read.append, "replace"))
    assert text == content.decode("utf-8", "replace") and sum(read) == len(content)


@pytest.mark.parametrize("line, message", [
    ("{", "line 3 is not JSON (Expecting property name"), ("[" * 10**5, "line 3 is not JSON"),
    ("9" * 5000, "line 3 has no field 'text', but 'float'"),
    ("[1]", "line 3 has no field 'text', but 'list'"),
    ('{"body": "x", "id": 1}', "line 3 has no field 'text', but 'body, id': choose a field with"),
    ('{"text": 5}', "line 3: text is 5, not a text"), ('"text"', "line 3 has no field"),
    (r'{"text": "\ud83d"}', "line 3 has half of a surrogate pair"),
    (b'{"text": "\xff"}', "a.jsonl is not UTF-8, at byte 27"),
])
def test_a_bad_line_of_json_is_named(mistake, tmp_path, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n')
    assert message in mistake(main, tmp_path / "a.jsonl", f"--data_dir={tmp_path}")
    assert not list(tmp_path.glob("a/*"))


def test_half_of_a_surrogate_pair_can_be_replaced(run, tmp_path):
    line = r'{"text": "a\ud83dz \ud83d\ude00"}'
    (tmp_path / "a.jsonl").write_text(line + '\n{"text": "b"}')
    data = run(tmp_path / "a.jsonl", tokenizer="gpt2", errors="replace")
    assert "a\ufffdz 😀" in itertools.chain(*texts_of(data))


def test_a_line_of_json_that_is_too_long_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(formats, "LONGEST_LINE", 100)
    blocks = [b'{"text": "a"}\n', b"x" * 80, b"x" * 80, None]  # None would fail
    with pytest.raises(UserError, match=r"b\.jsonl has a line of more than .* at byte 14"):
        list(json_documents(blocks, "b.jsonl", "strict", "text"))


def test_a_damaged_archive_is_named(mistake, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    text = os.urandom(30_000).hex().encode()
    for suffix, compress in ((".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress),
                             (".zst", zstandard.ZstdCompressor(write_checksum=True).compress)):
        path, packed = tmp_path / f"a.txt{suffix}", compress(text)
        middle = len(packed) // 2
        for content in (packed[:-1], packed[:middle],
                        packed[:middle] + b"????????" + packed[middle + 8:]):
            path.write_bytes(content)
            line = mistake(main, path, f"--data_dir={tmp_path}")
            assert f"a.txt{suffix} is damaged or incomplete" in line, content[:9]
            assert not list(tmp_path.glob("a/*"))


def archive(kind):
    """A tar archive or a zip archive with a text."""
    content, text = io.BytesIO(), story(0).encode()
    if kind == "zip":
        with zipfile.ZipFile(content, "w") as file:
            file.writestr("a.txt", text)
    else:
        with tarfile.open(fileobj=content, mode="w") as file:
            entry = tarfile.TarInfo("a.txt")
            entry.size = len(text)
            file.addfile(entry, io.BytesIO(text))
    return content.getvalue()


ICONV = "is {0}: save it as UTF-8, for example with `iconv -f {0} -t UTF-8 < OLD > NEW`"


@pytest.mark.parametrize("content, message", [
    ("win".encode("utf-16"), ICONV.format("UTF-16")),
    (codecs.BOM_UTF16_BE + "win".encode("utf-16-be"), ICONV.format("UTF-16")),
    ("win".encode("utf-32"), ICONV.format("UTF-32")),
    (story(0).encode("utf-16-le"), ICONV.format("UTF-16LE")),
    (story(0).encode("utf-16-be"), ICONV.format("UTF-16BE")),
    (story(0).encode("utf-32-le"), ICONV.format("UTF-32LE")),
    ("Съешь ещё этих мягких булок\n".encode("utf-16-le"), ICONV.format("UTF-16LE")),
    (b"a" * 2**19 + b"\0", "is not text, because it has a NUL, at byte 524288: "),
    (np.arange(5, 50, dtype="<u2").tobytes(), "is not text, because it has a NUL, at byte 1: "),
    (archive("tar"), "is a tar archive: unpack it with `tar -xf`"),
    (gzip.compress(archive("tar")), "is a tar archive"),
    (lzma.compress(archive("tar")), "is a tar archive"),
    (archive("zip"), "is a zip archive, or a .docx, .xlsx or .epub file: unpack it, or save it as"),
    (gzip.compress(gzip.compress(b"text")), "is compressed in a way that prepare.py does not read"),
    (b"7z\xbc\xaf'\x1c\0\4", "is a 7z or rar archive"), (b"Rar!\x1a\7\1\0", "is a 7z or rar"),
    (b"%PDF-1.7\n", "is a PDF file: convert it to text"),
    (b"{\\rtf1\\ansi", "is a document in RTF"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an Office document"),
    (b"PAR1\x15\x04", "is a parquet file: give it as an uncompressed file whose name ends in"),
    (b"ARROW1\0\0", "is an Arrow file: convert it"), (b"\x93NUMPY\1\0", "is a NumPy array"),
    (b"SQLite format 3\0", "is an SQLite database"), (b"\x89PNG\r\n\x1a\n\0", "is an image"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a pointer of Git LFS: get"),
], ids=lambda value: value[:30] if isinstance(value, str) else "file")  # archives have a time
@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_a_file_that_is_not_text_is_named_and_refused(mistake, tmp_path, content, message, errors):
    for name in ("a.txt", "b.jsonl", "c"):
        (tmp_path / name).write_bytes(content)
        line = mistake(main, tmp_path / name, f"--data_dir={tmp_path / 'd'}", f"--errors={errors}")
        assert f"{name} {message}" in line
        assert not (tmp_path / "d").exists()


def test_the_content_says_how_a_file_is_compressed(run, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    text, half = story(0).encode(), len(story(0)) // 2
    xz = [lzma.compress(part) for part in (text[:half], text[half:])]
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    contents = [text, gzip.compress(text), bz2.compress(text), lzma.compress(text),
                zstandard.compress(text), skippable + zstandard.compress(text),
                bz2.compress(text[:half]) + bz2.compress(text[half:]),
                lzma.compress(text, lzma.FORMAT_ALONE),
                lzma.compress(text) + bytes(8), xz[0] + bytes(4) + xz[1],
                xz[0] + bytes(2**20) + xz[1]]
    expected = None
    for number, content in enumerate(contents):
        for name in ("a.txt", "b.txt.gz", "c.bz2", "d"):
            (tmp_path / name).write_bytes(content)
            found = sha(run(tmp_path / name))
            expected = expected or found
            assert found == expected, (number, name)


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress, gzip.compress])
def test_what_follows_a_compressed_stream_is_not_lost_without_a_word(mistake, tmp_path, compress):
    (tmp_path / "a.txt").write_bytes(compress(story(0).encode()) + b"more text")
    line = mistake(main, tmp_path / "a.txt", f"--data_dir={tmp_path}")
    assert "a.txt is damaged or incomplete" in line


def test_zstd_with_the_largest_window_is_read(tmp_path):
    pytest.importorskip("zstandard")
    block = b"text\n" * 20
    # a frame that declares a window of 2 GiB, with one raw block
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3])
    (tmp_path / "a.zst").write_bytes(header + (len(block) << 3 | 1).to_bytes(3, "little") + block)
    assert "".join(File(tmp_path / "a.zst").blocks(lambda n: None, "strict")) == "text\n" * 20


def test_what_errors_replace_replaces_is_counted_and_a_large_share_refused(run, mistake, tmp_path,
                                                                          capsys):
    (tmp_path / "a.txt").write_bytes(b"un caf\xe9 cr\xe8me, s'il vous plait " * 50)
    run(tmp_path / "a.txt", errors="replace")
    assert "100 characters are U+FFFD, which replaces invalid UTF-8" in capsys.readouterr().out
    (tmp_path / "a.txt").write_bytes("Съешь ещё этих мягких булок ".encode("cp1251") * 50)
    line = mistake(main, tmp_path / "a.txt", f"--data_dir={tmp_path}", "--errors=replace")
    assert "a.txt is not UTF-8: 1,150 of its first 1,400 characters are invalid; save it as" in line


@pytest.mark.parametrize("content", ["a\ufeffb", "\ufeff\ufeffab", "a\ufeff\ufeffb\ufeff"])
def test_a_byte_order_mark_is_removed_wherever_files_were_joined(tmp_path, monkeypatch, content):
    (tmp_path / "a.txt").write_text(content + "\r\nc\rd", encoding="utf-8", newline="")
    expected = "ab\nc\nd"
    parts = [bytes([byte]) for byte in (tmp_path / "a.txt").read_bytes()]
    assert "".join(decoded(parts, "a.txt", "strict")) == expected
    assert read_text(tmp_path / "a.txt") == expected
    assert read_prompt(f"FILE:{tmp_path / 'a.txt'}", None) == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(content + "\r\nc\rd", newline=""))
    assert read_prompt("-", None) == expected


@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_json_is_read_under_each_of_its_names_and_as_an_array(run, tmp_path, errors):
    entries = [{"text": story(i), "n": i} for i in range(20)]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (tmp_path / "a.jsonl").write_text(lines)
    expected = sha(run(tmp_path / "a.jsonl"))
    (tmp_path / "a.ndjson").write_text("\ufeff".join(lines.splitlines(keepends=True)))
    (tmp_path / "a.json").write_text(" \n" + lines)
    (tmp_path / "b.json").write_text("\ufeff \n" + json.dumps(entries, indent=1))
    (tmp_path / "c.jsonl").write_text(json.dumps(entries))
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("a.ndjson", "a.json", "b.json", "c.jsonl", "d.json.gz"):
        assert sha(run(tmp_path / name, errors=errors)) == expected, name
    (tmp_path / "e").write_text(lines)
    (tmp_path / "f.dump").write_text(json.dumps(entries))
    for name in ("e", "f.dump"):
        assert sha(run(tmp_path / name, errors=errors, text_field="text")) == expected, name


def test_text_that_looks_like_json_is_read_as_text_with_a_warning(run, mistake, tmp_path, capsys):
    lines = '{"body": "one"}\n{"body": "two"}\n'
    for name, advice in (("a", "--text_field=NAME\n"),
                         ("a.txt", "--text_field=NAME, and rename it to .jsonl\n")):
        (tmp_path / name).write_text(lines)
        assert len(run(tmp_path / name, val_fraction=0.5).train) == len(lines) // 2
        out = capsys.readouterr().out
        assert f"{name} begins with JSON, but is read as plain text: to read one field " in out
        assert advice in out
    for name in ("part-0", "part-1"):
        (tmp_path / name).write_text(lines)
    run(f"{tmp_path}/part-*", val_fraction=0.5, text_field="body")
    assert "begins with JSON" not in capsys.readouterr().out
    (tmp_path / "part-1").write_text("words")
    run(f"{tmp_path}/part-*")
    assert "part-0 begins with JSON" in capsys.readouterr().out
    (tmp_path / "b.txt").write_text("{a: 1}\n" * 9)
    run(tmp_path / "b.txt")
    assert "JSON" not in capsys.readouterr().out


def test_a_text_field_without_fields_and_a_table_are_refused(mistake, tmp_path):
    (tmp_path / "a.txt").write_text('{"body": "one"}\n')
    data = f"--data_dir={tmp_path / 'd'}"
    line = mistake(main, tmp_path / "a.txt", data, "--text_field=body")
    assert "text_field=body is for JSON and parquet, but all sources are text: leave it out" in line
    assert "plays_char is a built-in" in mistake(main, "plays_char", data, "--text_field=text")
    for name, tab in (("a.csv", ""), ("a.tsv.gz", r", delimiter='\t'")):
        (tmp_path / name).write_text("n\ttext\n1\tone\n")
        line = mistake(main, tmp_path / name, data, "--text_field=text")
        assert f"{name} is a table: convert it to JSON lines, as with `python -c" in line
        assert f"csv.DictReader(sys.stdin{tab})" in line
    (tmp_path / "a.json").write_text('{\n "text": "one"\n}')
    line = mistake(main, tmp_path / "a.json", data)
    assert "a.json, line 1 is not JSON (Expecting" in line and "or the file an array of obj" in line
    (tmp_path / "a.json").write_text('[{"text": "one"}, 3]')
    assert "a.json, entry 2 has no field 'text', but 'int'" in mistake(
        main, tmp_path / "a.json", data)
    assert not (tmp_path / "d").exists()


def test_an_array_of_json_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(formats, "LONGEST_LINE", 100)
    blocks = [b"[", b" " * 60, b" " * 60, None]  # None would fail
    with pytest.raises(UserError, match=r"a\.json is an array of more than .*jq -c"):
        list(json_documents(blocks, "a.json", "strict", "text"))


def test_a_number_of_thousands_of_digits_in_another_field_does_not_matter(run, tmp_path):
    lines = [f'{{"n": {"9" * 5000}, "text": "{i}"}}\n' for i in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    assert run(tmp_path / "a.jsonl").meta["documents"] == 9


# ---- documents in a text file


@pytest.mark.parametrize("tokenizer", ["gpt2", "char"])
def test_a_text_is_cut_into_documents_at_the_separator(run, tmp_path, capsys, tokenizer):
    texts = [story(i) for i in range(30)]
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join(texts) + "<|endoftext|>\n")
    write_lines(tmp_path / "b.jsonl", [{"text": text} for text in texts])
    data = run(tmp_path / "a.txt", tokenizer=tokenizer, separator="<|endoftext|>")
    assert sha(data) == sha(run(tmp_path / "b.jsonl", tokenizer=tokenizer))
    assert "<|endoftext|>" not in capsys.readouterr().out
    run(tmp_path / "a.txt", tokenizer=tokenizer)
    assert ("<|endoftext|> occurs 30 times in the text, and was encoded as plain text: to end "
            "documents there, give --separator='<|endoftext|>'") in capsys.readouterr().out


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_the_separator_is_found_across_blocks(step):
    text = "one--\ntwo----\n \n--three\n\nfour-"
    blocks = [text[i:i + step] for i in range(0, len(text), step)]
    assert list(formats.split_at(blocks, "--", "a")) == ["one", "two", "three\n\nfour-"]


def test_a_separator_that_does_not_occur_is_refused(mistake, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(story(0))
    data = f"--data_dir={tmp_path / 'd'}"
    line = mistake(main, tmp_path / "a.txt", data, "--separator=@@")
    assert "only one distinct document" in line and "without --separator" in line
    assert "separator is empty" in mistake(main, tmp_path / "a.txt", data, "--separator=")
    monkeypatch.setattr(formats, "LONGEST_LINE", 100)
    line = mistake(main, tmp_path / "a.txt", data, "--separator=@@")
    assert "without the separator '@@': give another --separator" in line


# ---- a vocabulary that is given


def test_characters_that_the_vocabulary_lacks_are_all_named_and_can_be_removed(run, mistake,
                                                                              tmp_path, capsys):
    (tmp_path / "base.txt").write_text("abc \n" * 100)
    main([str(tmp_path / "base.txt"), f"--data_dir={tmp_path / 'data'}"])
    text = "a“b”c é " * 10 + "☕a\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    line = mistake(main, tmp_path / "a.txt", f"--data_dir={tmp_path / 'data'}", "--tokenizer=base")
    named = ("31 of 83 characters are not among the 5 of base: '“' (U+201C, 10 times), "
             "'”' (U+201D, 10 times), 'é' (U+00E9, 10 times), '☕' (U+2615)")
    assert line == f"error: {named}; replace them in the text, or remove them with --errors=replace"
    data = run(tmp_path / "a.txt", tokenizer="base", errors="replace")
    assert f"removed: {named}\n" in capsys.readouterr().out
    ids = np.concatenate([data.train, data.val])
    assert tokenizer_from_meta(data.meta).decode(ids) == "abc  " * 10 + "a\n"
    write_lines(tmp_path / "b.jsonl", [{"text": "aé"}, {"text": "bé"}, {"text": "c"}])
    data = run(tmp_path / "b.jsonl", tokenizer="base", errors="replace")
    assert len(data.train) + len(data.val) == 6  # with a newline for each
    (tmp_path / "a.txt").write_text("".join(map(chr, range(0x100, 0x120))), encoding="utf-8")
    line = mistake(main, tmp_path / "a.txt", f"--data_dir={tmp_path / 'data'}", "--tokenizer=base")
    assert "'ċ' (U+010B), and 20 others; replace" in line


def test_a_parquet_file_that_cannot_be_read_is_named(mistake, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow
    path, data = tmp_path / "a.parquet", f"--data_dir={tmp_path}"
    parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), path)
    assert "a.parquet has no column 'text', but 'body, n'" in mistake(main, path, data)
    assert "column n cannot be read as text" in mistake(main, path, data, "--text_field=n")
    path.write_bytes(path.read_bytes()[:-9])
    assert "a.parquet" in mistake(main, path, data)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "a.parquet is a pointer of Git LFS: get the file with" in mistake(main, path, data)
    invalid = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"\xff"]).buffers())
    parquet.write_table(pyarrow.table({"text": invalid}), path)
    assert "column text is not UTF-8 after row 0" in mistake(main, path, data)


@pytest.mark.parametrize("name, package", [("a.txt.zst", "zstandard"), ("a.parquet", "pyarrow")])
def test_a_missing_package_is_named(mistake, tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setitem(sys.modules, package, None)
    line = mistake(main, tmp_path / name, f"--data_dir={tmp_path}")
    assert f"{name} needs an additional package: pip install {package}" in line


# ---- files, folders, patterns, stdin


def test_a_folder_is_read_in_the_order_of_paths_without_hidden_and_unknown_files(tmp_path):
    names = ["b.txt", "a.md", "c/x.txt", "c.txt", "B.TXT", "a/z.jsonl.gz", ".git/a.txt", ".a.txt",
             "image.png", "a.gz", "notes", "x.parquet.gz"]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def found(word):
        return [file.path.relative_to(tmp_path).as_posix()
                for file in find_sources([str(word)], {}, tmp_path)]

    assert found(tmp_path) == ["B.TXT", "a/z.jsonl.gz", "a.md", "b.txt", "c/x.txt", "c.txt"]
    assert found(f"{tmp_path}/**/*.txt") == ["b.txt", "c/x.txt", "c.txt"]


def test_a_folder_without_text_and_a_pattern_without_files_are_refused(mistake, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "image.png").write_text("x")
    data = f"--data_dir={tmp_path}"
    line = mistake(main, tmp_path, data, "--name=d")
    assert "has no text: none of its 1 files ends in .txt" in line
    assert "none of its 0 files" in mistake(main, tmp_path / "empty", data)
    assert "there is no file" in mistake(main, tmp_path / "*.txt", data, "--name=d")


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert [f.path.name for f in find_sources([str(tmp_path / "a[1].txt")], {}, tmp_path)] == [
        "a[1].txt"]


@pytest.mark.parametrize("source, name", [
    ("my novel.txt.gz", "my-novel"), ("wiki.jsonl.zst", "wiki"), ("notes/", "notes"),
    ("x.parquet", "x")])
def test_a_dataset_has_the_name_of_its_source(source, name):
    assert sources.dataset_name(None, source, {}) == name


def test_a_name_cannot_leave_the_data_folder(mistake, tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 100)
    for name in ("../x", "..", ".", "/tmp/x", "a/b", "a\\b", ""):
        data = f"--data_dir={tmp_path / 'data'}"
        assert "cannot be called" in mistake(main, tmp_path / "a.txt", data, f"--name={name}")
    assert "no file name: give the dataset a --name" in mistake(main, "-", data)
    assert not (tmp_path / "data").exists()


def test_stdin_is_a_source_like_a_file(run, tmp_path):
    (tmp_path / "a.txt").write_text(story(3))
    with open(tmp_path / "a.txt") as file:
        code, printed = finished("prepare.py", "-", f"--data_dir={tmp_path}", "--name=in",
                                 "--tokenizer=gpt2", stdin=file)
    assert code == 0, printed
    assert sha(load(tmp_path / "in")) == sha(run(tmp_path / "a.txt", tokenizer="gpt2"))
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "in", "data"}


def write_in_thread(path, content):
    """Write to a named pipe while the test reads it."""
    threading.Thread(target=lambda: path.write_bytes(content), daemon=True).start()


def test_pipes_are_read_once(run, mistake, tmp_path):
    texts = [story(i, words=3000) for i in range(2)]
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text(texts[i])
        os.mkfifo(tmp_path / f"pipe{i}.txt")
    expected = sha(run(tmp_path / "0.txt", tmp_path / "1.txt"))
    pipes = [tmp_path / f"pipe{i}.txt" for i in range(2)]
    for pipe, text in zip(pipes, texts, strict=True):
        write_in_thread(pipe, text.encode())
    assert sha(run(*pipes)) == expected
    write_in_thread(pipes[0], gzip.compress(texts[0].encode()))
    assert sha(run(pipes[0])) == sha(run(tmp_path / "0.txt"))
    data = f"--data_dir={tmp_path / 'd'}"
    assert "pipe0.txt is given twice, but a pipe can be" in mistake(main, pipes[0], pipes[0], data)
    os.mkfifo(tmp_path / "a.parquet")
    write_in_thread(tmp_path / "a.parquet", b"")
    assert "is a pipe, but parquet is read only" in mistake(main, tmp_path / "a.parquet", data)
    assert "/dev/null is a device" in mistake(main, "/dev/null", data, "--name=d")
    assert "text from /dev/fd/9 has no file name: give the" in mistake(main, "/dev/fd/9", data)
    assert not (tmp_path / "d").exists()


def test_a_folder_says_what_it_leaves_out_and_does_not_wait_for_a_pipe(run, tmp_path, monkeypatch,
                                                                     capsys):
    for name in ("a.txt", "b.txt", "c.py", "d.py", "e.html", "f.csv", "g", "h.txt", "i.parquet.gz",
                 ".hidden"):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_text(f"{name}\n" * 9)
    os.mkfifo(tmp_path / "x" / "pipe.txt")
    (tmp_path / "x" / "broken.txt").symlink_to("nowhere")
    (tmp_path / "x" / "locked").mkdir()
    access, scandir = os.access, os.scandir

    def denied(folder):
        if os.path.basename(folder) == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "access", lambda path, *mode: (  # as for a user who is not root
        os.path.basename(path) != "h.txt" and access(path, *mode)))
    monkeypatch.setattr(os, "scandir", denied)
    assert len(find_sources([str(tmp_path / "x")], {}, tmp_path)) == 2
    monkeypatch.undo()
    kinds = ("2 .py, 2 unreadable, 1 unreadable folder, 1 .html, 1 .csv, 1 without a suffix, "
             "1 .gz, 1 special file")
    out = capsys.readouterr().out
    assert f"{tmp_path / 'x'}: left out 10: " in out
    found = out.split("left out 10: ")[1].splitlines()[0]
    assert sorted(found.split(", ")) == sorted(kinds.split(", "))
    run(f"{tmp_path / 'x'}/*.txt")
    assert "x/*.txt: left out 2: 1 unreadable, 1 special file\n" in capsys.readouterr().out


def test_links_to_folders_are_followed_once(tmp_path, mistake):
    notes, far = tmp_path / "notes", tmp_path / "far"
    for folder in (notes / "real", far):
        folder.mkdir(parents=True)
    (notes / "real" / "a.txt").write_text("a")
    (notes / "a_link").symlink_to("real")
    (notes / "z").symlink_to(far)
    (notes / "loop").symlink_to(notes)
    (far / "b.txt").write_text("b")
    (far / "back").symlink_to(notes)

    def found(word):
        return [file.path.relative_to(tmp_path).as_posix()
                for file in find_sources([str(word)], {}, tmp_path)]

    assert found(notes) == ["notes/real/a.txt", "notes/z/b.txt"]
    assert len(found(f"{notes}/**/*.txt")) == 2
    (tmp_path / "into").symlink_to(notes)
    assert found(tmp_path / "into") == ["into/real/a.txt", "into/z/b.txt"]
    data = f"--data_dir={tmp_path}"
    assert "there is no file" in mistake(main, f"{tmp_path}/no*", data, "--name=d")


def test_a_file_that_is_given_twice_is_announced(run, tmp_path, capsys):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}\n" * 9)
    assert run(tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "a.txt").meta["documents"] == 3
    assert f"{tmp_path / 'a.txt'} is read 2 times, because the" in capsys.readouterr().out
    (tmp_path / "c.txt").hardlink_to(tmp_path / "b.txt")
    run(tmp_path)
    assert f"{tmp_path / 'b.txt'} is read 2 times, because the" in capsys.readouterr().out


# ---- before and after


def test_the_dataset_is_written_if_the_reader_of_the_output_has_exited(tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 1000)
    reader, writer = os.pipe()
    os.close(reader)
    run = script("prepare.py", tmp_path / "a.txt", f"--data_dir={tmp_path}", stdout=writer)
    os.close(writer)
    assert run.wait() == 0
    assert len(load(tmp_path / "a").train) == 3600


@pytest.mark.parametrize("option", [[], ["--dry_run"]])
def test_a_preparation_that_fails_leaves_no_folder(mistake, tmp_path, monkeypatch, option):
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    mistake(main, tmp_path / "a.txt", f"--data_dir={tmp_path / 'new' / 'data'}", *option)
    mistake(main, "plays_char", f"--data_dir={tmp_path / 'a.txt'}")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    mistake(main, "-", f"--data_dir={tmp_path / 'new' / 'data'}", "--name=d", *option)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_data_folder_that_cannot_be_written_to_is_refused(mistake, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("abc " * 100)
    line = mistake(main, tmp_path / "a.txt", f"--data_dir={tmp_path / 'a.txt'}")
    assert "a.txt/a cannot be created (Not a directory): choose a folder that can be" in line
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    line = mistake(main, tmp_path / "a.txt", f"--data_dir={tmp_path}")
    assert "cannot be written to: choose a folder that can be written to with --data_dir" in line


def test_a_dry_run_prints_what_it_takes_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("abcde" * 200_000)
    main([str(tmp_path / "a.txt"), f"--data_dir={tmp_path / 'data'}", "--dry_run", "--workers=2"])
    assert capsys.readouterr().out.startswith(
        "1 source of 1.0 MB: about 1,000,000 tokens, 2.0 MB of disk, ")
    assert not (tmp_path / "data").exists()


def test_the_estimate_for_a_large_text_is_about_right(tmp_path, capsys):
    packed = gzip.compress("".join(story(i) for i in range(3500)).encode())
    (tmp_path / "a.txt.gz").write_bytes(packed)
    main([str(tmp_path / "a.txt.gz"), f"--data_dir={tmp_path}", "--tokenizer=gpt2"])
    out = capsys.readouterr().out
    expected = int(out.split("about ")[1].split()[0].replace(",", ""))
    data = load(tmp_path / "a")
    assert abs(expected / (len(data.train) + len(data.val)) - 1) < 0.1
    assert "one text, 3." in out and " bytes per token; " in out


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(mistake, tmp_path,
                                                                        monkeypatch):
    (tmp_path / "a.txt").write_text("abc " * 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=7000))
    line = mistake(main, tmp_path / "a.txt", f"--data_dir={tmp_path}")
    assert "the bins need about 8.0 kB" in line and "only 7.0 kB free" in line
    assert not (tmp_path / "a").exists()


def test_progress_is_not_on_stdout_and_warnings_are_not_on_stderr(tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 1000)
    run = script("prepare.py", tmp_path / "a.txt", f"--data_dir={tmp_path}",
                 stderr=subprocess.PIPE)
    out, err = run.communicate()
    assert run.returncode == 0 and err == "" and out.count("\n") == 3


# ---- interrupted runs

# a run whose journal is written after each unit of a few thousand characters
SMALL_UNITS = """
import sys, time
from internals.data import bins, units
import prepare
bins.JOURNAL_SECONDS = 0
units.PIECE = 5000
units.pieces.__defaults__ = 5000, 5000
add = bins.Partial.add
def slow(self, *chunk):
    time.sleep(float(sys.argv[1]))
    add(self, *chunk)
    print("added", self.n_chunks, flush=True)
bins.Partial.add = slow
prepare.main(sys.argv[2:])
"""


def test_a_killed_run_continues_and_ends_with_the_same_bins(tmp_path):
    (tmp_path / "notes").mkdir()
    for i in range(30):
        (tmp_path / "notes" / f"{i}.txt").write_text(story(i, words=3000))
    words = [tmp_path / "notes", f"--data_dir={tmp_path}", "--tokenizer=gpt2", "--workers=2"]
    code, printed = finished("-c", SMALL_UNITS, 0, *words, "--name=whole")
    assert code == 0, printed
    last = 0
    for _ in range(2):
        process = script("-c", SMALL_UNITS, 0.01, *words, "--name=killed")
        for _ in range(12):
            line = process.stdout.readline()
            while not line.startswith("added"):
                line = process.stdout.readline()
        first_now = int(line.split()[1]) - 11
        assert first_now > last - 2  # it did not begin again
        last = first_now + 11
        process.kill()
        process.communicate()
        assert not (tmp_path / "killed" / "train.bin").exists()
    code, printed = finished("-c", SMALL_UNITS, 0, *words, "--name=killed")
    assert code == 0 and f"added {last - 1}\n" not in printed
    assert sha(load(tmp_path / "killed")) == sha(load(tmp_path / "whole"))
    meta, other = (load(tmp_path / name).meta for name in ("killed", "whole"))
    assert {k: v for k, v in meta.items() if k != "command"} == {
        k: v for k, v in other.items() if k != "command"}


class Stop(Exception):
    pass


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A function: a run on a.jsonl that stops after three units; returns what is left of it."""
    monkeypatch.setattr(units, "PIECE", 2000)
    add = bins.Partial.add
    added = []

    def limited(self, split, ids):
        if len(added) == 3:
            raise Stop
        added.append(ids)
        add(self, split, ids)

    def stop(*options):
        added.clear()
        with monkeypatch.context() as patch:
            patch.setattr(bins.Partial, "add", limited)
            with pytest.raises(Stop):
                main([str(tmp_path / "a.jsonl"), f"--data_dir={tmp_path}", *options])
        return tmp_path / "a" / "partial"

    write_lines(tmp_path / "a.jsonl", [{"text": story(i), "other": story(-i)} for i in range(40)])
    return stop


@pytest.fixture
def skipped(monkeypatch):
    """The numbers of units that runs have skipped, because an earlier run had encoded them."""
    numbers, encoded = [], units.encoded
    monkeypatch.setattr(units, "encoded", lambda units, work, workers, skip: (
        numbers.append(skip) or encoded(units, work, workers, skip)))
    return numbers


def test_an_interrupted_run_is_continued_only_with_the_same_sources_and_settings(
        interrupted, skipped, tmp_path):
    words = [str(tmp_path / "a.jsonl"), f"--data_dir={tmp_path}"]

    def again(*options):
        interrupted()
        skipped.clear()
        main([*words, *options])
        return skipped[-1], sha(load(tmp_path / "a"))

    _, whole = again("--val_fraction=0.2")
    main(words)
    expected = sha(load(tmp_path / "a"))
    assert again() == (3, expected)
    assert again("--workers=1") == (3, expected)
    for options in ("--val_fraction=0.2", "--tokenizer=gpt2", "--errors=replace"):
        assert again(options)[0] == 0
    assert again("--text_field=other")[0] == 0
    interrupted()
    skipped.clear()
    os.utime(words[0], (1, 1))  # as if the file had changed
    main(words)
    assert skipped[-1] == 0 and sha(load(tmp_path / "a")) == expected != whole


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "journal.json").write_text("{"),
    lambda folder: (folder / "journal.json").write_text("[]"),
    lambda folder: (folder / "journal.json").unlink(),
    lambda folder: (folder / "train.bin").write_bytes(b""),
    lambda folder: (folder / "val.bin").unlink(),
    lambda folder: (folder / "train.bin").write_bytes(
        b"??" + (folder / "train.bin").read_bytes()[2:]),
])
def test_damaged_parts_are_not_used(interrupted, skipped, tmp_path, damage):
    words = [str(tmp_path / "a.jsonl"), f"--data_dir={tmp_path}"]
    main(words)
    expected = sha(load(tmp_path / "a"))
    damage(interrupted())
    main(words)
    assert skipped[-1] == 0 and sha(load(tmp_path / "a")) == expected


def test_bytes_after_the_last_entry_of_the_journal_are_cut(interrupted, skipped, tmp_path):
    words = [str(tmp_path / "a.jsonl"), f"--data_dir={tmp_path}"]
    main(words)
    expected = sha(load(tmp_path / "a"))
    partial = interrupted()
    for split in ("train", "val"):
        with open(partial / f"{split}.bin", "ab") as file:
            file.write(b"after the entry")
    main(words)
    assert skipped[-1] == 3 and sha(load(tmp_path / "a")) == expected


def test_the_old_dataset_stays_until_the_new_one_is_complete(interrupted, tmp_path, mistake):
    words = [str(tmp_path / "a.jsonl"), f"--data_dir={tmp_path}"]
    main(words)
    expected = sha(load(tmp_path / "a"))
    interrupted("--tokenizer=gpt2")
    assert sha(load(tmp_path / "a")) == expected
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write("{")
    assert "line 41 is not JSON" in mistake(main, *words, "--tokenizer=gpt2")
    assert sha(load(tmp_path / "a")) == expected


def test_a_disk_that_fills_up_loses_nothing(interrupted, skipped, tmp_path, monkeypatch, mistake):
    words = [str(tmp_path / "a.jsonl"), f"--data_dir={tmp_path}"]
    main(words)
    expected = sha(load(tmp_path / "a"))
    add = bins.Partial.add

    def full(self, split, ids):
        if self.n_chunks == 2:
            raise OSError(28, "No space left on device")
        add(self, split, ids)

    with monkeypatch.context() as patch:
        patch.setattr(bins.Partial, "add", full)
        assert "No space left" in mistake(main, *words)
    assert sha(load(tmp_path / "a")) == expected
    main(words)
    assert skipped[-1] == 2 and sha(load(tmp_path / "a")) == expected


# ---- memory

# ru_maxrss would be that of pytest, which started the process
PEAK = """
import sys, prepare
prepare.main(sys.argv[1:])
print("peak", open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def peak_megabytes(*words):
    process = subprocess.run([sys.executable, "-c", PEAK, *map(str, words)], cwd=ROOT,
                             capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return int(process.stdout.split("peak ")[1]) / 1000


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_the_memory_does_not_depend_on_the_size_of_the_text(tmp_path):
    """A single line of characters, which are read twice: first for the vocabulary."""
    data, peaks = f"--data_dir={tmp_path}", []
    for n in (12, 48):
        (tmp_path / f"{n}.txt").write_text("abcdefg " * (n * 2**17))
        peaks.append(peak_megabytes(tmp_path / f"{n}.txt", data, "--workers=2"))
    assert peaks[1] < 1.1 * peaks[0] and peaks[1] < 400 + 2 * 150, peaks


# ---- the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """fineweb, but its address is that of local parquet files, which the real library reads."""
    pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    texts = [story(i, words=20) for i in range(5000)]
    for i in range(2):
        table = pyarrow.table({"text": texts[i * 2500:(i + 1) * 2500], "id": [0] * 2500})
        parquet.write_table(table, tmp_path / f"{i}.parquet")
    address = {"path": "parquet", "data_files": [str(tmp_path / f"{i}.parquet") for i in range(2)]}
    monkeypatch.setitem(prepare.HUB_DATASETS, "fineweb", (address, 0))
    return texts


def test_a_dataset_of_the_hub_takes_the_same_way(hub, tmp_path, capsys):
    main(["fineweb", f"--data_dir={tmp_path}"])
    data = load(tmp_path / "fineweb")
    train, val = texts_of(data)
    assert val == [text for text in hub if units.split_score(text) < 1 / 2000] != []
    assert train == [text for text in hub if text not in val]
    assert "5,000 documents" in capsys.readouterr().out


def test_the_absence_of_the_hub_is_one_line(mistake, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(**address):
        raise ConnectionError("Couldn't reach 'Skylion007/openwebtext' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**12))
    line = mistake(main, "openwebtext", f"--data_dir={tmp_path}")
    assert "openwebtext cannot be read from the Hugging Face hub (ConnectionError: Couldn't" in line
    assert "check the network" in line


def test_characters_are_looked_up_beyond_the_table():
    tokenizer = CharTokenizer("ab")
    for text, char in (("ac", "c"), ("a🙂", "🙂"), ("\0", r"\\x00")):
        with pytest.raises(UserError, match=char):
            tokenizer.encode(text)
    assert np.array_equal(tokenizer.encode("ba"), [1, 0])


def test_line_ends_and_byte_order_marks_in_json_are_those_of_text(run, tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "one\r\ntwo\rthree"}) + "\n" + json.dumps({"text": "\ufefffour"}))
    data = run(tmp_path / "a.jsonl")
    assert data.meta["chars"] == "".join(sorted(set("\nonetwothreefour")))


def test_what_is_encoded_is_kept_when_publishing_fails(tmp_path, monkeypatch):
    """The error itself is reported, not that a file is closed."""
    fsync = os.fsync
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), bins.Partial(tmp_path, "x") as partial:
        for split in ("train", "val"):
            partial.add(split, [1, 2, 3])
        partial.publish({})
