"""From raw predictions to scores, at the end of a run: a new metric needs no new inference.

==============================  ===========================================================================
task                            metrics, the main one first
==============================  ===========================================================================
`text-classification`           `accuracy` with its Wilson 95 % interval, `f1`, `macro_f1`; fractions 0–1.
                                Multi-label: `micro_f1`, `macro_f1`; regression: `pearson`, `spearman`, `mae`
`automatic-speech-recognition`  `wer`, `cer`; fractions, 0 is perfect
`translation`                   `bleu`, `chrf`; 0–100
`causal-lm`                     `perplexity`, and `perplexity/<text>` where there are several texts
`feature-extraction`            `spearman`: rank correlation with the similarities of the data, −1 to 1
==============================  ===========================================================================

Only samples that have a prediction are scored. Floats are first rounded to the digits that
`consolidated_detailed.jsonl` shows: the scores can be computed again from that file alone, and noise in the
last bits of a prediction does not reach them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pressoir import metrics
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.report import worst
from pressoir.evaluation.report.worst import WorstSample
from pressoir.extensions.task import Metric, task, tasks
from pressoir.formats import tags
from pressoir.formats.problems import MULTI_LABEL, REGRESSION, TOKENS
from pressoir.formats.tags import OUTSIDE
from pressoir.metrics import Statistic

DIGITS = 6
"""Significant digits of the floats in a raw prediction."""
Predictions = Mapping[str, Any]
"""Rounded raw predictions by sample, in the data's order; never empty."""


@dataclass(frozen=True)
class Score:
    """Metrics by name, and what has to be said with them: signatures, normalisers, which F1."""

    metrics: dict[str, float]
    """Empty where nothing could be scored; finite."""
    notes: tuple[str, ...]
    samples: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Ids of what was scored."""
    statistics: Mapping[str, Statistic] = field(default_factory=dict, compare=False, repr=False)
    """By metric, its rows those of `samples`: of metrics that are sums over independent samples."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict, compare=False, repr=False)
    """95 % confidence intervals of metrics that have a formula; others are resampled from `statistics`."""
    worst: tuple[WorstSample, ...] = field(default=(), compare=False, repr=False)
    """Those furthest from what would be right, the worst first."""


def score(data: DataSet, predictions: Mapping[str, Any]) -> Score:
    """Score the samples that have a prediction.

    `predictions` has the raw predictions (see `pressoir.evaluation.child.predictors`) by sample id; of a
    causal LM by `<text>:<window>`. Ids that the data lack are left out; the order does not matter.
    """
    declared = task(data.task)
    found = {name: rounded(predictions[name]) for name in in_order(data, predictions)}
    if not found:
        return Score({}, ("no predictions to score",))
    result: Score = declared.part("score")(data, found)
    return replace(result, samples=tuple(found))


def audio_seconds(values: Sequence[Any]) -> float:
    """Length of what was heard, over raw predictions of speech recognition; 0 without any.

    Seconds of computing divided by it are the real-time factor: a measured figure, which another machine
    would not repeat, and so no metric.
    """
    return math.fsum(value["audio_s"] for value in values)


def rounded(value: Any) -> Any:
    """A raw prediction with its floats rounded to `DIGITS` significant digits."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def in_order(data: DataSet, samples: Iterable[str]) -> list[str]:
    """Those of the ids that belong to the data, in its order; windows (`<text>:<index>`) by index."""
    if not task(data.task).windows:
        known = set(samples)
        return [sample.id for sample in data.samples if sample.id in known]
    positions = {sample.id: position for position, sample in enumerate(data.samples)}
    windows = []
    for name in samples:
        text, _, index = name.rpartition(":")
        if text in positions and index.isdecimal():
            windows.append((positions[text], int(index), name))
    return [name for _, _, name in sorted(windows)]


def name_of(metric: str) -> str:
    """A metric as a person writes it: `WER`, `perplexity of wiki`."""
    name, _, text = metric.partition("/")
    title = _metric(name).title or name
    return f"{title} of {text}" if text else title


def figure_of(metric: str, value: float) -> str:
    """A metric's value as a person reads it: `91.3 %`, `27.41`, `1,204`."""
    form = _metric(metric.partition("/")[0]).form
    if form == "percent":
        return f"{100 * value:.1f} %"
    if form == "correlation":
        return f"{value:.3f}".replace("-", "−")
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def difference_of(metric: str, value: float) -> str:
    """A difference of two values of a metric, in the metric's unit or in points: `+1.2`, `−0.53`."""
    figure = f"{100 * value:+.1f}" if _metric(metric).form == "percent" else f"{value:+.2f}"
    return figure.replace("-", "−")


