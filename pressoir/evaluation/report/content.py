"""What a report says, as plain text in tables and lists: `report.md` and `report.html` are its two faces."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pressoir.evaluation.memory_log import MemoryStats
from pressoir.evaluation.planner import EvaluationPlan
from pressoir.evaluation.records import Verdict
from pressoir.evaluation.report.results import (
    BatchResult,
    Comparison,
    Consolidated,
    EvaluationRow,
    ModelResult,
    rate,
)
from pressoir.evaluation.report.scoring import difference_of, figure_of, interval_of, name_of
from pressoir.extensions.task import task
from pressoir.plots.standalone_page import Table

VERDICTS: dict[Verdict, str] = {
    "ok": "evaluated",
    "skipped_memory": "not started: even a single sample needs more memory than allowed",
    "skipped_oom": "ran out of memory even at batch size 1",
    "killed_oom": "killed because memory ran out",
    "killed_signal": "its process crashed or was killed externally",
    "timeout": "stopped because it exceeded timeout_s",
    "damaged": "its files are not usable",
    "exception": "raised an error",
    "unreachable": "its server or the hub did not respond",
    "unsupported": "of a type that is not run for this task",
}
"""What a verdict means."""
PICTURE_TITLES = {
    "metrics.png": "Scores",
    "speed.png": "Speed",
    "peaks.png": "Predicted and measured peak memory",
    "memory.png": "Memory over time",
}
_DETAIL_LINES, _DETAIL_COLUMNS = 4, 160


@dataclass(frozen=True)
class Failure:
    """A model that did not end well."""

    run: str
    verdict: str
    meaning: str
    lines: tuple[str, ...]
    """The first and the last of what happened."""


@dataclass(frozen=True)
class Content:
    """Everything that a report says; an empty part is left out."""

    name: str
    headline: str
    results: Table
    legend: str
    comparisons: Table
    comparisons_legend: str
    failures: tuple[Failure, ...]
    estimates: str
    memory: tuple[str, ...]
    batches: Table
    batches_legend: str
    notes: tuple[str, ...]
    conditions: Table


def gather(
    consolidated: Consolidated, batches: Sequence[BatchResult], log: MemoryStats, plan: EvaluationPlan
) -> Content:
    """The content of a report."""
    rows = [EvaluationRow(result, consolidated.measured[result.id]) for result in consolidated.models]
    return Content(
        name=consolidated.name,
        headline=headline(rows, log, plan),
        results=_results(rows),
        legend=_legend(rows),
        comparisons=_comparisons(consolidated.comparisons),
        comparisons_legend="Difference: the model's metric minus that of the model that it is compared with, "
        "on the samples that both answered, in the metric's unit (of percentages: points), with its 95 % "
        "interval (paired bootstrap). p: approximate randomisation, two-sided; below 0.05, models that are "
        "equally good seldom differ as much on so many samples.",
        failures=tuple(_failure(row.result) for row in rows if row.result.verdict != "ok"),
        estimates=_estimates(rows),
        memory=_memory(log, plan),
        batches=_batches(batches),
        batches_legend="Models of a batch run in parallel, batches one after another (on a cluster, as "
        "workers become free). Measured is the peak memory of all model processes of a batch together. "
        f"Budget: {_gb(plan.budget_bytes)}.",
        notes=_notes(rows),
        conditions=_conditions(consolidated),
    )


def headline(rows: Sequence[EvaluationRow], log: MemoryStats, plan: EvaluationPlan) -> str:
    """In one line: how many were evaluated, how the others ended, and the memory that they took."""
    verdicts = Counter(row.result.verdict for row in rows)
    parts = [f"{verdicts.pop('ok', 0)} of {len(rows)} evaluated"]
    parts += [f"{count} {verdict}" for verdict, count in sorted(verdicts.items())]
    if log.peaks.children_bytes:
        parts.append(f"peak {_gb(log.peaks.children_bytes)} of a budget of {_gb(plan.budget_bytes)}")
    return ", ".join(parts)


def score_of(row: EvaluationRow, interval: bool = False) -> str:
    """The main metric by name and value, `accuracy 91.3 %`, or a dash."""
    return _score(row.result, row.main_metric, interval) if row.main_metric else "–"


def _score(result: ModelResult, metric: str, interval: bool) -> str:
    text = f"{name_of(metric)} {figure_of(metric, result.metrics[metric])}"
    if interval and (found := result.intervals.get(metric)):
        text += f" ({interval_of(metric, *found)})"
    return text


def factor(value: float) -> str:
    """A real-time factor."""
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def samples_of(result: ModelResult) -> str:
    """How many samples have a prediction, and of how many where that is not the same."""
    if result.total == 0:
        return "–"
    return str(result.total) if result.samples == result.total else f"{result.samples}/{result.total}"


def number_gb(size: int | None) -> str:
    """A size in GB without the unit, or a dash."""
    return f"{size / 1e9:.2f}" if size else "–"


def _results(rows: Sequence[EvaluationRow]) -> Table:
    columns = (
        *("model", "data", "task", "runtime", "verdict", "score", "other metrics"),
        *("samples", "seconds", "per s", "batch", "predicted GB", "measured GB", "ratio"),
    )
    return Table(columns, 7, tuple(map(_cells, rows)))


def _cells(row: EvaluationRow) -> tuple[str, ...]:
    result, measured = row.result, row.measured
    others = [
        _score(result, name, interval=True)
        for name in result.metrics
        if name != row.main_metric and "_ci_" not in name
    ]
    if measured.real_time_factor is not None:
        others.append(f"real-time factor {factor(measured.real_time_factor)}")
    return (
        result.model,
        result.data,
        result.task,
        result.runtime or "–",
        result.verdict,
        score_of(row, interval=True),
        ", ".join(others) or "–",
        samples_of(result),
        f"{measured.seconds:.1f}" if measured.samples_per_s else "–",
        rate(measured.samples_per_s),
        str(measured.batch_size or "–"),
        number_gb(measured.predicted_peak_bytes),
        number_gb(measured.measured_peak_bytes),
        f"{row.peak_ratio:.2f}×" if row.peak_ratio else "–",
    )


def _legend(rows: Sequence[EvaluationRow]) -> str:
    tasks = [task(name) for name in sorted({row.result.task for row in rows})]
    units = ", ".join(f"{declared.unit} of {declared.name}" for declared in tasks)
    metrics = [declared.main_metric for declared in tasks]
    better = ", ".join(
        f"{name_of(metric.name)} {'lower' if metric.lower_is_better else 'higher'}" for metric in metrics
    )
    intervals = (
        "In brackets: 95 % confidence intervals. " if any(row.result.intervals for row in rows) else ""
    )
    return (
        f"Samples are {units}. Better values: {better}. {intervals}Seconds are the time spent in the model, "
        "without loading. GB = 10⁹ bytes; the ratio is predicted / measured peak."
    )


def _comparisons(found: Sequence[Comparison]) -> Table:
    columns = ("data", "metric", "model", "compared with", "difference", "95 % interval", "p", "samples")
    return Table(columns, 4, tuple(map(_comparison, found)))


def _comparison(comparison: Comparison) -> tuple[str, ...]:
    low, high = (difference_of(comparison.metric, value) for value in (comparison.low, comparison.high))
    return (
        comparison.data,
        name_of(comparison.metric),
        comparison.model,
        comparison.against,
        difference_of(comparison.metric, comparison.difference),
        f"{low} to {high}",
        f"{comparison.p_value:.3f}",
        str(comparison.samples),
    )


def _failure(result: ModelResult) -> Failure:
    lines = [line for line in result.detail.splitlines() if line.strip()]
    shown = lines[:_DETAIL_LINES]
    if len(lines) > _DETAIL_LINES:  # the end of a traceback says most
        shown = [lines[0], "…", *lines[-_DETAIL_LINES + 1 :]]
    return Failure(
        result.id,
        result.verdict,
        VERDICTS[result.verdict],
        tuple(line[:_DETAIL_COLUMNS] for line in shown),
    )


def _estimates(rows: Sequence[EvaluationRow]) -> str:
    ratios = {row.result.id: row.peak_ratio for row in rows if row.peak_ratio}
    if not ratios:
        return ""
    short = [f"{name} ({ratio:.2f}×)" for name, ratio in ratios.items() if ratio < 1]
    text = (
        f"The predicted peak was sufficient in {len(ratios) - len(short)} of {len(ratios)} cases; the "
        f"median of predicted / measured is {statistics.median(ratios.values()):.2f}×."
    )
    return text + (f" Too low: {', '.join(short)}." if short else "")


def _memory(log: MemoryStats, plan: EvaluationPlan) -> tuple[str, ...]:
    if not log.samples:
        return ("No memory samples were recorded.",)
    peaks, last = log.peaks, log.sessions[-1]
    source = "the machine's RAM" if last.limit_source == "machine" else f"the limit of {last.limit_source}"
    lines = [
        f"All model processes together used at most {_gb(peaks.children_bytes)} (PSS) of a budget of "
        f"{_gb(plan.budget_bytes)}.",
        f"In total, at most {peaks.ram_used_gb:.2f} GB of memory were used, {peaks.ram_percent:.0f} % of "
        f"{last.limit_gb:.2f} GB ({source}); swap: {peaks.swap_gb:.2f} GB.",
    ]
    lines += [f"GPU {i}: at most {used:.2f} GB." for i, used in enumerate(peaks.gpu_used_gb)]
    if log.alerts:
        times = ", ".join(
            f"{alert.start_s:.0f}–{alert.end_s:.0f} s ({alert.ram_percent:.0f} %)" for alert in log.alerts[:8]
        )
        more = f" and {len(log.alerts) - 8} more" if len(log.alerts) > 8 else ""
        lines.append(f"Alerts, above {last.alert_percent:g} %: {times}{more}.")
    else:
        lines.append(f"No alerts: memory was never above {last.alert_percent:g} %.")
    if len(log.sessions) > 1:
        lines.append(f"The run was resumed; it took {len(log.sessions)} sessions.")
    return tuple(lines)


def _batches(batches: Sequence[BatchResult]) -> Table:
    rows = tuple(
        (
            batch.name,
            ", ".join(f"{placement.model} ({placement.batch_size})" for placement in batch.placements),
            number_gb(batch.predicted_peak_bytes),
            number_gb(batch.measured_peak_bytes),
        )
        for batch in batches
    )
    return Table(("batch", "models (batch size)", "predicted GB", "measured GB"), 2, rows)


def _notes(rows: Sequence[EvaluationRow]) -> tuple[str, ...]:
    """Each note once, with the runs that it holds for."""
    held: dict[str, list[str]] = {}
    for row in rows:
        for note in row.result.notes:
            held.setdefault(note, []).append(row.result.id)
    return tuple(f"{' '.join(note.split())} ({', '.join(ids)})" for note, ids in held.items())


def _conditions(consolidated: Consolidated) -> Table:
    rows = [("run", consolidated.run)]
    rows += [
        (name.removesuffix("_bytes").replace("_", " "), _value(name, value))
        for name, value in consolidated.context.items()
        if name != "name" and value is not None
    ]
    return Table(("", ""), 2, tuple(rows))


def _value(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return _gb(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(str(key), item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(name, item) for item in value)
    return str(value)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
