"""What a run or a sample starts from, and the settings that result.

    starting_point   what `train.py --init_from=...` starts from, and its settings
    fit_to_data      the settings of the model that fit to the dataset
    to_sample_from   what sample.py and the tools load
    read_model       the weights of a model, from a folder, a file, or Hugging Face's hub
"""

import difflib
import math
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

from configurator import build
from internals import huggingface
from internals.chat import chat_format
from internals.checkpoint import first_undamaged, no_checkpoint, written_at
from internals.checks import NOT_INHERITED, Checkpoint
from internals.dataset import GPT2_META, check_meta, read_meta
from internals.errors import UserError, described, say, warn
from model import GPTConfig

HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")  # no OWNER/ before them
DRY_STEPS = 3  # of a dry run
RECORDED_DRY_STEPS = 6  # a GPU records in the fourth one (internals/graphs.py)


# --------------------------------------------------------------------------------------------------
# The starting point of a run


def starting_point(given, schema, own=()):
    """Load what `init_from` names, and combine the settings with it.

    given: {name: value} of the settings that are set explicitly. schema: TrainConfig. own: names of
    settings that a run to resume must have, else another program wrote it, and that cannot change.
    Returns (cfg, model_cfg, start): a TrainConfig, a GPTConfig, and a Checkpoint, whose model is
    None for "scratch". cfg.init_from is then "scratch", "resume" or a model, never "auto". Raises
    UserError if a setting is invalid or does not fit the checkpoint.
    """
    name = given.get("out_dir", schema.out_dir)
    out_dir = Path(name)
    if not name or (out_dir.exists() and not out_dir.is_dir()):  # Path("") is the current folder
        raise UserError(f"out_dir={name} is not a folder: give the name of one")
    before = written_at(out_dir)
    init_from = given.get("init_from", schema.init_from)
    data_dir = given.get("data_dir")
    if init_from == "auto":
        exists = any((out_dir / name).exists() for name in ("ckpt.pt", "best.pt"))
        init_from = "resume" if exists else "scratch"
    given = given | {"init_from": init_from}
    if init_from == "scratch":
        start = Checkpoint(None, {}, {})
        cfg, model_cfg = build(schema, given), build(GPTConfig, given)
    elif init_from == "resume":
        start = first_undamaged(out_dir, "ckpt.pt", "best.pt", data_dir=data_dir)
        cfg = resumed_settings(schema, given, start, own)
        model_cfg = model_settings(start, given)
    else:
        cfg = build(schema, given)
        start = read_model(init_from, data_dir=data_dir)
        model_cfg = model_settings(start, given)
        start = cropped(start, model_cfg)
    start.written_at = before
    return cfg, model_cfg, start


def resumed_settings(schema, given, start, own):
    """The TrainConfig of a resumed run: the settings of the checkpoint, overridden by those given
    now. Prints what changes. Raises UserError if another program wrote the checkpoint, if a setting
    cannot change that way, or if the settings together are invalid."""
    if start.config is None:
        raise UserError(start.not_resumable)
    for name in own:
        if name not in start.config:
            raise UserError(f"the run to resume has no setting {name}, so another program "
                            "wrote it: resume it with that one, or start a new run from it with "
                            "--init_from= and its folder, and another --out_dir")
    types = {setting.name: setting.type for setting in fields(schema)}
    of_model = {setting.name for setting in fields(GPTConfig)}
    unknown = sorted(map(str, start.config.keys() - types.keys() - of_model))
    if unknown:  # nanoGPT has the settings of the model here too
        warn("this version does not know these settings of the checkpoint, and ignores them: "
             f"{', '.join(unknown):.200}")
    fixed = {"optimizer": start.config.get("optimizer", schema.optimizer),
             "block_size": start.model_args["block_size"]}
    fixed |= {name: start.config[name] for name in own}
    for name, before in fixed.items():
        if given.get(name, before) != before:
            raise UserError(f"{name}={given[name]}, but the checkpoint to resume has "
                            f"{before or 'none'}: leave it out, or start a new run from the "
                            "checkpoint by setting --init_from= to its folder")

    try:
        cfg = build(schema, start.config | given)
    except UserError as error:
        raise UserError(f"{error}; a setting that is not given is that of the checkpoint to resume"
                        ) from None

    before = {setting.name: setting.default for setting in fields(schema)} | start.config
    before["dropout"] = start.model_args["dropout"]
    for name, value in given.items():
        old = before.get(name, value)
        if str(value) != str(old) and name not in NOT_INHERITED:
            say(f"{name} changes from {old!s:.50} to {value}")
    return cfg


def model_settings(start, given):
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


