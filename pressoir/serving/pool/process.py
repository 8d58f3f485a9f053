"""A model in a worker process, from the server's side: starting, messages, memory, ending."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pressoir.serving.errors import LoadError, from_failure
from pressoir.serving.pool.worker_client import WorkerClient
from pressoir.serving.worker.current_step import CurrentStep
from pressoir.serving.worker.messages import LENGTHS, Message, pack, unpack
from pressoir.system.memory import pss_bytes
from pressoir.system.runtime import child_environment

_EXIT_S = 5.0  # that a worker gets to end by itself
_LINES, _COLUMNS = 12, 300
COMMAND = (sys.executable, "-m", "pressoir.serving.worker")

log = logging.getLogger("pressoir")


class ProcessClient(WorkerClient):
    """A model in a process of its own. Unloading it ends the process, which gives all its memory back."""

    def __init__(
        self,
        name: str,
        info: dict[str, Any],
        worker: _Worker,
        grace_s: float | None,
        on_stuck: Callable[[], None],
    ) -> None:
        super().__init__(name, info)
        self._worker, self._grace_s, self._on_stuck = worker, grace_s, on_stuck
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(
        cls,
        job: dict[str, Any],
        timeout_s: float,
        side_by_side: bool = False,
        *,
        grace_s: float | None = None,
        on_stuck: Callable[[], None] = lambda: None,
    ) -> ProcessClient:
        """Start a worker and have it load a `LoadJob`.

        A worker that is still at the same step of a request `grace_s` seconds after that request's time is
        ended, and `on_stuck` is called.

        Raises:
            LoadError: it cannot be loaded, or not in time; the worker has ended.
        """
        worker = await _Worker.start(job["threads"], side_by_side)
        try:
            worker.send(Message("load", body=job))
            async with asyncio.timeout(timeout_s):
                answer = await worker.read()
        except TimeoutError as error:
            await worker.end(at_once=True)
            raise LoadError(
                f"{job['name']} was not loaded within {timeout_s:.0f} s", retriable=True
            ) from error
        except BaseException:
            await worker.end(at_once=True)
            raise
        if answer is None or answer.kind != "ready":
            why = await worker.end(at_once=answer is None)
            if answer is None:
                raise LoadError(f"the worker of {job['name']} ended while loading ({why})", retriable=True)
            raise from_failure(answer.body)
        return cls(job["name"], answer.body, worker, grace_s, on_stuck)

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self._worker.process.pid

    async def measure(self) -> int:
        """See `WorkerClient.measure`; 0 once the worker has ended."""
        return await asyncio.to_thread(pss_bytes, self.pid)

    async def close(self) -> None:
        """See `WorkerClient.close`."""
        self._end("")
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._worker.end()

    def _send(self, message: Message) -> None:
        self._worker.send(message)

    def _watch(self, id: int, until: float) -> None:
        if self._grace_s is not None:
            loop = asyncio.get_running_loop()
            loop.call_at(max(until, loop.time()) + self._grace_s, self._end_if_stuck, id)

    def _end_if_stuck(self, id: int) -> None:
        """End a worker that has not come to read that a request is cancelled."""
        if self.ended.done() or self._worker.steps.current != id:
            return
        self._stuck = True
        log.error("ending the worker of %s: a step of a request outlasts its timeout", self.name)
        self._on_stuck()
        self._worker.kill()

    async def _read(self) -> None:
        while (message := await self._worker.read()) is not None:
            self._receive(message)
        why = await self._worker.end()
        log.error("the worker of %s ended: %s", self.name, why)
        self._end(why.partition("\n")[0])


class _Worker:
    """The process, the socket to it, and the last lines of its log."""

    def __init__(
        self,
        process: Process,
        death: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        steps: CurrentStep,
    ) -> None:
        self.process, self._death, self._reader, self._writer = process, death, reader, writer
        self.steps = steps
        self._last: deque[str] = deque(maxlen=_LINES)
        self._logging = asyncio.create_task(self._keep_log())
        self._ending: asyncio.Task[str] | None = None

    @classmethod
    async def start(cls, threads: int, side_by_side: bool) -> _Worker:
        ours, theirs = socket.socketpair()
        # A pipe of our own: asyncio would use a socket, whose closing the worker would not notice.
        stdin, death = os.pipe()
        steps = CurrentStep.create()
        try:
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                str(theirs.fileno()),
                str(threads),
                str(steps.descriptor),
                stdin=stdin,
                stdout=DEVNULL,
                stderr=PIPE,
                pass_fds=(theirs.fileno(), steps.descriptor),
                env={**child_environment(threads, side_by_side=side_by_side), "HF_HUB_OFFLINE": "1"},
                process_group=0,  # Ctrl-C in a terminal is ours to handle
            )
        except BaseException:
            ours.close()
            os.close(death)
            steps.close()
            raise
        finally:
            theirs.close()
            steps.handed_on()
            os.close(stdin)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return cls(process, death, reader, writer, steps)

    def send(self, message: Message) -> None:
        if not self._writer.is_closing():
            self._writer.write(pack(message))

    async def read(self) -> Message | None:
        """The next message; None when the worker is gone."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            text, content = LENGTHS.unpack(await self._reader.readexactly(LENGTHS.size))
            return unpack(await self._reader.readexactly(text), await self._reader.readexactly(content))
        return None

    async def end(self, at_once: bool = False) -> str:
        """Ask it to end, wait until it has ended, and return why. Shielded from cancellation."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(at_once))
        return await asyncio.shield(self._ending)

    async def _end(self, at_once: bool) -> str:
        if at_once and self.process.returncode is None:
            self.kill()
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
        try:
            async with asyncio.timeout(_EXIT_S):
                await self.process.wait()
        except TimeoutError:
            self.kill()
            await self.process.wait()
        os.close(self._death)
        self.steps.close()
        await self._logging
        status = self.process.returncode or 0
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        return "\n".join([how, *self._last])

    def kill(self) -> None:
        """End it at once."""
        # Not `Process.kill`: it polls first, and of a worker that has just ended takes the status away from
        # asyncio, which then says 255.
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)

    async def _keep_log(self) -> None:
        """Hand its log on, and keep its last lines."""
        assert self.process.stderr is not None
        while chunk := await self.process.stderr.read(1 << 16):
            for line in chunk.decode(errors="replace").splitlines():
                self._last.append(line[:_COLUMNS])
                log.debug("worker %d: %s", self.process.pid, line)