def interval_of(metric: str, low: float, high: float) -> str:
    """An interval of a metric's values, in the metric's unit: `40.2–46.1`."""
    scale, digits = (100, 1) if _metric(metric).form == "percent" else (1, 2)
    return f"{scale * low:.{digits}f}–{scale * high:.{digits}f}"


def _metric(name: str) -> Metric:
    return next(
        (metric for declared in tasks() for metric in declared.metrics if metric.name == name), Metric(name)
    )


def classification(data: DataSet, found: Predictions) -> Score:
    """Accuracy with Wilson's interval, and F1; of sets of labels F1 alone, of scores correlations."""
    if data.problem == MULTI_LABEL.name:
        return _label_sets(data, found)
    if data.problem == REGRESSION.name:
        return _numbers(data, found)
    answers, expected = [value["label"] for value in found.values()], _expected(data, found)
    correct = [answer == label for answer, label in zip(answers, expected, strict=True)]
    right = sum(correct)
    low, high = metrics.wilson_interval(right, len(expected))
    count = max(len(data.labels), 2)
    f1 = metrics.f1(answers, expected, count)
    if count > 2:
        occurring = len({label for label in (*answers, *expected) if label >= 0})
        note = f"F1 is the macro average over {occurring} classes"
    else:
        note = f"F1 is that of class {data.labels[1]!r}" if data.labels else "F1 is that of class 1"
    notes = [note, "the interval of the accuracy is the 95 % Wilson confidence interval"]
    if strange := sum(answer < 0 for answer in answers):
        notes.append(f"{strange} answers were not a label and count as wrong")
    return Score(
        {
            "accuracy": right / len(expected),
            "f1": f1,
            "macro_f1": metrics.macro_f1(answers, expected),
            "accuracy_ci_low": low,
            "accuracy_ci_high": high,
        },
        tuple(notes),
        statistics={"accuracy": Statistic.of_ratio(correct, [1] * len(correct))},
        intervals={"accuracy": (low, high)},
        worst=worst.labels(data, found),
    )


def _label_sets(data: DataSet, found: Predictions) -> Score:
    """Micro- and macro-averaged F1."""
    count = len(data.labels)
    given = MULTI_LABEL.targets([value["labels"] for value in found.values()], count)
    expected = MULTI_LABEL.targets(_expected(data, found), count)
    note = f"F1 of {count} labels, decided by the model's own thresholds; intervals are those of a bootstrap"
    return Score(
        MULTI_LABEL.score(given, expected, count),
        (note,),
        statistics=metrics.label_set_statistics(given, expected),
        worst=worst.label_sets(data, found),
    )


def _numbers(data: DataSet, found: Predictions) -> Score:
    """Pearson's and Spearman's correlation, and the mean absolute error."""
    given = np.asarray([value["score"] for value in found.values()], np.float64)
    expected = np.asarray(_expected(data, found), np.float64)
    if len(found) < 2 or not given.std() or not expected.std():
        notes = ("the correlation is undefined: one side is constant over all texts",)
        return Score({"mae": float(np.abs(given - expected).mean())}, notes)
    return Score(
        REGRESSION.score(given, expected, 1),
        (f"correlations of {len(found)} scores; intervals are those of a bootstrap",),
        statistics=metrics.regression_statistics(given, expected),
        worst=worst.scores(data, found),
    )


