"""A loaded model with its queues, shared by all tiers that use it: the server's side.

Texts go through a `BatchQueue`. Generation and transcription, which take many steps, run a few at a time
under a `ConcurrencyLimiter`. Both queues are bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pressoir.serving.config import BatchingConfig
from pressoir.serving.pool.batching import BatchQueue
from pressoir.serving.pool.retry_estimate import RetryEstimate
from pressoir.serving.pool.worker_client import WorkerClient

APART = 8
"""Texts in a message to a model that computes them one by one: an answer waits for those of its message."""


class ModelHandle:
    """One loaded model. `watch` is called after each batch, see `BatchQueue`."""

    def __init__(
        self, client: WorkerClient, config: BatchingConfig, watch: Callable[[int, float, float], None]
    ) -> None:
        self.client, self.info = client, client.info
        self.ended = client.ended
        together = config.enabled and (client.info["batch_invariant"] or config.batch_variant)
        self._max_tokens = config.max_tokens if together else 0  # of what the model computes at once
        self.queue = BatchQueue(
            self._run,
            max_tokens=config.max_tokens,
            max_delay_s=config.max_delay_ms / 1000 if together else 0.0,
            max_queue=config.max_queue,
            max_texts=None if together else APART,
            together=config.enabled,
            watch=watch,
        )
        self.limiter = ConcurrencyLimiter(config.max_streams, config.max_queue)

    @property
    def waiting(self) -> int:
        """Requests that have not been begun."""
        return len(self.queue) + self.limiter.waiting

    async def answer(self, operation: str, texts: Sequence[str], **settings: Any) -> Sequence[Any]:
        """An answer for each text: probabilities, a vector, or a translation."""
        key = (operation, tuple(sorted(settings.items())))
        return await self.queue.submit(key, texts, settings.get("max_length"))

    async def measure(self) -> int:
        """See `WorkerClient.measure`."""
        return await self.client.measure()

    async def close(self) -> None:
        """See `WorkerClient.close`."""
        await self.client.close()

    async def _run(self, key: Hashable, texts: Sequence[str]) -> Sequence[Any]:
        assert isinstance(key, tuple)
        operation, settings = key
        arguments = {**dict(settings), "max_tokens": self._max_tokens}
        message = await self.client.call(operation, texts=texts, **arguments)
        if message.array is not None:
            return list(message.array)
        answers: Sequence[Any] = next(iter(message.body.values()))
        return answers


class ConcurrencyLimiter:
    """Runs at most `count` requests at a time; at most `max_waiting` others wait."""

    def __init__(self, count: int, max_waiting: int) -> None:
        self._count, self._max_waiting = count, max_waiting
        self._free = asyncio.Semaphore(count)
        self.waiting = 0
        self._retry = RetryEstimate()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A block for which a slot is taken.

        Raises:
            QueueFullError: too many wait for one.
        """
        if self._free.locked() and self.waiting >= self._max_waiting:
            raise self._retry.refusal(self.waiting, 1 + self.waiting / self._count)
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._free.release()
            self._retry.add(time.monotonic() - start)
