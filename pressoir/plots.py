"""Every picture: what a run cost and gained, at a glance.

Figures are built from matplotlib's objects alone, without pyplot: no window opens, no figure is left behind.
Colours are Okabe and Ito's, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/);
where two marks would differ by colour alone, their shape or their name differs too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pressoir.comparison import Row, points, times
from pressoir.label_placement import Box, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

COLOURS = {"pytorch": "#0072B2", "onnxruntime": "#D55E00"}
MARKERS = {"pytorch": "o", "onnxruntime": "s"}
NAMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime"}
INK, MUTED, GRID = "#222222", "#6b6b6b", "#e3e3e3"
GREEN = "#009E73"
SCORE_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#56B4E9")
NAME_STYLE: Any = {"fontsize": 10, "fontweight": "bold", "zorder": 5}
FACT_STYLE: Any = {"fontsize": 8.5, "zorder": 5}
BESIDE_STYLE: Any = {"fontsize": 10, "va": "center_baseline"}

STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 11,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "savefig.dpi": 160,
    "figure.dpi": 160,
    "figure.facecolor": "white",
}


def accuracy_latency(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against median latency; bubbles as large as the files, Pareto front, 95 % intervals."""
    with mpl.rc_context(STYLE):
        figure = _figure(9.0, 5.6)
        axes = figure.add_subplot()
        real = [row for row in rows if not row.simulated] or list(rows)
        corners = _staircase([(row.latency_ms_p50, 100 * row.accuracy) for row in pareto_front(real)])
        axes.plot(*zip(*corners, strict=True), color=GREEN, linewidth=2.5, alpha=0.5, zorder=1.5)
        largest = max(row.size_mb for row in rows)
        areas = [1100 * row.size_mb / largest + 40 for row in rows]  # square points
        for row, area in zip(rows, areas, strict=True):
            _bubble(axes, row, area)
        axes.set_xscale("log")
        latencies = [row.latency_ms_p50 for row in rows]
        axes.set_xlim(min(latencies) / 1.6, max(latencies) * 1.6)
        _log_ticks(axes)
        low, high = min(row.accuracy_ci_low for row in rows), max(row.accuracy_ci_high for row in rows)
        margin = 0.12 * max(high - low, 0.01)
        axes.set_ylim(100 * (low - margin), 100 * (high + margin))
        axes.set_xlabel("median latency of one sentence, ms (log scale, left is faster)")
        axes.set_ylabel("test accuracy, %")
        first, last = rows[0], rows[-1]
        title, subtitle = "Accuracy against latency", ""
        if len(rows) > 1:
            title += f": {times(last.speedup, 'faster', 'slower')}, "
            title += f"{times(last.compression, 'smaller', 'larger')}, {points(last.accuracy_delta)} points"
            subtitle = (
                f"{last.stage} in {NAMES[last.runtime]} against {first.stage} in {NAMES[first.runtime]}"
            )
        _title(axes, title, subtitle)
        handles = _handles({row.runtime for row in rows})
        handles += [
            _mark("area: size on disk", marker="o", color="none", markeredgecolor=MUTED, markersize=11),
            _mark("95 % interval", color=MUTED, marker="|", markersize=12),
        ]
        if len(corners) > 1:
            handles.append(_mark("Pareto front", color=GREEN, linestyle="-", linewidth=2.5, alpha=0.5))
        if any(row.simulated for row in rows):
            hollow = {"color": "none", "markeredgecolor": COLOURS["pytorch"], "markersize": 9}
            handles.append(_mark("int8, simulated", marker="o", **hollow))
        _legend(figure, handles)
        lines = [
            (row.latency_ms_p50, 100 * row.accuracy_ci_low, row.latency_ms_p50, 100 * row.accuracy_ci_high)
            for row in rows
        ]
        lines += [(*a, *b) for a, b in itertools.pairwise(corners)]
        _draw_labels(figure, axes, rows, [math.sqrt(area) / 2 for area in areas], lines)
        figure.savefig(path)


