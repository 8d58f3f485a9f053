"""The page that a person reads: `report.md`, its headline, and the table that fits a terminal."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pressoir.evaluation.memory_log import MemoryStats
from pressoir.evaluation.planner import EvaluationPlan
from pressoir.evaluation.records import Verdict
from pressoir.evaluation.report.results import BatchResult, Consolidated, EvaluationRow, clipped, rate
from pressoir.evaluation.report.scoring import figure_of, name_of
from pressoir.extensions.task import task

VERDICTS: dict[Verdict, str] = {
    "ok": "evaluated",
    "skipped_memory": "not started: even a single sample needs more memory than allowed",
    "skipped_oom": "ran out of memory even at batch size 1",
    "killed_oom": "killed because memory ran out",
    "killed_signal": "its process crashed or was killed externally",
    "timeout": "stopped because it exceeded `timeout_s`",
    "damaged": "its files are not usable",
    "exception": "raised an error",
    "unreachable": "its server or the hub did not respond",
}
"""What a verdict means."""
PICTURE_TITLES = {
    "metrics.png": "Scores",
    "speed.png": "Speed",
    "peaks.png": "Predicted and measured peak memory",
    "memory.png": "Memory over time",
}
_DETAIL_LINES, _DETAIL_COLUMNS = 4, 160
_ID_COLUMNS = 22


def headline(rows: Sequence[EvaluationRow], log: MemoryStats, plan: EvaluationPlan) -> str:
    """In one line: how many were evaluated, how the others ended, and the memory that they took."""
    verdicts = Counter(row.result.verdict for row in rows)
    parts = [f"{verdicts.pop('ok', 0)} of {len(rows)} evaluated"]
    parts += [f"{count} {verdict}" for verdict, count in sorted(verdicts.items())]
    if log.peaks.children_bytes:
        parts.append(f"peak {_gb(log.peaks.children_bytes)} of a budget of {_gb(plan.budget_bytes)}")
    return ", ".join(parts)


def short_table(rows: Sequence[EvaluationRow]) -> tuple[list[str], list[list[str]]]:
    """Names and cells of the columns that fit 100 characters; the first two are text.

    `GB` is the measured peak, `planned` the predicted one.
    """
    columns = ["model", "verdict", "score", "samples", "per s", "batch", "GB", "planned"]
    names = clipped([row.result.id for row in rows], _ID_COLUMNS)
    return columns, [[name, *_short_cells(row)] for name, row in zip(names, rows, strict=True)]


def to_markdown(
    consolidated: Consolidated,
    batches: Sequence[BatchResult],
    log: MemoryStats,
    plan: EvaluationPlan,
    pictures: Sequence[str] = (),
) -> str:
    """The whole page; `pictures` are the files beside it that it shows."""
    rows = [EvaluationRow(result, consolidated.measured[result.id]) for result in consolidated.models]
    sections = [
        [f"# {_cell(consolidated.name)}", f"**{headline(rows, log, plan)}**", _table(rows), _legend(rows)],
        _picture(pictures, "metrics.png"),
        _failures(rows),
        ["## Memory", *_estimates(rows), *_memory(log, plan)],
        _picture(pictures, "peaks.png"),
        _picture(pictures, "memory.png"),
        ["## Batches", *_batches(batches, plan)],
        ["## Speed", *_picture(pictures, "speed.png")] if "speed.png" in pictures else [],
        ["## Notes", *_notes(rows)] if _notes(rows) else [],
        ["## Conditions", _conditions(consolidated)],
    ]
    return "\n\n".join(part for section in sections for part in section) + "\n"


def _table(rows: Sequence[EvaluationRow]) -> str:
    columns = [
        *("model", "data", "task", "runtime", "verdict", "score", "other metrics"),
        *("samples", "seconds", "per s", "batch", "predicted GB", "measured GB", "ratio"),
    ]
    return "\n".join(
        [
            f"| {' | '.join(columns)} |",
            f"|{'---|' * 7}{'---:|' * (len(columns) - 7)}",
            *(f"| {' | '.join(map(_cell, _cells(row)))} |" for row in rows),
        ]
    )


def _cells(row: EvaluationRow) -> list[str]:
    result, measured = row.result, row.measured
    others = [
        f"{name_of(name)} {figure_of(name, value)}"
        for name, value in result.metrics.items()
        if name != row.main_metric and "_ci_" not in name
    ]
    if measured.real_time_factor is not None:
        others.append(f"real-time factor {factor(measured.real_time_factor)}")
    return [
        result.model,
        result.data,
        result.task,
        result.runtime or "–",
        result.verdict if result.verdict == "ok" else f"**{result.verdict}**",
        score_of(row, interval=True),
        ", ".join(others) or "–",
        _samples(row),
        f"{measured.seconds:.1f}" if measured.samples_per_s else "–",
        rate(measured.samples_per_s),
        str(measured.batch_size or "–"),
        _number_gb(measured.predicted_peak_bytes),
        _number_gb(measured.measured_peak_bytes),
        f"{row.peak_ratio:.2f}×" if row.peak_ratio else "–",
    ]


def _short_cells(row: EvaluationRow) -> list[str]:
    result, measured = row.result, row.measured
    return [
        result.verdict,
        score_of(row),
        _samples(row),
        rate(measured.samples_per_s),
        str(measured.batch_size or "–"),
        _number_gb(measured.measured_peak_bytes),
        _number_gb(measured.predicted_peak_bytes),
    ]


def score_of(row: EvaluationRow, interval: bool = False) -> str:
    """The main metric by name and value, `accuracy 91.3 %`, or a dash."""
    if row.main_metric is None:
        return "–"
    found = row.result.metrics
    text = f"{name_of(row.main_metric)} {figure_of(row.main_metric, found[row.main_metric])}"
    if interval and "accuracy_ci_low" in found:
        text += f" ({100 * found['accuracy_ci_low']:.1f}–{100 * found['accuracy_ci_high']:.1f})"
    return text


def factor(value: float) -> str:
    """A real-time factor."""
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def _samples(row: EvaluationRow) -> str:
    result = row.result
    if result.total == 0:
        return "–"
    return str(result.total) if result.samples == result.total else f"{result.samples}/{result.total}"


def _legend(rows: Sequence[EvaluationRow]) -> str:
    tasks = [task(name) for name in sorted({row.result.task for row in rows})]
    units = ", ".join(f"{one.unit} of {one.name}" for one in tasks)
    metrics = [one.main_metric for one in tasks]
    better = ", ".join(
        f"{name_of(metric.name)} {'lower' if metric.lower_is_better else 'higher'}" for metric in metrics
    )
    return (
        f"Samples are {units}. Better values: {better}. Seconds are the time spent in the model, without "
        "loading. GB = 10⁹ bytes; the ratio is predicted / measured peak."
    )


def _failures(rows: Sequence[EvaluationRow]) -> list[str]:
    """Each model that did not end well: what its verdict means, and the first lines of what happened."""
    failed = [row for row in rows if row.result.verdict != "ok"]
    if not failed:
        return []
    parts = [
        "## Failures",
        "Full error messages are in `consolidated_results.json`. Completed predictions are kept: "
        "`pressoir evaluate --resume` retries the failed models without repeating them.",
    ]
    for row in failed:
        result = row.result
        parts.append(f"**{_cell(result.id)}: {result.verdict}**: {VERDICTS[result.verdict]}.")
        if lines := [line for line in result.detail.splitlines() if line.strip()]:
            shown = lines[:_DETAIL_LINES]
            if len(lines) > _DETAIL_LINES:  # of a traceback the end tells most
                shown = [lines[0], "…", *lines[-_DETAIL_LINES + 1 :]]
            parts.append("\n".join(f"    {line[:_DETAIL_COLUMNS]}" for line in shown))
    return parts


def _estimates(rows: Sequence[EvaluationRow]) -> list[str]:
    ratios = {row.result.id: row.peak_ratio for row in rows if row.peak_ratio}
    if not ratios:
        return []
    short = [f"{name} ({ratio:.2f}×)" for name, ratio in ratios.items() if ratio < 1]
    text = (
        f"The predicted peak was sufficient in {len(ratios) - len(short)} of {len(ratios)} cases; the "
        f"median of predicted / measured is {statistics.median(ratios.values()):.2f}×."
    )
    return [text + (f" Too low: {', '.join(map(_cell, short))}." if short else "")]


def _memory(log: MemoryStats, plan: EvaluationPlan) -> list[str]:
    if not log.samples:
        return ["No memory samples were recorded."]
    peaks, last = log.peaks, log.sessions[-1]
    source = "the machine's RAM" if last.limit_source == "machine" else f"the limit of `{last.limit_source}`"
    lines = [
        f"- All model processes together used at most {_gb(peaks.children_bytes)} (PSS) of a budget of "
        f"{_gb(plan.budget_bytes)}.",
        f"- In total, at most {peaks.ram_used_gb:.2f} GB of memory were used, {peaks.ram_percent:.0f} % of "
        f"{last.limit_gb:.2f} GB ({source}); swap: {peaks.swap_gb:.2f} GB.",
    ]
    lines += [f"- GPU {i}: at most {used:.2f} GB." for i, used in enumerate(peaks.gpu_used_gb)]
    if log.alerts:
        times = ", ".join(
            f"{one.start_s:.0f}–{one.end_s:.0f} s ({one.ram_percent:.0f} %)" for one in log.alerts[:8]
        )
        more = f" and {len(log.alerts) - 8} more" if len(log.alerts) > 8 else ""
        lines.append(f"- Alerts, above {last.alert_percent:g} %: {times}{more}.")
    else:
        lines.append(f"- No alerts: memory was never above {last.alert_percent:g} %.")
    if len(log.sessions) > 1:
        lines.append(f"- The run was resumed; it took {len(log.sessions)} sessions.")
    return ["\n".join(lines)]


def _batches(batches: Sequence[BatchResult], plan: EvaluationPlan) -> list[str]:
    if not batches:
        return ["No model could be run."]
    lines = ["| batch | models (batch size) | predicted GB | measured GB |", "|---|---|---:|---:|"]
    for batch in batches:
        members = ", ".join(f"{_cell(one.model)} ({one.batch_size})" for one in batch.placements)
        peaks = f"{_number_gb(batch.predicted_peak_bytes)} | {_number_gb(batch.measured_peak_bytes)}"
        lines.append(f"| {_cell(batch.name)} | {members} | {peaks} |")
    text = (
        "Models of a batch run in parallel, batches one after another (on a cluster, as workers become "
        "free). Measured is the peak memory of all model processes of a batch together. Budget: "
        f"{_gb(plan.budget_bytes)}."
    )
    return ["\n".join(lines), text]


def _notes(rows: Sequence[EvaluationRow]) -> list[str]:
    """Each note once, with the runs that it holds for."""
    held: dict[str, list[str]] = {}
    for row in rows:
        for note in row.result.notes:
            held.setdefault(note, []).append(row.result.id)
    if not held:
        return []
    return ["\n".join(f"- {' '.join(note.split())} ({', '.join(ids)})" for note, ids in held.items())]


def _conditions(consolidated: Consolidated) -> str:
    lines = ["| | |", "|---|---|", f"| run | {_cell(consolidated.run)} |"]
    for name, value in consolidated.context.items():
        if name != "name" and value is not None:
            lines.append(
                f"| {_cell(name.removesuffix('_bytes').replace('_', ' '))} | {_value(name, value)} |"
            )
    return "\n".join(lines)


def _value(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return _gb(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_cell(str(key))} {_value(str(key), part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(name, part) for part in value)
    return _cell(str(value))


def _picture(pictures: Sequence[str], name: str) -> list[str]:
    return [f"![{PICTURE_TITLES[name]}]({name})"] if name in pictures else []


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _number_gb(size: int | None) -> str:
    return f"{size / 1e9:.2f}" if size else "–"


def _cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
