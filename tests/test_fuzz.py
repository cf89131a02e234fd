"""pytest tests/test_fuzz.py - damaged files of every format end well or in one line
pytest tests/test_fuzz.py -m faults - thousands of them

Each case changes the bytes of a file (flipped, cut, inserted, overwritten) or its values (removed,
or replaced by other types, huge numbers, NaN, nested containers), and gives it to a script, in this
process. The script must end, or raise what `one_line_errors` turns into one line: UserError or
OSError. A case is a function of its file and its number, so a failure can be repeated.
"""

import copy
import json
import math
import pickle
import random
import resource
import shutil
import traceback

import evaluate
import pytest
import torch
from helpers import MODERN, TINY_RUN, command_line

import sample
import train
from internals.errors import UserError
from model import GPT, GPTConfig

# {file: cases in the normal suite}
CASES = {"out/ckpt.pt": 50, "out/best.pt": 30, "out/metrics.jsonl": 10, "data/tiny/meta.json": 10,
         "data/pkl/meta.pkl": 15, "data/pkl/train.bin": 10, "hf/config.json": 10,
         "hf/meta.json": 10, "hf/model.safetensors": 20, "hellaswag.jsonl": 15}
MANY = 40  # times as many with -m faults

SMALL = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
# what a mutated value could make long is given on the command line: the values are checked anyway
SHORT = {"device": "cpu", "dtype": "float32", "compile": "False", "batch_size": 2, "align": 1,
         "gradient_accumulation_steps": 1, "eval_iters": 1, "sample_tokens": 0, "max_iters": 3,
         "patience": 0, "eval_interval": 10, "wandb_log": "False"}
VALUES = [
    None, True, False, 0, -1, 1, 2, 7, 1.5, -0.5, 10**5, 2**31, 2**63, -10**9, 10**30, 10**400,
    math.nan, math.inf, -math.inf, "", "text", "1", "\0", "../..", "\ud800", "x" * 5000, [], {},
    [1, 2], [[]], {"a": {"b": [None]}}, {"": 1}, [math.nan], ["x"] * 50, [0, 10**12],
]
TENSORS = [torch.zeros(0), torch.zeros(3), torch.zeros((), dtype=torch.int64), torch.zeros(8, 8),
           b"bytes", (1, 2), {1, 2}, torch.float32, 1j]


# ---- mutations


def damage(path, chance):
    """Change the bytes or the values of a file."""
    content = path.read_bytes()
    if path.suffix == ".bin" or chance.random() < 0.35:
        path.write_bytes(mutate_bytes(content, chance))
    elif path.suffix == ".json":
        path.write_text(json.dumps(mutate_values(json.loads(content), chance)))
    elif path.suffix == ".jsonl":
        lines = mutate_values(list(map(json.loads, content.splitlines())), chance)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(mutate_values(pickle.loads(content), chance)))
    elif path.suffix == ".pt":
        changed = mutate_values(torch.load(path, weights_only=True), chance, TENSORS)
        torch.save(changed, path, _use_new_zipfile_serialization=chance.random() < 0.8)
    else:  # the header of safetensors, with a right length
        size = int.from_bytes(content[:8], "little")
        header = json.dumps(mutate_values(json.loads(content[8:8 + size]), chance)).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size:])


def mutate_bytes(content, chance):
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        kind = chance.choice(["flip", "flip", "cut", "insert", "overwrite"])
        at = chance.randrange(len(content)) if content else 0
        end = at + chance.choice([1, 4, 50, 1000])
        if kind == "flip" and content:
            content[at] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del content[at:chance.choice([end, None])]
        elif kind == "insert":
            content[at:at] = chance.randbytes(end - at)
        elif kind == "overwrite":
            filler = chance.choice([b"\0", b"\xff", b"{", b"9"])
            content[at:end] = filler * len(content[at:end])
    return bytes(content)


def mutate_values(content, chance, others=()):
    """`content` with one to three of its entries, at any depth, removed or replaced."""
    content = copy.deepcopy(content)
    for _ in range(chance.choice([1, 1, 2, 3])):
        places = list(entries(content))
        if not places:
            return content
        # every level of nesting is as likely as another, however many entries it has
        depth = chance.choice(sorted({depth for depth, _, _ in places}))
        _, container, key = chance.choice([place for place in places if place[0] == depth])
        _, other, name = chance.choice(places)
        value = copy.deepcopy(chance.choice([*VALUES, *others]))
        kind = chance.choice(["remove", "swap", "add", "tensor", "replace", "replace", "replace"])
        if kind == "remove":
            del container[key]
        elif kind == "swap":
            container[key] = copy.deepcopy(other[name])
        elif kind == "add" and isinstance(container, dict):
            container[chance.choice(["new", "", "3"])] = value
        elif kind != "replace" and isinstance(container[key], torch.Tensor):
            container[key] = mutate_tensor(container[key], chance)
        else:
            container[key] = value
    return content


