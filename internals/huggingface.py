"""GPT-2 models in the format of Hugging Face's transformers: config.json and model.safetensors.

    config, weights = read("gpt2-hf")       a folder, or a name on the hub
    write("out-hf", config, weights)        transformers, llama.cpp's converter, ... can read it

config is a dict of GPTConfig's fields, weights a state_dict of GPT. Both formats use the same
parameter names, but the files store the matrices of linear layers transposed, (in, out), as in
GPT-2's TensorFlow code.

A folder can come from an untrusted source: config.json is checked field by field, and the weights
are checked against it. Files are memory-mapped and copied weight by weight, so loading needs memory
for one copy of the weights.
"""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from internals.checks import dense, fitted
from internals.errors import reason, shown, warn
from internals.files import replacing
from model import GPTConfig

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

    files = ["config.json", "meta.json", "vocab.json", "tokenizer.json", "added_tokens.json",
             "tokenizer_config.json", "model*.safetensors"]
    return Path(snapshot_download(name, allow_patterns=files))


def is_gpt2_vocabulary(folder, n):
    """Whether the model in a folder can have GPT-2's vocabulary. n: its vocabulary size. The size
    alone is not enough, because models for other languages often have as many tokens."""
    least, most = GPT2_VOCAB
    if (folder / "vocab.json").exists():
        ids = read_json(folder / "vocab.json")
    elif (folder / "tokenizer.json").exists():
        ids = read_json(folder / "tokenizer.json")["model"]["vocab"]
    else:
        return least <= n <= most
    return n >= least and ids.get("\u0120the") == 262  # "\u0120" encodes a space


def added_tokens(folder, vocab_size):
    """{token: id} of the tokens that a fine-tuned model has besides GPT-2's, in the order of their
    ids, from the files of its tokenizer. Tokens that the model has no embedding for are left out.
    Raises ValueError if a token also takes the spaces around it."""
    contents = []
    for name in ("added_tokens.json", "tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        contents.append(read_json(path) if path.exists() else {})
    added, tokenizer, config = contents
    entries = list(tokenizer.get("added_tokens", []))
    for i, entry in config.get("added_tokens_decoder", {}).items():
        entries.append(entry | {"id": int(i)})
    for entry in entries:
        token = entry["content"]
        if token != "<|endoftext|>" and entry["id"] < vocab_size:
            added[token] = entry["id"]
            if any(map(entry.get, FLAGS)):
                raise ValueError(f"the added token {shown(token)} has one of {', '.join(FLAGS)}, "
                                 "which are not supported")
    added.pop("<|endoftext|>", None)
    by_id = sorted(added.items(), key=lambda item: item[1])
    return {token: i for token, i in by_id if i < vocab_size}


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
    model is not a GPT-2 model, or if its files contradict each other, and FileNotFoundError if a
    file is missing.
    """
    folder = find(name)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json, so it is not a model in Hugging "
                                "Face's format")
    config = read_config(read_json(folder / "config.json"))
    weights = {}
    skipped = []
    for path in weight_files(folder):
        mapped = open_weights(path)
        for stored_name in list(mapped):
            weight = mapped.pop(stored_name)  # popped, so its memory can be freed after the copy
            name = stored_name.removeprefix("transformer.")
            if name.endswith(MASKS):
                continue
            if name.split(".")[0] in OTHER_HEADS:
                skipped.append(stored_name)
                continue
            if stored_name != "lm_head.weight":
                name = "transformer." + name
            if name in weights:
                raise ValueError(f"{stored_name} is in two of its files: {folder} has the files of "
                                 "two downloads, so remove the old ones")
            weight = dense(weight, f"{stored_name} in {path}")
            if name.endswith(TRANSPOSED):
                weight = weight.t()
            weights[name] = torch.empty(weight.shape).copy_(weight)
    if skipped:
        warn(f"{folder} has weights that the language model does not need, and that are "
             f"skipped: {', '.join(sorted(skipped)):.200}")
    # of tied weights, a file can have both names, or either one
    embedding = weights.get("transformer.wte.weight")
    head = weights.get("lm_head.weight")
    if config["tied"] and embedding is None and head is not None:
        weights["transformer.wte.weight"] = head
    elif config["tied"] and head is not None and not torch.equal(head, embedding):
        config["tied"] = False
    try:
        return config, fitted(weights, GPTConfig(**config))
    except ValueError as error:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from None


def read_config(hf):
    """A config.json as a dict of GPTConfig's fields. Raises ValueError if a setting is invalid or
    changes what GPT-2 computes; the message names the setting."""
    if "model_type" not in hf:
        raise ValueError("config.json has no model_type, so it is not in Hugging Face's format")
    hf = {ALIASES.get(name, name): value for name, value in hf.items()}
    n_embd = size(hf, "n_embd", 768)
    act = hf.get("activation_function", "gelu_new")
    norm_eps = hf.get("layer_norm_epsilon", 1e-5)
    tied = hf.get("tie_word_embeddings", True)
    for name, allowed in [
        ("model_type", hf["model_type"] == "gpt2"),
        ("activation_function", isinstance(act, str) and act in ACTIVATIONS),
        ("n_inner", hf.get("n_inner") in (None, 4 * n_embd)),
        ("scale_attn_weights", hf.get("scale_attn_weights", True) is True),
        ("scale_attn_by_inverse_layer_idx", not hf.get("scale_attn_by_inverse_layer_idx")),
        ("add_cross_attention", not hf.get("add_cross_attention")),
        ("quantization_config", not hf.get("quantization_config")),
        ("layer_norm_epsilon", type(norm_eps) is float and 0 < norm_eps < 1),
        ("tie_word_embeddings", type(tied) is bool),
    ]:
        if not allowed:
            raise ValueError(f"{name}={shown(hf.get(name))} in config.json differs from GPT-2")
    return {
        "block_size": size(hf, "n_positions", 1024), "vocab_size": size(hf, "vocab_size", 50257),
        "n_layer": size(hf, "n_layer", 12), "n_head": size(hf, "n_head", 12), "n_embd": n_embd,
        "bias": True, "act": ACTIVATIONS[act], "norm_eps": norm_eps, "tied": tied}


def size(hf, name, default):
    value = hf.get(name, default)
    if type(value) is not int or not 1 <= value <= MAX_SIZE:
        raise ValueError(f"{name}={shown(value)} in config.json must be a whole number, 1 or more")
    return value


def weight_files(folder):
    """The weight files of a folder: one file, or shards."""
    path = folder / "model.safetensors"
    if path.exists():
        return [path]
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    if not shards:
        raise FileNotFoundError(f"{path} does not exist: if there is a pytorch_model.bin, which "
                                "could contain code, let transformers convert it: from_pretrained "
                                "reads it, and save_pretrained writes model.safetensors")
    return shards


def open_weights(path):
    """{name: memory-mapped tensor} of a safetensors file. Raises ValueError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes can raise almost anything
        raise ValueError(f"{path} is damaged ({reason(error)})") from None


# --------------------------------------------------------------------------------------------------
# Writing


def write(folder, config, weights, n_vocab=None, end_of_text=None):
    """Write a model into `folder`, in float32.

    config: a dict of GPTConfig's fields. weights: GPT's state_dict; missing biases are written as
    zeros. n_vocab: only the first n_vocab ids of the vocabulary are written; None: all ids.
    end_of_text: the id of the token that begins and ends a document, or None.
    Raises ValueError, before anything is written, if GPT-2 does not have a setting.
    """
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
