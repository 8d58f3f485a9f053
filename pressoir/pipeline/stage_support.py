"""Which stages take a model, and why the others do not: asked of the checks that the stages make themselves.

Only what a folder's files say is asked. What a load alone shows (weights that do not match the configuration,
an architecture that cannot be traced) is not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from pressoir.config import Config
from pressoir.errors import PressoirError, RecipeError, SourceError
from pressoir.extensions import architecture, loader
from pressoir.extensions.architecture import Step
from pressoir.extensions.task import names_of, task
from pressoir.formats.folder import check_not_quantized, model_type_of, read_json, task_of
from pressoir.formats.problems import problem_of
from pressoir.formats.sharding import kind_of
from pressoir.formats.supported import check_exportable, check_supported, served_tasks
from pressoir.formats.tensor_bytes import checkpoint_tensors
from pressoir.pipeline.architecture_checks import unsupported
from pressoir.pruning import vocabulary
from pressoir.recipe.recipe import Recipe


class StageSupport(Config):
    """Whether a stage takes a model."""

    stage: str
    """`train`, `distill` (by layers), `vocabulary`, `prune`, `quantize`, `export`, `shard` or `serve`."""
    possible: bool
    reason: str | None = None
    """Why not."""


def stage_support(folder: Path) -> list[StageSupport]:
    """What each stage says of the model in `folder`, in the order of the pipeline."""
    return [_asked(stage, check, folder) for stage, check in _CHECKS.items()]


def _asked(stage: str, check: Callable[[Path], None], folder: Path) -> StageSupport:
    try:
        check(folder)
    except PressoirError as error:
        reason = str(error).removeprefix(f"{folder}: ").removeprefix(f"{stage}: ")
        reason = reason.replace(str(folder), "the folder")
        return StageSupport(stage=stage, possible=False, reason=reason)
    return StageSupport(stage=stage, possible=True)


def _train(folder: Path) -> None:
    _in_a_recipe("teacher", folder)
    declared, kind = task(task_of(folder)), model_type_of(folder)
    if declared.kind in (None, "sentence encoder") and kind not in loader.names(architecture.GROUP):
        from pressoir.models.loading import check_classifier_type  # torch, which no other check needs

        check_classifier_type(kind)


def _distill(folder: Path) -> None:
    _in_a_recipe("distill", folder)
    architecture.known(model_type_of(folder))
    _by_architecture("layers", folder)


def _vocabulary(folder: Path) -> None:
    _in_a_recipe("vocabulary", folder)
    _by_architecture("vocabulary", folder)
    if (path := folder / "tokenizer.json").exists():  # else transformers makes it of the tokenizer's files
        try:
            vocabulary.pieces(read_json(path))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{path} describes no tokenizer; download or create the model again") from error


def _prune(folder: Path) -> None:
    _in_a_recipe("prune", folder)
    architecture.known(model_type_of(folder))
    _by_architecture("prune", folder)


def _quantize(folder: Path) -> None:
    _export(folder)
    _by_architecture("quantize", folder)
    if task(task_of(folder)).kind != "classifier":
        check_not_quantized(folder)


def _export(folder: Path) -> None:
    check_exportable(folder)
    _by_architecture("export", folder)
    checkpoint_tensors(folder)
    if task(task_of(folder)).kind is None:
        check_not_quantized(folder)


def _shard(folder: Path) -> None:
    kind_of(folder)


def _serve(folder: Path) -> None:
    if any(task(name).kind == "classifier" for name in served_tasks(folder)):
        problem_of(read_json(folder / "config.json"), "it")


_CHECKS: dict[str, Callable[[Path], None]] = {
    "train": _train,
    "distill": _distill,
    "vocabulary": _vocabulary,
    "prune": _prune,
    "quantize": _quantize,
    "export": _export,
    "shard": _shard,
    "serve": _serve,
}


def _by_architecture(step: Step, folder: Path) -> None:
    """Raise SourceError if the architecture of a classifier or a sentence encoder does not take `step`."""
    if task(task_of(folder)).kind in ("classifier", "sentence encoder") and (
        reason := unsupported(read_json(folder / "config.json"), step)
    ):
        raise SourceError(reason)


def _in_a_recipe(section: str, folder: Path) -> None:
    """Ask a recipe for the model's task whether it takes `section`; a model without a head is trained as a
    classifier.

    Raises:
        RecipeError: it does not, or no recipe is for the task. SourceError: the model is not supported, or
            has no weights to train.
    """
    check_supported(folder)
    declared = task(task_of(folder))
    classifiers = names_of("classifier")
    name = classifiers[0] if "" in declared.heads else declared.name
    if name not in (known := [*classifiers, *names_of("language model")]):
        listed = f"{', '.join(known[:-1])} and {known[-1]}"
        raise RecipeError(f"recipes are for {listed}, not for {name}")
    try:
        data = {"source": "files", "train": "train", "test": "test"}  # a task may have none embedded
        Recipe.model_validate({"task": name, "data": data, section: {}})
    except ValidationError as error:
        reasons = (problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise RecipeError("; ".join(reason.removeprefix(f"{section}: ") for reason in reasons)) from None
    checkpoint_tensors(folder)
