"""Checkpoints and snapshots: write them, and read them safely.

On disk a checkpoint is one dict of tensors and plain containers, written by torch.save:

    model                     state_dict of the raw model (not compiled, no DDP), GPT-2's names
    model_args                the fields of GPTConfig
    meta                      the meta.json of the dataset, which says what the token ids mean
and, to resume the run:
    config                    the fields of TrainConfig, except those of one call (NOT_INHERITED)
    optimizer                 a list of state dicts: AdamW, then Muon if it is used
    scaler                    the state of the gradient scaler; {} if the dtype is not float16
    iter_num, sequences       the number of steps and of training sequences so far
    best_val_loss, best_step  the lowest validation loss so far, and its step

nanoGPT's checkpoints, which have one optimizer state dict and no meta, can be read too. Reading a
file runs no code from it, and its checksums are verified. Left out: sharded checkpoints.
"""

import itertools
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save

from configurator import build
from internals import huggingface
from internals.checks import NOT_INHERITED, checked, fitted
from internals.errors import UserError, described, reason, warn
from internals.files import replacing
from model import GPTConfig

# --------------------------------------------------------------------------------------------------
# Writing


def write(checkpoint, path):
    """Write a Checkpoint. If that fails, for example because the disk is full, an existing file at
    `path` is unchanged, and an OSError is raised."""
    content = {"model": checkpoint.model, "model_args": checkpoint.model_args,
               "meta": checkpoint.meta}
    if checkpoint.config is not None and checkpoint.optimizer is not None:
        kept = {k: v for k, v in checkpoint.config.items() if k not in NOT_INHERITED}
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
        raise OSError(cause.errno, cause.strerror, str(path)) from None


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


def written_at(out_dir):
    """When the checkpoints of a run were written; a None for each that does not exist."""
    times = []
    for name in ("ckpt.pt", "best.pt"):
        path = Path(out_dir, name)
        times.append(path.stat().st_mtime_ns if path.exists() else None)
    return times


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
    except Exception as error:  # values of a wrong type can raise almost anything
        raise UserError(f"{path} cannot be used: {described(error)}") from None


def load(path):
    """The tensors and plain containers that torch.save wrote to a file. Raises UserError."""
    try:
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


def no_checkpoint(out_dir):
    """The error message that out_dir has no checkpoint. It names folders that have one, such as
    out_dir/previous-1, where train.py moves the files of an earlier run."""
    found = [*out_dir.glob("previous-*/*.pt"), *out_dir.parent.glob("out*/*.pt")]
    found.sort(key=lambda path: path.stat().st_mtime)
    folders = list(dict.fromkeys(str(path.parent) for path in found))
    hint = f"; there is one in {', '.join(folders[-3:])}" if folders else ""
    return f"{out_dir} has no checkpoint: train first, or give another folder{hint}"


# --------------------------------------------------------------------------------------------------
# Snapshots: the weights alone, on a log scale of steps. Nothing resumes from them.


def is_snapshot_step(step):
    """Whether `step` is 0, 5, 10, 20, 40, 80, ...: a model learns most in its first steps."""
    fives, rest = divmod(step, 5)
    is_power_of_two = fives & (fives - 1) == 0  # or 0
    return rest == 0 and is_power_of_two


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
        return fitted(huggingface.open_weights(path), build(GPTConfig, model_args))
    except ValueError as error:
        raise UserError(f"{path} is not a snapshot of this run: {error}") from None
