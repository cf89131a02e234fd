"""GPT-2 models in the format of Hugging Face's transformers: config.json and model.safetensors.

    config, weights = read("gpt2-hf")       a folder, or a name on the hub
    write("out-hf", config, weights)        transformers, llama.cpp's converter, ... can read it

config is a dict of GPTConfig's fields, weights a state_dict of GPT. Both formats use the same
parameter names, but the files store the matrices of linear layers transposed, (in, out), as in
GPT-2's TensorFlow code.

A folder can come from an untrusted source. Before memory is allocated for weights, config.json is
checked field by field, and the shapes of the weights are checked against it. Files are
memory-mapped and copied weight by weight, so loading needs memory for one copy of the weights.
"""

import json
import pickle
import shutil
import warnings
import zipfile
from dataclasses import fields
from pathlib import Path

import torch

from internals.errors import shown, warn
from internals.files import replacing
from model import GPT, GPTConfig

# what some names compute differs only by rounding
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
               "gelu_accurate": "gelu_tanh", "gelu": "gelu", "gelu_python": "gelu"}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
MASKS = (".attn.bias", ".attn.masked_bias")  # old files contain the causal mask
# for values (reinforcement learning), classes and choices; they do not affect the next token
OTHER_HEADS = ("v_head", "value_head", "score", "classifier", "multiple_choice_head", "qa_outputs")
ALIASES = {"hidden_size": "n_embd", "max_position_embeddings": "n_positions",
           "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
# fields of GPTConfig that can have any value in an exported model: config.json has them, zeros
# replace missing biases, and zero_init is about training only. The others must have their default
EXPORTED = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias",
            "norm_eps", "tied", "zero_init")
FLAGS = ("lstrip", "rstrip", "single_word")  # of added tokens
MAX_SIZE = 2**31  # of one dimension; whole shapes are compared with the weights in the file
GPT2_VOCAB = (50257, 50304)  # the vocabulary size of GPT-2, and the same padded to a multiple of 64


def find(name):
    """The folder `name`, or the folder to which a model from the hub is downloaded. The hub's cache
    and its offline mode (HF_HUB_OFFLINE=1) are used.

    Raises ImportError if huggingface_hub is missing, OSError if the files are not available.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    described = ["config.json", "meta.json", "vocab.json", "tokenizer.json", "added_tokens.json",
                 "tokenizer_config.json"]
    folder = Path(snapshot_download(name, allow_patterns=[*described, "model*.safetensors*"]))
    if not any(folder.glob("model*.safetensors")):  # some older models have only .bin files
        folder = Path(snapshot_download(name, allow_patterns=[*described, "pytorch_model*.bin*"]))
    return folder


def is_gpt2_vocabulary(folder, n):
    """Whether the model in a folder can have GPT-2's vocabulary. n: its vocabulary size. The size
    alone is not enough, because models for other languages often have as many tokens. Raises
    ValueError if a file is damaged."""
    for file, *keys in ("vocab.json",), ("tokenizer.json", "model", "vocab"):
        if (folder / file).exists():
            table = read_json(folder / file)
            for key in keys:
                table = table.get(key)
                if not isinstance(table, dict):
                    raise ValueError(f"{folder / file} has no vocabulary")
            least, _ = GPT2_VOCAB
            return n >= least and table.get("\u0120the") == 262  # "\u0120" encodes a space
    least, most = GPT2_VOCAB
    return least <= n <= most


def added_tokens(folder, vocab_size):
    """{token: id} of the tokens that a fine-tuned model has besides GPT-2's, in the order of their
    ids, from the files of its tokenizer. Tokens that the model has no embedding for are left out.
    Raises ValueError if the files are damaged, or if a token also takes the spaces around it."""
    contents = []
    for name in ("added_tokens.json", "tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        contents.append(read_json(path) if path.exists() else {})
    added, tokenizer, config = contents
    try:
        entries = list(tokenizer.get("added_tokens", []))
        for i, entry in config.get("added_tokens_decoder", {}).items():
            entries.append(entry | {"id": int(i)})
        added |= {entry["content"]: entry["id"] for entry in entries}
        added.pop("<|endoftext|>", None)
        added = {token: i for token, i in added.items() if i < vocab_size}
        flagged = [entry["content"] for entry in entries if any(map(entry.get, FLAGS))]
        added = dict(sorted(added.items(), key=lambda item: item[1]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the added tokens of the tokenizer in {folder} are damaged "
                         f"({type(error).__name__})") from None
    for token in flagged:
        if token in added:
            raise ValueError(f"the added token {shown(token)} has one of {', '.join(FLAGS)}, which "
                             "are not supported")
    return added


def read_json(path):
    """The dict in a JSON file. Raises ValueError if the file contains anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({' '.join(str(error).split()):.100})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not contain a JSON object")
    return content


# --------------------------------------------------------------------------------------------------
# Reading


