"""The samples on which a model was furthest from what would be right, for a person to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pressoir import metrics
from pressoir.data.texts import as_read
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.records import EvaluationSample
from pressoir.extensions.task import task
from pressoir.formats.tags import OUTSIDE, Span, spans_of
from pressoir.plots.standalone_page import shortened

SHOWN = 20
"""At most so many of a run."""
_CHARACTERS = 1000
Words = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class WorstSample:
    """A sample that went wrong."""

    sample: str
    """Its id."""
    figure: str
    """How wrong: `WER 200.0 %`."""
    input: str
    """What was asked, where it is text."""
    reference: str
    prediction: str | None
    """None where there is none."""
    words: Words = ()
    """Where they are aligned: expected and predicted word, empty where there is none."""


def labels(data: DataSet, found: Mapping[str, Any]) -> tuple[WorstSample, ...]:
    """Wrong labels, those of the highest confidence first; in the data's order where none is recorded."""
    known = {sample.id: sample for sample in data.samples}
    wrong = [name for name, value in found.items() if value["label"] != known[name].reference]
    confidences = {name: _confidence(found[name]) for name in wrong}
    wrong.sort(key=lambda name: -(confidences[name] or 0.0))
    return tuple(
        WorstSample(
            name,
            f"confidence {100 * sure:.1f} %" if (sure := confidences[name]) is not None else "",
            shortened(as_read(known[name].input)),
            _label(data, known[name].reference),
            _label(data, found[name]["label"]),
        )
        for name in wrong[:SHOWN]
    )


def label_sets(data: DataSet, found: Mapping[str, Any]) -> tuple[WorstSample, ...]:
    """Texts with the most labels that are wrong or missing."""
    known = {sample.id: sample for sample in data.samples}
    wrong = {name: {*value["labels"]} ^ {*known[name].reference} for name, value in found.items()}
    names = sorted((name for name in wrong if wrong[name]), key=lambda name: -len(wrong[name]))
    return tuple(
        WorstSample(
            name,
            f"{len(wrong[name])} labels differ",
            shortened(as_read(known[name].input)),
            _label(data, known[name].reference),
            _label(data, found[name]["labels"]),
        )
        for name in names[:SHOWN]
    )


def tags(data: DataSet, found: Mapping[str, Any]) -> tuple[WorstSample, ...]:
    """Sentences with the most spans that are wrong or missing."""
    known = {sample.id: sample for sample in data.samples}

    def spans(indices: Sequence[int]) -> list[Span]:
        return spans_of([data.labels[index] if index >= 0 else OUTSIDE for index in indices])

    def written(name: str, own: list[Span]) -> str:
        words = known[name].input
        return "; ".join(f"{kind}: {' '.join(words[start:end])}" for kind, start, end in own) or "no span"

    both = {name: (spans(known[name].reference), spans(value["tags"])) for name, value in found.items()}
    wrong = {name: len({*right} ^ {*given}) for name, (right, given) in both.items()}
    names = sorted((name for name in wrong if wrong[name]), key=lambda name: -wrong[name])
    return tuple(
        WorstSample(
            name,
            f"{wrong[name]} spans differ",
            shortened(as_read(known[name].input)),
            shortened(written(name, both[name][0])),
            shortened(written(name, both[name][1])),
        )
        for name in names[:SHOWN]
    )


def scores(data: DataSet, found: Mapping[str, Any]) -> tuple[WorstSample, ...]:
    """Texts whose score is furthest off."""
    known = {sample.id: sample for sample in data.samples}
    apart = {name: value["score"] - known[name].reference for name, value in found.items()}
    return tuple(
        WorstSample(
            name,
            f"off by {abs(apart[name]):.3g}",
            shortened(as_read(known[name].input)),
            f"{known[name].reference:g}",
            f"{found[name]['score']:g}",
        )
        for name in sorted(apart, key=lambda name: -abs(apart[name]))[:SHOWN]
        if apart[name]
    )


def transcripts(
    data: DataSet, found: Mapping[str, Any], errors: metrics.Statistic, normaliser: metrics.Normaliser
) -> tuple[WorstSample, ...]:
    """Those of the highest word error rate first, then those of most errors; words are normalised."""
    rates = errors.value(errors.rows)
    names, references = list(found), _references(data, found)
    order = sorted(range(len(names)), key=lambda i: (-rates[i], -errors.rows[i, 0]))
    worst = []
    for i in order[:SHOWN]:
        if not errors.rows[i, 0]:
            break
        expected, heard = references[i], found[names[i]]["text"]
        words = metrics.aligned_words(
            metrics.normalise_transcript(heard, normaliser),
            metrics.normalise_transcript(expected, normaliser),
        )
        figure = f"WER {100 * rates[i]:.1f} %"
        worst.append(
            WorstSample(names[i], figure, "", shortened(expected), shortened(heard), _clipped_words(words))
        )
    return tuple(worst)


def translations(data: DataSet, found: Mapping[str, Any], chrf: metrics.Statistic) -> tuple[WorstSample, ...]:
    """Those of the lowest chrF of their own first."""
    values = chrf.value(chrf.rows)
    names, references = list(found), _references(data, found)
    inputs = {sample.id: sample.input for sample in data.samples}
    order = [int(i) for i in np.argsort(values, kind="stable")[:SHOWN] if values[i] < 100]
    return tuple(
        WorstSample(
            names[i],
            f"chrF {values[i]:.1f}",
            shortened(str(inputs[names[i]])),
            shortened(references[i]),
            shortened(found[names[i]]["text"]),
        )
        for i in order
    )


def unanswered(data: DataSet, sample: EvaluationSample) -> WorstSample:
    """A sample without a prediction."""
    declared = task(data.task)
    reference = sample.reference
    return WorstSample(
        sample.id,
        "no prediction",
        "" if declared.sound else shortened(as_read(sample.input)),
        _label(data, reference) if data.labels else shortened(str(reference)),
        None,
    )


def _references(data: DataSet, found: Mapping[str, Any]) -> list[str]:
    return [sample.reference for sample in data.samples if sample.id in found]


def _confidence(value: Mapping[str, Any]) -> float | None:
    """The probability of the label that was given (softmax of the logits), where these are recorded."""
    logits = value.get("logits")
    if not logits:
        return None
    powers = np.exp(np.asarray(logits, np.float64) - max(logits))
    return float(powers.max() / powers.sum())


def _label(data: DataSet, index: Any) -> str:
    """A label by its index, several by theirs, or a score."""
    if isinstance(index, list | tuple):
        return ", ".join(_label(data, each) for each in index) or "no label"
    if isinstance(index, float):
        return f"{index:g}"
    return data.labels[index] if 0 <= index < len(data.labels) else f"label {index}"


def _clipped_words(words: Sequence[tuple[str, str]]) -> Words:
    """So many as have room; a model that repeats itself has thousands."""
    kept, room = list[tuple[str, str]](), _CHARACTERS
    for expected, heard in words:
        room -= max(len(expected), len(heard)) + 1
        if room < 0:
            return (*kept, ("…", "…"))
        kept.append((expected, heard))
    return tuple(kept)
