"""The pictures of language models: what fewer bits cost in perplexity, and gain in size and speed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from pressoir.benchmark.classifier_report import times
from pressoir.benchmark.language_model_report import GenerationRow, figure, percent
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

RADIUS_PT = 5.5


def perplexity_size(rows: Sequence[GenerationRow], path: Path) -> None:
    """Perplexity against size on disk, both on log scales: the lower left is better; Pareto front."""
    with mpl.rc_context(STYLE):
        picture = new_figure(9.0, 5.8)
        axes = picture.add_subplot()
        corners = staircase([(row.size_mb, row.perplexity) for row in pareto_front(rows)])
        axes.plot(*zip(*corners, strict=True), color=GREEN, linewidth=2.5, alpha=0.5, zorder=1.5)
        for row in rows:
            colour = COLOURS[row.runtime]
            style: dict[str, Any] = {"facecolor": colour, "alpha": 0.75}
            if row.simulated:
                style = {"facecolor": "none", "linestyle": "--"}
            style |= {"marker": MARKERS[row.runtime], "edgecolor": colour, "linewidth": 1.5}
            axes.scatter(row.size_mb, row.perplexity, s=(2 * RADIUS_PT) ** 2, zorder=3, **style)
        for axis, low, high in (
            ("x", min(row.size_mb for row in rows), max(row.size_mb for row in rows)),
            ("y", min(row.perplexity for row in rows), max(row.perplexity for row in rows)),
        ):
            margin = max(1.06, (high / low) ** 0.16)
            getattr(axes, f"set_{axis}scale")("log")
            getattr(axes, f"set_{axis}lim")(low / margin, high * margin)
            set_log_ticks(getattr(axes, f"{axis}axis"))
        axes.set_xlabel("size on disk, MB (log scale, left is smaller)")
        axes.set_ylabel("perplexity (log scale, lower is better)")
        title, subtitle = "Perplexity against size", ""
        if len(rows) > 1:
            first, last = rows[0], rows[-1]
            title += f": {times(last.compression, 'smaller', 'larger')}, "
            title += f"{percent(last.perplexity_increase)} perplexity"
            subtitle = (
                f"{last.stage} in {NAMES[last.runtime]} against {first.stage} in {NAMES[first.runtime]}"
            )
        set_title(axes, title, subtitle)
        handles = runtime_handles({row.runtime for row in rows})
        if len(corners) > 1:
            handles.append(mark("Pareto front", color=GREEN, linestyle="-", linewidth=2.5, alpha=0.5))
        if any(row.simulated for row in rows):
            hollow = {"color": "none", "markeredgecolor": COLOURS["pytorch"], "markersize": 9}
            handles.append(mark("packed, run in float32", marker="o", **hollow))
        add_legend(picture, handles)
        picture.draw_without_rendering()  # only then are distances on the page known
        labels = [_label(group) for group in _neighbours(rows, axes, 2.2 * RADIUS_PT * picture.dpi / 72)]
        draw_labels(picture, axes, labels, [(*a, *b) for a, b in itertools.pairwise(corners)])
        picture.savefig(path)


def decode_speed(rows: Sequence[GenerationRow], path: Path) -> None:
    """Tokens a second of each model once a text is under way, and the time to its first token."""
    with mpl.rc_context(STYLE):
        picture = new_figure(10.0, 1.9 + 0.44 * len(rows))
        decode, first_token = picture.subplots(1, 2, width_ratios=(3, 2), sharey=True)
        for index, row in enumerate(rows):
            note = f"{row.decode_tokens_per_s:.1f}"
            if row.simulated:
                note += "   simulated"
            elif index:
                note += f"   {times(row.speedup, 'faster', 'slower')}"
            _bar(decode, index, row.decode_tokens_per_s, row, note)
            _bar(first_token, index, row.ttft_ms_p50, row, f"{row.ttft_ms_p50:.1f}")
        name_rows(decode, row_names([(row.stage, row.runtime) for row in rows]))
        first_token.tick_params(axis="y", length=0)
        decode.set_xlim(0, 1.6 * max(row.decode_tokens_per_s for row in rows))
        first_token.set_xlim(0, 1.3 * max(row.ttft_ms_p50 for row in rows))
        decode.set_xlabel("tokens per second after the first, higher is better")
        first_token.set_xlabel("median, ms, lower is better")
        real = [row for row in rows if not row.simulated]
        best = max(real or rows, key=lambda row: row.decode_tokens_per_s)
        set_title(decode, f"Decoding: up to {best.decode_tokens_per_s:.0f} tokens per second")
        set_title(first_token, "Time to first token")
        add_legend(picture, runtime_handles({row.runtime for row in rows}, marker="s"))
        picture.savefig(path)


def pareto_front(rows: Sequence[GenerationRow]) -> list[GenerationRow]:
    """Rows that no other beats in both size and perplexity, the smallest first."""
    front: list[GenerationRow] = []
    for row in sorted(rows, key=lambda row: (row.size_mb, row.perplexity)):
        if not front or row.perplexity < front[-1].perplexity:
            front.append(row)
    return front


def _neighbours(rows: Sequence[GenerationRow], axes: Axes, pixels: float) -> list[list[GenerationRow]]:
    """Rows in groups nearer to each other than `pixels`: a label each could not be read."""
    groups: list[tuple[tuple[float, float], list[GenerationRow]]] = []
    for row in rows:
        x, y = axes.transData.transform((row.size_mb, row.perplexity))
        for position, group in groups:
            if math.dist((x, y), position) < pixels:
                group.append(row)
                break
        else:
            groups.append(((x, y), [row]))
    return [group for _, group in groups]


def _label(group: Sequence[GenerationRow]) -> Label:
    low, high = min(row.perplexity for row in group), max(row.perplexity for row in group)
    small, large = min(row.size_mb for row in group), max(row.size_mb for row in group)
    colours = {COLOURS[row.runtime] for row in group}
    return Label(
        x=group[0].size_mb,
        y=group[0].perplexity,
        radius_pt=RADIUS_PT + 3 * (len(group) > 1),
        name=", ".join(dict.fromkeys(row.stage for row in group)),
        fact=f"{_span(figure(low), figure(high))}, {_span(f'{small:.1f}', f'{large:.1f}')} MB",
        colour=colours.pop() if len(colours) == 1 else INK,
    )


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low}–{high}"


def _bar(axes: Axes, index: int, width: float, row: GenerationRow, note: str) -> None:
    colour = COLOURS[row.runtime]
    style: dict[str, Any] = {"color": colour}
    ink = MUTED if row.simulated else INK
    if row.simulated:
        style = {"facecolor": "none", "edgecolor": colour, "linestyle": "--", "linewidth": 1.2}
    axes.barh(index, width, height=0.66, **style)
    axes.annotate(note, (width, index), (6, 0), textcoords="offset points", color=ink, **BESIDE_STYLE)
    axes.grid(False)
