"""How much memory a run will need, before it runs.

Estimates follow the architecture: weights, gradients and AdamW's two moments (16 bytes a parameter in
float32), plus the activations that the backward pass keeps. Source of the activation formula: V. Korthikanti
et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv:2205.05198), equation 2,
for two-byte numbers; doubled for float32.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pressoir.extensions import architecture
from pressoir.extensions.architecture import EncoderArchitecture
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import LearnerConfig

PROCESS_BYTES = 1_000_000_000  # interpreter, torch, transformers, Prefect and MLflow, before any model
TRAINING_BYTES_PER_PARAMETER = 16  # weight, gradient, two moments of AdamW, each float32
INFERENCE_BATCH = 64  # sentences that stages classify at a time


def parameter_count(folder: Path) -> int:
    """Number of weights in a folder's safetensors files, from their headers alone."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def activation_bytes(config: dict[str, Any], batch_size: int, tokens: int, layers: int | None = None) -> int:
    """Bytes that training one batch (batch_size, tokens) keeps for the backward pass, float32.

    With `layers: 1` it is what one layer computes, which is all that inference holds at a time.
    """
    hidden, heads, all_layers = _sizes(config)
    layers = layers or all_layers
    per_layer = tokens * batch_size * hidden * (34 + 5 * heads * tokens / max(hidden, 1))
    return int(2 * layers * per_layer)


def estimate_peak_bytes(stage: str, recipe: Recipe, folder: Path) -> int:
    """Upper estimate of a stage's peak memory in bytes, for the base model in `folder`.

    A student is taken to be as large as its teacher, and every sentence to have `data.max_tokens` tokens, so
    that the estimate errs on the safe side.
    """
    parameters = parameter_count(folder)
    weights = 4 * parameters
    if stage in ("data", "text"):
        return PROCESS_BYTES
    training = {"teacher": recipe.teacher, "distill": recipe.distill, "prune": recipe.prune}.get(stage)
    if (
        training is not None
        and training.epochs
        and not (stage == "teacher" and recipe.teacher and recipe.teacher.checkpoint)
    ):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        activations = activation_bytes(config, training.batch_size, recipe.data.max_tokens)
        if isinstance(training, LearnerConfig) and training.relation_weight:
            heads = training.relation_heads or max(1, _sizes(config)[0] // 16)
            # float32: two tensors kept of each of queries, keys and values, about six that pass
            activations += 4 * 12 * heads * training.batch_size * recipe.data.max_tokens**2
        # the best epoch is read back beside the model in training
        return PROCESS_BYTES + (TRAINING_BYTES_PER_PARAMETER + 4) * parameters + activations
    copies = {"teacher_outputs": 2, "quantize": 3, "export": 5, "shard": 3, "benchmark": 6}
    if recipe.teacher is None:  # weights are read, packed and moved one by one
        copies |= {"quantize": 1, "shard": 0}
    weights *= copies.get(stage, 2)
    if stage in ("augment", "vocabulary"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights += activation_bytes(config, INFERENCE_BATCH, recipe.data.max_tokens, layers=1)
    return PROCESS_BYTES + weights


def estimate_disk_bytes(recipe: Recipe, folder: Path, sentences: int) -> int:
    """Upper estimate of what a run writes: artifacts, checkpoints and the teacher's hidden states.

    `sentences` is the size of the training split before any are added to it.
    """
    weights = 4 * parameter_count(folder)
    if recipe.teacher is None:
        return 4 * weights  # a merged checkpoint, the float graph, and all packed forms together
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, _, layers = _sizes(config)
    uses_hidden = any(stage is not None and stage.hidden_weight for stage in (recipe.distill, recipe.prune))
    uses_relations = any(s is not None and s.relation_weight for s in (recipe.distill, recipe.prune))
    if recipe.augment:
        made = recipe.augment.copies + recipe.augment.spans
        sentences = sentences * (1 + made) + _lines(recipe.data.unlabelled)
    kept = (layers if uses_hidden else 0) + (3 if uses_relations else 0)  # vectors a token
    states: int = 2 * sentences * min(recipe.data.max_tokens, 40) * kept * hidden
    checkpoints = 2 * 3 * weights  # two of them, each weights and two moments
    artifacts = 5 * weights  # teacher, its graph, student, pruned, and the three int8 ones together
    if recipe.vocabulary:
        artifacts += weights
    if recipe.prune and recipe.prune.rounds > 1:
        artifacts += 2 * weights  # of two rounds, in the work folder
    return checkpoints + artifacts + states


def _sizes(config: dict[str, Any]) -> tuple[int, int, int]:
    """Hidden size, heads and layers that `config.json` has, by its architecture's names or the usual ones."""
    names = architecture.find(config.get("model_type")) or EncoderArchitecture
    return (
        config.get(names.hidden_size_field, 0),
        config.get(names.head_count_field, 1),
        config.get(names.layer_count_field, 1),
    )


def _lines(path: Path | None) -> int:
    """Lines of a text file; 0 where none is named, or it does not exist (which is told elsewhere)."""
    if path is None or not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)
