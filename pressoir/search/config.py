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
    read_yaml,
)
from pressoir.errors import RecipeError
from pressoir.evaluation.config import DaskConfig, Name
from pressoir.extensions.task import names_of
from pressoir.recipe.recipe import Recipe
from pressoir.store.artifact import digest_of

SECTIONS = ("augment", "vocabulary", "distill", "prune", "quantize", "export", "shard")
"""Sections of a recipe that may differ between trials: teacher and data are what trials are compared by."""
_PATHS = ("train", "validation", "test", "unlabelled")


class Budget(Config):
    """What the compressed model may cost, and what it must still be able to do; all on this machine."""

    max_size_mb: PositiveReal | None = None
    """Graph, weights, configuration and tokenizer on disk, MB = 10^6 bytes."""
    max_latency_ms: PositiveReal | None = None
    """Median time of one batch, tokenisation not counted."""
    min_accuracy: Fraction | None = None
    """Least validation accuracy."""
    max_accuracy_drop: Fraction | None = None
    """Instead of `min_accuracy`: validation accuracy that may be lost against the teacher."""
    threads: Positive | None = None
    """CPU threads that latency is measured with; null takes the recipe's, or the CPUs really available."""
    batch_size: Positive = 1
    """Sentences a batch that latency is measured with."""

    @model_validator(mode="after")
    def _says_something(self) -> Budget:
        problems = []
        limits = ("max_size_mb", "max_latency_ms", "min_accuracy", "max_accuracy_drop")
        if all(getattr(self, name) is None for name in limits):
            problems.append(f"a budget limits something; give one or more of {', '.join(limits)}")
        if self.min_accuracy is not None and self.max_accuracy_drop is not None:
            problems.append("give `min_accuracy` or `max_accuracy_drop`, not both")
        return checked(self, problems)


class ProxyConfig(Config):
    """What is looked at before a trial is trained to its end."""

    shape: bool = True
    """First measure an untrained model of the same shape; one that is too large or too slow is cut."""
    latency_tolerance: NotNegative = 0.1
    """Part by which that latency may be above the budget; timings vary, and the trained model is timed
    again."""
    epochs: Positive | None = 1
    """Then distill (and recover from pruning) for so many epochs; null goes to the full length at once."""
    slack: Fraction = 0.1
    """Accuracy that the full length may still add to the short one's; what cannot get there so is cut."""


class Range(Config):
    """Numbers from `low` to `high`, both included, in steps."""

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
        numbers = [self.low + place * self.step for place in range(count)]
        return numbers if self.integer else [round(float(number), 10) for number in numbers]


Choices = Range | Annotated[tuple[Any, ...], Field(min_length=1)]
Key = Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)*$")]


def _read_recipe(value: Any) -> Any:
    """The recipe of a path as a mapping whose data files are named by whole paths."""
    if isinstance(value, Recipe):
        value = value.model_dump(mode="json")
    folder = Path()
    if isinstance(value, (str, Path)):
        folder = Path(value).parent
        value = plain(read_yaml(Path(value)), (), str(value))
        Recipe._look_beside(value, folder)
    if isinstance(value, dict) and isinstance(value.get("data"), dict):
        data = dict(value["data"])
        for field in _PATHS:
            if isinstance(data.get(field), str):
                data[field] = str(Path(data[field]).absolute())
        value = {**value, "data": data}
    return value


class SearchConfig(Document):
    """A whole search."""

    LABEL: ClassVar[str] = "search"

    name: Name = "search"
    """Name of the results' folder, of the MLflow experiment and of the recipe that is found."""
    recipe: Annotated[Recipe, BeforeValidator(_read_recipe)]
    """The recipe that trials begin with: a path, or the recipe itself."""
    budget: Budget
    """What must hold of the result."""
    space: Annotated[dict[Key, Choices], Field(min_length=1)]
    """What trials choose: a recipe's field (`distill.student.layers`), and its choices, or a range."""
    prefer: Literal["accuracy", "size", "latency"] = "accuracy"
    """Among the recipes that meet the budget, the one that is best in this wins."""
    trials: Positive = 20
    """Different recipes to look at; fewer where the space has fewer."""
    timeout_s: PositiveReal | None = None
    """No trial begins later than so many seconds after the start; null never stops."""
    proxy: ProxyConfig = ProxyConfig()
    """How hopeless trials are cut."""
    latency_samples: Annotated[int, Field(ge=10)] = 100
    """Batches of validation sentences that latency is the median of."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of which recipes are tried; the recipe has its own."""
    dask: DaskConfig | None = None
    """Run trials on a Dask cluster, one a worker; null runs them one after another."""
    results: Path = Path("results")
    """Folder of the searches' folders."""

    @model_validator(mode="after")
    def _space_fits_the_recipe(self) -> SearchConfig:
        problems = []
        if self.recipe.task not in names_of("classifier"):
            problems.append(
                f"recipe.task: {self.recipe.task!r} has no accuracy to search by; give a classifier's recipe"
            )
        if self.recipe.refresh:
            problems.append("recipe.refresh: true would build shared stages again in every trial; set false")
        for key, choices in self.space.items():
            if key.partition(".")[0] not in SECTIONS:
                problems.append(f"space.{key}: trials may differ in {', '.join(SECTIONS)} alone")
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
                    problems.append(f"space.{key}: the choice {json.dumps(value)} cannot be: {reasons}")
        parents = [key for key in self.space if any(other.startswith(f"{key}.") for other in self.space)]
        problems += [f"space.{key}: a field of it is in the space too; choose one" for key in parents]
        return checked(self, problems)

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
        values = self.model_dump(mode="json", exclude=free)
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
