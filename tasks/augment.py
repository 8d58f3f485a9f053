"""Make more text to learn from."""

from __future__ import annotations

from pressoir.recipe.sections import AugmentConfig
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="augment", task_run_name="augment")
def augment(
    config: AugmentConfig, model: Source | Artifact, teacher: Artifact, data: Artifact, run: RunContext
) -> Artifact:
    """Alter the training sentences of `data` by the base `model`; `teacher` labels what is new."""
    return run_stage("augment", config, {"model": model, "teacher": teacher, "data": data}, run)