def read(name):
    """Read a model from a folder or from the hub.

    Returns (config, weights): a dict of fields of GPTConfig, and float32 weights with the names and
    shapes of GPT's state_dict. Raises ValueError, which names the setting or the weight, if the
    model is not a GPT-2 model, or if its files are damaged or contradict each other, and
    FileNotFoundError if a file is missing.
    """
    folder = find(name)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json, so it is not a model in Hugging "
                                "Face's format")
    config = read_config(read_json(folder / "config.json"))
    paths = weight_files(folder)
    found = {name for path in paths for name in open_weights(path)}
    if config["n_layer"] > len(found):  # checked before a model of that size is built
        raise ValueError(f"n_layer={config['n_layer']} in config.json, but the files have "
                         f"{len(found)} weights")
    expected = weight_shapes(config | {"tied": False})
    weights, other_heads, head = {}, [], None
    for path in paths:
        mapped = open_weights(path)
        for stored_name in list(mapped):
            weight = mapped.pop(stored_name)  # popped, so its memory can be freed after the copy
            name = stored_name.removeprefix("transformer.")
            if stored_name.endswith(MASKS):
                continue
            if name.split(".")[0] in OTHER_HEADS:
                other_heads.append(stored_name)
                continue
            if stored_name != "lm_head.weight":
                name = "transformer." + name
            check_weight(weight, name, expected, f"{stored_name} in {path}")
            if name == "lm_head.weight":
                head = weight
                continue
            copy = torch.empty(expected[name])
            weights[name] = copy.copy_(weight.t() if name.endswith(TRANSPOSED) else weight)
    if other_heads:
        warn(f"{folder} has weights that the language model does not need, and that are "
             f"skipped: {', '.join(sorted(other_heads)):.200}")
    # of tied weights, a file can have both names, or either one
    embedding = weights.get("transformer.wte.weight")
    if config["tied"] and embedding is None and head is not None:
        weights["transformer.wte.weight"] = head.to(torch.float32, copy=True)
    elif head is not None and not (config["tied"] and torch.equal(head.float(), embedding)):
        weights["lm_head.weight"] = head.to(torch.float32, copy=True)
        config["tied"] = False
    for name in weight_shapes(config):
        if name not in weights:
            raise ValueError(f"the weight {name} is missing in {folder}")
    if config["tied"]:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return config, weights


def read_config(hf):
    """A config.json as a dict of GPTConfig's fields. Raises ValueError if a setting is invalid or
    changes what GPT-2 computes; the message names the setting."""
    architectures = hf.get("architectures")
    if isinstance(architectures, list) and str(architectures[:1]).startswith("['GPT2"):
        hf = {"model_type": "gpt2"} | hf
    if "model_type" not in hf:
        raise ValueError("config.json has no model_type, so it is not in Hugging Face's format")
    hf = {ALIASES.get(name, name): value for name, value in hf.items()}
    n_embd = size(hf, "n_embd", 768)
    act = hf.get("activation_function", "gelu_new")
    for name, allowed in [
        ("model_type", hf["model_type"] == "gpt2"),
        ("activation_function", isinstance(act, str) and act in ACTIVATIONS),
        ("n_inner", hf.get("n_inner") in (None, 4 * n_embd)),
        ("scale_attn_weights", hf.get("scale_attn_weights", True) is True),
        ("scale_attn_by_inverse_layer_idx", not hf.get("scale_attn_by_inverse_layer_idx")),
        ("add_cross_attention", not hf.get("add_cross_attention")),
        ("quantization_config", not hf.get("quantization_config")),
    ]:
        if not allowed:
            raise ValueError(f"{name}={shown(hf.get(name))} in config.json differs from GPT-2")
    norm_eps = hf.get("layer_norm_epsilon", 1e-5)
    if type(norm_eps) is not float or not 0 < norm_eps < 1:  # this refuses NaN too
        raise ValueError(f"layer_norm_epsilon={shown(norm_eps)} in config.json must be above 0 and "
                         "below 1")
    tied = hf.get("tie_word_embeddings", True)
    if type(tied) is not bool:
        raise ValueError(f"tie_word_embeddings={shown(tied)} in config.json must be true or false")
    config = {
        "block_size": size(hf, "n_positions", 1024), "vocab_size": size(hf, "vocab_size", 50257),
        "n_layer": size(hf, "n_layer", 12), "n_head": size(hf, "n_head", 12), "n_embd": n_embd,
        "bias": True, "act": ACTIVATIONS[act], "norm_eps": norm_eps, "tied": tied}
    if n_embd % config["n_head"]:
        raise ValueError(f"n_embd={n_embd} in config.json is not a multiple of "
                         f"n_head={config['n_head']}")
    return config


def size(hf, name, default):
    value = hf.get(name, default)
    if type(value) is not int or not 1 <= value <= MAX_SIZE:
        raise ValueError(f"{name}={shown(value)} in config.json must be a whole number, 1 or more")
    return value


