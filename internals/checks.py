"""The checks of a checkpoint: is it a model that this program can build, and can the run resume?

Sizes are checked against the weights in the same file before anything is built. So a damaged or
malicious file causes a one-line error, and an absurd size never allocates memory. Sampling and new
runs need only the model, its model_args and meta. If another program wrote the rest, the Checkpoint
says in `not_resumable` why the run cannot be resumed.
"""

import math
import re
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

from configurator import build, convert
from internals.dataset import GPT2_META, check_meta, read_meta
from internals.errors import shown
from internals.files import DATA
from internals.huggingface import weight_shapes
from model import GPTConfig

# settings that a resumed run does not inherit
NOT_INHERITED = ("out_dir", "init_from", "eval_only", "dry_run")
# in addition, settings that are not inherited from nanoGPT, because they were chosen for its GPU
OF_ONE_MACHINE = ("device", "dtype", "compile", "backend")
SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
MAX_BLOCK_SIZE = 2**20  # with RoPE, the shape of no weight depends on block_size
MAX_COUNT = 2**53  # of steps and sequences
# added to the names of weights by DDP and torch.compile; the latter also to those of submodules
PREFIXES = re.compile(r"^((module|_orig_mod)\.)+|\b_orig_mod\.")
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
MAX_PADDED = 51_200  # the largest vocabulary that can be GPT-2's: padded to a multiple of 1,024


@dataclass
class Checkpoint:
    """The state of a run or, if config or optimizer is None, only the weights of a model."""

    model: dict | None  # {name: float32 tensor}, the state_dict of GPT; None: a new model
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
    restarts_best: bool = False  # not on disk: best_loss starts over
    written_at: list | None = None  # not on disk: checkpoint.written_at before it was read


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
        settings = replace(settings, act="gelu_tanh")  # nanoGPT's GELU before 2023-05-17
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
    parameters = weight_shapes(asdict(settings))
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
    from_nanogpt = "meta" not in content
    left_out = NOT_INHERITED
    if from_nanogpt:
        left_out += OF_ONE_MACHINE
    best_loss = plain(content.get("best_val_loss"))
    # nanoGPT evaluates random sequences, so its losses are not comparable
    if from_nanogpt or type(best_loss) not in (int, float) or math.isnan(best_loss):
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
