"""A trained model and its tokenizer in Hugging Face's layout, which transformers and others read.

    python tools/export.py out-novel novel-hf
    python tools/export.py out-shakespeare-char shakespeare-hf    a nanoGPT checkpoint too

FOLDER gets config.json, model.safetensors (without the ids that pad the vocabulary), tokenizer.json
and tokenizer_config.json, of GPT-2's BPE vocab.json and merges.txt too, and meta.json, by which
`--init_from=FOLDER` finds the tokenizer here. best.pt is read if it is there, else ckpt.pt.

FOLDER must be new, or empty; it is there when it is whole. docs/ecosystem.md has what opens it.
Left out: models that are not of GPT-2's shape. No program could run them.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import Parser, UserError, one_line_errors
from internals.corpora import gpt2_tables
from prepare import END_OF_TEXT, CharTokenizer
from sample import load_model


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


def export(out_dir, folder):
    """Write the model of the run in out_dir into `folder`. Raises UserError, naming the setting,
    for one that is not of GPT-2's shape, and for a folder that has something in it."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already, and not empty: give the name of a new folder")
    model, tokenizer = load_model("resume", out_dir, torch.device("cpu"))
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary, tokenizer.n_vocab, tokenizer.end_of_text)
        for name, content in tokenizer_files(tokenizer, model.block_size).items():
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except ValueError as error:
        raise UserError(f"{out_dir} cannot be exported: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(argv=None):
    parser = Parser(description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, help="the folder of a run")
    parser.add_argument("folder", type=Path, help="the folder to write")
    args = parser.parse_args(argv)
    export(args.out_dir, args.folder)
    files = ", ".join(sorted(path.name for path in args.folder.iterdir()))
    print(f"{args.folder}: {files}")


if __name__ == "__main__":
    with one_line_errors():
        main()
