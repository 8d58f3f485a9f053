"""What a search found: its trials, the winner, and how far each is from the budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pressoir.benchmark.classifier_report import points, times
from pressoir.benchmark.cost import CostConditions
from pressoir.benchmark.reports import AnyRow
from pressoir.config import Config
from pressoir.recipe_search import budget
from pressoir.recipe_search.budget import ConstraintViolation, SearchLimits
from pressoir.recipe_search.config import SearchConfig
from pressoir.recipe_search.records import Figures, Trial


class SearchOutcome(Config):
    """What a search found."""

    trials: tuple[Trial, ...]
    reference: Figures
    """Of the exported teacher, on the validation split."""
    limits: SearchLimits
    conditions: CostConditions
    winner: Trial | None
    """None where no recipe meets the budget."""
    nearest: Trial | None
    """Then: the one that is nearest to it, where anything is known of any."""
    misses: tuple[ConstraintViolation, ...]
    """The constraints that it fails."""
    front: tuple[Trial, ...]
    """Finished trials that none beats in everything."""

    def headline(self) -> str:
        """The answer in one line."""
        if self.winner is not None:
            metrics = self.winner.outcome.figures
            assert metrics is not None
            first = self.reference
            return (
                f"{self.winner.named()}: {metrics.size_mb:.2f} MB, {metrics.latency_ms:.2f} ms, validation "
                f"accuracy {100 * metrics.accuracy:.1f} % "
                f"({times(first.size_mb / metrics.size_mb, 'smaller', 'larger')}, "
                f"{times(first.latency_ms / metrics.latency_ms, 'faster', 'slower')}, "
                f"{points(metrics.accuracy - first.accuracy)} points against the exported teacher)"
            )
        if self.nearest is None:
            return "No recipe meets the budget: no trial produced a model."
        known = "" if self.nearest.outcome.accuracy is not None else "; its accuracy is unknown"
        return (
            f"No recipe meets the budget. The nearest, {self.nearest.named()}, has "
            f"{'; '.join(map(str, self.misses))}{known}."
        )


class SearchResult(Config):
    """What a run of the search flow leaves behind."""

    folder: Path
    """Of the search: recipe, report, page, study."""
    found: SearchOutcome
    model: str | None
    """Digest of the winner's model; None where there is none."""
    rows: tuple[AnyRow, ...]
    """Its benchmark on the test split."""
    prefect_run_id: str
    mlflow_run_id: str
    tracking_uri: str
    """Where MLflow keeps the run."""


def conclude(
    config: SearchConfig,
    trials: Sequence[Trial],
    reference: Figures,
    limits: SearchLimits,
    conditions: CostConditions,
) -> SearchOutcome:
    """Choose the winner, or the nearest."""
    best = budget.winner(trials, limits, config.prefer)
    near = budget.nearest(trials, limits) if best is None else None
    return SearchOutcome(
        trials=tuple(trials),
        reference=reference,
        limits=limits,
        conditions=conditions,
        winner=best,
        nearest=near[0] if near else None,
        misses=tuple(near[1]) if near else (),
        front=tuple(budget.pareto_front(trials)),
    )


def verdict(found: SearchOutcome, trial: Trial) -> str:
    """What became of a trial, in a few words."""
    if found.winner is not None and trial.number == found.winner.number:
        return "wins"
    if trial.outcome.figures is None:
        return f"{trial.outcome.state} {trial.outcome.reason}"
    failing = budget.misses(trial.outcome.figures, trial.outcome.accuracy, found.limits)
    return "; ".join(map(str, failing)) or "meets the budget"
