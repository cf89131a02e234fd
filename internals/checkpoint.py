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

Reading a file runs no code from it, and its checksums are verified. Sizes are checked against the
weights in the same file before anything is built. So a damaged or malicious file causes a one-line
error, and an absurd size never allocates memory. The functions differ in what they read:

    read             one checkpoint file
    first_undamaged  the first undamaged checkpoint in the folder of a run
    read_model       only the weights: from a folder, a file, a Hugging Face folder, or its hub
    read_snapshot    only the weights: at one step of a run
    starting_point   what `train.py --init_from=...` starts from, and the resulting settings

Sampling and new runs need only the model, its model_args and meta. If another program wrote the
rest, the Checkpoint says in `not_resumable` why the run cannot be resumed.

Left out: sharded checkpoints, and conversions between optimizers.
"""

import difflib
import itertools
import math
import pickle
import re
import shutil
import warnings
import zipfile
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors.torch import save

from configurator import UserError, build, check_limit, convert, reason
from internals import huggingface
from internals.dataset import GPT2_META, NUMPY_NUMBERS, StoredDtype, check_meta, read_meta
from internals.errors import say, warn
from internals.files import DATA, replacing
from internals.recipes import origin
from internals.usage import shown
from model import GPT, GPTConfig

# settings that a resumed run does not inherit
OF_ONE_CALL = ("out_dir", "init_from", "eval_only", "dry_run")
# in addition, settings that are not inherited from nanoGPT, because they were chosen for its GPU
OF_ONE_MACHINE = ("device", "dtype", "compile", "backend")
SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
MAX_BLOCK_SIZE = 2**20  # with RoPE, the shape of no weight depends on block_size
MAX_COUNT = 2**53  # of steps and sequences
# added to the names of weights by DDP and torch.compile; the latter also to those of submodules
PREFIXES = re.compile(r"^((module|_orig_mod)\.)+|\b_orig_mod\.")
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
MAX_PADDED = 51_200  # the largest vocabulary that can be GPT-2's: padded to a multiple of 1,024
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
    not_resumable: str = ""  # the reason and what to do, if config is None


# --------------------------------------------------------------------------------------------------
# Writing


class NotSaved(OSError):
    """A checkpoint could not be written."""


def write(checkpoint, path):
    """Write a Checkpoint. If that fails, for example because the disk is full, an existing file at
    `path` is unchanged, and NotSaved is raised."""
    content = {"model": checkpoint.model, "model_args": checkpoint.model_args,
               "meta": checkpoint.meta}
    if checkpoint.config is not None and checkpoint.optimizer is not None:
        kept = {k: v for k, v in checkpoint.config.items() if k not in OF_ONE_CALL}
        content |= {
            "config": kept, "optimizer": checkpoint.optimizer, "scaler": checkpoint.scaler,
            "iter_num": checkpoint.step, "sequences": checkpoint.sequences,
            "best_val_loss": checkpoint.best_loss, "best_step": checkpoint.best_step}
    path = Path(path)
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(content, file)
    except (RuntimeError, OSError) as error:
        # on a full disk, torch raises a RuntimeError while it handles Python's OSError
        cause = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise NotSaved(cause.errno, cause.strerror, str(path)) from None


# --------------------------------------------------------------------------------------------------
# Reading


def first_undamaged(out_dir, *names, data_dir=None):
    """The Checkpoint in the first of the files `names` in out_dir that exists and is undamaged.
    Damaged files are reported on stderr. out_dir can also be a checkpoint file. data_dir: see
    `read`. Raises UserError if no undamaged checkpoint exists."""
    out_dir = Path(out_dir)
    if out_dir.is_file():
        return read(out_dir, data_dir)
    paths = [out_dir / name for name in names if (out_dir / name).exists()]
    if not paths:
        raise UserError(no_checkpoint(out_dir))
    for path, other in itertools.pairwise(paths):
        try:
            return read(path, data_dir)
        except UserError as error:
            warn(f"{error}; using {other} instead")
    return read(paths[-1], data_dir)


def read(path, data_dir=None):
    """The Checkpoint in a file, with its tensors on the CPU. data_dir: a folder of datasets, where
    the vocabulary of a nanoGPT checkpoint is searched too. Raises UserError if the file is damaged,
    has no model that this program can build, or contains anything but tensors and plain values."""
    path = Path(path)
    content = load(path)
    if not isinstance(content, dict) or not {"model", "model_args"} <= content.keys():
        raise UserError(f"{path} is not a checkpoint of train.py")
    try:
        return checked(content, path, data_dir)
    except (ValueError, OverflowError, UserError) as error:
        raise UserError(f"{path} cannot be used: {error}") from None


def load(path):
    """The tensors and plain containers that torch.save wrote to a file. Raises UserError."""
    try:
        if zipfile.is_zipfile(path):  # files from before PyTorch 1.6 have no checksums
            check_zip(path)
        allowed = [(stand_in, name) for name, stand_in in NUMPY_NUMBERS.items()]
        with (torch.serialization.safe_globals([*allowed, StoredDtype]),
              warnings.catch_warnings(action="ignore")):  # about the protocol of other pickles
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
# The model, and what its tokens mean. Each function raises ValueError or UserError with the reason
# if a field is not what the rest of the program expects.


def checked(content, path, data_dir):
    """The dict in the file `path` as a Checkpoint."""
    from_nanogpt = "meta" not in content
    args = content["model_args"]
    if not isinstance(args, dict):
        raise ValueError(f"model_args must be a dict, not {shown(args)}")
    if from_nanogpt and "act" in args:  # a setting that nanoGPT does not have
        raise ValueError("it has no meta, which says what its tokens mean")
    config = {}
    if isinstance(content.get("config"), dict):
        config = {name: plain(value) for name, value in content["config"].items()}
    settings = checked_settings(args, from_nanogpt)
    weights, parameters = checked_weights(content["model"], settings, from_nanogpt)
    if from_nanogpt and ("bias" not in args or in_old_order(content.get("optimizer"), parameters)):
        settings = replace(settings, act="gelu_tanh")  # nanoGPT before 2023-05-17
    if from_nanogpt:
        meta = nanogpt_meta(path.parent, config, settings.vocab_size, data_dir)
    else:
        meta = checked_meta(content["meta"])
    if meta["vocab_size"] > settings.vocab_size:
        raise ValueError(f"its tokenizer has {meta['vocab_size']} tokens, but its model has "
                         f"{settings.vocab_size}")
    checkpoint = Checkpoint(weights, asdict(settings), meta)
    try:
        return with_run(checkpoint, content, config, parameters)
    except (ValueError, OverflowError) as error:  # a whole number can be too large for a float
        return replace(checkpoint, not_resumable=(
            f"{path} cannot be resumed: {error}; to start a new run from its weights, set "
            f"--init_from={path}"))


def plain(value):
    """A tensor with one number as that number; any other value as it is."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.device.type == "cpu":
        return value.item()
    return value


