"""Compute what the teacher says of every training sentence."""

from __future__ import annotations

from pressoir.config import Config
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="teacher_outputs", task_run_name="teacher outputs")
def teacher_outputs(
    config: Config,
    teacher: Artifact,
    data: Artifact,
    run: RunContext,
    student: Source | None = None,
    reference: Artifact | None = None,
) -> Artifact:
    """Compute the outputs once for all epochs; `student` is a checkpoint that decides which layers count.

    `reference` is the teacher with all its word pieces, where `teacher` has fewer: the logits are its.
    """
    inputs = {"teacher": teacher, "data": data, "student": student, "reference": reference}
    return run_stage("teacher_outputs", config, inputs, run)
