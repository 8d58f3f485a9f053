"""What an evaluation leaves in its folder: files for programs, a page for people, pictures.

=============================  ============================================================================
file                           content
=============================  ============================================================================
`consolidated_results.json`    `Consolidated`: each run's result, what was measured, under what conditions
`consolidated_detailed.jsonl`  a line a sample: what was asked, what would be right, what was predicted
`batch_<n>_results.json`       `BatchResult`: who ran together, and how each ended
`memory_stats.json`            `memory_log.MemoryStats`
`report.md`                    the table, with its notes
`report.html`                  the same with the pictures and the worst samples, in one file
`*.png`                        see `pressoir.evaluation.report.plots`
=============================  ============================================================================

What was predicted and scored stands apart from what was measured about it: `models` of the first file and the
whole second file are the same, byte by byte, whether a run went through or was killed and resumed. Times,
memory and dates never are. Each file is written whole or not at all, and writing again replaces it.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pressoir.config import Config
from pressoir.errors import PressoirError
from pressoir.evaluation.memory_log import MemoryStats
from pressoir.evaluation.planner import EvaluationPlan
from pressoir.evaluation.report import scoring, significance
from pressoir.evaluation.report.results import (
    BatchResult,
    Consolidated,
    EvaluationOutcome,
    EvaluationRow,
    Measured,
    ModelResult,
    Report,
)
from pressoir.extensions.task import task
from pressoir.system.files import disk_errors, write_text_atomic
from pressoir.system.reader import read_object

CONSOLIDATED, DETAILED = "consolidated_results.json", "consolidated_detailed.jsonl"
MEMORY, PAGE, HTML = "memory_stats.json", "report.md", "report.html"
PICTURES = ("metrics.png", "speed.png", "peaks.png", "memory.png")


def write(
    folder: Path,
    results: Sequence[EvaluationOutcome],
    plan: EvaluationPlan,
    log: MemoryStats,
    context: Mapping[str, Any],
) -> Report:
    """Write all files of an evaluation into its folder.

    `results` are in the configuration's order, then in that of a model's data. `context` is JSON-able and is
    shown as it is, key by key (`*_bytes` in GB); its `name` is the configuration's.

    Raises:
        StoreError: the folder is full, or cannot be written.
    """
    from pressoir.evaluation.report import content, html, page, plots

    rows = tuple(EvaluationRow(_result(result), _measured(result)) for result in results)
    consolidated = Consolidated(
        run=folder.name,
        name=str(context.get("name", folder.name)),
        models=tuple(row.result for row in rows),
        comparisons=significance.compare(results),
        measured={row.result.id: row.measured for row in rows},
        context=dict(context),
    )
    batches = _batches(results, plan, log)
    said = content.gather(consolidated, batches, log, plan)
    pictures: dict[str, Callable[[Path], None]] = {}
    if any(row.main_metric for row in rows):
        pictures["metrics.png"] = lambda path: plots.metrics(rows, path)
    if any(row.measured.samples_per_s for row in rows):
        pictures["speed.png"] = lambda path: plots.speed(rows, path)
    if any(row.peak_ratio for row in rows):
        pictures["peaks.png"] = lambda path: plots.peaks(rows, plan.budget_bytes, path)
    if len(log.samples) > 1:
        pictures["memory.png"] = lambda path: plots.memory(log, plan.budget_bytes, path)
    texts = {
        CONSOLIDATED: _json(consolidated),
        DETAILED: "".join(line for result in results for line in _detailed(result)),
        MEMORY: _json(log),
        **{f"batch_{batch.batch}_results.json": _json(batch) for batch in batches},
        PAGE: page.to_markdown(said, tuple(pictures)),
    }
    with disk_errors(folder):
        for name, text in texts.items():
            write_text_atomic(folder / name, text)
        for name, draw in pictures.items():
            _draw_atomic(folder / name, draw)
        shown = [folder / name for name in pictures]
        write_text_atomic(folder / HTML, html.to_html(said, results, shown))
        stale = {*folder.glob("batch_*_results.json"), *(folder / name for name in PICTURES)}
        for path in stale - {folder / name for name in (*texts, *pictures)}:
            path.unlink(missing_ok=True)  # of an earlier plan, which had more
    return Report(
        paths=tuple(folder / name for name in (*texts, HTML, *pictures)),
        rows=rows,
        headline=said.headline,
    )


def read(path: Path) -> Consolidated:
    """Read a `consolidated_results.json`.

    Raises:
        PressoirError: it is missing or not such a file.
    """
    try:
        return Consolidated.model_validate(read_object(path, PressoirError, "run the evaluation again"))
    except ValidationError as error:
        raise PressoirError(f"{path} is not a valid evaluation result: {error}") from error


def _result(result: EvaluationOutcome) -> ModelResult:
    outcome, samples = result.outcome, len(result.predictions)
    declared = task(result.data.task)
    # how many windows a text has only the tokenizer knows
    total = max(outcome.total if declared.windows else len(result.data.samples), samples)
    notes = list(outcome.notes)
    if 0 < samples < total:
        notes.append(f"only {samples} of {total} {declared.unit} have predictions")
    if outcome.verdict == "ok" and outcome.detail:
        notes.append(outcome.detail)
    return ModelResult(
        id=result.run_id,
        model=result.model,
        data=result.data_name,
        task=result.data.task,
        runtime=outcome.runtime,
        verdict=outcome.verdict,
        detail=outcome.detail,
        samples=samples,
        total=total,
        success_rate=scoring.rounded(samples / total) if total else 0.0,
        metrics=scoring.rounded(outcome.metrics),
        intervals=significance.intervals(result.score),
        notes=tuple(notes),
    )


def _measured(result: EvaluationOutcome) -> Measured:
    outcome = result.outcome
    # those of the samples asked for: the journal may have more
    seconds = math.fsum(prediction.seconds for prediction in result.predictions) or outcome.seconds
    sound = 0.0
    if task(result.data.task).sound:
        sound = scoring.audio_seconds([prediction.value for prediction in result.predictions])
    return Measured(
        seconds=seconds,
        load_s=outcome.load_s,
        samples_per_s=len(result.predictions) / seconds if seconds and result.predictions else None,
        batch_size=outcome.batch_size,
        predicted_peak_bytes=outcome.predicted_peak_bytes,
        measured_peak_bytes=outcome.measured_peak_bytes,
        real_time_factor=seconds / sound if sound else None,
    )


def _detailed(result: EvaluationOutcome) -> Iterator[str]:
    """A line a sample, in the data's order; samples without a prediction too, where they are known."""
    found = {prediction.sample: scoring.rounded(prediction.value) for prediction in result.predictions}
    known = {sample.id: sample for sample in result.data.samples}
    declared = task(result.data.task)
    names = scoring.in_order(result.data, found) if declared.windows else known
    for name in names:
        line = {"run": result.run_id, "sample": name}
        if (sample := known.get(name)) is not None:
            if not declared.sound:  # there it is a path of this machine
                line["input"] = sample.input
            line["reference"] = sample.reference
        yield json.dumps({**line, "prediction": found.get(name)}, ensure_ascii=False) + "\n"


def _batches(
    results: Sequence[EvaluationOutcome], plan: EvaluationPlan, log: MemoryStats
) -> list[BatchResult]:
    outcomes = {result.run_id: result.outcome for result in results}
    return [
        BatchResult(
            batch=number,
            name=batch.name,
            placements=batch.placements,
            predicted_peak_bytes=batch.peak_bytes,
            measured_peak_bytes=log.children_peak_bytes(batch.name) or None,
            outcomes=tuple(
                outcomes[placement.model] for placement in batch.placements if placement.model in outcomes
            ),
        )
        for number, batch in enumerate(plan.batches, start=1)
    ]


def _json(value: Config) -> str:
    return json.dumps(value.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"


def _draw_atomic(path: Path, draw: Callable[[Path], None]) -> None:
    draft = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        draw(draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
