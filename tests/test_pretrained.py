"""pytest tests/test_pretrained.py - GPT-2's weights, from and to Hugging Face, to the last digit"""

import json
import sys
from dataclasses import replace
from unittest import mock

import pytest
import torch
from helpers import GPT2_TINY, MODERN, NANO_TINY, equal
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import sample
import train
from internals import huggingface, starting
from model import GPT

TINY = {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}


def theirs(**changes):
    """A GPT-2 of transformers, all of its weights drawn wide."""
    return widened(GPT2LMHeadModel(GPT2Config(**TINY | changes)).eval())


def with_config(folder, **changes):
    """Change a config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_weights(folder, **changes):
    """Add, replace, or with None remove weights of a model.safetensors."""
    weights = load_file(folder / "model.safetensors") | changes
    weights = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(weights, folder / "model.safetensors")


def widened(model):
    """No weight idle, and logits of several units: a wrong activation or epsilon shows in them."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        gain = "ln_" in name and name.endswith("weight")
        p.data.normal_(float(gain), 0.2, generator=generator)
    return model


def saved(model, folder, weights=None, **options):
    """`model` as transformers saves it; or its config.json, and `weights` as model.safetensors."""
    if weights is None:
        model.save_pretrained(folder, **options)
    else:
        model.config.architectures = ["GPT2LMHeadModel"]
        model.config.save_pretrained(folder)
        save_file(weights, folder / "model.safetensors")
    return folder


def tokens(*shape, vocab_size=61):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1))


def assert_same(ours, model):
    """Logits and gradients to 1e-4, and 50 greedy tokens."""
    idx = tokens(3, min(14, ours.block_size - 1), vocab_size=ours.config.vocab_size)
    x = idx[:, :-1].contiguous()
    y = idx[:, 1:].contiguous()
    logits, loss = ours(x, y)
    expected = model(x, labels=x).logits
    assert expected.abs().max() > 1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), y.flatten()).backward()
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    for name, p in ours.named_parameters():
        grad = grads[name].t() if name.endswith(huggingface.TRANSPOSED) else grads[name]
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-4, msg=name)
    count = min(50, ours.block_size - x.shape[1])
    if count > 0:
        expected = model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=count,
                                  do_sample=False, eos_token_id=None, pad_token_id=0)
        assert torch.equal(ours.generate(x, count, temperature=0), expected)


# ---- from transformers


@pytest.mark.parametrize("changes", [
    {"n_layer": 4, "n_head": 8, "n_embd": 64}, {"n_positions": 8, "n_inner": 128},
    {"layer_norm_epsilon": 1e-2}, {"tie_word_embeddings": False}, {"activation_function": "gelu"},
], ids=str)
def test_logits_gradients_and_text_equal_hugging_faces(tmp_path, changes):
    model = theirs(**changes)
    assert_same(GPT.from_pretrained(saved(model, tmp_path)), model)


def test_files_of_every_kind_hold_the_same_model(tmp_path, capsys):
    """Heads that the language model does not need are skipped with a line."""
    model = theirs()
    state = model.state_dict()
    del state["lm_head.weight"]  # safetensors stores shared memory once
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril(),
             "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    bare = {name.removeprefix("transformer."): weight for name, weight in state.items()}
    heads = {"score.weight": torch.ones(3), "transformer.v_head.summary.weight": torch.ones(3)}
    folders = [
        saved(model, tmp_path / "shards", max_shard_size="20KB"),
        saved(model, tmp_path / "masks", state | masks),
        saved(model, tmp_path / "bare", bare),
        saved(model, tmp_path / "heads", state | heads),
        saved(model.transformer, tmp_path / "no-head"),
    ]
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    expected = GPT.from_pretrained(saved(model, tmp_path / "one")).state_dict()
    for folder in folders:
        assert equal(GPT.from_pretrained(folder).state_dict(), expected), folder
    assert f"that are skipped: {', '.join(heads)}\n" in capsys.readouterr().err


