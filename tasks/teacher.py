"""Fine-tune the teacher."""

from __future__ import annotations

from pressoir.recipe.sections import TeacherConfig
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="teacher", task_run_name="teacher")
def teacher(config: TeacherConfig, model: Artifact | Source, data: Artifact, run: RunContext) -> Artifact:
    """Fine-tune the base model `model`, or take it as it is where the recipe names a finished checkpoint."""
    return run_stage("teacher", config, {"model": model, "data": data}, run)
