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
from pressoir.formats.folder import Runtime, Task, model_files
from pressoir.registry.catalogue import Id, Sha256, nearest
from pressoir.sources import resolve as sources
from pressoir.store.store import Store

EXTERNAL = "models:/"
"""How a model of an outer registry begins, which only a resolver of that registry can find."""
DEFAULT_NEW_TOKENS = 256
"""Most tokens that a causal LM goes on, where its tier does not say."""

Resolver = Callable[[str], str]
"""Makes a reference that `pressoir.sources.resolve` knows (`store:…`, a folder) of a `models:/name@alias`."""

LIMITS = ("max_length", "max_new_tokens", "num_beams", "max_batch", "max_audio_s", "timeout_s")
"""Settings that a request may lower and not raise."""
_CHOICES = ("source_language", "target_language", "temperature", "top_k", "top_p", "stop", "seed")
_TEXTS = {"max_length", "max_batch"}
_USED: dict[Task, set[str]] = {
    "text-classification": _TEXTS,
    "feature-extraction": _TEXTS,
    "translation": {*_TEXTS, "max_new_tokens", "num_beams", "source_language", "target_language"},
    "causal-lm": {"max_length", "max_new_tokens", "temperature", "top_k", "top_p", "stop", "seed"},
    "automatic-speech-recognition": {"max_new_tokens", "num_beams", "max_audio_s", "source_language"},
}


class TierSettings(Config):
    """What a tier sets on each request. Of a limit a request may ask for less, never for more."""

    max_length: Positive | None = None
    """Most tokens of a text: a longer one is cut before it goes in (a causal LM's prompt is refused instead,
    and counts together with what follows it); what a translation gives is no longer, either, unless
    `max_new_tokens` says so. Null leaves it to the model."""
    max_new_tokens: Positive | None = None
    """Most tokens of an answer. Null: 256 of a causal LM, else what the model's configuration says."""
    num_beams: Annotated[int, Field(ge=1, le=16)] = 1
    """Beams of translation and of Whisper; 1 is greedy."""
    max_batch: Positive = 32
    """Most texts in one request."""
    max_audio_s: PositiveReal = 120.0
    """Longest sound, seconds."""
    timeout_s: PositiveReal = 60.0
    """Longest wait for an answer, waiting and loading included; of a stream, for the last piece."""
    source_language: str | None = None
    """Language of a text or of speech where a request names none."""
    target_language: str | None = None
    """Language to translate into where a request names none."""
    temperature: NotNegative = 0.0
    """Sampling where a request does not say; 0 always takes the most probable token."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sampling among that many tokens; 0: all."""
    top_p: Fraction = 1.0
    """Sampling among the most probable tokens that have this probability together."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a continuation."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of sampling where a request has none."""

    def unused(self, task: Task) -> list[str]:
        """Settings that are given, and mean nothing to `task`."""
        defaults = type(self)()
        return [
            name
            for name in (*LIMITS, *_CHOICES)
            if name != "timeout_s"
            and name not in _USED[task]
            and getattr(self, name) != getattr(defaults, name)
        ]


class TierConfig(Config):
    """One name that clients ask for. The last three fields are filled in by `resolve`."""

    model: Annotated[str, Field(min_length=1)]
    """Registry id, folder, hub id, `store:…`, or `models:/name@alias`."""
    task: Task | None = None
    """Null takes what the model's configuration says it is."""
    runtime: Runtime | None = None
    """Null takes ONNX Runtime where the folder has a graph, else PyTorch."""
    settings: TierSettings = TierSettings()
    """Laid over every request."""
    pinned: bool = False
    """Loaded when the server starts, and never evicted."""
    digest: Sha256 | None = None
    """SHA-256 over the model's files. Given by hand, it pins them: others are refused."""
    source: str | None = None
    """Where the files are: a folder, or `store:stage/key`."""
    size_bytes: Annotated[int, Field(ge=0)] | None = None
    """Size of the model's files."""

    @model_validator(mode="after")
    def _settings_fit(self) -> TierConfig:
        return checked(self, [] if self.task is None else self.misfits(self.task))

    def misfits(self, task: Task) -> list[str]:
        """What is wrong with the settings of a model of that task."""
        return [
            f"settings.{name} means nothing to {task}; leave it out" for name in self.settings.unused(task)
        ]

    @property
    def resolved(self) -> bool:
        """Whether it can be served."""
        return None not in (self.task, self.runtime, self.digest, self.source, self.size_bytes)


