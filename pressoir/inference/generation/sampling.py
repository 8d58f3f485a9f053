"""Choose the next token from logits: greedily, or drawn by temperature, top-k, top-p and min-p.

Sources. Top-p: A. Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration" (arXiv:1904.09751);
min-p: Nguyen et al. 2024, "Turning Up the Heat" (arXiv:2407.01082).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import PressoirError


@dataclass(frozen=True)
class Sampler:
    """Called with logits (vocabulary,), gives a token id; the same seed gives the same tokens.

    Raises:
        PressoirError: a setting is out of range, or the logits are not finite.
    """

    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Draw from this many likeliest tokens only; 0 draws from all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that have this probability together."""
    seed: int = 0
    min_p: float = 0.0
    """Leave out tokens less probable than this fraction of the likeliest one's probability; 0: none."""
    _rng: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        limits = {
            "temperature": (0 <= self.temperature < float("inf"), "at least 0 (0: greedy)"),
            "top_k": (self.top_k >= 0, "at least 0 (0: all)"),
            "top_p": (0 < self.top_p <= 1, "greater than 0 and at most 1 (1: all)"),
            "seed": (self.seed >= 0, "0 or more"),
            "min_p": (0 <= self.min_p <= 1, "from 0 (all) to 1"),
        }
        wrong = [
            f"{name} is {getattr(self, name)}; expected {accepted}"
            for name, (right, accepted) in limits.items()
            if not right
        ]
        if wrong:
            raise PressoirError("; ".join(wrong))
        object.__setattr__(self, "_rng", np.random.default_rng(self.seed))

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """The next token's id."""
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise PressoirError("the model produced logits that are not finite; its weights are corrupt")
        if self.temperature == 0:
            return best
        scores = (logits.astype(np.float64) - float(logits[best])) / self.temperature
        if 0 < self.top_k < len(scores):
            scores[scores < np.partition(scores, -self.top_k)[-self.top_k]] = -np.inf
        probabilities = np.exp(scores)
        probabilities /= probabilities.sum()
        if self.top_p < 1:
            order = np.argsort(-probabilities, kind="stable")
            before = np.cumsum(probabilities[order]) - probabilities[order]  # of all that are likelier
            probabilities[order[before >= self.top_p]] = 0
            probabilities /= probabilities.sum()
        if self.min_p > 0:
            probabilities[probabilities < self.min_p * probabilities.max()] = 0
            probabilities /= probabilities.sum()
        return int(self._rng.choice(len(probabilities), p=probabilities))
