"""What a run will do, before it does it: the key of every step, and whether the store has it already.

The order of the stages is written once, as a function over a `Runner`. The flow hands it one that builds; the
`Planner` here only computes keys and looks them up, so a plan can never disagree with the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel

from pressoir.config import Config
from pressoir.pipeline.runner import Runner
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.system.runtime import available_cpus


class Unbuilt(Config):
    """Stands for the output of a stage that the store does not have."""

    stage: str


class PlanRow(Config):
    """One step of a plan."""

    stage: str
    """The stage."""
    of: str | None
    """The stage whose model it takes; tells the exports of teacher and final model apart."""
    state: Literal["cached", "build"]
    """Whether the store has the result."""
    key: str | None
    """Its place in the store; unknown while an input is not built."""


class Planner:
    """A runner that builds nothing: it looks every step up and notes the result in `rows`."""

    def __init__(self, recipe: Recipe, sources: Sources) -> None:
        self.recipe, self.sources = recipe, sources
        self.rows: list[PlanRow] = []

    def fetch(self, reference: str) -> Source:
        """See `Runner.fetch`."""
        return self.sources.model(reference)

    def __call__(
        self, stage: str, config: BaseModel, **inputs: Artifact | Unbuilt | Source | None
    ) -> Artifact | Unbuilt:
        """See `Runner.__call__`."""
        store = self.sources.store
        known = {name: given for name, given in inputs.items() if isinstance(given, Artifact | Source)}
        key, found = None, None
        if not any(isinstance(given, Unbuilt) for given in inputs.values()):
            folders = [v.folder if isinstance(v, Source) else store.path(v) for v in known.values()]
            digests = {name: given.digest for name, given in known.items()}
            threads = self.recipe.threads or available_cpus()
            key = self.sources.key(stage, config, digests, self.recipe.seed, folders, threads)
            found = None if self.recipe.refresh else store.find(key)
        model = inputs.get("model")
        self.rows.append(
            PlanRow(
                stage=stage,
                of=None if model is None or isinstance(model, Source) else model.stage,
                state="cached" if found else "build",
                key=key.hash() if key else None,
            )
        )
        return found or Unbuilt(stage=stage)


def plan(
    pipeline: Callable[[Recipe, Runner[Artifact | Unbuilt]], Any], recipe: Recipe, sources: Sources
) -> list[PlanRow]:
    """Every step that `pipeline` would take for `recipe`, in order, and whether the store has its result.

    Raises:
        SourceError: a model cannot be found; DataError: a data file does not exist.
    """
    planner = Planner(recipe, sources)
    pipeline(recipe, planner)
    return planner.rows
