"""Distill: train a smaller student to say what the teacher says.

The student is some of the teacher's layers (it starts from their weights, which is worth most of the result),
a smaller checkpoint such as DistilBERT, or a smaller configuration (which starts from random weights and
needs far more data). The loss adds soft labels, hard labels, hidden states and attention relations, see
`training.DistillationLoss`. Halving the layers nearly halves the time of a sentence; it costs a few passes
over the data with the smaller model. With `seeds` above 1 several students are trained, and the best on
validation is kept; what chance alone does is then part of the choice, and of the cost.

Sources: G. Hinton et al. 2015 (arXiv:1503.02531); V. Sanh et al. 2019, "DistilBERT" (arXiv:1910.01108) for
starting from every second layer; X. Jiao et al. 2020, "TinyBERT" (arXiv:1909.10351) for the hidden-state
loss; W. Wang et al. 2021, "MiniLMv2" (arXiv:2012.15828) for that of attention relations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.recipe.sections import DistillConfig
from pressoir.stage import Stage, StageContext, StageKeyParts
from pressoir.training import precision
from pressoir.training.memory import training_bytes


def run(inputs: Mapping[str, Path], config: DistillConfig, context: StageContext) -> dict[str, float]:
    """Train the student and write it; see `pressoir.training.students.distill`."""
    from pressoir.training import students

    return students.distill(inputs, config, context)


def key(config: DistillConfig) -> StageKeyParts:
    """Of a student that is a checkpoint only that it is one: its digest is among the inputs."""
    values = precision.key_values(config)
    values["student"]["model"] = config.student.model is not None
    if config.student.embedding_size is None:  # as before there was such a field
        del values["student"]["embedding_size"]
    return StageKeyParts(values)


STAGE = Stage(
    name="distill",
    version=2,
    kind="model",
    config=DistillConfig,
    run=run,
    key=key,
    searchable=True,
    memory=training_bytes,
)
