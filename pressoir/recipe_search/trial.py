"""One trial: predict what the recipe's model will cost, distill briefly, then press it whole.

**Why in steps.** Most of a trial's time is training, and most recipes of a space are hopeless. What a model
costs is decided by its shape, what it can do mostly shows after an epoch.

**What.** (1) *Shape.* The recipe's own pipeline runs with no training, on a few sentences: what comes out is
an exported graph with the very shape, bits and files of the final one, and its size and latency are measured,
not estimated. Only layers that `quantize` puts back to float32 for accuracy's sake are not foreseen.
(2) *Short.* The recipe with few epochs. (3) *Whole*, up to `shard`, without `benchmark`, which reads the test
split. After (1) and (2) a trial that cannot meet the budget is cut.

**Cost.** (1) takes seconds, once a shape. Its artifacts are thrown away; those of (2) and (3) go into the
store, where a stage that two trials share is found instead of repeated.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pressoir.benchmark.cost import Cost, CostConditions, cost
from pressoir.config import Config
from pressoir.data import sentences as data
from pressoir.errors import PressoirError, StoreError
from pressoir.pipeline.build import build_stage
from pressoir.pipeline.checks import base_reference
from pressoir.pipeline.runner import PipelineOutput, Runner
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import LearnerConfig
from pressoir.recipe_search import measure
from pressoir.recipe_search.budget import SearchLimits, cannot_cost, cannot_reach
from pressoir.recipe_search.config import ProxyConfig, SearchConfig, with_values
from pressoir.recipe_search.measuring_lock import MeasurementLock
from pressoir.recipe_search.records import Figures, TrialOutcome
from pressoir.reporting import Reporter, Silent
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.system.runtime import available_cpus

Pipeline = Callable[[Recipe, Runner[Artifact]], PipelineOutput[Artifact]]
"""The order of the stages, see `pressoir.flows.compress.pipeline`."""
_TRAINED = ("teacher_outputs", "distill", "prune", "quantize")


class Assignment(Config):
    """The description of a trial, as given to the worker that runs it."""

    number: int
    values: dict[str, Any]
    recipe: Recipe
    """That trials begin with."""
    limits: SearchLimits
    proxy: ProxyConfig
    conditions: CostConditions
    rivals: tuple[Figures, ...] = ()
    """What has met the budget so far."""


def conditions_of(config: SearchConfig) -> CostConditions:
    """How this search measures latency."""
    return CostConditions(
        threads=config.budget.threads or config.recipe.threads or available_cpus(),
        batch_size=config.budget.batch_size,
        samples=config.latency_samples,
    )


def run(given: Assignment, pipeline: Pipeline, store: Store, reporter: Reporter) -> TrialOutcome:
    """Carry out a trial.

    Raises:
        StoreError: the store cannot be used, which no other trial could do without.
    """
    started = time.monotonic()
    outcome = TrialOutcome(state="failed")
    try:
        outcome = _run(given, pipeline, store, reporter)
    except StoreError:
        raise
    except PressoirError as error:
        outcome = TrialOutcome(state="failed", reason=f"{type(error).__name__}: {error}")
    return outcome.model_copy(update={"seconds": round(time.monotonic() - started, 3)})


def _run(given: Assignment, pipeline: Pipeline, store: Store, reporter: Reporter) -> TrialOutcome:
    recipe = with_values(given.recipe, given.values)
    predicted, short_accuracy, sources = None, None, Sources(store)
    if given.proxy.shape:
        predicted = predict(recipe, pipeline, store, reporter, given.conditions, sources)
        reporter.message(f"predicted: {predicted.size_mb:.2f} MB, {predicted.latency_ms:.2f} ms")
        if reason := cannot_cost(predicted, given.limits, given.proxy.latency_tolerance):
            return TrialOutcome(state="cut", reason=f"before training: {reason}", predicted=predicted)
    short = shortened(recipe, given.proxy.epochs)
    if short != recipe:
        learner = StoreRunner(short, store, reporter, until=_last_learner(short), sources=sources)
        pipeline(short, learner)
        short_accuracy = learner.accuracy
        reporter.message(f"after the short distillation: accuracy {short_accuracy:.1%}")
        if reason := cannot_reach(short_accuracy, predicted, given.limits, given.proxy.slack, given.rivals):
            return TrialOutcome(
                state="cut",
                reason=f"after the short distillation: {reason}",
                predicted=predicted,
                short_accuracy=short_accuracy,
            )
    made = pipeline(recipe, StoreRunner(recipe, store, reporter, sources=sources))
    return TrialOutcome(
        state="finished",
        predicted=predicted,
        short_accuracy=short_accuracy,
        figures=score(made.final, made.data, store, given.conditions, recipe.seed),
        digest=made.final.digest,
    )


def score(
    model: Artifact, sentences: Artifact, store: Store, conditions: CostConditions, seed: int
) -> Figures:
    """Figures of a finished model, taken while no other trial computes."""
    with MeasurementLock(store.home / "locks").measuring():
        return measure.figures(model, sentences, store, conditions, seed)


def reference(
    recipe: Recipe, pipeline: Pipeline, store: Store, reporter: Reporter, conditions: CostConditions
) -> Figures:
    """Figures of the exported teacher, which every trial is compared with; it is trained where it must be."""
    alone = recipe.model_copy(
        update=dict.fromkeys(
            (*("augment", "vocabulary", "distill", "prune", "quantize", "shard"), *recipe.outside_sections())
        )
    )
    made = pipeline(alone, StoreRunner(alone, store, reporter))
    return score(made.final, made.data, store, conditions, recipe.seed)


def predict(
    recipe: Recipe,
    pipeline: Pipeline,
    store: Store,
    reporter: Reporter,
    conditions: CostConditions,
    sources: Sources | None = None,
) -> Cost:
    """Size and latency that the recipe's model will have, of an untrained one of its shape."""
    plain, sources = untrained(recipe), sources or Sources(store)
    config = plain.model_dump(mode="json", exclude=_NOT_SHAPE)
    inputs = {"model": sources.model(base_reference(plain)).digest}
    inputs["data"] = sources.key("data", plain.data, {}, plain.seed).inputs["source"]
    if plain.distill and plain.distill.student.model:
        inputs["student"] = sources.model(plain.distill.student.model).digest

    def make(scratch: Path) -> Cost:
        shutil.rmtree(scratch / "store", ignore_errors=True)  # of a process that was killed
        runner = ShapeRunner(plain, store, reporter, scratch, sources)
        made = pipeline(plain, runner)
        with MeasurementLock(store.home / "locks").measuring():
            return cost(runner.folder(made.final), store.path(made.data), conditions)

    key = conditions.key("search-shape", config, inputs, plain.seed)
    return measure.stored_cost(store, key, make)


