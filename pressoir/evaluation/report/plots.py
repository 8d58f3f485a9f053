"""The pictures of an evaluation: scores, speed, memory over time, predicted against measured peaks.

Models are compared where that means something: a panel shows those that did the same task on the same data.
Models without a result are shown there too, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.text import Annotation

from pressoir.evaluation.report.content import factor
from pressoir.evaluation.report.results import clipped, rate
from pressoir.evaluation.report.scoring import figure_of, name_of
from pressoir.extensions.task import task
from pressoir.plots.style import (
    BESIDE_STYLE,
    COLOURS,
    GREEN,
    INK,
    MUTED,
    NAMES,
    STYLE,
    add_legend,
    mark,
    name_rows,
    new_figure,
    set_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pressoir.evaluation.memory_log import MemoryStats
    from pressoir.evaluation.report.results import EvaluationRow

RED = "#C0392B"
_REMOTE = "#CC79A7"
_CHILDREN = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8c8c8c")
_HATCHES = ("", "///", "...")
_NAME_COLUMNS = 34
_GAP_PT, _NOTE = 7, "note"
_WIDTH, _ROW, _PANEL = 9.0, 0.4, 1.35  # inches: a figure, a bar, what a panel has besides
GB = 10**9


def metrics(rows: Sequence[EvaluationRow], path: Path) -> None:
    """The main metric of each model, a panel a task and data set, the best on top."""

    def panel(axes: Axes, group: Sequence[EvaluationRow]) -> None:
        found = next((row.result.metrics for row in group if row.main_metric), {})
        metric = task(group[0].result.task).main_metric_of(found)
        name, lower = metric.name, metric.lower_is_better
        scale = 100 if metric.form == "percent" else 1
        known = [(row, row.result.metrics[name]) for row in group if row.main_metric]
        known.sort(key=lambda pair: (not pair[0].whole, pair[1] if lower else -pair[1]))
        for index, (row, value) in enumerate(known):
            reach = value
            if interval := row.result.intervals.get(name):
                low, high = interval
                reach = max(value, high)
                spread = scale * np.asarray([[max(value - low, 0)], [reach - value]])
                axes.errorbar(scale * value, index, xerr=spread, color=INK, linewidth=1.1, capsize=3)
            _bar(axes, index, scale * value, row, figure_of(name, value), reach=scale * reach)
        _name_and_fail(axes, [row for row, _ in known], group)
        if name == "accuracy":  # there is no more than 100, though the axis goes on
            axes.set_xticks([0, 20, 40, 60, 80, 100])
        title = f"{_first_upper(name_of(name))}{', %' if scale == 100 else ''}: {group[0].result.data}"
        bars = "; error bars: 95 % confidence intervals"
        drawn = any(name in row.result.intervals for row, _ in known)
        set_title(axes, title, f"{'lower' if lower else 'higher'} is better" + bars * drawn)

    _panels([(group, panel) for group in _groups(rows)], path)


def speed(rows: Sequence[EvaluationRow], path: Path) -> None:
    """Samples a second of each model, and for speech the real-time factor; panels as in `metrics`."""

    def per_second(axes: Axes, group: Sequence[EvaluationRow]) -> None:
        known = [(row, value) for row in group if (value := row.measured.samples_per_s) is not None]
        known.sort(key=lambda pair: (not pair[0].whole, -pair[1]))
        for index, (row, value) in enumerate(known):
            size = row.measured.batch_size
            _bar(axes, index, value, row, rate(value) + (f"   batches of {size}" if size else ""))
        _name_and_fail(axes, [row for row, _ in known], group)
        result = group[0].result
        set_title(
            axes, f"{_first_upper(task(result.task).unit)} per second: {result.data}", "higher is better"
        )

    def real_time(axes: Axes, group: Sequence[EvaluationRow]) -> None:
        known = [(row, value) for row in group if (value := row.measured.real_time_factor) is not None]
        known.sort(key=lambda pair: (not pair[0].whole, pair[1]))
        for index, (row, value) in enumerate(known):
            times = f"{1 / value:.0f}" if value < 0.1 else f"{1 / value:.1f}"
            _bar(axes, index, value, row, f"{factor(value)}   {times}× as fast as speech")
        _name_and_fail(axes, [row for row, _ in known], group)
        if max(value for _, value in known) > 0.6:
            axes.axvline(1, color=RED, linestyle="--", linewidth=1.2, zorder=0.9)
        title = f"Real-time factor: {group[0].result.data}"
        set_title(axes, title, "computing time / audio duration, lower is better; 1 is real time")

    panels: list[tuple[Sequence[EvaluationRow], _Panel]] = []
    for group in _groups(rows):
        if any(row.measured.samples_per_s for row in group):
            panels.append((group, per_second))
        if any(row.measured.real_time_factor for row in group):
            panels.append((group, real_time))
    _panels(panels, path)


def peaks(rows: Sequence[EvaluationRow], budget_bytes: int, path: Path) -> None:
    """Each model's measured peak as a bar, and the predicted one as a mark: beyond the bar is safe."""
    shown = [row for row in rows if row.measured.predicted_peak_bytes or row.measured.measured_peak_bytes]
    ratios = [row.peak_ratio for row in shown if row.peak_ratio]
    with mpl.rc_context(STYLE):
        figure = new_figure(_WIDTH, _PANEL + 0.9 + _ROW * len(shown))
        axes = figure.add_subplot()
        largest = 0.0
        for index, row in enumerate(shown):
            predicted = (row.measured.predicted_peak_bytes or 0) / GB
            measured = (row.measured.measured_peak_bytes or 0) / GB
            if not measured:  # what would be too large must not make the others small
                note = f"{row.result.verdict}; predicted {predicted:.2f} GB"
                _beside(axes, index, 0.0, note, MUTED)
                continue
            largest = max(largest, predicted, measured)
            safe = row.peak_ratio is None or row.peak_ratio >= 1
            axes.barh(index, measured, height=0.6, color=COLOURS["pytorch"] if safe else RED)
            note = f"{measured:.2f} GB"
            if row.peak_ratio:
                axes.plot([predicted] * 2, [index - 0.38, index + 0.38], color=INK, linewidth=2.6)
                note += f"   predicted {row.peak_ratio:.2f}×"
            note += "" if row.whole else f"   {row.result.verdict}"
            _beside(axes, index, max(predicted, measured), note, INK if safe else RED)
        name_rows(axes, clipped([row.result.id for row in shown], _NAME_COLUMNS))
        axes.grid(False, axis="y")
        axes.set_xlabel("GB (10⁹ bytes)")
        budget = budget_bytes / GB
        if budget <= 1.3 * largest:
            axes.axvline(budget, color=GREEN, linestyle="--", linewidth=1.6, zorder=0.9)
        title = "Peak memory"
        subtitle = ""
        if ratios:
            enough = sum(ratio >= 1 for ratio in ratios)
            title += f": prediction sufficient in {enough} of {len(ratios)}"
            subtitle = f"predicted / measured: {np.median(ratios):.2f}× (median)"
        set_title(axes, title, subtitle)
        handles = [mark("measured", color=COLOURS["pytorch"], marker="s", markersize=9)]
        if any(ratio < 1 for ratio in ratios):
            handles.append(mark("measured, above prediction", color=RED, marker="s", markersize=9))
        handles.append(mark("predicted", color=INK, marker="|", markersize=14, markeredgewidth=2.6))
        if budget <= 1.3 * largest:
            handles.append(mark("total budget", color=GREEN, linestyle="--", linewidth=1.6))
        add_legend(figure, handles)
        _make_room(figure)
        figure.savefig(path, format="png")


