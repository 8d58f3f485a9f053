"""The pictures of classifiers and of training: what a run cost and gained, at a glance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from pressoir.benchmark.classifier_report import TITLES, ClassifierRow, delta_text, times
from pressoir.formats.problems import REGRESSION
from pressoir.plots.style import (
    BESIDE_STYLE,
    COLOURS,
    GREEN,
    INK,
    MARKERS,
    MUTED,
    NAMES,
    STYLE,
    Label,
    add_legend,
    draw_labels,
    mark,
    name_rows,
    new_figure,
    row_names,
    runtime_handles,
    set_log_ticks,
    set_title,
    staircase,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]


def accuracy_latency(rows: Sequence[ClassifierRow], path: Path, baseline: float | None = None) -> None:
    """The main metric against median latency; bubbles as large as the files, Pareto front, 95 % intervals.

    `baseline` is the accuracy of a linear classifier, a horizontal line.
    """
    with mpl.rc_context(STYLE):
        scale, metric = _scale(rows[0]), TITLES[rows[0].problem.metric]
        figure = new_figure(9.0, 5.6)
        axes = figure.add_subplot()
        real = [row for row in rows if not row.simulated] or list(rows)
        corners = staircase([(row.latency_ms_p50, scale * row.score) for row in pareto_front(real)])
        axes.plot(*zip(*corners, strict=True), color=GREEN, linewidth=2.5, alpha=0.5, zorder=1.5)
        largest = max(row.size_mb for row in rows)
        areas = [1100 * row.size_mb / largest + 40 for row in rows]  # square points
        for row, area in zip(rows, areas, strict=True):
            _bubble(axes, row, area)
        axes.set_xscale("log")
        latencies = [row.latency_ms_p50 for row in rows]
        axes.set_xlim(min(latencies) / 1.6, max(latencies) * 1.6)
        set_log_ticks(axes.xaxis)
        edges = [edge for row in rows for edge in row.score_interval]
        if baseline is not None:
            edges.append(baseline)
            axes.axhline(scale * baseline, color=MUTED, linestyle=":", linewidth=1.5, zorder=1)
        low, high = min(edges), max(edges)
        margin = 0.12 * max(high - low, 0.01)
        axes.set_ylim(scale * (low - margin), scale * (high + margin))
        axes.set_xlabel("median latency of one sentence, ms (log scale, left is faster)")
        axes.set_ylabel(f"test {metric}, %" if scale == 100 else f"test {metric}")
        first, last = rows[0], rows[-1]
        title, subtitle = f"{metric[0].upper()}{metric[1:]} against latency", ""
        if len(rows) > 1:
            title += f": {times(last.speedup, 'faster', 'slower')}, "
            title += f"{times(last.compression, 'smaller', 'larger')}, {delta_text(last)}"
            title += " points" * (scale == 100)
            subtitle = (
                f"{last.stage} in {NAMES[last.runtime]} against {first.stage} in {NAMES[first.runtime]}"
            )
        set_title(axes, title, subtitle)
        handles = runtime_handles({row.runtime for row in rows})
        handles += [
            mark("area: size on disk", marker="o", color="none", markeredgecolor=MUTED, markersize=11),
            mark("95 % confidence interval", color=MUTED, marker="|", markersize=12),
        ]
        if len(corners) > 1:
            handles.append(mark("Pareto front", color=GREEN, linestyle="-", linewidth=2.5, alpha=0.5))
        if baseline is not None:
            text = f"linear baseline, {100 * baseline:.1f} %"
            handles.append(mark(text, color=MUTED, linestyle=":", linewidth=1.5))
        if any(row.simulated for row in rows):
            hollow = {"color": "none", "markeredgecolor": COLOURS["pytorch"], "markersize": 9}
            handles.append(mark("int8, simulated", marker="o", **hollow))
        add_legend(figure, handles)
        lines = [
            (row.latency_ms_p50, scale * low, row.latency_ms_p50, scale * high)
            for row in rows
            for low, high in [row.score_interval]
        ]
        lines += [(*a, *b) for a, b in itertools.pairwise(corners)]
        labels = [
            Label(
                x=row.latency_ms_p50,
                y=scale * row.score,
                radius_pt=math.sqrt(area) / 2,
                name=row.stage,
                fact=f"{row.latency_ms_p50:.2f} ms, {row.size_mb:.1f} MB",
                colour=COLOURS[row.runtime],
            )
            for row, area in zip(rows, areas, strict=True)
        ]
        draw_labels(figure, axes, labels, lines)
        figure.savefig(path)


def _scale(row: ClassifierRow) -> float:
    """Fractions are shown in percent, correlations as they are."""
    return 1 if row.problem is REGRESSION else 100


def _bubble(axes: Axes, row: ClassifierRow, area: float) -> None:
    scale, (low, high) = _scale(row), row.score_interval
    colour, x, y = COLOURS[row.runtime], row.latency_ms_p50, scale * row.score
    spread = [[max(0.0, y - scale * low)], [max(0.0, scale * high - y)]]  # a bootstrap may leave it outside
    axes.errorbar(x, y, yerr=spread, color=colour, alpha=0.35, linewidth=1.2, capsize=3, zorder=2)
    style: dict[str, Any] = {"facecolor": colour, "alpha": 0.55}
    if row.simulated:
        style = {"facecolor": "none", "linestyle": "--"}
    style |= {"marker": MARKERS[row.runtime], "edgecolor": colour, "linewidth": 1.5}
    axes.scatter(x, y, s=area, zorder=3, **style)
    axes.scatter(x, y, s=9, color=INK, zorder=4)


def sizes(rows: Sequence[ClassifierRow], path: Path) -> None:
    """Size on disk of each artifact, with how many times smaller than the first it is."""
    with mpl.rc_context(STYLE):
        figure = new_figure(9.0, 1.8 + 0.46 * len(rows))
        axes = figure.add_subplot()
        for index, row in enumerate(rows):
            axes.barh(index, row.size_mb, height=0.66, color=COLOURS[row.runtime])
            text = f"{row.size_mb:.1f} MB"
            if row.compression >= 1.05:
                text += f"   {row.compression:.1f}× smaller"
            axes.annotate(text, (row.size_mb, index), (7, 0), textcoords="offset points", **BESIDE_STYLE)
        name_rows(axes, row_names([(row.stage, row.runtime) for row in rows]))
        axes.grid(False)
        axes.set_xlim(0, 1.3 * max(row.size_mb for row in rows))
        axes.set_xlabel("MB (10⁶ bytes) of weights, graph, configuration and tokenizer")
        title = "Size on disk"
        if len(rows) > 1:
            title += f": {rows[0].size_mb:.1f} → {rows[-1].size_mb:.1f} MB"
        set_title(axes, title)
        add_legend(figure, runtime_handles({row.runtime for row in rows}, marker="s"))
        figure.savefig(path)


def latency_distribution(samples: Sequence[Mapping[str, Any]], path: Path) -> None:
    """How the times of single sentences are spread: a violin a model, with median and p95.

    `samples` are the entries of `latencies.json`: `stage`, `runtime`, `latency_ms` (a list).
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(9.0, 1.8 + 0.56 * len(samples))
        axes = figure.add_subplot()
        for index, entry in enumerate(samples):
            times, colour = np.asarray(entry["latency_ms"], dtype=np.float64), COLOURS[entry["runtime"]]
            grid, density = _density(np.log10(times))
            half = 0.42 * density / density.max()
            axes.fill_between(10**grid, index - half, index + half, color=colour, alpha=0.35, linewidth=0)
            p50, p95 = float(np.median(times)), float(np.percentile(times, 95))
            axes.plot([p50, p95], [index, index], color=colour, linewidth=2)
            axes.plot(p50, index, "o", color=colour, markersize=7)
            axes.plot(p95, index, "|", color=colour, markersize=13, markeredgewidth=2)
            _columns(axes, f"{p50:.2f}", f"{p95:.2f}", index)
        axes.set_xscale("log")
        axes.margins(x=0.03)
        set_log_ticks(axes.xaxis)
        _columns(axes, "p50 ms", "p95 ms", -0.72)
        name_rows(axes, row_names([(entry["stage"], entry["runtime"]) for entry in samples]))
        axes.grid(False, axis="y")
        axes.set_xlabel("latency of one sentence, ms (log scale, left is faster)")
        set_title(axes, f"Spread of latency over {len(samples[0]['latency_ms'])} test sentences")
        handles = runtime_handles({entry["runtime"] for entry in samples}, marker="s")
        handles += [
            mark("median", color=MUTED, marker="o", markersize=7),
            mark("p95", color=MUTED, marker="|", markersize=13, markeredgewidth=2),
        ]
        add_legend(figure, handles)
        figure.savefig(path)


