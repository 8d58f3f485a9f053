"""Rows of a batch in groups of similar length, each within a budget of tokens.

A server computes a batch so: no group costs more than the budget, and between two groups other requests get
their turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Inputs = dict[str, NDArray[np.int64]]


def token_groups(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Rows of similar length together; each group has at most `max_tokens` tokens, padding included.

    A row that is longer by itself is a group of its own, as is every row if `max_tokens` is 0.
    """
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if group and (len(group) + 1) * lengths[row] > max_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def split_inputs(inputs: Inputs, max_tokens: int) -> Iterator[tuple[list[int], Inputs]]:
    """Groups of the rows of `inputs` (see `token_groups`), each with its part, padded to its own longest."""
    mask = inputs["attention_mask"]
    for rows in token_groups(mask.sum(axis=1).tolist(), max_tokens):
        columns = mask[rows].any(axis=0)
        yield rows, {name: np.ascontiguousarray(array[rows][:, columns]) for name, array in inputs.items()}
