"""The picture of a mixed-precision choice: how much each layer matters, and how many bits it got."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
from matplotlib.ticker import MaxNLocator

from pressoir.plots.style import INK, MUTED, STYLE, mark, new_figure, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Dark to light with the bits, so that the picture also reads in grey.
LEVELS = {2: "#0b3c5d", 3: "#1d7fa6", 4: "#7cc4cf", 8: "#f4d58d"}
"""Colour by bits."""
_TEXT = {2: "white", 3: "white", 4: INK, 8: INK}


def allocation(chosen: Mapping[str, Any], path: Path) -> None:
    """Two grids, a column a decoder layer, a row a matrix: sensitivity at 2 bits, and the bits chosen.

    `chosen` is the `allocation` of a packed folder's `quantization.json`.
    """
    layers: Mapping[str, Any] = chosen["layers"]
    cells = {name: _cell(name) for name in layers}
    rows = list(dict.fromkeys(row for row, _ in cells.values()))
    columns = 1 + max(column for _, column in cells.values())
    losses, bits = np.full((2, len(rows), columns), np.nan)
    for name, (row, column) in cells.items():
        losses[rows.index(row), column] = layers[name]["sensitivity"]["q2"]
        bits[rows.index(row), column] = int(layers[name]["level"][1:])
    with mpl.rc_context(STYLE):
        figure = new_figure(max(8.0, 2.8 + 0.42 * columns), 3.2 + 0.62 * len(rows))
        first, second = figure.subplots(2, 1, sharex=True)
        positive = losses[losses > 0]
        low, high = (positive.min(), positive.max()) if len(positive) else (1e-9, 1e-8)
        norm = LogNorm(low, max(high, 1.01 * low))
        image = first.imshow(np.where(losses > 0, losses, low), cmap="cividis", norm=norm, aspect="auto")
        bar = figure.colorbar(image, ax=first, pad=0.015)
        bar.set_label("nats a token", color=MUTED)
        set_title(
            first, "Sensitivity at 2 bits", "KL divergence of the output with this matrix alone quantised"
        )
        edges = [1, *(math.sqrt(a * b) for a, b in zip(LEVELS, list(LEVELS)[1:], strict=False)), 16]
        colours = ListedColormap(list(LEVELS.values()))
        second.imshow(bits, cmap=colours, norm=BoundaryNorm(edges, len(LEVELS)), aspect="auto")
        for row, column in np.argwhere(~np.isnan(bits)):
            value = int(bits[row, column])
            second.text(column, row, f"{value}", ha="center", va="center", fontsize=9, color=_TEXT[value])
        increase = chosen["perplexity"] / chosen["float_perplexity"] - 1
        change = f"perplexity of held-out calibration text {100 * increase:+.2f} %"
        set_title(second, f"Bits chosen: {chosen['mean_bits']:.2f} a weight", change)
        second.set_xlabel("decoder layer")
        for axes in (first, second):
            _grid(axes, rows)
        handles = [mark(f"{b} bits", marker="s", color=colour, markersize=9) for b, colour in LEVELS.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.4)
        figure.savefig(path)


def _grid(axes: Axes, rows: list[str]) -> None:
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(name: str) -> tuple[str, int]:
    """Row (what the matrix is in its decoder layer) and column (which layer) of a module's name."""
    number = re.search(r"\.(\d+)\.", name)
    return (name[number.end() :], int(number[1])) if number else (name, 0)
