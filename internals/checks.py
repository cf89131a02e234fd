"""The checks of a checkpoint: is it a model that this program can build, and can the run resume?

A GPT on the meta device, which takes no memory, says which weights there must be. So a damaged or
malicious file causes a one-line error, and an absurd size never allocates memory. Sampling and new
runs need only the model, its model_args and meta. If another program wrote the rest, the Checkpoint
says in `not_resumable` why the run cannot be resumed. The functions raise ValueError or UserError
with the reason; values of a wrong type can raise other exceptions, which checkpoint.py reports too.
"""

import math
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

from configurator import build
from internals.dataset import GPT2_META, check_meta, read_meta
from internals.errors import described, shown
from internals.files import DATA
from model import GPT, GPTConfig

# settings that a resumed run does not inherit
NOT_INHERITED = ("out_dir", "init_from", "eval_only", "dry_run")
# in addition, settings that are not inherited from nanoGPT, because they were chosen for its GPU
OF_ONE_MACHINE = ("device", "dtype", "compile", "backend")
SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
MAX_BLOCK_SIZE = 2**20  # with RoPE, the shape of no weight depends on block_size
MAX_COUNT = 2**53  # of steps and sequences
# added to the names of weights by DDP and torch.compile; the latter also to those of submodules
PREFIXES = re.compile(r"^((module|_orig_mod)\.)+|\b_orig_mod\.")
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
# The model, and what its tokens mean


def checked(content, path, data_dir):
    """The dict in the file `path` as a Checkpoint."""
    from_nanogpt = "meta" not in content
    args = dict(content["model_args"])
    if from_nanogpt and "act" in args:  # a setting that nanoGPT does not have
        raise ValueError("it has no meta, which says what its tokens mean")
    settings = checked_settings(args, from_nanogpt)
    weights = fitted(renamed(content["model"], from_nanogpt), settings)
    if from_nanogpt and ("bias" not in args or is_sorted(content.get("optimizer"), settings)):
        settings = replace(settings, act="gelu_tanh")  # nanoGPT's GELU before 2023-05-17
    if from_nanogpt:
        meta = nanogpt_meta(path.parent, content.get("config"), settings.vocab_size, data_dir)
    else:
        meta = check_meta(content["meta"])
    if meta["vocab_size"] > settings.vocab_size:
        raise ValueError(f"its tokenizer has {meta['vocab_size']} tokens, but its model has "
                         f"{settings.vocab_size}")
    checkpoint = Checkpoint(weights, asdict(settings), meta)
    try:
        return with_run(checkpoint, content, from_nanogpt)
    except Exception as error:  # another program can have stored anything
        return replace(checkpoint, not_resumable=(
            f"{path} cannot be resumed: {described(error)}; to start a new run from its weights, "
            f"set --init_from={path}"))


def checked_settings(model_args, from_nanogpt):
    """The GPTConfig. Fields that an older checkpoint lacks get their default values, which describe
    the model as it was before these fields existed."""
    for name in SIZES:
        if name not in model_args:
            raise ValueError(f"model_args has no {name}")
    known = [setting.name for setting in fields(GPTConfig)]
    for name in model_args:
        if name not in known:
            raise ValueError(f"this model.py has no setting {shown(name)}, which is in its "
                             "model_args")
    if from_nanogpt:
        # the exact GELU, which nanoGPT uses; and biases, as it was before 2023-01-27
        model_args = {"bias": True} | model_args | {"act": "gelu"}
    settings = build(GPTConfig, model_args)
    if settings.block_size > MAX_BLOCK_SIZE:
        raise ValueError(f"block_size={settings.block_size} must be at most {MAX_BLOCK_SIZE}")
    return settings


def renamed(weights, from_nanogpt):
    """The weights without what DDP and torch.compile add to their names, and without the causal
    masks that old files of nanoGPT have."""
    result = {}
    for name, weight in weights.items():
        name = PREFIXES.sub("", name)
        if name in result:
            raise ValueError(f"it has the weight {shown(name)} twice")
        if not (from_nanogpt and name.endswith(".attn.bias")):
            result[name] = weight
    return result


