"""The server's connection to a loaded model: requests go out, answers come back.

`WorkerClient` keeps the requests in flight; a subclass carries the messages, to a process
(`pressoir.serving.pool.process`) or to a thread (`pressoir.serving.pool.thread`). All of it lives on one
event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressoir.serving.errors import ServingError, WorkerDiedError, from_failure
from pressoir.serving.worker.messages import Message


class WorkerClient(ABC):
    """Requests to one loaded model."""

    def __init__(self, name: str, info: dict[str, Any]) -> None:
        self.name, self.info = name, info
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when the model is gone, and why; empty where it was closed."""
        self._ids = itertools.count(1)
        self._receivers: dict[int, Callable[[Message | ServingError], None]] = {}
        self._stuck = False

    @abstractmethod
    def _send(self, message: Message) -> None:
        """Carry a message to the model; never waits."""

    @abstractmethod
    async def measure(self) -> int:
        """Memory that the model takes, bytes (PSS)."""

    @abstractmethod
    async def close(self) -> None:
        """End it and give its memory back; what is in flight fails."""

    async def call(
        self,
        operation: str,
        array: NDArray[np.float32] | None = None,
        *,
        until: float | None = None,
        **body: Any,
    ) -> Message:
        """The answer to a request; a caller that is cancelled cancels it.

        `until` is when its time is over, on the clock of the event loop: a model whose process is still at a
        step of it some time later may be ended. Without it that never happens.

        Raises:
            ServingError: the model refused it, failed, or is gone.
        """
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def receive(message: Message | ServingError) -> None:
            if answer.done():
                return
            if isinstance(message, ServingError):
                answer.set_exception(message)
            elif message.kind == "result":
                answer.set_result(message)

        id = self._begin(receive, operation, body, array)
        try:
            return await answer
        finally:
            self._finish(id, not answer.cancelled(), until)

    async def stream(
        self,
        operation: str,
        array: NDArray[np.float32] | None = None,
        *,
        until: float | None = None,
        **body: Any,
    ) -> AsyncGenerator[Message, None]:
        """The pieces of an answer, then its result. Closing it early cancels the request. See `call`."""
        inbox: asyncio.Queue[Message | ServingError] = asyncio.Queue()
        id = self._begin(inbox.put_nowait, operation, body, array)
        answered = False
        try:
            while not answered:
                message = await inbox.get()
                answered = isinstance(message, ServingError) or message.kind == "result"
                if isinstance(message, ServingError):
                    raise message
                yield message
        finally:
            self._finish(id, answered, until)

    def _begin(
        self,
        receive: Callable[[Message | ServingError], None],
        operation: str,
        body: dict[str, Any],
        array: NDArray[np.float32] | None,
    ) -> int:
        if self.ended.done():
            raise self._gone()
        id = next(self._ids)
        self._receivers[id] = receive
        self._send(Message("request", id, {"operation": operation, "arguments": body}, array))
        return id

    def _finish(self, id: int, answered: bool, until: float | None) -> None:
        del self._receivers[id]
        if not answered and not self.ended.done():
            self._send(Message("cancel", id))
            if until is not None:
                self._watch(id, until)

    def _watch(self, id: int, until: float) -> None:  # noqa: B027 - a thread cannot be ended
        """See to it that a request that was given up does not keep the model after its time."""

    def _receive(self, message: Message) -> None:
        """Hand on a message that came from the model; one that no request waits for any more is dropped."""
        if receive := self._receivers.get(message.id):
            receive(from_failure(message.body) if message.kind == "failure" else message)

    def _end(self, why: str) -> None:
        """The model is gone: fail all waiting calls, once."""
        if self.ended.done():
            return
        self.ended.set_result(why)
        for receive in self._receivers.values():
            receive(self._gone())

    def _gone(self) -> WorkerDiedError:
        why = self.ended.result() or "it was unloaded"
        message = f"{self.name} ended before it responded ({why}); send the request again"
        return WorkerDiedError(message, stuck=self._stuck)
