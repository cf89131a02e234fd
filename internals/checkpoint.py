"""Checkpoints: write them, read them safely, and find the one that a run or a sample starts from.

On disk a checkpoint is one dict of tensors and plain containers, written by torch.save:

    model                     state_dict of the raw model (not compiled, no DDP), GPT-2's names
    model_args                the fields of GPTConfig
    meta                      the meta.json of the dataset, which says what the token ids mean
and, to resume the run:
    config                    the fields of TrainConfig
    optimizer                 a list of state dicts: AdamW, then Muon if it is used
    scaler                    the state of the gradient scaler; {} if the dtype is not float16
    iter_num, sequences       the number of steps and of training sequences so far
    best_val_loss, best_step  the lowest validation loss so far, and its step

nanoGPT's checkpoints, which have one optimizer state dict and no meta, can be read too.

Reading a file runs no code from it. Every field is checked before anything is built from it, and
sizes are checked against the weights in the same file. So a damaged or malicious file causes a
one-line error, and an absurd size never allocates memory. The functions differ in what they read:

    read             one checkpoint file, with the optimizer
    first_undamaged  the first undamaged checkpoint in the folder of a run
    read_model       only the weights: from a folder, a file, a Hugging Face folder, or its hub
    read_snapshot    only the weights: at one step of a run
    starting_point   what `train.py --init_from=...` starts from, and the resulting settings

Left out: sharded checkpoints, and conversions between optimizers.
"""

import difflib
import itertools
import math
import os
import pickle
import re
import sys
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors.torch import save

from configurator import UserError, build, convert, reason
from internals import huggingface
from internals.dataset import GPT2_META, check_meta, read_meta
from internals.files import DATA, replacing
from internals.usage import shown
from model import GPTConfig

# settings that a resumed run does not inherit
OF_ONE_CALL = ("out_dir", "init_from", "eval_only", "dry_run")
# in addition, settings that are not inherited from nanoGPT, because they were chosen for its GPU
OF_ONE_MACHINE = ("device", "dtype", "compile", "backend")
SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
MAX_BLOCK_SIZE = 2**20  # with RoPE, the shape of no weight depends on block_size
MAX_COUNT = 2**53  # of steps and sequences
HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")  # no OWNER/ before them


@dataclass
class Checkpoint:
    """The state of a run or, if config or optimizer is None, only the weights of a model."""

    model: dict  # {name: float32 tensor}, the state_dict of GPT
    model_args: dict  # all fields of GPTConfig
    meta: dict  # the content of a meta.json
    config: dict | None = None  # fields of TrainConfig
    optimizer: list | None = None  # state dicts: AdamW, then Muon if it is used
    scaler: dict = field(default_factory=dict)
    step: int = 0  # on disk: iter_num
    sequences: int = 0  # training sequences consumed so far
    best_loss: float = math.inf  # on disk: best_val_loss
    best_step: int = 0


# --------------------------------------------------------------------------------------------------
# Writing