def checked_settings(model_args, from_nanogpt):
    """The GPTConfig. Fields that an older checkpoint lacks get their default values, which describe
    the model as it was before these fields existed."""
    model_args = {name: plain(value) for name, value in model_args.items()}
    if from_nanogpt:
        model_args["act"] = "gelu"  # the exact GELU, which nanoGPT uses
        model_args.setdefault("bias", True)  # as it was before 2023-01-27
    types = {setting.name: setting.type for setting in fields(GPTConfig)}
    for name in model_args:
        if name not in types:
            raise ValueError(f"this model.py has no setting {shown(name)}, which is in its "
                             "model_args")
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
        name = PREFIXES.sub("", name)
        if from_nanogpt and name.endswith(".attn.bias"):
            continue  # the causal mask of nanoGPT, which is not a parameter
        if name in named:
            raise ValueError(f"it has the weight {shown(name)} twice")
        named[name] = checked_tensor(weight, name)

    n_layer = len({name.split(".")[2] for name in named if ".h." in name})
    if settings.n_layer != n_layer:  # checked before a model of that size is built
        raise ValueError(f"n_layer={settings.n_layer}, but it has weights of {n_layer} layers")
    check_shape(named, "transformer.wte.weight", (settings.vocab_size, settings.n_embd))
    with torch.device("meta"):  # takes no memory
        model = GPT(settings)
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, shape in parameters.items():
        check_shape(named, name, shape)
    result = {name: named.pop(name) for name in parameters}
    if settings.tied:
        head = named.pop("lm_head.weight", None)
        embedding = result["transformer.wte.weight"]
        if head is not None and head.data_ptr() != embedding.data_ptr() and not torch.equal(
                head, embedding):
            raise ValueError("lm_head.weight differs from the token embedding it is tied to")
        result["lm_head.weight"] = embedding
    if named:
        raise ValueError(f"this model.py does not have the weights {listed(named)}")
    return result, parameters


