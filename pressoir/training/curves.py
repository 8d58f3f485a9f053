"""The picture of a training: losses and scores by epoch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator

from pressoir.plots.style import COLOURS, SCORE_COLOURS, STYLE, new_figure, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def training_curves(history: Sequence[Mapping[str, float | None]], path: Path) -> None:
    """Training loss, and scores on the validation split, over epochs.

    Each entry of `history` has `epoch`, and `loss` or any scores (fractions 0–1), null where it was not
    measured.
    """
    names = {name for entry in history for name, value in entry.items() if value is not None} - {"epoch"}
    scores = sorted(names - {"loss"})
    panels = int("loss" in names) + int(bool(scores))
    with mpl.rc_context(STYLE):
        figure = new_figure(9.4 if panels == 2 else 5.6, 3.9)
        if "loss" in names:
            axes = figure.add_subplot(1, panels, 1)
            known = _curve(axes, history, "loss", COLOURS["pytorch"])
            axes.set_ylabel("training loss")
            axes.set_ylim(bottom=min(0, *(loss for _, loss in known)) if len(known) > 1 else None)
            set_title(axes, f"Training loss: {known[0][1]:.3g} → {known[-1][1]:.3g}")
        if scores:
            axes = figure.add_subplot(1, panels, panels)
            for name, colour in zip(scores, itertools.cycle(SCORE_COLOURS), strict=False):
                known = _curve(axes, history, name, colour, scale=100)
                best = max(known, key=lambda point: point[1])
                axes.plot(*best, "o", markersize=12, markerfacecolor="none", markeredgecolor=colour)
                if name == scores[0]:
                    set_title(axes, f"Best {_pretty(name)}: {best[1]:.1f} % at epoch {best[0]:g}")
            axes.set_ylabel("validation score, % (best ringed)")
            if len(scores) > 1:
                axes.legend(loc="best")
        figure.savefig(path)


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
    return name.replace("_", " ").replace("f1", "F1")