_NOT_SHAPE = {"name", "description", "threads", "refresh", "benchmark", "registry", "text", "model"}


def untrained(recipe: Recipe) -> Recipe:
    """The recipe with all that decides the shape of its model, and nothing that trains or judges it."""
    unjudged = {"min_label_agreement": 0.0, "max_logit_difference": 1e9}
    changes: dict[str, Any] = {"export": recipe.export.model_copy(update=unjudged)}
    for name in ("distill", "prune"):
        if (section := getattr(recipe, name)) is not None:
            # How it would be trained is set to the defaults, so that recipes of one shape are looked at once.
            usual = {field: type(section).model_fields[field].default for field in LearnerConfig.model_fields}
            calm = {"epochs": 0, "hidden_weight": 0.0}
            if getattr(section, "target", None):  # which is held against a graph of the bits that this names
                calm["quantization_aware"] = section.quantization_aware
            changes[name] = section.model_copy(update={**usual, **calm})
    if recipe.quantize:
        changes["quantize"] = recipe.quantize.model_copy(update={"max_accuracy_drop": None})
    return recipe.model_copy(update=changes)


def shortened(recipe: Recipe, epochs: int | None) -> Recipe:
    """The recipe with at most so many epochs of distilling, and of recovering from pruning."""
    changes: dict[str, Any] = {}
    for name in ("distill", "prune"):
        section = getattr(recipe, name)
        if section and epochs is not None and section.epochs > epochs:
            changes[name] = section.model_copy(update={"epochs": epochs})
    return recipe.model_copy(update=changes)


def _last_learner(recipe: Recipe) -> str:
    return "prune" if recipe.prune else "distill"


class StoreRunner:
    """Carries out a trial's stages, here, in the store; see `pressoir.pipeline.runner.Runner`.

    `benchmark` is left out, and what comes after the stage `until`: the model given stands for their result.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        reporter: Reporter,
        until: str | None = None,
        sources: Sources | None = None,
    ) -> None:
        self.sources = sources or Sources(store)
        self.store, self.reporter, self._until = store, reporter, until
        self.seed, self.threads = recipe.seed, recipe.threads or available_cpus()
        self.accuracy = 0.0
        """On the validation split, of the model that was learned last."""
        self._done = False
        self._quiet = MeasurementLock(store.home / "locks")

    def fetch(self, reference: str) -> Source:
        """See `Runner.fetch`."""
        return self.sources.model(reference)

    def __call__(self, stage: str, config: BaseModel, **inputs: Artifact | Source | None) -> Artifact:
        """See `Runner.__call__`."""
        if stage == "benchmark" or self._done:
            given = inputs.get("model") or inputs["data"]
            assert isinstance(given, Artifact)
            return given
        made = self.build(stage, config, inputs)
        if stage in ("distill", "prune"):
            self.accuracy = made.metrics.get("validation_accuracy", 0.0)
        self._done = stage == self._until
        return made

    def build(self, stage: str, config: BaseModel, inputs: dict[str, Artifact | Source | None]) -> Artifact:
        """Build one stage, or find it."""
        with self._quiet.building():
            return build_stage(
                *(stage, config, inputs, self.store, self.reporter),
                seed=self.seed,
                threads=self.threads,
                sources=self.sources,
            )[0]


class ShapeRunner(StoreRunner):
    """Like it, but what is made of the student is made on a few sentences, in a folder of its own."""

    def __init__(
        self, recipe: Recipe, store: Store, reporter: Reporter, scratch: Path, sources: Sources
    ) -> None:
        super().__init__(recipe, store, reporter, sources=sources)
        self._scratch, self._excerpt = Store(scratch), scratch / "excerpt"
        self._made = set[str]()

    def folder(self, artifact: Artifact) -> Path:
        """Where an artifact of this runner lies."""
        return (self._scratch if artifact.key in self._made else self.store).path(artifact)

    def build(self, stage: str, config: BaseModel, inputs: dict[str, Artifact | Source | None]) -> Artifact:
        """Build one stage, or find it."""
        of_student = any(isinstance(value, Artifact) and value.key in self._made for value in inputs.values())
        if stage not in _TRAINED and not of_student:
            return super().build(stage, config, inputs)
        moved = {
            name: Source(reference=value.stage, folder=self.folder(value), digest=value.digest)
            if isinstance(value, Artifact)
            else value
            for name, value in inputs.items()
        }
        if (sentences := moved.get("data")) is not None:
            data.excerpt(sentences.folder, self._excerpt)
            moved["data"] = sentences.model_copy(update={"folder": self._excerpt})
        with self._quiet.building():
            made, _ = build_stage(
                stage, config, moved, self._scratch, Silent(), seed=self.seed, threads=self.threads
            )
        self._made.add(made.key)
        return made
