"""Which models run together: a pure function of their estimates and a budget.

Models are packed into batches by first-fit decreasing (Johnson 1973, "Near-optimal bin packing algorithms"):
the largest first, each into the first batch that still has room for its predicted peak. Children of a batch
run side by side, batches one after another. The same input always gives the same plan.

A model that does not fit at the batch size it would like gets a smaller one; one that does not fit even with
a single sample is skipped, with its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pressoir.config import Config
from pressoir.evaluation.config import MemoryConfig, Strategy
from pressoir.evaluation.records import Estimate

GB = 10**9


class Preset(Config):
    """What a strategy stands for."""

    reserve_bytes: int
    """Kept free for others."""
    batch_size: int
    """Samples a batch to begin with."""
    max_parallel: int
    """Most children at once."""


PRESETS: dict[Strategy, Preset] = {
    "aggressive": Preset(reserve_bytes=1 * GB, batch_size=16, max_parallel=4),
    "moderate": Preset(reserve_bytes=3 * GB // 2, batch_size=8, max_parallel=2),
    "conservative": Preset(reserve_bytes=1 * GB // 2, batch_size=4, max_parallel=1),
}
PARALLEL_ABOVE = 32 * GB


class Placement(Config):
    """One model in a batch."""

    model: str
    batch_size: int
    """Samples a batch to begin with."""
    peak_bytes: int
    """Predicted at that batch size."""


class Skipped(Config):
    """A model that can never fit."""

    model: str
    peak_bytes: int
    """Predicted with a single sample a batch."""
    budget_bytes: int


class Batch(Config):
    """Models that run side by side."""

    name: str
    placements: tuple[Placement, ...]

    @property
    def peak_bytes(self) -> int:
        """Sum of the predicted peaks."""
        return sum(placement.peak_bytes for placement in self.placements)


class EvaluationPlan(Config):
    """What will run, in order."""

    budget_bytes: int
    batches: tuple[Batch, ...]
    skipped: tuple[Skipped, ...]


def pick_strategy(available_bytes: int, memory: MemoryConfig = MemoryConfig()) -> Strategy:  # noqa: B008
    """The preset for the memory that is really available."""
    if available_bytes > memory.aggressive_above_gb * GB:
        return "aggressive"
    return "conservative" if available_bytes < memory.conservative_below_gb * GB else "moderate"


def plan(
    estimates: Sequence[Estimate],
    wanted: Mapping[str, int],
    budget_bytes: int,
    max_parallel: int,
    named: Mapping[str, Sequence[str]] | None = None,
) -> EvaluationPlan:
    """Pack models into batches.

    `wanted` is the batch size each model would like. `named` batches are kept as they are, in their order,
    unless their sum does not fit: then they are split like the rest.
    """
    by_name = {estimate.model: estimate for estimate in estimates}
    placements, skipped = dict[str, Placement](), []
    for estimate in estimates:
        placed = _largest_placement(estimate, wanted[estimate.model], budget_bytes)
        if placed is None:
            peak = estimate.peak_bytes(1)
            skipped.append(Skipped(model=estimate.model, peak_bytes=peak, budget_bytes=budget_bytes))
        else:
            placements[estimate.model] = placed
    batches, left = [], [name for name in by_name if name in placements]
    for name, members in (named or {}).items():
        own = [placements[member] for member in members if member in placements]
        left = [model for model in left if model not in members]
        bins = _pack(own, budget_bytes, max_parallel)
        batches += [
            Batch(name=name if len(bins) == 1 else f"{name}-{index}", placements=group)
            for index, group in enumerate(bins, start=1)
        ]
    rest = _pack([placements[model] for model in left], budget_bytes, max_parallel)
    batches += [Batch(name=f"batch-{index}", placements=group) for index, group in enumerate(rest, start=1)]
    return EvaluationPlan(budget_bytes=budget_bytes, batches=tuple(batches), skipped=tuple(skipped))


def largest_batch(estimate: Estimate, wanted: int, allowance_bytes: int) -> int:
    """The largest batch size up to `wanted` whose predicted peak fits; 0 where not even one sample does."""
    room = allowance_bytes - estimate.fixed_bytes
    if room < estimate.per_sample_bytes or room < 0:
        return 0
    return wanted if estimate.per_sample_bytes == 0 else min(wanted, room // estimate.per_sample_bytes)


def _largest_placement(estimate: Estimate, wanted: int, budget_bytes: int) -> Placement | None:
    size = largest_batch(estimate, wanted, budget_bytes)
    if size == 0:
        return None
    return Placement(model=estimate.model, batch_size=size, peak_bytes=estimate.peak_bytes(size))


def _pack(
    placements: Sequence[Placement], budget_bytes: int, max_parallel: int
) -> list[tuple[Placement, ...]]:
    bins: list[list[Placement]] = []
    for placement in sorted(placements, key=lambda item: (-item.peak_bytes, item.model)):
        for candidate in bins:
            used = sum(member.peak_bytes for member in candidate)
            if len(candidate) < max_parallel and used + placement.peak_bytes <= budget_bytes:
                candidate.append(placement)
                break
        else:
            bins.append([placement])
    return [tuple(members) for members in bins]
