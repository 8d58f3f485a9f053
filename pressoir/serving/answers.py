"""Answers to several texts, and which texts were truncated for the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")


class Answers(list[Item]):
    """An answer for each text, in a list that also says which texts were truncated."""

    def __init__(self, answers: Iterable[Item], truncated: Iterable[bool]) -> None:
        super().__init__(answers)
        self.truncated = list(truncated)
        """Whether a text has more tokens than the model was given, of each."""


class Embeddings(NamedTuple):
    """The embeddings of some texts."""

    vectors: NDArray[np.float32]
    """(texts, hidden), of lengths that are not normalised."""
    tokens: int
    """How many the model was given for all of them."""
    truncated: list[bool]
    """Whether a text has more tokens than that, of each."""
