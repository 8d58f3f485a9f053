"""Teacher outputs: what the teacher says of every training sentence, computed once and kept on disk.

Distilling and recovering from pruning read them in every epoch; running the teacher once instead saves its
forward pass in each. Costs one pass of the teacher over train, and disk: with hidden states, 2 bytes × tokens
× matched layers × hidden; with relations, 2 bytes × tokens × 3 × hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.recipe.sections import OutputsConfig
from pressoir.stage import Stage, StageContext, StageKeyParts


def run(inputs: Mapping[str, Path], config: OutputsConfig, context: StageContext) -> dict[str, float]:
    """Write the outputs that are learnt from; see `pressoir.training.teacher_outputs.compute`."""
    from pressoir.training import teacher_outputs

    return teacher_outputs.compute(inputs, config, context)


def key(config: OutputsConfig) -> StageKeyParts:
    """Of a student that is a checkpoint only that it is one: its digest is among the inputs."""
    values = config.model_dump(mode="json")
    if config.student is not None:
        values["student"]["model"] = config.student.model is not None
        del values["student"]["embedding_size"]  # changes nothing that the teacher puts out
    return StageKeyParts(values)


STAGE = Stage(
    name="teacher_outputs", version=1, kind="teacher-outputs", config=OutputsConfig, run=run, key=key
)
