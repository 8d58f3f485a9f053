"""The models in memory: loaded once for all requests, leased while in use, evicted when idle.

- **Single flight.** Requests for a model that is being loaded wait for that load. If it fails, all of them
  fail, and the next request tries again.
- **Leases.** A request holds a lease of its model. A leased model is never evicted; when it is replaced, it
  stays until its last lease ends.
- **Budget.** Bytes of PSS of all models together, those that are on their way out included. Before a load
  the least recently used idle models go, as many as needed; where that is not enough, the load waits for
  leases to end. How much a model takes is estimated from its files until it was measured once. Models that
  grow while they work are measured when they are idle again, and idle ones make room then, too.
- **Death.** A model that ends by itself leaves the pool at once; the next lease loads it again.

Everything happens on one event loop, so between two awaits nothing changes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Generic

from pressoir.serving.errors import BudgetError, ClosingError
from pressoir.serving.pool.pool_entry import Event, ModelT, PoolEntry
from pressoir.serving.pool.sharing import ModelSpec

BASE_BYTES = {"onnxruntime": 120_000_000, "pytorch": 380_000_000}
"""What a worker takes beside its model's files, before it was measured."""

_MEASURE_S = 1.0  # between two looks at what a model that is in use takes
log = logging.getLogger("pressoir")


