"""How much memory and disk a run will need, before it runs; of memory each stage declares what it holds."""

from __future__ import annotations

from math import prod
from pathlib import Path

from safetensors import safe_open

from pressoir.extensions import architecture
from pressoir.extensions.architecture import EncoderArchitecture
from pressoir.formats.folder import read_json
from pressoir.recipe.recipe import Recipe
from pressoir.stage import ModelSize, load_stage
from pressoir.system.reader import is_file

PROCESS_BYTES = 1_000_000_000  # interpreter, torch, transformers, Prefect and MLflow, before any model


def parameter_count(folder: Path) -> int:
    """Number of weights in a folder's safetensors files, from their headers alone."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def model_size(recipe: Recipe, folder: Path) -> ModelSize:
    """Size of the base model in `folder`, by its architecture's field names or the usual ones."""
    config = read_json(folder / "config.json")
    names = architecture.find(config.get("model_type")) or EncoderArchitecture
    return ModelSize(
        parameters=parameter_count(folder),
        hidden=config.get(names.hidden_size_field, 0),
        heads=config.get(names.head_count_field, 1),
        layers=config.get(names.layer_count_field, 1),
        tokens=recipe.data.max_tokens,
        language_model=recipe.teacher is None,
    )


def estimate_peak_bytes(stage: str, recipe: Recipe, folder: Path) -> int:
    """Upper estimate of a stage's peak memory in bytes, for the base model in `folder`.

    A student is taken to be as large as its teacher, and every sentence to have `data.max_tokens` tokens, so
    that the estimate errs on the safe side.

    Raises:
        ExtensionError: there is no such stage.
    """
    return PROCESS_BYTES + load_stage(stage).memory(getattr(recipe, stage, None), model_size(recipe, folder))


def estimate_disk_bytes(recipe: Recipe, folder: Path, sentences: int) -> int:
    """Upper estimate of what a run writes: artifacts, checkpoints and the teacher's hidden states.

    `sentences` is the size of the training split before any are added to it.
    """
    size = model_size(recipe, folder)
    weights = size.weight_bytes
    if recipe.teacher is None:
        return 4 * weights  # a merged checkpoint, the float graph, and all packed forms together
    uses_hidden = any(stage is not None and stage.hidden_weight for stage in (recipe.distill, recipe.prune))
    uses_relations = any(s is not None and s.relation_weight for s in (recipe.distill, recipe.prune))
    if recipe.augment:
        made = recipe.augment.copies + recipe.augment.spans
        sentences = sentences * (1 + made) + _lines(recipe.data.unlabelled)
    kept = (size.layers if uses_hidden else 0) + (3 if uses_relations else 0)  # vectors a token
    states: int = 2 * sentences * min(recipe.data.max_tokens, 40) * kept * size.hidden
    checkpoints = 2 * 3 * weights  # two of them, each weights and two moments
    artifacts = 5 * weights  # teacher, its graph, student, pruned, and the three int8 ones together
    if recipe.vocabulary:
        artifacts += weights
    if recipe.prune and recipe.prune.rounds > 1:
        artifacts += 2 * weights  # of two rounds, in the work folder
    return checkpoints + artifacts + states


def _lines(path: Path | None) -> int:
    """Lines of a text file; 0 where none is named, or it does not exist (which is reported elsewhere)."""
    if path is None or not is_file(path):
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)