def test_files_of_two_downloads_are_not_mixed(tmp_path):
    saved(theirs(), tmp_path, max_shard_size="20KB")
    first = sorted(tmp_path.glob("model-*"))[0]
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="is in two of its files"):
        GPT.from_pretrained(tmp_path)


def test_a_head_that_differs_from_the_embedding_is_kept(tmp_path):
    """Although config.json says that they are tied: transformers keeps both, too."""
    model = theirs(tie_word_embeddings=False)
    saved(model, tmp_path)
    with_config(tmp_path, tie_word_embeddings=True)
    ours = GPT.from_pretrained(tmp_path)
    assert not ours.config.tied
    assert_same(ours, model)


def test_narrow_weights_become_float32(tmp_path):
    saved(theirs().to(torch.bfloat16), tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    model = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same(ours, model.eval())


# ---- what is refused


@pytest.mark.parametrize("setting, value", [
    ("model_type", "llama"), ("n_inner", 100), ("scale_attn_weights", False),
    ("scale_attn_by_inverse_layer_idx", True), ("activation_function", "relu"),
    ("add_cross_attention", True), ("quantization_config", {"bits": 4}),
])
def test_what_is_not_gpt2_is_refused_by_the_name_of_the_setting(mistake, tmp_path, setting, value):
    saved(theirs(), tmp_path)
    with_config(tmp_path, **{setting: value})
    line = mistake(train.main, f"--init_from={tmp_path}")
    assert f"{setting}=" in line and " in config.json differs from GPT-2" in line


@pytest.mark.parametrize("changes, message", [
    ({"transformer.h.1.mlp.c_fc.bias": None}, '"transformer.h.1.mlp.c_fc.bias"'),
    ({"transformer.adapter.weight": torch.zeros(3, 32)}, 'Unexpected key(s) in state_dict: "tra'),
    ({"transformer.h.0.attn.c_attn.weight": torch.zeros(32, 96, dtype=torch.int8)},
     "c_attn.weight in"),
], ids=["a weight less", "a weight more", "quantized"])
def test_weights_that_do_not_fit_are_named(mistake, tmp_path, changes, message):
    saved(theirs(), tmp_path)
    with_weights(tmp_path, **changes)
    assert message in mistake(sample.main, f"--init_from={tmp_path}")


@pytest.mark.parametrize("name, message", [
    ("config.json", "has no config.json"),
    ("model.safetensors", "pytorch_model.bin, which could contain"),
])
def test_a_file_that_is_missing_is_named(mistake, tmp_path, name, message):
    """Damaged ones are in test_fuzz.py."""
    saved(theirs(), tmp_path)
    (tmp_path / name).unlink()
    assert message in mistake(sample.main, f"--init_from={tmp_path}")


def test_a_name_is_asked_for_at_the_hub(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    download = mock.Mock(return_value=str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = theirs()
    saved(model, tmp_path)
    assert_same(GPT.from_pretrained("gpt2"), model)
    name, = download.call_args.args
    patterns = download.call_args.kwargs["allow_patterns"]
    assert name == "gpt2" and "config.json" in patterns and "meta.json" in patterns
    assert not any("bin" in pattern for pattern in patterns)  # nor the same weights in old files


def test_without_the_hubs_package_the_line_says_what_to_install(mistake, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for main in train.main, sample.main:
        assert mistake(main, "--init_from=gpt2").endswith("pip install huggingface_hub")


# ---- which tokenizer


ADDED = {"<|user|>": 50257, "<|assistant|>": 50258}


def entries(tokens, **flags):
    return [{"id": i, "content": token, "special": True} | flags for token, i in tokens.items()]


def decoder(tokens, **flags):
    listed = entries({"<|endoftext|>": 50256} | tokens, **flags)
    return {"added_tokens_decoder": {str(entry.pop("id")): entry for entry in listed}}


@pytest.fixture
def with_tokens(tmp_path):
    """A function: the folder of a tiny model with GPT-2's vocabulary size and more, and files."""
    def write(n=50259, **files):
        saved(theirs(vocab_size=n, n_embd=2, n_layer=1, n_head=1), tmp_path / "hf")
        for name, content in files.items():
            (tmp_path / "hf" / f"{name}.json").write_text(json.dumps(content))
        return tmp_path / "hf"

    return write


ENGLISH = {"tokenizer": {"version": "1.0", "model": {"vocab": {"\u0120the": 262}}}}
FRENCH = {"tokenizer": {"version": "1.0", "model": {"vocab": {"\u0120le": 262}}}}
GERMAN = {"vocab": {"\u0120der": 262}}


@pytest.mark.parametrize("n, files, right", [
    (50304, {}, True), (50260, ENGLISH, True), (50000, {}, False), (52000, {}, False),
    (50257, GERMAN, False), (50265, FRENCH, False),
], ids=str)
def test_a_vocabulary_that_is_not_gpt2s_is_not_taken_for_it(with_tokens, mistake, n, files, right):
    folder = with_tokens(n, **files)
    if right:
        assert starting.read_model(folder).meta == {"tokenizer": "gpt2", "vocab_size": 50257}
    else:
        line = mistake(sample.main, f"--init_from={folder}")
        assert f"{n} tokens that is not GPT-2's" in line


@pytest.mark.parametrize("files", [
    {"added_tokens": ADDED}, {"tokenizer_config": decoder(ADDED)},
    {"tokenizer": {"model": {"vocab": {"\u0120the": 262}}, "added_tokens": entries(ADDED)}},
], ids=lambda files: " and ".join(files))
def test_the_added_tokens_of_a_fine_tuned_model_are_read(with_tokens, files):
    _, tokenizer = sample.load_model(with_tokens(**files))
    assert tokenizer.n_vocab == 50259
    text = "<|user|>Hi<|assistant|><|endoftext|>"
    ids = tokenizer.encode(text, special=True).tolist()
    assert ids == [50257, 17250, 50258, 50256] and tokenizer.decode(ids) == text
    assert len(tokenizer.encode("<|user|>")) > 1  # in a document it is text


@pytest.mark.parametrize("files, message", [
    ({"added_tokens": {"<|user|>": 50258}}, "added tokens must have the ids 50257, 50258"),
    ({"tokenizer_config": decoder(ADDED, lstrip=True)}, "'<|user|>' has one of lstrip,"),
    ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "a"}}}},
     "cannot be loaded: invalid literal for int()"),
])
def test_added_tokens_that_cannot_be_right_are_named(with_tokens, mistake, files, message):
    assert message in mistake(sample.main, f"--init_from={with_tokens(**files)}")


@pytest.mark.parametrize("config", [
    GPT2_TINY, replace(GPT2_TINY, tied=False, norm_eps=1e-3),
    replace(NANO_TINY, bias=False, dropout=0.2),
], ids=["gpt2", "own head", "no biases"])
def test_what_is_exported_is_imported_to_the_last_bit(tmp_path, config):
    model = widened(GPT(config).eval())
    model.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert again.config == replace(config, bias=True, dropout=0.0)
    before = model.state_dict()
    for name, weight in again.state_dict().items():
        if name in before:
            assert torch.equal(weight, before[name])
        else:  # a bias that the model lacks
            assert not weight.any()
    hf, info = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(again.eval(), hf.eval())
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("setting", sorted(MODERN.keys() - {"zero_init", "tied"}))
def test_what_gpt2_does_not_have_is_not_exported(tmp_path, setting):
    model = GPT(replace(GPT2_TINY, **{setting: MODERN[setting]}))
    with pytest.raises(ValueError, match=f"{setting}={MODERN[setting]} cannot be exported"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