def check_shape(named, name, shape):
    if name not in named:
        raise ValueError(f"it lacks the weight {name}, which this model.py has")
    if tuple(named[name].shape) != shape:
        raise ValueError(f"the weight {name} has the shape {tuple(named[name].shape)}, not {shape}")


def listed(names):
    """The first three of some names, and how many there are."""
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shown, names[:3])) + more


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


def checked_meta(meta):
    """The meta of a checkpoint of this program."""
    if not isinstance(meta, dict):
        raise ValueError(f"meta must be a dict, not {shown(meta)}")
    if "vocab_size" not in meta:  # older files lack it; the tokenizer determines it
        size = GPT2_META["vocab_size"]
        if isinstance(meta.get("chars"), str):
            size = len(meta["chars"])
        meta = meta | {"vocab_size": size}
    return check_meta(meta)


def nanogpt_meta(folder, config, vocab_size, data_dir):
    """The meta of a nanoGPT checkpoint in `folder`: the meta file of its dataset, which is searched
    next to the checkpoint, in data_dir, in nanoGPT's data folder, and in ours. If none exists, it
    is that of GPT-2."""
    dataset = str(config.get("dataset", "")).replace("\0", "")
    places = [folder]
    if dataset and data_dir:
        places.append(Path(data_dir) / dataset)
    if dataset:
        places += [folder.parent / "data" / dataset, DATA / dataset]
    meta = None
    for place in places:
        meta = meta or read_meta(place)
    if meta is None:
        meta = GPT2_META
        fits = meta["vocab_size"] <= vocab_size <= MAX_PADDED
    elif meta["tokenizer"] == "char":
        fits = meta["vocab_size"] == vocab_size
    else:
        fits = meta["vocab_size"] <= vocab_size
    if not fits:
        raise ValueError(f"the vocabulary of its {vocab_size} tokens is not known: copy the "
                         f"meta.pkl of its dataset into {folder}")
    return meta


# --------------------------------------------------------------------------------------------------
# The rest of a run. Each function raises ValueError with the reason if it cannot be resumed.


def with_run(checkpoint, content, config, parameters):
    """The Checkpoint with what a resume needs besides the model. parameters: {name: shape}."""
    if not config or content.get("optimizer") is None:
        raise ValueError("it has no optimizer state")
    step = count(content, "iter_num")
    kind = config.get("optimizer", "adamw")
    states = checked_optimizer(content["optimizer"], parameters, kind, step)
    scaler = content.get("scaler", {})
    if not isinstance(scaler, dict) or scaler.keys() not in (set(), SCALER) or not all(
            type(value) in (int, float) for value in scaler.values()):
        raise ValueError("its scaler is not the state of a gradient scaler")
    if "sequences" in content:
        sequences = count(content, "sequences")
    else:  # older files lack it, but all their steps had the same number of sequences
        per_step = count({"gradient_accumulation_steps": 1} | config, "gradient_accumulation_steps")
        sequences = step * count(config, "batch_size") * per_step
    left_out = OF_ONE_CALL
    if "meta" not in content:
        left_out += OF_ONE_MACHINE
    best_loss = plain(content.get("best_val_loss"))
    if type(best_loss) not in (int, float) or math.isnan(best_loss):
        best_loss = math.inf
    best_step = step
    if "best_step" in content:  # nanoGPT does not store it
        best_step = count(content, "best_step")
    return replace(
        checkpoint, optimizer=states, scaler=scaler, step=step, sequences=sequences,
        config={name: value for name, value in config.items() if name not in left_out},
        best_loss=best_loss, best_step=best_step)


