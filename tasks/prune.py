"""Remove weights."""

from __future__ import annotations

from pressoir.recipe.sections import PruneConfig
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="prune", task_run_name="prune")
def prune(
    config: PruneConfig, model: Artifact, data: Artifact, run: RunContext, outputs: Artifact | None = None
) -> Artifact:
    """Prune `model`, then let it recover on the teacher's `outputs`, where there are recovery epochs."""
    return run_stage("prune", config, {"model": model, "outputs": outputs, "data": data}, run)
