"""The typed recipe: which stages run, and how.

One schema has four faces: the YAML file, the form in Prefect's UI, the command line
(`--set distill.epochs=3`) and the reference in the docs. Every field has a default that works; units are in
the names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import yaml
from pydantic import Field, create_model, model_validator

from pressoir.config import Document, Positive, checked, look_beside
from pressoir.errors import ExtensionError
from pressoir.extensions.task import names_of, tasks
from pressoir.extensions.task_name import RecipeTask
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
    TrainingConfig,
    VocabularyConfig,
)
from pressoir.stage import outside_stages


class Recipe(Document):
    """A run of the compress flow. Set a stage to null to skip it; the order of stages is fixed."""

    LABEL: ClassVar[str] = "recipe"

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = "demo"
    """Name of the run; also the MLflow experiment, the registry id and the output folder."""
    description: str = ""
    """One-line description."""
    task: RecipeTask = "text-classification"
    """Task of the model. A causal LM can be merged and quantised, but not distilled or pruned."""
    model: str = "all-minilm-l6-v2"
    """Base model: a local folder, a catalogue id, `hub:org/name@revision` or `package:module`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Random seed."""
    threads: Positive | None = None
    """Number of CPU threads; null uses all CPUs available to the process."""
    refresh: bool = False
    """Rebuild every stage, even if its result is in the store."""
    data: DataConfig = DataConfig()
    """Labelled sentences (classifiers)."""
    text: TextConfig = TextConfig()
    """Running text (causal LMs)."""
    merge: MergeConfig | None = None
    """Merge several models; the result replaces `model`."""
    teacher: TeacherConfig | None = TeacherConfig()
    """Reference model; null for a causal LM, which is compared with its source model."""
    augment: AugmentConfig | None = None
    """Additional text for distillation and pruning."""
    vocabulary: VocabularyConfig | None = None
    """Prune the vocabulary of the student and of every model derived from it."""
    distill: DistillConfig | None = DistillConfig()
    """Distill the teacher into a smaller student."""
    prune: PruneConfig | None = PruneConfig()
    """Remove attention heads and neurons, or set weights to zero."""
    quantize: QuantizeConfig | None = QuantizeConfig()
    """Quantise the weights. Default: int8, or q4 for a causal LM."""
    export: ExportConfig = ExportConfig()
    """Export to ONNX."""
    shard: ShardConfig | None = ShardConfig()
    """Split the weights into safetensors shards."""
    benchmark: BenchmarkConfig = BenchmarkConfig()
    """Measure all models of the run side by side."""
    registry: RegistryConfig | None = RegistryConfig()
    """Register the result; null skips registration."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("task") in names_of("language model"):
            absent: dict[str, Any] = dict.fromkeys(("teacher", "distill", "prune"))
            raw = {**absent, "quantize": {"scheme": "q4"}, **raw}
            if isinstance(raw["quantize"], dict):
                raw["quantize"] = {"scheme": "q4", **raw["quantize"]}
        if (
            isinstance(raw, dict)
            and _problem_of(raw.get("task")) == _TAGS
            and isinstance(raw.get("data"), dict)
        ):
            columns = {"problem": _TAGS, "text_column": "tokens", "label_column": "tags"}
            raw = {**raw, "data": {**columns, **raw["data"]}}
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
                problems.append(
                    f"{', '.join(given)}: not supported for task {self.task!r}; set to null or omit"
                )
            if ranked_by == "accuracy":
                problems.append(
                    "registry.criterion.metric: accuracy is not available for causal LMs; choose perplexity"
                )
            if integer:
                problems.append("quantize.scheme: 'int8' is for encoders; choose q8, q4, q3 or q2")
        else:
            if ranked_by == "perplexity":
                problems.append(
                    "registry.criterion.metric: perplexity is not available for classifiers; choose accuracy"
                )
            main = _METRICS[self.data.problem][0]
            if ranked_by in {metrics[0] for metrics in _METRICS.values()} - {main}:
                problems.append(
                    f"registry.criterion.metric: {ranked_by} is not available for data.problem "
                    f"{self.data.problem!r}; choose {main}"
                )
            made = self.augment and self.augment.copies + self.augment.spans
            if self.augment and not made and self.data.unlabelled is None:
                problems.append(
                    "augment: nothing to add, because copies and spans are 0 and data.unlabelled is not "
                    "specified"
                )
            if self.augment and self.data.text_pair_column is not None:
                problems.append(
                    "augment: pairs of texts (data.text_pair_column) are not supported; omit `augment`"
                )
            if self.vocabulary and self.distill and self.distill.student.model:
                problems.append(
                    "vocabulary: cannot be combined with distill.student.model, which has its own "
                    "vocabulary; specify one of them"
                )
            problems += self._of_the_problem()
            if self.teacher is None:
                problems.append("teacher: null is only supported for task 'causal-lm'")
            if self.quantize and not integer:
                problems.append(
                    f"quantize.scheme: {self.quantize.scheme!r} is for task 'causal-lm'; choose int8"
                )
        return checked(self, problems)

    def _of_the_problem(self) -> list[str]:
        """What of the sections the data's problem does not have."""
        kind, found = self.data.problem, list[str]()
        if (kind == _TAGS) != (_problem_of(self.task) == _TAGS):
            able = " or ".join(declared.name for declared in tasks() if declared.problem == _TAGS)
            found.append(
                f"data.problem is {kind!r}, but task is {self.task!r}; set task: {able} and data with "
                "words and their tags, or neither"
            )
        for name in ("teacher", "distill", "prune"):
            section: TrainingConfig | None = getattr(self, name)
            if section is None:
                continue
            if section.best_metric not in ("auto", *_METRICS[kind]):
                found.append(
                    f"{name}.best_metric: {section.best_metric} is not available for data.problem {kind!r}; "
                    f"choose auto, {' or '.join(_METRICS[kind])}"
                )
            if kind != "single-label" and section.class_weights is not None:
                found.append(f"{name}.class_weights: not supported for data.problem {kind!r}; omit it")
        if kind == _TAGS and self.distill and self.distill.student.embedding_size is not None:
            found.append(f"distill.student.embedding_size: not supported for data.problem {kind!r}; omit it")
        if kind != "single-label" and self.augment is not None:
            found.append(f"augment: not supported for data.problem {kind!r}; set to null or omit")
        return found

    @property
    def registry_id(self) -> str:
        """The id the result is registered under."""
        return (self.registry and self.registry.id) or self.name

    @classmethod
    def outside_sections(cls) -> tuple[str, ...]:
        """The sections of stages that other packages declare."""
        return tuple(name for name in cls.model_fields if name not in _OWN)

    @classmethod
    def _look_beside(cls, raw: dict[str, Any], folder: Path) -> None:
        look_beside(folder, raw.get("data"), ("train", "validation", "test", "unlabelled"))
        if isinstance(text := raw.get("text"), dict):
            look_beside(folder, text, ("calibration",))
            look_beside(folder, text.get("evaluation"))

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, as YAML that `from_yaml` reads back to an equal value."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


