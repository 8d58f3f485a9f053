"""What can go wrong while models are served, as one small tree; each error says whether to try again.

::

    PressoirError
    └── ServingError          the base; `retriable` says whether the same request may succeed later
        ├── UnknownTierError  no such tier, or it does something else
        ├── RequestError      a request that no attempt can answer as it stands
        ├── QueueFullError    too many requests wait; `retry_after_s` says when to come back
        ├── TimedOutError     not answered in time
        ├── LoadError         a model that cannot be loaded, or fails its first request
        ├── BudgetError       a model for which the memory budget has no room
        ├── WorkerDiedError   the process of a model ended before it had answered
        ├── ClosingError      the service is being shut down
        └── InferenceError    the model failed on a request, for no fault of the request's
"""

from __future__ import annotations

from typing import Any

from pressoir.errors import PressoirError


class ServingError(PressoirError):
    """The base of all errors of a service."""

    retriable = False
    """Whether the same request may be answered when it is sent again."""


class UnknownTierError(ServingError):
    """A tier that does not exist, or has another task than the request."""


class RequestError(ServingError):
    """A request that cannot be answered as it stands: a wrong language, a limit exceeded, an empty text."""


class QueueFullError(ServingError):
    """The queue is full; nothing was begun."""

    retriable = True

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Estimated time until the queue has room, seconds."""


class TimedOutError(ServingError):
    """The request was not answered within its time; what was not begun never will be."""

    retriable = True


class LoadError(ServingError):
    """A model that could not be loaded; the next request tries again."""

    def __init__(self, message: str, *, retriable: bool = False) -> None:
        super().__init__(message)
        self.retriable = retriable


class BudgetError(LoadError):
    """The memory budget has no room for a model, or for a second one beside it."""


class WorkerDiedError(ServingError):
    """The process that held the model ended; the next request starts another."""

    retriable = True

    def __init__(self, message: str, *, stuck: bool = False) -> None:
        super().__init__(message)
        self.stuck = stuck
        """Whether it was ended because of another request, whose step did not end."""


class ClosingError(ServingError):
    """The service takes no more requests."""

    retriable = True


class InferenceError(ServingError):
    """The model failed: out of memory, or a fault of ours; the log has the traceback."""

    def __init__(self, message: str, *, retriable: bool = False) -> None:
        super().__init__(message)
        self.retriable = retriable


def from_failure(body: dict[str, Any]) -> ServingError:
    """The error of a `failure` message from the worker: its `kind` and `message`."""
    kind, message = body["kind"], body["message"]
    if kind == "request":
        return RequestError(message)
    if kind == "load":
        return LoadError(message)
    return InferenceError(message, retriable=kind == "memory")
