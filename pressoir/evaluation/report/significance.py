"""How far a score is to be trusted, and whether two models differ: by resampling the samples of the data.

**Interval.** The 95 % percentile interval of the bootstrap (Efron and Tibshirani 1993, ch. 13; for BLEU:
Koehn, EMNLP 2004): the samples are drawn again with replacement, and the metric of the whole corpus is
computed of each draw, from sums over samples (`pressoir.metrics.Statistic`).

**Difference of two models.** Its interval is that of the paired bootstrap: both models are scored on the same
draws. Its p-value is that of approximate randomisation (Noreen 1989; Riezler and Maxwell, ACL workshop 2005;
sacrebleu's `--paired-ar`): if the models were equally good, it would not matter which of them gave which of
two answers; p is how often a random exchange of answers makes a difference at least as large,
(count + 1) / (exchanges + 1). Only samples that both models answered are compared.

Both are of the samples alone: another training run of the same model would differ more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pressoir.evaluation.report.results import Comparison, EvaluationOutcome
from pressoir.evaluation.report.scoring import Score, rounded
from pressoir.extensions.task import task
from pressoir.metrics import DRAWS, Statistic, resampled
from pressoir.metrics import bootstrap as scores
from pressoir.metrics import percentile_interval as interval

_FEW = 3  # so many models are compared each with each, more only with the best

Floats = NDArray[np.float64]


def intervals(score: Score) -> dict[str, tuple[float, float]]:
    """The interval of each metric that has one; of a single sample, which says nothing of others, none."""
    drawn = [name for name in score.statistics if name not in score.intervals]
    if len(score.samples) < 2 or not score.statistics:
        return {}
    values = scores(*(score.statistics[name] for name in drawn)) if drawn else []
    found = {**score.intervals, **dict(zip(drawn, map(interval, values), strict=True))}
    return {name: tuple(rounded(bounds)) for name, bounds in found.items()}


def p_values(first: Sequence[Statistic], second: Sequence[Statistic]) -> list[float]:
    """By metric, how likely a difference as large would be if two models, on the same samples, were equal.

    The smallest is 1 / (`DRAWS` + 1).
    """
    pairs = list(zip(first, second, strict=True))
    # Exchanging two answers moves their difference from one model's sums to the other's.
    moved = resampled([right.rows - left.rows for left, right in pairs], _exchange)
    found = list[float]()
    for (left, right), change in zip(pairs, moved, strict=True):
        before, after = (each.rows.sum(axis=0, keepdims=True) for each in (left, right))
        real = np.abs(right.value(after) - left.value(before))
        exchanged = np.abs(right.value(after - change) - left.value(before + change))
        found.append(float(1 + np.count_nonzero(exchanged >= real - 1e-12)) / (DRAWS + 1))
    return found


def compare(outcomes: Sequence[EvaluationOutcome]) -> tuple[Comparison, ...]:
    """The models of each data set: each with each where they are few, else each with the best."""
    groups: dict[tuple[str, str], list[EvaluationOutcome]] = {}
    for result in outcomes:
        if (
            result.score.statistics
            and task(result.data.task).main_metric_of(result.score.metrics).name in result.score.metrics
        ):
            groups.setdefault((result.data.task, result.data_name), []).append(result)
    return tuple(found for group in groups.values() for pair in _pairs(group) for found in _compare(*pair))


def _pairs(group: Sequence[EvaluationOutcome]) -> Iterator[tuple[EvaluationOutcome, EvaluationOutcome]]:
    metric = task(group[0].data.task).main_metric_of(group[0].score.metrics)

    def rank(result: EvaluationOutcome) -> tuple[bool, float]:
        value = result.score.metrics[metric.name]
        return result.outcome.verdict != "ok", value if metric.lower_is_better else -value

    ranked = sorted(group, key=rank)
    most = len(ranked) if len(ranked) <= _FEW else 1
    for index, best in enumerate(ranked[:most]):
        yield from ((best, other) for other in ranked[index + 1 :])


def _compare(best: EvaluationOutcome, other: EvaluationOutcome) -> Iterator[Comparison]:
    indices = {sample: index for index, sample in enumerate(best.score.samples)}
    shared = [(indices[s], index) for index, s in enumerate(other.score.samples) if s in indices]
    if len(shared) < 2:
        return
    names = [name for name in best.score.statistics if name in other.score.statistics]
    first, second = (
        [replace(each.score.statistics[name], rows=each.score.statistics[name].rows[own]) for name in names]
        for each, own in zip((best, other), map(list, zip(*shared, strict=True)), strict=True)
    )
    drawn = scores(*first, *second)
    chances = p_values(first, second)
    for index, name in enumerate(names):
        low, high = interval(drawn[len(names) + index] - drawn[index])
        best_value, other_value = (
            each.value(each.rows.sum(axis=0, keepdims=True))[0] for each in (first[index], second[index])
        )
        yield Comparison(
            task=best.data.task,
            data=best.data_name,
            metric=name,
            model=other.run_id,
            against=best.run_id,
            samples=len(shared),
            **rounded(
                {
                    "difference": float(other_value - best_value),
                    "low": low,
                    "high": high,
                    "p_value": chances[index],
                }
            ),
        )


def _exchange(random: np.random.Generator, draws: int, samples: int) -> Floats:
    """Whose answers are exchanged, 0 or 1, (draws, samples)."""
    return random.integers(2, size=(draws, samples), dtype=np.int8).astype(np.float64)
