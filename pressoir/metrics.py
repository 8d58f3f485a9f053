"""Scores, and how far to trust them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import DataError

Ints = NDArray[np.int64] | Sequence[int]


def accuracy(predicted: Ints, expected: Ints) -> float:
    """Part of the predictions that are right, 0–1."""
    return float(np.mean(np.asarray(predicted) == np.asarray(expected)))


def f1(predicted: Ints, expected: Ints, classes: int) -> float:
    """F1 of class 1, the second, where there are two `classes`, else the macro average, 0–1.

    A negative prediction, which is no class, is wrong.
    """
    return _f1(predicted, expected, [1]) if classes == 2 else macro_f1(predicted, expected)


def macro_f1(predicted: Ints, expected: Ints) -> float:
    """Mean of the F1 of all classes that are expected or predicted, 0–1; each class counts the same.

    A negative prediction, which is no class, is wrong.
    """
    seen = {*np.asarray(expected).tolist(), *np.asarray(predicted).tolist()}
    return _f1(predicted, expected, sorted(one for one in seen if one >= 0))


def _f1(predicted: Ints, expected: Ints, labels: list[int]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(expected, predicted, labels=labels, average="macro", zero_division=0))


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % confidence interval of a proportion (E. B. Wilson 1927, JASA 22:209), 0–1."""
    if total == 0:
        return 0.0, 1.0
    p, n = correct / total, total
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return max(0.0, min(low, p)), min(1.0, max(high, p))  # rounding must not leave p outside


@dataclass(frozen=True)
class TextScore:
    """A score of texts, and how it was computed: without that no two scores can be compared."""

    value: float
    signature: str


def bleu(predicted: Sequence[str], expected: Sequence[str]) -> TextScore:
    """Corpus BLEU with one reference, 0–100 (Papineni et al., ACL 2002; sacrebleu, Post, WMT 2018).

    Raises:
        DataError: there is nothing to score, or not one reference a prediction.
    """
    from sacrebleu import BLEU

    _check_pairs(predicted, expected)
    metric = BLEU()
    score = metric.corpus_score(list(predicted), [list(expected)]).score
    return TextScore(min(score, 100.0), f"BLEU|{metric.get_signature()}")


def chrf(predicted: Sequence[str], expected: Sequence[str]) -> TextScore:
    """Corpus chrF2 with one reference, 0–100: F-score of character n-grams (Popović, WMT 2015).

    Raises:
        DataError: as in `bleu`.
    """
    from sacrebleu import CHRF

    _check_pairs(predicted, expected)
    metric = CHRF()
    score = metric.corpus_score(list(predicted), [list(expected)]).score
    return TextScore(score, f"chrF2|{metric.get_signature()}")


def wer(predicted: Sequence[str], expected: Sequence[str]) -> TextScore:
    """Word error rate of a corpus: substitutions, deletions and insertions over the words expected.

    Both sides go through `normalise_transcript`. 0 is perfect; insertions may take it above 1.

    Raises:
        DataError: as in `bleu`.
    """
    from jiwer import wer as rate

    return TextScore(float(rate(*_transcripts(predicted, expected))), _transcript_signature("WER"))


def cer(predicted: Sequence[str], expected: Sequence[str]) -> TextScore:
    """Character error rate of a corpus; see `wer`. Spaces between words count as characters.

    Raises:
        DataError: as in `bleu`.
    """
    from jiwer import cer as rate

    return TextScore(float(rate(*_transcripts(predicted, expected))), _transcript_signature("CER"))


TRANSCRIPT_NORMALISER = "NFKC, lower case, punctuation removed, single spaces"


def normalise_transcript(text: str) -> str:
    """`TRANSCRIPT_NORMALISER`: what recognisers leave out or write either way is not an error.

    Apostrophes and hyphens within words stay; numbers are not spelt out.
    """
    lowered = unicodedata.normalize("NFKC", text).lower()
    words = []
    for word in lowered.split():
        kept = [
            character
            for character in word.strip("'’-")
            if character in "'’-" or not unicodedata.category(character).startswith("P")
        ]
        words.append("".join(kept).replace("’", "'").strip("'-"))
    return " ".join(filter(None, words))


def _transcripts(predicted: Sequence[str], expected: Sequence[str]) -> tuple[list[str], list[str]]:
    """References first, as jiwer takes them."""
    _check_pairs(predicted, expected)
    return [normalise_transcript(text) for text in expected], [normalise_transcript(t) for t in predicted]


def _transcript_signature(name: str) -> str:
    from importlib.metadata import version

    return f"{name}|norm:{TRANSCRIPT_NORMALISER}|jiwer:{version('jiwer')}"


def _check_pairs(predicted: Sequence[str], expected: Sequence[str]) -> None:
    if len(predicted) != len(expected) or not expected:
        raise DataError(
            f"{len(predicted)} predicted texts cannot be scored against {len(expected)} expected ones; the "
            "numbers must be equal and at least one"
        )
