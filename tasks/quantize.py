"""Store weights in fewer bits."""

from __future__ import annotations

from pressoir.recipe.sections import QuantizeConfig
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, run_stage, stage_task


@stage_task(name="quantize", task_run_name="quantize")
def quantize(config: QuantizeConfig, model: Artifact | Source, data: Artifact, run: RunContext) -> Artifact:
    """Quantise `model`; the validation split says what it costs."""
    return run_stage("quantize", config, {"model": model, "data": data}, run)
