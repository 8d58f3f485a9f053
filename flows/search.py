"""The search flow: from a budget to the recipe that meets it.

`search("search-demo")` runs it in plain Python; `prefect.yaml` deploys it. What a search has
done stands in its folder: started again, it goes on there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Protocol

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger
from pydantic import BeforeValidator

from pressoir import tasks
from pressoir.benchmark import reports
from pressoir.benchmark.reports import AnyRow
from pressoir.evaluation.guards import exclusive
from pressoir.flows.compress import pipeline
from pressoir.flows.extras import needs_dask
from pressoir.flows.linked import linked_run
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.recipe_search import report, trial
from pressoir.recipe_search.budget import SearchLimits, meets
from pressoir.recipe_search.checks import check_search
from pressoir.recipe_search.config import SearchConfig, load
from pressoir.recipe_search.outcome import SearchResult, conclude
from pressoir.recipe_search.records import Trial, TrialOutcome, describe
from pressoir.recipe_search.study import Proposal, Study
from pressoir.recipe_search.trial import Assignment
from pressoir.store.store import Store
from pressoir.system.machine import alone
from pressoir.system.runtime import available_cpus
from pressoir.tasks import search as steps
from pressoir.tasks.progress import ProgressArtifact, say
from pressoir.tasks.stage import RunContext
from pressoir.tasks.stages import TaskRunner
from pressoir.tasks.tracking.run import Run


class Workers(Protocol):
    """Who carries out trials."""

    size: int
    """How many at once."""

    def start(self, given: Assignment) -> None:
        """Begin a trial."""

    def next(self) -> tuple[int, TrialOutcome]:
        """Wait for one that has ended: its number, and how."""


class Here:
    """Trials one after another, in this process."""

    size = 1

    def __init__(self, store: Store) -> None:
        self._store = store
        self._given: Assignment | None = None

    def start(self, given: Assignment) -> None:
        """See `Workers.start`."""
        self._given = given

    def next(self) -> tuple[int, TrialOutcome]:
        """See `Workers.next`."""
        assert self._given is not None
        return self._given.number, steps.run_trial(self._given, pipeline, self._store.home)


@flow(name="search", flow_run_name="{config.name}", validate_parameters=True)
def search(config: Annotated[SearchConfig, BeforeValidator(load)]) -> SearchResult:
    """Find the best recipe within the budget of `config`; a later run resumes from its results folder.

    If no recipe meets the budget, the result has no winner but names the nearest recipe and what it misses.
    """
    from prefect.runtime import flow_run

    store = Store()
    check_search(config, Sources(store))
    folder = report.begin(config)
    with (
        exclusive(folder),
        alone(f"search {config.name}", say),
        linked_run(config.name, "flows.search.search", store) as parent,
    ):
        parent.log(
            params={
                "budget": config.budget.model_dump(mode="json"),
                "space": {key: str(choices) for key, choices in config.space.items()},
                "trials": config.trials,
                "seed": config.seed,
                "folder": folder,
            }
        )
        parent.log_files([folder / report.CONFIG])
        conditions = trial.conditions_of(config)
        reference = steps.measure_reference(config, pipeline, store.home, conditions)
        limits = SearchLimits.from_budget(config.budget, reference)
        study = Study(folder / report.STUDY, config.space, config.seed, config.first)
        with _workers(config, store) as workers:
            _try_all(config, study, workers, limits, parent)
        found = conclude(config, study.trials(), reference, limits, conditions)
        model, rows = None, tuple[AnyRow, ...]()
        if found.winner is not None:
            model, rows = _benchmark(report.recipe_of(config, found.winner), store, parent)
        steps.write_report(config, found, rows, parent)
        create_markdown_artifact((folder / report.REPORT).read_text(encoding="utf-8"), key="search-report")
        columns, cells = report.table(found, found.front)
        create_table_artifact([dict(zip(columns, row, strict=True)) for row in cells], key="pareto-front")
    return SearchResult(
        folder=folder.absolute(),
        found=found,
        model=model,
        rows=rows,
        prefect_run_id=str(flow_run.id),
        mlflow_run_id=parent.run_id,
        tracking_uri=parent.shown_uri,
    )


def _try_all(config: SearchConfig, study: Study, workers: Workers, limits: SearchLimits, parent: Run) -> None:
    """Run trials until there are enough; those of an earlier run are logged first."""
    bar, deadline = ProgressArtifact("search"), config.timeout_s and time.monotonic() + config.timeout_s
    total, terminal = min(config.trials, study.combinations), tasks.terminal.get()
    running, done = dict[int, Proposal](), study.trials()
    for ended in done:
        steps.track(parent, ended)

    def tell(text: str) -> None:
        get_run_logger().info(text)
        if terminal is not None:
            terminal.progress(min(len(done), total), total, "trials")
            terminal.message(text)

    tell(f"{len(done)} of {total} trials completed; the search space has {study.combinations} recipes")
    while True:
        while len(running) < workers.size and not (deadline and time.monotonic() > deadline):
            if (asked := study.ask(config.trials)) is None:
                break
            running[asked.number] = asked
            rivals = [ended.outcome.figures for ended in done if ended.outcome.figures is not None]
            given = Assignment(
                number=asked.number,
                values=asked.values,
                recipe=config.recipe,
                limits=limits,
                proxy=config.proxy,
                conditions=trial.conditions_of(config),
                rivals=tuple(rival for rival in rivals if meets(rival, limits)),
            )
            tell(f"trial {asked.number}: {describe(asked.values)}")
            workers.start(given)
        if not running:
            return
        number, outcome = workers.next()
        ended = study.tell(running.pop(number), outcome, limits)
        done.append(ended)
        steps.track(parent, ended)
        bar.show(100.0 * min(len(done) / total, 1.0), f"trials of {config.name}")
        tell(f"trial {number}: {_ending(ended)}")


def _ending(ended: Trial) -> str:
    outcome = ended.outcome
    if outcome.figures is None:
        return f"{outcome.state} {outcome.reason}"
    metrics = outcome.figures
    return (
        f"accuracy {100 * metrics.accuracy:.1f} %, {metrics.size_mb:.2f} MB, {metrics.latency_ms:.2f} ms, "
        f"after {outcome.seconds:.0f} s"
    )


def _benchmark(recipe: Recipe, store: Store, parent: Run) -> tuple[str, tuple[AnyRow, ...]]:
    """Digest and figures of the winner, beside its teacher, on the test split: what `compress` would give."""
    context = RunContext(
        Sources(store), parent, recipe.seed, recipe.threads or available_cpus(), refresh=False
    )
    made = pipeline(recipe, TaskRunner(context))
    folder = store.path(made.report)
    measured = reports.read(folder / "benchmark.json")
    parent.log_comparison(measured, folder)
    return made.final.digest, measured.rows


@contextmanager
def _workers(config: SearchConfig, store: Store) -> Iterator[Workers]:
    """Who runs the trials; without a cluster, no Dask is imported."""
    if config.dask is None:
        yield Here(store)
        return
    with needs_dask():
        from pressoir.flows import search_cluster
    with search_cluster.opened(config.dask, store) as workers:
        yield workers