def write(checkpoint, path):
    """Write a Checkpoint. If that fails, an existing file at `path` is unchanged, and an OSError
    that names `path` is raised."""
    content = {"model": checkpoint.model, "model_args": checkpoint.model_args,
               "meta": checkpoint.meta}
    if checkpoint.config is not None and checkpoint.optimizer is not None:
        kept = {k: v for k, v in checkpoint.config.items() if k not in OF_ONE_CALL}
        content |= {
            "config": kept, "optimizer": checkpoint.optimizer, "scaler": checkpoint.scaler,
            "iter_num": checkpoint.step, "sequences": checkpoint.sequences,
            "best_val_loss": checkpoint.best_loss, "best_step": checkpoint.best_step}
    path = Path(path)
    with replacing(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save(content, file)
        except (RuntimeError, OSError) as error:
            # on a full disk, torch raises a RuntimeError while it handles Python's OSError
            cause = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from None


# --------------------------------------------------------------------------------------------------
# Reading


def first_undamaged(out_dir, *names):
    """The Checkpoint in the first of the files `names` in out_dir that exists and is undamaged.
    Damaged files are reported on stderr. out_dir can also be a checkpoint file. Raises UserError if
    no undamaged checkpoint exists."""
    out_dir = Path(out_dir)
    if out_dir.is_file():
        return read(out_dir)
    paths = [out_dir / name for name in names if (out_dir / name).exists()]
    if not paths:
        raise UserError(no_checkpoint(out_dir))
    for path, other in itertools.pairwise(paths):
        try:
            return read(path)
        except UserError as error:
            say(f"warning: {error}; using {other} instead", sys.stderr)
    return read(paths[-1])


def read(path):
    """The Checkpoint in a file, with its tensors on the CPU. Raises UserError if the file is
    damaged, is not a checkpoint, or contains anything but tensors and plain values."""
    path = Path(path)
    content = load(path)
    if not isinstance(content, dict) or not {"model", "model_args"} <= content.keys():
        raise UserError(f"{path} is not a checkpoint of train.py")
    try:
        return checked(content, path.parent)
    except (ValueError, UserError) as error:
        raise UserError(f"{path} is damaged or not a checkpoint: {error}") from None


def load(path):
    """The tensors and plain containers that torch.save wrote to a file. Raises UserError."""
    try:
        if zipfile.is_zipfile(path):  # files from before PyTorch 1.6 have no checksums
            check_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} is not a checkpoint of tensors and plain values; anything else "
                        "could run code and is not opened") from None
    except Exception as error:  # damaged bytes can make torch and zipfile raise almost anything
        raise UserError(f"{path} is damaged or not a checkpoint ({reason(error):.200})") from None


def check_zip(path):
    """Raises ValueError if a zip file does not match its checksums, which torch does not verify,
    or if it is compressed and would need more memory than its size. Reads the file once, in small
    pieces."""
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename} is compressed")
        damaged = file.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


# --------------------------------------------------------------------------------------------------
# Checking the fields. Each function returns its field in the form that the rest of the program
# expects, or raises ValueError or UserError with the reason.


def checked(content, folder):
    """The dict of a file as a Checkpoint. folder: the folder of the file."""
    checked_plain(content["model_args"], "model_args")
    from_nanogpt = "meta" not in content
    if from_nanogpt and "act" in content["model_args"]:  # a setting that nanoGPT does not have
        raise ValueError("it has no meta, which says what its tokens mean")
    config = checked_config(content.get("config"), from_nanogpt)
    settings = checked_settings(content["model_args"], from_nanogpt)
    weights, parameters = checked_weights(content["model"], settings, from_nanogpt)
    if from_nanogpt:
        meta = nanogpt_meta(folder, config, settings.vocab_size)
    else:
        meta = checked_plain(content["meta"], "meta")
        if "vocab_size" not in meta:  # older files lack it; the tokenizer determines it
            size = GPT2_META["vocab_size"]
            if isinstance(meta.get("chars"), str):
                size = len(meta["chars"])
            meta = meta | {"vocab_size": size}
        meta = check_meta(meta)
    if meta["vocab_size"] > settings.vocab_size:
        raise ValueError(f"its tokenizer has {meta['vocab_size']} tokens, but its model has "
                         f"{settings.vocab_size}")
    checkpoint = Checkpoint(weights, asdict(settings), meta)
    states = content.get("optimizer")
    if config is None or states is None:
        return checkpoint

    step = checked_count(content, "iter_num")
    checkpoint.config, checkpoint.step = config, step
    checkpoint.optimizer = checked_optimizer(
        states, parameters, config.get("optimizer", "adamw"), step)
    checkpoint.scaler = checked_scaler(content.get("scaler", {}))
    if "sequences" in content:
        checkpoint.sequences = checked_count(content, "sequences")
    else:  # older files lack it, but all their steps had the same number of sequences
        batch_size = checked_count(config, "batch_size")
        accumulation = checked_count(config, "gradient_accumulation_steps")
        checkpoint.sequences = step * batch_size * accumulation
    checkpoint.best_loss = checked_loss(content.get("best_val_loss", math.inf))
    checkpoint.best_step = step
    if "best_step" in content:  # nanoGPT does not store it
        checkpoint.best_step = checked_count(content, "best_step", limit=step)
    return checkpoint


