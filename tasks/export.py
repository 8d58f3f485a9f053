"""Write a model as an ONNX graph."""

from __future__ import annotations

from pressoir.recipe.sections import ExportConfig
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="export", task_run_name="export {model.stage}")
def export(config: ExportConfig, model: Artifact | Source, data: Artifact, run: RunContext) -> Artifact:
    """Export `model`; sentences of `data` prove that the graph computes the same."""
    return run_stage("export", config, {"model": model, "data": data}, run, f"export {model.stage}")
