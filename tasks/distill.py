"""Train a smaller student."""

from __future__ import annotations

from pressoir.recipe.sections import DistillConfig
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="distill", task_run_name="distill")
def distill(
    config: DistillConfig,
    teacher: Artifact,
    outputs: Artifact,
    data: Artifact,
    run: RunContext,
    student: Source | None = None,
) -> Artifact:
    """Train a student on the teacher's `outputs`, from its layers or from the checkpoint `student`."""
    inputs = {"teacher": teacher, "outputs": outputs, "data": data, "student": student}
    return run_stage("distill", config, inputs, run)
