"""pytest tests/test_start.py - runs that start from weights: GPT-2's, nanoGPT's, one's own"""

import json
import pickle
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers import GPT2_TINY, NANO_TINY, TINY_RUN, equal

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


def test_a_run_that_was_fine_tuned_is_resumed_and_ends_as_if_never_stopped(start, gpt2, bpe_data,
                                                                           tmp_path):
    settings = {"dataset": "bpe", "data_dir": bpe_data, "block_size": 32, "lr_decay_iters": 5,
                "batch_size": 2, "eval_iters": 1}
    start(gpt2, out_dir=tmp_path / "whole", max_iters=5, **settings)
    start(gpt2, out_dir=tmp_path / "cut", max_iters=3, **settings)
    train.main([f"--out_dir={tmp_path / 'cut'}", "--init_from=resume", "--max_iters=5"])
    whole, cut = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "cut")
    assert equal(whole["model"], cut["model"]) and equal(whole["optimizer"], cut["optimizer"])


def test_gpt2s_context_is_whole_unless_it_is_cropped(start, gpt2, bpe_data, tmp_path):
    start(gpt2, dataset="bpe", data_dir=bpe_data, max_iters=0, batch_size=1, eval_iters=1)
    assert checkpoint(tmp_path / "out")["model_args"]["block_size"] == 1024


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


def test_gpt2_is_evaluated_and_nothing_is_written(start, gpt2, bpe_data, tmp_path):
    metrics = start(gpt2, dataset="bpe", data_dir=bpe_data, eval_only=True, batch_size=1,
                    eval_iters=1)
    assert len(metrics) == 1 and metrics[0]["val_loss"] == pytest.approx(np.log(50257), abs=0.1)
    assert not (tmp_path / "out").exists()


def test_sample_takes_a_folder_of_hugging_faces(gpt2, capsys):
    sample.main([f"--init_from={gpt2}", "--start=The quick", "--num_samples=1", "--temperature=0",
                 "--max_new_tokens=8", "--dtype=float32"])
    printed = capsys.readouterr().out.removesuffix(f"\n{sample.SEPARATOR}\n")
    tokenizer, model = GPT2Tokenizer(), GPT.from_pretrained(gpt2).eval()
    idx = torch.tensor(tokenizer.encode("The quick").astype(np.int64))[None]
    ids = model.generate(idx, 8, temperature=0)[0].tolist()
    assert printed == tokenizer.decode(ids)


def test_an_own_model_in_hugging_faces_layout_keeps_its_tokenizer(start, tmp_path, data_dir):
    start("scratch", **{name: TINY_RUN[name] for name in FINE_TUNING}, bias=True)
    run = checkpoint(tmp_path / "out")
    GPT.from_weights(GPTConfig(**run["model_args"]), run["model"]).save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "meta.json").write_text(json.dumps(run["meta"]))
    metrics = start(tmp_path / "hf", out_dir=tmp_path / "tuned", max_iters=2)
    assert metrics[0]["val_loss"] == pytest.approx(run["best_val_loss"], abs=1e-5)


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


def test_data_of_another_tokenizer_does_not_go_with_a_run(mistake, start, tiny, bpe_data, tmp_path):
    start("scratch", **{name: TINY_RUN[name] for name in FINE_TUNING}, max_iters=1)
    line = mistake(train.main, f"--init_from={tmp_path / 'out'}", "--dataset=bpe",
                   f"--data_dir={bpe_data}", f"--out_dir={tmp_path / 'other'}")
    assert "a different tokenizer" in line and not (tmp_path / "other").exists()


def test_a_rate_of_its_own_for_the_embedding_can_come_later(tiny, tmp_path):
    """The state of each weight is found by its place among the groups."""
    def moments():
        return checkpoint(tmp_path / "out")["optimizer"][0]["state"]

    train.main(tiny(max_iters=4))
    before = {i: state["exp_avg"].shape for i, state in moments().items()}
    train.main([f"--out_dir={tmp_path / 'out'}", "--init_from=resume", "--max_iters=5",
                "--embedding_lr=0.1"])
    assert {i: state["exp_avg"].shape for i, state in moments().items()} == before


# ---- nanoGPT's files


def nano_optimizer(model, **settings):
    """AdamW as nanoGPT makes it."""
    params = list(model.parameters())
    groups = [{"params": [p for p in params if p.dim() >= 2], "weight_decay": 0.1},
              {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), **settings)