def pareto_front(rows: Sequence[ClassifierRow]) -> list[ClassifierRow]:
    """Rows that no other beats in both latency and accuracy, the fastest first."""
    front: list[ClassifierRow] = []
    for row in sorted(rows, key=lambda row: (row.latency_ms_p50, -row.score)):
        if not front or row.score > front[-1].score:
            front.append(row)
    return front


def _columns(axes: Axes, p50: str, p95: str, y: float) -> None:
    """Two right-aligned texts to the right of the axes, at the height `y`."""
    for text, offset in ((p50, 52), (p95, 106)):
        axes.annotate(
            text, (1, y), (offset, 0), axes.get_yaxis_transform(), "offset points", ha="right", **BESIDE_STYLE
        )


def _density(values: Floats) -> tuple[Floats, Floats]:
    """Gaussian kernel density of `values` on a grid over their middle 99 %."""
    low, high = np.percentile(values, [0.5, 99.5])
    quarters = np.percentile(values, [25, 75])
    spread = min(float(values.std()), float(quarters[1] - quarters[0]) / 1.34) or float(values.std())
    width = max(0.9 * spread * len(values) ** -0.2, 1e-3)  # Silverman's rule
    grid = np.linspace(low - width, high + width, 256)
    return grid, np.exp(-0.5 * ((grid[:, None] - values[None, :]) / width) ** 2).sum(axis=1)
