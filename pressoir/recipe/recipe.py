"""The typed recipe: which stages run, and how.

One schema has four faces: the YAML file, the form in Prefect's UI, the command line
(`--set distill.epochs=3`) and the reference in the docs. Every field has a default that works; units are in
the names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import yaml
from pydantic import Field, model_validator

from pressoir.config import Document, Positive, checked, look_beside
from pressoir.extensions.choice import OneOf
from pressoir.extensions.task import Kind, names_of
from pressoir.recipe.sections import (
    AugmentConfig,
    BenchmarkConfig,
    DataConfig,
    DistillConfig,
    ExportConfig,
    MergeConfig,
    PruneConfig,
    QuantizeConfig,
    RegistryConfig,
    ShardConfig,
    TeacherConfig,
    TextConfig,
    VocabularyConfig,
)


class Recipe(Document):
    """A whole run of the compress flow. A stage set to null is left out; the order is fixed."""

    LABEL: ClassVar[str] = "recipe"

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = "demo"
    """Name of the run: MLflow experiment, registry id, output folder."""
    description: str = ""
    """One line for people."""
    task: Annotated[str, OneOf(lambda: names_of(*get_args(Kind)))] = "text-classification"
    """What the model does. A causal LM is merged and quantised, not taught: it has no teacher to distill."""
    model: str = "all-minilm-l6-v2"
    """The base model: a local folder, a catalogue id, `hub:org/name@revision`, or `package:module`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of every random choice."""
    threads: Positive | None = None
    """CPU threads; null takes the CPUs really available."""
    refresh: bool = False
    """Rebuild every stage even when the store has it."""
    data: DataConfig = DataConfig()
    """Sentences and labels, of a classifier."""
    text: TextConfig = TextConfig()
    """Running text, of a causal LM."""
    merge: MergeConfig | None = None
    """Merge models; the result takes the place of `model`."""
    teacher: TeacherConfig | None = TeacherConfig()
    """The model that everything is compared with; null for a causal LM, which is compared with its source."""
    augment: AugmentConfig | None = None
    """More text for distilling and pruning."""
    vocabulary: VocabularyConfig | None = None
    """A smaller vocabulary, for the student and what is made of it."""
    distill: DistillConfig | None = DistillConfig()
    """Train a smaller student."""
    prune: PruneConfig | None = PruneConfig()
    """Remove heads and neurons, or zero weights."""
    quantize: QuantizeConfig | None = QuantizeConfig()
    """Store weights in fewer bits: by default int8, and q4 for a causal LM."""
    export: ExportConfig = ExportConfig()
    """ONNX graph."""
    shard: ShardConfig | None = ShardConfig()
    """Safetensors shards."""
    benchmark: BenchmarkConfig = BenchmarkConfig()
    """Side-by-side measurement."""
    registry: RegistryConfig | None = RegistryConfig()
    """Registration of the result; null registers nothing."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("task") in names_of("language model"):
            absent: dict[str, Any] = dict.fromkeys(("teacher", "distill", "prune"))
            raw = {**absent, "quantize": {"scheme": "q4"}, **raw}
            if isinstance(raw["quantize"], dict):
                raw["quantize"] = {"scheme": "q4", **raw["quantize"]}
        return raw

    @model_validator(mode="after")
    def _one_lane(self) -> Recipe:
        problems = []
        ranked_by = self.registry and self.registry.criterion.metric
        language_model = self.task in names_of("language model")
        integer = self.quantize and self.quantize.scheme == "int8"
        if language_model:
            taught = ("teacher", "augment", "vocabulary", "distill", "prune")
            given = [name for name in taught if getattr(self, name) is not None]
            if given:
                problems.append(f"{', '.join(given)}: not for task {self.task!r}; set to null or leave out")
            if ranked_by == "accuracy":
                problems.append("registry.criterion.metric: a causal LM has no accuracy; choose perplexity")
            if integer:
                problems.append("quantize.scheme: 'int8' is for encoders; choose q8, q4, q3 or q2")
        else:
            if ranked_by == "perplexity":
                problems.append("registry.criterion.metric: a classifier has no perplexity; choose accuracy")
            made = self.augment and self.augment.copies + self.augment.spans
            if self.augment and not made and self.data.unlabelled is None:
                problems.append(
                    "augment: copies and spans are 0 and data.unlabelled is not given: nothing to add"
                )
            if self.vocabulary and self.distill and self.distill.student.model:
                problems.append(
                    "vocabulary: a student of its own (distill.student.model) keeps its own words; give one"
                )
            if self.teacher is None:
                problems.append("teacher: null is only for task 'causal-lm'")
            if self.quantize and not integer:
                problems.append(
                    f"quantize.scheme: {self.quantize.scheme!r} is for task 'causal-lm'; choose int8"
                )
        return checked(self, problems)

    @property
    def registry_id(self) -> str:
        """The id the result is registered under."""
        return (self.registry and self.registry.id) or self.name

    @classmethod
    def _look_beside(cls, raw: dict[str, Any], folder: Path) -> None:
        text = raw.get("text")
        text = text if isinstance(text, dict) else {}
        for section, fields in (
            (raw.get("data"), ("train", "validation", "test", "unlabelled")),
            (text, ("calibration",)),
            (text.get("evaluation"), tuple(text.get("evaluation") or ())),
        ):
            if isinstance(section, dict):
                look_beside(folder, section, fields)

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, as YAML that `from_yaml` reads back to an equal value."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


load = Recipe.load
