"""pytest tests/test_sources.py - text from files, folders and stdin, of any size and format"""

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import random
import re
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import command_line, finished

import prepare
from internals.data import formats, sources, units
from internals.data.formats import decoded, json_documents, read_text
from internals.data.sources import File, Reader, find_sources
from internals.dataset import load
from internals.errors import UserError
from internals.streaming import read_prompt
from prepare import GPT2Tokenizer, main, tokenizer_from_meta

WORDS = "the quick brown fox jumps over a lazy dog and sleeps in warm grass until evening".split()


def story(seed, words=200):
    """A text that is different for each seed."""
    chance = random.Random(seed)
    return " ".join(chance.choices(WORDS, k=words)) + f" {seed}.\n"


@pytest.fixture(scope="module", autouse=True)
def bpe():
    """GPT-2's tokenizer. Its tables are loaded once."""
    tokenizer = GPT2Tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "gpt2_encoding", lambda: tokenizer.bpe)
        yield tokenizer


@pytest.fixture
def run(tmp_path):
    """A function: prepare sources as the dataset `d` with settings; returns it."""
    def prepared(*words, **settings):
        options = command_line(settings)
        main([*map(str, words), f"--data_dir={tmp_path / 'data'}", "--name=d", *options])
        return load(tmp_path / "data" / "d")

    return prepared


@pytest.fixture
def refused(mistake, tmp_path):
    """A function: prepare.py must refuse these words and write nothing; returns its one line."""
    def run(*words):
        line = mistake(main, *words, f"--data_dir={tmp_path / 'refused'}")
        assert not list((tmp_path / "refused").glob("[!.]*"))
        return line

    return run


def texts_of(data):
    """The documents of both splits, in GPT-2's BPE."""
    tokenizer = tokenizer_from_meta(data.meta)
    return [tokenizer.decode(ids).split("<|endoftext|>")[:-1] for ids in (data.train, data.val)]


def write_lines(path, texts):
    """A file with a line of JSON for each text."""
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def sha(data):
    return data.meta["train_sha256"], data.meta["val_sha256"]


# ---- documents and their split


def test_documents_end_with_end_of_text_and_a_hash_decides_their_split(run, tmp_path):
    texts = [story(i) for i in range(50)]
    train, val = texts_of(run(write_lines(tmp_path / "a.jsonl", texts), tokenizer="gpt2"))
    assert val == [text for text in texts if units.split_score(text) < 0.1]
    assert train == [text for text in texts if text not in val] and 0 < len(val) < 15
    more = [story(i) for i in range(50, 80)] + texts + texts
    train, more_val = texts_of(run(write_lines(tmp_path / "b.jsonl", more), tokenizer="gpt2"))
    assert set(val) == set(more_val) & set(texts)  # more documents do not move the others
    assert not set(train) & set(more_val)  # a copy is on the same side


@pytest.mark.parametrize("val_fraction, n_val", [(0.0001, 1), (0.9999, 2)])
def test_a_few_documents_have_one_for_each_split(run, tmp_path, val_fraction, n_val):
    texts = sorted((story(i) for i in range(3)), key=units.split_score)
    path = write_lines(tmp_path / "a.jsonl", texts)
    train, val = texts_of(run(path, tokenizer="gpt2", val_fraction=val_fraction))
    assert (sorted(val), sorted(train)) == (sorted(texts[:n_val]), sorted(texts[n_val:]))


def test_documents_of_characters_end_with_a_newline(run, tmp_path):
    for name, text in (("a", "first\n"), ("b", "second"), ("c", "third")):
        (tmp_path / f"{name}.txt").write_text(text)
    data = run(tmp_path)
    tokenizer = tokenizer_from_meta(data.meta)
    whole = tokenizer.decode(data.train) + tokenizer.decode(data.val)
    assert sorted(whole.splitlines(keepends=True)) == ["first\n", "second\n", "third\n"]