@pytest.fixture
def nano(tmp_path, data_dir):
    """A function: nanoGPT's ckpt.pt after some steps on its `tiny` data, and that data with its
    meta.pkl. Returns the model; the folders are out-nano and nano-data/tiny."""
    def write(prefix="", mask=False, **config):
        data = tmp_path / "nano-data" / "tiny"
        data.mkdir(parents=True, exist_ok=True)
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
        optimizer = nano_optimizer(model)
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
        (tmp_path / "out-nano").mkdir(exist_ok=True)
        torch.save({"model": weights, "optimizer": optimizer.state_dict(), "model_args": args,
                    "iter_num": 10, "best_val_loss": loss.detach(), "config": settings},
                   tmp_path / "out-nano" / "ckpt.pt")
        shutil.copy(data / "meta.pkl", tmp_path / "out-nano")
        return model.eval()

    return write


def test_nanogpts_bins_open_with_their_meta_file(nano, tmp_path, data_dir):
    nano()
    theirs = dataset.load(tmp_path / "nano-data" / "tiny")
    ours = dataset.load(data_dir / "tiny")
    assert theirs.same_tokenizer(ours.meta) and theirs.meta["tokenizer"] == "char"
    assert np.array_equal(theirs.train, ours.train) and np.array_equal(theirs.val, ours.val)


@pytest.mark.parametrize("prefix, mask", [
    ("", True), ("_orig_mod.", False), ("module.", False), ("module._orig_mod.", True),
    ("_orig_mod.module.", False)])
def test_nanogpts_checkpoint_is_sampled(nano, tmp_path, capsys, prefix, mask):
    model = nano(prefix, mask)
    sample.main([f"--out_dir={tmp_path / 'out-nano'}", "--start=Line 7", "--num_samples=1",
                 "--temperature=0", "--max_new_tokens=30", "--dtype=float32", "--device=cpu"])
    printed = capsys.readouterr().out.removesuffix(f"\n{sample.SEPARATOR}\n")
    chars = read_meta(tmp_path / "out-nano")["chars"]
    ids = model.generate(torch.tensor([[chars.index(c) for c in "Line 7"]]), 30, temperature=0)
    assert printed == "".join(chars[i] for i in ids[0])


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpts_run_goes_on_with_its_optimizer(nano, tmp_path, capsys, prefix):
    model = nano(prefix)
    before = checkpoint(tmp_path / "out-nano")
    metrics = train.main(["--init_from=resume", f"--out_dir={tmp_path / 'out-nano'}", "--dropout=0",
                          f"--data_dir={tmp_path / 'nano-data'}", "--max_iters=11", "--device=cpu"])
    printed = capsys.readouterr().out
    assert "out_dir" not in printed.split("resuming")[0] and "init_from is" not in printed
    assert [m["step"] for m in metrics] == [10, 11, 11] and metrics[0]["val_loss"] < 3.7
    after = checkpoint(tmp_path / "out-nano")
    assert after["config"]["eval_interval"] == 5 and after["model_args"]["act"] == "gelu"
    # one step, by nanoGPT's own optimizer, on the same windows
    optimizer = nano_optimizer(model)
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


@pytest.fixture
def changed(nano, tmp_path):
    """A function: nanoGPT's ckpt.pt, changed by a function of its dict. Returns (model, folder)."""
    def write(change=None, **config):
        model, path = nano(**config), tmp_path / "out-nano" / "ckpt.pt"
        content = torch.load(path, weights_only=True)
        if change:
            change(content)
        torch.save(content, path)
        return model, path.parent

    return write


def sorted_by_name(content):
    """nanoGPT before 2023-05-06 gave the optimizer its parameters in this order."""
    weights = {name: w for name, w in content["model"].items() if name != "lm_head.weight"}
    names = sorted(weights, key=lambda name: (weights[name].dim() < 2, name))
    order = [list(weights).index(name) for name in names]
    state = content["optimizer"]["state"]
    # in these tests, the parameters of the model are in the order of the optimizer already, except
    # that those of one dimension follow
    matrices_first = sorted(range(len(weights)), key=lambda i: list(weights.values())[i].dim() < 2)
    position = {parameter: i for i, parameter in enumerate(matrices_first)}
    content["optimizer"]["state"] = {i: state[position[k]] for i, k in enumerate(order)}


def in_each_state(**moments):
    """A function: gives each parameter these moments; None removes one."""
    def change(content):
        for state in content["optimizer"]["state"].values():
            shape = state["exp_avg"].shape
            for name, value in moments.items():
                state.pop(name, None)
                if value is not None:
                    state[name] = torch.full(shape, value)

    return change