def checked_count(content, name, limit=MAX_COUNT):
    value = content.get(name)
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError(f"{name}={shown(value)} must be a whole number, at least 0 and at most "
                         f"{limit}")
    return value


def checked_loss(value):
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point():
        value = value.item()  # nanoGPT stores a tensor
    if type(value) not in (int, float) or not value >= 0:  # this refuses NaN too
        raise ValueError(f"best_val_loss={shown(value)} must be a number, 0 or more")
    return value


def checked_plain(values, what):
    """`values`, which must be a dict of names and plain values, without containers or tensors."""
    if not isinstance(values, dict):
        raise ValueError(f"{what} must be a dict, not {shown(values)}")
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(f"{what} has the name {shown(name)}, which is not text")
        if type(value) not in (str, int, float, bool, type(None)):
            raise ValueError(f"{name}={shown(value)} in {what} must be a plain value")
    return values


def checked_config(config, from_nanogpt):
    """The settings of the run, or None. `resumed` checks their types, against TrainConfig."""
    if config is None:
        return None
    for name, value in checked_plain(config, "config").items():
        if isinstance(value, str) and "\0" in value:  # functions on such a path raise ValueError
            raise ValueError(f"{shown(name)} in config contains a null character")
    left_out = OF_ONE_CALL
    if from_nanogpt:
        left_out += OF_ONE_MACHINE
    return {name: value for name, value in config.items() if name not in left_out}


def checked_settings(model_args, from_nanogpt):
    """The GPTConfig. Fields that an older checkpoint lacks get their default values, which describe
    the model as it was before these fields existed."""
    model_args = dict(model_args)
    if from_nanogpt:
        model_args["act"] = "gelu"  # the exact GELU, which nanoGPT uses
    types = {setting.name: setting.type for setting in fields(GPTConfig)}
    for name in model_args:
        if name not in types:
            raise ValueError(f"{shown(name)} in model_args is unknown to this version")
    for name in SIZES:
        if name not in model_args:
            raise ValueError(f"model_args has no {name}")
    values = {name: convert(name, value, types[name], "in model_args")
              for name, value in model_args.items()}
    if values["block_size"] > MAX_BLOCK_SIZE:
        raise ValueError(f"block_size={values['block_size']} must be at most {MAX_BLOCK_SIZE}")
    return build(GPTConfig, values)


def checked_weights(weights, settings, from_nanogpt):
    """Returns (the weights in the order of GPT's state_dict, {name: shape} of the parameters).

    settings: the GPTConfig. NaN and infinity are allowed, because a run that diverged has them.
    """
    if not isinstance(weights, dict):
        raise ValueError(f"model must be a dict of weights, not {shown(weights)}")
    named = {}
    for name, weight in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"a weight has the name {shown(name)}, which is not text")
        if from_nanogpt:
            name = name.removeprefix("_orig_mod.")  # torch.compile adds this prefix
            if name.endswith(".attn.bias"):
                continue  # the causal mask of nanoGPT, which is not a parameter
        named[name] = checked_tensor(weight, name)

    n_layer = len({name.split(".")[2] for name in named if ".h." in name})
    if settings.n_layer != n_layer:  # checked before weight_shapes makes a table of that length
        raise ValueError(f"n_layer={settings.n_layer}, but it has weights of {n_layer} layers")
    parameters = huggingface.weight_shapes(asdict(settings))
    for name, shape in parameters.items():
        if name not in named:
            raise ValueError(f"the weight {name} is missing")
        if tuple(named[name].shape) != shape:
            raise ValueError(f"the weight {name} has the shape {tuple(named[name].shape)}, not "
                             f"{shape}")
    result = {name: named.pop(name) for name in parameters}
    if settings.tied:
        head = named.pop("lm_head.weight", None)
        embedding = result["transformer.wte.weight"]
        if head is not None and head.data_ptr() != embedding.data_ptr() and not torch.equal(
                head, embedding):
            raise ValueError("lm_head.weight differs from the token embedding it is tied to")
        result["lm_head.weight"] = embedding
    if named:
        raise ValueError(f"the weight {shown(min(named))} is not one of this model")
    return result, parameters


