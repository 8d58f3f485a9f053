"""A model in a thread of the server's own process: no second interpreter, and no isolation.

Unloading drops the model and gives back what the allocator returns; a crash in native code ends the server.
What a model takes is measured once, as what the process grew by while it was loaded.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from pressoir.serving.errors import LoadError
from pressoir.serving.pool.worker_client import WorkerClient
from pressoir.serving.worker.messages import Message
from pressoir.serving.worker.step_scheduler import StepScheduler, failure
from pressoir.system.memory import pss_bytes
from pressoir.system.runtime import release_memory

_Loaded = tuple[dict[str, Any], int] | LoadError
"""Description of a model and its memory in bytes, or why it could not be loaded."""
_LIBRARIES = {"pytorch": ("pressoir.models.loading",), "onnxruntime": ("onnxruntime", "tokenizers")}
_loading = threading.Lock()  # one at a time, to attribute the growth in memory


class ThreadClient(WorkerClient):
    """A model in a thread."""

    def __init__(
        self,
        name: str,
        info: dict[str, Any],
        pss: int,
        inbox: queue.SimpleQueue[Message | None],
        thread: threading.Thread,
    ) -> None:
        super().__init__(name, info)
        self._pss, self._inbox, self._thread = pss, inbox, thread

    @classmethod
    async def open(cls, job: dict[str, Any]) -> ThreadClient:
        """Load a `LoadJob` in a new thread.

        Raises:
            LoadError: it cannot be loaded.
        """
        loop = asyncio.get_running_loop()
        inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        loaded: asyncio.Future[tuple[dict[str, Any], int]] = loop.create_future()
        receivers: list[Callable[[Message], None]] = []

        def on_message(message: Message) -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(receivers[0], message)

        def settle(result: _Loaded) -> None:
            if loaded.done():  # cancelled
                return
            if isinstance(result, LoadError):
                loaded.set_exception(result)
            else:
                loaded.set_result(result)

        def settle_from_thread(result: _Loaded) -> None:
            with suppress(RuntimeError):  # the loop was closed while the model was loaded
                loop.call_soon_threadsafe(settle, result)

        thread = threading.Thread(
            target=_main,
            args=(job, inbox, on_message, settle_from_thread),
            name=f"model {job['name']}",
            daemon=True,
        )
        thread.start()
        try:
            info, pss = await loaded
        except BaseException:
            inbox.put(None)
            raise
        model = cls(job["name"], info, pss, inbox, thread)
        receivers.append(model._receive)
        return model

    async def measure(self) -> int:
        """See `WorkerClient.measure`: as it was after loading; 0 once it is closed."""
        return 0 if self.ended.done() else self._pss

    async def close(self) -> None:
        """See `WorkerClient.close`."""
        self._end("")
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _send(self, message: Message) -> None:
        self._inbox.put(message)


def _main(
    job: dict[str, Any],
    inbox: queue.SimpleQueue[Message | None],
    on_message: Callable[[Message], None],
    settle: Callable[[_Loaded], None],
) -> None:
    from pressoir.serving.worker.worker_model import LoadJob, open_model

    try:
        with _loading:
            for library in _LIBRARIES[job["runtime"]]:  # else the first model seems to take what they do
                import_module(library)
            before = pss_bytes(os.getpid(), children=False)
            model = open_model(LoadJob.model_validate(job))
            grown = max(pss_bytes(os.getpid(), children=False) - before, 0)
    except Exception as error:
        settle(LoadError(failure(error)["message"]))
        return
    settle((model.info, grown))
    StepScheduler(model.operations, on_message).run(inbox.get, lambda: not inbox.empty())
    del model
    release_memory()
