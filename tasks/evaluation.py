"""The steps of a batch evaluation as Prefect tasks: prepare, a task a batch, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from prefect.runtime import task_run

from pressoir.evaluation import cluster, memory_log, run
from pressoir.evaluation.config import EvaluationConfig
from pressoir.evaluation.memory_log import MemoryLog
from pressoir.evaluation.records import RunOutcome
from pressoir.evaluation.report import write
from pressoir.evaluation.report.results import EvaluationRow, Report
from pressoir.evaluation.run import Prepared, Survey
from pressoir.store.store import Store
from pressoir.tasks.evaluation_progress import shown
from pressoir.tasks.stage import stage_task
from pressoir.tasks.tracking.run import Run


@stage_task(name="prepare")
def prepare(
    config: EvaluationConfig,
    home: Path,
    batches: Sequence[str],
    folder: Path | None,
    seen: Survey | None = None,
) -> tuple[Path, Prepared]:
    """Resolve models and data, estimate memory and plan; create the run's folder, or resume in `folder`."""
    prepared = run.prepare(config, Store(home), batches=batches, seen=seen, resumed=folder is not None)
    if folder is not None:
        prepared = run.resume(prepared, folder)
        cluster.collect_all(prepared.jobs)
        return folder, prepared
    return run.begin(prepared, config.results)


@stage_task(name="evaluate", task_run_name="evaluate-{batch}")
def evaluate_batch(prepared: Prepared, batch: str, log: MemoryLog) -> list[RunOutcome]:
    """Run the models of one batch in parallel, each in a child process."""
    with shown(log) as show:
        return list(run.evaluate(prepared, batch, show))


@stage_task(name="report")
def write_report(prepared: Prepared, folder: Path, outcomes: Mapping[str, RunOutcome], parent: Run) -> Report:
    """Score the predictions, write the results and log them to MLflow, one nested run per model."""
    found = [run.scored(prepared, name, outcomes[name]) for name in prepared.names if name in outcomes]
    written = write.write(folder, found, prepared.plan, memory_log.stats(folder), run.conditions(prepared))
    for row in written.rows:
        _track(parent, row)
    parent.log_files(written.paths)
    return written


class _BadVerdictError(Exception):
    """Ends a nested run as FAILED."""


def _track(parent: Run, row: EvaluationRow) -> None:
    result = row.result
    tags = {"model": result.model, "data": result.data, "verdict": result.verdict}
    with suppress(_BadVerdictError), parent.nested(result.id, tags) as nested:
        nested.log(
            params=result.model_dump(mode="json", include={"model", "data", "task", "runtime"}),
            metrics={name.replace("/", "."): value for name, value in row.figures().items()},
            tags={"prefect.task_run_id": task_run.id},
        )
        if result.notes:
            nested.log(tags={"mlflow.note.content": "\n".join(result.notes)})
        if result.verdict != "ok":
            raise _BadVerdictError(f"{result.verdict}: {result.detail}")