def count(values, name):
    """A number of steps or sequences. Other programs store it as a float or a tensor, too."""
    value = plain(values.get(name))
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{name}={shown(value)} must be a whole number, at least 0 and at most "
                         f"{MAX_COUNT}")
    return value


def checked_optimizer(states, parameters, kind, step):
    """The list of the optimizer's state dicts.

    parameters: {name: shape} in the model's order. kind: "adamw" or "muon". step: the number of
    steps so far; before the first step, the optimizer has no state.
    """
    if isinstance(states, dict):
        states = [states]  # nanoGPT has one optimizer
    expected = expected_states(parameters, kind)
    found = [checked_moments(each) for each in states] if isinstance(states, list) else []
    shapes = [shapes_of(state) for state in found]
    fits = shapes == expected
    if step == 0 and not any(shapes):
        fits = len(shapes) == len(expected)
    if not fits:
        raise ValueError(f"its optimizer is not {kind} as this version has it, or has other "
                         "parameters")
    return [{"state": state, "param_groups": each.get("param_groups", [])}
            for each, state in zip(states, found, strict=True)]


def expected_states(parameters, kind):
    """What the state dicts of AdamW and Muon in internals/optimizers.py contain:
    [{index: {name: shape}}, ...]."""
    in_blocks, embedding, matrices, vectors = [], [], [], []
    for name, shape in parameters.items():
        if kind == "muon" and ".h." in name and len(shape) == 2:
            in_blocks.append(shape)
        elif name == "transformer.wte.weight":
            embedding.append(shape)
        elif len(shape) >= 2:
            matrices.append(shape)
        else:
            vectors.append(shape)
    expected = [adamw_states(embedding + matrices + vectors)]
    if kind == "muon":  # matrices of one shape share a momentum, stored at the index of the first
        muon, index = {}, 0
        for shape, number in Counter(in_blocks).items():
            muon[index] = {"momentum": (number, *shape)}
            index += number
        expected.append(muon)
    return expected