def checked_tensor(tensor, name):
    """`tensor` as a dense float32 tensor on the CPU."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise ValueError(f"{shown(name)} must be a tensor of floating-point numbers, not "
                         f"{getattr(tensor, 'dtype', type(tensor).__name__)}")
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise ValueError(f"{shown(name)} must be a dense tensor")
    # a view can repeat one stored number many times, so a small file could ask for much memory
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError(f"{shown(name)} has more numbers than are stored")
    return tensor.detach().to(torch.float32).contiguous()


def checked_optimizer(states, parameters, kind, step):
    """The list of the optimizer's state dicts.

    parameters: {name: shape} in the model's order. kind: "adamw" or "muon". step: the number of
    steps so far; before the first step, the optimizer has no state.
    """
    if isinstance(states, dict):
        states = [states]  # nanoGPT has one optimizer
    expected = expected_states(parameters, kind)
    if not isinstance(states, list) or len(states) != len(expected):
        raise ValueError(f"optimizer must be a list of {len(expected)} state dicts ({kind})")
    checked_states = []
    for state_dict, (n_parameters, shapes) in zip(states, expected, strict=True):
        if not isinstance(state_dict, dict) or not isinstance(state_dict.get("state"), dict):
            raise ValueError("optimizer has a part that is not a state dict")
        groups, state = state_dict.get("param_groups"), state_dict["state"]
        if not isinstance(groups, list) or not all(
                isinstance(group, dict) and isinstance(group.get("params"), list)
                for group in groups):
            raise ValueError("optimizer has no param_groups")
        numbers = [i for group in groups for i in group["params"]]
        if any(type(i) is not int for i in numbers) or numbers != list(range(n_parameters)):
            raise ValueError(f"optimizer does not have the {n_parameters} parameters of the model")
        if state or step:
            state = checked_moments(state, shapes)
        checked_states.append({"state": state, "param_groups": groups})
    return checked_states


def expected_states(parameters, kind):
    """What the state dicts of AdamW and Muon in internals/optimizers.py contain:
    [(number of parameters, {index: {name: shape}}), ...]."""
    in_blocks, others = [], []
    for name, shape in parameters.items():
        if kind == "muon" and ".h." in name and len(shape) == 2:
            in_blocks.append(shape)
        else:
            others.append(shape)
    others.sort(key=lambda shape: len(shape) < 2)  # parameters with weight decay come first
    adamw = {i: {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
             for i, shape in enumerate(others)}
    expected = [(len(others), adamw)]
    if kind == "muon":  # matrices of one shape share a momentum, stored at the index of the first
        muon, index = {}, 0
        for shape, number in Counter(in_blocks).items():
            muon[index] = {"momentum": (number, *shape)}
            index += number
        expected.append((len(in_blocks), muon))
    return expected


def checked_moments(state, shapes):
    """state: {index: {name: tensor}}. shapes: {index: {name: shape}}, the required shapes."""
    if state.keys() != shapes.keys():
        raise ValueError(f"optimizer has {len(state)} states of parameters or groups, not "
                         f"{len(shapes)}")
    result = {}
    for index, expected in shapes.items():
        moments = state[index]
        if not isinstance(moments, dict) or moments.keys() != expected.keys():
            raise ValueError(f"the optimizer's state of parameter {index} must have "
                             f"{', '.join(expected)}")
        result[index] = {}
        for name, shape in expected.items():
            moment = moments[name]
            if name == "step" and type(moment) in (int, float):
                moment = torch.tensor(float(moment))  # older versions of PyTorch store a number
            moment = checked_tensor(moment, name)
            if tuple(moment.shape) != shape:
                raise ValueError(f"the optimizer's {name} of parameter {index} has the shape "
                                 f"{tuple(moment.shape)}, not {shape}")
            if name == "step" and not 0 <= moment.item() <= MAX_COUNT:
                raise ValueError(f"the optimizer's step {moment.item()} must be 0 or more")
            result[index][name] = moment
    return result


def checked_scaler(scaler):
    """The state of a torch.amp.GradScaler, or {}."""
    limits = {"scale": (float, 0, 2.0**127), "growth_factor": (float, 1, 2.0**31),
              "backoff_factor": (float, 0, 1), "growth_interval": (int, 0, 2**31),
              "_growth_tracker": (int, -1, 2**31)}
    if not isinstance(scaler, dict) or scaler.keys() not in (set(), limits.keys()):
        raise ValueError(f"scaler must be the state of a gradient scaler, not {shown(scaler)}")
    for name in scaler:
        kind, low, high = limits[name]
        if type(scaler[name]) is not kind or not low < scaler[name] < high:
            raise ValueError(f"scaler has {name}={shown(scaler[name])}")
    return scaler


def nanogpt_meta(folder, config, vocab_size):
    """The meta of a nanoGPT checkpoint in `folder`: the meta file of its dataset, which is searched
    next to the checkpoint, in nanoGPT's data folder, and in ours. If none exists, it is that of
    GPT-2."""
    dataset = str((config or {}).get("dataset", ""))
    places = [folder]
    if dataset:
        places += [folder.parent / "data" / dataset, DATA / dataset]
    for place in places:
        meta = read_meta(place)
        if meta is not None:
            break
    else:
        meta = GPT2_META
    size = meta["vocab_size"]
    if size > vocab_size or (meta["tokenizer"] == "char" and size != vocab_size):
        raise ValueError(f"the vocabulary of its {vocab_size} tokens is not known: copy the "
                         f"meta.pkl of its dataset into {folder}")
    return meta


# --------------------------------------------------------------------------------------------------
# The weights of a model, from a folder, a file or the hub


def to_sample_from(init_from, out_dir):
    """The Checkpoint that sample.py and the tools load: the best one of the run in out_dir if
    init_from is "resume", else the model that init_from names."""
    if init_from == "resume":
        return first_undamaged(out_dir, "best.pt", "ckpt.pt")
    return read_model(init_from, ("resume",))


def read_model(name, other_values=("scratch", "resume", "auto")):
    """The weights of a model, as a Checkpoint without config and optimizer.

    name: the folder of a run (best.pt, else ckpt.pt), a .pt file, a folder in Hugging Face's
    format, or a name on its hub, such as "gpt2". other_values: what init_from can be besides a
    model, for error messages. Raises UserError if the model does not exist or is not a GPT-2 model.
    """
    name = str(name)
    if not name.strip():
        raise UserError(f"init_from= is empty: it must be {', '.join(other_values)}, or a model")
    folder = Path(name)
    names = ("best.pt", "ckpt.pt")
    if folder.suffix in (".pt", ".pth", ".safetensors", ".bin") and not folder.is_dir():
        if not folder.is_file():
            raise UserError(f"init_from={name}: the file does not exist")
        if folder.suffix in (".safetensors", ".bin"):
            raise UserError(f"init_from={name} is a file of weights: give its folder, which also "
                            "has the config.json")
    if folder.is_file() or any((folder / file).exists() for file in names):
        found = first_undamaged(folder, *names)
        return Checkpoint(found.model, found.model_args, found.meta)
    if (folder / "metrics.jsonl").exists() or previous_runs(folder):
        raise UserError(no_checkpoint(folder))  # its config.json is train.py's, not Hugging Face's
    if not folder.is_dir() and name not in HUB_NAMES and not re.fullmatch(
            r"\w[\w.-]*/[\w.-]+", name):
        known = [*other_values, *HUB_NAMES]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else (
            f"use one of {', '.join(known)}, or OWNER/NAME on the hub")
        raise UserError(f"init_from={name} is not a folder of a run or a model; {hint}")
    return from_hugging_face(name)


def from_hugging_face(name):
    """The Checkpoint of a model in a folder in Hugging Face's format, or on the hub."""
    try:
        folder = huggingface.find(name)
    except ImportError as error:
        raise UserError(f"init_from={name} is not a folder, and loading it from the hub needs a "
                        f"package: pip install {error.name}") from None
    except Exception as error:  # huggingface_hub raises many types
        line = f"init_from={name} cannot be loaded: {type(error).__name__}: {reason(error):.200}"
        if type(error).__name__ == "RepositoryNotFoundError":
            raise UserError(line) from None
        local = f"{name.split('/')[-1]}-hf"
        raise UserError(f"{line}. If this machine has no network, run `hf download {name} "
                        f"--local-dir {local}` on another one, copy that folder, and give "
                        f"--init_from={local}") from None
    try:
        config, weights = huggingface.read(folder)
        is_gpt2 = huggingface.is_gpt2_vocabulary(folder, config["vocab_size"])
    except (ValueError, OSError) as error:
        raise UserError(f"init_from={name} cannot be loaded: {reason(error):.300}") from None
    meta, n = read_meta(folder), config["vocab_size"]
    if meta is None and not is_gpt2:
        raise UserError(f"init_from={name} has a vocabulary of {n} tokens that is not GPT-2's: it "
                        "needs a meta.json of its tokenizer in the same folder")
    if meta is not None and meta["vocab_size"] > n:
        raise UserError(f"init_from={name} has {n} tokens, but its meta.json has "
                        f"{meta['vocab_size']}")
    return Checkpoint(weights, asdict(build(GPTConfig, config)), meta or GPT2_META)


