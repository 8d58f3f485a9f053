"""Scores, and how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64] | Sequence[int]


def accuracy(predicted: Ints, expected: Ints) -> float:
    """Part of the predictions that are right, 0–1."""
    return float(np.mean(np.asarray(predicted) == np.asarray(expected)))


def f1(predicted: Ints, expected: Ints) -> float:
    """F1 of class 1 where there are two classes, else the macro average, 0–1."""
    from sklearn.metrics import f1_score

    classes = sorted({*np.asarray(expected).tolist(), *np.asarray(predicted).tolist()})
    binary = set(classes) <= {0, 1}
    return float(f1_score(expected, predicted, average="binary" if binary else "macro", zero_division=0))


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % confidence interval of a proportion (E. B. Wilson 1927, JASA 22:209), 0–1."""
    if total == 0:
        return 0.0, 1.0
    p, n = correct / total, total
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return max(0.0, min(low, p)), min(1.0, max(high, p))  # rounding must not leave p outside
