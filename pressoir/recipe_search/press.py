"""From a budget to a short search: the recipes that `pressoir press` tries, from gentle to hard."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from pressoir.config import Config
from pressoir.errors import RecipeError
from pressoir.extensions import architecture
from pressoir.formats.folder import read_json
from pressoir.formats.problems import SINGLE_LABEL
from pressoir.pipeline.architecture_checks import check_architectures
from pressoir.pipeline.checks import base_reference
from pressoir.pipeline.runner import CompressResult
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.recipe_search.budget import ConstraintViolation, misses
from pressoir.recipe_search.config import Budget, ProxyConfig, SearchConfig, with_values
from pressoir.recipe_search.outcome import SearchOutcome
from pressoir.recipe_search.records import Figures
from pressoir.system.files import files_of

CARD_MB = 0.02
"""Room for the model card, which is written last."""
_OTHER_MB = 0.03
"""Room for it and the other files that a search does not count as size, such as `SHARDING_INFO.md`."""
_LADDER: tuple[tuple[int, float, float, dict[str, Any] | None], ...] = (
    (1, 0.0, 0.0, None),
    (2, 0.0, 0.0, None),
    (2, 0.25, 0.5, None),
    (2, 0.0, 0.0, {}),
    (2, 0.25, 0.5, {}),
    (3, 0.25, 0.5, {}),
    (6, 0.5, 0.75, {}),
)
"""Recipes from gentle to hard: every how many layers one is kept, fractions of the heads and neurons to
remove, and whether the vocabulary is pruned. The third, with int8, is that of `pressoir init`."""


class PressResult(Config):
    """What a run of `press` leaves behind."""

    folder: Path
    """Folder of the model, its recipe and its report."""
    size_mb: float
    """Size of the whole model folder, MB = 10^6 bytes."""
    compressed: CompressResult
    """The compression: model, benchmark, registry id, run ids."""
    found: SearchOutcome | None = None
    """The search: every recipe that was tried; None without a budget."""
    figures: Figures | None = None
    """What the budget is compared with: size of the whole model folder, latency, validation accuracy; None
    without a budget."""
    misses: tuple[ConstraintViolation, ...] = ()
    """Limits of the budget that the model exceeds: empty if it meets all of them."""
    headline: str = ""
    """Whether it does, in one line; empty without a budget."""


def budget_from(
    max_size_mb: float | None, max_latency_ms: float | None, max_accuracy_drop: float | None
) -> Budget | None:
    """The budget of a search; None without a limit. The accuracy drop is in percentage points.

    Raises:
        RecipeError: a limit is not a number that is possible.
    """
    _check("max_size_mb", max_size_mb, f"a number of MB above {_OTHER_MB}", lambda mb: mb > _OTHER_MB)
    _check("max_latency_ms", max_latency_ms, "a number of milliseconds above 0", lambda ms: ms > 0)
    _check(
        "max_accuracy_drop",
        max_accuracy_drop,
        "percentage points, from 0 to 100",
        lambda drop: 0 <= drop <= 100,
    )
    if max_size_mb is max_latency_ms is max_accuracy_drop is None:
        return None
    drop = None if max_accuracy_drop is None else max_accuracy_drop / 100
    return Budget(max_size_mb=max_size_mb, max_latency_ms=max_latency_ms, max_accuracy_drop=drop)


def _check(name: str, value: float | None, expected: str, possible: Callable[[float], bool]) -> None:
    if value is not None and not (math.isfinite(value) and possible(value)):
        raise RecipeError(f"--{name.replace('_', '-')} ({name}) is {value:g}; specify {expected}")


def search_for(recipe: Recipe, budget: Budget, fixed: Collection[str], sources: Sources) -> SearchConfig:
    """The search that `press` runs; fields that the user has set (`fixed`) are the same in all its recipes.

    Without a limit on size or latency, the smallest model within the accuracy drop is the best; otherwise the
    most accurate one. The vocabulary is pruned for size alone.

    Raises:
        RecipeError: nothing is left to vary, or a text has not one label.
    """
    if (problem := recipe.data.problem) != SINGLE_LABEL.name:
        raise RecipeError(
            f"the data are {problem}, but a search for a budget compares accuracies, of one label per text; "
            "omit the limits, which runs the recipe of `pressoir init`"
        )
    size = budget.max_size_mb
    limited = size is not None or budget.max_latency_ms is not None
    recipes = _recipes(recipe, fixed, sources, prune_vocabulary=size is not None or not limited)
    limits = budget.model_dump() | {"max_size_mb": size and round(size - _OTHER_MB, 6)}
    return SearchConfig.from_dict(
        {
            "name": recipe.name,
            "recipe": recipe.model_dump(mode="json"),
            "budget": limits,
            "space": {key: _distinct(values[key] for values in recipes) for key in recipes[0]},
            "first": recipes,
            "trials": len(recipes),
            "prefer": "accuracy" if limited else "size",
            "proxy": ProxyConfig(epochs=None).model_dump(),
            "results": str(sources.store.home / "press"),
        },
        source="the search of press",
    )


def _recipes(
    recipe: Recipe, fixed: Collection[str], sources: Sources, prune_vocabulary: bool
) -> list[dict[str, Any]]:
    """The ladder as fields of the recipe, without those that are fixed or do not work with its model."""
    base = base_reference(recipe)
    config = read_json(sources.model(base).folder / "config.json")
    known = architecture.find(config.get("model_type"))
    layers = config.get(known.layer_count_field) if known else None
    found = []
    for every, heads, neurons, vocabulary in _LADDER:
        values = {
            "distill.student.layers": max(1, layers // every) if isinstance(layers, int) else None,
            "prune.head_sparsity": heads,
            "prune.ffn_sparsity": neurons,
            "vocabulary": vocabulary,
        }
        if not prune_vocabulary:
            del values["vocabulary"]
        found.append(
            {
                key: value
                for key, value in values.items()
                if not any(_overlap(key, name) for name in fixed) and _works(recipe, {key: value}, sources)
            }
        )
    common = set.intersection(*map(set, found))
    found = _distinct({key: values[key] for key in values if key in common} for values in found)
    found = [values for values in found if values and _works(recipe, values, sources)]
    if not found:
        raise RecipeError(
            "nothing is left to vary for the budget: --set specifies layers, heads, neurons and vocabulary; "
            "omit one of those fields, or the budget"
        )
    return found


def _overlap(first: str, second: str) -> bool:
    """Whether two dotted names are the same field, or one is in the other."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def _works(recipe: Recipe, values: dict[str, Any], sources: Sources) -> bool:
    try:
        tried = with_values(recipe, values)
        check_architectures(tried, base_reference(tried), sources)
    except RecipeError:
        return False
    return True


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order."""
    return list({json.dumps(value): value for value in values}.values())


def folder_mb(folder: Path) -> float:
    """Size of every file of a folder, MB = 10^6 bytes."""
    return sum(path.stat().st_size for path in files_of(folder)) / 1e6


def with_size(figures: Figures, folder: Path) -> Figures:
    """The figures of the model in `folder`, with the size of every file there."""
    return figures.model_copy(update={"size_mb": folder_mb(folder)})


def missed(figures: Figures, found: SearchOutcome, budget: Budget) -> tuple[ConstraintViolation, ...]:
    """The limits that a model exceeds whose size is that of its whole folder."""
    limits = found.limits.model_copy(update={"max_size_mb": budget.max_size_mb})
    return tuple(misses(figures, figures.accuracy, limits))


def headline(figures: Figures, found: SearchOutcome, budget: Budget) -> str:
    """Whether the chosen model meets the budget, and by how much it does not, in one line."""
    chosen = found.winner or found.nearest
    assert chosen is not None
    about = (
        f"({chosen.named()}): {figures.size_mb:.2f} MB, {figures.latency_ms:.2f} ms, validation accuracy "
        f"{100 * figures.accuracy:.1f} % (teacher: {100 * found.reference.accuracy:.1f} %)"
    )
    if failing := missed(figures, found, budget):
        return f"No recipe meets the budget. The closest {about}; {'; '.join(map(str, failing))}."
    return f"The budget is met {about}."
