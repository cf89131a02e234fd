"""pytest tests/test_start.py - runs that start from weights: GPT-2's, nanoGPT's, one's own"""

import pickle
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers import command_line, equal

import sample
import train
from internals import dataset
from internals.checkpoint import read
from internals.dataset import read_meta
from internals.recipes import SIZES
from model import GPT, GPTConfig
from prepare import GPT2Tokenizer

SHAPE = ("n_layer", "n_head", "n_embd", "block_size")


@pytest.fixture
def start(tiny):
    """A function: run train.main from these weights, without a word about their shape."""
    def run(init_from, **changes):
        return train.main(without_shape(tiny, init_from=init_from, **changes))

    return run


def without_shape(tiny, **changes):
    """The command line of a tiny run that does not give the shape of the model."""
    words = tiny(**dict.fromkeys(SHAPE) | changes)
    return [word for word in words if not word.endswith("=None")]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder as Hugging Face's "gpt2", but tiny: its vocabulary and its context are GPT-2's."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=50257, n_layer=2, n_head=2, n_embd=8, bias=True)
    GPT(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bpe_data(tmp_path_factory):
    """A folder with the dataset `bpe`, in GPT-2's ids."""
    folder = tmp_path_factory.mktemp("data")
    ids = GPT2Tokenizer().encode("The quick brown fox jumps over the lazy dog, and sleeps. " * 300)
    (folder / "bpe").mkdir()
    ids.astype(np.uint16).tofile(folder / "bpe" / "train.bin")
    ids[:2000].astype(np.uint16).tofile(folder / "bpe" / "val.bin")
    return folder


# ---- GPT-2


def test_fine_tuning_begins_with_gpt2s_weights(start, gpt2, bpe_data, tmp_path):
    metrics = start(gpt2, dataset="bpe", data_dir=bpe_data, block_size=32, dropout=0.1,
                    learning_rate=2e-3, max_iters=6, gradient_accumulation_steps=1)
    model = GPT.from_pretrained(gpt2).eval()
    val = dataset.load(bpe_data / "bpe").val
    starts = train.evaluation_starts(len(val), 32, 8)
    x, y = train.batch(val, starts, 32, torch.device("cpu"))
    _, loss = model(x, y)
    assert metrics[0]["val_loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics[-1]["val_loss"] < metrics[0]["val_loss"] - 0.05
    kept = read(tmp_path / "out" / "ckpt.pt")
    assert kept.model_args == asdict(replace(model.config, block_size=32, dropout=0.1))
    assert kept.model["transformer.wpe.weight"].shape == (32, 8)
    assert kept.meta["tokenizer"] == "gpt2"


@pytest.mark.parametrize("change, message", [
    ({"block_size": 2048}, "block_size=2048 is longer than the 1024 of the model to start from"),
    ({"n_layer": 3}, "n_layer=3, but the model to start from has 2: leave it out, or start a new"),
    ({"dataset": "tiny", "block_size": 16},
     "has a different tokenizer than the model to start from"),
])
def test_what_does_not_fit_to_gpt2_is_refused(mistake, tiny, gpt2, bpe_data, data_dir, tmp_path,
                                              change, message):
    data = data_dir if change.get("dataset") == "tiny" else bpe_data
    argv = without_shape(tiny, **{"init_from": gpt2, "dataset": "bpe", "data_dir": data} | change)
    assert message in mistake(train.main, *argv)
    assert not (tmp_path / "out").exists()


def test_a_run_is_the_start_of_another(tiny, start, tmp_path):
    train.main(tiny())
    out = tmp_path / "out"
    metrics = start(out, out_dir=tmp_path / "tuned", max_iters=3, dropout=0.0, block_size=8)
    assert [m["step"] for m in metrics] == [0, 1, 2, 3, 3]  # its own steps, from 0
    args = read(tmp_path / "tuned" / "ckpt.pt").model_args
    assert (args["n_layer"], args["block_size"], args["dropout"]) == (2, 8, 0.0)
    best = read(out / "best.pt")
    same = start(out, out_dir=tmp_path / "same", max_iters=0)
    assert same[0]["val_loss"] == pytest.approx(best.best_loss, abs=1e-5)
    start(out, max_iters=1)  # in the same folder: what was there is kept
    assert equal(read(out / "previous-1" / "best.pt").model, best.model)


# ---- nanoGPT's files


def nano_optimizer(params):
    """AdamW as nanoGPT makes it."""
    groups = [{"params": [p for p in params if p.dim() >= 2], "weight_decay": 0.1},
              {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))


# what nanoGPT stores besides the model and the optimizer
NANO_CONFIG = {
    "out_dir": "out-nano", "eval_interval": 5, "eval_iters": 2, "init_from": "scratch",
    "dataset": "tiny", "gradient_accumulation_steps": 1, "batch_size": 4, "block_size": 16,
    "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.1, "bias": False,
    "learning_rate": 1e-3, "max_iters": 10, "weight_decay": 0.1, "beta1": 0.9,
    "beta2": 0.99, "grad_clip": 1.0, "decay_lr": True, "warmup_iters": 2,
    "lr_decay_iters": 600000, "min_lr": 6e-5, "backend": "nccl", "device": "cuda",
    "dtype": "float16", "compile": True}


@pytest.fixture
def nano(tmp_path, data_dir):
    """A function: nanoGPT's ckpt.pt after some steps on its `tiny` data, and that data with its
    meta.pkl in nano-data/tiny. Returns the model and the folder of the file.

    change: a function that changes the content. prefix: what torch.compile and DDP add to the names
    of the weights. by_name: the optimizer has its parameters in the order of their names, as before
    2023-05-06. config: settings."""
    def write(change=None, prefix="", by_name=False, **config):
        data = tmp_path / "nano-data" / "tiny"
        data.mkdir(parents=True)
        for split in ("train", "val"):
            shutil.copy(data_dir / "tiny" / f"{split}.bin", data)
        chars = read_meta(data_dir / "tiny")["chars"]
        meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": {}}
        (data / "meta.pkl").write_bytes(pickle.dumps(meta))
        torch.manual_seed(0)
        args = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "bias": False,
                "vocab_size": len(chars), "dropout": 0.1}
        model = GPT(GPTConfig(**args, act="gelu"))
        params = dict(model.named_parameters())
        names = sorted(params) if by_name else list(params)
        optimizer = nano_optimizer([params[name] for name in names])
        ids = dataset.load(data).train
        for step in range(10):
            x, y = train.batch(ids, range(step, 3000, 300), 16, torch.device("cpu"))
            _, loss = model(x, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        weights = {prefix + name: weight for name, weight in model.state_dict().items()}
        content = {"model": weights, "optimizer": optimizer.state_dict(), "model_args": args,
                   "iter_num": 10, "best_val_loss": loss.detach(), "config": NANO_CONFIG | config}
        if change:
            change(content)
        out = tmp_path / "out-nano"
        out.mkdir()
        torch.save(content, out / "ckpt.pt")
        shutil.copy(data / "meta.pkl", out)
        return model.eval(), out

    return write


def resumed(out, tmp_path, **settings):
    """The metrics of the run in `out`, resumed for one step."""
    settings = {"data_dir": tmp_path / "nano-data", "max_iters": 11, "device": "cpu"} | settings
    options = command_line(settings)
    metrics = train.main(["--init_from=resume", f"--out_dir={out}", *options])
    assert [m["step"] for m in metrics] == [10, 11, 11]
    return metrics


def with_masks(content):
    """Older versions of PyTorch stored the causal masks too."""
    for layer in range(2):
        content["model"][f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16)


def test_nanogpts_checkpoint_is_sampled(nano, capsys):
    model, out = nano(with_masks, prefix="module._orig_mod.")
    sample.main([f"--out_dir={out}", "--start=Line 7", "--num_samples=1",
                 "--temperature=0", "--max_new_tokens=30", "--dtype=float32", "--device=cpu"])
    printed = capsys.readouterr().out.removesuffix(f"\n{sample.SEPARATOR}\n")
    chars = read_meta(out)["chars"]
    prompt = torch.tensor([[chars.index(char) for char in "Line 7"]])
    ids = model.generate(prompt, 30, temperature=0)
    assert printed == "".join(chars[i] for i in ids[0])


def test_nanogpts_run_goes_on_with_its_optimizer(nano, tmp_path):
    model, out = nano(prefix="_orig_mod.")
    before = torch.load(out / "ckpt.pt")
    metrics = resumed(out, tmp_path, dropout=0)
    assert metrics[0]["val_loss"] < 3.7
    after = read(out / "ckpt.pt")
    assert after.config["eval_interval"] == 5 and after.model_args["act"] == "gelu"
    # one step, by nanoGPT's own optimizer, on the same windows
    optimizer = nano_optimizer(list(model.parameters()))
    optimizer.load_state_dict(before["optimizer"])
    ids = dataset.load(tmp_path / "nano-data" / "tiny").train
    starts = train.training_starts(40, 4, len(ids), 16, 1337)
    x, y = train.batch(ids, starts, 16, torch.device("cpu"))
    _, loss = model(x, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = metrics[1]["lr"]
    optimizer.step()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(after.model[name], weight, rtol=0, atol=1e-6, msg=name)


def of_sophia(content):
    """Another optimizer, which has other moments than AdamW."""
    for state in content["optimizer"]["state"].values():
        state["hessian"] = state.pop("exp_avg_sq")


@pytest.mark.parametrize("options, act", [
    ({"by_name": True}, "gelu_tanh"), ({"change": of_sophia}, "gelu"),
    ({"change": lambda content: content.pop("iter_num")}, "gelu"),
], ids=["before May 2023", "Sophia", "no step"])
def test_another_optimizer_is_sampled_and_started_from_but_not_resumed(
        nano, start, mistake, tmp_path, options, act):
    """The order of the parameters in the optimizer dates the GELU."""
    model, out = nano(**options)
    sampled, _ = sample.load_model("resume", out)
    assert sampled.config.act == act
    assert equal(dict(sampled.state_dict()), dict(model.state_dict()))
    line = mistake(train.main, "--init_from=resume", f"--out_dir={out}", "--device=cpu",
                   f"--data_dir={tmp_path / 'nano-data'}")
    assert " cannot be resumed: " in line and "damaged" not in line
    assert "to start a new run from its weights, set --init_from=" in line
    metrics = start(out, data_dir=tmp_path / "nano-data", max_iters=1)
    assert [m["step"] for m in metrics] == [0, 1, 1] and metrics[0]["val_loss"] < 3.7


def test_nanogpt_before_2023_had_biases_and_gpt2s_gelu(nano):
    """Its model_args have no `bias`; the exact GELU came on 2023-05-17."""
    def without_bias(content):
        del content["model_args"]["bias"]
        for name, w in list(content["model"].items()):
            is_linear = w.dim() == 2 and ".h." in name
            if is_linear or "ln_" in name:
                content["model"][name.removesuffix("weight") + "bias"] = torch.ones(len(w))

    _, out = nano(without_bias)
    model, _ = sample.load_model("resume", out)
    assert model.config.bias and model.config.act == "gelu_tanh"
    assert model.transformer.h[0].mlp.c_fc.bias.sum() == 64


def test_what_nanogpt_does_not_store_and_what_is_of_its_gpu(nano, tmp_path):
    """Patience would count from step 0, and end the run, if that were the best step."""
    _, out = nano(lambda content: content.update(iter_num=torch.tensor(10.0)))
    start = read(out / "ckpt.pt")
    assert start.best_step == start.step == 10
    assert start.best_loss == float("inf")  # nanoGPT's is of random sequences: not comparable
    assert start.config["learning_rate"] == 1e-3
    assert not start.config.keys() & {
        "device", "dtype", "compile", "backend", "out_dir", "init_from"}
    resumed(out, tmp_path)
    assert read(out / "ckpt.pt").best_loss < 3.7


def test_the_vocabulary_must_be_known_and_is_found_in_data_dir(nano, start, mistake, tmp_path):
    _, out = nano()
    (out / "meta.pkl").unlink()
    message = "of its 41 tokens is not known: copy the meta.pkl of its dataset into"
    assert message in mistake(sample.main, f"--out_dir={out}")
    assert message in mistake(train.main, "--init_from=resume", f"--out_dir={out}")
    new = start(out, out_dir=tmp_path / "new", data_dir=tmp_path / "nano-data", max_iters=1)
    assert new[0]["val_loss"] < 3.7
    resumed(out, tmp_path)


@pytest.mark.parametrize("n, is_gpt2s", [(50000, False), (51200, True), (60000, False)])
def test_only_gpt2s_vocabulary_size_is_taken_for_gpt2s(nano, mistake, n, is_gpt2s):
    def widen(content):
        content["model_args"]["vocab_size"] = n
        for name in "transformer.wte.weight", "lm_head.weight":
            content["model"][name] = torch.zeros(n, 16)

    _, out = nano(widen)
    (out / "meta.pkl").unlink()
    if is_gpt2s:
        assert read(out / "ckpt.pt").meta["tokenizer"] == "gpt2"
    else:
        line = mistake(sample.main, f"--out_dir={out}")
        assert f"the vocabulary of its {n} tokens is not known" in line


# ---- vocabularies without text


@pytest.fixture
def bins(tmp_path):
    """A function: a dataset of these numbers, and of a meta.pkl. Returns its folder."""
    def write(name, numbers, dtype=np.uint16, meta=None):
        folder = tmp_path / "bins" / name
        folder.mkdir(parents=True)
        for split in ("train", "val"):
            np.array(numbers, dtype=dtype).tofile(folder / f"{split}.bin")
        if meta is not None:
            (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
        return folder

    return write


def numbers_below(n, count=4000):
    return np.random.default_rng(0).integers(n, size=count)


@pytest.mark.parametrize("meta", [{"vocab_size": 1500}, None], ids=["meta.pkl", "none"])
def test_a_vocabulary_without_text_is_trained_on_and_never_shown_as_gpt2s(
        bins, tiny, tmp_path, capsys, mistake, meta):
    folder = bins("midi", numbers_below(1500), meta=meta)
    out = tmp_path / "out"
    settings = {"dataset": "midi", "data_dir": folder.parent, "sample_tokens": 9}
    given = {} if meta else {"vocab_size": 1500}
    train.main(tiny(**settings, **given))
    printed = capsys.readouterr()
    assert "vocabulary of 1,500 (ids without text)" in printed.out
    message = "the vocabulary of 1,500 token ids has no text"
    assert f"training shows no samples: {message}" in printed.err
    assert "python sample.py" not in printed.out
    assert message in mistake(sample.main, f"--out_dir={out}")
    start = read(out / "ckpt.pt")
    assert start.model_args["vocab_size"] == 1500 and start.meta["tokenizer"] == "none"
    resumed = train.main([f"--out_dir={out}", "--init_from=resume", "--max_iters=14"])
    tuned = train.main(tiny(**settings, init_from=out, out_dir=tmp_path / "tuned", max_iters=1))
    assert tuned[0]["val_loss"] == pytest.approx(resumed[-1]["val_loss"], abs=1e-5)
    bins("other", numbers_below(900), meta={"vocab_size": 900})
    line = mistake(train.main, *tiny(**settings | {"dataset": "other"}, init_from=out))
    assert "has another vocabulary than the model to start from" in line


def after(header):
    """GPT-2's ids after a header."""
    return np.concatenate((np.frombuffer(header, np.uint16), numbers_below(50257)))


@pytest.mark.parametrize("numbers, dtype, kind", [
    (numbers_below(50257), np.uint32, "uint32 or int64 numbers"),
    (numbers_below(195), np.uint8, "uint8 numbers, text, or other"),
    (after(np.lib.format.magic(1, 0)), np.uint16, "a header of NumPy's .npy format"),
], ids=["uint32", "text", "npy"])
def test_bins_of_other_numbers_are_refused(bins, tiny, mistake, numbers, dtype, kind):
    folder = bins("wide", numbers, dtype)
    line = mistake(train.main, *tiny(dataset="wide", data_dir=folder.parent))
    assert f"train.bin seems to hold {kind}" in line and "token ids must be uint16" in line


@pytest.mark.parametrize("n, meta", [
    (50257, None), (65536, {"vocab_size": 65536}), (4, {"itos": list("ACGT")})])
def test_bins_of_uint16_are_never_taken_for_others(bins, n, meta):
    folder = bins("right", numbers_below(n, 40_000), meta=meta)
    assert len(dataset.load(folder).train) == 40_000
    short = bins("short", [0, 1, 1, 0, 1, 0], meta={"vocab_size": 2})
    assert dataset.load(short).train.tolist() == [0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("name, millions", [("gpt2", 124), ("gpt2-xl", 1558)])
def test_sizes_are_those_of_the_papers(name, millions):
    n_layer, n_head, n_embd = SIZES[name]
    with torch.device("meta"):
        model = GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, bias=True,
                              vocab_size=50257))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
