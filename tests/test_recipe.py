"""pytest tests/test_recipe.py - the recipes in config/, and their base beside transformers"""

import math
from dataclasses import fields

import pytest
import torch
from helpers import ROOT

import train
from configurator import configure
from internals import dataset
from internals.recipes import RECIPES, expand_names
from model import GPT, GPTConfig

LEARNING_RATES = {"learning_rate", "muon_lr", "embedding_lr", "beta1", "beta2"}


def test_the_loss_curve_of_gpt2_is_that_of_transformers(tiny, data_dir):
    """The same weights, windows and rates; model, loss and AdamW are theirs and torch's."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {"dropout": 0.0, "bias": True, "max_iters": 100, "eval_interval": 1000, "seed": 5,
                "gradient_accumulation_steps": 1, "weight_decay": 0.1, "warmup_iters": 10}
    metrics = train.main(tiny(**settings))
    ours = [m["loss"] for m in metrics if "loss" in m]

    _, cfg, model_cfg = configure("", train.TrainConfig, GPTConfig, argv=tiny(**settings))
    data = dataset.load(data_dir / "tiny")
    model_cfg.vocab_size = data.vocab_size
    torch.manual_seed(cfg.seed)
    start = GPT(model_cfg).state_dict()
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=data.vocab_size, n_positions=16, n_embd=16, n_layer=2, n_head=2,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0))
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    model.load_state_dict({k: v.t() if k.endswith(turned) else v for k, v in start.items()})
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1},
                                   {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95))
    theirs = []
    for step in range(100):
        starts = train.training_starts(step * 4, 4, len(data.train), 16, cfg.seed)
        x, y = train.batch(data.train, starts, 16, torch.device("cpu"))
        loss = torch.nn.functional.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm = 0.01 * (step + 1) / 11
        cosine = 0.001 + 0.009 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        for group in optimizer.param_groups:
            group["lr"] = warm if step < 10 else cosine
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(loss.item())
    assert ours[-1] < ours[0] - 1  # it learns
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-3


@pytest.mark.parametrize("name", ["train_gpt2", "train_shakespeare_char"])
def test_twins_differ_in_the_lines_of_the_recipe_only(name):
    def settings(file):
        _, *configs = configure("", train.TrainConfig, GPTConfig,
                                argv=[str(ROOT / "config" / f"{file}.py")],
                                expand=expand_names)
        return {field.name: getattr(config, field.name) for config in configs
                for field in fields(config)}

    plain, modern = settings(name), settings(f"{name}_modern")
    different = {key for key in plain if plain[key] != modern[key]}
    assert different <= set(RECIPES["modern"]) | LEARNING_RATES | {"recipe", "out_dir"}
    assert different >= {"recipe", "pos", "norm", "act", "qk_norm", "zero_init", "tied"}


def test_the_recipe_named_gpt2_is_the_default():
    _, *plain = configure("", train.TrainConfig, GPTConfig, argv=[])
    _, *named = configure("", train.TrainConfig, GPTConfig, argv=["--recipe=gpt2"],
                          expand=expand_names)
    named[0].recipe = None
    assert plain == named and RECIPES["gpt2"].keys() == RECIPES["modern"].keys()


def test_a_setting_by_itself_wins_over_the_recipe_and_the_size(tmp_path):
    """A size replaces the settings of a file that come before it."""
    path = tmp_path / "config.py"
    path.write_text("n_layer = 5\nn_head = 5\nn_embd = 20\n")
    _, cfg, model_cfg = configure(
        "", train.TrainConfig, GPTConfig, expand=expand_names,
        argv=["--recipe=modern", "--size=gpt-nano", "--pos=learned", "--cooldown=0.2",
              "--n_head=1"])
    assert (cfg.optimizer, cfg.cooldown) == ("muon", 0.2)
    assert (model_cfg.pos, model_cfg.norm) == ("learned", "rmsnorm")
    assert (model_cfg.n_layer, model_cfg.n_head, model_cfg.n_embd) == (3, 1, 48)
    _, _, model_cfg = configure("", train.TrainConfig, GPTConfig, expand=expand_names,
                                argv=[str(path), "--size=gpt-nano"])
    assert (model_cfg.n_layer, model_cfg.n_head, model_cfg.n_embd) == (3, 3, 48)