def fit_to_data(model_cfg, data, cfg, start, given):
    """Returns model_cfg; for a new model, with the vocabulary size of the dataset.

    start: the Checkpoint that training starts from; its model is None for a new model.
    given: {name: value} of the settings that are set explicitly.
    If evaluations use other sequences than before, start.best_loss starts over; if the model has
    added tokens, data.meta gets them. Raises UserError if the dataset, the settings and the
    checkpoint do not fit together.
    """
    T = model_cfg.block_size
    if cfg.batch_size * cfg.gradient_accumulation_steps > 2**20:
        raise UserError(f"batch_size={cfg.batch_size} x gradient_accumulation_steps="
                        f"{cfg.gradient_accumulation_steps} must be at most 1,048,576")
    if T % cfg.align:
        raise UserError(f"block_size={T} must be a multiple of align={cfg.align}; otherwise only "
                        "the first sequence of an epoch would be aligned")
    for split, ids in (("train", data.train), ("val", data.val)):
        if len(ids) <= T:
            raise UserError(f"block_size={T:,} is too long for {data.folder / split}.bin "
                            f"({len(ids):,} tokens); use a smaller block_size or more text")
    if start.model is None and "vocab_size" not in given:
        model_cfg = replace(model_cfg, vocab_size=data.padded_vocab_size)
    if start.model is not None and not data.same_tokenizer(start.meta):
        if "none" in (start.meta["tokenizer"], data.meta["tokenizer"]):
            raise UserError(f"{data.folder} has another vocabulary than the model to start from")
        if chat_format(start.meta):
            raise UserError("the model was trained to chat, and no dataset has the tokens of its "
                            "chat: start from the model that stages/sft.py started from")
        name = "gpt2" if start.meta.get("tokenizer") == "gpt2" else "NAME, the model's dataset"
        raise UserError(f"{data.folder} has a different tokenizer than the model to start from: "
                        f"prepare the text with --tokenizer={name}")
    if model_cfg.vocab_size < data.vocab_size:
        raise UserError(f"vocab_size={model_cfg.vocab_size} is less than the {data.vocab_size} "
                        f"tokens in the vocabulary of {data.folder}: leave it out")
    if "added" in start.meta:  # the new checkpoints keep them
        added = {name: start.meta[name] for name in ("added", "vocab_size")}
        data.meta = data.meta | added
    if start.config is not None and not (cfg.eval_only or cfg.dry_run):
        compare_evaluations(start, data, cfg, T)
    return model_cfg


def compare_evaluations(start, data, cfg, block_size):
    """A resumed run that evaluates other sequences than before cannot compare their losses with its
    lowest loss so far. It then starts over, and start.restarts_best is set."""
    try:
        old = build(type(cfg), start.config)
    except UserError:  # a setting that is invalid today is replaced by one that is given now
        return
    n = (len(data.val) - 1) // block_size  # an evaluation has at most that many sequences
    before = min(n, old.eval_iters * old.batch_size)
    now = min(n, cfg.eval_iters * cfg.batch_size)
    same_text = old.dataset == cfg.dataset
    if "val_sha256" in start.meta:
        same_text = start.meta["val_sha256"] == data.meta.get("val_sha256")
    if before == now and same_text:
        return
    changed = f"{now:,} sequences instead of {before:,}" if same_text else "another text"
    say(f"evaluations now use {changed}, so best.pt will be the best model from step "
        f"{start.step:,} on; an earlier one is kept as best-until-{start.step}.pt")
    start.restarts_best = True
    start.best_loss = math.inf
    start.best_step = start.step


def dry_run_settings(cfg, run):
    """The settings of a dry run: a few steps, and evaluations of one batch without samples."""
    steps = RECORDED_DRY_STEPS if run.recorded else DRY_STEPS
    last_step = min(run.step + steps, cfg.max_iters)
    return replace(cfg, max_iters=last_step, eval_interval=10**9, eval_iters=1, log_interval=1,
                   sample_tokens=0)


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
    model, for error messages. data_dir: see checkpoint.read. Raises UserError if the model does
    not exist or cannot be read.
    """
    name = str(name)
    if not name.strip():
        raise UserError(f"init_from= is empty: it must be {', '.join(other_values)}, or a model")
    folder = Path(name)
    names = ("best.pt", "ckpt.pt")
    if folder.suffix == ".pt" and not folder.exists():
        raise UserError(f"init_from={name}: the file does not exist")
    if folder.is_file() and folder.suffix in (".safetensors", ".bin"):
        raise UserError(f"init_from={name} is a file of weights: give its folder, which also has "
                        "the config.json")
    if folder.is_file() or any((folder / file).exists() for file in names):
        found = first_undamaged(folder, *names, data_dir=data_dir)
        return Checkpoint(found.model, found.model_args, found.meta)
    if (folder / "metrics.jsonl").exists() or (folder / "previous-1").exists():
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
        local = f"{name.split('/')[-1]}-hf"
        raise UserError(f"init_from={name} cannot be loaded: {described(error):.200}. If this "
                        f"machine has no network, run `hf download {name} --local-dir {local}` on "
                        f"another one, copy that folder, and give --init_from={local}") from None
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
    except Exception as error:  # values of a wrong type can raise almost anything
        raise UserError(f"init_from={name} cannot be loaded: {described(error):.300}") from None
    if meta is None:
        raise UserError(f"init_from={name} has a vocabulary of {n} tokens that is not GPT-2's: it "
                        "needs a meta.json of its tokenizer in the same folder")
    if meta["vocab_size"] > n:
        raise UserError(f"init_from={name} has {n} tokens, but its meta.json has "
                        f"{meta['vocab_size']}")
    return Checkpoint(weights, asdict(build(GPTConfig, config)), meta)
