"""The rows of `benchmarks/ablation.py`: recipes from options, and models from recipes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from pressoir.config import Config, Document
from pressoir.errors import PressoirError, RecipeError, StoreError
from pressoir.formats.folder import QUANTIZATION, read_json
from pressoir.pipeline.build import build_stage
from pressoir.pipeline.keys import stage_key
from pressoir.pipeline.runner import PipelineOutput
from pressoir.recipe.recipe import Recipe
from pressoir.recipe_search.config import with_values
from pressoir.recipe_search.trial import Pipeline, StoreRunner
from pressoir.reporting import Forwarding, Reporter
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.system.files import write_text_atomic

TEACHER, BASE, ALL = "teacher", "base", "all together"


class Option(Config):
    """Something that may be added to a recipe."""

    alone: Annotated[dict[str, Any], Field(min_length=1)]
    """What it sets where it is added alone: value by field, such as `distill.seeds`."""
    together: dict[str, Any] | None = None
    """What it sets where all are added; null: the same; `{}`: it takes no part."""

    @property
    def with_others(self) -> dict[str, Any]:
        """What it sets where all are added."""
        return self.alone if self.together is None else self.together


def _not_taken(options: dict[str, Option]) -> dict[str, Option]:
    if taken := sorted({TEACHER, BASE, ALL, "data"} & options.keys()):
        raise ValueError(f"{', '.join(taken)}: the name of another row; choose another")
    return options


class Options(Document):
    """The options of a table, by name."""

    options: Annotated[dict[str, Option], Field(min_length=1), AfterValidator(_not_taken)]


@dataclass
class Row:
    """A recipe, and what became of it."""

    name: str
    overrides: dict[str, Any]
    """What it sets in the base."""
    made: PipelineOutput[Artifact] | None = None
    steps: set[str] = field(default_factory=set)
    """Keys of all stages."""
    widened: list[str] = field(default_factory=list)
    """Layers that `quantize` gave more bits than asked for, for accuracy's sake."""
    problem: str = ""
    """Why nothing was made."""

    @property
    def model(self) -> Artifact | None:
        """The last of what was made."""
        return self.made.final if self.made else None


def plain(recipe: Recipe, options: Mapping[str, Option]) -> Recipe:
    """`recipe` with every field that an option sets at its default."""
    values = recipe.model_dump(mode="json")
    for option in options.values():
        for path in {**option.alone, **option.with_others}:
            section: Any = recipe
            node, (*parents, last) = values, path.split(".")
            for parent in parents:
                section, node = getattr(section, parent, None), node.get(parent) or {}
            known = type(section).model_fields if isinstance(section, BaseModel) else {}
            if last in known:
                node[last] = known[last].get_default(call_default_factory=True)
    return Recipe.from_dict(values, source=BASE)


def with_overrides(base: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """`base` with other values of some fields.

    Raises:
        RecipeError: it does not take them, or lacks the section that they belong to.
    """
    for path in overrides:
        section: Any = base
        for parent in path.split(".")[:-1]:
            section = getattr(section, parent, None)
            if section is None:
                raise RecipeError(f"{path}: the recipe has no {parent}")
    return with_values(base, dict(overrides))


def together(base: Recipe, options: Mapping[str, Option]) -> Row:
    """The row of all options that `base` takes alone."""
    overrides: dict[str, Any] = {}
    for option in options.values():
        try:
            with_overrides(base, option.alone)
        except PressoirError:
            continue
        overrides |= option.with_others
    return Row(ALL, overrides)


def build(row: Row, base: Recipe, pipeline: Pipeline, store: Store, reporter: Reporter) -> None:
    """Make the recipe and the model of `row`, or note why there is none.

    Raises:
        StoreError: the store cannot be used, which no other row could do without.
    """
    try:
        recipe = with_overrides(base, row.overrides)
        runner = Timed(recipe, store, reporter)
        row.made = pipeline(recipe, runner)
    except StoreError:
        raise
    except Exception as error:  # an option that fails in its own way must not cost the others' hours
        row.problem = _reason(error)
        reporter.message(f"{row.name}: {row.problem}")
        return
    row.steps = runner.steps
    if isinstance(quantised := row.made.artifacts.get("quantize"), Artifact):
        told = read_json(store.path(quantised) / QUANTIZATION)
        row.widened = [n for n in {**told["excluded"], **told.get("widened", {})} if n in told["sensitivity"]]


def _reason(error: Exception) -> str:
    """In one line."""
    text = " ".join(str(error).split())
    if isinstance(error, RecipeError) and "\n" in str(error):
        text = "; ".join(line.strip() for line in str(error).splitlines()[1:])
    return text if isinstance(error, PressoirError) and text else f"{type(error).__name__}: {text}"


class Seconds:
    """How long each stage took to build, in files beside the store, for later runs.

    A stage that was killed and resumed took the sum of its parts, up to what was not told in time.
    """

    def __init__(self, store: Store) -> None:
        self._folder = store.home / "ablation-seconds"

    def of(self, keys: set[str]) -> float | None:
        """Of all these stages; None where one was built by somebody else."""
        found = [self._read(key) for key in keys]
        return None if {} in found else sum(float(one["seconds"]) for one in found)

    def counting(self, key: str) -> Callable[[bool], None]:
        """What notes the seconds since now; to be told whether the stage is finished."""
        earlier, started = self._read(key), time.monotonic()
        before = 0.0 if earlier.get("finished") else float(earlier.get("seconds", 0))

        def note(finished: bool) -> None:
            found = {"seconds": before + time.monotonic() - started, "finished": finished}
            write_text_atomic(self._folder / f"{key}.json", json.dumps(found))

        return note

    def _read(self, key: str) -> dict[str, Any]:
        path = self._folder / f"{key}.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found


class Timed(StoreRunner):
    """Carries out a recipe's stages but `benchmark`, and notes how long those took that had to be built."""

    def __init__(self, recipe: Recipe, store: Store, reporter: Reporter) -> None:
        super().__init__(recipe, store, reporter)
        self.steps = set[str]()
        self._seconds = Seconds(store)

    def build(self, stage: str, config: BaseModel, inputs: dict[str, Artifact | Source | None]) -> Artifact:
        """Build one stage, or find it."""
        known = {name: given.digest for name, given in inputs.items() if given is not None}
        key = stage_key(stage, config, known, self.seed).hash()
        note = self._seconds.counting(key)
        artifact, found = build_stage(
            *(stage, config, inputs, self.store, _Ticking(self.reporter, note)),
            seed=self.seed,
            threads=self.threads,
        )
        if not found:
            note(True)
        self.steps.add(key)
        return artifact


class _Ticking(Forwarding):
    """Passes on, and has the time noted, every few seconds in which a stage tells of progress."""

    def __init__(self, reporter: Reporter, note: Callable[[bool], None]) -> None:
        super().__init__(reporter)
        self._note, self._last = note, time.monotonic()

    def progress(self, done: int, total: int, what: str) -> None:
        """See `Reporter.progress`."""
        super().progress(done, total, what)
        if time.monotonic() - self._last > 5:
            self._note(False)
            self._last = time.monotonic()