def weight_shapes(config):
    """{name: shape} of the parameters of a GPT, in its order. config: a dict of GPTConfig's fields.
    The model is built on the meta device, which takes no memory for weights."""
    with torch.device("meta"):
        model = GPT(GPTConfig(**config))
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def check_weight(weight, name, expected, where):
    """Raises ValueError if a stored weight does not match config.json. where: its name in the file,
    and the file."""
    if name not in expected:
        raise ValueError(f"{where} is a weight that GPT-2 with this config.json does not have")
    if not weight.is_floating_point():
        raise ValueError(f"{where} has dtype {weight.dtype}, but GPT-2's weights are "
                         "floating-point numbers")
    shape = expected[name]
    if name.endswith(TRANSPOSED):
        shape = shape[::-1]
    if tuple(weight.shape) != shape or weight.layout != torch.strided:
        raise ValueError(f"{where} has the shape {tuple(weight.shape)}, but config.json says "
                         f"{shape}")
    if weight.untyped_storage().nbytes() < weight.numel() * weight.element_size():
        raise ValueError(f"{where} has more numbers than are stored")


def weight_files(folder):
    """The weight files of a folder: one file, or the shards that an index lists."""
    for file in "model.safetensors", "pytorch_model.bin":
        if (folder / file).exists():
            return [folder / file]
        index = folder / f"{file}.index.json"
        if index.exists():
            table = read_json(index).get("weight_map")
            if not isinstance(table, dict):
                raise ValueError(f"{index} has no weight_map")
            for name in table.values():
                if not isinstance(name, str) or Path(name).name != name or "\0" in name:
                    raise ValueError(f"{index} names the file {shown(name)}")
            return [folder / name for name in sorted(set(table.values()))]
    raise FileNotFoundError(f"{folder} has no model.safetensors and no pytorch_model.bin")


def open_weights(path):
    """{name: memory-mapped tensor} of a weight file. Raises ValueError if the file is damaged or
    contains anything but tensors."""
    from safetensors import safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}
        # files from before PyTorch 1.6 (2020) are not zip files and cannot be memory-mapped
        with warnings.catch_warnings(action="ignore"):  # about the protocol of other pickles
            weights = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise ValueError(f"{path} is not a file of tensors; anything else could run code and is "
                         "not opened") from None
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:  # damaged bytes can raise almost anything
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split()):.200})") from None
    if not isinstance(weights, dict) or not all(
            isinstance(name, str) and isinstance(weight, torch.Tensor)
            for name, weight in weights.items()):
        raise ValueError(f"{path} does not contain a dict of tensors")
    return weights


# --------------------------------------------------------------------------------------------------
# Writing


def write(folder, config, weights, n_vocab=None, end_of_text=None):
    """Write a model into `folder`, in float32.

    config: a dict of GPTConfig's fields. weights: GPT's state_dict; missing biases are written as
    zeros. n_vocab: only the first n_vocab ids of the vocabulary are written; None: all ids.
    end_of_text: the id of the token that begins and ends a document, or None.
    Raises ValueError, before anything is written, if GPT-2 does not have a setting.
    """
    from safetensors.torch import save_file

    n_vocab = n_vocab or config["vocab_size"]
    if n_vocab > config["vocab_size"]:
        raise ValueError(f"n_vocab={n_vocab} exceeds vocab_size={config['vocab_size']}")
    hf = write_config(config, n_vocab)
    # without these fields, transformers would use 50256
    hf |= {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    stored = {}
    for name, weight in weights.items():
        if name == "lm_head.weight" and config["tied"]:
            continue
        if name in ("transformer.wte.weight", "lm_head.weight"):
            weight = weight[:n_vocab]
        elif name.endswith(".weight") and name != "transformer.wpe.weight":
            bias = name.removesuffix("weight") + "bias"
            stored.setdefault(bias, weight.new_zeros(len(weight)))
        stored[name] = weight.t() if name.endswith(TRANSPOSED) else weight
    stored = {name: weight.to("cpu", torch.float32).contiguous()
              for name, weight in stored.items()}
    with replacing(Path(folder, "config.json")) as temporary:
        temporary.write_text(json.dumps(hf, indent=2), encoding="utf-8")
    with replacing(Path(folder, "model.safetensors")) as temporary:
        save_file(stored, temporary, metadata={"format": "pt"})
        # safetensors creates files that only their owner can read
        shutil.copymode(Path(folder, "config.json"), temporary)


def write_config(config, n_vocab):
    """The content of config.json for a dict of GPTConfig's fields. Raises ValueError if GPT-2 does
    not have a setting; the message names it."""
    acts = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
    for field in fields(GPTConfig):
        value = config[field.name]
        choices = [field.default]
        if field.name == "act":
            choices = list(acts)
        if field.name not in EXPORTED and value not in choices:
            raise ValueError(f"{field.name}={value} cannot be exported, because GPT-2 has no such "
                             f"setting: it must be {' or '.join(map(str, choices))}")
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "torch_dtype": "float32",
        "n_positions": config["block_size"],
        "n_ctx": config["block_size"],  # llama.cpp reads this old name
        "vocab_size": n_vocab, "n_layer": config["n_layer"], "n_head": config["n_head"],
        "n_embd": config["n_embd"], "activation_function": acts[config["act"]],
        "layer_norm_epsilon": config["norm_eps"], "tie_word_embeddings": config["tied"],
        "resid_pdrop": config["dropout"], "embd_pdrop": config["dropout"],
        "attn_pdrop": config["dropout"],
    }
