"""The steps by which `prefect deploy` reads files into a deployment's parameters (see `prefect.yaml`)."""

from __future__ import annotations

from typing import Any

from pressoir.evaluation.config import EvaluationConfig
from pressoir.recipe.recipe import Recipe
from pressoir.recipe_search.config import SearchConfig
from pressoir.serving.config import ServingConfig


def read_recipe(path: str) -> dict[str, Any]:
    """The whole recipe, defaults included, as `{"recipe": {...}}`; raises `RecipeError` where it is wrong."""
    return {"recipe": Recipe.from_yaml(path).model_dump(mode="json")}


def read_evaluation(path: str) -> dict[str, Any]:
    """The whole configuration of an evaluation, as `{"config": {...}}`; raises `RecipeError` likewise."""
    return {"config": EvaluationConfig.from_yaml(path).model_dump(mode="json")}


def read_serving(path: str) -> dict[str, Any]:
    """The whole configuration of a server, as `{"config": {...}}`; raises `RecipeError` likewise."""
    return {"config": ServingConfig.from_yaml(path).model_dump(mode="json")}


def read_search(path: str) -> dict[str, Any]:
    """The whole configuration of a search, its recipe included; raises `RecipeError` likewise."""
    return {"config": SearchConfig.from_yaml(path).model_dump(mode="json")}
