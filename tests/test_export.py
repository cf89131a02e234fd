"""pytest tests/test_export.py - a trained model and its tokenizer, opened by transformers"""

import json

import export
import pytest
import torch
from helpers import AWKWARD, TINY_RUN, command_line
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import prepare
import sample
import train
from model import GPT, GPTConfig
from prepare import CharTokenizer, GPT2Tokenizer

MORE = ["\r\n\r\n \r", "🙂" * 50, " " * 5000, "1" * 999, "بِسْمِ ٱللَّهِ", "\u0301\u0301 \u0301",
        "ÅÅ ﬁ ﬃ", "'S 'T \u2019s", "\u200b\u200d\ufeff", "\U0010ffff \ue000", "\x7f\x1b[0m"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The folder of two datasets, of one text in many scripts: `chars` and `bpe`."""
    folder = tmp_path_factory.mktemp("data")
    text = "The quick  brown fox\tjumps.\n\nИ ещё: 日本語、e\u0301 👩‍👩‍👧!\n"
    for i in range(99):
        text += f"Line {i} is here, <unk> and </s>\n"
    (folder / "a.txt").write_text(text * 9, encoding="utf-8")
    for kind, name in ("char", "chars"), ("gpt2", "bpe"):
        prepare.main([str(folder / "a.txt"), f"--name={name}", f"--tokenizer={kind}",
                      f"--data_dir={folder}"])
    return folder


@pytest.fixture(scope="module")
def runs(texts, tmp_path_factory):
    """{dataset: (folder of a run, folder of its export)}, in GPT-2's shape without biases."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for name in "chars", "bpe":
        settings = TINY_RUN | {"dataset": name, "data_dir": texts, "out_dir": folder / name,
                               "block_size": 64, "max_iters": 10, "eval_iters": 1}
        train.main(command_line(settings))
        export.main([str(folder / name), str(folder / f"{name}-hf")])
        made[name] = folder / name, folder / f"{name}-hf"
    return made


def greedy(init_from, capsys, start, count=30, **settings):
    """How sample.py continues `start`, by greedy decoding."""
    capsys.readouterr()
    settings = {"start": start, "max_new_tokens": count, "temperature": 0, "num_samples": 1,
                "dtype": "float32", "device": "cpu"} | init_from
    sample.main(command_line(settings))
    return capsys.readouterr().out.removesuffix(f"\n{sample.SEPARATOR}\n")


@pytest.mark.parametrize("name, padded", [("chars", False), ("bpe", True)])
def test_transformers_opens_it_and_continues_as_we_do(runs, capsys, name, padded):
    run, folder = runs[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ours, our_tokenizer = sample.load_model("resume", run, torch.device("cpu"))
    n_vocab = our_tokenizer.n_vocab
    assert len(tokenizer) == model.config.vocab_size == n_vocab
    assert ours.config.vocab_size == (50304 if padded else n_vocab)
    prompt = "Line 7 is\nИ ещё: e\u0301"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids[0].tolist() == our_tokenizer.encode(prompt).tolist()
    logits, _ = ours(ids, ids)
    torch.testing.assert_close(model(ids).logits, logits[..., :n_vocab], rtol=0, atol=1e-4)
    written = pipeline("text-generation", model=str(folder))(prompt, max_new_tokens=30,
                                                             do_sample=False)
    assert written[0]["generated_text"] == greedy({"out_dir": run}, capsys, prompt)


# ---- tokenizers


@pytest.fixture(scope="module")
def both(runs):
    return AutoTokenizer.from_pretrained(runs["bpe"][1]), GPT2Tokenizer()


@pytest.mark.parametrize("text", [*AWKWARD, *MORE, "a<|endoftext|>b", " <|endoftext|> \n"],
                         ids=lambda text: repr(text)[:20])
def test_gpt2_ids_equal_those_of_transformers(both, text):
    theirs, ours = both
    ids = theirs(text).input_ids
    assert ids == ours.encode(text, special=True).tolist()
    assert theirs.decode(ids) == text


@pytest.mark.parametrize("text", AWKWARD + MORE, ids=lambda text: repr(text)[:20])
def test_characters_are_kept_one_by_one(tmp_path, text):
    ours = CharTokenizer("".join(sorted(set(text))))
    for name, content in export.tokenizer_files(ours, 64).items():
        (tmp_path / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs(text).input_ids
    assert ids == ours.encode(text).tolist() and theirs.decode(ids) == text
    with pytest.raises(Exception, match="Unk token `<unk>` not found"):
        theirs("ш")


def test_added_tokens_survive_fine_tuning_and_export(texts, tmp_path):
    added = {"<|user|>": 50257, "<|assistant|>": 50258}
    config = GPTConfig(vocab_size=50259, block_size=64, n_layer=1, n_head=1, n_embd=4, bias=True)
    GPT(config).save_pretrained(tmp_path / "chat")
    (tmp_path / "chat" / "added_tokens.json").write_text(json.dumps(added))
    settings = {"init_from": tmp_path / "chat", "dataset": "bpe", "data_dir": texts,
                "out_dir": tmp_path / "out", "max_iters": 1, "eval_iters": 1, "device": "cpu",
                "batch_size": 1, "gradient_accumulation_steps": 1, "sample_tokens": 0}
    train.main(command_line(settings))
    export.main([str(tmp_path / "out"), str(tmp_path / "hf")])
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert len(theirs) == model.config.vocab_size == 50259
    text = "<|user|>Who is it?<|assistant|>I<|endoftext|>"
    for init_from in tmp_path / "out", tmp_path / "hf":
        _, ours = sample.load_model(init_from)
        assert ours.encode(text, special=True).tolist() == theirs(text).input_ids
        assert ours.n_vocab == 50259 and theirs.decode(theirs(text).input_ids) == text


def test_nothing_is_overwritten(mistake, runs, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for folder in tmp_path / "hf", tmp_path / "file":
        assert "already exists" in mistake(export.main, runs["chars"][0], folder)
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["mine"]
    (tmp_path / "hf" / "mine").unlink()
    export.main([str(runs["chars"][0]), str(tmp_path / "hf")])  # an empty one is as good as none
    assert (tmp_path / "hf" / "config.json").exists()


def test_the_model_card_says_what_was_trained_and_the_config_where_a_text_ends(runs):
    _, folder = runs["chars"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "# chars-hf" in card
    assert "2 layers, 2 heads and 16 channels" in card and "- dataset: chars" in card
    assert "- training: 10 steps, 80 sequences" in card
    for name, end in ("chars", None), ("bpe", 50256):
        for file in "config.json", "generation_config.json":
            assert json.loads((runs[name][1] / file).read_text())["eos_token_id"] == end
