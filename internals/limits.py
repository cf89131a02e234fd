"""Types for settings that are numbers within limits: `batch_size: Count = 12`."""

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Limit:
    """The allowed values of a number: least <= x <= most, and above < x < below. text: the limit in
    words, for messages."""

    text: str
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf  # x < inf is false for infinity and NaN, so they are never allowed

    def allows(self, x):
        return self.least <= x <= self.most and self.above < x < self.below


Count = Annotated[int, Limit("1 or more", least=1)]
Several = Annotated[int, Limit("2 or more", least=2)]
Natural = Annotated[int, Limit("0 or more", least=0)]
Positive = Annotated[float, Limit("above 0", above=0)]
NonNegative = Annotated[float, Limit("0 or more", least=0)]
Probability = Annotated[float, Limit("at least 0 and below 1", least=0, below=1)]
Fraction = Annotated[float, Limit("at least 0 and at most 1", least=0, most=1)]
PositiveFraction = Annotated[float, Limit("above 0 and at most 1", above=0, most=1)]
ProperFraction = Annotated[float, Limit("above 0 and below 1", above=0, below=1)]
Seed = Annotated[int, Limit("at least 0 and below 2**63", least=0, below=2**63)]

# The limits of GPTConfig's fields: model.py imports nothing of the project when it is imported, so
# it cannot use these types.
OF_MODEL = {"block_size": Count, "vocab_size": Count, "n_layer": Count, "n_head": Count,
            "n_embd": Count, "dropout": Probability, "norm_eps": ProperFraction,
            "attn_scale": Positive, "softcap": NonNegative}
