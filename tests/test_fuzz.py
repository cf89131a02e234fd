"""pytest tests/test_fuzz.py - damaged files of every format end well or in one line
pytest tests/test_fuzz.py -m faults - ten thousand of them

Each case changes the bytes of a file (flipped, cut, inserted, overwritten) or its values (removed,
or replaced by other types, huge numbers, NaN, nested containers), and gives it to a script, in this
process. The script must end, or raise what `one_line_errors` turns into one line: UserError or
OSError. A case is a function of its format and its number, so a failure can be repeated:

    FUZZ=checkpoint:17 pytest tests/test_fuzz.py
"""

import copy
import json
import math
import os
import pickle
import random
import resource
import shutil
import sys
import traceback
from dataclasses import asdict

import evaluate
import pytest
import torch
from helpers import ROOT, TINY_RUN
from matplotlib.figure import Figure

import sample
import train
from configurator import configure
from internals.errors import UserError
from internals.recipes import expand_names
from model import GPT, GPTConfig

CASES = {"checkpoint": 60, "weights": 30, "nanogpt": 20, "metrics": 10, "meta": 25, "bins": 15,
         "huggingface": 40, "hellaswag": 20, "config": 30}  # 250 in the normal suite
MANY = 40  # times as many with -m faults
GIGABYTE = 2**30

SMALL = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
MODERN = {"pos": "rope", "norm": "rmsnorm", "qk_norm": True, "tied": False, "softcap": 15.0,
          "optimizer": "muon"}
# what a mutated value could make long is given on the command line: the values are checked anyway
SHORT = {"device": "cpu", "dtype": "float32", "compile": "False", "batch_size": 2, "align": 1,
         "gradient_accumulation_steps": 1, "eval_iters": 1, "sample_tokens": 0, "max_iters": 3,
         "patience": 0, "eval_interval": 10, "wandb_log": "False"}
VALUES = [
    None, True, False, 0, -1, 1, 2, 7, 1.5, -0.5, 10**5, 2**31, 2**63, -10**9, 10**30, 10**400,
    math.nan, math.inf, -math.inf, "", "text", "1", "\0", "../..", "\ud800", "x" * 5000, [], {},
    [1, 2], [[]], {"a": {"b": [None]}}, {"": 1}, [math.nan], ["x"] * 50,
]


# --------------------------------------------------------------------------------------------------
# Mutations


def mutate_bytes(content, chance):
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(len(content) + 1)
        end = at + chance.choice([1, 4, 50, 1000])
        kind = chance.choice(["flip", "flip", "cut", "insert", "delete", "overwrite"])
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = chance.randbytes(end - at)
        elif kind == "delete":
            del content[at:end]
        elif kind == "overwrite":
            content[at:end] = chance.choice([b"\0", b"\xff", b"{", b"9"]) * len(content[at:end])
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
        kind = chance.choice(["remove", "replace", "replace", "replace", "swap", "add", "other"])
        if kind == "remove":
            del container[key]
        elif kind == "swap":
            _, other, name = chance.choice(places)
            container[key] = copy.deepcopy(other[name])
        elif kind == "add" and isinstance(container, dict):
            container[chance.choice(["new", "", 3, None])] = copy.deepcopy(chance.choice(VALUES))
        elif kind == "other" and isinstance(container[key], torch.Tensor):
            container[key] = mutate_tensor(container[key], chance)
        else:
            container[key] = copy.deepcopy(chance.choice([*VALUES, *others]))
    return content


def entries(content, depth=0):
    """(depth, container, key) of every entry of nested dicts and lists."""
    if isinstance(content, (dict, list)):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield depth, content, key
            yield from entries(content[key], depth + 1)


def mutate_tensor(tensor, chance):
    return chance.choice([
        tensor.to(torch.int64), tensor.to(torch.bfloat16), tensor.to(torch.complex64),
        tensor.double(), tensor[None], tensor.flatten(), tensor.flatten()[:1], tensor.mT
        if tensor.dim() > 1 else tensor, torch.full_like(tensor, math.nan), tensor * math.inf,
        tensor.to_sparse(), tensor.to("meta"), torch.zeros(1).expand(10**9),
        torch.zeros(()).expand(tensor.shape), torch.nn.Parameter(tensor.float()), tensor * 1e30])


