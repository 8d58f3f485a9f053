"""Gather the running text of a language-model run."""

from __future__ import annotations

from prefect.states import State

from pressoir.recipe.sections import TextConfig
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="text", task_run_name="text")
def text(config: TextConfig, run: RunContext) -> Artifact:
    """Gather calibration and evaluation text, and log them as the data sets of the flow run's MLflow run."""
    made = run_stage("text", config, {}, run)
    artifact = made.data if isinstance(made, State) else made
    folder = run.store.path(artifact)
    files = {path.stem: path for path in (folder / "evaluation").glob("*.txt")}
    files["calibration"] = folder / "calibration.txt"
    run.parent.log_dataset("text", artifact, files, {"text": "string"})
    return made
