"""What a run takes from outside the store, each looked up, hashed and read once: models, data files, texts.

The check before a run, its plan and the run itself ask the same `Sources`, so that a model of gigabytes is
hashed once, and data that was read to be checked is not read again to be stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pressoir.formats.folder import declared_by
from pressoir.pipeline.keys import stage_key
from pressoir.sources import resolve
from pressoir.sources.resolve import Source
from pressoir.stage import StageKeyParts, load_stage
from pressoir.store.artifact import StageKey
from pressoir.store.store import Store

_shared: ContextVar[Sources | None] = ContextVar("sources", default=None)


class Sources:
    """The resolved sources of one run; what failed is tried again when it is asked for again."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._models: dict[str, Source] = {}
        self._parts: dict[tuple[str, str], StageKeyParts] = {}
        self._prepared: dict[tuple[str, str, int], Any] = {}

    def model(self, reference: str) -> Source:
        """The model `reference`, found, checked and hashed.

        Raises:
            SourceError, UnreachableError: see `resolve.resolve`.
        """
        if reference not in self._models:
            self._models[reference] = resolve.resolve(reference, self.store)
        return self._models[reference]

    def key(
        self,
        stage: str,
        config: BaseModel,
        inputs: Mapping[str, str],
        seed: int,
        folders: Iterable[Path] = (),
        threads: int | None = None,
    ) -> StageKey:
        """See `stage_key`; what the configuration names is hashed once.

        `folders` are those of the inputs: a model of another package's architecture or task makes that
        package part of the key. `threads` are those that the stage will use.
        """
        cache_key = (stage, config.model_dump_json())
        if cache_key not in self._parts:
            self._parts[cache_key] = load_stage(stage).key(config)
        origins = sorted({str(origin) for folder in folders for origin in declared_by(folder)})
        return stage_key(stage, config, inputs, seed, self._parts[cache_key], origins, threads)

    def prepare(self, stage: str, config: BaseModel, seed: int) -> Any:
        """What `Stage.prepare` returns, kept until the stage runs; None where it has none."""
        cache_key = (stage, config.model_dump_json(), seed)
        if cache_key not in self._prepared:
            prepare = load_stage(stage).prepare
            self._prepared[cache_key] = prepare and prepare(config, seed)
        return self._prepared[cache_key]

    def take(self, stage: str, config: BaseModel, seed: int) -> Any:
        """What was prepared for a stage, given away; None where nothing was."""
        return self._prepared.pop((stage, config.model_dump_json(), seed), None)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Let flows that are called inside this block use these sources.

        They are not a flow's parameter: those are the user's, and must be JSON.
        """
        token = _shared.set(self)
        try:
            yield
        finally:
            _shared.reset(token)


def current_sources() -> Sources:
    """Those that the caller shares, or new ones for the default store."""
    shared, store = _shared.get(), Store()
    return shared if shared is not None and shared.store.home == store.home else Sources(store)