def test_empty_documents_are_left_out_and_the_others_counted(run, tmp_path):
    texts = ["", "é", "ab", "", "x" * 50, None]
    path = write_lines(tmp_path / "a.jsonl", texts)
    data = run(path, tokenizer="gpt2", val_fraction=0.5)
    assert sorted(itertools.chain(*texts_of(data))) == sorted(filter(None, texts))
    meta = data.meta
    assert (meta["documents"], meta["bytes"]) == (3, 54)
    assert meta["train_bytes"] + meta["val_bytes"] == 54 and meta["val_documents"] in (1, 2)


def test_end_of_text_inside_a_document_is_text(bpe):
    texts = ["a<|endoftext|>b", "<|endoftext|>", "c", "<|endoftext|"]
    expected = []
    for text in texts:
        expected += [*bpe.encode(text), 50256]
    assert bpe.encode_documents(texts).tolist() == expected
    assert bpe.encode_documents(texts, ends=False).tolist() == expected[:-1]


# ---- pieces, and the same ids for any number of threads


def test_pieces_depend_on_the_text_alone_and_are_never_long():
    text = "ab " * 300 + "日本" * 250 + " " * 500
    whole = list(units.pieces([text], size=50, reach=70))
    assert "".join(whole) == text and max(map(len, whole)) <= 120
    for step in (1, 7, 119, 120, 121, 999):
        blocks = [text[i:i + step] for i in range(0, len(text), step)]
        assert list(units.pieces(blocks, size=50, reach=70)) == whole


@pytest.mark.parametrize("step", [1, 45, 91, 100])
def test_the_cut_between_the_splits_is_at_the_character_for_any_blocks(step):
    text = "".join(map(chr, range(0x100, 0x100 + 100)))
    blocks = [text[i:i + step] for i in range(0, 100, step)]
    counts = units.Counts()
    parts = {"train": "", "val": ""}
    for unit in units.text_units(blocks, 100, 0.1, counts):
        parts[unit.split] += "".join(unit.texts)
    assert parts == {"train": text[:90], "val": text[90:]}
    assert (counts.train_bytes, counts.val_bytes) == (180, 20)
    with pytest.raises(UserError, match="changed while it was read"):
        list(units.text_units([*blocks, "more"], 100, 0.1, counts))


@pytest.mark.parametrize("tokenizer", ["gpt2", "char"])
def test_the_bins_are_the_same_for_any_number_of_threads(run, tmp_path, monkeypatch, tokenizer):
    hard = "emoji 👩‍👩‍👧‍👦\r\nCR\rcontrol\1 \x1c!\x1c " + " " * 9000 + "z" * 5000 + "\n"
    (tmp_path / "a.txt").write_text(hard + story(1), newline="")
    (tmp_path / "long.txt").write_text("".join(story(i) for i in range(100)))
    write_lines(tmp_path / "c.jsonl", [story(i, i % 50) for i in range(300)])
    monkeypatch.setattr(units, "PIECE", 2000)
    monkeypatch.setattr(units.pieces, "__defaults__", (2000, 2000))
    found = {sha(run(tmp_path, tokenizer=tokenizer, workers=n)) for n in (1, 2, 4)}
    assert len(found) == 1


# ---- formats


