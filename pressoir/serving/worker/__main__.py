"""A model in a process of its own: `python -m pressoir.serving.worker SOCKET THREADS STEPS`.

**Why.** Only the end of a process gives all its memory back, and a crash affects no other model.

**What.** The first message that comes through the socket (a descriptor that the parent left open) says what
to load; the answer is `ready` or `failure`. Then requests take turns
(`pressoir.serving.worker.step_scheduler`): before each step all messages that have arrived are read, so that
a cancelled request costs at most the current step. There is one thread, so nothing is locked.

`STEPS` is a descriptor of memory in which the worker says whose step it computes
(`pressoir.serving.worker.current_step`), so that the parent can end one that hangs.

Standard input is a pipe that nothing is written to: when it closes, the parent is gone, and the kernel ends
this process, too. Whatever libraries print goes to the log, which is standard error.

Nothing heavy is imported before the thread limits are set.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from pressoir.serving.worker.current_step import CurrentStep
from pressoir.serving.worker.messages import LENGTHS, Message, pack, unpack
from pressoir.serving.worker.step_scheduler import StepScheduler, failure
from pressoir.system.runtime import end_with_parent, hide_scikit_learn, limit_threads

if TYPE_CHECKING:
    from pressoir.serving.worker.worker_model import WorkerModel


def main() -> int:
    """Serve one model until the socket closes."""
    end_with_parent()
    descriptor, threads, steps = map(int, sys.argv[1:4])
    limit_threads(threads)
    os.dup2(2, 1)
    with Channel(socket.socket(fileno=descriptor)) as channel:
        job = channel.read()
        if job is None:
            return 0
        with suppress(ConnectionError):  # the parent went without a word
            model = _load(job, channel)
            if model is not None:
                serve(model, channel, CurrentStep(steps))
        # Tearing down a model takes time and gains nothing.
        sys.stderr.flush()
        os._exit(0)


def serve(model: WorkerModel, channel: Channel, steps: CurrentStep) -> None:
    """Answer requests until there can come no more."""
    scheduler = StepScheduler(model.operations, channel.write, partial(setattr, steps, "current"))
    scheduler.run(channel.read, channel.has_message)


class Channel:
    """The worker's end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        self._socket, self._poll = end, select.poll()
        self._poll.register(end, select.POLLIN)

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def has_message(self) -> bool:
        """Whether a message, or the end, can be read without waiting."""
        return bool(self._poll.poll(0))

    def read(self) -> Message | None:
        """The next message; None when the parent has closed its end."""
        lengths = self._exactly(LENGTHS.size)
        if lengths is None:
            return None
        text, content = (self._exactly(length) for length in LENGTHS.unpack(lengths))
        return None if text is None or content is None else unpack(text, content)

    def write(self, message: Message) -> None:
        """Send a message; the parent always reads."""
        self._socket.sendall(pack(message))

    def _exactly(self, count: int) -> bytes | None:
        content = bytearray()
        while len(content) < count:
            chunk = self._socket.recv(min(count - len(content), 1 << 20))
            if not chunk:
                return None
            content += chunk
        return bytes(content)


def _load(message: Message, channel: Channel) -> WorkerModel | None:
    from pressoir.serving.worker.worker_model import LoadJob, open_model

    try:
        model = open_model(LoadJob.model_validate(message.body))
    except Exception as error:
        channel.write(Message("failure", body={**failure(error), "kind": "load"}))
        return None
    channel.write(Message("ready", body=model.info))
    return model


if __name__ == "__main__":
    hide_scikit_learn()
    sys.exit(main())
