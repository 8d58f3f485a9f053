"""The typed configuration of a server: tiers, the models behind them, and how much memory they may take.

A tier is a name that clients ask for. It names a model and overlays settings on every request: the values of
its limits are what a request gets, unless it asks for less. Tiers that lead to the same model share it.

A configuration that a person writes names models as everywhere else (a folder, a registry id, a hub id, or
`models:/name@alias` of a model registry). `resolve` finds them, and fills in where each is and the digest of
its files; only such a resolved configuration is served.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, model_validator

from pressoir.config import (
    Config,
    Document,
    Fraction,
    NotNegative,
    Positive,
    PositiveReal,
    checked,
)
from pressoir.errors import PressoirError, RecipeError
from pressoir.extensions.task import task
from pressoir.extensions.task_name import TaskName
from pressoir.formats.folder import Runtime, model_files, runtime_of
from pressoir.formats.supported import served_tasks
from pressoir.registry.catalogue import Id, Sha256, nearest
from pressoir.sources import resolve as sources
from pressoir.store.store import Store
from pressoir.system.reader import exists, is_folder

EXTERNAL = "models:/"
"""How a model of an outer registry begins, which only a resolver of that registry can find."""
API_KEY_VARIABLE, ADMIN_KEY_VARIABLE = "PRESSOIR_API_KEY", "PRESSOIR_ADMIN_KEY"
"""Environment variable of a server's API key, for the server and its clients."""
DEFAULT_NEW_TOKENS = 256
"""Most tokens that a causal LM goes on, where its tier does not say."""

Resolver = Callable[[str], str]
"""Makes a reference that `pressoir.sources.resolve` knows (`store:…`, a folder) of a `models:/name@alias`."""

LIMITS = ("max_length", "max_new_tokens", "num_beams", "max_batch", "max_audio_s", "timeout_s")
"""Settings that a request may lower and not raise."""
_CHOICES = ("source_language", "target_language", "temperature", "top_k", "top_p", "stop", "seed")


class TierSettings(Config):
    """Settings applied to each request. A request may lower a limit, but not raise it."""

    max_length: Positive | None = None
    """Maximum number of input tokens; longer texts are truncated. Causal LMs: limit of prompt and generated
    tokens together; longer prompts are rejected. Translation: also limits the output, unless `max_new_tokens`
    is given. Null uses the limit of the model."""
    max_new_tokens: Positive | None = None
    """Maximum number of generated tokens. Null means 256 for causal LMs; other models use the value in their
    configuration."""
    num_beams: Annotated[int, Field(ge=1, le=16)] = 1
    """Number of beams for translation and Whisper; 1 is greedy search."""
    max_batch: Positive = 32
    """Maximum number of texts per request."""
    max_audio_s: PositiveReal = 120.0
    """Maximum length of audio."""
    timeout_s: PositiveReal = 60.0
    """Request timeout, including queueing and model loading; for a stream, the time until its end."""
    source_language: str | None = None
    """Default source language of text or speech."""
    target_language: str | None = None
    """Default target language of translation."""
    temperature: NotNegative = 0.0
    """Default sampling temperature; 0 always chooses the most probable token."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Default number of most probable tokens to sample from; 0 means all."""
    top_p: Fraction = 1.0
    """Default nucleus sampling: sample from the smallest set of tokens with at least this total
    probability."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=4)] = ()
    """Default stop sequences, which end generation: at most 4, of at most 256 characters."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Default random seed of sampling."""

    def unused(self, name_of_task: TaskName) -> list[str]:
        """Settings that are given, and mean nothing to `task`."""
        defaults, used = type(self)(), task(name_of_task).tier_settings
        return [
            name
            for name in (*LIMITS, *_CHOICES)
            if name != "timeout_s" and name not in used and getattr(self, name) != getattr(defaults, name)
        ]


class TierConfig(Config):
    """A name that clients can request. `pressoir deploy` fills in the last three fields."""

    model: Annotated[str, Field(min_length=1)]
    """Registry id, folder, hub id, `store:…`, or `models:/name@alias`."""
    task: TaskName | None = None
    """Task of the model; null uses the one in its configuration."""
    runtime: Runtime | None = None
    """Null uses ONNX Runtime if the folder contains an ONNX graph, otherwise PyTorch."""
    settings: TierSettings = TierSettings()
    """Defaults and limits of requests."""
    pinned: bool = False
    """Load the model when the server starts and never evict it."""
    digest: Sha256 | None = None
    """SHA-256 of the model files. If specified, files with another digest are rejected."""
    source: str | None = None
    """Location of the files: a folder, or `store:stage/key`."""
    size_bytes: Annotated[int, Field(ge=0)] | None = None
    """Total size of the model files."""

    @model_validator(mode="after")
    def _settings_fit(self) -> TierConfig:
        return checked(self, [] if self.task is None else self.misfits(self.task))

    def misfits(self, task: TaskName) -> list[str]:
        """What is wrong with the settings of a model of that task."""
        return [
            f"settings.{name} is not supported for {task}; omit it" for name in self.settings.unused(task)
        ]

    @property
    def resolved(self) -> bool:
        """Whether it can be served."""
        return None not in (self.task, self.runtime, self.digest, self.source, self.size_bytes)


class BatchingConfig(Config):
    """Dynamic batching of requests to one model."""

    enabled: bool = True
    """Whether to batch requests."""
    max_tokens: Positive = 4096
    """Maximum number of tokens per batch, including padding: number of texts × longest text."""
    max_delay_ms: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """Maximum time that a request waits for others to batch with; an idle model runs a request at once."""
    max_queue: Positive = 128
    """Maximum number of queued requests per model; further requests are rejected."""
    max_streams: Positive = 8
    """Maximum number of concurrent text generations per model."""
    batch_variant: bool = False
    """Also batch models whose results depend on the other requests in the batch (dynamic int8 activations
    share one scale per batch). Results then vary between runs."""


