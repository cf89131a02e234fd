"""The models that do not change in reinforcement learning: the reward model, and the reference."""

from pathlib import Path

import torch

from configurator import build
from internals import checkpoint
from internals.checks import Checkpoint
from internals.errors import UserError
from internals.starting import read_model
from model import GPT, GPTConfig
from stages.answers import score_token
from stages.reward import scores


class Frozen:
    """reference: the GPT that RL starts from. reward_model: a RewardModel, or None if the reward is
    the rule of the task.

    A new run copies their checkpoints into out_dir, and a resumed run reads the copies, so that it
    has the same weights, whatever has happened to the originals since then."""

    def __init__(self, cfg, meta, device):
        """meta: of the policy. Raises UserError as RewardModel does, or if the context of the
        reward model is too short."""
        self.is_new = cfg.init_from != "resume"
        self.copies = {}  # {path: Checkpoint}
        start = self.read(cfg.init_from, read_model, Path(cfg.out_dir, "reference.pt"))
        self.reference = load(start, device)
        self.reward_model = None
        if cfg.reward != "rule":
            copy = Path(cfg.out_dir, "reward.pt")
            start = self.read(cfg.reward, read_reward_model, copy)
            self.reward_model = RewardModel(start, cfg.reward, meta, device)
            context = self.reward_model.model.block_size
            if context < self.reference.block_size:
                raise UserError(f"reward={cfg.reward} has a context of {context} tokens, "
                                f"shorter than the {self.reference.block_size} of the model to "
                                "train: train a reward model from the same model")

    def rewards(self, found, ids, is_answer):
        """The rewards (B,) of Answered answers, whose ids are also given as Encoding.pad returns
        them."""
        if self.reward_model is None:
            rule = torch.tensor(found.rule, device=ids.device)
            return rule.float()
        return self.reward_model.rewards(ids, is_answer)

    def read(self, path, read_original, copy):
        if not self.is_new:
            return checkpoint.read(copy)
        self.copies[copy] = read_original(path)
        return self.copies[copy]

    def write_copies(self):
        for path, start in self.copies.items():
            checkpoint.write(start, path)


def read_reward_model(path):
    """The Checkpoint of a run of stages/reward.py, without its optimizer. Raises UserError."""
    try:
        found = checkpoint.first_undamaged(path, "ckpt.pt")
    except UserError as error:
        raise UserError(f"reward={path} cannot be read: {error}") from None
    return Checkpoint(found.model, found.model_args, found.meta)


def load(start, device):
    """The GPT of a Checkpoint, in eval mode."""
    config = build(GPTConfig, start.model_args)
    model = GPT.from_weights(config, start.model)
    return model.to(device).eval()


class RewardModel:
    """A trained reward model. Its rewards are scores, shifted and scaled so that the answers of the
    model before RL have mean 0 and standard deviation 1."""

    def __init__(self, start, path, meta, device):
        """start: its Checkpoint; path: its name. meta: of the policy. Raises UserError if it is not
        a reward model, or if its token ids have other meanings than those of the policy."""
        found = start.meta.get("reward")
        if not is_scale(found):
            raise UserError(f"reward={path} is not a reward model: train one with "
                            "stages/reward.py, or use --reward=rule")
        if not knows_ids(start.meta, meta):
            raise UserError(f"reward={path} has another vocabulary than the model to train: train "
                            "a reward model with stages/reward.py, from the same model")
        self.model = load(start, device)
        self.token = score_token(start.meta)
        self.where = found["score"]
        self.mean = found["mean"]
        self.std = found["std"]

    @torch.no_grad()
    def rewards(self, ids, is_answer):
        """The rewards (B,) of answers in ids (B, T)."""
        raw = scores(self.model, ids, is_answer, self.token, self.where)
        return (raw - self.mean) / self.std


def is_scale(found):
    """Whether the "reward" in the meta of a checkpoint is what `evaluate` writes there."""
    if not isinstance(found, dict) or found.get("score") not in ("mean", "last"):
        return False
    mean = found.get("mean")
    std = found.get("std")
    return isinstance(mean, float) and isinstance(std, float) and std > 0


def knows_ids(meta, of_policy):
    """Whether the token ids of the policy mean the same to the reward model. Both are metas."""
    if meta["tokenizer"] != of_policy["tokenizer"]:
        return False
    if meta["tokenizer"] == "char":
        return meta["chars"].startswith(of_policy["chars"])
    return of_policy.get("added", {}).items() <= meta["added"].items()