def entries(content, depth=0):
    """(depth, container, key) of every entry of nested dicts and lists."""
    keys = []
    if isinstance(content, dict):
        keys = list(content)
    elif isinstance(content, list):
        keys = range(len(content))
    for key in keys:
        yield depth, content, key
        yield from entries(content[key], depth + 1)


def mutate_tensor(tensor, chance):
    return chance.choice([
        tensor.to(torch.int64), tensor.to(torch.bfloat16), tensor.to(torch.complex64),
        tensor.double(), tensor[None], tensor.flatten()[:1], torch.full_like(tensor, math.nan),
        tensor * math.inf, tensor.to_sparse(), tensor.to("meta"), torch.zeros(1).expand(10**9),
        torch.zeros(()).expand(tensor.shape), torch.nn.Parameter(tensor.float())])


# ---- the files, and what reads them


@pytest.fixture(scope="module")
def good(data_dir, tmp_path_factory):
    """A folder with an undamaged file of each format."""
    folder = tmp_path_factory.mktemp("good")
    data = folder / "data"
    shutil.copytree(data_dir / "tiny", data / "tiny")
    shutil.copytree(data_dir / "tiny", data / "pkl")
    (data / "pkl" / "meta.json").unlink()
    chars = json.loads((data / "tiny" / "meta.json").read_text())["chars"]
    n = len(chars)
    meta = {"vocab_size": n, "itos": dict(enumerate(chars)), "stoi": {}}
    (data / "pkl" / "meta.pkl").write_bytes(pickle.dumps(meta))
    run_train(folder, **TINY_RUN | SMALL | SHORT | MODERN | {"max_iters": 2, "optimizer": "muon"})
    GPT(GPTConfig(vocab_size=n, bias=True, **SMALL)).save_pretrained(folder / "hf")
    meta = {"tokenizer": "char", "chars": chars, "vocab_size": n}
    (folder / "hf" / "meta.json").write_text(json.dumps(meta))
    line = {"ctx": "Line 1: the quick", "endings": [" brown", " fox", " lazy", " dog"], "label": 2}
    (folder / "hellaswag.jsonl").write_text(3 * (json.dumps(line) + "\n"))
    return folder


def run_train(folder, **settings):
    settings = SHORT | {"out_dir": folder / "out", "data_dir": folder / "data"} | settings
    train.main(command_line(settings))


def use(name, folder, chance):
    """Run a script that reads the file."""
    place = name.split("/")[0]
    if name == "hellaswag.jsonl":
        evaluate.main([f"--hellaswag={folder / name}", f"--out_dir={folder / 'out'}",
                       "--device=cpu"])
    elif place == "data":
        run_train(folder, dataset=name.split("/")[1], out_dir=folder / "new", **SMALL)
    elif name in ("out/ckpt.pt", "out/metrics.jsonl"):
        run_train(folder, init_from="resume", eval_only=chance.random() < 0.5)
    elif chance.random() < 0.7:
        sample.main([f"--init_from={folder / place}", "--num_samples=1", "--max_new_tokens=3",
                     "--device=cpu"])
    else:
        run_train(folder, init_from=folder / place, out_dir=folder / "new", dataset="tiny")


def peak_memory():
    """Gigabytes that this process has had at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@pytest.mark.parametrize("part", [
    0, *(pytest.param(part, marks=pytest.mark.faults) for part in range(1, MANY + 1))])
@pytest.mark.parametrize("name", CASES)
def test_a_damaged_file_ends_well_or_in_one_line(name, part, good, tmp_path):
    failures = []
    before = peak_memory()
    folder = tmp_path / "case"
    for number in range(part * CASES[name], (part + 1) * CASES[name]):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        chance = random.Random(f"{name} {number}")
        damage(folder / name, chance)
        try:
            use(name, folder, chance)
        except (UserError, OSError) as error:
            if len(str(error)) > 2000 or "\n" in str(error):
                failures.append(f"{number}: not a line: {str(error)[:3000]}")
        except Exception:
            failures.append(f"{number}: {traceback.format_exc(-6)}")
        if peak_memory() - before > 1:
            before = peak_memory()
            failures.append(f"{number}: took more than a gigabyte")
    assert not failures, "\n".join(failures[:20])


@pytest.mark.parametrize("name", CASES)
def test_undamaged_files_end_well(name, good, tmp_path):
    """Otherwise the cases above would only show that everything is refused."""
    shutil.copytree(good, tmp_path / "case")
    use(name, tmp_path / "case", random.Random(0))