def spans(data: DataSet, found: Predictions) -> Score:
    """F1, precision and recall of the spans that tags mark."""
    problem, count = TOKENS.of(data.labels), len(data.labels)
    given = TOKENS.targets([value["tags"] for value in found.values()], count)
    expected = TOKENS.targets(_expected(data, found), count)
    names = [
        [data.labels[index] for index in sample.reference] for sample in data.samples if sample.id in found
    ]
    own = [
        [data.labels[index] if index >= 0 else OUTSIDE for index in value["tags"]] for value in found.values()
    ]
    return Score(
        problem.score(given, expected, count),
        ("spans and their F1 are seqeval's; intervals are those of a bootstrap over the sentences",),
        statistics={"span_f1": tags.statistic(own, names)},
        worst=worst.tags(data, found),
    )


def recognition(data: DataSet, found: Predictions) -> Score:
    """Word and character error rates."""
    texts, expected = [value["text"] for value in found.values()], _expected(data, found)
    normaliser = data.normaliser or metrics.normaliser_of(data.language)
    wer, cer = (rate(texts, expected, normaliser) for rate in (metrics.wer, metrics.cer))
    score = _signed(data, wer=wer, cer=cer)
    return replace(score, worst=worst.transcripts(data, found, wer.statistic, normaliser))


def translation(data: DataSet, found: Predictions) -> Score:
    """BLEU and chrF."""
    texts, expected = [value["text"] for value in found.values()], _expected(data, found)
    tokenizer = data.bleu_tokenizer or metrics.bleu_tokenizer(data.language, expected)
    bleu, chrf = metrics.bleu(texts, expected, tokenizer), metrics.chrf(texts, expected)
    score = _signed(data, bleu=bleu, chrf=chrf)
    return replace(score, worst=worst.translations(data, found, chrf.statistic))


def perplexity(data: DataSet, found: Predictions) -> Score:
    """exp(sum of the negative log-likelihoods / sum of the tokens), over the windows of all texts."""
    windows: dict[str, list[Any]] = {}
    for name, value in found.items():
        windows.setdefault(name.rpartition(":")[0], []).append(value)
    sums = {
        text: (math.fsum(value["nll"] for value in own), sum(value["tokens"] for value in own))
        for text, own in windows.items()
    }
    tokens = sum(count for _, count in sums.values())
    means = {"perplexity": math.fsum(nll for nll, _ in sums.values()) / tokens}
    if len(sums) > 1:
        means |= {f"perplexity/{text}": nll / count for text, (nll, count) in sums.items()}
    notes = [
        f"perplexity is over {tokens:,} tokens in non-overlapping windows, each scored from its second "
        "token on; it is comparable only between models with the same tokenizer and window"
    ]
    if beyond := [name_of(name) for name, mean in means.items() if mean > 700]:
        notes.append(f"not representable as a float: {', '.join(beyond)}")
    return Score({name: math.exp(mean) for name, mean in means.items() if mean <= 700}, tuple(notes))


def correlation(data: DataSet, found: Predictions) -> Score:
    """Spearman's rank correlation (1904): Pearson's of the ranks, ties at their mean rank."""
    first = metrics.ranks([value["similarity"] for value in found.values()])
    second = metrics.ranks(_expected(data, found))
    if len(found) < 2 or not first.std() or not second.std():
        return Score({}, ("Spearman's correlation is undefined: one side is constant over all pairs",))
    value = float(np.clip(np.corrcoef(first, second)[0, 1], -1, 1))
    return Score({"spearman": value}, (f"Spearman's rank correlation over {len(found)} pairs",))


def _expected(data: DataSet, found: Predictions) -> list[Any]:
    """What would be right, of each sample that has a prediction."""
    return [sample.reference for sample in data.samples if sample.id in found]


def _signed(data: DataSet, **scores: metrics.TextScore) -> Score:
    return Score(
        {name: score.value for name, score in scores.items()},
        (*(score.signature for score in scores.values()), *data.notes),
        statistics={name: score.statistic for name, score in scores.items()},
    )