def test_every_format_gives_the_same_bins(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    zstandard = pytest.importorskip("zstandard")
    import pyarrow
    texts = [story(i) + "é🙂\r\n" for i in range(40)] + [""]
    lines = [json.dumps({"id": 1, "body": text}).encode() for text in texts]
    content = b"\n".join(lines)
    array = b"[" + b",".join(lines) + b"]"
    halves = content[:3000], content[3000:]  # of two members or frames
    files = {
        "a.jsonl": content, "a.ndjson": content.replace(b"\n", b"\n\xef\xbb\xbf"),
        "a.json": b" \n" + content, "a": content, "b.json": b"\xef\xbb\xbf " + array,
        "b.dump": array, "c.jsonl.gz": b"".join(map(gzip.compress, halves)),
        "c.JSONL.ZST": b"".join(map(zstandard.compress, halves)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name, kind in (("d.parquet", pyarrow.string()), ("e.parquet", pyarrow.large_string())):
        table = pyarrow.table({"body": pyarrow.array([*texts, None], kind), "id": [1] * 42})
        parquet.write_table(table, tmp_path / name, row_group_size=7)
    results = {}
    for name in [*files, "d.parquet", "e.parquet"]:
        results[name] = sha(run(tmp_path / name, tokenizer="gpt2", text_field="body"))
    assert len(set(results.values())) == 1, results


def test_the_content_says_how_a_file_is_compressed(run, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    text = story(0).encode()
    halves = text[:50], text[50:]
    first, second = map(lzma.compress, halves)
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    # a frame that declares a window of 2 GiB, as `zstd --long=31` does, with one raw block
    window = b"\x28\xb5\x2f\xfd\0" + bytes([21 << 3])
    window += (len(text) << 3 | 1).to_bytes(3, "little") + text
    contents = [text, gzip.compress(text), zstandard.compress(text),
                skippable + zstandard.compress(text), window,
                b"".join(map(bz2.compress, halves)), lzma.compress(text, lzma.FORMAT_ALONE),
                lzma.compress(text) + bytes(8), first + bytes(2**20) + second]
    found = set()
    for content in contents:
        for name in ("a.txt", "b.txt.gz", "d"):
            (tmp_path / name).write_bytes(content)
            found.add(sha(run(tmp_path / name)))
            assert read_text(tmp_path / name) == text.decode()
    assert len(found) == 1


@pytest.mark.parametrize("before", [0, formats.BLOCK - 1, formats.BLOCK])
def test_invalid_utf8_is_named_with_its_position(tmp_path, before):
    content = b"a" * before + b"\xe6\x97" + b"b" * 10
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt is not UTF-8, at byte {before}: .*--errors=rep"):
        list(File(tmp_path / "a.txt").blocks(lambda n: None, "strict"))
    text = "".join(File(tmp_path / "a.txt").blocks(lambda n: None, "replace"))
    assert text == content.decode("utf-8", "replace")


def test_byte_order_marks_and_line_ends_are_normalized_in_all_text(tmp_path, monkeypatch):
    content = "\ufeffa\ufeff\ufeffb\ufeff\r\nc\rd\r\n🙂\r"
    path = tmp_path / "a.txt"
    path.write_text(content, encoding="utf-8", newline="")
    parts = [bytes([byte]) for byte in path.read_bytes()]
    lines = [json.dumps({"text": content}).encode()]
    monkeypatch.setattr(sys, "stdin", io.StringIO(content, newline=""))
    found = ["".join(decoded(parts, "a.txt", "strict")), read_text(path),
             *json_documents(lines, "a.jsonl", "strict", "text"),
             read_prompt(f"FILE:{path}", None), read_prompt("-", None)]
    assert found == ["ab\nc\nd\n🙂\n"] * 5
    assert read_prompt("a\udcff", None) == "a?"  # of a command line that is not UTF-8


TAR = b"a.txt".ljust(257, b"\0") + b"ustar\0"


@pytest.mark.parametrize("content, message", [
    ("win".encode("utf-16"), "is UTF-16: save it as UTF-8, for example with `iconv -f UTF-16 -t"),
    (story(0).encode("utf-16-le"), "is not text, because it has a NUL, at byte 1: if it is UTF-16"),
    (b"a" * 2**19 + b"\0", "is not text, because it has a NUL, at byte 524288: "),
    (gzip.compress(TAR), "is a tar archive: unpack it with `tar -xf`"),
    (b"PK\x03\x04", "is a zip archive, or a .docx, .xlsx or .epub file"),
    (gzip.compress(gzip.compress(b"text")), "is compressed in a way that is not supported, or"),
    (b"%PDF-1.7\n", "is a PDF file: convert"), (b"\xd0\xcf\x11\xe0\xa1\xb1", "is an Office docu"),
    (b"PAR1\x15\x04", "is a parquet file: prepare.py reads it as an uncompressed file whose n"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a pointer of Git LFS: get"),
], ids=lambda value: value[:30] if isinstance(value, str) else "file")
def test_a_file_that_is_not_text_is_named_and_refused(refused, tmp_path, content, message):
    for name, errors in (("a.txt", "strict"), ("b.jsonl", "replace")):
        (tmp_path / name).write_bytes(content)
        assert f"{name} {message}" in refused(tmp_path / name, f"--errors={errors}")
        with pytest.raises(UserError, match=re.escape(f"{name} {message}")):
            read_text(tmp_path / name)


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2", "zst"])
def test_a_damaged_archive_is_named(refused, tmp_path, suffix):
    zstandard = pytest.importorskip("zstandard")
    compress = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress,
                "zst": zstandard.ZstdCompressor(write_checksum=True).compress}[suffix]
    packed = compress(os.urandom(30_000).hex().encode())
    middle = len(packed) // 2
    changed = packed[:middle] + b"????????" + packed[middle + 8:]
    path = tmp_path / f"a.txt.{suffix}"
    for content in (packed[:-1], packed + b"more text", changed):
        path.write_bytes(content)
        assert f"a.txt.{suffix} is damaged or incomplete" in refused(path), content[-9:]
        with pytest.raises(UserError, match="is damaged or incomplete"):
            read_text(path)


@pytest.mark.parametrize("name, content, options, message", [
    ("a.txt", "", "", "a.txt is empty"), ("a.txt", "a", "", "the text is too short"),
    ("a.jsonl", "{", "", "a.jsonl, line 3 is not JSON (Expecting property name"),
    ("a.jsonl", '{"body": "x", "id": 1}', "", "no field 'text', but 'body, id': choose a field"),
    ("a.jsonl", '{"text": 5}', "", "line 3: text is 5, not a text"),
    ("a.jsonl", r'{"text": "\ud83d"}', "", "line 3 has half of a surrogate pair"),
    ("a.jsonl", '{"text": "\udcff"}', "", "a.jsonl is not UTF-8, at byte 27"),
    ("a.jsonl", '{"text": "one"}', "", "only one distinct document"),
    ("a.json", '[{"text": "one"}, 3]', "", "a.json, entry 2 has no field 'text', but 'int'"),
    ("a.txt", "words", "--text_field=body", "text_field=body is for JSON and parquet, but all"),
    ("a.jsonl", '{"text": "two"}', "--separator=@@", "separator='@@' is for text files, but all"),
    ("a", '[{"text": "two"}]', "--separator=@@", "separator='@@' is for text files, but all"),
    ("a.tsv.gz", "n\ttext", "", r"a.tsv.gz is a table: convert it to JSON lines"),
    ("a.png", "words", "", "has no text: none of its 1 files ends in .txt"),
])
def test_a_text_that_cannot_be_prepared_is_refused(refused, tmp_path, name, content, options,
                                                   message):
    if name == "a.jsonl":
        content = '{"text": "one"}\n\n' + content + '\n{"text": "one"}\n'
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    path.write_bytes(content.encode(errors="surrogateescape"))
    if name == "a.png":
        path = path.parent
    assert message in refused(path, *options.split())


def test_what_must_fit_into_memory_is_refused_before_it_fills_it(monkeypatch):
    monkeypatch.setattr(formats, "LONGEST_LINE", 100)
    lines = [b'{"text": "a"}\n', b"x" * 80, b"x" * 80, None]  # None would fail
    with pytest.raises(UserError, match=r"b\.jsonl has a line of more than .* at byte 14"):
        list(json_documents(lines, "b.jsonl", "strict", "text"))
    array = [b"[", b" " * 60, b" " * 60, None]
    with pytest.raises(UserError, match=r"a\.json is an array of more than .*jq -c"):
        list(json_documents(array, "a.json", "strict", "text"))
    with pytest.raises(UserError, match="without the separator '@@': give another --separator"):
        list(formats.split_at(["x" * 80, "x" * 80, None], "@@", "a.txt"))


def test_what_errors_replace_replaces_is_counted_and_a_large_share_refused(run, refused, tmp_path,
                                                                          capsys):
    path = tmp_path / "a.txt"
    path.write_bytes(b"un caf\xe9 cr\xe8me, s'il vous plait " * 50)
    run(path, errors="replace")
    assert "100 characters are U+FFFD, which replaces invalid UTF-8" in capsys.readouterr().out
    path.write_bytes("Съешь ещё этих мягких булок ".encode("cp1251") * 50)
    line = refused(path, "--errors=replace")
    assert "a.txt is not UTF-8: 1,150 of the first 1,400 characters are invalid; save it as" in line


def test_json_is_told_by_its_name_or_without_a_name_by_its_content(run, tmp_path, capsys,
                                                                  monkeypatch):
    content = write_lines(tmp_path / "a.jsonl", [story(i) for i in range(9)]).read_bytes()
    expected = sha(run(tmp_path / "a.jsonl"))
    for piped in content, b"[" + b",\n".join(content.splitlines()) + b"]":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
        assert sha(run("-")) == expected
    (tmp_path / "a.txt").write_bytes(content)
    assert sha(run(tmp_path / "a.txt")) != expected
    out = capsys.readouterr().out
    assert "a.txt begins with JSON, but is read as text, as its name says: " in out


def test_a_parquet_file_that_cannot_be_read_is_named(refused, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), path)
    assert "a.parquet has no column 'text', but 'body, n'" in refused(path)
    assert "column n cannot be read as text" in refused(path, "--text_field=n")
    parquet.write_table(pyarrow.table({"text": [b"a", b"b\xff"] * 99}), path)
    assert "column text is not UTF-8 in row 2: replace what is invalid with" in refused(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs an additional package: pip install pyarrow" in refused(path)


# ---- documents in a text file, and a vocabulary that is given


@pytest.mark.parametrize("tokenizer", ["gpt2", "char"])
def test_a_text_is_cut_into_documents_at_the_separator(run, tmp_path, capsys, tokenizer):
    texts = [story(i) for i in range(30)]
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join(texts) + "<|endoftext|>\n")
    write_lines(tmp_path / "b.jsonl", texts)
    data = run(tmp_path / "a.txt", tokenizer=tokenizer, separator="<|endoftext|>")
    assert sha(data) == sha(run(tmp_path / "b.jsonl", tokenizer=tokenizer))
    message = "<|endoftext|> occurs 30 times in the text, and was encoded as plain text: "
    assert message not in capsys.readouterr().out
    run(tmp_path / "a.txt", tokenizer=tokenizer)
    assert message in capsys.readouterr().out
    blocks = "\none--\ntwo----\n \n--three\n\nfour-"  # of one character each
    assert list(formats.split_at(blocks, "--", "a")) == ["\none", "two", "three\n\nfour-"]
    assert list(formats.split_at("\n", "--", "a")) == []
    assert list(formats.split_at("\n\none", "--", "a")) == ["\n\none"]
    assert list(formats.split_at("--\n\none", "--", "a")) == ["\none"]


def test_a_separator_has_the_line_breaks_of_the_text_and_its_absence_is_told(
        run, tmp_path, capsys):
    for name in "ab":
        lines = f"{name} one\r\n---\r\n{name} two\r\n"
        (tmp_path / f"{name}.txt").write_bytes(lines.encode())
    data = run(tmp_path / "a.txt", tmp_path / "b.txt", separator="\r\n---\r\n")
    assert data.meta["documents"] == 4 and "does not occur" not in capsys.readouterr().out
    data = run(tmp_path / "a.txt", tmp_path / "b.txt", separator="+++")
    assert data.meta["documents"] == 2
    assert "the separator '+++' does not occur in the text" in capsys.readouterr().out


def test_characters_that_the_vocabulary_lacks_are_all_named_and_can_be_removed(run, mistake,
                                                                              tmp_path, capsys):
    (tmp_path / "base.txt").write_text("abc \n" * 100)
    main([str(tmp_path / "base.txt"), f"--data_dir={tmp_path / 'data'}"])
    path = tmp_path / "a.txt"
    path.write_text("a“b”c é " * 10 + "☕a\n", encoding="utf-8")
    named = ("4 characters of the text are not among the 5 of base: "
             "'é' (U+00E9), '“' (U+201C), '”' (U+201D), '☕' (U+2615)")
    given = f"--data_dir={tmp_path / 'data'}", "--tokenizer=base"
    assert f"{named}; replace them in the text, or remove them with" in mistake(main, path, *given)
    data = run(path, tokenizer="base", errors="replace")
    assert f"all of these are removed: {named}\n" in capsys.readouterr().out
    ids = np.concatenate([data.train, data.val])
    assert tokenizer_from_meta(data.meta).decode(ids) == "abc  " * 10 + "a\n"
    assert named in mistake(main, tmp_path / "base.txt", path, *given)  # of all files


# ---- files, folders, patterns, stdin


def test_a_folder_is_read_in_the_order_of_paths_and_says_what_it_leaves_out(tmp_path, capsys):
    names = ["b.txt", "a.md", "c/x.txt", "c.txt", "B.TXT", "a/z.jsonl.gz", ".git/a.txt", ".a.txt",
             "image.png", "x.png", "a.gz", "notes", "c/a[1].txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "pipe.txt")  # it does not wait for its content
    (tmp_path / "broken.txt").symlink_to("nowhere")
    assert found(tmp_path, tmp_path) == ["B.TXT", "a/z.jsonl.gz", "a.md", "b.txt", "c/a[1].txt",
                                         "c/x.txt", "c.txt"]
    left_out = capsys.readouterr().out.split("left out 6: ")[1].strip().split(", ")
    assert sorted(left_out) == ["1 .gz", "1 without a suffix", "2 .png", "2 not a file"]
    assert found(tmp_path, f"{tmp_path}/**/?.txt") == ["b.txt", "c/x.txt", "c.txt"]
    assert found(tmp_path, tmp_path / "c" / "a[1].txt") == ["c/a[1].txt"]


def found(folder, word):
    """The paths in a folder that a word of the command line names."""
    files = find_sources([str(word)], {}, folder)
    return [file.path.relative_to(folder).as_posix() for file in files]


def test_links_to_folders_are_followed_once(tmp_path):
    notes = tmp_path / "notes"
    far = tmp_path / "far"
    for folder in (notes, far):
        folder.mkdir()
        (folder / "a.txt").write_text("a")
    (notes / "far").symlink_to(far)
    (notes / "loop").symlink_to(notes)
    (far / "back").symlink_to(notes)
    assert found(tmp_path, notes) == ["notes/a.txt", "notes/far/a.txt"]
    assert len(found(tmp_path, f"{notes}/**/*.txt")) == 2


def test_a_dataset_is_called_as_its_file():
    assert sources.dataset_name(None, "notes/my été (1).txt.gz", {}) == "my-été-1"
    assert sources.dataset_name(None, "notes/", {}) == "notes"


def test_stdin_and_pipes_are_read_once(run, refused, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(story(0, words=3000))
    expected = sha(run(path))
    with open(path) as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", file)
        assert sha(run("-")) == expected
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    packed = gzip.compress(path.read_bytes())
    threading.Thread(target=pipe.write_bytes, args=[packed], daemon=True).start()
    assert sha(run(pipe)) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text")))
    assert "stdin is empty; if it is given twice" in refused("-", "-", "--name=d")


def test_a_data_dir_that_cannot_be_created_is_refused(mistake, tmp_path):
    (tmp_path / "file").touch()
    line = mistake(main, "plays_char", f"--data_dir={tmp_path / 'file'}")
    assert "cannot be created (Not a directory): choose a folder that can be" in line


def test_a_dry_run_and_a_disk_that_is_too_small_write_nothing(refused, tmp_path, monkeypatch,
                                                              capsys):
    path = tmp_path / "a.txt"
    path.write_text("abcde" * 200_000)
    main([str(path), f"--data_dir={tmp_path / 'data'}", "--dry_run", "--workers=2"])
    assert capsys.readouterr().out.startswith(
        "1 source of 1.0 MB: about 1,000,000 tokens, 2.0 MB of disk, ")
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=7000))
    line = refused(path)
    assert "the bins need about 2.0 MB" in line and "only 7.0 kB free" in line


STORIES = [story(i, words=500) for i in range(400)]


@pytest.mark.parametrize("name, texts", [
    ("a.txt", STORIES), ("a.txt.gz", ["abcde" * 1000] * 1000), ("a.jsonl", STORIES),
    ("a.json", STORIES), ("a.parquet", STORIES),
    ("a.parquet", ["".join(STORIES)]), ("a.parquet", ["a" * 1000] * 5000),  # 0.9 bytes per row
], ids=["text", "archive", "lines", "array", "rows", "one row", "equal rows"])
def test_the_estimate_from_the_first_text_is_right_for_all_of_it(tmp_path, monkeypatch, capsys,
                                                                name, texts):
    path = tmp_path / name
    if name == "a.txt":
        path.write_text("".join(texts))
    elif name == "a.txt.gz":
        path.write_bytes(gzip.compress("".join(texts).encode()))
    elif name == "a.jsonl":
        write_lines(path, texts)
    elif name == "a.json":
        path.write_text(json.dumps([{"text": text} for text in texts]))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow
        parquet.write_table(pyarrow.table({"text": texts}), path)
    monkeypatch.setattr(Reader.excerpt, "__defaults__", (1000,))
    for n_files in (1, 2):
        main([str(path)] * n_files + [f"--data_dir={tmp_path / 'data'}", "--dry_run"])
        tokens = capsys.readouterr().out.split("about ")[1].split(" tokens")[0]
        tokens = int(tokens.replace(",", ""))
        assert tokens == pytest.approx(n_files * sum(map(len, texts)), rel=0.03)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_the_memory_does_not_depend_on_the_size_of_the_text(tmp_path):
    """A single line of characters, which are read twice: first for the vocabulary."""
    code = ("import sys, prepare\nprepare.main(sys.argv[1:])\n"
            "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])")
    peaks = []
    for n in (12, 48):
        path = tmp_path / f"{n}.txt"
        path.write_text("abcdefg " * (n * 2**17))
        status, printed = finished("-c", code, path, f"--data_dir={tmp_path}", "--workers=2")
        assert status == 0, printed
        peaks.append(int(printed.split()[-1]) / 1000)
    assert peaks[1] < 1.1 * peaks[0] and peaks[1] < 400 + 2 * 150, peaks


def test_a_dataset_of_the_hub_takes_the_same_way(tmp_path, monkeypatch, capsys):
    """fineweb, but its address is that of a local parquet file, which the real library reads."""
    pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    texts = [story(i, words=20) for i in range(5000)]
    parquet.write_table(pyarrow.table({"text": texts, "id": [0] * 5000}), tmp_path / "a.parquet")
    address = {"path": "parquet", "data_files": [str(tmp_path / "a.parquet")]}
    monkeypatch.setitem(prepare.HUB_DATASETS, "fineweb", (address, 0))
    main(["fineweb", f"--data_dir={tmp_path}"])
    train, val = texts_of(load(tmp_path / "fineweb"))
    assert val == [text for text in texts if units.split_score(text) < 1 / 2000] != []
    assert train == [text for text in texts if text not in val]
    assert "5,000 documents" in capsys.readouterr().out
