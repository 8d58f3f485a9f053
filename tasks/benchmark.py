"""Measure all artifacts of the run side by side."""

from __future__ import annotations

from pressoir.recipe.sections import BenchmarkConfig
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="benchmark", task_run_name="benchmark")
def benchmark(config: BenchmarkConfig, run: RunContext, **inputs: Artifact | Source | None) -> Artifact:
    """Compare the models on `data`, the first being the reference and the last the result."""
    return run_stage("benchmark", config, inputs, run)
