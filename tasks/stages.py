"""One task for every stage, made from its declaration; and the runner of a pipeline that calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from prefect.states import State
from pydantic import BaseModel

from pressoir.sources.resolve import Source
from pressoir.stage import load_stage
from pressoir.store.artifact import Artifact
from pressoir.tasks.fetch import fetch
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task
def build(
    stage: str, config: BaseModel, inputs: Mapping[str, Artifact | Source | None], run: RunContext
) -> Any:
    """Build one stage, or find it in the store; log what it declares as the data set of the flow run."""
    declared = load_stage(stage)
    made = run_stage(stage, config, inputs, run, declared.label_of(inputs))
    if declared.dataset is not None:
        artifact = cast("Artifact", made.data if isinstance(made, State) else made)
        run.parent.log_dataset(artifact, declared.dataset(run.store.path(artifact), config))
    return made


class TaskRunner:
    """Carries out a pipeline's steps as Prefect tasks; see `pressoir.pipeline.runner.Runner`."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def fetch(self, reference: str) -> Source:
        """Find a model, by a task that tries again when the hub does not answer."""
        return fetch(reference, self.context.sources)

    def __call__(self, stage: str, config: BaseModel, **inputs: Artifact | Source | None) -> Artifact:
        """Carry out one stage. A plain call would give a task's own state (`Cached`), not its result."""
        declared = load_stage(stage)
        task = build.with_options(
            name=stage,
            task_run_name=declared.label_of(inputs).replace("_", " "),
            description=declared.run.__doc__,
        )
        artifact: Artifact = task(stage, config, inputs, self.context, return_state=True).result()
        return artifact
