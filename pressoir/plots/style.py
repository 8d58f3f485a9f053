"""How every picture looks, and what pictures share: colours, titles, legends, labels that cover nothing.

Figures are built from matplotlib's objects alone, without pyplot: no window opens, no figure is left behind.
Colours are Okabe and Ito's, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/);
where two marks would differ by colour alone, their shape or their name differs too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pressoir.plots.label_placement import Box, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

SCORE_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#56B4E9")

COLOURS = {"pytorch": "#0072B2", "onnxruntime": "#D55E00"}
MARKERS = {"pytorch": "o", "onnxruntime": "s"}
NAMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime"}
INK, MUTED, GRID = "#222222", "#6b6b6b", "#e3e3e3"
GREEN = "#009E73"
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


@dataclass(frozen=True)
class Label:
    """A name and a fact to be written beside a disc."""

    x: float
    """The disc's centre, in data coordinates."""
    y: float
    radius_pt: float
    name: str
    fact: str
    colour: str


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, whose parts keep clear of each other."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))


def set_title(axes: Axes, title: str, subtitle: str = "", lift: float = 0) -> None:
    """A title at the left, and a line of explanation below it, so many points above the usual place."""
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=lift + (24 if subtitle else 12))
    if subtitle:
        axes.annotate(
            subtitle,
            (0, 1),
            (0, 8 + lift),
            xycoords="axes fraction",
            textcoords="offset points",
            color=MUTED,
            fontsize=10,
        )


def set_log_ticks(axis: Axis) -> None:
    """Ticks at 1, 2, 5 of each decade, at 1, 2, 3, … of a part of one; as plain numbers."""
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high > 6 * low else tuple(map(float, range(1, 10)))
    axis.set_major_locator(LogLocator(base=10, subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def row_names(rows: Sequence[tuple[str, str]]) -> list[str]:
    """The stage of each (stage, runtime), with the runtime where a stage stands twice."""
    stages = [stage for stage, _ in rows]
    return [f"{s} ({NAMES[runtime]})" if stages.count(s) > 1 else s for s, runtime in rows]


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the horizontal bars at 0, 1, …, the first on top."""
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.45, -0.55)


def staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the line below which nothing is better, through `points` from left to right."""
    corners = [points[0]]
    for x, y in points[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return corners


def runtime_handles(runtimes: set[str], marker: str | None = None) -> list[Line2D]:
    """Legend entries of the runtimes."""
    return [
        mark(NAMES[name], color=COLOURS[name], marker=marker or MARKERS[name], markersize=9, alpha=0.8)
        for name in COLOURS
        if name in runtimes
    ]


def mark(label: str, **style: Any) -> Line2D:
    """A legend entry."""
    return Line2D([], [], **{"linestyle": "none", "label": label, **style})


def add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Below the axes, so that it never covers data."""
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.4, columnspacing=1.6
    )


def draw_labels(figure: Figure, axes: Axes, labels: Sequence[Label], lines: Sequence[Box] = ()) -> None:
    """Write each label beside its disc, with a thin line to it where they stand apart.

    `lines` (x0, y0, x1, y1), in data coordinates, are what a label should not cover either.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is settled: what is placed now stays
    pixels = figure.dpi / 72  # in a point
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    extents = []
    for label in labels:
        drawn = [axes.text(0, 0, label.name, **NAME_STYLE), axes.text(0, 0, label.fact, **FACT_STYLE)]
        widths = [text.get_window_extent().width for text in drawn]
        for text in drawn:
            text.remove()
        extents.append((max(widths) + 6 * pixels, 24 * pixels))
    obstacles = []
    for x0, y0, x1, y1 in lines:
        (left, bottom), (right, top) = to_pixels.transform([(x0, y0), (x1, y1)])
        pad = 3 * pixels
        obstacles.append((left - pad, bottom - pad, right + pad, top + pad))
    places = to_pixels.transform([(label.x, label.y) for label in labels])
    centres = [(float(x), float(y)) for x, y in places]
    radii = [label.radius_pt * pixels for label in labels]
    bounds = (axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1)
    boxes = place_labels(centres, radii, extents, bounds, obstacles)
    for label, (x, y), radius, box in zip(labels, centres, radii, boxes, strict=True):
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
        style: dict[str, Any] = {"ha": side, "path_effects": halo}
        axes.text(left, top, label.name, color=label.colour, va="top", **style, **NAME_STYLE)
        axes.text(left, bottom, label.fact, va="bottom", **style, **FACT_STYLE)
