"""Every error that a client sees, in one shape: a status, a type for programs, and a message for people.

::

    {"error": {"type": "unknown_tier", "message": "there is no tier 'best'; …", "request_id": "…"}}
    {"error": "there is no tier 'best'; …", "type": "unknown_tier", "request_id": "…"}    (KServe v2)
"""

from __future__ import annotations

import asyncio
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

from pressoir.errors import PressoirError, RegistryError, ShardError, SourceError, StoreError
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
_OF_FILES = (SourceError, StoreError, RegistryError, ShardError)  # the server's, not a request's
_PRIVATE: dict[type[PressoirError], str] = {
    errors.BudgetError: "the server has no memory for this tier's model",
    errors.LoadError: "this tier's model cannot be loaded",
    errors.WorkerDiedError: "this tier's model ended before it responded; send the request again",
    errors.InferenceError: "this tier's model failed",
    **dict.fromkeys(_OF_FILES, "this tier's model cannot be loaded"),
}
"""Messages to clients for errors whose own messages may have paths and digests of the server."""
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


class TextErrorAnswer(BaseModel):
    """The answer to a request of KServe v2 that failed."""

    error: str
    """For people: what is wrong, and what to change."""
    type: str
    request_id: str


ERRORS = {
    400: "The request is not valid HTTP, or its body no text.",
    401: "The API key is missing or wrong.",
    403: "An administrator's key is needed, or the request is by another name or of another page.",
    404: "There is no such tier, or it has another task.",
    408: "The request did not arrive in time; the connection is closed.",
    413: "The body is too large.",
    415: "The body has another media type.",
    422: "The request is not valid.",
    429: "Too many requests; `Retry-After` says when to try again.",
    431: "The request line and headers are too large.",
    500: "The model or the server failed.",
    503: "A model is loading, unavailable or does not fit in memory, or the server ends; `Retry-After` is "
    "set if trying again may help.",
    504: "The request timed out.",
}
"""What each status of an error means, but for 405, which no documented method has."""
Responses = dict[int | str, dict[str, Any]]


def may_answer(*statuses: int) -> Responses:
    """Errors of a route, beside those that the document adds by itself (`pressoir.serving.http.document`)."""
    return {status: {"description": ERRORS[status]} for status in statuses}


class HttpError(Exception):
    """An answer that is an error. Headers are those beside the usual ones."""

    def __init__(self, status: int, type: str, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.type, self.message, self.headers = status, type, message, dict(headers or {})

    def content(self, request_id: str, path: str = "") -> dict[str, Any]:
        """The shape; that of KServe v2 below its paths."""
        if path.startswith("/v2"):
            return {"error": self.message, "type": self.type, "request_id": request_id}
        return {"error": {"type": self.type, "message": self.message, "request_id": request_id}}

    def response(self, request_id: str, path: str) -> JsonAnswer:
        """The answer to a request for `path`."""
        return JsonAnswer(self.content(request_id, path), self.status, self.headers)


class JsonAnswer(Response):
    """JSON in ASCII: whatever a text holds (half a surrogate pair, say) can be said."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body; ValueError where a number is not finite, which JSON has no name for."""
        return as_json(content)


def as_json(content: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def refusal(error: Exception, state: Mapping[str, Any]) -> HttpError:
    """What to answer to an error of a request with this state.

    A fault of ours, and what only the server's administrator may read, is logged with the request's id.
    """
    found = _known(error)
    if found is None:
        return _internal_error(state["request_id"], error)
    message = next((_PRIVATE[kind] for kind in type(error).__mro__ if kind in _PRIVATE), None)
    if message is None or state.get("role") == "admin" or found.type == "out_of_memory":
        return found
    log.error("request %s failed: %s", state["request_id"], error)
    found.message = f"{message}; see the server log for this request id"
    return found


def _known(error: Exception) -> HttpError | None:
    if isinstance(error, HttpError):
        return error
    if isinstance(error, RequestValidationError):
        return HttpError(422, "invalid_request", _fields(error.errors()))
    if isinstance(error, HTTPException):
        kind = _HTTP.get(error.status_code, "invalid_request")
        return HttpError(error.status_code, kind, _said(error), error.headers)
    if isinstance(error, errors.ServingError):
        status, kind = next(_STATUS[base] for base in type(error).__mro__ if base in _STATUS)
        if status == 500 and error.retriable:
            status, kind = 503, "out_of_memory"
        headers = {}
        if isinstance(error, errors.QueueFullError):
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        elif status == 503 and error.retriable:
            headers["Retry-After"] = "1"
        return HttpError(status, kind, str(error), headers)
    if isinstance(error, _OF_FILES):
        return HttpError(503, "load_failed", str(error))
    if isinstance(error, PressoirError):
        return HttpError(422, "invalid_request", str(error))
    return None


def _internal_error(request_id: str, error: Exception) -> HttpError:
    log.error("request %s failed", request_id, exc_info=error)
    return HttpError(500, "internal", "internal server error; see the server log for this request id")


async def answer_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of all errors that are ours to answer."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        # Starlette names the methods of one route, but an address may have several routes.
        allowed = await asyncio.to_thread(request.app.state.document.methods, request.url.path)
        error.headers = {**(error.headers or {}), **({"Allow": allowed} if allowed else {})}
    found = refusal(error, request.scope["state"])
    return found.response(request.state.request_id, request.url.path)


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
        path = ".".join(str(key)[:100] for key in problem["loc"] if key != "body") or "the body"
        messages.append(f"{path}: {problem['msg'].removeprefix('Value error, ')}")
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(dict.fromkeys(messages)) + more
