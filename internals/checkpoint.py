"""What a model starts from: a checkpoint of train.py or of nanoGPT, or GPT-2's weights.

A checkpoint is one dict of tensors and plain containers: model (raw weights, by GPT-2's names),
model_args (GPTConfig's fields), meta (what the ids mean); and, to resume from it, optimizer,
scaler, config (TrainConfig's fields), iter_num, best_val_loss, best_step. Reading it runs no code.
"""

import difflib
import math
import pickle
import re
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from configurator import UserError, build, reason
from internals import huggingface
from internals.dataset import GPT2_META, read_meta
from internals.files import DATA
from model import GPT, GPTConfig


def find_checkpoint(out_dir, *names):
    """The first of `names` in out_dir that is there and whole; a damaged one is told of. Raises
    UserError where there is none."""
    paths = [out_dir / name for name in names if (out_dir / name).exists()]
    if not paths:
        raise UserError(f"there is no checkpoint in {out_dir}: train first, or another out_dir")
    for path in paths[:-1]:
        try:
            return load_checkpoint(path)
        except UserError as error:
            print(f"warning: {error}; taking {paths[-1]}", file=sys.stderr)
    return load_checkpoint(paths[-1])


def load_checkpoint(path):
    """Read a checkpoint, into the CPU's memory: tensors and plain containers, no code. Raises
    UserError where it is damaged or something else."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} is not a checkpoint of tensors and plain values; anything else "
                        "could run code and is not opened") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path} is damaged or not a checkpoint ({reason(error)})") from None
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint of train.py")
    return checkpoint if "meta" in checkpoint else from_nanogpt(checkpoint, path.parent)


def from_nanogpt(checkpoint, folder):
    """A checkpoint of nanoGPT as one of ours. Its GELU is the exact one; what its characters are is
    in the meta file of its dataset, which is looked for in `folder` and in data/."""
    model = {name.removeprefix("_orig_mod."): weight for name, weight in checkpoint["model"].items()
             if not name.endswith(".attn.bias")}  # the causal mask of its slower attention
    model_args = asdict(build(GPTConfig, checkpoint["model_args"] | {"act": "gelu"}))
    config = checkpoint.get("config", {})
    try:
        n = len(GPT.from_weights(GPTConfig(**model_args), dict(model)).lm_head.weight)
    except RuntimeError as error:
        raise UserError(f"{folder} has a checkpoint whose model is not nanoGPT's: "
                        f"{' '.join(str(error).split()):.200}") from None
    places = folder, DATA / config.get("dataset", "")
    meta = next(filter(None, map(read_meta, places)), GPT2_META)
    if meta["vocab_size"] > n or ("chars" in meta and meta["vocab_size"] != n):
        raise UserError(f"{folder} has a checkpoint of nanoGPT's, of {n} symbols: copy the "
                        "meta.pkl of its dataset beside it")
    of_that_call = ("device", "dtype", "compile", "backend", "out_dir", "init_from", "eval_only")
    return checkpoint | {
        "model": model, "model_args": model_args, "meta": meta,
        "config": {name: value for name, value in config.items() if name not in of_that_call},
        "best_val_loss": float(checkpoint.get("best_val_loss", math.inf)),
        "best_step": checkpoint.get("iter_num", 0), "scaler": {}}


def load_start(name):
    """The model to start from, as a checkpoint of model, model_args and meta.

    name: the folder of a run, one in Hugging Face's layout, or a name on its hub, as "gpt2".
    Raises UserError where there is none, or it is no GPT-2.
    """
    folder = Path(name)
    if any((folder / file).exists() for file in ("best.pt", "ckpt.pt")):
        checkpoint = find_checkpoint(folder, "best.pt", "ckpt.pt")
        return {key: checkpoint[key] for key in ("model", "model_args", "meta")}
    on_hub = name.startswith("gpt2") or re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)
    if not folder.is_dir() and not on_hub:
        known = ["scratch", "resume", "auto", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"and none of {', '.join(known)}"
        raise UserError(f"init_from={name} is no folder of a run or a model; {hint}")
    try:
        folder = huggingface.find(name)
        model = GPT.from_pretrained(folder)
        is_gpt2 = huggingface.is_gpt2_vocabulary(folder, model.config.vocab_size)
    except ImportError as error:
        raise UserError(f"init_from={name} needs a package: pip install {error.name}") from None
    except Exception as error:  # huggingface_hub has many of its own
        raise UserError(f"init_from={name} cannot be loaded: {type(error).__name__}: "
                        f"{reason(error):.300}") from None
    n, meta = model.config.vocab_size, read_meta(folder)
    if meta is None and not is_gpt2:
        raise UserError(f"init_from={name} has {n} symbols, and they are not GPT-2's: a meta.json "
                        "of its tokenizer must lie beside it")
    if meta and meta["vocab_size"] > n:
        raise UserError(f"init_from={name} has {n} symbols, but the meta.json beside it says "
                        f"{meta['vocab_size']}")
    meta = meta or GPT2_META
    return {"model": model.state_dict(), "model_args": asdict(model.config), "meta": meta}


def resumed_settings(train_config, checkpoint, given):
    """The settings of a run that goes on: the checkpoint's, and over them those given now. Raises
    UserError where these do not fit to its model or its optimizer."""
    config = checkpoint.get("config")
    if config is None or "optimizer" not in checkpoint:
        raise UserError("the checkpoint has a model and no optimizer: it cannot be resumed, but "
                        "started from, with --init_from= and its folder")
    for name, value in config.items():
        if given.get(name, value) != value:
            print(f"{name} is {given[name]} from here on; it was {value}")
    for name, value in (("optimizer", config.get("optimizer", "adamw")),
                        ("block_size", checkpoint["model_args"]["block_size"])):
        if given.get(name, value) != value:
            raise UserError(f"{name}={given[name]}, but the checkpoint to resume has {value}: "
                            "leave it out, or start from it with --init_from= and its folder")
    return build(train_config, config | given), started_settings(checkpoint, given)


def started_settings(checkpoint, given):
    """The shape of the checkpoint's model, with the dropout, and at most the block_size, given now.
    Raises UserError where anything else shall be another."""
    model_args, wpe = checkpoint["model_args"], "transformer.wpe.weight"
    new = {name: given.get(name, model_args[name]) for name in ("block_size", "dropout")}
    if new["block_size"] > model_args["block_size"]:
        raise UserError(f"block_size={new['block_size']} is over the {model_args['block_size']} "
                        "of the model to start from")
    for name, value in model_args.items():
        if name not in new and given.get(name, value) != value:
            raise UserError(f"{name}={given[name]}, but the model to start from has {value}: "
                            "leave it out, or start anew with --init_from=scratch")
    if wpe in checkpoint["model"]:
        checkpoint["model"][wpe] = checkpoint["model"][wpe][:new["block_size"]].clone()
    return build(GPTConfig, model_args | new)
