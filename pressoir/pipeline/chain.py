"""The models of a run, one made from another, and the stages of other packages between them."""

from __future__ import annotations

from typing import Generic, NamedTuple

from pressoir.pipeline.checks import base_reference
from pressoir.pipeline.runner import Output, Runner
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import OutputsConfig
from pressoir.sources.resolve import Source
from pressoir.stage import load_stage


class FetchedModels(NamedTuple):
    """The models that a recipe names."""

    base: Source | None
    """What the run begins with; None where it is merged."""
    parents: dict[str, Source | None]
    """Inputs of the merge: `base`, where there is one, and `parent_0`, `parent_1`, …"""
    student: Source | None
    """A checkpoint that the student starts from."""


def fetch_models(recipe: Recipe, run: Runner[Output]) -> FetchedModels:
    """Find every model that `recipe` names, before any stage runs."""
    base, parents = None, dict[str, Source | None]()
    if recipe.merge is None:
        base = run.fetch(base_reference(recipe))
    else:
        parents["base"] = run.fetch(recipe.merge.base) if recipe.merge.base else None
        parents |= {f"parent_{i}": run.fetch(model) for i, model in enumerate(recipe.merge.models)}
    student = recipe.distill.student.model if recipe.distill else None
    return FetchedModels(base, parents, run.fetch(student) if student else None)


def outputs_config(recipe: Recipe) -> OutputsConfig | None:
    """Which of the teacher's outputs are learnt from; None where nobody learns."""
    prune = recipe.prune if recipe.prune and recipe.prune.epochs else None
    learners = [section for section in (recipe.distill, prune) if section]
    if not learners:
        return None
    return OutputsConfig(
        hidden=any(section.hidden_weight > 0 for section in learners),
        relations=any(section.relation_weight > 0 for section in learners),
        student=recipe.distill.student if recipe.distill else None,
    )


class ModelChain(Generic[Output]):
    """The models from the reference, which all are compared with, to the final one."""

    def __init__(
        self, recipe: Recipe, run: Runner[Output], data: Output, name: str, reference: Output | Source | None
    ) -> None:
        self._recipe, self._run, self._data = recipe, run, data
        self.latest = reference
        """The model made last."""
        self.artifacts: dict[str, Output | Source | None] = {name: reference, f"{name}_onnx": None}
        """Every compared model by the stage that made it; the second is the reference, exported."""
        self.follow("teacher")

    def step(self, stage: str, **inputs: Output | Source | None) -> None:
        """Make the next model, where the recipe has that stage, and what follows it."""
        if (config := getattr(self._recipe, stage)) is not None:
            self.latest = self.artifacts[stage] = self._run(stage, config, **inputs)
        self.follow(stage)

    def use(self, stage: str, made: Output) -> None:
        """Take what was made before in the place of that stage's result, and make what follows it."""
        self.latest = made
        self.follow(stage)

    def follow(self, stage: str) -> None:
        """Make what the recipe has of other packages' stages that stand after `stage`."""
        for name in self._recipe.outside_sections():
            config = getattr(self._recipe, name)
            if config is not None and load_stage(name).after == stage:
                made = self._run(name, config, model=self.latest, data=self._data)
                self.latest = self.artifacts[name] = made
