"""What every task does around its stage: ask the store, run or reuse, tell Prefect, MLflow and the terminal.

The store is the only cache: a task is `NO_CACHE` in Prefect, whose own cache would skip the body, and with it
the check that the files are still whole. A hit ends as `Completed(name="Cached")`.

Tasks are called, not submitted: each stage uses all the CPUs and much of the memory, so two at once would
only disturb each other, and the benchmark most. It also keeps them in the caller's thread, where a context
variable brings the terminal's reporter past the flow's parameters.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar, overload

from mlflow.entities import Metric
from prefect import Task, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.states import Completed
from pydantic import BaseModel

from pressoir.pipeline.build import build_stage
from pressoir.pipeline.sources import Sources
from pressoir.reporting import Reporter
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.tasks import terminal, tracking

P = ParamSpec("P")
R = TypeVar("R")
_LONG_S, _EVERY_S = 5.0, 2.0


@overload
def stage_task(function: Callable[P, R]) -> Task[P, R]: ...
@overload
def stage_task(*, name: str, **options: Any) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def stage_task(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """The decorator of every task, which takes the options of Prefect's own.

    Nothing is retried by default: a second try would meet the same `PressoirError`.
    """
    decorate: Any = partial(task, cache_policy=NO_CACHE, persist_result=False, **options)
    return decorate(function) if function is not None else decorate()


@dataclass(frozen=True)
class RunContext:
    """What all tasks of one flow run share."""

    sources: Sources
    """What was looked up before the run, and what it looks up."""
    parent: tracking.Run
    """The flow run's MLflow run."""
    seed: int
    threads: int
    refresh: bool

    @property
    def store(self) -> Store:
        """Where artifacts are found and kept."""
        return self.sources.store


def run_stage(
    stage: str,
    config: BaseModel,
    inputs: Mapping[str, Artifact | Source | None],
    run: RunContext,
    label: str,
) -> Any:
    """Build one stage, or find it in the store; return the artifact, or the state `Cached` around it.

    `label` is the name of the nested run.
    """
    started = time.monotonic()
    with run.parent.nested(label, {"stage": stage, "prefect.task_run_id": str(task_run.id)}) as nested:
        nested.log(params={**config.model_dump(mode="json"), "seed": run.seed})
        with _reporter(label, nested) as reporter:
            artifact, cached = build_stage(
                stage,
                config,
                inputs,
                run.store,
                reporter,
                seed=run.seed,
                threads=run.threads,
                refresh=run.refresh,
                sources=run.sources,
            )
            took = "found in the store" if cached else f"built in {time.monotonic() - started:.1f} s"
            reporter.message(f"{label}: {took}, {artifact.size_bytes / 1e6:.1f} MB, {artifact.digest[:12]}")
        nested.log(
            metrics={**artifact.metrics, "artifact_mb": artifact.size_bytes / 1e6},
            step=reporter.last_step + 1,  # MLflow shows the latest: the artifact's, not the last epoch's
            tags={"cached": str(cached).lower(), "digest": artifact.digest, "key": artifact.key},
        )
        nested.log_folder(run.store.path(artifact))
    return Completed(name="Cached", message=took, data=artifact) if cached else artifact


class ProgressArtifact:
    """A bar on Prefect's page, for work that takes longer than a few seconds."""

    def __init__(self, name: str) -> None:
        self._key = re.sub(r"[^a-z0-9]+", "-", f"progress-{name}".lower())
        self._started, self._told = time.monotonic(), 0.0
        self._bar: Any = None

    def show(self, percent: float, what: str) -> bool:
        """Say how far it is, if it was not said a moment ago; return whether it was told."""
        now = time.monotonic()
        if now - self._started <= _LONG_S or (now - self._told <= _EVERY_S and percent < 100):
            return False
        self._told = now
        if self._bar is None:
            self._bar = create_progress_artifact(percent, key=self._key, description=what)
        else:
            update_progress_artifact(self._bar, progress=percent, description=what)
        return True


@dataclass
class StageReporter:
    """Tells the terminal at once, MLflow in batches, and, of long stages, Prefect every few seconds."""

    name: str
    run: tracking.Run
    terminal: Reporter | None
    last_step: int = -1
    _tenth: dict[str, int] = field(default_factory=dict)
    _metrics: list[Metric] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._bar = ProgressArtifact(self.name)

    def progress(self, done: int, total: int, what: str) -> None:
        """See `Reporter.progress`."""
        percent = 100.0 * done / max(total, 1)
        if self.terminal is not None:
            self.terminal.progress(done, total, what)
        elif (tenth := int(percent // 10)) != self._tenth.get(what):
            self._tenth[what] = tenth
            get_run_logger().info("%s: %d of %d", what, done, total)
        if self._bar.show(percent, what):
            self.flush()

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """See `Reporter.metric`."""
        self._metrics.append(Metric(name, value, int(time.time() * 1000), step or 0))
        self.last_step = max(self.last_step, step or 0)
        if self.terminal is not None:
            self.terminal.metric(name, value, step)

    def message(self, text: str) -> None:
        """See `Reporter.message`."""
        get_run_logger().info(text)
        if self.terminal is not None:
            self.terminal.message(text)

    def flush(self) -> None:
        """Send the collected metrics to MLflow."""
        metrics, self._metrics = self._metrics, []
        self.run.log_series(metrics)


@contextmanager
def _reporter(name: str, run: tracking.Run) -> Iterator[StageReporter]:
    reporter = StageReporter(name, run, terminal.get())
    try:
        yield reporter
    finally:
        reporter.flush()