def _bubble(axes: Axes, row: Row, area: float) -> None:
    colour, x, y = COLOURS[row.runtime], row.latency_ms_p50, 100 * row.accuracy
    spread = [[y - 100 * row.accuracy_ci_low], [100 * row.accuracy_ci_high - y]]
    axes.errorbar(x, y, yerr=spread, color=colour, alpha=0.35, linewidth=1.2, capsize=3, zorder=2)
    style: dict[str, Any] = {"facecolor": colour, "alpha": 0.55}
    if row.simulated:
        style = {"facecolor": "none", "linestyle": "--"}
    style |= {"marker": MARKERS[row.runtime], "edgecolor": colour, "linewidth": 1.5}
    axes.scatter(x, y, s=area, zorder=3, **style)
    axes.scatter(x, y, s=9, color=INK, zorder=4)


def sizes(rows: Sequence[Row], path: Path) -> None:
    """Size on disk of each artifact, with how many times smaller than the first it is."""
    with mpl.rc_context(STYLE):
        figure = _figure(9.0, 1.8 + 0.46 * len(rows))
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            axes.barh(place, row.size_mb, height=0.66, color=COLOURS[row.runtime])
            text = f"{row.size_mb:.1f} MB"
            if row.compression >= 1.05:
                text += f"   {row.compression:.1f}× smaller"
            axes.annotate(text, (row.size_mb, place), (7, 0), textcoords="offset points", **BESIDE_STYLE)
        _name_rows(axes, _names([(row.stage, row.runtime) for row in rows]))
        axes.grid(False)
        axes.set_xlim(0, 1.3 * max(row.size_mb for row in rows))
        axes.set_xlabel("MB (10⁶ bytes) of weights, graph, configuration and tokenizer")
        title = "Size on disk"
        if len(rows) > 1:
            title += f": {rows[0].size_mb:.1f} → {rows[-1].size_mb:.1f} MB"
        _title(axes, title)
        _legend(figure, _handles({row.runtime for row in rows}, marker="s"))
        figure.savefig(path)


def latency_distribution(samples: Sequence[Mapping[str, Any]], path: Path) -> None:
    """How the times of single sentences are spread: a violin a model, with median and p95.

    `samples` are the entries of `latencies.json`: `stage`, `runtime`, `latency_ms` (a list).
    """
    with mpl.rc_context(STYLE):
        figure = _figure(9.0, 1.8 + 0.56 * len(samples))
        axes = figure.add_subplot()
        for place, entry in enumerate(samples):
            times, colour = np.asarray(entry["latency_ms"], dtype=np.float64), COLOURS[entry["runtime"]]
            grid, density = _density(np.log10(times))
            half = 0.42 * density / density.max()
            axes.fill_between(10**grid, place - half, place + half, color=colour, alpha=0.35, linewidth=0)
            p50, p95 = float(np.median(times)), float(np.percentile(times, 95))
            axes.plot([p50, p95], [place, place], color=colour, linewidth=2)
            axes.plot(p50, place, "o", color=colour, markersize=7)
            axes.plot(p95, place, "|", color=colour, markersize=13, markeredgewidth=2)
            _columns(axes, f"{p50:.2f}", f"{p95:.2f}", place)
        axes.set_xscale("log")
        axes.margins(x=0.03)
        _log_ticks(axes)
        _columns(axes, "p50 ms", "p95 ms", -0.72)
        _name_rows(axes, _names([(entry["stage"], entry["runtime"]) for entry in samples]))
        axes.grid(False, axis="y")
        axes.set_xlabel("latency of one sentence, ms (log scale, left is faster)")
        _title(axes, f"Spread of latency over {len(samples[0]['latency_ms'])} test sentences")
        handles = _handles({entry["runtime"] for entry in samples}, marker="s")
        handles += [
            _mark("median", color=MUTED, marker="o", markersize=7),
            _mark("p95", color=MUTED, marker="|", markersize=13, markeredgewidth=2),
        ]
        _legend(figure, handles)
        figure.savefig(path)


