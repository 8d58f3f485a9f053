"""The typed configuration of a batch evaluation: which models, on which data, within how much memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pressoir.config import Config, Document, Fraction, Positive, PositiveReal, checked, look_beside
from pressoir.extensions.task import TaskName, task
from pressoir.formats.folder import Runtime
from pressoir.recipe.sections import DataConfig

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Names = Annotated[
    tuple[Name, ...], Field(min_length=1), BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)
]
Strategy = Literal["aggressive", "moderate", "conservative"]
Protocol = Literal["kserve-v2", "openai"]


class GenerationConfig(Config):
    """How a model that writes text writes it; part of what a stored prediction belongs to."""

    max_new_tokens: Positive = 64
    """translation: longest answer, tokens."""
    num_beams: Positive = 1
    """Beams of translation; 1 is greedy."""
    window: Annotated[int, Field(ge=16, le=4096)] = 128
    """Causal LMs: tokens a window of perplexity."""


class DataSetConfig(Config):
    """One data set. Which fields it needs follows from its task."""

    task: TaskName
    """What it measures."""
    classification: DataConfig = DataConfig()
    """text-classification: its test split; by default the embedded reviews'."""
    manifest: Path | None = None
    """automatic-speech-recognition: JSON list of `{"audio": file, "text": transcription}`."""
    source: Path | None = None
    """translation: sentences, one a line."""
    reference: Path | None = None
    """translation: their translations, line by line."""
    source_language: str | None = None
    """translation: code of the source language, where the model has codes (`eng_Latn`, or `en`);
    automatic-speech-recognition: of the spoken language, for a Whisper of many."""
    target_language: str | None = None
    """translation: code of the target language."""
    text: Path | None = None
    """causal-lm: running text; by default the embedded reviews' test split."""
    pairs: Path | None = None
    """feature-extraction: TSV of two sentences and a similarity, no header; by default 48 embedded pairs."""

    @model_validator(mode="after")
    def _needs(self) -> DataSetConfig:
        missing = [name for name in task(self.task).required_data if getattr(self, name) is None]
        return checked(self, [f"task {self.task!r} needs `{name}`" for name in missing])


class ModelConfig(Config):
    """One model to evaluate."""

    id: Name
    """Name in the results."""
    model: str | None = None
    """Registry id, local folder or hub id."""
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Instead of `model`: the address of a KServe-v2 or OpenAI-style server."""
    remote_model: str | None = None
    """With `url`: the model's name there; by default `id`."""
    protocol: Protocol | None = None
    """With `url`: how the server is spoken to; null asks the server."""
    api_key_env: str | None = None
    """With `url`: name of the environment variable that holds the server's API key."""
    request_timeout_s: PositiveReal = 30.0
    """With `url`: the longest wait for one answer."""
    data: Names
    """Name of one of the data sets, or a list of several."""
    runtime: Runtime | None = None
    """Null takes ONNX Runtime where the folder has a graph, else PyTorch."""
    memory_gb: PositiveReal | None = None
    """Peak memory to plan with (10^9 bytes), instead of the estimate."""
    batch_size: Positive | None = None
    """Samples a batch to begin with, instead of the strategy's."""
    generation: GenerationConfig = GenerationConfig()
    """How it writes."""

    @model_validator(mode="after")
    def _one_place(self) -> ModelConfig:
        if (self.model is None) == (self.url is None):
            raise ValueError("give either `model` or `url`")
        return self

    def run_ids(self) -> dict[str, str]:
        """Id of its run on each of its data sets, by the data set's name."""
        return {name: self.id if len(self.data) == 1 else f"{self.id}.{name}" for name in self.data}


class MemoryConfig(Config):
    """What may be used."""

    reserve_gb: Annotated[float, Field(ge=0)] | None = None
    """Kept free for others (10^9 bytes); null takes the strategy's."""
    budget_gb: PositiveReal | None = None
    """Never use more than this, whatever is free (10^9 bytes)."""
    alert: Fraction = 0.85
    """Part of the effective limit above which an alert is noted."""
    aggressive_above_gb: PositiveReal = 15.0
    """With more memory available, the strategy is `aggressive` where none is named (10^9 bytes)."""
    conservative_below_gb: PositiveReal = 8.0
    """With less, it is `conservative`."""


