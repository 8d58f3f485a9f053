"""The picture of a search: what each recipe costs and can do, the front, and where the budget ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import matplotlib as mpl

from pressoir.plots.style import (
    COLOURS,
    GREEN,
    INK,
    MUTED,
    STYLE,
    add_legend,
    mark,
    new_figure,
    set_title,
    staircase,
)
from pressoir.recipe_search.budget import meets
from pressoir.recipe_search.outcome import SearchOutcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEETS, _FAILS = COLOURS["pytorch"], COLOURS["onnxruntime"]


def pareto(found: SearchOutcome, path: Path) -> None:
    """Validation accuracy against size and against latency; what was cut before that stands at the bottom."""
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 5.2)
        left, right = figure.subplots(1, 2, sharey=True)
        _panel(left, found, "size_mb", found.limits.max_size_mb)
        _panel(right, found, "latency_ms", found.limits.max_latency_ms)
        left.set_xlabel("size, MB (left is smaller)")
        right.set_xlabel("median latency, ms (left is faster)")
        left.set_ylabel("validation accuracy, %")
        first = found.reference
        answer = "no recipe meets the budget"
        if found.winner is not None and (won := found.winner.outcome.figures) is not None:
            answer = f"{won.size_mb:.1f} MB, {won.latency_ms:.2f} ms, {100 * won.accuracy:.1f} %"
        teacher = f"exported teacher: {first.size_mb:.1f} MB, {first.latency_ms:.2f} ms"
        set_title(left, f"{len(found.trials)} recipes: {answer}", f"{teacher}, {100 * first.accuracy:.1f} %")
        add_legend(
            figure,
            [
                mark("meets the budget", marker="o", color=_MEETS, markersize=8),
                mark("does not", marker="s", color=_FAILS, markersize=7),
                mark("cut (below: before training)", marker="x", color=MUTED, markersize=7),
                mark("winner", marker="*", color=GREEN, markeredgecolor=INK, markersize=14),
                mark("front", color=GREEN, linestyle="-", linewidth=2.5, alpha=0.5),
                mark("budget", color=INK, linestyle="--", linewidth=1),
            ],
        )
        figure.savefig(path)


def _panel(
    axes: Axes, found: SearchOutcome, cost: Literal["size_mb", "latency_ms"], most: float | None
) -> None:
    finished = [trial.outcome.figures for trial in found.trials if trial.outcome.figures is not None]
    for good, marker, colour in ((True, "o", _MEETS), (False, "s", _FAILS)):
        chosen = [model for model in finished if meets(model, found.limits) == good]
        axes.scatter(
            [getattr(model, cost) for model in chosen],
            [100 * model.accuracy for model in chosen],
            s=50,
            marker=marker,
            color=colour,
            alpha=0.8,
            linewidths=0,
            zorder=3,
        )
    cut = [
        trial.outcome for trial in found.trials if trial.outcome.state == "cut" and trial.outcome.predicted
    ]
    known = [outcome for outcome in cut if outcome.short_accuracy is not None]
    axes.scatter(
        [getattr(outcome.predicted, cost) for outcome in known],
        [100 * (outcome.short_accuracy or 0) for outcome in known],
        marker="x",
        color=MUTED,
        s=40,
        zorder=2,
    )
    untrained = [getattr(outcome.predicted, cost) for outcome in cut if outcome.short_accuracy is None]
    axes.plot(
        untrained, [0.02] * len(untrained), "x", color=MUTED, transform=axes.get_xaxis_transform(), zorder=2
    )
    front: list[tuple[float, float]] = []
    for model in sorted(finished, key=lambda model: (getattr(model, cost), -model.accuracy)):
        if not front or 100 * model.accuracy > front[-1][1]:
            front.append((float(getattr(model, cost)), 100 * model.accuracy))
    if front:
        axes.plot(*zip(*staircase(front), strict=True), color=GREEN, linewidth=2.5, alpha=0.5, zorder=1.5)
    if found.winner is not None and (won := found.winner.outcome.figures) is not None:
        point = (getattr(won, cost), 100 * won.accuracy)
        axes.scatter(*point, marker="*", s=260, color=GREEN, edgecolors=INK, linewidths=0.8, zorder=4)
    if most is not None:
        axes.axvline(most, color=INK, linestyle="--", linewidth=1, zorder=1)
    if found.limits.min_accuracy is not None:
        axes.axhline(100 * found.limits.min_accuracy, color=INK, linestyle="--", linewidth=1, zorder=1)