def frozen(content):
    for i in 0, 1:
        del content["optimizer"]["state"][i]


@pytest.mark.parametrize("change", [
    sorted_by_name, frozen, in_each_state(exp_avg_sq=None, hessian=1.0), in_each_state(
        exp_avg_sq=None, step=None), in_each_state(max_exp_avg_sq=1.0),
    lambda content: content.update(optimizer=None), lambda content: content.pop("iter_num"),
    lambda content: content.pop("config"),
], ids=["before May 2023", "frozen", "Sophia", "Lion", "AMSGrad", "none", "no step", "no config"])
def test_another_optimizer_is_sampled_and_started_from_but_not_resumed(
        changed, start, mistake, tmp_path, change):
    model, out = changed(change)
    assert equal(dict(sample.load_model("resume", out)[0].state_dict()), dict(model.state_dict()))
    line = mistake(train.main, "--init_from=resume", f"--out_dir={out}", "--device=cpu",
                   f"--data_dir={tmp_path / 'nano-data'}")
    assert f"{out / 'ckpt.pt'} cannot be resumed: " in line and "damaged" not in line
    option = line.split("to start a new run from its weights, set --init_from=")[1]
    metrics = start(option, data_dir=tmp_path / "nano-data", max_iters=1)
    assert metrics[0]["val_loss"] < 3.7


@pytest.mark.parametrize("change", [
    lambda content: content.update(iter_num=10.0),
    lambda content: content.update(iter_num=torch.tensor(10)),
    lambda content: content.update(iter_num=np.int64(10), best_val_loss=np.float64(1.5)),
    lambda content: content.update(best_val_loss=float("nan")),
    lambda content: content["config"].update(learning_rate=np.float64(1e-3), betas=[0.9, 0.99],
                                             notes={"gpu": "A100"}, schedule=None),
], ids=["float", "tensor", "NumPy", "NaN", "config"])
def test_numbers_of_other_types_are_resumed(changed, tmp_path, change):
    _, out = changed(change)
    metrics = train.main(["--init_from=resume", f"--out_dir={out}", "--max_iters=11",
                          f"--data_dir={tmp_path / 'nano-data'}", "--device=cpu"])
    assert [m["step"] for m in metrics] == [10, 11, 11]
    assert read(out / "ckpt.pt").best_loss < 3.7


def test_an_object_of_numpy_is_not_opened(changed, mistake):
    _, out = changed(lambda content: content.update(best_val_loss=np.zeros(3)))
    assert "is not a checkpoint of tensors and plain values" in mistake(
        sample.main, f"--out_dir={out}")


def test_nanogpt_before_2023_had_biases_and_gpt2s_gelu(changed, tmp_path):
    """Its model_args have no `bias`; the exact GELU came on 2023-05-17."""
    def without_bias(content):
        del content["model_args"]["bias"]
        for name, w in list(content["model"].items()):
            is_linear = w.dim() == 2 and ".h." in name
            if is_linear or "ln_" in name:
                content["model"][name.removesuffix("weight") + "bias"] = torch.ones(len(w))

    _, out = changed(without_bias)
    model, _ = sample.load_model("resume", out)
    assert model.config.bias and model.config.act == "gelu_tanh"
    assert model.transformer.h[0].mlp.c_fc.bias.sum() == 64
    changed(sorted_by_name)
    assert sample.load_model("resume", out)[0].config.act == "gelu_tanh"
    changed()
    assert sample.load_model("resume", out)[0].config.act == "gelu"


@pytest.mark.parametrize("config, given, lines", [
    ({"warmup_iters": 2000, "lr_decay_iters": 20}, {},
     ["warmup_iters=2000 is too long for this run: it is shortened to 1"]),
    ({"warmup_iters": 2000, "lr_decay_iters": 20}, {"warmup_iters": 0},
     ["warmup_iters changes from 2000 to 0"]),
    ({"min_lr": 0.5}, {}, [
        "min_lr=0.5 of the checkpoint is above learning_rate=0.001, and is lowered to it"]),
    ({"min_lr": 0.5}, {"min_lr": 1e-4}, ["min_lr changes from 0.5 to 0.0001"]),
    ({"min_lr": 0.5, "decay_lr": False}, {}, []),
    ({"learning_rate": 0.0}, {"learning_rate": 1e-3}, ["learning_rate changes from 0.0 to 0.001"]),
    ({"log_interval": 0}, {"log_interval": 1}, ["log_interval changes from 0 to 1"]),
], ids=str)
def test_nanogpts_settings_are_checked_together_with_those_given_now(
        changed, tmp_path, capsys, config, given, lines):
    _, out = changed(**config)
    settings = {"max_iters": 11, "data_dir": tmp_path / "nano-data", "device": "cpu"} | given
    metrics = train.main(["--init_from=resume", f"--out_dir={out}"] + [
        f"--{name}={value}" for name, value in settings.items()])
    assert [m["step"] for m in metrics] == [10, 11, 11]
    printed = capsys.readouterr().out.splitlines()
    before = printed[:next(i for i, line in enumerate(printed) if line.startswith("1 x cpu"))]
    expected = ("max_iters", "data_dir", "device")
    assert [line for line in before if not line.startswith(expected)] == lines


