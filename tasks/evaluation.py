"""The steps of a batch evaluation as Prefect tasks: prepare, a task a batch, and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect.logging import get_run_logger
from prefect.runtime import task_run

from pressoir import tasks
from pressoir.evaluation import cluster, memory_log, run
from pressoir.evaluation.config import EvaluationConfig
from pressoir.evaluation.memory_log import MemoryLog
from pressoir.evaluation.records import RunOutcome
from pressoir.evaluation.report import scoring, write
from pressoir.evaluation.report.results import EvaluationOutcome, EvaluationRow, Report
from pressoir.evaluation.run import Prepared, Survey
from pressoir.evaluation.supervisor import Event
from pressoir.store.store import Store
from pressoir.tasks.stage import ProgressArtifact, stage_task
from pressoir.tasks.tracking import Run


@stage_task(name="prepare")
def prepare(
    config: EvaluationConfig,
    home: Path,
    batches: Sequence[str],
    folder: Path | None,
    seen: Survey | None = None,
) -> tuple[Path, Prepared]:
    """Resolve models and data, estimate memory and plan; create the run's folder, or resume in `folder`."""
    prepared = run.prepare(config, Store(home), batches=batches, seen=seen)
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
    results = [_result(prepared, name, outcomes[name]) for name in prepared.names if name in outcomes]
    written = write.write(folder, results, prepared.plan, memory_log.stats(folder), context(prepared))
    for row in written.rows:
        _track(parent, row)
    for path in written.paths:
        parent.client.log_artifact(parent.run_id, str(path))
    return written


def context(prepared: Prepared) -> dict[str, object]:
    """The conditions under which the results were produced."""
    seen, dask = prepared.survey, prepared.config.dask
    return {
        "name": prepared.config.name,
        "strategy": seen.strategy,
        "reserve_bytes": seen.reserve_bytes,
        "budget_bytes": prepared.plan.budget_bytes,
        "total_bytes": seen.memory.total_bytes,
        "available_bytes": seen.memory.available_bytes,
        "limit_bytes": seen.memory.limit_bytes,
        "limit_source": seen.memory.limit_source,
        "max_parallel": seen.max_parallel,
        "cpus": seen.cpus,
        "threads": seen.threads,
        "samples": prepared.config.samples,
        "device": prepared.config.device,
        **({"dask": dask.model_dump(mode="json")} if dask is not None else {}),
    }


def _result(prepared: Prepared, name: str, outcome: RunOutcome) -> EvaluationOutcome:
    model, data = prepared.names[name]
    job, asked = prepared.jobs.get(name), prepared.dataset(name)
    found = run.predictions(job, asked) if job is not None else []
    score = scoring.score(asked, {one.sample: one.value for one in found})
    scored = outcome.model_copy(
        update={"metrics": score.metrics, "notes": (*outcome.notes, *score.notes), "samples": len(found)}
    )
    return EvaluationOutcome(name, model, data, asked, scored, found)


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


@contextmanager
def shown(log: MemoryLog) -> Iterator[Callable[[Event], None]]:
    """Tell the terminal or the log what happens, and Prefect's page how far it is; watch the children."""
    terminal, logger = tasks.terminal.get(), get_run_logger()
    bar, parts = ProgressArtifact(str(task_run.name or "evaluate")), dict[str, float]()

    def message(text: str) -> None:
        logger.info(text)
        if terminal is not None:
            terminal.message(text)

    def show(event: Event) -> None:
        if event.kind == "batch":
            log.batch(event.batch)
        elif event.kind == "started":
            if event.pid is not None:
                log.watch(event.pid, event.model)
            message(f"{event.model}: started, {event.detail}".rstrip(", "))
        elif event.kind == "progress":
            parts[event.model] = event.done / max(event.total, 1)
            bar.show(100 * sum(parts.values()) / len(parts), ", ".join(parts))
            if terminal is not None:
                terminal.progress(event.done, event.total, event.model)
        elif event.kind == "waiting":
            message(f"{event.model}: waiting {event.detail}")
        elif event.kind == "ended":
            if event.pid is not None:
                log.unwatch(event.pid)
            message(f"{event.model}: {event.detail} after {event.done} of {event.total} samples")

    yield show