def training_curves(history: Sequence[Mapping[str, float | None]], path: Path) -> None:
    """Training loss, and scores on the validation split, over epochs.

    Each entry of `history` has `epoch`, and `loss` or any scores (fractions 0–1), null where it was not
    measured.
    """
    names = {name for entry in history for name, value in entry.items() if value is not None} - {"epoch"}
    scores = sorted(names - {"loss"})
    panels = int("loss" in names) + int(bool(scores))
    with mpl.rc_context(STYLE):
        figure = _figure(9.4 if panels == 2 else 5.6, 3.9)
        if "loss" in names:
            axes = figure.add_subplot(1, panels, 1)
            known = _curve(axes, history, "loss", COLOURS["pytorch"])
            axes.set_ylabel("training loss")
            axes.set_ylim(bottom=min(0, *(loss for _, loss in known)) if len(known) > 1 else None)
            _title(axes, f"Training loss: {known[0][1]:.3g} → {known[-1][1]:.3g}")
        if scores:
            axes = figure.add_subplot(1, panels, panels)
            for name, colour in zip(scores, itertools.cycle(SCORE_COLOURS), strict=False):
                known = _curve(axes, history, name, colour, scale=100)
                best = max(known, key=lambda point: point[1])
                axes.plot(*best, "o", markersize=12, markerfacecolor="none", markeredgecolor=colour)
                if name == scores[0]:
                    _title(axes, f"Best {_pretty(name)}: {best[1]:.1f} % at epoch {best[0]:g}")
            axes.set_ylabel("validation score, % (best ringed)")
            if len(scores) > 1:
                axes.legend(loc="best")
        figure.savefig(path)


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other beats in both latency and accuracy, the fastest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.latency_ms_p50, -row.accuracy)):
        if not front or row.accuracy > front[-1].accuracy:
            front.append(row)
    return front


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))


def _title(axes: Axes, title: str, subtitle: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=24 if subtitle else 12)
    if subtitle:
        axes.annotate(
            subtitle,
            (0, 1),
            (0, 8),
            xycoords="axes fraction",
            textcoords="offset points",
            color=MUTED,
            fontsize=10,
        )


def _log_ticks(axes: Axes) -> None:
    """Ticks at 1, 2, 5 of each decade, at 1, 2, 3, … of a part of one; as plain numbers."""
    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high > 6 * low else tuple(map(float, range(1, 10)))
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _columns(axes: Axes, p50: str, p95: str, y: float) -> None:
    """Two right-aligned texts to the right of the axes, at the height `y`."""
    for text, offset in ((p50, 52), (p95, 106)):
        axes.annotate(
            text, (1, y), (offset, 0), axes.get_yaxis_transform(), "offset points", ha="right", **BESIDE_STYLE
        )


def _names(rows: Sequence[tuple[str, str]]) -> list[str]:
    """The stage of each (stage, runtime), with the runtime where a stage stands twice."""
    stages = [stage for stage, _ in rows]
    return [f"{s} ({NAMES[runtime]})" if stages.count(s) > 1 else s for s, runtime in rows]


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.45, -0.55)  # the first on top


def _staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the line below which nothing is better, through `points` from left to right."""
    corners = [points[0]]
    for x, y in points[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return corners


def _handles(runtimes: set[str], marker: str | None = None) -> list[Line2D]:
    return [
        _mark(NAMES[name], color=COLOURS[name], marker=marker or MARKERS[name], markersize=9, alpha=0.8)
        for name in COLOURS
        if name in runtimes
    ]


def _mark(label: str, **style: Any) -> Line2D:
    return Line2D([], [], **{"linestyle": "none", "label": label, **style})


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Below the axes, so that it never covers data."""
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.4, columnspacing=1.6
    )