class ServingConfig(Document):
    """Configuration of a server."""

    LABEL: ClassVar[str] = "serving"

    name: Id = "serving"
    """Name under which it is registered."""
    tiers: Annotated[dict[Id, TierConfig], Field(min_length=1)]
    """Tiers by the name that clients request."""
    memory_budget_gb: PositiveReal | None = None
    """Maximum memory of all loaded models, measured as PSS (GB = 10^9 bytes); null sets no limit."""
    isolation: Literal["process", "thread"] = "process"
    """`process` runs each model in its own worker process: unloading returns all memory and a crash affects
    only that model, at the cost of about 0.1 GB per model (0.4 GB with PyTorch) and 0.2 ms per request.
    `thread` runs all models in the server process: no overhead, but unloading may not return all memory and a
    crash ends the server."""
    threads: Positive | None = None
    """Number of CPU threads per model; null uses all CPUs available to the process."""
    batching: BatchingConfig = BatchingConfig()
    """Dynamic batching of requests to one model."""
    load_timeout_s: PositiveReal = 600.0
    """Timeout of loading a model, for isolation `process` only: a thread cannot be interrupted."""
    step_grace_s: PositiveReal | None = 5.0
    """Watchdog, for isolation `process` only: time after a request's timeout until a worker that is still at
    the same step of it is ended and its model loaded again; null never ends it."""
    drain_timeout_s: PositiveReal = 30.0
    """Time that running requests are given to finish when their model is replaced or the server stops."""

    @property
    def memory_budget_bytes(self) -> int | None:
        """The budget in bytes."""
        return None if self.memory_budget_gb is None else int(self.memory_budget_gb * 1e9)

    @property
    def resolved(self) -> bool:
        """Whether it can be served: every tier has its files' place and digest."""
        return all(tier.resolved for tier in self.tiers.values())

    @classmethod
    def _look_beside(cls, raw: dict[str, Any], folder: Path) -> None:
        """Of model folders."""
        tiers = raw.get("tiers")
        for tier in tiers.values() if isinstance(tiers, dict) else ():
            model = tier.get("model") if isinstance(tier, dict) else None
            if isinstance(model, str) and model and not exists(model) and is_folder(folder / model):
                tier["model"] = str(folder / model)

    def to_yaml(self) -> str:
        """The text of a file that reads back as this configuration."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


load = ServingConfig.load


def resolve(config: ServingConfig, store: Store, resolver: Resolver | None = None) -> ServingConfig:
    """Find every tier's model, fetching it where needed, and fill in place, digest, size, task and runtime.

    Each model is hashed once. `resolver` finds those that begin with `models:/`.

    Raises:
        RecipeError: models that cannot be found or trusted, do not have the task that is configured, or
            not the files that a digest pins; all are listed at once.
    """
    found: dict[str, sources.Source | PressoirError] = {}
    tiers, problems = dict[str, TierConfig](), list[str]()
    for name, tier in config.tiers.items():
        if tier.model not in found:
            found[tier.model] = _find(tier.model, store, resolver)
        source = found[tier.model]
        if isinstance(source, PressoirError):
            problems.append(f"tiers.{name}.model: {source}")
            continue
        try:
            tiers[name] = _filled(tier, source, store)
        except PressoirError as error:
            problems.append(f"tiers.{name}.{error}")
    if problems:
        number = f"{len(problems)} error{'s' if len(problems) > 1 else ''}"
        raise RecipeError("\n".join([f"{config.name} has {number}:", *(f"  {text}" for text in problems)]))
    return config.model_copy(update={"tiers": tiers})


def nearest_tier(name: str, config: ServingConfig) -> str:
    """A hint for a tier name that does not exist."""
    near = nearest(name, config.tiers)
    known = ", ".join(sorted(config.tiers))
    return f"did you mean {near!r}? available: {known}" if near else f"available: {known}"


def _find(reference: str, store: Store, resolver: Resolver | None) -> sources.Source | PressoirError:
    try:
        if reference.startswith(EXTERNAL):
            if resolver is None:
                return RecipeError(
                    f"{reference} can only be resolved by `pressoir deploy`; serve the deployed configuration"
                )
            reference = resolver(reference)
        return sources.resolve(reference, store)
    except PressoirError as error:
        return error


def _filled(tier: TierConfig, source: sources.Source, store: Store) -> TierConfig:
    if tier.digest not in (None, source.digest):
        raise RecipeError(
            f"digest: {tier.digest} is specified, but the files of {tier.model} have {source.digest}; use "
            "other files or change the digest"
        )
    served = served_tasks(source.folder)
    task = tier.task if tier.task in served else served[0]
    if tier.task not in (None, task):
        raise RecipeError(f"task: {tier.model} is for {task}, not for {tier.task}; omit the task")
    if misfits := tier.misfits(task):
        raise RecipeError("; ".join(misfits))
    real, root = source.folder.resolve(), store.root.resolve()
    stored = real.parent.parent == root
    return tier.model_copy(
        update={
            "task": task,
            "runtime": runtime_of(source.folder, tier.runtime),
            "digest": source.digest,
            "source": f"store:{real.relative_to(root).as_posix()}" if stored else str(real),
            "size_bytes": sum(path.stat().st_size for path in model_files(source.folder)),
        }
    )