def previous_runs(out_dir):
    """The folders previous-1, previous-2, ... in out_dir that have a checkpoint, the newest last.
    train.py moves the files of earlier runs there."""
    numbered = []
    for folder in out_dir.glob("previous-*"):
        number = folder.name.removeprefix("previous-")
        if number.isdecimal() and any(folder.glob("*.pt")):
            numbered.append((int(number), folder))
    return [folder for _, folder in sorted(numbered)]


def no_checkpoint(out_dir):
    """The error message that out_dir has no checkpoint. It names folders that have one."""
    previous = previous_runs(out_dir)
    if previous:
        return (f"{out_dir} has no checkpoint, but earlier runs are kept in "
                f"{', '.join(map(str, previous[-3:]))}: give one of these folders")
    others = sorted({str(path.parent) for path in out_dir.parent.glob("out*/*.pt")})
    hint = f"; there is one in {', '.join(others[:3])}" if others else ""
    return f"{out_dir} has no checkpoint: train first, or give another folder{hint}"


# --------------------------------------------------------------------------------------------------
# Snapshots: the weights alone, at each evaluation of a run. Nothing resumes from them.


def snapshot_paths(out_dir):
    """{step: path} of the snapshots in out_dir, in the order of the steps."""
    numbered = {}
    for path in Path(out_dir, "snapshots").glob("step-*.safetensors"):
        number = path.stem.removeprefix("step-")
        if number.isdecimal():
            numbered[int(number)] = path
    return dict(sorted(numbered.items()))


