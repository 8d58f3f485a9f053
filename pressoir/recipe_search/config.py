"""The typed configuration of a search: what the result may cost, and which recipes are tried."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pressoir.config import (
    Config,
    Document,
    Fraction,
    NotNegative,
    Positive,
    PositiveReal,
    checked,
    look_beside,
    plain,
)
from pressoir.errors import RecipeError
from pressoir.evaluation.config import DaskConfig, Name
from pressoir.extensions.task import names_of
from pressoir.recipe.recipe import Recipe
from pressoir.stage import load_stage, stage_names
from pressoir.store.artifact import digest_of

SECTIONS = tuple(
    name for name in Recipe.model_fields if name in stage_names() and load_stage(name).searchable
)
"""Sections of a recipe that may differ between trials: teacher and data are what trials are compared by."""
_PATHS = ("train", "validation", "test", "unlabelled")


class Budget(Config):
    """Limits on the size and latency of the compressed model, and its required accuracy. All are measured on
    this machine. Specify at least one limit."""

    max_size_mb: PositiveReal | None = None
    """Maximum size on disk of graph, weights, configuration and tokenizer, MB = 10^6 bytes."""
    max_latency_ms: PositiveReal | None = None
    """Maximum median latency of one batch, without tokenisation."""
    min_accuracy: Fraction | None = None
    """Minimum validation accuracy."""
    max_accuracy_drop: Fraction | None = None
    """Instead of `min_accuracy`: maximum drop in validation accuracy relative to the teacher."""
    threads: Positive | None = None
    """Number of CPU threads for measuring latency; null uses that of the recipe, or all available CPUs."""
    batch_size: Positive = 1
    """Sentences per batch for measuring latency."""

    @model_validator(mode="after")
    def _says_something(self) -> Budget:
        problems = []
        limits = ("max_size_mb", "max_latency_ms", "min_accuracy", "max_accuracy_drop")
        if all(getattr(self, name) is None for name in limits):
            problems.append(f"a budget needs at least one limit; specify one or more of {', '.join(limits)}")
        if self.min_accuracy is not None and self.max_accuracy_drop is not None:
            problems.append("specify either `min_accuracy` or `max_accuracy_drop`, not both")
        return checked(self, problems)


class ProxyConfig(Config):
    """Cheap checks that stop unpromising trials before full training."""

    shape: bool = True
    """First measure an untrained model of the same shape, and stop the trial if it is too large or too
    slow."""
    latency_tolerance: NotNegative = 0.1
    """Fraction by which the latency of the untrained model may exceed the budget. Timings vary, and the
    trained model is timed again."""
    epochs: Positive | None = 1
    """Then distill (and recover after pruning) for this many epochs before full training; null skips this
    check."""
    slack: Fraction = 0.1
    """Accuracy that full training is assumed to add at most to short training. A trial that cannot meet the
    budget even so is stopped."""


class Range(Config):
    """Numbers from `low` to `high` (inclusive) in steps of `step`."""

    low: int | float
    high: int | float
    step: Annotated[int | float, Field(gt=0)]

    @model_validator(mode="after")
    def _ascends(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    @property
    def integer(self) -> bool:
        """Whether all its numbers are whole."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step))

    def values(self) -> list[int | float]:
        """Its numbers, ascending."""
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        numbers = [self.low + index * self.step for index in range(count)]
        return numbers if self.integer else [round(float(number), 10) for number in numbers]


Choices = Range | Annotated[tuple[Any, ...], Field(min_length=1)]
Key = Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)*$")]


def _read_recipe(value: Any) -> Any:
    """The recipe of a path as a mapping whose data files are named by whole paths."""
    if isinstance(value, Recipe):
        value = value.model_dump(mode="json")
    folder = Path()
    if isinstance(value, (str, Path)):
        path, raw = Recipe.read(value)
        folder, value = path.parent, plain(raw, (), str(path))
        Recipe._look_beside(value, folder)
    if isinstance(value, dict) and isinstance(value.get("data"), dict):
        data = dict(value["data"])
        for field in _PATHS:
            if isinstance(data.get(field), str):
                data[field] = str(Path(data[field]).absolute())
        value = {**value, "data": data}
    return value


