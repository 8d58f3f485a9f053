"""What is checked before a search: its recipe, and each choice of its space."""

from __future__ import annotations

from pressoir.errors import RecipeError
from pressoir.pipeline.architecture_checks import check_architectures
from pressoir.pipeline.checks import base_reference, check_inputs
from pressoir.pipeline.sources import Sources
from pressoir.recipe_search.config import Range, SearchConfig, options, with_values


def check_search(config: SearchConfig, sources: Sources) -> None:
    """Check the recipe as `compress` does, and that each choice works with the architectures of the models.

    Raises:
        PressoirError: see `check_inputs`; RecipeError also where a choice asks for a step that does not work.
    """
    if (problem := config.recipe.data.problem) != "single-label":
        raise RecipeError(
            f"data.problem is {problem!r}, but a search compares accuracies; it supports single-label only"
        )
    check_inputs(config.recipe, sources)
    for key, choices in config.space.items():
        values = options(choices)
        for value in (values[0], values[-1]) if isinstance(choices, Range) else values:
            tried = with_values(config.recipe, {key: value})
            check_architectures(tried, base_reference(tried), sources)
