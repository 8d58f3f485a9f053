"""Split the weights into shards."""

from __future__ import annotations

from pressoir.recipe.sections import ShardConfig
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="shard", task_run_name="shard")
def shard(config: ShardConfig, model: Artifact, run: RunContext) -> Artifact:
    """Split the weights of the exported `model` into safetensors shards that its graph reads."""
    return run_stage("shard", config, {"model": model}, run)
