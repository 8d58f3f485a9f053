"""Dynamic batching: requests that come while a model is busy go through it together when it is free again.

**Why.** On a CPU a batch of eight short texts takes far less than eight times as long as one: weights are
read once. **What.** A request that finds the model idle runs at once. Others wait, and when a batch has
ended, the next one is made of those that may be run together (same operation and settings), the longest
waiting first, as long as its tokens, padding counted, stay within a budget. If the batch is not full then,
it waits until its oldest request has waited `max_delay_s`. **Cost.** That delay at most; and answers of
engines whose rows share one activation scale (dynamic int8; `batch_invariant` is False) depend on what they
are computed with. Unless the configuration says otherwise, a few texts (`max_texts`) are handed to those
together, which saves messages, but computed one by one, and nothing is waited for.

The queue is bounded: further requests are rejected at once, with an estimate of when to retry. A request that
is cancelled or times out leaves the queue; a batch that no request waits for any more is cancelled. If a
batch fails, its requests are run again one by one, so that one of them cannot spoil the others.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pressoir.serving.errors import InferenceError, RequestError
from pressoir.serving.pool.retry_estimate import RetryEstimate

Text = str | tuple[str, str] | Sequence[int] | Sequence[str]
"""A text, a pair of texts, or a text's token ids or words; the requests of a batch, which share their
operation and model, have one of these."""
Run = Callable[[Hashable, Sequence[Text], float | None], Awaitable[Sequence[Any]]]
"""Takes what requests have in common, their texts, and when the time of the last one is over; gives an answer
for each text."""
_CHARACTERS = 3  # a token: English words have more, Chinese ones fewer


@dataclass(eq=False)
class _Request:
    key: Hashable
    texts: Sequence[Text]
    tokens: int  # of its longest text
    since: float
    until: float | None
    answer: asyncio.Future[Sequence[Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.answer = asyncio.get_running_loop().create_future()


class BatchQueue:
    """The requests to one model, run one batch at a time."""

    def __init__(
        self,
        run: Run,
        *,
        max_tokens: int,
        max_delay_s: float,
        max_queue: int,
        max_texts: int | None = None,
        together: bool = True,
        watch: Callable[[int, float, float], None] = lambda texts, waited_s, run_s: None,
    ) -> None:
        """`together`: whether requests are batched at all. `watch` is called after each batch: number of
        texts, how long the oldest request waited, how long the batch took (seconds)."""
        self._run, self._max_tokens, self._max_delay_s = run, max_tokens, max_delay_s
        self._max_queue, self._max_texts = max_queue, max_texts
        self._together, self._watch = together, watch
        self._waiting: deque[_Request] = deque()
        self._batch: list[_Request] = []
        self._working: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._retry = RetryEstimate()

    def __len__(self) -> int:
        """Requests that wait; those being run do not count."""
        return len(self._waiting)

    async def submit(
        self,
        key: Hashable,
        texts: Sequence[Text],
        max_length: int | None = None,
        until: float | None = None,
    ) -> Sequence[Any]:
        """The answers to `texts`, which are run together with others of the same `key`.

        `until`: see `WorkerClient.call`.

        Raises:
            QueueFullError: too many wait.
            ServingError: as the model.
        """
        if len(self._waiting) >= self._max_queue:
            raise self._retry.refusal(len(self._waiting), self._rounds)
        longest = max(map(estimate_tokens, texts), default=0)
        request = _Request(key, texts, min(longest, max_length or longest), time.monotonic(), until)
        self._waiting.append(request)
        self._arrived.set()
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        try:
            return await request.answer
        finally:
            self._leave(request)

    @property
    def _rounds(self) -> float:
        """Batches until the requests that wait now are done, if they are as large as the current one."""
        return 1 + len(self._waiting) / max(len(self._batch), 1)

    def _leave(self, request: _Request) -> None:
        """Out of the queue with a request that was given up; out of the model, if it was the last one."""
        if not request.answer.cancelled():
            return
        if request in self._waiting:
            self._waiting.remove(request)
        elif request in self._batch and all(member.answer.done() for member in self._batch):
            assert self._working is not None
            self._working.cancel()
            self._batch = []
            self._working = asyncio.create_task(self._work()) if self._waiting else None

    async def _work(self) -> None:
        """Run batches until no request waits."""
        first = True
        while self._waiting:
            if not first:
                await self._gather()
                if not self._waiting:
                    break
            first = False
            self._batch = self._next()
            start = time.monotonic()
            waited = start - self._batch[0].since
            await self._answer(self._batch)
            took = time.monotonic() - start
            self._retry.add(took)
            self._watch(sum(len(request.texts) for request in self._batch), waited, took)
        self._batch, self._working = [], None

    async def _gather(self) -> None:
        """Wait for more, until the next batch is full or its oldest request has waited long enough."""
        if not self._together:
            return
        until = self._waiting[0].since + self._max_delay_s
        while self._waiting and not self._is_full() and (left := until - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _is_full(self) -> bool:
        return len(self._fitting()) < sum(request.key == self._waiting[0].key for request in self._waiting)

    def _fitting(self) -> list[_Request]:
        """Those of the oldest request's kind, as far as the budget reaches; the oldest in any case."""
        oldest = self._waiting[0]
        chosen, texts, longest = [oldest], len(oldest.texts), oldest.tokens
        if not self._together:
            return chosen
        for request in list(self._waiting)[1:]:
            if request.key != oldest.key:
                continue
            tokens = max(longest, request.tokens)
            number = texts + len(request.texts)
            if number * tokens > self._max_tokens or (self._max_texts and number > self._max_texts):
                break
            chosen.append(request)
            texts, longest = number, tokens
        return chosen

    def _next(self) -> list[_Request]:
        chosen = self._fitting()
        for request in chosen:
            self._waiting.remove(request)
        return chosen

    async def _answer(self, batch: list[_Request]) -> None:
        """Run a batch and hand out what came of it."""
        try:
            limits = [request.until for request in batch if request.until is not None]
            until = max(limits) if len(limits) == len(batch) else None
            answers = await self._run(
                batch[0].key, [text for request in batch for text in request.texts], until
            )
        except Exception as error:
            if len(batch) > 1 and isinstance(error, (InferenceError, RequestError)):
                for request in batch:
                    if not request.answer.done():
                        await self._answer([request])
                return
            for request in batch:
                if not request.answer.done():
                    request.answer.set_exception(error)
            return
        start = 0
        for request in batch:
            if not request.answer.done():
                request.answer.set_result(answers[start : start + len(request.texts)])
            start += len(request.texts)


def estimate_tokens(text: Text) -> int:
    """About how many tokens a text has. The model's side counts, and splits what is too much after all."""
    if isinstance(text, str):
        return len(text) // _CHARACTERS + 2
    return sum(estimate_tokens(part) if isinstance(part, str) else 1 for part in text)
