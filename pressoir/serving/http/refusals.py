"""Every error that a client sees, in one shape: a status, a type for programs, and a message for people.

::

    {"error": {"type": "unknown_tier", "message": "there is no tier 'best'; …", "request_id": "…"}}
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pressoir.errors import PressoirError
from pressoir.serving import errors

log = logging.getLogger("pressoir")

SHOWN = 10
"""Most wrong fields that a message names."""
_STATUS: dict[type[errors.ServingError], tuple[int, str]] = {
    errors.UnknownTierError: (404, "unknown_tier"),
    errors.RequestError: (422, "invalid_request"),
    errors.QueueFullError: (429, "queue_full"),
    errors.TimedOutError: (504, "timed_out"),
    errors.BudgetError: (503, "no_memory"),
    errors.LoadError: (503, "load_failed"),
    errors.WorkerDiedError: (503, "worker_died"),
    errors.ClosingError: (503, "closing"),
    errors.InferenceError: (500, "inference_failed"),
}
_HTTP = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed"}


class ErrorContent(BaseModel):
    """What went wrong."""

    type: str
    """For programs, such as `unknown_tier`."""
    message: str
    """For people: what is wrong, and what to change."""
    request_id: str
    """Also in the header `X-Request-ID`, and in the server's log."""


class ErrorAnswer(BaseModel):
    """The answer to a request that failed."""

    error: ErrorContent


class HttpError(Exception):
    """An answer that is an error. Headers are those beside the usual ones."""

    def __init__(self, status: int, type: str, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.type, self.message, self.headers = status, type, message, dict(headers or {})

    def content(self, request_id: str) -> dict[str, Any]:
        """The shape."""
        return {"error": {"type": self.type, "message": self.message, "request_id": request_id}}

    def response(self, request_id: str) -> JsonAnswer:
        """The answer."""
        return JsonAnswer(self.content(request_id), self.status, self.headers)


class JsonAnswer(Response):
    """JSON in ASCII: whatever a text holds (half a surrogate pair, say) can be said."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body; ValueError where a number is not finite, which JSON has no name for."""
        return as_json(content)


def as_json(content: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def refusal(error: Exception) -> HttpError | None:
    """What to answer to an error; None where it is a fault of ours."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, RequestValidationError):
        return HttpError(422, "invalid_request", _fields(error.errors()))
    if isinstance(error, HTTPException):
        kind = _HTTP.get(error.status_code, "invalid_request")
        return HttpError(error.status_code, kind, _said(error), error.headers)
    if isinstance(error, errors.ServingError):
        status, kind = next(_STATUS[one] for one in type(error).__mro__ if one in _STATUS)
        if status == 500 and error.retriable:
            status, kind = 503, "out_of_memory"
        headers = {}
        if isinstance(error, errors.QueueFullError):
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        elif status == 503 and error.retriable:
            headers["Retry-After"] = "1"
        return HttpError(status, kind, str(error), headers)
    if isinstance(error, PressoirError):
        return HttpError(422, "invalid_request", str(error))
    return None


def internal_error(request_id: str, error: Exception) -> HttpError:
    """The answer to an error that `refusal` does not know; its traceback is logged."""
    log.error("request %s failed", request_id, exc_info=error)
    return HttpError(500, "internal", "internal server error; see the server log for this request id")


async def answer_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of all errors that `refusal` knows."""
    found = refusal(error)
    if found is None:
        raise error
    return found.response(request.state.request_id)


def _said(error: HTTPException) -> str:
    if error.status_code == 404:
        return "this address does not exist; /docs lists all addresses"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"this address only supports {allowed}; see /docs"
    return str(error.detail)


def _fields(problems: Sequence[Any]) -> str:
    """Every wrong field with its path. What was given is not repeated: it may be long, or private."""
    messages = []
    for problem in problems[:SHOWN]:
        if problem["type"] == "json_invalid":
            messages.append(
                f"the body is not valid JSON: {problem['ctx']['error']}, character {problem['loc'][-1]}"
            )
            continue
        path = ".".join(str(part)[:100] for part in problem["loc"] if part != "body") or "the body"
        messages.append(f"{path}: {problem['msg'].removeprefix('Value error, ')}")
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(dict.fromkeys(messages)) + more
