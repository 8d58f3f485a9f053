"""Requests to one model take turns on one thread, a step each.

A model computes on as many threads as it is given, so running two requests at once would gain nothing and
cost both their caches. But a continuation of hundreds of tokens must not make a short request wait: each
request is a generator, and after every step (a token, a part of a batch, a window of audio) the next one is
served. Between two steps a request can be cancelled.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Mapping
from typing import Any

from pressoir.errors import PressoirError, SourceError
from pressoir.serving.worker.messages import Message
from pressoir.system.allowance import is_out_of_memory

Answer = tuple[dict[str, Any], Any]
"""Body and array of a `result`."""
Steps = Generator[str | dict[str, Any] | None, None, Answer]
"""A request at work: yields pieces of text (or bodies of `piece` messages), or None after any other step, and
returns the answer."""
Operations = Mapping[str, Callable[..., Steps]]
"""What a model can do, by name; each takes a request's body as keywords, and its array, where it has one."""


class StepScheduler:
    """The requests that a model is working on. `on_message` receives every message they produce; `on_step`
    receives the request whose step begins, and 0 when the step has ended."""

    def __init__(
        self,
        operations: Operations,
        on_message: Callable[[Message], None],
        on_step: Callable[[int], None] = lambda id: None,
    ) -> None:
        self._operations, self._on_message, self._on_step = operations, on_message, on_step
        self._jobs: dict[int, Steps] = {}  # the next one first

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._jobs)

    def take(self, message: Message) -> None:
        """Take a request, or drop one that is not wanted any more."""
        if message.kind == "cancel":
            if job := self._jobs.pop(message.id, None):
                job.close()
            return
        arguments = dict(message.body["arguments"])
        if message.array is not None:
            arguments["array"] = message.array
        self._jobs[message.id] = _begin(self._operations, message.body["operation"], arguments)

    def run(self, receive: Callable[[], Message | None], has_message: Callable[[], bool]) -> None:
        """Work until `receive` returns None: all messages that have arrived are taken before each step."""
        while True:
            while not self.busy or has_message():
                message = receive()
                if message is None:
                    return
                self.take(message)
            self.step()

    def step(self) -> None:
        """Do one step of the request whose turn it is."""
        id = next(iter(self._jobs))
        job = self._jobs.pop(id)
        self._on_step(id)
        try:
            piece = next(job)
        except StopIteration as end:
            body, array = end.value
            self._on_message(Message("result", id, body, array))
            return
        except Exception as error:
            self._on_message(Message("failure", id, failure(error)))
            return
        finally:
            self._on_step(0)
        self._jobs[id] = job
        if piece:
            self._on_message(Message("piece", id, {"text": piece} if isinstance(piece, str) else piece))


def failure(error: Exception) -> dict[str, Any]:
    """What to say of an error. What is no fault of the request's goes to the log with its traceback."""
    if is_out_of_memory(error):
        traceback.print_exception(error)
        return {
            "kind": "memory",
            "message": "the request needs more memory than available; send less data at once",
        }
    if isinstance(error, PressoirError) and not isinstance(error, SourceError):
        return {"kind": "request", "message": str(error)}
    traceback.print_exception(error)
    return {"kind": "internal", "message": f"the model failed: {type(error).__name__}: {error}"}


def _begin(operations: Operations, operation: str, arguments: dict[str, Any]) -> Steps:
    """A request whose mistakes, too, show at its first step alone."""
    if operation not in operations:
        known = ", ".join(sorted(operations))
        raise PressoirError(f"this model does not support {operation}; it supports {known}")
    return (yield from operations[operation](**arguments))
