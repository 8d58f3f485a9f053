"""What every task does around its stage: ask the store, run or reuse, tell Prefect, MLflow and the terminal.

The store is the only cache: a task is `NO_CACHE` in Prefect, whose own cache would skip the body, and with it
the check that the files are still whole. A hit ends as `Completed(name="Cached")`.

Tasks are called, not submitted: each stage uses all the CPUs and much of the memory, so two at once would
only disturb each other, and the benchmark most. It also keeps them in the caller's thread, where a context
variable brings the terminal's reporter past the flow's parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar, overload

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.states import Completed
from pydantic import BaseModel

from pressoir.pipeline.build import build_stage
from pressoir.pipeline.sources import Sources
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.tasks.progress import stage_reporter
from pressoir.tasks.tracking.run import Run

P = ParamSpec("P")
R = TypeVar("R")


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
    parent: Run
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
        with stage_reporter(label, nested) as reporter:
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
