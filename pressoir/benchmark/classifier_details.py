"""What a benchmark of classifiers knows of single classes and sentences, of its first model and its last.

The typed content of `details.json`, which the page of a run shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from pressoir.config import Config, Fraction
from pressoir.errors import PressoirError
from pressoir.plots.standalone_page import shortened
from pressoir.system.reader import read_object

DETAILS = "details.json"
SHOWN = 20
"""Sentences that are kept, at most."""
LEAST = 0.01
"""Distance of probabilities from which two models differ on a sentence."""
Count = Annotated[int, Field(ge=0)]


class ClassScores(Config, allow_inf_nan=False):
    """How well one model recognises one class."""

    precision: Fraction
    """Fraction of the sentences with this predicted label that have it; 0 if there are none."""
    recall: Fraction
    """Fraction of the sentences with this label for which it is predicted; 0 if there are none."""
    f1: Fraction
    """Harmonic mean of both."""


class ClassResult(Config):
    """One class, as both models recognise it."""

    label: str
    """Label of the data."""
    sentences: Count
    """Number of test sentences with this label."""
    reference: ClassScores
    """Of the first model."""
    final: ClassScores
    """Of the last model."""


class Answer(Config, allow_inf_nan=False):
    """What one model says of one sentence."""

    label: str
    """Predicted label."""
    probability: Fraction
    """Probability of the predicted label."""
    expected_probability: Fraction
    """Probability of the correct label."""


class Difference(Config, allow_inf_nan=False):
    """A test sentence on which the models differ."""

    text: str
    """The sentence; of a long one the beginning."""
    expected: str
    """Correct label."""
    distance: Fraction
    """Total variation distance of the two models' probabilities."""
    reference: Answer
    """Of the first model."""
    final: Answer
    """Of the last model."""


class ClassifierDetails(Config):
    """Classes and sentences of a benchmark of classifiers."""

    format_version: int = 1
    """Version of the file format; incremented by incompatible changes."""
    classes: tuple[ClassResult, ...]
    """In the order of the data's labels."""
    only_reference_correct: Count
    """Number of test sentences that the first model labels correctly and the last does not."""
    only_final_correct: Count
    """Number of test sentences that the last model labels correctly and the first does not."""
    differences: Annotated[tuple[Difference, ...], Field(max_length=SHOWN)]
    """Sentences on which the probabilities of both differ most, the most different first."""

    def write(self, path: Path) -> None:
        """Write as JSON, in full precision."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `details.json`.

        Raises:
            PressoirError: it is missing or not such a file.
        """
        try:
            return cls.model_validate(read_object(path, PressoirError, "run the recipe again"))
        except ValidationError as error:
            raise PressoirError(f"{path} is not readable as details of a benchmark: {error}") from error


def details(
    texts: Sequence[str],
    expected: NDArray[np.int64],
    labels: Sequence[str],
    reference: NDArray[np.float64],
    final: NDArray[np.float64],
) -> ClassifierDetails:
    """Compare the probabilities (sentences, labels) of two models; `expected` (sentences,) are places in
    `labels`."""
    first, last = reference.argmax(axis=1), final.argmax(axis=1)
    scores = [_scores(predicted, expected, len(labels)) for predicted in (first, last)]
    counts = np.bincount(expected, minlength=len(labels))
    distances = np.abs(reference - final).sum(axis=1) / 2
    order = [int(i) for i in np.argsort(-distances, kind="stable")[:SHOWN] if distances[i] >= LEAST]
    return ClassifierDetails(
        classes=tuple(
            ClassResult(label=label, sentences=int(counts[i]), reference=scores[0][i], final=scores[1][i])
            for i, label in enumerate(labels)
        ),
        only_reference_correct=int(((first == expected) & (last != expected)).sum()),
        only_final_correct=int(((first != expected) & (last == expected)).sum()),
        differences=tuple(
            Difference(
                text=shortened(texts[i]),
                expected=labels[expected[i]],
                distance=min(float(distances[i]), 1.0),
                reference=_answer(reference[i], labels, int(expected[i])),
                final=_answer(final[i], labels, int(expected[i])),
            )
            for i in order
        ),
    )


def _scores(predicted: NDArray[np.int64], expected: NDArray[np.int64], classes: int) -> list[ClassScores]:
    from sklearn.metrics import precision_recall_fscore_support

    found = precision_recall_fscore_support(expected, predicted, labels=range(classes), zero_division=0)
    return [
        ClassScores(precision=float(p), recall=float(r), f1=float(f))
        for p, r, f in zip(*found[:3], strict=True)
    ]


def _answer(probabilities: NDArray[np.float64], labels: Sequence[str], expected: int) -> Answer:
    best = int(probabilities.argmax())
    return Answer(
        label=labels[best],
        probability=min(float(probabilities[best]), 1.0),
        expected_probability=min(float(probabilities[expected]), 1.0),
    )
