"""Names for groups of settings: size=gpt2 sets the shape, recipe=modern the training method."""

SIZES = {  # name: (n_layer, n_head, n_embd); the small models of minGPT, GPT-1, and GPT-2
    "gpt-nano": (3, 3, 48), "gpt-micro": (4, 4, 128), "gpt-mini": (6, 6, 192),
    "openai-gpt": (12, 12, 768), "gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600),
}
RECIPES = {  # docs/modern.md explains each setting and measures its effect
    "gpt2": {
        "pos": "learned", "norm": "layernorm", "act": "gelu_tanh", "qk_norm": False,
        "attn_scale": 1.0, "smear": False, "zero_init": False, "tied": True, "softcap": 0.0,
        "optimizer": "adamw", "weight_decay": 0.1,
        "cooldown": 0.0, "warmup_iters": None, "min_lr": None,
    },
    "modern": {
        "pos": "rope", "norm": "rmsnorm", "act": "relu2", "qk_norm": True,
        "attn_scale": 1.44, "smear": True, "zero_init": True, "tied": False, "softcap": 15.0,
        "optimizer": "muon", "weight_decay": 0.0,
        "cooldown": 0.7, "warmup_iters": 0, "min_lr": 0.0,
    },
}


def expand_names(settings):
    """Add the settings that a `size` or a `recipe` in `settings` sets. A setting that is given
    explicitly overrides the size or recipe."""
    named = dict(RECIPES.get(settings.get("recipe"), {}))
    if settings.get("size") is not None:
        named |= zip(("n_layer", "n_head", "n_embd"), SIZES[settings["size"]], strict=True)
    return named | settings