def mutate_json(path, chance):
    """Change a JSON file, in its values or in its bytes."""
    if chance.random() < 0.3:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    elif chance.random() < 0.05:
        path.write_text("[" * 100_000)
    else:
        changed = mutate_values(json.loads(path.read_text(encoding="utf-8")), chance)
        changed = {str(k): v for k, v in changed.items()}
        path.write_text(json.dumps(changed), encoding="utf-8", errors="surrogatepass")


# --------------------------------------------------------------------------------------------------
# The formats. Each function gets a separate folder, to which `good` has been copied, and a
# random.Random; it damages a file and runs a script.


def run_train(folder, *words, **settings):
    settings = SHORT | {"out_dir": folder / "out", "data_dir": folder / "data"} | settings
    train.main([*map(str, words), *(f"--{name}={value}" for name, value in settings.items())])


def run_sample(*words):
    sample.main([*map(str, words), "--num_samples=1", "--max_new_tokens=3", "--device=cpu"])


def damage_checkpoint(path, chance):
    if chance.random() < 0.25:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
        return
    content = torch.load(path, weights_only=True)
    tensors = [torch.zeros(0), torch.zeros(3), torch.zeros((), dtype=torch.int64),
               torch.zeros(8, 8), b"bytes", (1, 2), {1, 2}, torch.float32, 1j]
    if chance.random() < 0.3:  # a tensor, which is otherwise one entry among many
        places = [place for place in entries(content) if isinstance(place[1][place[2]],
                                                                    torch.Tensor)]
        _, container, key = chance.choice(places)
        container[key] = mutate_tensor(container[key], chance)
    else:
        content = mutate_values(content, chance, tensors)
    torch.save(content, path, _use_new_zipfile_serialization=chance.random() < 0.8)


def fuzz_checkpoint(folder, chance):
    """A run is resumed: its optimizer, counts and settings are used too."""
    out = folder / chance.choice(["adamw", "muon"])
    damage_checkpoint(out / "ckpt.pt", chance)
    if chance.random() < 0.5:
        (out / "best.pt").unlink()
    # most cases evaluate and end; some train one step more, and write
    run_train(folder, out_dir=out, init_from="resume", eval_only=chance.random() < 0.7)


def fuzz_weights(folder, chance):
    """A run is sampled from, and another one starts from it."""
    out = folder / chance.choice(["adamw", "muon"])
    damage_checkpoint(out / "best.pt", chance)
    if chance.random() < 0.7:
        run_sample(chance.choice([f"--out_dir={out}", f"--init_from={out / 'best.pt'}"]))
    else:
        run_train(folder, init_from=out, eval_only=True)


def fuzz_nanogpt(folder, chance):
    """nanoGPT's ckpt.pt with its meta.pkl."""
    out = folder / "nanogpt"
    if chance.random() < 0.6:
        damage_checkpoint(out / "ckpt.pt", chance)
    else:
        damage_pickle(out / "meta.pkl", chance)
    if chance.random() < 0.5:
        run_sample(f"--out_dir={out}")
    else:
        run_train(folder, out_dir=out, init_from="resume", dataset="pkl", eval_only=True)


def damage_pickle(path, chance):
    if chance.random() < 0.5:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    else:
        path.write_bytes(pickle.dumps(mutate_values(pickle.loads(path.read_bytes()), chance)))


def fuzz_metrics(folder, chance):
    """The metrics.jsonl of a run that is resumed."""
    path = folder / "adamw" / "metrics.jsonl"
    if chance.random() < 0.5:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = mutate_values(lines, chance)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_train(folder, out_dir=folder / "adamw", init_from="resume")


def fuzz_meta(folder, chance):
    """meta.json and meta.pkl of a dataset."""
    name = chance.choice(["tiny", "pkl"])
    if name == "tiny":
        mutate_json(folder / "data" / name / "meta.json", chance)
    else:
        damage_pickle(folder / "data" / name / "meta.pkl", chance)
    run_train(folder, dataset=name, eval_only=True, **SMALL)


def fuzz_bins(folder, chance):
    """train.bin and val.bin: with a checksum in meta.json, without one, and as bare GPT-2 ids."""
    data = folder / "data" / chance.choice(["tiny", "pkl"])
    if chance.random() < 0.3:
        for meta in data.glob("meta.*"):
            meta.unlink()
    path = data / chance.choice(["train.bin", "val.bin"])
    path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    run_train(folder, dataset=data.name, eval_only=True, **SMALL)


