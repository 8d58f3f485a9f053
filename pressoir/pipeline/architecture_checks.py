"""Which steps of a recipe work with the architectures of its models, decided from `config.json` alone.

A type that is declared (`pressoir.architectures`) takes every step that its entry does not rule out. Of any
other type no part is known by name, which rules out what takes layers, projections and heads apart; and it is
exported only if the exporter knows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from pressoir.errors import ExtensionError, RecipeError
from pressoir.extensions import architecture, loader
from pressoir.extensions.architecture import Step
from pressoir.formats.folder import read_json
from pressoir.models.architectures import EXPORTED, NOT_FUSED_IN_INT8, NOT_IN_THE_GRAPH
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe


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
    for need in _needs(recipe, base):
        kind = read_json(sources.model(need.model).folder / "config.json").get("model_type")
        if not isinstance(kind, str):
            continue
        found = _setting(kind, recipe) if need.step == "quantize" else None
        if reason := unsupported(kind, need.step):
            found = f"{need.field}: {reason}; {need.remedy}. Supported are {_types_that_take(need.step)}"
        if found is not None:
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


def unsupported(kind: str, step: Step) -> str | None:
    """Why a step does not work with models of a type; None where it does."""
    declared = architecture.find(kind)
    if declared is not None:
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


def _setting(kind: str, recipe: Recipe) -> str | None:
    """What int8 needs besides, with types that are not declared; None where nothing is amiss."""
    if kind in loader.names(architecture.GROUP) or recipe.quantize is None:
        return None
    if kind in NOT_FUSED_IN_INT8 and recipe.export.fuse:
        return (
            "quantize: its layers share weights, and ONNX Runtime does not run fused attention from int8 "
            "weights that several layers share; specify export.fuse: false, or leave it out (quantize: null)"
        )
    module = NOT_IN_THE_GRAPH.get(kind)
    if module is None or any(f"{module}.".startswith(f"{name}.") for name in recipe.quantize.exclude):
        return None
    return (
        f"quantize: {module} is not part of the exported graph, so its int8 weights have no place there; add "
        "it to quantize.exclude"
    )


def _types_that_take(step: Step) -> str:
    """The types with which a step works: those declared, and for the export also the others."""
    names = [*loader.names(architecture.GROUP), *(EXPORTED if step == "export" else ())]
    able = []
    for name in names:
        with suppress(ExtensionError):  # of another package, which cannot be imported
            if unsupported(name, step) is None:
                able.append(name)
    return ", ".join(sorted(set(able)))
