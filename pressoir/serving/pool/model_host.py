"""The models behind a service's tiers: found, loaded, replaced, unloaded, and what they take.

A model counts as loaded once it has answered: its files have the resolved digest, it was loaded and warmed
up, and a small request went all the way through. Only then does it replace another; until then, or if any of
this fails, the other one stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pressoir.errors import PressoirError
from pressoir.extensions.task import task, task_offering
from pressoir.formats.folder import check_model_folder
from pressoir.serving.config import ServingConfig, nearest_tier
from pressoir.serving.errors import LoadError, ServingError, UnknownTierError
from pressoir.serving.pool.model_handle import ModelHandle
from pressoir.serving.pool.observer import Observer
from pressoir.serving.pool.pool import ModelPool
from pressoir.serving.pool.pool_entry import Event
from pressoir.serving.pool.process import ProcessClient
from pressoir.serving.pool.sharing import ModelSpec, Sharing, Tier, analyse
from pressoir.serving.pool.statistics import labels, statistics
from pressoir.serving.pool.thread import ThreadClient
from pressoir.serving.pool.worker_client import WorkerClient
from pressoir.sources import resolve
from pressoir.store.store import Store
from pressoir.system.runtime import available_cpus

log = logging.getLogger("pressoir")


class ModelHost:
    """The models of a resolved configuration. Raises RecipeError where it is not resolved."""

    def __init__(self, config: ServingConfig, store: Store, observer: Observer) -> None:
        self._serve(config, analyse(config))
        self._store, self._observer = store, observer
        self._reloading = asyncio.Lock()
        self._target = config  # what models are loaded for, while another still serves
        self.ready = False
        """Whether everything was loaded that is to be when the server starts."""
        self.pool: ModelPool[ModelHandle] = ModelPool(
            self._open, config.memory_budget_bytes, _pinned(config, self.sharing), self._on_event
        )

    def _serve(self, config: ServingConfig, sharing: Sharing) -> None:
        self.config, self.sharing = config, sharing
        self.tiers: Mapping[str, Tier] = {
            name: Tier(name, tier, sharing.by_tier[name], sharing) for name, tier in config.tiers.items()
        }

    async def start(self) -> None:
        """Load what is pinned, then the rest as far as the budget has room; log the analysis.

        Raises:
            LoadError: a model cannot be loaded.
        """
        for line in self.sharing.lines():
            log.info("%s", line)
        for line in self.sharing.warnings():
            log.warning("%s", line)
        if self.config.isolation == "thread":
            log.warning(
                "isolation is thread: a request that does not end cannot be stopped, and holds up all others"
            )
        await asyncio.gather(*(self.pool.load(spec) for spec in self._at_start()))
        self.ready = True

    async def close(self) -> None:
        """End all models, when they are free or `drain_timeout_s` is over."""
        self.ready = False
        await self.pool.close(self.config.drain_timeout_s)

    def lookup(self, tier: str | Tier | None, operation: str | None = None) -> Tier:
        """The tier of a request: the named one, or without a name the only one with `operation`.

        A tier that was looked up before is returned as it is, unless the server was reloaded in between.

        Raises:
            UnknownTierError: there is no such tier, or it has no such operation, or there are several.
        """
        if isinstance(tier, Tier):
            return tier if tier.sharing is self.sharing else self.lookup(tier.name, operation)
        if tier is None:
            return self._only(operation)
        found = self.tiers.get(tier)
        if found is None:
            raise UnknownTierError(f"there is no tier {tier!r}; {nearest_tier(tier, self.config)}")
        if not _offers(found, operation):
            wanted = task_offering(operation or "").name
            raise UnknownTierError(f"tier {tier!r} is for {found.spec.task}, not for {wanted}")
        return found

    def is_loaded(self, tier: str | Tier) -> bool:
        """Whether the model of a tier is in memory; raises as `lookup`."""
        return self.lookup(tier).spec.key in self.pool.entries

    def has_files(self, tier: str | Tier) -> bool:
        """Whether the files of a tier's model are there and whole, by their headers; raises as `lookup`."""
        spec = self.lookup(tier).spec
        try:
            check_model_folder(self._folder(spec), spec.name)
        except (PressoirError, OSError):
            return False
        return True

    async def load(self, tier: str | Tier) -> None:
        """Load the model of a tier; raises as `lookup` and as `ModelPool.lease`."""
        await self.pool.load(self.lookup(tier).spec)

    async def unload(self, tier: str | Tier) -> bool:
        """Unload the model of a tier, and so of those that share it, when it is free.

        Returns whether it was loaded. The next request loads it again. Raises as `lookup`.
        """
        return await self.pool.unload(self.lookup(tier).spec.key, self.config.drain_timeout_s)

    async def replace(self, tier: str | Tier) -> None:
        """Reload the model of a tier; raises as `lookup` and as `ModelPool.replace`."""
        await self.pool.replace(self.lookup(tier).spec, self.config.drain_timeout_s)

    async def reload(self, config: ServingConfig | None = None) -> None:
        """Switch to another configuration; without one, reload every loaded model. No request is lost.

        Models that stay the same stay loaded. Of the new ones, those are loaded that are pinned or replace a
        loaded one. Budget, batching, isolation and threads apply to models that are loaded from now on.

        Raises:
            LoadError: a new model cannot be loaded; everything is as it was.
            RecipeError: the configuration is not resolved; likewise.
        """
        async with self._reloading:
            if config is None:
                await self._renew()
            else:
                await self._change(config, analyse(config))

    async def statistics(self) -> dict[str, Any]:
        """The sharing statistics, freshly measured; see `pressoir.serving.pool.statistics`."""
        await self.pool.measure()
        return statistics(self.sharing, self.pool.entries)

    def gauges(self) -> dict[str, dict[str, int]]:
        """Of each loaded model: `resident_bytes` as last measured, `leases`, and requests `waiting`."""
        names = {model.key: name for name, model in labels(self.sharing).items()}
        return {
            names.get(key, entry.spec.name): {
                "resident_bytes": entry.pss_bytes,
                "leases": entry.leases,
                "waiting": entry.model.waiting,
            }
            for key, entry in self.pool.entries.items()
        }

    def _only(self, operation: str | None) -> Tier:
        fitting = [tier for tier in self.tiers.values() if _offers(tier, operation)]
        if len(fitting) != 1:
            names = ", ".join(tier.name for tier in fitting)
            known = (
                f"specify one of: {names}"
                if fitting
                else f"no tier supports {task_offering(operation or '').name}"
            )
            raise UnknownTierError(f"the request specifies no tier; {known}")
        return fitting[0]

    def _at_start(self) -> list[ModelSpec]:
        """What is pinned, and of the rest what the budget is expected to have room for."""
        chosen, room = list[ModelSpec](), self.config.memory_budget_bytes
        for spec in sorted(self.sharing.models, key=lambda model: model.key not in self.pool.pinned):
            expected = self.pool.expected_bytes(spec)
            if room is None or spec.key in self.pool.pinned or expected <= room:
                chosen.append(spec)
                room = None if room is None else room - expected
            else:
                log.info(
                    "%s will be loaded on its first request: it does not fit in the memory budget now",
                    spec.name,
                )
        return chosen

    async def _renew(self) -> None:
        for entry in list(self.pool.entries.values()):
            await self.pool.replace(entry.spec, self.config.drain_timeout_s)

    async def _change(self, config: ServingConfig, sharing: Sharing) -> None:
        before, budget = set(self.pool.entries), self.pool.budget_bytes
        pinned = _pinned(config, sharing)
        old = self.sharing.by_tier
        wanted = [
            spec
            for spec in sharing.models
            if spec.key in pinned or any(tier in old and old[tier].key in before for tier in spec.tiers)
        ]
        begun = list[ModelSpec]()
        self._target, self.pool.budget_bytes = config, config.memory_budget_bytes
        self.pool.pinned |= pinned | before  # nothing in use is evicted for what may yet fail
        try:
            for spec in wanted:
                if spec.key not in before:
                    begun.append(spec)
                    await self.pool.load(spec)
        except BaseException:
            self._target, self.pool.budget_bytes = self.config, budget
            self.pool.pinned = _pinned(self.config, self.sharing)
            for spec in begun:
                await self.pool.unload(spec.key, 0.0)
            raise
        drain = self.config.drain_timeout_s
        self._serve(config, sharing)
        self.pool.pinned = pinned
        kept = {spec.key for spec in sharing.models}
        await asyncio.gather(*(self.pool.unload(key, drain) for key in set(self.pool.entries) - kept))

    async def _open(self, spec: ModelSpec) -> ModelHandle:
        """Load a model and have it answer."""
        config = self._target
        try:
            folder = await asyncio.to_thread(self._folder, spec)
        except PressoirError as error:
            raise LoadError(str(error)) from error
        job = {
            "name": spec.name,
            "folder": str(folder),
            "digest": spec.digest,
            "task": spec.task,
            "runtime": spec.runtime,
            "threads": config.threads or available_cpus(),
        }
        client: WorkerClient
        if config.isolation == "process":
            several = len(self.sharing.models) > 1
            client = await ProcessClient.open(
                job,
                config.load_timeout_s,
                side_by_side=several,
                grace_s=config.step_grace_s,
                on_stuck=partial(self._on_event, "stuck", spec),
            )
        else:
            client = await ThreadClient.open(job)
        try:
            async with asyncio.timeout(config.load_timeout_s):
                await client.call("example")
        except (ServingError, TimeoutError) as error:
            await client.close()
            raise LoadError(f"{spec.name} was loaded, but its first request failed: {error}") from error
        except BaseException:
            await asyncio.shield(client.close())
            raise
        watch: Callable[[int, float, float], None] = partial(self._observer.batch, spec.name)
        return ModelHandle(client, config.batching, watch)

    def _folder(self, spec: ModelSpec) -> Path:
        return resolve.locate(spec.source, self._store, fetch=False)

    def _on_event(self, event: Event, spec: ModelSpec) -> None:
        self._observer.event(event, spec.name)


def _pinned(config: ServingConfig, sharing: Sharing) -> set[str]:
    return {sharing.by_tier[name].key for name, tier in config.tiers.items() if tier.pinned}


def _offers(tier: Tier, operation: str | None) -> bool:
    return operation is None or operation in task(tier.spec.task).operations