class BatchingConfig(Config):
    """How requests to one model are put together."""

    enabled: bool = True
    """Off: each request goes through the model alone."""
    max_tokens: Positive = 4096
    """Most tokens of a batch, padding counted: its texts times the longest of them."""
    max_delay_ms: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """Longest that a request waits for others when the model is free; nobody waits where none is running."""
    max_queue: Positive = 128
    """Most requests that wait for one model; more are turned away."""
    max_streams: Positive = 8
    """Most continuations that one model writes at once."""
    batch_variant: bool = False
    """Batch also models whose answer depends on what they are batched with (dynamic int8 activations: one
    scale for all rows), which makes answers differ from run to run."""


class ServingConfig(Document):
    """A whole server."""

    LABEL: ClassVar[str] = "serving"

    name: Id = "serving"
    """Name it is registered by."""
    tiers: Annotated[dict[Id, TierConfig], Field(min_length=1)]
    """What clients can ask for."""
    memory_budget_gb: PositiveReal | None = None
    """Most memory of all loaded models together, measured as PSS (10^9 bytes); null: no limit."""
    isolation: Literal["process", "thread"] = "process"
    """`process`: a worker process for each model. Unloading gives all its memory back, and a crash takes
    nobody with it; it costs the interpreter and the libraries once a model (about 0.1 GB, with PyTorch
    0.4 GB), and about 0.2 ms a request. `thread`: all models in the server's own process, which costs
    neither; unloading gives back what the allocator returns, and a crash ends the server."""
    threads: Positive | None = None
    """CPU threads of each model; null takes the CPUs really available."""
    batching: BatchingConfig = BatchingConfig()
    """How requests to one model are put together."""
    load_timeout_s: PositiveReal = 600.0
    """Longest that loading one model may take (with isolation `process`: a thread cannot be ended)."""
    drain_timeout_s: PositiveReal = 30.0
    """How long requests in flight may go on when their model is replaced, or the server stops."""

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
            if isinstance(model, str) and model and not Path(model).exists():
                beside = folder / model
                if beside.is_dir():
                    tier["model"] = str(beside)

    def to_yaml(self) -> str:
        """The text of a file that reads back as this configuration."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


load = ServingConfig.load


def resolve(config: ServingConfig, store: Store, resolver: Resolver | None = None) -> ServingConfig:
    """Find every tier's model, fetching it where needed, and fill in place, digest, size, task and runtime.

    Each model is hashed once. `resolver` finds those that begin with `models:/`.

    Raises:
        RecipeError: models that cannot be found or trusted, are not of the task that is asked of them, or
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
    """What to say to somebody who asked for a tier that is not there."""
    near = nearest(name, config.tiers)
    known = ", ".join(sorted(config.tiers))
    return f"did you mean {near!r}? there are: {known}" if near else f"there are: {known}"


def _find(reference: str, store: Store, resolver: Resolver | None) -> sources.Source | PressoirError:
    try:
        if reference.startswith(EXTERNAL):
            if resolver is None:
                return RecipeError(f"{reference} is resolved by `pressoir deploy`; serve what it wrote")
            reference = resolver(reference)
        return sources.resolve(reference, store)
    except PressoirError as error:
        return error


def _filled(tier: TierConfig, source: sources.Source, store: Store) -> TierConfig:
    from pressoir.formats.folder import runtime_of, task_of

    if tier.digest not in (None, source.digest):
        raise RecipeError(
            f"digest: {tier.digest} is pinned, but the files of {tier.model} have {source.digest}; take the "
            "other files, or the other digest"
        )
    task = task_of(source.folder)
    if tier.task not in (None, task):
        raise RecipeError(f"task: {tier.model} is for {task}, not for {tier.task}; leave the task out")
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