def write_snapshot(out_dir, step, model):
    """Write the weights of a GPT to out_dir/snapshots/step-000150.safetensors."""
    weights = {name: weight.detach().cpu() for name, weight in model.state_dict().items()}
    if model.config.tied:
        del weights["lm_head.weight"]  # it is the token embedding
    with replacing(Path(out_dir, "snapshots", f"step-{step:06}.safetensors")) as temporary:
        temporary.write_bytes(save(weights, metadata={"format": "pt"}))


def read_snapshot(path, model_args):
    """The weights in a snapshot, in the form of a state_dict. Raises UserError if the file is
    damaged or does not fit model_args."""
    try:
        return checked_weights(huggingface.open_weights(path), build(GPTConfig, model_args),
                               from_nanogpt=False)[0]
    except ValueError as error:
        raise UserError(f"{path} is not a snapshot of this run: {error}") from None


def remove_snapshots_after(out_dir, step):
    """Remove the snapshots of later steps. A run that was killed, or that resumes from an earlier
    checkpoint, will train these steps again, perhaps with other settings."""
    for number, path in snapshot_paths(out_dir).items():
        if number > step:
            path.unlink()


# --------------------------------------------------------------------------------------------------
# The starting point of a run


def starting_point(cfg, model_cfg, given, schedule):
    """Load what `init_from` names, and adapt the settings to it.

    cfg, model_cfg: the TrainConfig and GPTConfig of this call. given: {name: value} of the settings
    that are set explicitly. schedule: the function learning_rate(step, cfg). Returns (cfg,
    model_cfg, start). cfg.init_from is then "scratch", "resume" or a model, never "auto". start is
    a Checkpoint; its model is None for "scratch". Raises UserError if the settings do not fit the
    checkpoint.
    """
    out_dir = Path(cfg.out_dir)
    if not cfg.out_dir:  # Path("") is the current folder
        raise UserError("out_dir= must be the name of a folder")
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"out_dir={out_dir} is a file: give the name of a folder, such as "
                        f"{out_dir.parent}")
    init_from = cfg.init_from
    if init_from == "auto":
        exists = any((out_dir / name).exists() for name in ("ckpt.pt", "best.pt"))
        init_from = "resume" if exists else "scratch"
    if init_from == "scratch":
        return replace(cfg, init_from=init_from), model_cfg, Checkpoint(None, {}, {})
    if init_from == "resume":
        start = first_undamaged(out_dir, "ckpt.pt", "best.pt")
        return resumed(cfg, given, start, schedule), started(start, given), start
    start = read_model(init_from)
    model_cfg = started(start, given)
    return cfg, model_cfg, cropped(start, model_cfg)


