"""Export a trained model and its tokenizer in Hugging Face's format, which transformers can read.

    python tools/export.py out-plays plays-hf
    python tools/export.py out-shakespeare-char shakespeare-hf    nanoGPT checkpoints work too

The tool writes config.json, generation_config.json, model.safetensors (without the ids that pad the
vocabulary), the files of the tokenizer, README.md (a model card), and meta.json, from which
`--init_from=FOLDER` restores the tokenizer. It exports best.pt, or ckpt.pt if best.pt does not
exist; OUT_DIR can also be a .pt file.

FOLDER must be new or empty. It is written elsewhere and renamed, so it is never incomplete.
docs/ecosystem.md lists programs that can open it. Left out: models that differ from GPT-2, because
no other program could run them correctly.
"""

import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import configure
from internals import huggingface
from internals.checkpoint import first_undamaged
from internals.data.corpora import gpt2_tables
from internals.errors import UserError, one_line_errors
from prepare import END_OF_TEXT, CharTokenizer, tokenizer_from_meta

SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 200}  # the defaults of sample.py


@dataclass
class ExportConfig:
    """The settings of an export."""

    out_dir: str  # folder of a run, or a .pt file
    folder: str  # folder to write; it must be new or empty


def tokenizer_json(vocab, merges, added, **parts):
    """The content of a tokenizer.json (the `tokenizers` library): byte-pair encoding with these
    merges. added: {token: id} of special tokens. parts: other fields of the file."""
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": False, "vocab": vocab, "merges": merges}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
    added = [{"id": i, "content": token} | flags for token, i in added.items()]
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
               "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
               "model": model}
    return content | parts


def char_files(tokenizer):
    """The files of a char tokenizer, which is BPE without merges: every character is a token."""
    vocab = {char: i for i, char in enumerate(tokenizer.chars)}
    content = tokenizer_json(vocab, [], {}, decoder={"type": "Fuse"})
    # an unknown character must raise an error instead of being dropped; it does, because <unk>
    # is not in the vocabulary either
    content["model"]["unk_token"] = "<unk>"
    return {"tokenizer.json": content}


def gpt2_files(tokenizer):
    """The files of GPT-2's BPE: vocab.json and merges.txt as OpenAI published them, and both as one
    tokenizer.json. The tokens of a fine-tuned model are in the latter, and in added_tokens.json."""
    merges_path, vocab_path = gpt2_tables()
    vocab, merges = (path.read_text(encoding="utf-8") for path in (vocab_path, merges_path))
    pairs = [line.split(" ") for line in merges.split("\n")[1:] if line]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}
    added = tokenizer.meta.get("added", {})
    special = {END_OF_TEXT: tokenizer.end_of_text} | added
    content = tokenizer_json(json.loads(vocab), pairs, special, pre_tokenizer=level,
                             decoder=level, post_processor=level | {"trim_offsets": False})
    files = {"vocab.json": vocab, "merges.txt": merges, "tokenizer.json": content}
    if added:
        files["added_tokens.json"] = added
    return files


def tokenizer_files(tokenizer, block_size):
    """{name: content} of all files that describe the tokenizer."""
    is_char = isinstance(tokenizer, CharTokenizer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast" if is_char else "GPT2Tokenizer",
              "model_max_length": block_size, "clean_up_tokenization_spaces": False,
              "model_input_names": ["input_ids", "attention_mask"]}
    if not is_char:
        config |= {"add_prefix_space": False, "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT,
                   "unk_token": END_OF_TEXT}
    return (char_files(tokenizer) if is_char else gpt2_files(tokenizer)) | {
        "tokenizer_config.json": config,
        "meta.json": tokenizer.meta | {"vocab_size": tokenizer.n_vocab}}


def model_card(checkpoint, name):
    """The README.md of the exported folder: a model card from the contents of the checkpoint."""
    args, meta = checkpoint.model_args, checkpoint.meta
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "---",
        f"# {name}", "",
        f"A GPT-2 model with {args['n_layer']} layers, {args['n_head']} heads and {args['n_embd']} "
        f"channels, trained with glassGPT. Its context is {args['block_size']} tokens.", "",
        f"- tokenizer: {'characters' if meta['tokenizer'] == 'char' else 'GPT-2 BPE'}, "
        f"{meta['vocab_size']:,} tokens"]
    if checkpoint.config is not None:
        lines.append(f"- dataset: {checkpoint.config.get('dataset', 'unknown')}")
        lines.append(f"- training: {checkpoint.step:,} steps, {checkpoint.sequences:,} sequences")
    if math.isfinite(checkpoint.best_loss):
        lines.append(f"- lowest validation loss: {checkpoint.best_loss:.4f} nats per token, at "
                     f"step {checkpoint.best_step:,}")
    return "\n".join([*lines, ""])


def export(out_dir, folder):
    """Write the model of the run in out_dir into `folder`. Raises UserError if the model differs
    from GPT-2 (the message names the setting), or if the folder is not empty."""
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} already exists and is not an empty folder: give the name of a "
                        "new folder")
    checkpoint = first_undamaged(out_dir, "best.pt", "ckpt.pt")
    tokenizer = tokenizer_from_meta(checkpoint.meta)
    for char in checkpoint.meta.get("chars", ""):
        if "\ud800" <= char <= "\udfff":
            raise UserError(f"{out_dir} cannot be exported: its vocabulary has {char!r}, half of a "
                            "surrogate pair, which UTF-8 cannot contain: prepare the text again "
                            "with --errors=replace")
    end = tokenizer.end_of_text
    files = tokenizer_files(tokenizer, checkpoint.model_args["block_size"]) | {
        "generation_config.json": SAMPLING | {"bos_token_id": end, "eos_token_id": end},
        "README.md": model_card(checkpoint, folder.name)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    # the temporary folder is next to `folder`, on the same disk, so that the rename is atomic
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
        if folder.exists():  # an empty folder is kept: it may be the current folder of a shell
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