def test_nanogpts_best_loss_counts_as_that_of_its_last_step(nano, tmp_path):
    """It does not store the step. Patience would otherwise count from step 0, and end the run."""
    nano()
    start = read(tmp_path / "out-nano" / "ckpt.pt")
    assert start.best_step == start.step == 10
    assert start.best_loss == checkpoint(tmp_path / "out-nano")["best_val_loss"].item()


def test_nanogpts_settings_of_its_gpu_are_not_taken_over(nano, tmp_path):
    nano()
    kept = read(tmp_path / "out-nano" / "ckpt.pt").config
    assert not kept.keys() & {"device", "dtype", "compile", "backend", "out_dir", "init_from"}
    assert kept["learning_rate"] == 1e-3


def test_nanogpts_checkpoint_is_the_start_of_a_run(nano, start, tmp_path):
    nano("_orig_mod.")
    metrics = start(tmp_path / "out-nano", data_dir=tmp_path / "nano-data", max_iters=2)
    assert [m["step"] for m in metrics] == [0, 1, 2, 2] and metrics[0]["val_loss"] < 3.7
    assert metrics[0]["val_loss"] < np.log(41)


def test_nanogpts_fine_tuning_with_a_constant_rate_is_resumed(nano, tmp_path):
    """config/finetune_shakespeare.py has a rate below the default of min_lr, which plays no part"""
    nano(learning_rate=3e-5, decay_lr=False)
    metrics = train.main(["--init_from=resume", f"--out_dir={tmp_path / 'out-nano'}",
                          f"--data_dir={tmp_path / 'nano-data'}", "--max_iters=11", "--device=cpu"])
    assert metrics[1]["lr"] == 3e-5


def test_what_the_characters_are_must_be_known(nano, mistake, tmp_path):
    nano()
    (tmp_path / "out-nano" / "meta.pkl").unlink()
    line = mistake(sample.main, f"--out_dir={tmp_path / 'out-nano'}")
    assert "of its 41 tokens is not known: copy the meta.pkl of its dataset into" in line


def test_the_vocabulary_is_found_in_data_dir(nano, start, mistake, tmp_path):
    nano()
    out, data = tmp_path / "out-nano", tmp_path / "nano-data"
    (out / "meta.pkl").unlink()
    assert "is not known" in mistake(train.main, "--init_from=resume", f"--out_dir={out}")
    resumed = ["--init_from=resume", f"--out_dir={out}", f"--data_dir={data}", "--max_iters=11"]
    assert train.main([*resumed, "--device=cpu"])[-1]["step"] == 11
    nano()
    (out / "meta.pkl").unlink()
    assert start(out, data_dir=data, max_iters=1)[0]["val_loss"] < 3.7


@pytest.mark.parametrize("n, meta, kind", [
    (50304, None, "gpt2"), (51200, None, "gpt2"), (60000, {"vocab_size": 50257}, "gpt2"),
    (60000, {"vocab_size": 60000}, "none"), (60000, None, None), (50000, None, None)])
def test_only_gpt2s_vocabulary_size_is_taken_for_gpt2s(changed, mistake, n, meta, kind):
    def widen(content):
        content["model_args"]["vocab_size"] = n
        for name in "transformer.wte.weight", "lm_head.weight":
            content["model"][name] = torch.zeros(n, 16)

    _, out = changed(widen)
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


@pytest.mark.parametrize("n, dtype, kind", [
    (100, np.uint32, "uint32 or int64 numbers"), (50257, np.uint32, "uint32 or int64 numbers"),
    (1500, np.int64, "uint32 or int64 numbers"), (65, np.uint8, "uint8 numbers, text, or other"),
    (4, np.uint8, "uint8 numbers, text, or other"), (195, np.uint8, "uint8 numbers, text, or oth"),
])
@pytest.mark.parametrize("vocab_size", [None, 60000])
def test_bins_of_other_numbers_are_refused(bins, tiny, mistake, n, dtype, kind, vocab_size):
    folder = bins("wide", numbers_below(n), dtype)
    given = {} if vocab_size is None else {"vocab_size": vocab_size}
    line = mistake(train.main, *tiny(dataset="wide", data_dir=folder.parent, **given))
    assert f"train.bin seems to hold {kind}" in line and "token ids must be uint16" in line


