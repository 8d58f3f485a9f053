"""A worker without a model: the real loop and the real socket, and operations that do what a test needs."""

import os
import signal
import sys
import time
import types
from dataclasses import dataclass
from typing import Any

from pressoir.errors import PressoirError, SourceError
from pressoir.serving.worker import __main__ as worker

COMMAND = (sys.executable, __file__)
MB = 1_000_000


@dataclass
class Job:
    fields: dict[str, Any]

    @classmethod
    def model_validate(cls, fields):
        return cls(fields)


def echo(**arguments):
    yield None
    array = arguments.pop("array", None)
    return arguments, array


def count(to, sleep_s=0.0):
    """Count aloud; every number is a step."""
    for number in range(to):
        time.sleep(sleep_s)
        yield f"{number} "
    return {"counted": to}, None


def refuse():
    raise PressoirError("not like this")
    yield


def fail():
    yield None
    raise ZeroDivisionError("a bug")


def exhaust():
    yield None
    raise MemoryError


def die():
    yield None
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    yield "hanging"
    time.sleep(600)


def classify(texts, max_length, max_tokens):
    """Certain of everything but of `hang`, at which it hangs."""
    yield None
    if "hang" in texts:
        time.sleep(600)
    return {"probabilities": [[1.0] for _ in texts], "truncated": [False] * len(texts)}, None


def generate(prompt, **settings):
    """One piece; `more` and more of them; or it hangs."""
    if prompt == "hang":
        time.sleep(600)
    yield prompt
    while prompt == "more":
        yield prompt
    return {"prompt_tokens": 1, "completion_tokens": 1, "finish_reason": "stop", "scored": []}, None


def example():
    yield None
    return {}, None


def pid():
    yield None
    return {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}, None


def shout():
    """What libraries print must not get between the messages."""
    yield None
    print("to standard output")
    os.write(1, b"straight to the descriptor\n")
    return {}, None


class Fake:
    def __init__(self, name):
        self.ballast = bytearray(os.urandom(1)) * (100 * MB if name == "large" else 1)
        self.info = {"name": name, "batch_invariant": True, "labels": ["sure"]}
        operations = (classify, count, die, echo, example, exhaust, fail, generate, hang, pid, refuse, shout)
        self.operations = {operation.__name__: operation for operation in operations}


def open_model(job):
    name = job.fields["name"]
    if name == "damaged":
        raise SourceError("its files are damaged")
    if name == "crashes":
        print("terrible things", file=sys.stderr, flush=True)
        os.abort()
    if name == "hangs":
        time.sleep(600)
    return Fake(name)


if __name__ == "__main__":
    worker_model = types.ModuleType("pressoir.serving.worker.worker_model")
    worker_model.LoadJob, worker_model.open_model = Job, open_model
    sys.modules["pressoir.serving.worker.worker_model"] = worker_model
    sys.exit(worker.main())
