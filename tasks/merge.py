"""Merge models."""

from __future__ import annotations

from pressoir.recipe.sections import MergeConfig
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="merge", task_run_name="merge")
def merge(config: MergeConfig, run: RunContext, **inputs: Artifact | Source | None) -> Artifact:
    """Merge `parent_0`, `parent_1`, … (and `base`), and measure them and their child on `data`."""
    return run_stage("merge", config, inputs, run)
