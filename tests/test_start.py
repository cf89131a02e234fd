"""pytest tests/test_start.py - runs that start from weights: GPT-2's, nanoGPT's, one's own"""

import pickle
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers import TINY_RUN, equal

import sample
import train
from internals import dataset
from internals.checkpoint import read
from internals.dataset import read_meta
from internals.recipes import SIZES
from model import GPT, GPTConfig
from prepare import GPT2Tokenizer, write_bins

FINE_TUNING = {"n_layer": None, "n_head": None, "n_embd": None, "block_size": None}


@pytest.fixture
def start(tiny):
    """A function: run train.main from these weights, without a word about their shape."""
    def run(init_from, **changes):
        argv = [word for word in tiny(**FINE_TUNING | {"init_from": init_from} | changes)
                if not word.endswith("=None")]
        return train.main(argv)

    return run


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder as Hugging Face's "gpt2", but tiny: its vocabulary and its context are GPT-2's."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 8, "bias": True}
    GPT(GPTConfig(vocab_size=50257, **shape)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bpe_data(tmp_path_factory):
    """A folder with the dataset `bpe`, in GPT-2's ids."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = GPT2Tokenizer()
    ids = tokenizer.encode("The quick brown fox jumps over the lazy dog, and sleeps. " * 300)
    write_bins(folder / "bpe", tokenizer, [("train", ids), ("val", ids[:2000])], "test", "test")
    return folder


def checkpoint(folder, name="ckpt.pt"):
    return torch.load(folder / name, weights_only=True)


# ---- GPT-2


def test_fine_tuning_begins_with_gpt2s_weights(start, gpt2, bpe_data, tmp_path):
    metrics = start(gpt2, dataset="bpe", data_dir=bpe_data, block_size=32, dropout=0.1,
                    learning_rate=2e-3, max_iters=6, gradient_accumulation_steps=1)
    model = GPT.from_pretrained(gpt2).eval()
    val = dataset.load(bpe_data / "bpe").val
    starts = train.evaluation_starts(len(val), 32, 8)
    x, y = train.batch(val, starts, 32, torch.device("cpu"))
    assert metrics[0]["val_loss"] == pytest.approx(model(x, y)[1].item(), abs=1e-5)
    assert metrics[-1]["val_loss"] < metrics[0]["val_loss"] - 0.05
    kept = checkpoint(tmp_path / "out")
    assert kept["model_args"] == asdict(replace(model.config, block_size=32, dropout=0.1))
    assert kept["model"]["transformer.wpe.weight"].shape == (32, 8)
    assert kept["meta"]["tokenizer"] == "gpt2"


@pytest.mark.parametrize("change, message", [
    ({"block_size": 2048}, "block_size=2048 is longer than the 1024 of the model to start from"),
    ({"n_layer": 3}, "n_layer=3, but the model to start from has 2: leave it out, or start a new"),
    ({"act": "gelu"}, "act=gelu, but the model to start from has gelu_tanh"),
    ({"vocab_size": 50304}, "vocab_size=50304, but the model to start from has 50257"),
    ({"size": "gpt-nano"}, "n_layer=3 (from size=gpt-nano), but the model to start from has 2"),
    ({"dataset": "tiny", "block_size": 16},
     "has a different tokenizer than the model to start from"),
])
def test_what_does_not_fit_to_gpt2_is_refused(mistake, tiny, gpt2, bpe_data, data_dir, tmp_path,
                                              change, message):
    data = data_dir if change.get("dataset") == "tiny" else bpe_data
    settings = FINE_TUNING | {"init_from": gpt2, "dataset": "bpe", "data_dir": data} | change
    argv = [word for word in tiny(**settings) if not word.endswith("=None")]
    assert message in mistake(train.main, *argv)
    assert not (tmp_path / "out").exists()


# ---- from a run


def test_a_run_is_the_start_of_another(start, tmp_path, data_dir):
    start("scratch", **{name: TINY_RUN[name] for name in FINE_TUNING})
    metrics = start(tmp_path / "out", out_dir=tmp_path / "tuned", max_iters=3, dropout=0.0,
                    block_size=8)
    assert [m["step"] for m in metrics] == [0, 1, 2, 3, 3]  # its own steps, from 0
    args = checkpoint(tmp_path / "tuned")["model_args"]
    assert (args["n_layer"], args["block_size"], args["dropout"]) == (2, 8, 0.0)
    before = checkpoint(tmp_path / "out", "best.pt")
    longer = start(tmp_path / "out", out_dir=tmp_path / "same", max_iters=0)
    assert longer[0]["val_loss"] == pytest.approx(before["best_val_loss"], abs=1e-5)
    start(tmp_path / "out", max_iters=1)  # in the same folder: what was there is kept
    assert equal(checkpoint(tmp_path / "out" / "previous-1", "best.pt"), before)


# ---- nanoGPT's files


def nano_optimizer(params):
    """AdamW as nanoGPT makes it."""
    groups = [{"params": [p for p in params if p.dim() >= 2], "weight_decay": 0.1},
              {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))


@pytest.fixture
def nano(tmp_path, data_dir):
    """A function: nanoGPT's ckpt.pt after some steps on its `tiny` data, and that data with its
    meta.pkl in nano-data/tiny. Returns the model and the folder of the file.

    prefix, mask: what torch.compile and DDP, and older versions of PyTorch, add to the weights.
    by_name: the optimizer has its parameters in the order of their names, as before 2023-05-06.
    change: a function that changes the content. config: settings."""
    def write(change=None, prefix="", mask=False, by_name=False, **config):
        data, out = tmp_path / "nano-data" / "tiny", tmp_path / "out-nano"
        data.mkdir(parents=True)
        out.mkdir()
        for split in ("train", "val"):
            shutil.copy(data_dir / "tiny" / f"{split}.bin", data)
        chars = read_meta(data_dir / "tiny")["chars"]
        meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)),
                "stoi": {char: i for i, char in enumerate(chars)}}
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
            loss = model(x, y)[1]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        weights = {prefix + name: weight for name, weight in model.state_dict().items()}
        if mask:
            weights |= {f"{prefix}transformer.h.{i}.attn.bias": torch.ones(1, 1, 16, 16)
                        for i in range(2)}
        settings = {
            "out_dir": "out-nano", "eval_interval": 5, "log_interval": 1, "eval_iters": 2,
            "eval_only": False, "always_save_checkpoint": True, "init_from": "scratch",
            "wandb_log": False, "wandb_project": "owt", "wandb_run_name": "gpt2",
            "dataset": "tiny", "gradient_accumulation_steps": 1, "batch_size": 4, "block_size": 16,
            "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.1, "bias": False,
            "learning_rate": 1e-3, "max_iters": 10, "weight_decay": 0.1, "beta1": 0.9,
            "beta2": 0.99, "grad_clip": 1.0, "decay_lr": True, "warmup_iters": 2,
            "lr_decay_iters": 600000, "min_lr": 6e-5, "backend": "nccl", "device": "cuda",
            "dtype": "float16", "compile": True} | config
        content = {"model": weights, "optimizer": optimizer.state_dict(), "model_args": args,
                   "iter_num": 10, "best_val_loss": loss.detach(), "config": settings}
        if change:
            change(content)
        torch.save(content, out / "ckpt.pt")
        shutil.copy(data / "meta.pkl", out)
        return model.eval(), out

    return write


@pytest.mark.parametrize("prefix, mask", [
    ("", True), ("_orig_mod.", False), ("module._orig_mod.", True)])
def test_nanogpts_checkpoint_is_sampled(nano, capsys, prefix, mask):
    model, out = nano(prefix=prefix, mask=mask)
    sample.main([f"--out_dir={out}", "--start=Line 7", "--num_samples=1",
                 "--temperature=0", "--max_new_tokens=30", "--dtype=float32", "--device=cpu"])
    printed = capsys.readouterr().out.removesuffix(f"\n{sample.SEPARATOR}\n")
    chars = read_meta(out)["chars"]
    ids = model.generate(torch.tensor([[chars.index(c) for c in "Line 7"]]), 30, temperature=0)
    assert printed == "".join(chars[i] for i in ids[0])


def test_nanogpts_run_goes_on_with_its_optimizer(nano, tmp_path, capsys):
    model, out = nano(prefix="_orig_mod.")
    before = checkpoint(out)
    metrics = train.main(["--init_from=resume", f"--out_dir={out}", "--dropout=0",
                          f"--data_dir={tmp_path / 'nano-data'}", "--max_iters=11", "--device=cpu"])
    printed = capsys.readouterr().out
    assert "out_dir" not in printed.split("resuming")[0] and "init_from is" not in printed
    assert [m["step"] for m in metrics] == [10, 11, 11] and metrics[0]["val_loss"] < 3.7
    after = checkpoint(out)
    assert after["config"]["eval_interval"] == 5 and after["model_args"]["act"] == "gelu"
    # one step, by nanoGPT's own optimizer, on the same windows
    optimizer = nano_optimizer(list(model.parameters()))
    optimizer.load_state_dict(before["optimizer"])
    ids = dataset.load(tmp_path / "nano-data" / "tiny").train
    starts = train.training_starts(40, 4, len(ids), 16, 1337)
    model(*train.batch(ids, starts, 16, torch.device("cpu")))[1].backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = metrics[1]["lr"]
    optimizer.step()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(after["model"][name], weight, rtol=0, atol=1e-6, msg=name)


def of_sophia(content):
    """Another optimizer, which has other moments than AdamW."""
    for state in content["optimizer"]["state"].values():
        state["hessian"] = state.pop("exp_avg_sq")


@pytest.mark.parametrize("options", [
    {"by_name": True}, {"change": of_sophia},
    {"change": lambda content: content.update(optimizer=None)},
    {"change": lambda content: content.pop("iter_num")},
], ids=["before May 2023", "Sophia", "none", "no step"])
def test_another_optimizer_is_sampled_and_started_from_but_not_resumed(
        nano, start, mistake, tmp_path, options):
    model, out = nano(**options)
    assert equal(dict(sample.load_model("resume", out)[0].state_dict()), dict(model.state_dict()))
    line = mistake(train.main, "--init_from=resume", f"--out_dir={out}", "--device=cpu",
                   f"--data_dir={tmp_path / 'nano-data'}")
    assert f"{out / 'ckpt.pt'} cannot be resumed: " in line and "damaged" not in line
    option = line.split("to start a new run from its weights, set --init_from=")[1]
    metrics = start(option, data_dir=tmp_path / "nano-data", max_iters=1)
    assert [m["step"] for m in metrics] == [0, 1, 1] and metrics[0]["val_loss"] < 3.7


@pytest.mark.parametrize("change", [
    lambda content: content.update(iter_num=torch.tensor(10.0), best_val_loss=float("nan")),
    lambda content: content.update(iter_num=np.int64(10), best_val_loss=np.float64(1.5)),
    lambda content: content["config"].update(learning_rate=np.float64(1e-3), betas=[0.9, 0.99],
                                             notes={"gpu": "A100"}, schedule=None),
], ids=["tensor and NaN", "NumPy", "config"])
def test_numbers_of_other_types_are_resumed(nano, tmp_path, change):
    _, out = nano(change)
    metrics = train.main(["--init_from=resume", f"--out_dir={out}", "--max_iters=11",
                          f"--data_dir={tmp_path / 'nano-data'}", "--device=cpu"])
    assert [m["step"] for m in metrics] == [10, 11, 11]
    assert read(out / "ckpt.pt").best_loss < 3.7


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


@pytest.mark.parametrize("by_name, act", [(True, "gelu_tanh"), (False, "gelu")])
def test_the_order_of_the_optimizer_dates_the_gelu(nano, by_name, act):
    _, out = nano(by_name=by_name)
    assert sample.load_model("resume", out)[0].config.act == act


@pytest.mark.parametrize("config, given, lines", [
    ({"warmup_iters": 2000, "lr_decay_iters": 20}, {},
     ["warmup_iters=2000 is too long for this run: it is shortened to 1"]),
    ({"min_lr": 0.5}, {}, [
        "min_lr=0.5 of the checkpoint is above learning_rate=0.001, and is lowered to it"]),
    ({"min_lr": 0.5, "decay_lr": False}, {}, []),
    ({"log_interval": 0}, {"log_interval": 1}, ["log_interval changes from 0 to 1"]),
], ids=str)
def test_nanogpts_settings_are_checked_together_with_those_given_now(
        nano, tmp_path, capsys, config, given, lines):
    _, out = nano(**config)
    settings = {"max_iters": 11, "data_dir": tmp_path / "nano-data", "device": "cpu"} | given
    metrics = train.main(["--init_from=resume", f"--out_dir={out}"] + [
        f"--{name}={value}" for name, value in settings.items()])
    assert [m["step"] for m in metrics] == [10, 11, 11]
    printed = capsys.readouterr().out.splitlines()
    before = printed[:next(i for i, line in enumerate(printed) if line.startswith("1 x cpu"))]
    expected = ("max_iters", "data_dir", "device")
    assert [line for line in before if not line.startswith(expected)] == lines


def test_what_nanogpt_does_not_store_and_what_is_of_its_gpu(nano):
    """Patience would count from step 0, and end the run, if that were the best step."""
    _, out = nano()
    start = read(out / "ckpt.pt")
    assert start.best_step == start.step == 10
    assert start.best_loss == float("inf")  # nanoGPT's is of random sequences: not comparable
    assert not start.config.keys() & {
        "device", "dtype", "compile", "backend", "out_dir", "init_from"}
    assert start.config["learning_rate"] == 1e-3


def test_the_vocabulary_must_be_known_and_is_found_in_data_dir(nano, start, mistake, tmp_path):
    _, out = nano()
    data = tmp_path / "nano-data"
    (out / "meta.pkl").unlink()
    message = "of its 41 tokens is not known: copy the meta.pkl of its dataset into"
    assert message in mistake(sample.main, f"--out_dir={out}")
    assert message in mistake(train.main, "--init_from=resume", f"--out_dir={out}")
    assert start(out, out_dir=tmp_path / "new", data_dir=data, max_iters=1)[0]["val_loss"] < 3.7
    resumed = ["--init_from=resume", f"--out_dir={out}", f"--data_dir={data}", "--max_iters=11"]
    assert train.main([*resumed, "--device=cpu"])[-1]["step"] == 11


@pytest.mark.parametrize("n, meta, kind", [
    (51200, None, "gpt2"),
    (60000, {"vocab_size": 60000}, "none"), (60000, None, None), (50000, None, None)])
def test_only_gpt2s_vocabulary_size_is_taken_for_gpt2s(nano, mistake, n, meta, kind):
    def widen(content):
        content["model_args"]["vocab_size"] = n
        for name in "transformer.wte.weight", "lm_head.weight":
            content["model"][name] = torch.zeros(n, 16)

    _, out = nano(widen)
    (out / "meta.pkl").unlink()
    if meta is not None:
        (out / "meta.pkl").write_bytes(pickle.dumps(meta))
    if kind:
        assert read(out / "ckpt.pt").meta["tokenizer"] == kind
    else:
        assert f"the vocabulary of its {n} tokens is not known" in mistake(
            sample.main, f"--out_dir={out}")


# ---- vocabularies without text


@pytest.fixture
def bins(tmp_path):
    """A function: a dataset of these numbers, and of a meta.pkl. Returns its folder."""
    def write(name, numbers, dtype=np.uint16, meta=None):
        folder = tmp_path / "bins" / name
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            np.asarray(numbers, dtype=dtype).tofile(folder / f"{split}.bin")
        if meta is not None:
            (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
        return folder

    return write


def numbers_below(n, count=4000):
    return np.random.default_rng(0).integers(n, size=count)


@pytest.mark.parametrize("meta", [{"vocab_size": 1500}, None], ids=["meta.pkl", "none"])
def test_a_vocabulary_without_text_is_trained_on_and_never_shown_as_gpt2s(
        bins, tiny, tmp_path, capsys, mistake, meta):
    import export

    folder = bins("midi", numbers_below(1500), meta=meta)
    given = {} if meta else {"vocab_size": 1500}
    settings = {"dataset": "midi", "data_dir": folder.parent, "sample_tokens": 9}
    train.main(tiny(**settings, **given))
    printed = capsys.readouterr()
    assert "vocabulary of 1,500 (ids without text)" in printed.out
    assert "training shows no samples: the vocabulary of 1,500 token ids has no" in printed.err
    out = tmp_path / "out"
    assert checkpoint(out)["model_args"]["vocab_size"] == 1500
    assert checkpoint(out)["meta"]["tokenizer"] == "none"
    message = "the vocabulary of 1,500 token ids has no text"
    assert message in mistake(sample.main, f"--out_dir={out}")
    assert message in mistake(export.main, out, tmp_path / "hf") and not (tmp_path / "hf").exists()
    resumed = train.main([f"--out_dir={out}", "--init_from=resume", "--max_iters=14"])
    assert resumed[-1]["step"] == 14
    tuned = tiny(**settings, init_from=out, out_dir=tmp_path / "tuned", max_iters=1)
    assert train.main(tuned)[0]["val_loss"] == pytest.approx(resumed[-1]["val_loss"], abs=1e-5)
    bins("other", numbers_below(900), meta={"vocab_size": 900})
    line = mistake(train.main, *tiny(**settings | {"dataset": "other"}, init_from=out))
    assert "has another vocabulary than the model to start from" in line


def test_bins_without_a_meta_file_say_that_they_are_read_as_gpt2s(bins, tiny, capsys):
    folder = bins("unknown", numbers_below(50257))
    train.main(tiny(dataset="unknown", data_dir=folder.parent, max_iters=0))
    assert "vocabulary of 50,257 (no meta.json: read as GPT-2's tokens)" in capsys.readouterr().out


def after(header):
    """GPT-2's ids after a header."""
    return np.concatenate((np.frombuffer(header, np.uint16), numbers_below(50257)))


@pytest.mark.parametrize("numbers, dtype, kind", [
    (numbers_below(100), np.uint32, "uint32 or int64 numbers"),
    (numbers_below(50257), np.uint32, "uint32 or int64 numbers"),
    (numbers_below(1500), np.int64, "uint32 or int64 numbers"),
    (numbers_below(4), np.uint8, "uint8 numbers, text, or other"),
    (numbers_below(195), np.uint8, "uint8 numbers, text, or other"),
    (after(np.array([20240520, 1, 4000], np.int32).tobytes()), np.uint16, "a header of llm.c"),
    (after(np.lib.format.magic(1, 0)), np.uint16, "a header of NumPy's .npy format"),
], ids=["uint32", "gpt2 uint32", "int64", "bases", "text", "llm.c", "npy"])
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


# ---- sizes


def test_sizes_are_those_of_the_papers():
    counts = {name: GPTConfig(n_layer=shape[0], n_head=shape[1], n_embd=shape[2], bias=True,
                              vocab_size=50257) for name, shape in SIZES.items()}
    with torch.device("meta"):
        millions = {name: sum(p.numel() for p in GPT(config).parameters()) / 1e6
                    for name, config in counts.items() if name.startswith("gpt2")}
    assert {name: round(n) for name, n in millions.items()} == {
        "gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558}
