"""What training holds in memory; nothing heavy is imported, so that stages can declare it."""

from __future__ import annotations

from pressoir.recipe.sections import LearnerConfig, TrainingConfig
from pressoir.stage import ModelSize, two_models

CLASSIFIED_AT_A_TIME = 64  # sentences
BYTES_PER_PARAMETER = 16  # weight, gradient, two moments of AdamW, each float32


def training_bytes(config: TrainingConfig, size: ModelSize) -> int:
    """Upper estimate of what a stage that trains holds, bytes; without epochs two models."""
    if not config.epochs:
        return two_models(config, size)
    activations = size.activation_bytes(config.batch_size)
    if isinstance(config, LearnerConfig) and config.relation_weight:
        heads = config.relation_heads or max(1, size.hidden // 16)
        # float32: two tensors kept of each of queries, keys and values, about six that pass
        activations += 4 * 12 * heads * config.batch_size * size.tokens**2
    # the best epoch is read back beside the model in training
    return (BYTES_PER_PARAMETER + 4) * size.parameters + activations


def classification_bytes(config: object, size: ModelSize) -> int:
    """Upper estimate of what a stage holds that classifies sentences, bytes: two models, a layer at work."""
    return two_models(config, size) + size.activation_bytes(CLASSIFIED_AT_A_TIME, layers=1)