def test_bins_with_a_header_are_refused(bins, tiny, mistake):
    folder = bins("header", numbers_below(50257))
    header = np.array([20240520, 1, 4000] + [0] * 253, dtype=np.int32).tobytes()
    (folder / "train.bin").write_bytes(header + (folder / "train.bin").read_bytes())
    line = mistake(train.main, *tiny(dataset="header", data_dir=folder.parent))
    assert "seems to hold a header of llm.c, but token ids must be uint16, without a header" in line
    with open(folder / "train.bin", "wb") as file:
        np.save(file, numbers_below(50257).astype(np.uint16))
    line = mistake(train.main, *tiny(dataset="header", data_dir=folder.parent))
    assert "seems to hold a header of NumPy's .npy format" in line


@pytest.mark.parametrize("n, meta", [
    (50257, None), (65536, {"vocab_size": 65536}), (2, {"itos": {0: "a", 1: "b"}}),
    (300, {"vocab_size": 300}), (4, {"itos": list("ACGT")}), (51999, {"vocab_size": 52000}),
])
def test_bins_of_uint16_are_never_taken_for_others(bins, n, meta):
    folder = bins("right", numbers_below(n, 40_000), meta=meta)
    assert len(dataset.load(folder).train) == 40_000
    short = bins("short", [0, 1, 1, 0, 1, 0], meta={"vocab_size": 2})
    assert dataset.load(short).train.tolist() == [0, 1, 1, 0, 1, 0]


# ---- what does not fit


def test_a_model_that_is_not_nanogpts_is_told(nano, mistake, tmp_path):
    nano()
    path = tmp_path / "out-nano" / "ckpt.pt"
    whole = torch.load(path, weights_only=True)
    gate = {"transformer.h.0.gate": torch.zeros(3)}
    for weights, message in ({}, "n_layer=2, but it has weights of 0 layers"), (
            whole["model"] | gate, "does not have the weights 'transformer.h.0.gate'"):
        torch.save(whole | {"model": weights}, path)
        assert message in mistake(sample.main, f"--out_dir={tmp_path / 'out-nano'}")


# ---- sizes


def test_a_size_stands_for_three_settings_that_can_be_changed(tiny, tmp_path):
    path = tmp_path / "config.py"
    path.write_text("n_layer = 5\nn_head = 5\nn_embd = 20\n")

    def shape(*argv):
        words = [word for word in tiny(max_iters=0) if "n_" not in word.split("=")[0]]
        train.main([*map(str, argv[:1]), *words, *argv[1:]] if argv[0] == path else [*words, *argv])
        args = checkpoint(tmp_path / "out")["model_args"]
        return args["n_layer"], args["n_head"], args["n_embd"]

    assert shape("--size=gpt-nano") == (3, 3, 48)
    assert shape("--size=gpt-nano", "--n_layer=1") == (1, 3, 48)
    assert shape("--size=gpt-micro", "--n_head=64") == (4, 64, 128)  # does not divide the 768
    assert shape(path) == (5, 5, 20)
    assert shape(path, "--size=gpt-nano") == (3, 3, 48)  # the command line is over the file
    path.write_text("size = 'gpt-nano'\n")
    assert shape(path, "--n_layer=2") == (2, 3, 48)


def test_sizes_are_those_of_the_papers():
    counts = {name: GPTConfig(n_layer=shape[0], n_head=shape[1], n_embd=shape[2], bias=True,
                              vocab_size=50257) for name, shape in SIZES.items()}
    with torch.device("meta"):
        millions = {name: sum(p.numel() for p in GPT(config).parameters()) / 1e6
                    for name, config in counts.items() if name.startswith("gpt2")}
    assert {name: round(n) for name, n in millions.items()} == {
        "gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558}


def test_an_unknown_size_is_refused(mistake, tiny):
    assert "size must be" in mistake(train.main, *tiny(size="gpt-nono"))


def test_gpt2_tiny_and_nano_differ_by_their_activation():
    """What from_nanogpt relies on: nanoGPT's GELU is the exact one, GPT-2's is not."""
    assert replace(NANO_TINY, act="gelu_tanh", bias=True) == GPT2_TINY
