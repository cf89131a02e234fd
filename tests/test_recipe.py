"""pytest tests/test_recipe.py - the recipes in config/, and their base beside transformers"""

import math
from dataclasses import replace

import pytest
import torch
from helpers import ROOT, losses
from transformers import GPT2Config, GPT2LMHeadModel

import train
from configurator import configure
from internals import dataset
from internals.huggingface import TRANSPOSED
from internals.recipes import RECIPES, expand_names
from model import GPT, GPTConfig

LEARNING_RATES = {"learning_rate", "muon_lr", "embedding_lr", "beta1", "beta2"}


def hugging_face(settings, vocab_size):
    """transformers' GPT-2 with the weights that a run with these settings begins with."""
    _, cfg, config = configure("", train.TrainConfig, GPTConfig, argv=settings)
    torch.manual_seed(cfg.seed)
    weights = GPT(replace(config, vocab_size=vocab_size)).state_dict()
    for name in weights:
        if name.endswith(TRANSPOSED):
            weights[name] = weights[name].t()
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab_size, n_positions=16, n_embd=16, n_layer=2, n_head=2,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0))
    model.load_state_dict(weights)
    return model


def rate(step):
    """Warmup over 10 steps to 0.01, then a cosine to a tenth of it at step 100."""
    if step < 10:
        return 0.01 * (step + 1) / 11
    return 0.001 + 0.009 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2


def test_the_loss_curve_of_gpt2_is_that_of_transformers(tiny, data_dir):
    """The same weights, windows and rates; model, loss and AdamW are theirs and torch's."""
    settings = tiny(dropout=0.0, bias=True, max_iters=100, eval_interval=1000, seed=5,
                    gradient_accumulation_steps=1, weight_decay=0.1, warmup_iters=10)
    ours = [loss for _, loss in losses(train.main(settings))]
    data = dataset.load(data_dir / "tiny")
    model = hugging_face(settings, data.vocab_size)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1},
                                   {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95))
    theirs = []
    for step in range(100):
        starts = train.training_starts(step * 4, 4, len(data.train), 16, seed=5)
        x, y = train.batch(data.train, starts, 16, torch.device("cpu"))
        loss = torch.nn.functional.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(loss.item())
    assert ours[-1] < ours[0] - 1  # it learns
    assert ours == pytest.approx(theirs, abs=1e-3)


def settings_of(*argv):
    """{name: value} of the settings of train.py with this command line."""
    _, cfg, config = configure("", train.TrainConfig, GPTConfig, argv=list(argv),
                               expand=expand_names)
    return vars(cfg) | vars(config)


@pytest.mark.parametrize("name", ["train_gpt2", "train_shakespeare_char"])
def test_twins_differ_in_the_lines_of_the_recipe_only(name):
    plain = settings_of(str(ROOT / "config" / f"{name}.py"))
    modern = settings_of(str(ROOT / "config" / f"{name}_modern.py"))
    different = {key for key in plain if plain[key] != modern[key]}
    assert different <= set(RECIPES["modern"]) | LEARNING_RATES | {"recipe", "out_dir"}
    assert different >= {"recipe", "pos", "norm", "act", "qk_norm", "zero_init", "tied"}


def test_the_recipe_named_gpt2_is_the_default():
    assert settings_of("--recipe=gpt2") == settings_of() | {"recipe": "gpt2"}
    assert RECIPES["gpt2"].keys() == RECIPES["modern"].keys()


@pytest.mark.parametrize("name", RECIPES["modern"])
def test_each_setting_of_a_recipe_can_be_exchanged_by_itself(tiny, tmp_path, name):
    for recipe, other in ("gpt2", "modern"), ("modern", "gpt2"):
        settings = {"recipe": recipe, "out_dir": tmp_path / recipe, name: RECIPES[other][name]}
        train.main(tiny(**settings | {"max_iters": 2}))
        metrics = train.main(tiny(**settings | {"max_iters": 4, "init_from": "resume"}))
        curve = [loss for _, loss in losses(metrics)]
        assert len(curve) == 4 and all(map(math.isfinite, curve))


def test_a_setting_by_itself_wins_over_the_recipe_and_the_size():
    found = settings_of("--recipe=modern", "--size=gpt-nano", "--pos=learned", "--cooldown=0.2",
                        "--n_head=1")
    assert (found["optimizer"], found["cooldown"]) == ("muon", 0.2)
    assert (found["pos"], found["norm"]) == ("learned", "rmsnorm")
    assert (found["n_layer"], found["n_head"], found["n_embd"]) == (3, 1, 48)


def test_a_size_replaces_the_settings_of_a_file_that_come_before_it(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("n_layer = 5\nn_head = 5\nn_embd = 20\n")
    found = settings_of(str(path), "--size=gpt-nano")
    assert (found["n_layer"], found["n_head"], found["n_embd"]) == (3, 3, 48)
