"""The state of a run."""

from dataclasses import asdict, dataclass

import torch

from internals.checks import Checkpoint
from internals.optimizers import Optimizers
from model import GPT


@dataclass
class Run:
    """The state of a run. train.py makes it from scratch, from weights, or from a checkpoint, and
    advances it step by step."""

    # what a checkpoint stores
    model: GPT  # neither compiled nor wrapped by DDP; it is saved, evaluated and sampled
    optimizer: Optimizers
    scaler: torch.amp.GradScaler
    step: int  # the number of steps so far
    sequences: int  # the number of training sequences used so far
    best_loss: float  # the lowest validation loss so far
    best_step: int
    # what belongs to this process only
    compiled: torch.nn.Module  # the model with torch.compile around it, if that works; is trained
    how: str  # "compiled" or "eager", and "CUDA graphs" if the steps are recorded
    recorded: bool  # whether a GPU records the work of a step, and replays it
    dtype: str  # of matrix products
    first_step: int  # the step at which this process began
    was_trained: bool  # whether the model was trained before this process began
    restarts_best: bool  # best_loss starts over, because evaluations use other sequences now
    saved_step: int | None  # the step of the newest ckpt.pt of this process

    @classmethod
    def starting_at(cls, start, **parts):
        """A Run at the step of a Checkpoint. parts: model, compiled, optimizer, scaler, how,
        recorded, dtype."""
        return cls(
            **parts, step=start.step, sequences=start.sequences, best_loss=start.best_loss,
            best_step=start.best_step, first_step=start.step, was_trained=start.model is not None,
            restarts_best=start.restarts_best, saved_step=None)

    def checkpoint(self, cfg, meta):
        """The Checkpoint of the run. cfg: its TrainConfig. meta: of its dataset."""
        return Checkpoint(
            model=self.model.state_dict(), model_args=asdict(self.model.config), meta=meta,
            config=asdict(cfg), optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(), step=self.step, sequences=self.sequences,
            best_loss=self.best_loss, best_step=self.best_step)