def adamw_states(shapes):
    """{index: {name: shape}} of AdamW's state for parameters of these shapes."""
    return {i: {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
            for i, shape in enumerate(shapes)}


def checked_moments(state_dict):
    """{index: {name: float32 tensor}} in the state dict of an optimizer."""
    state = state_dict.get("state") if isinstance(state_dict, dict) else None
    if not isinstance(state, dict):
        raise ValueError("its optimizer has no state")
    result = {}
    for index, moments in state.items():
        if not isinstance(moments, dict):
            raise ValueError(f"the optimizer's state of parameter {shown(index)} is not a dict")
        result[index] = {}
        for name, moment in moments.items():
            if type(moment) in (int, float):  # older versions of PyTorch store `step` so
                moment = torch.tensor(float(moment))
            result[index][name] = checked_tensor(moment, name)
    return result


def shapes_of(state):
    """{index: {name: shape}} of {index: {name: tensor}}."""
    shapes = {}
    for index, moments in state.items():
        shapes[index] = {name: tuple(moment.shape) for name, moment in moments.items()}
    return shapes


def in_old_order(states, parameters):
    """Whether an optimizer is one of nanoGPT before 2023-05-06: AdamW with the parameters in the
    order of their names."""
    if not isinstance(states, dict):
        return False
    shapes = [parameters[name] for name in sorted(parameters)]
    shapes.sort(key=lambda shape: len(shape) < 2)
    try:
        return shapes_of(states["state"]) == adamw_states(shapes)
    except (AttributeError, KeyError, TypeError):
        return False


# --------------------------------------------------------------------------------------------------
# The weights of a model, from a folder, a file or the hub


def to_sample_from(init_from, out_dir):
    """The Checkpoint that sample.py and the tools load: the best one of the run in out_dir if
    init_from is "resume", else the model that init_from names."""
    if init_from == "resume":
        return first_undamaged(out_dir, "best.pt", "ckpt.pt")
    return read_model(init_from, ("resume",))


def read_model(name, other_values=("scratch", "resume", "auto"), data_dir=None):
    """The weights of a model, as a Checkpoint without config and optimizer.

    name: the folder of a run (best.pt, else ckpt.pt), a .pt file, a folder in Hugging Face's
    format, or a name on its hub, such as "gpt2". other_values: what init_from can be besides a
    model, for error messages. data_dir: see `read`. Raises UserError if the model does not exist or
    is not a GPT-2 model.
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
        found = first_undamaged(folder, *names, data_dir=data_dir)
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
        meta, n = read_meta(folder), config["vocab_size"]
        is_gpt2 = meta is None and huggingface.is_gpt2_vocabulary(folder, n)
        if is_gpt2:
            meta = GPT2_META
            added = huggingface.added_tokens(folder, n)
            if added:
                size = meta["vocab_size"] + len(added)
                meta = check_meta(meta | {"added": added, "vocab_size": size})
    except (ValueError, OSError) as error:
        raise UserError(f"init_from={name} cannot be loaded: {reason(error):.300}") from None
    if meta is None:
        raise UserError(f"init_from={name} has a vocabulary of {n} tokens that is not GPT-2's: it "
                        "needs a meta.json of its tokenizer in the same folder")
    if meta is not None and meta["vocab_size"] > n:
        raise UserError(f"init_from={name} has {n} tokens, but its meta.json has "
                        f"{meta['vocab_size']}")
    return Checkpoint(weights, asdict(build(GPTConfig, config)), meta)


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


def keep_best(out_dir, step):
    """Copy best.pt to best-until-<step>.pt, because the run will replace it without comparing."""
    path = Path(out_dir, "best.pt")
    if path.exists():
        with replacing(path.with_name(f"best-until-{step}.pt")) as temporary:
            shutil.copyfile(path, temporary)


def remove_snapshots_after(out_dir, step):
    """Remove the snapshots of later steps. A run that was killed, or that resumes from an earlier
    checkpoint, will train these steps again, perhaps with other settings."""
    for number, path in snapshot_paths(out_dir).items():
        if number > step:
            path.unlink()


# --------------------------------------------------------------------------------------------------
# The starting point of a run


def starting_point(given, schema, schedule):
    """Load what `init_from` names, and combine the settings with it.

    given: {name: value} of the settings that are set explicitly. schema: TrainConfig. schedule: the
    function learning_rate(step, cfg). Returns (cfg, model_cfg, start): a TrainConfig, a GPTConfig,
    and a Checkpoint, whose model is None for "scratch". cfg.init_from is then "scratch", "resume"
    or a model, never "auto". Raises UserError if a setting is invalid or does not fit the
    checkpoint.
    """
    named = given.get("out_dir", schema.out_dir)
    out_dir = Path(named)
    if not named:  # Path("") is the current folder
        raise UserError("out_dir= must be the name of a folder")
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"out_dir={out_dir} is a file: give the name of a folder, such as "
                        f"{out_dir.parent}")
    init_from, data_dir = given.get("init_from", schema.init_from), given.get("data_dir")
    if init_from == "auto":
        exists = any((out_dir / name).exists() for name in ("ckpt.pt", "best.pt"))
        init_from = "resume" if exists else "scratch"
    given = given | {"init_from": init_from}
    if init_from == "scratch":
        start = Checkpoint(None, {}, {})
        cfg, model_cfg = build(schema, given), build(GPTConfig, given)
    elif init_from == "resume":
        start = first_undamaged(out_dir, "ckpt.pt", "best.pt", data_dir=data_dir)
        cfg = resumed(schema, given, start, schedule)
        model_cfg = started(start, given)
    else:
        cfg = build(schema, given)
        start = read_model(init_from, data_dir=data_dir)
        model_cfg = started(start, given)
        start = cropped(start, model_cfg)
    say_schedule(cfg, start.step, schedule)
    return cfg, model_cfg, start


def resumed(schema, given, start, schedule):
    """The TrainConfig of a resumed run: the settings of the checkpoint, overridden by those given
    now. Prints what changes. Raises UserError if the optimizer cannot change that way, or if the
    settings together are invalid."""
    if start.config is None:
        raise UserError(start.not_resumable)
    types = {setting.name: setting.type for setting in fields(schema)}
    of_model = {setting.name for setting in fields(GPTConfig)}
    unknown = sorted(map(str, start.config.keys() - types.keys() - of_model))
    if unknown:  # nanoGPT has the settings of the model here too
        warn("this version does not know these settings of the checkpoint, and ignores them: "
             f"{', '.join(unknown):.200}")
    fixed = {"optimizer": start.config.get("optimizer", schema.optimizer),
             "block_size": start.model_args["block_size"]}
    for name, before in fixed.items():
        if given.get(name, before) != before:
            raise UserError(f"{origin(name, given)}, but the checkpoint to resume has {before}: "
                            "leave it out, or start a new run from the checkpoint by setting "
                            "--init_from= to its folder")

    merged = dict(given)
    for setting in fields(schema):
        if setting.name in start.config and setting.name not in given:
            merged[setting.name] = stored_setting(setting, start.config[setting.name])
    decays = merged.get("decay_lr", schema.decay_lr)
    peak = merged.get("learning_rate", schema.learning_rate)
    lowest = merged.get("min_lr")
    if decays and lowest is not None and lowest > peak and "min_lr" not in given:
        say(f"min_lr={lowest} of the checkpoint is above learning_rate={peak}, and is lowered to "
            "it")
        merged["min_lr"] = peak
    cfg = build(schema, merged)

    before = {setting.name: setting.default for setting in fields(schema)} | start.config
    before["dropout"] = start.model_args["dropout"]
    for name, value in given.items():
        old = before.get(name, value)
        changes = isinstance(old, torch.Tensor) or value != old
        if changes and name not in OF_ONE_CALL:
            say(f"{name} changes from {old!s:.50} to {value}")
    with suppress(UserError):  # old settings that are invalid today have no schedule to compare
        say_if_it_rises(cfg, build(schema, start.config), start.step, schedule)
    return cfg


def stored_setting(setting, value):
    """The value of a setting in the checkpoint to resume. setting: a dataclass field. Raises
    UserError, which names the setting, if the value is invalid."""
    source = f"in the checkpoint to resume: set --{setting.name}"
    value = convert(setting.name, value, setting.type, source)
    if "\0" in str(value):  # functions on such a path raise ValueError
        raise UserError(f"{setting.name} has a null character ({source})")
    try:
        check_limit(setting, value)
    except ValueError as error:
        raise UserError(f"{error} ({source})") from None
    return value


def say_if_it_rises(new, old, step, schedule):
    """Say that the learning rate of the next step is higher than by the old settings, if that is
    so because the schedule is longer. new, old: TrainConfigs."""
    longer = new.decay_lr and new.decay_steps > old.decay_steps
    share = schedule(step, new) / new.learning_rate
    old_share = schedule(step, old) / old.learning_rate
    if longer and share > old_share + 0.01:
        say("the learning rate rises again, because the schedule is longer: it now decays until "
            f"step {new.decay_steps:,} instead of {old.decay_steps:,}")


def say_schedule(cfg, first_step, schedule):
    """Say if the warmup is shortened, or if some of the steps have a learning rate of 0."""
    if not cfg.decay_lr or cfg.eval_only or first_step >= cfg.max_iters:
        return
    if cfg.warmup_iters is not None and cfg.warmup_steps < cfg.warmup_iters:
        say(f"warmup_iters={cfg.warmup_iters} is too long for this run: it is shortened to "
            f"{cfg.warmup_steps}")
    if cfg.decay_steps < cfg.max_iters and schedule(cfg.decay_steps, cfg) == 0:
        say(f"the learning rate is 0 from step {max(first_step, cfg.decay_steps)} on: set "
            f"--lr_decay_iters={cfg.max_iters}")


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
            raise UserError(f"{origin(name, given)}, but the model to start from has {value}: "
                            "leave it out, or start a new model with --init_from=scratch")
    return build(GPTConfig, model_args | new)


def cropped(start, model_cfg):
    """The Checkpoint with only the first block_size position embeddings. `start` is not changed."""
    name = "transformer.wpe.weight"
    model = dict(start.model)
    if name in model:
        model[name] = model[name][:model_cfg.block_size].clone()  # a copy, so the rest can be freed
    return replace(start, model=model, model_args=asdict(model_cfg))
