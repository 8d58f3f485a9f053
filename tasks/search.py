"""The steps of a search as Prefect tasks: the reference, a task a trial, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from prefect.logging import get_run_logger
from prefect.runtime import task_run

from pressoir import tasks
from pressoir.benchmark.cost import CostConditions
from pressoir.benchmark.reports import AnyRow
from pressoir.recipe_search import report, trial
from pressoir.recipe_search.config import SearchConfig
from pressoir.recipe_search.outcome import SearchOutcome
from pressoir.recipe_search.records import Figures, Trial, TrialOutcome
from pressoir.recipe_search.trial import Assignment, Pipeline
from pressoir.store.store import Store
from pressoir.tasks.progress import ProgressArtifact
from pressoir.tasks.stage import stage_task
from pressoir.tasks.tracking.run import Run


class TrialReporter:
    """Tells the log, the terminal and Prefect's page what a trial does."""

    def __init__(self, name: str) -> None:
        self._name, self._terminal, self._bar = name, tasks.terminal.get(), ProgressArtifact(name)

    def progress(self, done: int, total: int, what: str) -> None:
        """See `Reporter.progress`."""
        if self._terminal is not None:
            self._terminal.progress(done, total, what)  # one bar a stage, for all trials
        self._bar.show(100.0 * done / max(total, 1), what)

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """See `Reporter.metric`; what a trial measured is logged when it has ended."""

    def message(self, text: str) -> None:
        """See `Reporter.message`."""
        get_run_logger().info("%s: %s", self._name, text)
        if self._terminal is not None:
            self._terminal.message(f"{self._name}: {text}")


@stage_task(name="reference")
def measure_reference(
    config: SearchConfig, pipeline: Pipeline, home: Path, conditions: CostConditions
) -> Figures:
    """Train, export and measure the teacher."""
    return trial.reference(config.recipe, pipeline, Store(home), TrialReporter("teacher"), conditions)


@stage_task(name="trial", task_run_name="trial-{given.number}")
def run_trial(given: Assignment, pipeline: Pipeline, home: Path) -> TrialOutcome:
    """Run one trial in this process."""
    return trial.run(given, pipeline, Store(home), TrialReporter(f"trial {given.number}"))


@stage_task(name="report")
def write_report(
    config: SearchConfig, found: SearchOutcome, test: Sequence[AnyRow], parent: Run
) -> list[Path]:
    """Write the report and log it to MLflow."""
    paths = report.write(config, found, test)
    parent.log_files(paths)
    chosen = found.winner or found.nearest
    metrics = chosen.metrics() if chosen is not None else {}
    states = [ended.outcome.state for ended in found.trials]
    parent.log(
        metrics={**metrics, "trials": len(states), "trials_cut": states.count("cut")},
        tags={"meets_budget": found.winner is not None, "task_run": task_run.id},
    )
    return paths


class _FailedTrialError(Exception):
    """Ends a nested run as FAILED."""


def track(parent: Run, one: Trial) -> None:
    """Tell MLflow of a trial that has ended: a nested run."""
    outcome = one.outcome
    tags = {"state": outcome.state, "trial": str(one.number)}
    with suppress(_FailedTrialError), parent.nested(f"trial-{one.number}", tags) as nested:
        nested.log(params=one.values, metrics=one.metrics())
        if outcome.reason:
            nested.log(tags={"mlflow.note.content": outcome.reason})
        if outcome.digest is not None:
            nested.log(tags={"digest": outcome.digest})
        if outcome.state == "failed":
            raise _FailedTrialError(outcome.reason)