_OWN = frozenset(Recipe.model_fields)
_METRICS = {
    "single-label": ("accuracy", "macro_f1"),
    "multi-label": ("micro_f1", "macro_f1"),
    "regression": ("pearson", "spearman"),
    "tags": ("span_f1", "macro_f1"),
}
"""By the data's problem, the metrics by which an epoch can be chosen; a version is ranked by the first. They
are those of `pressoir.formats.problems`."""


_TAGS = "tags"


def _problem_of(name: Any) -> str | None:
    """The data's problem that a task has; None also of what is no task."""
    return next((declared.problem for declared in tasks() if declared.name == name), None)


def with_outside_sections(recipe: type[Recipe]) -> type[Recipe]:
    """The type with an optional section for each stage that another package declares.

    Raises:
        ExtensionError: such a stage cannot be loaded, or has the name of a recipe's field.
    """
    sections: dict[str, Any] = {}
    for name, stage in outside_stages().items():
        if hasattr(recipe, name) or name in _OWN:
            raise ExtensionError(f"stage {name!r} has the name of a recipe's field; rename it")
        summary = (stage.config.__doc__ or "").strip().partition("\n")[0]
        sections[name] = (stage.config | None, Field(default=None, description=summary))
    if not sections:
        return recipe
    return create_model(
        recipe.__name__, __base__=recipe, __module__=recipe.__module__, __doc__=recipe.__doc__, **sections
    )


if not TYPE_CHECKING:
    Recipe = with_outside_sections(Recipe)
load = Recipe.load