class SearchConfig(Document):
    """A search for the best recipe within a budget."""

    LABEL: ClassVar[str] = "search"

    name: Name = "search"
    """Name of the results folder, the MLflow experiment and the resulting recipe."""
    recipe: Annotated[Recipe, BeforeValidator(_read_recipe)]
    """Recipe that the trials modify: a path, or the recipe itself."""
    budget: Budget
    """Limits that the result must meet."""
    space: Annotated[dict[Key, Choices], Field(min_length=1)]
    """Search space: fields of the recipe, such as `distill.student.layers`, each with a list of choices or a
    range."""
    first: tuple[dict[Key, Any], ...] = ()
    """Recipes to try first, in this order; each names one choice of every field of the search space."""
    prefer: Literal["accuracy", "size", "latency"] = "accuracy"
    """Metric by which the best recipe is chosen among those that meet the budget."""
    trials: Positive = 20
    """Maximum number of different recipes to try."""
    timeout_s: PositiveReal | None = None
    """Start no new trial after this many seconds; null sets no limit."""
    proxy: ProxyConfig = ProxyConfig()
    """When to stop unpromising trials early."""
    latency_samples: Annotated[int, Field(ge=10)] = 100
    """Number of validation batches over which the median latency is taken."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Random seed of the sampler that chooses recipes; training uses the `seed` of the recipe."""
    dask: DaskConfig | None = None
    """Run trials on a Dask cluster, one per worker; null runs them one after another."""
    results: Path = Path("results")
    """Parent folder of the result folders."""

    @model_validator(mode="after")
    def _space_fits_the_recipe(self) -> SearchConfig:
        problems = []
        if self.recipe.task not in names_of("classifier"):
            problems.append(
                f"recipe.task: {self.recipe.task!r} is not supported; use the recipe of a classifier"
            )
        if self.recipe.refresh:
            problems.append(
                "recipe.refresh: true would rebuild shared stages in every trial; set it to false"
            )
        for key, choices in self.space.items():
            if key.partition(".")[0] not in SECTIONS:
                problems.append(f"space.{key}: only fields of {', '.join(SECTIONS)} can be searched")
                continue
            values = options(choices)
            if len({json.dumps(value) for value in values}) < len(values):
                problems.append(f"space.{key}: a choice is listed twice")
            tried = values if not isinstance(choices, Range) else [values[0], values[-1]]
            for value in tried:
                try:
                    with_values(self.recipe, {key: value})
                except RecipeError as error:
                    reasons = " ".join(line.strip() for line in str(error).splitlines()[1:])
                    problems.append(f"space.{key}: the choice {json.dumps(value)} is not valid: {reasons}")
        parents = [key for key in self.space if any(other.startswith(f"{key}.") for other in self.space)]
        problems += [
            f"space.{key}: one of its fields is also in the space; remove one of them" for key in parents
        ]
        return checked(self, problems or self._first_outside_the_space())

    def _first_outside_the_space(self) -> list[str]:
        choices = {key: [json.dumps(value) for value in options(own)] for key, own in self.space.items()}
        return [
            f"first.{index}: specify one of the choices of each field in the space, and no other field"
            for index, values in enumerate(self.first)
            if values.keys() != choices.keys()
            or any(json.dumps(value) not in choices[key] for key, value in values.items())
        ]

    @classmethod
    def _look_beside(cls, raw: dict[str, Any], folder: Path) -> None:
        look_beside(folder, raw, ("recipe",))

    @property
    def folder(self) -> Path:
        """Where this search is kept: another recipe, budget, space or seed is another search."""
        return self.results / f"{self.name}-{self.identity}"

    @property
    def identity(self) -> str:
        """Eight hex digits of all that decides what is tried and what of it is found good."""
        free = {"trials", "timeout_s", "dask", "results", "name"}
        values = self.model_dump(mode="json", exclude=free if self.first else {*free, "first"})
        for name in ("name", "description", "registry", "benchmark"):
            del values["recipe"][name]
        return digest_of(values)[:8]


load = SearchConfig.load


def options(choices: Choices) -> list[Any]:
    """All values of one field of the space, in order, as JSON has them."""
    if isinstance(choices, Range):
        return list(choices.values())
    values: list[Any] = json.loads(json.dumps(choices))
    return values


def with_values(recipe: Recipe, values: dict[str, Any], name: str | None = None) -> Recipe:
    """The recipe with other values of some fields (dotted names), and another name.

    Raises:
        RecipeError: there is no such field, or the values cannot be, alone or together.
    """
    raw: dict[str, Any] = recipe.model_dump(mode="json")
    for key, value in values.items():
        *parents, last = key.split(".")
        node = raw
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise RecipeError(f"space.{key}:\n{parent} is a value, not a section")
        node[last] = value
    if name is not None:
        raw["name"] = name
    return Recipe.from_dict(raw, source="recipe")