def fitted(weights, config):
    """Weights {name: tensor} as a state_dict of GPT in float32. Raises ValueError unless they have
    the names and shapes that a model of this GPTConfig has. NaN and infinity are allowed, because a
    run that diverged has them."""
    n_layer = len({name.split(".")[2] for name in weights if ".h." in name})
    if config.n_layer != n_layer:  # checked before a model of that size is built
        raise ValueError(f"n_layer={config.n_layer}, but it has weights of {n_layer} layers")
    weights = {name: dense(weight, name) for name, weight in weights.items()}
    embedding = weights.get("transformer.wte.weight")
    if config.tied and embedding is not None:
        head = weights.setdefault("lm_head.weight", embedding)
        if head.data_ptr() != embedding.data_ptr() and not torch.equal(head, embedding):
            raise ValueError("lm_head.weight differs from the token embedding it is tied to")
    try:
        return GPT.from_weights(config, weights).state_dict()
    except RuntimeError as error:  # its lines are what differs
        raise ValueError(f"{str(error).splitlines()[-1].strip():.200}") from None


def dense(tensor, name):
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


def is_sorted(optimizer, settings):
    """Whether an optimizer is one of nanoGPT before 2023-05-06, which sorted the parameters by
    name: the embedding of tokens then comes after the four matrices of each block, and wpe."""
    with suppress(AttributeError, IndexError, KeyError, TypeError):
        moment = optimizer["state"][4 * settings.n_layer + 1]["exp_avg"]
        return moment.shape == (settings.vocab_size, settings.n_embd)
    return False


def nanogpt_meta(folder, config, vocab_size, data_dir):
    """The meta of a nanoGPT checkpoint in `folder`: the meta file of its dataset, which is searched
    next to the checkpoint, in data_dir, in nanoGPT's data folder, and in ours. If none exists, it
    is that of GPT-2."""
    places = [folder]
    if config and config.get("dataset"):
        dataset = config["dataset"]
        places += [folder.parent / "data" / dataset, DATA / dataset]
        if data_dir:
            places.insert(1, Path(data_dir) / dataset)
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
# The rest of a run


def with_run(checkpoint, content, from_nanogpt):
    """The Checkpoint with what a resume needs besides the model. Optimizers.load_state_dict checks
    the moments."""
    config = content.get("config")
    states = content.get("optimizer")
    if isinstance(states, dict):
        states = [states]  # nanoGPT has one optimizer
    if not config or not states:
        raise ValueError("it has no optimizer state")
    step = count(content["iter_num"])
    if step > 0 and not all(state["state"] for state in states):
        raise ValueError("it has no optimizer state")
    if "sequences" in content:
        sequences = count(content["sequences"])
    else:  # nanoGPT does not store it, but all steps had the same number of sequences
        per_step = config["batch_size"] * config.get("gradient_accumulation_steps", 1)
        sequences = count(step * per_step)
    left_out = NOT_INHERITED
    scaler = dict(content.get("scaler", {}))
    expected = torch.amp.GradScaler("cpu").state_dict()
    has_numbers = all(type(value) in (int, float) for value in scaler.values())
    if scaler and (scaler.keys() != expected.keys() or not has_numbers):
        raise ValueError("its scaler is not the state of a gradient scaler")
    best_loss = float(content["best_val_loss"])
    if from_nanogpt:
        left_out += OF_ONE_MACHINE
    # nanoGPT evaluates random sequences, so its losses are not comparable
    if from_nanogpt or math.isnan(best_loss):
        best_loss = math.inf
    return replace(
        checkpoint, optimizer=states, scaler=scaler, step=step, sequences=sequences,
        config={name: value for name, value in config.items() if name not in left_out},
        best_loss=best_loss, best_step=count(content.get("best_step", step)))


def count(value):
    """A number of steps or sequences."""
    if not 0 <= value <= MAX_COUNT or value != int(value):
        raise ValueError(f"it has {shown(value)} steps or sequences, which must be a whole number, "
                         f"at least 0 and at most {MAX_COUNT}")
    return int(value)