def memory(log: MemoryStats, budget_bytes: int, path: Path) -> None:
    """Memory over time: above the children, stacked; below all RAM that is used, with limit and alerts."""
    unit, seconds = _time_unit(log.samples[-1].t_s)
    times = [sample.t_s / seconds for sample in log.samples]
    labels = list(dict.fromkeys(label for sample in log.samples for label in sample.children))
    columns = min(3 if max(map(len, labels), default=0) <= 24 else 2, max(len(labels), 1))
    with mpl.rc_context(STYLE | {"hatch.linewidth": 0.6}):
        figure = new_figure(_WIDTH, 6.0 + 0.24 * (-(-len(labels) // columns)))
        children, ram = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
        _children(children, log, labels, times, budget_bytes / GB)
        _ram(ram, log, times, seconds)
        for axes in (children, ram):
            axes.grid(False, axis="x")
            axes.set_xlim(0, max(times[-1], 1 / seconds))
            for number, span in enumerate(log.batches):
                axes.axvline(span.start_s / seconds, color=MUTED, linewidth=0.8)
                if number % 2:
                    axes.axvspan(span.start_s / seconds, span.end_s / seconds, color="#f5f5f5", zorder=0)
            for session in log.sessions[1:]:
                axes.axvline(session.start_s / seconds, color=RED, linewidth=1.2, linestyle=":")
        _name_batches(children, log, seconds)
        ram.set_xlabel(f"running time, {unit}" + (" (dotted: resumed)" if len(log.sessions) > 1 else ""))
        handles, names = children.get_legend_handles_labels()
        if handles:
            figure.legend(
                handles, names, loc="outside lower center", ncols=columns, fontsize=9, handlelength=1.4
            )
        figure.savefig(path, format="png")


_Panel = Callable[["Axes", Sequence["EvaluationRow"]], None]


def _groups(rows: Sequence[EvaluationRow]) -> list[list[EvaluationRow]]:
    """Rows with the same task and data, in the order in which these first come."""
    groups: dict[tuple[str, str], list[EvaluationRow]] = {}
    for row in rows:
        groups.setdefault((row.result.task, row.result.data), []).append(row)
    return list(groups.values())


def _panels(panels: Sequence[tuple[Sequence[EvaluationRow], _Panel]], path: Path) -> None:
    """Panels one below the other, each as high as it has bars."""
    bars = [len(group) for group, _ in panels]
    runtimes = {str(row.result.runtime) for group, _ in panels for row in group if row.result.samples}
    with mpl.rc_context(STYLE):
        figure = new_figure(_WIDTH, _PANEL * len(bars) + _ROW * sum(bars) + 0.3)
        grid = figure.subplots(len(bars), 1, squeeze=False, height_ratios=[count + 0.1 for count in bars])
        for axes, (group, draw) in zip(grid[:, 0], panels, strict=True):
            draw(axes, group)
            axes.grid(False)
        add_legend(
            figure,
            [
                mark(name, color=_colour(runtime), marker="s", markersize=9)
                for runtime, name in {**NAMES, "remote": "on a server"}.items()
                if runtime in runtimes
            ],
        )
        _make_room(figure)
        figure.savefig(path, format="png")


def _bar(
    axes: Axes, index: int, width: float, row: EvaluationRow, note: str, reach: float | None = None
) -> None:
    style: dict[str, Any] = {"color": _colour(str(row.result.runtime))}
    if not row.whole:
        style["alpha"] = 0.35
        note += f"   {row.result.samples} of {row.result.total}: {row.result.verdict}"
    axes.barh(index, width, height=0.62, **style)
    _beside(axes, index, max(width, 0.0) if reach is None else reach, note, INK if row.whole else MUTED)


def _beside(axes: Axes, index: int, x: float, note: str, colour: str) -> None:
    axes.annotate(
        note,
        (x, index),
        (_GAP_PT, 0),
        textcoords="offset points",
        color=colour,
        path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
        gid=_NOTE,
        **BESIDE_STYLE,
    )


def _make_room(figure: Figure) -> None:
    """Widen the axes of bars until what is written beside them fits."""
    figure.draw_without_rendering()  # only then are widths on the page known
    for axes in figure.axes:
        whole = axes.bbox.width
        low, high = 1.1 * min(axes.dataLim.x0, 0.0), 1e-9
        for note in axes.texts:
            if not isinstance(note, Annotation) or note.get_gid() != _NOTE:
                continue
            taken = note.get_window_extent().width + _GAP_PT * figure.dpi / 72
            # of the axis, what lies left of the note ends at the bar's end
            high = max(high, low + (note.xy[0] - low) * whole / max(whole - 1.02 * taken, 0.1 * whole))
        axes.set_xlim(low, high)


def _name_and_fail(axes: Axes, drawn: Sequence[EvaluationRow], group: Sequence[EvaluationRow]) -> None:
    """Name the bars that are drawn, then those that have none, with the reason."""
    missing = [row for row in group if row not in drawn]
    for index, row in enumerate(missing, start=len(drawn)):
        _beside(axes, index, 0.0, f"no result: {row.result.verdict}", MUTED)
    name_rows(axes, clipped([row.result.model for row in (*drawn, *missing)], _NAME_COLUMNS))


def _children(
    axes: Axes, log: MemoryStats, labels: Sequence[str], times: Sequence[float], budget: float
) -> None:
    peak = log.peaks.children_bytes / GB
    if labels:
        sizes = [[sample.children.get(label, 0) / GB for sample in log.samples] for label in labels]
        names = [
            f"{name}  {log.peaks.by_child[label] / GB:.2f} GB"
            for name, label in zip(clipped(labels, _NAME_COLUMNS), labels, strict=True)
        ]
        areas = axes.stackplot(times, *sizes, labels=names, edgecolor="white", linewidth=0.4)
        for number, area in enumerate(areas):
            area.set_facecolor(_CHILDREN[number % len(_CHILDREN)])
            area.set_hatch(_HATCHES[number // len(_CHILDREN) % len(_HATCHES)])
    subtitle = ""
    if budget <= 3 * peak:
        axes.axhline(budget, color=GREEN, linestyle="--", linewidth=1.8, label=f"budget  {budget:.2f} GB")
    else:
        subtitle = f"the budget of {budget:.2f} GB is above the visible range"
    extra = []
    if log.peaks.swap_gb > 0.05 * max(peak, 0.1):
        axes.plot(
            times, [sample.swap_gb for sample in log.samples], color=INK, linestyle=":", label="swap, all"
        )
        extra.append(log.peaks.swap_gb)
    for gpu, most in enumerate(log.peaks.gpu_used_gb):
        used = [
            sample.gpu_used_gb[gpu] if gpu < len(sample.gpu_used_gb) else np.nan for sample in log.samples
        ]
        axes.plot(times, used, color=INK, linewidth=1.4, linestyle="-.", label=f"GPU {gpu}, all")
        extra.append(most)
    axes.set_ylim(0, 1.12 * max(peak, budget if budget <= 3 * peak else 0.0, *extra, 0.01))
    axes.set_ylabel("GB (10⁹ bytes)")
    title = f"Memory of model processes: at most {peak:.2f} GB at once"
    set_title(axes, title, subtitle, lift=16 if subtitle else 14)  # room for the batches' names


def _ram(axes: Axes, log: MemoryStats, times: Sequence[float], seconds: float) -> None:
    last = log.sessions[-1]
    axes.plot(times, [sample.ram_percent for sample in log.samples], color=INK, linewidth=1.6)
    for alert in log.alerts:
        axes.axvspan(alert.start_s / seconds, alert.end_s / seconds, color=RED, alpha=0.25, linewidth=0)
    axes.axhline(last.alert_percent, color=RED, linestyle="--", linewidth=1.2)
    axes.annotate(
        f"alert, {last.alert_percent:g} %",
        (1, last.alert_percent),
        (-4, 3),
        axes.get_yaxis_transform(),
        "offset points",
        ha="right",
        color=RED,
        fontsize=9,
    )
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_ylabel("RAM used, %")
    source = "the machine's RAM" if last.limit_source == "machine" else "the cgroup's limit"
    axes.annotate(
        f"100 % is {last.limit_gb:.2f} GB, {source}; includes all other processes",
        (0, 1),
        (0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        color=MUTED,
        fontsize=9,
    )


def _name_batches(axes: Axes, log: MemoryStats, seconds: float) -> None:
    """Names above the borders, but for those that would run into the one before."""
    low, high = axes.get_xlim()
    free = low
    for span in log.batches:
        start = span.start_s / seconds
        if start >= free:
            axes.annotate(
                span.name,
                (start, 1),
                (2, 5),
                axes.get_xaxis_transform(),
                "offset points",
                color=MUTED,
                fontsize=9,
            )
            free = start + (high - low) * (0.011 * len(span.name) + 0.01)


def _time_unit(longest_s: float) -> tuple[str, float]:
    if longest_s > 3 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if longest_s > 600 else ("s", 1.0)


def _colour(runtime: str) -> str:
    return COLOURS.get(runtime, _REMOTE if runtime == "remote" else MUTED)


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
