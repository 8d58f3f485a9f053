"""Keep the words that are used."""

from __future__ import annotations

from pressoir.recipe.sections import VocabularyConfig
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="vocabulary", task_run_name="vocabulary")
def vocabulary(config: VocabularyConfig, model: Artifact, data: Artifact, run: RunContext) -> Artifact:
    """Cut the vocabulary of `model` to what the training text of `data` uses."""
    return run_stage("vocabulary", config, {"model": model, "data": data}, run)
