"""The typed configuration of a batch evaluation: which models, on which data, within how much memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pressoir.config import Config, Document, Fraction, Positive, PositiveReal, checked, look_beside
from pressoir.extensions.task import task
from pressoir.extensions.task_name import TaskName
from pressoir.formats.folder import Runtime
from pressoir.metrics import BleuTokenizer, Normaliser
from pressoir.recipe.sections import DataConfig

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Names = Annotated[
    tuple[Name, ...], Field(min_length=1), BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)
]
Strategy = Literal["aggressive", "moderate", "conservative"]
Protocol = Literal["kserve-v2", "openai"]


class GenerationConfig(Config):
    """Generation parameters. Changing them invalidates stored predictions."""

    max_new_tokens: Positive = 64
    """Translation: maximum number of generated tokens."""
    num_beams: Positive = 1
    """Translation: number of beams; 1 is greedy search."""
    window: Annotated[int, Field(ge=16, le=4096)] = 128
    """Causal LMs: tokens per window when measuring perplexity."""


class DataSetConfig(Config):
    """A data set. Its task determines which fields are required."""

    task: TaskName
    """Task of the models that are evaluated on it."""
    classification: DataConfig = DataConfig()
    """text-classification: labelled sentences, of which the test split is used; by default the embedded
    reviews."""
    manifest: Path | None = None
    """automatic-speech-recognition: JSON file with a list of `{"audio": file, "text": transcription}`."""
    source: Path | None = None
    """translation: text file with one source sentence per line."""
    reference: Path | None = None
    """translation: text file with the reference translation of each line of `source`."""
    source_language: str | None = None
    """Language code of the source text (translation) or of the speech (multilingual Whisper models), in the
    model's own notation, such as `eng_Latn` or `en`."""
    target_language: str | None = None
    """translation: language code of the target language."""
    bleu_tokenizer: BleuTokenizer | None = None
    """translation: sacrebleu's tokenizer for BLEU; null chooses it by the target language (or by the script
    of the references): `ja-mecab`, `ko-mecab` (extras `ja` and `ko`), `zh`, otherwise `13a`. sacrebleu
    downloads those of FLORES when they are first used."""
    normaliser: Normaliser | None = None
    """automatic-speech-recognition: how texts are normalised for WER and CER; null chooses it by
    `source_language`: `french` or `basic`."""
    text: Path | None = None
    """causal-lm: text file; by default the test split of the embedded reviews."""
    pairs: Path | None = None
    """feature-extraction: TSV file without header, with two sentences and their similarity per line; by
    default 48 embedded pairs."""

    @model_validator(mode="after")
    def _needs(self) -> DataSetConfig:
        missing = [name for name in task(self.task).required_data if getattr(self, name) is None]
        return checked(self, [f"task {self.task!r} needs `{name}`" for name in missing])


class ModelConfig(Config):
    """A model to evaluate."""

    id: Name
    """Name of the model in the results."""
    model: str | None = None
    """Registry id, local folder or hub id. Specify either `model` or `url`."""
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """URL of a KServe-v2 or OpenAI-compatible server that serves the model."""
    remote_model: str | None = None
    """With `url`: name of the model on the server; null uses `id`."""
    protocol: Protocol | None = None
    """With `url`: protocol of the server; null detects it."""
    api_key_env: str | None = None
    """With `url`: environment variable that contains the API key."""
    request_timeout_s: PositiveReal = 30.0
    """With `url`: timeout of a single request."""
    data: Names
    """Name of a data set, or a list of names."""
    runtime: Runtime | None = None
    """Null uses ONNX Runtime if the folder contains an ONNX graph, otherwise PyTorch."""
    memory_gb: PositiveReal | None = None
    """Expected peak memory (GB = 10^9 bytes); null estimates it."""
    batch_size: Positive | None = None
    """Initial batch size; null uses that of the strategy."""
    generation: GenerationConfig = GenerationConfig()
    """Generation parameters."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.model is None) == (self.url is None):
            raise ValueError("specify either `model` or `url`")
        return self

    def run_ids(self) -> dict[str, str]:
        """Id of its run on each of its data sets, by the data set's name."""
        return {name: self.id if len(self.data) == 1 else f"{self.id}.{name}" for name in self.data}


class MemoryConfig(Config):
    """How much memory may be used."""

    reserve_gb: Annotated[float, Field(ge=0)] | None = None
    """Memory to leave free for other processes (GB = 10^9 bytes); null uses the value of the strategy."""
    budget_gb: PositiveReal | None = None
    """Maximum memory to use, even if more is free (GB = 10^9 bytes); null sets no maximum."""
    alert: Fraction = 0.85
    """Fraction of the memory limit above which an alert is logged."""
    aggressive_above_gb: PositiveReal = 15.0
    """If no strategy is specified, it is `aggressive` with more available memory than this (GB = 10^9
    bytes)."""
    conservative_below_gb: PositiveReal = 8.0
    """If no strategy is specified, it is `conservative` with less available memory than this (GB = 10^9
    bytes)."""


