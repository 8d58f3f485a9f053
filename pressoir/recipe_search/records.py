"""What is known of a trial: which fields it chose, what was measured, and how it ended."""

from __future__ import annotations

from typing import Any, Literal

from pressoir.benchmark.cost import Cost
from pressoir.config import Config, Fraction


class Figures(Cost, allow_inf_nan=False):
    """What a finished model costs and can do."""

    accuracy: Fraction
    """Part of the validation split that gets the right label."""


class TrialOutcome(Config, allow_inf_nan=False):
    """How a trial ended."""

    state: Literal["finished", "cut", "failed"]
    """`cut`: hopeless, so it was not trained to its end."""
    reason: str = ""
    """Why it was cut, or failed."""
    predicted: Cost | None = None
    """Of an untrained model of the same shape."""
    short_accuracy: Fraction | None = None
    """Validation accuracy after the short distillation."""
    figures: Figures | None = None
    """Of the finished model."""
    digest: str | None = None
    """Of the finished model's files."""
    seconds: float = 0.0
    """How long it took, in all attempts that were not killed."""

    @property
    def cost(self) -> Cost | None:
        """The best that is known of size and latency."""
        return self.figures or self.predicted

    @property
    def accuracy(self) -> float | None:
        """The best that is known of it: of a trial that was cut, after the short distillation."""
        return self.figures.accuracy if self.figures else self.short_accuracy


class Trial(Config):
    """One recipe that was tried."""

    number: int
    values: dict[str, Any]
    """What it chose, by the field's dotted name."""
    outcome: TrialOutcome

    def named(self) -> str:
        """Its choices in one line: `distill.student.layers=3, prune.ffn_sparsity=0.5`."""
        return describe(self.values)

    def metrics(self) -> dict[str, float]:
        """What it cost and measured, by the names that are logged; predictions are `predicted_<figure>`."""
        outcome = self.outcome
        found = {"seconds": outcome.seconds}
        if outcome.figures is not None:
            found |= outcome.figures.model_dump()
        if outcome.predicted is not None:
            found |= {f"predicted_{name}": value for name, value in outcome.predicted.model_dump().items()}
        if outcome.short_accuracy is not None:
            found["short_accuracy"] = outcome.short_accuracy
        return found


def describe(values: dict[str, Any]) -> str:
    """Choices in one line."""
    return ", ".join(f"{key}={value}" for key, value in values.items())
