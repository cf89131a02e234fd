"""Types for settings that are numbers with a limit: `batch_size: Count = 12`."""

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Limit:
    """The values that a number may have: least <= x <= most, and above < x < below."""

    text: str
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf  # x < inf: so infinity and NaN are never allowed

    def allows(self, x):
        return self.least <= x <= self.most and self.above < x < self.below


Count = Annotated[int, Limit("1 or more", least=1)]
Natural = Annotated[int, Limit("0 or more", least=0)]
Positive = Annotated[float, Limit("above 0", above=0)]
NonNegative = Annotated[float, Limit("0 or more", least=0)]
Probability = Annotated[float, Limit("at least 0 and below 1", least=0, below=1)]
Fraction = Annotated[float, Limit("at least 0 and at most 1", least=0, most=1)]
PositiveFraction = Annotated[float, Limit("above 0 and at most 1", above=0, most=1)]
Tiny = Annotated[float, Limit("above 0 and below 1", above=0, below=1)]
Seed = Annotated[int, Limit("at least 0 and below 2**63", least=0, below=2**63)]

# of the fields of GPTConfig: model.py imports nothing of the project, so it cannot use these types
OF_MODEL = {"block_size": Count, "vocab_size": Count, "n_layer": Count, "n_head": Count,
            "n_embd": Count, "dropout": Probability, "norm_eps": Tiny, "softcap": NonNegative}