class DaskConfig(Config):
    """A Dask cluster whose workers run the models (extra `dask`)."""

    address: str | None = None
    """Address of a running scheduler, such as `tcp://host:8786`; null starts temporary workers on this
    machine."""
    workers: Positive = 2
    """Without `address`: number of worker processes to start."""
    memory_gb: PositiveReal | None = None
    """Without `address`: memory of each worker for models (GB = 10^9 bytes), limited to its share of the
    budget; null uses that share. Workers of a running cluster declare their own (`--resources
    "MEMORY=8e9"`)."""

    @model_validator(mode="after")
    def _workers_of_a_cluster_tell(self) -> DaskConfig:
        ours = sorted(self.model_fields_set & {"workers", "memory_gb"}) if self.address is not None else []
        return checked(
            self,
            [
                f"`{name}` applies to workers started on this machine; leave it out if `address` is given"
                for name in ours
                if getattr(self, name) != type(self).model_fields[name].default
            ],
        )


class EvaluationConfig(Document):
    """A batch evaluation."""

    LABEL: ClassVar[str] = "evaluation"

    name: Name = "evaluation"
    """Name of the results folder and of the MLflow experiment."""
    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    """Models to evaluate."""
    data: dict[Name, DataSetConfig]
    """Data sets by name."""
    batches: dict[Name, tuple[str, ...]] = Field(default={})
    """Manual batches: ids of models to run together, by batch name. The remaining models are batched
    automatically."""
    memory: MemoryConfig = MemoryConfig()
    """Memory reserve, budget and alerts."""
    strategy: Strategy | None = None
    """Preset of memory reserve, batch size and parallelism; null chooses by available memory."""
    samples: Positive | None = None
    """Number of samples to use from the start of each data set; null uses all."""
    max_parallel: Positive | None = None
    """Maximum number of models running in parallel; null uses the value of the strategy."""
    probe: bool = False
    """Estimate memory from two short measurements of each model instead of a formula."""
    timeout_s: PositiveReal = 3600.0
    """Timeout of a single model."""
    threads: Positive | None = None
    """Total number of CPU threads for all models; null uses all CPUs available to the process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device for PyTorch models."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Random seed."""
    dask: DaskConfig | None = None
    """Run the models on a Dask cluster; null runs them on this machine."""
    results: Path = Path("results")
    """Parent folder of the result folders."""

    @model_validator(mode="after")
    def _names_agree(self) -> EvaluationConfig:
        problems = []
        ids = [model.id for model in self.models]
        problems += [f"two models have the same id {name!r}" for name in _twice(ids)]
        runs = [run for model in self.models for run in model.run_ids().values()]
        problems += [
            f"{name!r} is the id of two runs; change the id of one of the models"
            for name in _twice(runs)
            if name not in _twice(ids)
        ]
        problems += [
            f"the run id {name!r} is longer than 63 characters; use a shorter model id"
            for name in runs
            if len(name) > 63
        ]
        known = ", ".join(sorted(self.data)) or "none"
        for model in self.models:
            problems += [
                f"model {model.id}: no data set {name!r}; available: {known}"
                for name in model.data
                if name not in self.data
            ]
            problems += [
                f"model {model.id}: data set {name!r} is listed twice" for name in _twice(model.data)
            ]
        placed = [name for batch in self.batches.values() for name in batch]
        for name, batch in self.batches.items():
            problems += [f"batch {name}: no model {member!r}" for member in batch if member not in ids]
        problems += [f"{name} is in two batches" for name in _twice(placed)]
        if self.memory.conservative_below_gb > self.memory.aggressive_above_gb:
            problems.append("memory: conservative_below_gb is greater than aggressive_above_gb")
        return checked(self, problems)

    @classmethod
    def _look_beside(cls, raw: dict[str, Any], folder: Path) -> None:
        """Of data; they are made whole, so that a run that is resumed from elsewhere finds them."""
        data = raw.get("data")
        for section in data.values() if isinstance(data, dict) else ():
            if isinstance(section, dict):
                _make_whole(folder, section, _PATHS)
                if isinstance(section.get("classification"), dict):
                    _make_whole(folder, section["classification"], _SPLITS)


load = EvaluationConfig.load


def _twice(names: Sequence[str]) -> list[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)


_SPLITS = ("train", "validation", "test")
_PATHS = ("manifest", "source", "reference", "text", "pairs")


def _make_whole(folder: Path, section: dict[str, Any], fields: Sequence[str]) -> None:
    look_beside(folder, section, fields)
    for field in fields:
        if isinstance(section.get(field), str):
            section[field] = str(Path(section[field]).absolute())
