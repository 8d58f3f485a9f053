"""Logits changed by the tokens so far, and by a caller's wish, before a token is chosen of them.

Sources. Frequency and presence: OpenAI's API reference, "frequency and presence penalties" (logit −
count · frequency − (count > 0) · presence, of generated tokens). Repetition: Keskar et al. 2019, "CTRL"
(arXiv:1909.05858, section 4.1), of the prompt's tokens, too, as in transformers and vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import PressoirError
from pressoir.inference.generation.rules import penalize


@dataclass(frozen=True)
class Penalties:
    """Called with logits (vocabulary,) and the tokens before them, gives the changed logits."""

    frequency: float = 0.0
    """Subtracted for each time that a token was generated."""
    presence: float = 0.0
    """Subtracted once from each token that was generated."""
    repetition: float = 1.0
    """Divides the positive logits, and multiplies the negative ones, of tokens of prompt and continuation."""
    bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens, by their ids."""

    def check(self, vocabulary: int) -> None:
        """Refuse a bias of a token beyond the model's `vocabulary` logits; raises PressoirError."""
        for token in self.bias:
            if not 0 <= token < vocabulary:
                raise PressoirError(
                    f"logit_bias: the model has no token {token}; its tokens are 0 to {vocabulary - 1}"
                )

    def __call__(
        self, logits: NDArray[np.float32], prompt: Sequence[int], generated: Sequence[int]
    ) -> NDArray[np.float32]:
        """The changed logits (vocabulary,); `logits` stay as they are."""
        if self == Penalties():
            return logits
        logits = logits.copy()
        penalize(logits, [*prompt, *generated], self.repetition)
        tokens, counts = np.unique(np.asarray(generated, dtype=np.int64), return_counts=True)
        logits[tokens] -= (self.frequency * counts + self.presence).astype(np.float32)
        for token, value in self.bias.items():
            logits[token] += value
        return logits
