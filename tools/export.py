"""A trained model and its tokenizer in Hugging Face's layout, which transformers and others read.

    python tools/export.py out-novel novel-hf
    python tools/export.py out-shakespeare-char shakespeare-hf    a nanoGPT checkpoint too

FOLDER gets config.json, generation_config.json, model.safetensors (without the ids that pad the
vocabulary), the tokenizer's files, README.md (a model card with what the checkpoint knows), and
meta.json, by which `--init_from=FOLDER` finds the tokenizer again. The model is best.pt, or ckpt.pt
if there is no best.pt; a .pt file can be given too.

FOLDER must be new or empty, and appears only when it is complete. docs/ecosystem.md lists what can
open it. Left out: models that are not of GPT-2's shape, because no program could run them.
"""

import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import UserError, configure, one_line_errors
from internals import huggingface
from internals.checkpoint import first_undamaged
from internals.corpora import gpt2_tables
from prepare import END_OF_TEXT, CharTokenizer, tokenizer_from_meta

SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 200}  # the defaults of sample.py


@dataclass
class ExportConfig:
    """The settings of an export."""

    out_dir: str  # folder of a run, or a .pt file
    folder: str  # folder to write: new or empty


def tokenizer_json(vocab, merges, added, **parts):
    """A tokenizer.json of the `tokenizers` library: byte-pair encoding by these merges."""
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": False, "vocab": vocab, "merges": merges}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
    added = [{"id": vocab[token], "content": token} | flags for token in added]
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
             "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
             "model": model}
    return whole | parts


def char_files(tokenizer):
    """The files of a char tokenizer: BPE without merges takes every character by itself."""
    vocab = {char: i for i, char in enumerate(tokenizer.chars)}
    whole = tokenizer_json(vocab, [], [], decoder={"type": "Fuse"})
    # a character that is not among them: an error, not silence; for this is not among them either
    whole["model"]["unk_token"] = "<unk>"
    return {"tokenizer.json": whole}


def gpt2_files():
    """The files of GPT-2's BPE: as OpenAI published them, and both in one."""
    merges_path, vocab_path = gpt2_tables()
    vocab, merges = (path.read_text(encoding="utf-8") for path in (vocab_path, merges_path))
    pairs = [line.split(" ") for line in merges.split("\n")[1:] if line]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}
    whole = tokenizer_json(json.loads(vocab), pairs, [END_OF_TEXT], pre_tokenizer=level,
                           decoder=level, post_processor=level | {"trim_offsets": False})
    return {"vocab.json": vocab, "merges.txt": merges, "tokenizer.json": whole}


def tokenizer_files(tokenizer, block_size):
    """{name: what is in it} of all files that describe the tokenizer."""
    is_char = isinstance(tokenizer, CharTokenizer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast" if is_char else "GPT2Tokenizer",
              "model_max_length": block_size, "clean_up_tokenization_spaces": False,
              "model_input_names": ["input_ids", "attention_mask"]}
    if not is_char:
        config |= {"add_prefix_space": False, "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT,
                   "unk_token": END_OF_TEXT}
    return (char_files(tokenizer) if is_char else gpt2_files()) | {
        "tokenizer_config.json": config,
        "meta.json": tokenizer.meta | {"vocab_size": tokenizer.n_vocab}}


def model_card(checkpoint, name):
    """The README.md of the exported folder: what the checkpoint knows about the model."""
    args, meta = checkpoint.model_args, checkpoint.meta
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "---",
        f"# {name}", "",
        f"A GPT-2 with {args['n_layer']} layers, {args['n_head']} heads and {args['n_embd']} "
        f"channels, trained with glassGPT. It sees {args['block_size']} tokens at a time.", "",
        f"- tokenizer: {'characters' if meta['tokenizer'] == 'char' else 'GPT-2 BPE'}, "
        f"{meta['vocab_size']:,} tokens"]
    if checkpoint.config is not None:
        lines.append(f"- dataset: {checkpoint.config.get('dataset', 'unknown')}")
        lines.append(f"- training: {checkpoint.step:,} steps, {checkpoint.sequences:,} sequences")
    if math.isfinite(checkpoint.best_loss):
        lines.append(f"- validation loss: {checkpoint.best_loss:.4f} nats per token, the lowest of "
                     f"the run, at step {checkpoint.best_step:,}")
    return "\n".join([*lines, ""])


def export(out_dir, folder):
    """Write the model of the run in out_dir into `folder`. Raises UserError, naming the setting,
    for a model that is not of GPT-2's shape, and for a folder that is not empty."""
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already, and not empty: give the name of a new folder")
    checkpoint = first_undamaged(out_dir, "best.pt", "ckpt.pt")
    tokenizer = tokenizer_from_meta(checkpoint.meta)
    end = tokenizer.end_of_text
    files = tokenizer_files(tokenizer, checkpoint.model_args["block_size"]) | {
        "generation_config.json": SAMPLING | {"bos_token_id": end, "eos_token_id": end},
        "README.md": model_card(checkpoint, folder.name)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    # a folder with a new name, beside `folder`, so that the rename is one step on one disk
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as unique:
        temporary = Path(unique, "complete")
        temporary.mkdir()
        try:
            huggingface.write(temporary, checkpoint.model_args, checkpoint.model,
                              tokenizer.n_vocab, end)
        except ValueError as error:
            raise UserError(f"{out_dir} cannot be exported: {error}") from None
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")
        if folder.exists():  # and is empty: it may be the current folder of a shell, so it stays
            for path in temporary.iterdir():
                path.rename(folder / path.name)
        else:
            temporary.rename(folder)


def main(argv=None):
    _, cfg = configure(__doc__, ExportConfig, argv=argv, positional=["out_dir", "folder"])
    folder = Path(cfg.folder)
    export(Path(cfg.out_dir), folder)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    with one_line_errors():
        main()