class DaskConfig(Config):
    """A Dask cluster whose workers run the models (extra `dask`)."""

    address: str | None = None
    """Of a running scheduler, `tcp://host:8786`; null starts workers on this machine, for the run alone."""
    workers: Positive = 2
    """Without `address`: worker processes to start."""
    memory_gb: PositiveReal | None = None
    """Without `address`: what each of them has for models (10^9 bytes), at most its share of the budget;
    null: its share. Workers of a running cluster tell by themselves (`--resources "MEMORY=8e9"`)."""

    @model_validator(mode="after")
    def _workers_of_a_cluster_tell(self) -> DaskConfig:
        ours = sorted(self.model_fields_set & {"workers", "memory_gb"}) if self.address is not None else []
        return checked(
            self,
            [
                f"`{name}` is for workers on this machine; those of `address` tell by themselves"
                for name in ours
                if getattr(self, name) != type(self).model_fields[name].default
            ],
        )


class EvaluationConfig(Document):
    """A whole batch evaluation."""

    LABEL: ClassVar[str] = "evaluation"

    name: Name = "evaluation"
    """Name of the results' folder and of the MLflow experiment."""
    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    """What to evaluate."""
    data: dict[Name, DataSetConfig]
    """On what."""
    batches: dict[Name, tuple[str, ...]] = Field(default={})
    """Batches made by hand: ids of models that are to run together; the rest is planned."""
    memory: MemoryConfig = MemoryConfig()
    """Reserve, budget, alerts."""
    strategy: Strategy | None = None
    """Null picks by the memory that is really available."""
    samples: Positive | None = None
    """First samples of each data set; null takes all."""
    max_parallel: Positive | None = None
    """Most children at once; null takes the strategy's."""
    probe: bool = False
    """Measure two points of each model in a child, and fit, instead of estimating by formula."""
    timeout_s: PositiveReal = 3600.0
    """A model that takes longer is stopped."""
    threads: Positive | None = None
    """CPU threads of all children together; null takes the CPUs really available."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where PyTorch models run."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of every random choice."""
    dask: DaskConfig | None = None
    """Run the models on a Dask cluster; null runs them on this machine alone."""
    results: Path = Path("results")
    """Folder of the runs' folders."""

    @model_validator(mode="after")
    def _names_agree(self) -> EvaluationConfig:
        problems = []
        ids = [model.id for model in self.models]
        problems += [f"two models have the id {name!r}" for name in _twice(ids)]
        runs = [run for model in self.models for run in model.run_ids().values()]
        problems += [
            f"{name!r} names two runs; give one of the models another id"
            for name in _twice(runs)
            if name not in _twice(ids)
        ]
        problems += [
            f"the run id {name!r} is longer than 63 characters; give a shorter model id"
            for name in runs
            if len(name) > 63
        ]
        known = ", ".join(sorted(self.data)) or "none"
        for model in self.models:
            problems += [
                f"model {model.id}: no data set {name!r}; there are: {known}"
                for name in model.data
                if name not in self.data
            ]
            problems += [
                f"model {model.id}: data set {name!r} is listed twice" for name in _twice(model.data)
            ]
        placed = [name for batch in self.batches.values() for name in batch]
        for name, batch in self.batches.items():
            problems += [f"batch {name}: no model {one!r}" for one in batch if one not in ids]
        problems += [f"{name} is in two batches" for name in _twice(placed)]
        if self.memory.conservative_below_gb > self.memory.aggressive_above_gb:
            problems.append("memory: conservative_below_gb is above aggressive_above_gb")
        return checked(self, problems)

    @classmethod
    def _look_beside(cls, raw: dict[str, Any], folder: Path) -> None:
        """Of data; they are made whole, so that a run that is resumed from elsewhere finds them."""
        for section in (raw.get("data") or {}).values():
            if isinstance(section, dict):
                _make_whole(folder, section, _PATHS)
                if isinstance(section.get("classification"), dict):
                    _make_whole(folder, section["classification"], _SPLITS)


load = EvaluationConfig.load


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


_SPLITS = ("train", "validation", "test")
_PATHS = ("manifest", "source", "reference", "text", "pairs")


def _make_whole(folder: Path, section: dict[str, Any], fields: Sequence[str]) -> None:
    look_beside(folder, section, fields)
    for field in fields:
        if isinstance(section.get(field), str):
            section[field] = str(Path(section[field]).absolute())
