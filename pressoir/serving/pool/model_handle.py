"""A loaded model with its queues, shared by all tiers that use it: the server's side.

Texts go through a `BatchQueue`: requests of few texts through one, those of many or long ones through
another, which is computed in small steps beside it: a short request does not wait for the end of a long one.
Generation and transcription, which take many steps, run a few at a time
under a `ConcurrencyLimiter`. Both queues are bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pressoir.serving.config import BatchingConfig
from pressoir.serving.pool.batching import BatchQueue, Run, Text, estimate_tokens
from pressoir.serving.pool.retry_estimate import RetryEstimate
from pressoir.serving.pool.worker_client import WorkerClient

APART = 8
"""Texts in a message to a model that computes them one by one: an answer waits for those of its message."""

LONG = 512
"""Tokens of a request of several texts, by the estimate of `estimate_tokens`, from which it is a long one."""
CHARACTERS = 32
"""Characters a token, from which tokenising a text takes longer than computing what is kept of it."""
STEP = 128
"""Tokens that are computed at once of long requests, while short ones have their turn in between."""


class ModelHandle:
    """One loaded model. `watch` is called after each batch, see `BatchQueue`."""

    def __init__(
        self, client: WorkerClient, config: BatchingConfig, watch: Callable[[int, float, float], None]
    ) -> None:
        self.client, self.info = client, client.info
        self.ended = client.ended
        together = config.enabled and (client.info["batch_invariant"] or config.batch_variant)
        self._max_tokens = config.max_tokens if together else 0  # of what the model computes at once
        self.queue, self.long_queue = (
            self._queue(run, config, together, watch) for run in (self._run, self._run_long)
        )
        self.limiter = ConcurrencyLimiter(config.max_streams, config.max_queue)

    def _queue(
        self, run: Run, config: BatchingConfig, together: bool, watch: Callable[[int, float, float], None]
    ) -> BatchQueue:
        return BatchQueue(
            run,
            max_tokens=config.max_tokens,
            max_delay_s=config.max_delay_ms / 1000 if together else 0.0,
            max_queue=config.max_queue,
            max_texts=None if together else APART,
            together=config.enabled,
            watch=watch,
        )

    @property
    def waiting(self) -> int:
        """Requests that have not been begun."""
        return len(self.queue) + len(self.long_queue) + self.limiter.waiting

    async def answer(
        self, operation: str, texts: Sequence[Text], *, until: float | None = None, **settings: Any
    ) -> Sequence[Any]:
        """An answer for each text: probabilities, a vector and its number of tokens, or a translation; the
        last element says whether the text was truncated. `until`: see `WorkerClient.call`."""
        key, longest = (operation, tuple(sorted(settings.items()))), settings.get("max_length")
        tokens = sum(min(count := estimate_tokens(text), longest or count) for text in texts)
        is_long = (len(texts) > 1 and tokens > LONG) or sum(map(_size, texts)) > LONG * CHARACTERS
        queue = self.long_queue if is_long else self.queue
        return await queue.submit(key, texts, longest, until)

    async def measure(self) -> int:
        """See `WorkerClient.measure`."""
        return await self.client.measure()

    async def close(self) -> None:
        """See `WorkerClient.close`."""
        await self.client.close()

    async def _run(self, key: Hashable, texts: Sequence[Text], until: float | None) -> Sequence[Any]:
        return await self._call(key, texts, until, self._max_tokens)

    async def _run_long(self, key: Hashable, texts: Sequence[Text], until: float | None) -> Sequence[Any]:
        return await self._call(key, texts, until, min(self._max_tokens, STEP))

    async def _call(
        self, key: Hashable, texts: Sequence[Text], until: float | None, max_tokens: int
    ) -> Sequence[Any]:
        assert isinstance(key, tuple)
        operation, settings = key
        arguments = {**dict(settings), "max_tokens": max_tokens}
        message = await self.client.call(operation, until=until, texts=texts, **arguments)
        columns = [] if message.array is None else [message.array]
        return list(zip(*columns, *message.body.values(), strict=True))


def _size(text: Text) -> int:
    """Characters, or token ids."""
    return len(text) if isinstance(text, str) else sum(len(p) if isinstance(p, str) else 1 for p in text)


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
