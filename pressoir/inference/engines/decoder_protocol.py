"""The interface of causal language models for generating, scoring and timing, in any runtime."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pressoir.formats.folder import Runtime

Cache = Any
"""Keys and values of the tokens seen so far, in the runtime's own form; never changed in place."""


class Decoder(Protocol):
    """A loaded causal LM."""

    runtime: Runtime
    vocabulary: int
    """Number of logits."""
    context: int
    """Most tokens, prompt and continuation together, that the model was built for."""
    eos_ids: frozenset[int]
    """Tokens that end a text."""

    def forward(
        self, input_ids: NDArray[np.int64], cache: Cache | None = None, *, last_only: bool = False
    ) -> tuple[NDArray[np.float32], Cache]:
        """Logits of `input_ids` (batch, seq), which follow the tokens in `cache`, and the longer cache.

        Logits are (batch, seq, vocabulary), or (batch, 1, vocabulary) of the last position with `last_only`.
        """