class ModelPool(Generic[ModelT]):
    """Loaded models by the key of their `ModelSpec`. `open_model` loads one, and has it answer once."""

    def __init__(
        self,
        open_model: Callable[[ModelSpec], Awaitable[ModelT]],
        budget_bytes: int | None = None,
        pinned: Collection[str] = (),
        on_event: Callable[[Event, ModelSpec], None] = lambda event, spec: None,
    ) -> None:
        self._open, self.budget_bytes, self._on_event = open_model, budget_bytes, on_event
        self.pinned = set(pinned)
        """Keys that are never evicted."""
        self.entries: dict[str, PoolEntry[ModelT]] = {}
        """What can be leased now, by key."""
        self._leaving: set[PoolEntry[ModelT]] = set()
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._queued: set[str] = set()  # loads that wait for room
        self._waiters: dict[str, int] = {}
        self._reserved: dict[object, int] = {}  # room for loads under way
        self._known_bytes: dict[str, int] = {}
        self._clock = 0
        self._changed = asyncio.Event()  # the next one is set at the next change
        self._admission = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def resident_bytes(self) -> int:
        """What all models take, as last measured; those on their way out included."""
        return sum(entry.pss_bytes for entry in (*self.entries.values(), *self._leaving))

    @asynccontextmanager
    async def lease(self, spec: ModelSpec) -> AsyncIterator[ModelT]:
        """A block in which a model stays loaded; it is loaded first where it is not.

        Raises:
            LoadError: it cannot be loaded. BudgetError: there can be no room for it.
            ClosingError: the pool was closed.
        """
        entry = await self._acquire(spec)
        try:
            yield entry.model
        finally:
            entry.leases -= 1
            if not entry.leases:
                self._notify()
                if self.budget_bytes is not None and time.monotonic() - entry.measured > _MEASURE_S:
                    self._start(self._idle(entry))

    async def load(self, spec: ModelSpec) -> None:
        """Load a model without using it; raises as `lease`."""
        async with self.lease(spec):
            pass

    async def replace(self, spec: ModelSpec, drain_s: float) -> None:
        """Load a model again and replace the loaded one, which ends when it is free.

        There must be room for both. If the new one cannot be loaded, the old one stays.

        Raises:
            LoadError: as `lease`; a budget is not waited for.
        """
        with self._wanted(spec.key):  # nor is the old one evicted to make room
            new = await self._load(spec, wait=False)
        if (old := self._put(new)) is not None:
            self._on_event("replaced", spec)
            await self._retire(old, drain_s)

    async def unload(self, key: str, drain_s: float) -> bool:
        """Take a model out of the pool, pinned or not, and end it when it is free; False: it was not there.

        Requests that still hold a lease after `drain_s` seconds lose the model.
        """
        old = self.entries.pop(key, None)
        if old is not None:
            self._on_event("unloaded", old.spec)
            await self._retire(old, drain_s)
        return old is not None

    def expected_bytes(self, spec: ModelSpec) -> int:
        """What a model takes when it was just loaded: as the last time, else by the size of its files."""
        return self._known_bytes.get(spec.key, BASE_BYTES[spec.runtime] + spec.size_bytes)

    async def measure(self) -> None:
        """Measure all models, and make room if they take more than the budget."""
        entries = [*self.entries.values(), *self._leaving]
        for entry, bytes_ in zip(
            entries, await asyncio.gather(*(entry.model.measure() for entry in entries)), strict=True
        ):
            entry.pss_bytes = bytes_
        while self.budget_bytes is not None and self.resident_bytes > self.budget_bytes:
            victim = self._victim()
            if victim is None:
                return
            await self._evict(victim)

    async def close(self, drain_s: float = 0.0) -> None:
        """End all models, each when it is free or after `drain_s` seconds; nothing is leased any more."""
        self._closed = True
        self._notify()
        for task in self._loads.values():
            task.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)
        entries = list(self.entries.values())
        self.entries.clear()
        await asyncio.gather(*(self._retire(entry, drain_s) for entry in entries))
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _acquire(self, spec: ModelSpec) -> PoolEntry[ModelT]:
        with self._wanted(spec.key):
            while True:
                self._check_open()
                entry = self.entries.get(spec.key)
                if entry is not None and not entry.model.ended.done():
                    entry.leases, entry.used = entry.leases + 1, self._now()
                    return entry
                await self._wait_for_load(spec)

    @contextmanager
    def _wanted(self, key: str) -> Iterator[None]:
        """A block in which somebody waits for a model, so that it is not evicted."""
        self._waiters[key] = self._waiters.get(key, 0) + 1
        try:
            yield
        finally:
            self._waiters[key] -= 1
            if not self._waiters[key]:
                del self._waiters[key]
                if key in self._queued and key in self._loads:
                    self._loads[key].cancel()  # it waits for room, and no request wants it any more

    async def _wait_for_load(self, spec: ModelSpec) -> None:
        """Until a load of a model, begun here unless one is under way, has ended; raises what it raised."""
        task = self._loads.get(spec.key)
        if task is None:
            task = self._loads[spec.key] = asyncio.create_task(self._first_load(spec))
            task.add_done_callback(lambda task: self._loaded(spec.key, task))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            us = asyncio.current_task()
            if us is None or us.cancelling() or not task.done():
                raise
            # The load was cancelled, not we.

    async def _first_load(self, spec: ModelSpec) -> None:
        if (old := self._put(await self._load(spec))) is not None:  # it was replaced while this load ran
            self._start(self._retire(old, None))

    def _loaded(self, key: str, task: asyncio.Task[None]) -> None:
        del self._loads[key]
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it when no request waits

    async def _load(self, spec: ModelSpec, wait: bool = True) -> PoolEntry[ModelT]:
        """Make room, load, measure. The caller puts it into the pool without waiting for anything."""
        reservation = object()
        try:
            await self._reserve(reservation, spec, wait)
            model = await self._open(spec)
            try:
                bytes_ = await model.measure()
                self._known_bytes[spec.key] = bytes_
                self._check_fits(spec, bytes_)
                self._check_open()
            except BaseException:
                await asyncio.shield(model.close())
                raise
        except Exception:
            self._on_event("failed", spec)
            raise
        finally:
            self._reserved.pop(reservation, None)
            self._notify()
        log.info("loaded %s: %.0f MB", spec.name, bytes_ / 1e6)
        return PoolEntry(spec, model, bytes_)

    async def _reserve(self, reservation: object, spec: ModelSpec, wait: bool) -> None:
        """Keep room for a model, once there is some."""
        self._check_open()
        if self.budget_bytes is None:
            return
        self._check_fits(spec, self._need(spec))
        self._queued.add(spec.key)
        try:
            async with self._admission:
                while not await self._has_room(spec):
                    if not wait:
                        raise BudgetError(
                            f"the memory budget of {self.budget_bytes / 1e6:.0f} MB has no room for a "
                            f"second instance of {spec.name} (about {self._need(spec) / 1e6:.0f} MB) next "
                            "to the first; increase memory_budget_gb"
                        )
                    await self._changed.wait()
                self._reserved[reservation] = self._need(spec)
        finally:
            self._queued.discard(spec.key)

    async def _has_room(self, spec: ModelSpec) -> bool:
        """Whether the budget has room, now or when idle models have gone, which they have then."""
        assert self.budget_bytes is not None
        await self.measure()
        while self.resident_bytes + sum(self._reserved.values()) + self._need(spec) > self.budget_bytes:
            victim = self._victim()
            if victim is None:
                return False
            await self._evict(victim)
        return True

    def _need(self, spec: ModelSpec) -> int:
        """Room to make for a model. What is only estimated may not refuse what may fit."""
        if self.budget_bytes is None or spec.key in self._known_bytes:
            return self.expected_bytes(spec)
        return min(self.expected_bytes(spec), self.budget_bytes - self._pinned_bytes(spec))

    def _pinned_bytes(self, spec: ModelSpec) -> int:
        """What pinned models take, that of `spec` not counted."""
        others = self.pinned - {spec.key}
        return sum(entry.pss_bytes for key, entry in self.entries.items() if key in others)

    def _check_fits(self, spec: ModelSpec, need: int) -> None:
        """Refuse what cannot be loaded even when everything is evicted that may be."""
        pinned = self._pinned_bytes(spec)
        if self.budget_bytes is not None and pinned + max(need, 1) > self.budget_bytes:
            beside = f" beside {pinned / 1e6:.0f} MB of pinned models" if pinned else ""
            takes = f"needs {need / 1e6:.0f} MB" if need > 0 else "needs memory"
            raise BudgetError(
                f"{spec.name} {takes}, but the memory budget of {self.budget_bytes / 1e6:.0f} MB has no "
                f"room{beside}; increase memory_budget_gb, or serve a smaller model"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ClosingError("the service is shutting down; send the request to another server")

    def _now(self) -> int:
        self._clock += 1
        return self._clock

    def _put(self, entry: PoolEntry[ModelT]) -> PoolEntry[ModelT] | None:
        """Put a model into the pool; return the one whose place it took, which is to be retired."""
        old = self.entries.get(entry.spec.key)
        self.entries[entry.spec.key] = entry
        entry.used = self._now()
        entry.model.ended.add_done_callback(lambda _: self._ended(entry))
        self._on_event("loaded", entry.spec)
        if self.budget_bytes is not None and self.resident_bytes > self.budget_bytes:
            self._start(self.measure())  # it took more than was expected
        return old

    def _ended(self, entry: PoolEntry[ModelT]) -> None:
        """A model ended: by itself, if it is still in the pool."""
        if self.entries.get(entry.spec.key) is entry:
            del self.entries[entry.spec.key]
            self._on_event("died", entry.spec)
        self._notify()

    def _victim(self) -> PoolEntry[ModelT] | None:
        """The idle model that was used the longest ago."""
        idle = [
            entry
            for key, entry in self.entries.items()
            if not entry.leases and key not in self.pinned and key not in self._waiters
        ]
        return min(idle, key=lambda entry: entry.used, default=None)

    async def _evict(self, victim: PoolEntry[ModelT]) -> None:
        del self.entries[victim.spec.key]
        log.info("evicting %s: %.0f MB", victim.spec.name, victim.pss_bytes / 1e6)
        self._on_event("evicted", victim.spec)
        await self._retire(victim, 0.0)

    async def _retire(self, old: PoolEntry[ModelT], drain_s: float | None) -> None:
        """End a model that was taken out of the pool, once it is unused. Shielded from cancellation."""
        self._leaving.add(old)
        await asyncio.shield(self._start(self._drain(old, drain_s)))

    async def _drain(self, old: PoolEntry[ModelT], drain_s: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while old.leases:
                    await self._changed.wait()
        try:
            await old.model.close()
        finally:
            self._leaving.discard(old)
            self._notify()

    async def _idle(self, entry: PoolEntry[ModelT]) -> None:
        """The last lease of a model ended: what it takes now counts."""
        entry.measured = time.monotonic()
        entry.pss_bytes = await entry.model.measure() or entry.pss_bytes
        if self.budget_bytes is not None and self.resident_bytes > self.budget_bytes:
            await self.measure()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