def fuzz_huggingface(folder, chance):
    """A folder in Hugging Face's layout."""
    hf = folder / chance.choice(["hf", "shards"])
    path = chance.choice(sorted(hf.iterdir()))
    if path.suffix == ".json":
        mutate_json(path, chance)
    elif path.suffix == ".safetensors" and chance.random() < 0.7:  # its header, with a right length
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.dumps(mutate_values(json.loads(content[8:8 + size]), chance, [[0, 10**12]]),
                            skipkeys=True).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size:])
    elif path.suffix == ".bin" and chance.random() < 0.5:
        weights = mutate_values(torch.load(path, weights_only=True), chance, [torch.zeros(3)])
        torch.save(weights, path)
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    if chance.random() < 0.8:
        run_sample(f"--init_from={hf}")
    else:
        run_train(folder, init_from=hf, eval_only=True)


def fuzz_hellaswag(folder, chance):
    """Lines of JSON for tools/evaluate.py."""
    path = folder / "hellaswag.jsonl"
    if chance.random() < 0.5:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in mutate_values(lines, chance)))
    evaluate.main([f"--hellaswag={path}", f"--out_dir={folder / 'adamw'}", "--device=cpu"])


def fuzz_config(folder, chance):
    """A config file: Python, whose values have any type."""
    path = folder / "config.py"
    if chance.random() < 0.5:
        # letters and digits alone: an operator could make a number that takes hours
        text = list(path.read_text())
        for _ in range(chance.choice([1, 1, 3, 20])):
            at = chance.randrange(len(text))
            text[at:at + chance.choice([0, 1, 5])] = chance.choice(
                ["", "0", "x", " ", "\n", "'", "(", "]", "\0", "é", "\\", "#", ".", ",", "=", ":"])
        path.write_text("".join(text), encoding="utf-8")
    else:
        names = chance.sample(sorted(asdict(train.TrainConfig()) | asdict(GPTConfig())), 3)
        path.write_text("nan, inf = float('nan'), float('inf')\ndel nan, inf\n" + "".join(
            f"{name} = {chance.choice(VALUES)!r}\n" for name in names).replace(
                "nan", "float('nan')").replace("inf", "float('inf')"), encoding="utf-8",
            errors="surrogatepass")
    configure("", train.TrainConfig, GPTConfig, argv=[str(path)], expand=expand_names)


# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(data_dir, tmp_path_factory):
    """A folder with an undamaged file of each format."""
    folder = tmp_path_factory.mktemp("good")
    shutil.copytree(data_dir / "tiny", folder / "data" / "tiny")
    chars = json.loads((folder / "data" / "tiny" / "meta.json").read_text())["chars"]
    itos = {"vocab_size": len(chars), "itos": dict(enumerate(chars)),
            "stoi": {char: i for i, char in enumerate(chars)}}
    shutil.copytree(data_dir / "tiny", folder / "data" / "pkl")
    (folder / "data" / "pkl" / "meta.json").unlink()
    (folder / "data" / "pkl" / "meta.pkl").write_bytes(pickle.dumps(itos))
    for name, changes in ("adamw", {}), ("muon", MODERN):
        settings = TINY_RUN | SMALL | SHORT | {"max_iters": 2, "data_dir": folder / "data",
                                               "out_dir": folder / name} | changes
        train.main([f"--{key}={value}" for key, value in settings.items()])
        shutil.rmtree(folder / name / "previous-1", ignore_errors=True)

    ours = torch.load(folder / "adamw" / "ckpt.pt", weights_only=True)
    shape = SMALL | {"vocab_size": len(chars), "bias": False, "dropout": 0.1}
    (folder / "nanogpt").mkdir()
    shutil.copy(folder / "data" / "pkl" / "meta.pkl", folder / "nanogpt")
    settings = {name: ours["config"][name] for name in (
        "eval_interval", "batch_size", "gradient_accumulation_steps", "learning_rate", "max_iters",
        "weight_decay", "beta1", "grad_clip", "decay_lr", "warmup_iters", "min_lr", "dataset")}
    torch.save({"model": ours["model"], "model_args": shape, "optimizer": ours["optimizer"][0],
                "iter_num": 2, "best_val_loss": torch.tensor(3.0), "config": settings | shape},
               folder / "nanogpt" / "ckpt.pt")

    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=len(chars), bias=True, **SMALL))
    model.save_pretrained(folder / "hf")
    meta = {"tokenizer": "char", "chars": chars, "vocab_size": len(chars)}
    (folder / "hf" / "meta.json").write_text(json.dumps(meta))
    shutil.copytree(folder / "hf", folder / "shards")
    (folder / "shards" / "model.safetensors").unlink()
    parts, index = list(model.transformer.state_dict().items()), {}
    for name, weight in parts:
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            weight.data = weight.data.t().contiguous()
    for i, some in enumerate((parts[:5], parts[5:])):
        name = f"pytorch_model-{i}.bin"
        torch.save(dict(some), folder / "shards" / name)
        index |= dict.fromkeys(dict(some), name)
    (folder / "shards" / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": index}))
    (folder / "shards" / "vocab.json").write_text(json.dumps({"the": 5, "\u0120the": 262}))

    line = {"ctx": "Line 1: the quick", "endings": [" brown", " fox", " lazy", " dog"], "label": 2}
    (folder / "hellaswag.jsonl").write_text(3 * (json.dumps(line) + "\n"))
    (folder / "config.py").write_text(
        "# a comment\n_steps = 100\nmax_iters = _steps * 3\nlearning_rate = 1e-3\n"
        "out_dir = 'out-a'\ncompile = False\nn_layer, n_head = 2, 2\nn_embd = 64\n")
    return folder


def peak_memory():
    """Bytes that this process has had at most so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def run_cases(kind, numbers, good, tmp_path):
    fuzz, failures = globals()[f"fuzz_{kind}"], []
    before, folder = peak_memory(), tmp_path / "case"
    for number in numbers:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        try:
            fuzz(folder, random.Random(f"{kind} {number}"))
        except (UserError, OSError) as error:
            if len(str(error)) > 2000 or "\n" in str(error):
                failures.append(f"{kind}:{number}: not a line: {str(error)[:3000]}")
        except Exception:
            failures.append(f"{kind}:{number}: {traceback.format_exc(-6)}")
        if peak_memory() - before > GIGABYTE:
            before = peak_memory()
            failures.append(f"{kind}:{number} took more than a gigabyte")
    assert not failures, f"{len(failures)} of {len(numbers)}:\n" + "\n".join(failures[:20])


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """A picture takes longer than all the rest of a case."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.write_bytes(b"picture"))
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("kind", CASES)
def test_a_damaged_file_ends_well_or_in_one_line(kind, good, tmp_path):
    chosen, _, number = os.environ.get("FUZZ", "").partition(":")
    if chosen not in ("", kind):
        pytest.skip("another case was chosen")
    numbers = [int(number)] if number else range(CASES[kind])
    run_cases(kind, numbers, good, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("kind", CASES)
def test_so_do_ten_thousand(kind, part, good, tmp_path):
    count = CASES[kind] * MANY // 4
    first = CASES[kind] + part * count
    run_cases(kind, range(first, first + count), good, tmp_path)


def test_undamaged_files_end_well(good, tmp_path):
    """Otherwise the cases above would only show that everything is refused."""
    shutil.copytree(good, tmp_path / "case")
    for name in "adamw", "muon":
        run_train(tmp_path / "case", out_dir=tmp_path / "case" / name, init_from="resume")
        run_sample(f"--out_dir={tmp_path / 'case' / name}")
    run_train(tmp_path / "case", out_dir=tmp_path / "case" / "nanogpt", init_from="resume",
              dataset="pkl")
    for name in "hf", "shards":
        run_sample(f"--init_from={tmp_path / 'case' / name}")
        run_train(tmp_path / "case", init_from=tmp_path / "case" / name, dataset="tiny")
    evaluate.main([f"--hellaswag={tmp_path / 'case' / 'hellaswag.jsonl'}",
                   f"--out_dir={tmp_path / 'case' / 'adamw'}", "--device=cpu"])
    configure("", train.TrainConfig, GPTConfig, argv=[str(tmp_path / "case" / "config.py")])