def resumed(cfg, given, start, schedule):
    """The TrainConfig of a resumed run: the settings of the checkpoint, overridden by those given
    now. Prints what changes. Raises UserError if the model or the optimizer cannot change that
    way."""
    if start.config is None:
        raise UserError("the checkpoint has a model but no optimizer: it cannot be resumed; to "
                        "start a new run from it, set --init_from= to its folder")
    schema = type(cfg)
    types = {setting.name: setting.type for setting in fields(schema)}
    of_model = {setting.name for setting in fields(GPTConfig)}
    unknown = sorted(start.config.keys() - types.keys() - of_model)  # nanoGPT has n_layer here too
    if unknown:
        say(f"warning: this version does not know these settings of the checkpoint, and ignores "
            f"them: {', '.join(unknown):.200}", sys.stderr)
    config = {name: convert(name, value, types[name], "in the checkpoint to resume")
              for name, value in start.config.items() if name in types}

    old, given = build(schema, config), given | {"init_from": "resume"}
    fixed = {"optimizer": old.optimizer, "block_size": start.model_args["block_size"]}
    for name, before in fixed.items():
        value = given.get(name, before)
        if value != before:
            raise UserError(f"{name}={value}, but the checkpoint to resume has {before}: leave it "
                            "out, or start a new run from the checkpoint by setting --init_from= "
                            "to its folder")
    new = build(schema, config | given)
    before = asdict(old) | {"dropout": start.model_args["dropout"]}
    for name, value in given.items():
        if name in before and name not in OF_ONE_CALL and value != before[name]:
            say(f"{name} changes from {before[name]} to {value}")
    longer = new.decay_lr and new.decay_steps > old.decay_steps
    share = schedule(start.step, new) / new.learning_rate
    old_share = schedule(start.step, old) / old.learning_rate
    if longer and share > old_share + 0.01:
        say("the learning rate rises again, because the schedule is longer: it now decays until "
            f"step {new.decay_steps:,} instead of {old.decay_steps:,}")
    return new


def started(start, given):
    """The GPTConfig of a run that starts from a checkpoint: the checkpoint's, with the dropout and
    the block_size given now. Raises UserError for any other change, or a longer block_size."""
    model_args = start.model_args
    new = {name: given.get(name, model_args[name]) for name in ("block_size", "dropout")}
    if new["block_size"] > model_args["block_size"]:
        raise UserError(f"block_size={new['block_size']} is longer than the "
                        f"{model_args['block_size']} of the model to start from")
    for name, value in model_args.items():
        if name not in new and given.get(name, value) != value:
            raise UserError(f"{name}={given[name]}, but the model to start from has {value}: "
                            "leave it out, or start a new model with --init_from=scratch")
    return build(GPTConfig, model_args | new)


def cropped(start, model_cfg):
    """The Checkpoint with only the first block_size position embeddings. `start` is not changed."""
    name = "transformer.wpe.weight"
    model = dict(start.model)
    if name in model:
        model[name] = model[name][:model_cfg.block_size].clone()  # a copy, so the rest can be freed
    return replace(start, model=model, model_args=asdict(model_cfg))


def say(line, file=None):
    """Print a line in the master process only."""
    if os.environ.get("RANK") in (None, "", "0"):
        print(line, file=file)
