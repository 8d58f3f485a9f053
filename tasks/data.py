"""Read, check and split the data."""

from __future__ import annotations

from prefect.states import State

from pressoir.recipe.sections import DataConfig
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="data", task_run_name="data")
def data(config: DataConfig, run: RunContext) -> Artifact:
    """Make the three splits, and log them as the data set of the flow run's MLflow run."""
    made = run_stage("data", config, {}, run)
    artifact = made.data if isinstance(made, State) else made
    folder = run.store.path(artifact)
    files = {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")}
    columns = {"text": "string", "label": "long"}
    run.parent.log_dataset(config.hub_id or config.source, artifact, files, columns)
    return made