def _curve(
    axes: Axes, history: Sequence[Mapping[str, float | None]], name: str, colour: str, scale: float = 1
) -> list[tuple[float, float]]:
    """Draw one figure over the epochs at which it was measured; return those points."""
    known = [
        (epoch, scale * value)
        for entry in history
        if (epoch := entry.get("epoch")) is not None and (value := entry.get(name)) is not None
    ]
    style: dict[str, Any] = {"linewidth": 2, "marker": "o", "markersize": 5}
    axes.plot(*zip(*known, strict=True), color=colour, label=_pretty(name), **style)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    return known


def _pretty(name: str) -> str:
    return "F1" if name == "f1" else name.replace("_", " ")


def _density(values: Floats) -> tuple[Floats, Floats]:
    """Gaussian kernel density of `values` on a grid over their middle 99 %."""
    low, high = np.percentile(values, [0.5, 99.5])
    quarters = np.percentile(values, [25, 75])
    spread = min(float(values.std()), float(quarters[1] - quarters[0]) / 1.34) or float(values.std())
    width = max(0.9 * spread * len(values) ** -0.2, 1e-3)  # Silverman's rule
    grid = np.linspace(low - width, high + width, 256)
    return grid, np.exp(-0.5 * ((grid[:, None] - values[None, :]) / width) ** 2).sum(axis=1)


def _draw_labels(
    figure: Figure, axes: Axes, rows: Sequence[Row], radii_pt: Sequence[float], lines: Sequence[Box]
) -> None:
    """Write stage, latency and size beside each bubble, with a thin line to it where they stand apart.

    `lines` (x0, y0, x1, y1), in data coordinates, are what a label should not cover either.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is settled: what is placed now stays
    pixels = figure.dpi / 72  # in a point
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    names = [row.stage for row in rows]
    facts = [f"{row.latency_ms_p50:.2f} ms, {row.size_mb:.1f} MB" for row in rows]
    extents = []
    for name, fact in zip(names, facts, strict=True):
        drawn = [axes.text(0, 0, name, **NAME_STYLE), axes.text(0, 0, fact, **FACT_STYLE)]
        widths = [text.get_window_extent().width for text in drawn]
        for text in drawn:
            text.remove()
        extents.append((max(widths) + 6 * pixels, 24 * pixels))
    obstacles = []
    for x0, y0, x1, y1 in lines:
        (left, bottom), (right, top) = to_pixels.transform([(x0, y0), (x1, y1)])
        pad = 3 * pixels
        obstacles.append((left - pad, bottom - pad, right + pad, top + pad))
    places = to_pixels.transform([(row.latency_ms_p50, 100 * row.accuracy) for row in rows])
    centres = [(float(x), float(y)) for x, y in places]
    radii = [radius * pixels for radius in radii_pt]
    bounds = (axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1)
    boxes = place_labels(centres, radii, extents, bounds, obstacles)
    for row, name, fact, (x, y), radius, box in zip(rows, names, facts, centres, radii, boxes, strict=True):
        x0, y0, x1, y1 = box
        near = (min(max(x, x0), x1), min(max(y, y0), y1))
        apart = math.dist((x, y), near)
        if apart > radius + 11 * pixels:
            start = (x + (near[0] - x) * radius / apart, y + (near[1] - y) * radius / apart)
            axes.plot(*to_data.transform([start, near]).T, color=MUTED, linewidth=0.8, zorder=4)
        side = "left" if x0 > x else "right" if x1 < x else "center"
        edge = {"left": x0 + 3 * pixels, "right": x1 - 3 * pixels, "center": (x0 + x1) / 2}[side]
        pad, halo = 1.5 * pixels, [patheffects.withStroke(linewidth=2.5, foreground="white")]
        (left, top), (_, bottom) = to_data.transform([(edge, y1 - pad), (edge, y0 + pad)])
        axes.text(
            left, top, name, color=COLOURS[row.runtime], ha=side, va="top", path_effects=halo, **NAME_STYLE
        )
        axes.text(left, bottom, fact, ha=side, va="bottom", path_effects=halo, **FACT_STYLE)
