"""GPT-2's weights in and out, in Hugging Face's layout: config.json beside model.safetensors.

    model = GPT.from_pretrained("gpt2")        the hub: pip install huggingface_hub
    model = GPT.from_pretrained("folder")
    model.save_pretrained("folder")            transformers, llama.cpp's converter, ... open it

Names are the same there and here. Matrices lie the other way round: (in, out), as in GPT-2's own
TensorFlow code. The files are mapped into memory, and copied weight by weight: there is one copy.
"""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import torch

from internals.files import replacing
from model import GPTConfig

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
ALIASES = {"hidden_size": "n_embd", "max_position_embeddings": "n_positions",
           "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}


def find(name):
    """The folder `name`; or, for a name on the hub, the one to which its files were downloaded. The
    hub's cache and offline mode (HF_HUB_OFFLINE=1) are respected.

    Raises ImportError without huggingface_hub, OSError where the files cannot be had.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    described = ["config.json", "meta.json", "vocab.json", "tokenizer.json"]
    folder = Path(snapshot_download(name, allow_patterns=[*described, "model*.safetensors*"]))
    if not any(folder.glob("model*.safetensors")):  # older ones; most have both, and need one
        folder = Path(snapshot_download(name, allow_patterns=[*described, "pytorch_model*.bin*"]))
    return folder


def is_gpt2_vocabulary(folder, n):
    """Whether the n symbols of the model in a folder can be GPT-2's 50257, padded or not: models of
    other languages have as many, but other ones."""
    for file, *keys in ("vocab.json",), ("tokenizer.json", "model", "vocab"):
        if (folder / file).exists():
            table = json.loads((folder / file).read_text(encoding="utf-8"))
            for key in keys:
                table = table[key]
            return n >= 50257 and table.get("\u0120the") == 262  # "\u0120" stands for a space
    return 50257 <= n <= 50304


def load(cls, name):
    """A `cls` (GPT) from a folder, or from a name on the hub: see `find`.

    Raises ValueError, naming the setting, for what is no GPT-2, and where weights do not fit or are
    damaged; FileNotFoundError where a file is missing.
    """
    folder = find(name)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json, so no model in this layout")
    config = read_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    weights = dict(read_weights(folder))
    if config.tied and "transformer.wte.weight" in weights:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    try:
        return cls.from_weights(config, weights)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its config.json: "
                         f"{' '.join(str(error).split())}") from None


def save(model, folder, n_vocab=None, end_of_text=None):
    """Write `model` into `folder`, in float32, of its vocabulary the first n_vocab ids. Biases that
    it lacks become zeros. end_of_text: the id that begins and ends a document, if there is one.
    Raises ValueError naming a setting that GPT-2 does not have; nothing is written then."""
    from safetensors.torch import save_file

    n_vocab = n_vocab or model.config.vocab_size
    if n_vocab > model.config.vocab_size:
        raise ValueError(f"n_vocab={n_vocab} is over the vocab_size={model.config.vocab_size}")
    config = write_config(model.config, n_vocab)
    config |= {"bos_token_id": end_of_text, "eos_token_id": end_of_text}  # else 50256 would be it
    weights = {}
    for name, weight in model.state_dict().items():
        if name in ("transformer.wte.weight", "lm_head.weight"):
            weight = weight[:n_vocab]
        elif name.endswith(".weight") and name != "transformer.wpe.weight":
            weights.setdefault(name.removesuffix("weight") + "bias", weight.new_zeros(len(weight)))
        weights[name] = weight.t() if name.endswith(TRANSPOSED) else weight
    if model.config.tied:
        del weights["lm_head.weight"]
    weights = {name: weight.to("cpu", torch.float32).contiguous()
               for name, weight in weights.items()}
    with replacing(Path(folder, "config.json")) as temporary:
        temporary.write_text(json.dumps(config, indent=2), encoding="utf-8")
    with replacing(Path(folder, "model.safetensors")) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
        shutil.copymode(Path(folder, "config.json"), temporary)  # safetensors lets only its owner


def read_config(hf):
    """The GPTConfig of a config.json; ValueError naming the setting that makes it no GPT-2."""
    if not isinstance(hf, dict):
        raise ValueError("config.json is not a table of settings")
    hf = {ALIASES.get(name, name): value for name, value in hf.items()}
    act = hf.get("activation_function", "gelu_new")
    for name, is_gpt2 in {
            "model_type": hf.get("model_type") == "gpt2",
            "activation_function": act in ACTIVATIONS,
            "n_inner": hf.get("n_inner") in (None, 4 * hf.get("n_embd", 768)),
            "scale_attn_weights": hf.get("scale_attn_weights", True),
            "scale_attn_by_inverse_layer_idx": not hf.get("scale_attn_by_inverse_layer_idx"),
            "add_cross_attention": not hf.get("add_cross_attention"),
            "quantization_config": not hf.get("quantization_config")}.items():
        if not is_gpt2:
            raise ValueError(f"{name}={hf.get(name)} in config.json is not GPT-2's")
    return GPTConfig(
        block_size=hf.get("n_positions", 1024), vocab_size=hf.get("vocab_size", 50257),
        n_layer=hf.get("n_layer", 12), n_head=hf.get("n_head", 12), n_embd=hf.get("n_embd", 768),
        bias=True, act=ACTIVATIONS[act], norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        tied=hf.get("tie_word_embeddings", True))


def write_config(config, n_vocab):
    """The config.json of a GPTConfig; ValueError naming the setting that GPT-2 does not have."""
    acts = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    for name, choices in {"pos": ("learned",), "norm": ("layernorm",), "qk_norm": (False,),
                          "softcap": (0.0,), "act": tuple(acts)}.items():
        if (value := getattr(config, name)) not in choices:
            raise ValueError(f"{name}={value} is not GPT-2's, which has "
                             f"{' or '.join(map(str, choices))}: no program could run this model")
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "torch_dtype": "float32",
        "n_positions": config.block_size, "n_ctx": config.block_size,  # its name for llama.cpp
        "vocab_size": n_vocab, "n_layer": config.n_layer,
        "n_head": config.n_head, "n_embd": config.n_embd, "activation_function": acts[config.act],
        "layer_norm_epsilon": config.norm_eps, "tie_word_embeddings": config.tied,
        "resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": config.dropout,
    }


def read_weights(folder):
    """Yields (name, float32 tensor) for each weight in a folder, as our state_dict has them."""
    for file in "model.safetensors", "pytorch_model.bin":
        index = folder / f"{file}.index.json"
        if (folder / file).exists():
            files = {file}
        elif index.exists():
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        else:
            continue
        break
    else:
        raise FileNotFoundError(f"{folder} has no model.safetensors and no pytorch_model.bin")
    for path in (folder / file for file in sorted(files)):
        weights = open_weights(path)
        for name in list(weights):
            weight = weights.pop(name)  # its memory is free before the next one is copied
            if name.endswith((".attn.bias", ".attn.masked_bias")):
                continue  # the causal mask
            if not weight.is_floating_point():
                raise ValueError(f"{name} in {path} is {weight.dtype}: not the weights of a GPT-2")
            if name != "lm_head.weight":
                name = "transformer." + name.removeprefix("transformer.")
            weight = weight.t() if name.endswith(TRANSPOSED) else weight
            yield name, torch.empty(weight.shape).copy_(weight)


def open_weights(path):
    """The weights in a file by name, mapped into memory. Raises ValueError where it is damaged, or
    has more than tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}
        # files of before 2020 are no zip, and cannot be mapped
        return dict(torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path)))
    except pickle.UnpicklingError:
        raise ValueError(f"{path} is not a file of tensors; anything else could run code and is "
                         "not opened") from None
    except FileNotFoundError:
        raise
    except (SafetensorError, RuntimeError, EOFError, OSError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split()):.200})") from None
