"""The outcome of an evaluation as values: one row a model, and what `consolidated.json` holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pressoir.config import Config
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.journal import Prediction
from pressoir.evaluation.planner import Placement
from pressoir.evaluation.records import RunOutcome, Verdict
from pressoir.evaluation.report.scoring import Score
from pressoir.extensions.task import task
from pressoir.extensions.task_name import TaskName
from pressoir.formats.folder import Runtime


@dataclass(frozen=True)
class EvaluationOutcome:
    """One run, that is one model on one data set, as it ended."""

    run_id: str
    model: str
    """Id of the model."""
    data_name: str
    data: DataSet
    outcome: RunOutcome
    """With `metrics` and `notes` of `scoring.score`."""
    predictions: Sequence[Prediction]
    """Those that were asked for, in any order."""
    score: Score
    """Of these predictions."""


class ModelResult(Config):
    """What a run predicted and scored: the same however often it was interrupted."""

    id: str
    """Of the run: the model's, with the data set's where it has several."""
    model: str
    data: str
    task: TaskName
    runtime: Runtime | Literal["remote"] | None
    """Null where it never came so far."""
    verdict: Verdict
    detail: str
    samples: int
    """With a prediction."""
    total: int
    """Asked for; 0 where that never became known."""
    success_rate: float
    """Part of them that has a prediction, 0–1."""
    metrics: dict[str, float]
    """The main one first; to `scoring.DIGITS` digits."""
    intervals: dict[str, tuple[float, float]] = {}  # noqa: RUF012 — pydantic copies defaults
    """95 % confidence intervals of metrics: by bootstrap over the samples, accuracy's is Wilson's."""
    notes: tuple[str, ...]


class Comparison(Config):
    """Two models on the samples of a data set that both answered, by one metric."""

    task: TaskName
    data: str
    metric: str
    model: str
    """Id of a run."""
    against: str
    """Id of the run that it is compared with, which has the better main metric."""
    samples: int
    """Answered by both."""
    difference: float
    """The model's metric less the other's, on these samples."""
    low: float
    """Of the difference's 95 % interval."""
    high: float
    p_value: float
    """Two-sided, see `pressoir.evaluation.report.significance`."""


class Measured(Config):
    """What was measured about a run."""

    seconds: float
    """Spent in the model."""
    load_s: float
    """Imports and loading, over all attempts."""
    samples_per_s: float | None
    """Samples (of a causal LM: windows) by those seconds."""
    batch_size: int | None
    """Most samples that went through the model together."""
    predicted_peak_bytes: int | None
    """At the batch size that was run."""
    measured_peak_bytes: int | None
    real_time_factor: float | None = None
    """Speech: seconds by seconds of sound; below 1 it is faster than speech."""


class Consolidated(Config):
    """The content of `consolidated_results.json`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    run: str
    """Name of the folder."""
    name: str
    """The configuration's."""
    models: tuple[ModelResult, ...]
    """In the configuration's order."""
    comparisons: tuple[Comparison, ...] = ()
    """Of models on the same data."""
    measured: dict[str, Measured]
    """By run id."""
    context: dict[str, Any]
    """Strategy, budget, limit, threads, versions."""


class BatchResult(Config):
    """The content of a `batch_<n>_results.json`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    batch: int
    """Its number in the plan, from 1."""
    name: str
    placements: tuple[Placement, ...]
    predicted_peak_bytes: int
    """Sum of the placements'."""
    measured_peak_bytes: int | None
    """Largest PSS of all its children at one moment; null where no sample of the memory was taken."""
    outcomes: tuple[RunOutcome, ...]


@dataclass(frozen=True)
class EvaluationRow:
    """A line of the table."""

    result: ModelResult
    measured: Measured

    @property
    def main_metric(self) -> str | None:
        """Name of the main metric, where it could be computed."""
        name = task(self.result.task).main_metric_of(self.result.metrics).name
        return name if name in self.result.metrics else None

    @property
    def whole(self) -> bool:
        """Whether it ended well, with all samples."""
        return self.result.verdict == "ok" and self.result.samples == self.result.total

    @property
    def peak_ratio(self) -> float | None:
        """Predicted by measured peak; 1 or more is safe."""
        predicted, measured = self.measured.predicted_peak_bytes, self.measured.measured_peak_bytes
        return predicted / measured if predicted and measured else None

    def figures(self) -> dict[str, float]:
        """All its figures by name, metrics first."""
        known = {**self.result.metrics, "success_rate": self.result.success_rate}
        measured = self.measured.model_dump(exclude_none=True)
        return {**known, **{name: float(value) for name, value in measured.items()}}


@dataclass(frozen=True)
class Report:
    """What was written."""

    paths: tuple[Path, ...]
    rows: tuple[EvaluationRow, ...]
    """In the configuration's order."""
    headline: str


def clipped(names: Sequence[str], most: int) -> list[str]:
    """Names without their middle where they have more than `most` letters; longer if they were the same then.

    Both ends matter: a family's models share the beginning, the runs on one data set the end.
    """
    for limit in range(most, max(map(len, names), default=0), 6):
        half = (limit - 1) // 2
        short = [n if len(n) <= limit else f"{n[: limit - 1 - half]}…{n[-half:]}" for n in names]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def rate(value: float | None) -> str:
    """Samples a second, in few digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"
