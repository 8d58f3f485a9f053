"""The step by which `prefect deploy` reads a recipe into a deployment's parameters (see `prefect.yaml`)."""

from __future__ import annotations

from typing import Any

from pressoir.recipe import Recipe


def read_recipe(path: str) -> dict[str, Any]:
    """The whole recipe, defaults included, as `{"recipe": {...}}`; raises `RecipeError` where it is wrong."""
    return {"recipe": Recipe.from_yaml(path).model_dump(mode="json")}
