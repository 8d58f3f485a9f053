"""Whether a model meets a budget, by how much it does not, and which model is best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pressoir.benchmark.cost import Cost
from pressoir.config import Config
from pressoir.recipe_search.config import Budget
from pressoir.recipe_search.records import Figures, Trial

_TOLERANCE = 1e-9  # a fraction of sentences, less another one, is off by rounding


class SearchLimits(Config):
    """A budget in absolute numbers."""

    max_size_mb: float | None
    max_latency_ms: float | None
    min_accuracy: float | None

    @classmethod
    def from_budget(cls, budget: Budget, reference: Figures) -> SearchLimits:
        """The limits of a budget, given the teacher's figures."""
        least = budget.min_accuracy
        if budget.max_accuracy_drop is not None:
            least = max(0.0, reference.accuracy - budget.max_accuracy_drop)
        return cls(max_size_mb=budget.max_size_mb, max_latency_ms=budget.max_latency_ms, min_accuracy=least)


class ConstraintViolation(Config):
    """One constraint, and how far a model is from it."""

    constraint: Literal["max_size_mb", "max_latency_ms", "min_accuracy"]
    limit: float
    value: float

    @property
    def part(self) -> float:
        """By which part of the limit it fails; not above 0 where it holds."""
        excess = self.value - self.limit if self.constraint != "min_accuracy" else self.limit - self.value
        return excess / max(abs(self.limit), 1e-9) if abs(excess) > _TOLERANCE else 0.0

    def __str__(self) -> str:
        if self.constraint == "max_size_mb":
            return f"{self.value:.2f} MB, {self.value - self.limit:.2f} MB above max_size_mb {self.limit:g}"
        if self.constraint == "max_latency_ms":
            over = f"{self.value - self.limit:.2f} ms above max_latency_ms {self.limit:g}"
            return f"{self.value:.2f} ms, {over}"
        return (
            f"accuracy {100 * self.value:.1f} %, {100 * (self.limit - self.value):.1f} points below the "
            f"minimum of {100 * self.limit:.1f} %"
        )


def measured(cost: Cost | None, accuracy: float | None, limits: SearchLimits) -> list[ConstraintViolation]:
    """Every constraint whose quantity is known, with the quantity."""
    found = []
    if cost is not None and limits.max_size_mb is not None:
        found.append(
            ConstraintViolation(constraint="max_size_mb", limit=limits.max_size_mb, value=cost.size_mb)
        )
    if cost is not None and limits.max_latency_ms is not None:
        found.append(
            ConstraintViolation(
                constraint="max_latency_ms", limit=limits.max_latency_ms, value=cost.latency_ms
            )
        )
    if accuracy is not None and limits.min_accuracy is not None:
        found.append(
            ConstraintViolation(constraint="min_accuracy", limit=limits.min_accuracy, value=accuracy)
        )
    return found


def misses(cost: Cost | None, accuracy: float | None, limits: SearchLimits) -> list[ConstraintViolation]:
    """Every constraint that fails."""
    return [violation for violation in measured(cost, accuracy, limits) if violation.part > 0]


def meets(figures: Figures, limits: SearchLimits) -> bool:
    """Whether a finished model holds every constraint."""
    return not misses(figures, figures.accuracy, limits)


def cannot_cost(predicted: Cost, limits: SearchLimits, latency_tolerance: float) -> str:
    """Why a model of that predicted cost cannot meet the budget; empty where it may."""
    failing = [
        violation
        for violation in misses(predicted, None, limits)
        if violation.constraint == "max_size_mb" or violation.part > latency_tolerance
    ]
    return "; ".join(map(str, failing))


def cannot_reach(
    accuracy: float, predicted: Cost | None, limits: SearchLimits, slack: float, rivals: Sequence[Figures]
) -> str:
    """Why a model that has this accuracy after a short distillation is hopeless; empty where it is not.

    It is where `slack` more would still be too little, or where a rival that meets the budget is no larger,
    no slower, and more accurate than it could become.
    """
    best = min(1.0, accuracy + slack)
    if limits.min_accuracy is not None and best < limits.min_accuracy - _TOLERANCE:
        miss = ConstraintViolation(constraint="min_accuracy", limit=limits.min_accuracy, value=accuracy)
        return f"{miss}, but full training is assumed to add at most {100 * slack:g} points"
    for rival in rivals if predicted is not None else ():
        assert predicted is not None
        smaller = rival.size_mb <= predicted.size_mb and rival.latency_ms <= predicted.latency_ms
        if smaller and rival.accuracy > best:
            return (
                f"accuracy {accuracy:.1%} may gain {100 * slack:g} points, but a model with "
                f"{rival.size_mb:.2f} MB and {rival.latency_ms:.2f} ms has {rival.accuracy:.1%}"
            )
    return ""


def winner(
    trials: Sequence[Trial], limits: SearchLimits, prefer: Literal["accuracy", "size", "latency"]
) -> Trial | None:
    """The finished trial that meets the budget and is best in what is preferred; None where none meets it.

    What is left equal is decided by accuracy, size, latency, and the number.
    """

    def rank(trial: Trial) -> tuple[float, ...]:
        metrics = trial.outcome.figures
        assert metrics is not None
        order = {"accuracy": -metrics.accuracy, "size": metrics.size_mb, "latency": metrics.latency_ms}
        return (order[prefer], *order.values(), trial.number)

    good = [trial for trial in trials if trial.outcome.figures and meets(trial.outcome.figures, limits)]
    return min(good, key=rank, default=None)


def nearest(trials: Sequence[Trial], limits: SearchLimits) -> tuple[Trial, list[ConstraintViolation]] | None:
    """The trial whose failing constraints exceed their limits least in sum, and these constraints.

    Of trials that are equally near, one that was trained to its end goes first.
    """

    def rank(trial: Trial) -> tuple[float, ...]:
        failing = misses(trial.outcome.cost, trial.outcome.accuracy, limits)
        return (sum(violation.part for violation in failing), trial.outcome.figures is None, trial.number)

    known = [trial for trial in trials if trial.outcome.cost or trial.outcome.accuracy is not None]
    if not known:
        return None
    best = min(known, key=rank)
    return best, misses(best.outcome.cost, best.outcome.accuracy, limits)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Finished trials that no other beats in accuracy, size and latency at once, the smallest first."""

    def costs(trial: Trial) -> tuple[float, float, float]:
        metrics = trial.outcome.figures
        assert metrics is not None
        return -metrics.accuracy, metrics.size_mb, metrics.latency_ms

    finished = [trial for trial in trials if trial.outcome.figures is not None]
    front = [
        trial
        for trial in finished
        if not any(
            all(a <= b for a, b in zip(costs(other), costs(trial), strict=True))
            and costs(other) != costs(trial)
            for other in finished
        )
    ]
    return sorted(front, key=lambda trial: (costs(trial)[1], trial.number))
