"""Which steps of a recipe work with the architectures of its models, decided from `config.json` alone.

A type that is declared (`pressoir.architectures`) takes every step that its entry does not rule out. Of any
other type no part is known by name, which rules out what takes layers, projections and heads apart; and it is
exported only if the exporter knows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from pressoir.errors import ExtensionError, RecipeError
from pressoir.extensions import architecture, loader
from pressoir.extensions.architecture import Step
from pressoir.formats.folder import read_json
from pressoir.formats.problems import TOKENS
from pressoir.models.architectures import EXPORTED
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.system.reader import shown


class _Need(NamedTuple):
    """A step that a recipe takes with one of its models."""

    model: str
    """Its reference."""
    step: Step
    field: str
    """The section or field that asks for it."""
    remedy: str
    """What to change."""


def check_architectures(recipe: Recipe, base: str, sources: Sources) -> None:
    """Refuse a recipe with a step that the architecture of one of its models does not take.

    `base` is the model that a run begins with. Language models are not checked here.

    Raises:
        RecipeError: there is such a step; the message has all, and what to change. SourceError: a model
        cannot be found.
    """
    problems: dict[str, list[str]] = {}
    for model in dict.fromkeys((base, (recipe.distill and recipe.distill.student.model) or base)):
        kind = read_json(sources.model(model).folder / "config.json").get("model_type")
        if recipe.data.problem == TOKENS.name and isinstance(kind, str) and not tags_words(kind):
            found = (
                f"task: transformers has no token classifier of it; use one of {', '.join(_tagging_types())}"
            )
            title = f"{model} is of the model type {kind!r}, with which these steps do not work:"
            problems.setdefault(title, []).append(found)
    for need in _needs(recipe, base):
        config = read_json(sources.model(need.model).folder / "config.json")
        if not isinstance(kind := config.get("model_type"), str):
            continue
        if reason := unsupported(config, need.step):
            found = f"{need.field}: {reason}; {need.remedy}. Supported are {_types_that_take(need.step)}"
            title = f"{need.model} is of the model type {kind!r}, with which these steps do not work:"
            problems.setdefault(title, []).append(found)
    if problems:
        raise RecipeError("\n".join("\n  ".join((title, *found)) for title, found in problems.items()))


def _needs(recipe: Recipe, base: str) -> Iterator[_Need]:
    """What `recipe` does with its models, in the order of the pipeline."""
    distill, prune = recipe.distill, recipe.prune
    student = (distill and distill.student.model) or base
    models = list(dict.fromkeys((base, student)))
    another = "use a model of another type"
    if recipe.teacher is None:
        return
    if recipe.vocabulary:
        yield _Need(base, "vocabulary", "vocabulary", "leave it out (vocabulary: null)")
    if distill:
        if distill.student.model is None and distill.student.config is None:
            remedy = (
                "specify distill.student.model or distill.student.config, or leave it out (distill: null)"
            )
            yield _Need(base, "layers", "distill", remedy)
            if distill.student.embedding_size is not None:
                yield _Need(base, "embedding size", "distill.student.embedding_size", "leave it out")
        if distill.relation_weight:
            for model in models:
                yield _Need(model, "relations", "distill.relation_weight", "set it to 0")
    if prune:
        yield _Need(student, "prune", "prune", "leave it out (prune: null)")
        if prune.target is not None:
            remedy = "specify prune.ffn_sparsity and prune.head_sparsity: 0 instead, or leave it out"
            yield _Need(student, "heads", "prune.target", f"{remedy} (prune: null)")
        elif prune.granularity == "structured" and prune.head_sparsity != 0:
            remedy = "set it to 0, which removes neurons only, or leave it out (prune: null)"
            yield _Need(student, "heads", "prune.head_sparsity", remedy)
        if prune.epochs and prune.relation_weight:
            for model in models:
                yield _Need(model, "relations", "prune.relation_weight", "set it to 0")
    if recipe.quantize:
        yield _Need(student, "quantize", "quantize", "leave it out (quantize: null)")
    for model in models:
        yield _Need(model, "export", "export", another)


def tags_words(kind: str) -> bool:
    """Whether transformers has a token classifier of a model type; one that another package brings may."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

    declared = architecture.find(kind)
    if declared is not None and declared.modeling is not None:
        return True
    return kind in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES


def _tagging_types() -> list[str]:
    return sorted(name for name in loader.names(architecture.GROUP) if tags_words(name))


def unsupported(config: Mapping[str, Any], step: Step) -> str | None:
    """Why a step does not work with a model of this `config.json`; None where it does."""
    kind = config.get("model_type")
    declared = architecture.find(kind)
    if step == "embedding size":
        return None if kind == "bert" else "only a BERT's layers are also an ELECTRA's"
    if declared is not None:
        for name, value in declared.presumed.items():
            if (found := config.get(name, value)) != value and step in _UNKNOWN:
                return f"its parts are known where {name} is {value}, and config.json has {shown(found)}"
        return declared.unsupported.get(step)
    if step == "export":
        return None if kind in EXPORTED else "the exporter makes no graph of it that works with text alone"
    return _UNKNOWN.get(step)


_UNKNOWN: dict[Step, str] = {
    "layers": "a student cannot take layers of an encoder whose layers are not known by name",
    "relations": "its queries, keys and values are not known by name",
    "prune": "its attention heads and feed-forward neurons are not known by name",
}
"""Of a type that is not declared."""


def _types_that_take(step: Step) -> str:
    """The types with which a step works: those declared, and for the export also the others."""
    names = [*loader.names(architecture.GROUP), *(EXPORTED if step == "export" else ())]
    able = []
    for name in names:
        with suppress(ExtensionError):  # of another package, which cannot be imported
            if unsupported({"model_type": name}, step) is None:
                able.append(name)
    return ", ".join(sorted(set(able)))
