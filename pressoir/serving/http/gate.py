"""What every request passes before and after its endpoint: limits, the API key, the log, cancellation.

**Why.** A server that is open to a network meets clients that send too much, too slowly, too often, or leave
in the middle. None of them may take memory or a model's time from the others.

**What.** An ASGI middleware. A body is read whole, within its size and its time, before anything parses it,
so that nothing behind has to care. A client that disconnects cancels its request, which leaves its queue, or
the model. What is refused, or fails, is answered in one shape (`pressoir.serving.http.refusals`). One line of
JSON goes to the log `pressoir.access` for each request, without anything that its body says.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pressoir.serving.http.limits import HttpLimits
from pressoir.serving.http.metrics import Metrics
from pressoir.serving.http.refusals import HttpError, refusal
from pressoir.serving.keys import Keys

CLIENT_GONE = 499
"""What the log and the metrics call a request whose client left."""
OPEN = re.compile(r"/(?:(?:v2/)?health/\w+|health|docs|openapi\.json|static/[^/]*)?")
"""What needs no key: the page, the documentation, and health."""
_SAFE_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_LINGER_S = 1.0  # for which a refused body is still taken, so that its sender gets to read the answer
_LINGER_BYTES = 32 * 1024**2  # a second, of all refused bodies together: reading them takes time from others
_BUSY = {"Retry-After": "1"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
}
"""On every answer."""

access_log = logging.getLogger("pressoir.access")


class Gate:
    """The middleware.

    `hosts` are the names that requests may give the server, any if empty; `trusted` are further ones, whose
    pages may send requests from any port.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: HttpLimits,
        keys: Keys,
        metrics: Metrics,
        max_json_bytes: Callable[[], int],
        hosts: Collection[str] = (),
        trusted: Collection[str] = (),
    ) -> None:
        self.app, self._limits, self._metrics = app, limits, metrics
        self._max_json_bytes, self._trusted = max_json_bytes, frozenset(trusted)
        self._hosts = frozenset((*hosts, *trusted)) if hosts else frozenset()
        self._keys = keys
        self._held = self._working = 0
        self._lingering = _Allowance(_LINGER_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; never raises."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        request = _Request(scope, receive, send, self._lingering)
        try:
            self._check_host(request)
            self._check_key(request)
            with self._body(request):
                await self._read(request)
                with self._slot():
                    await self._answer(request)
        except _ClientGoneError:
            request.status = CLIENT_GONE
        except asyncio.CancelledError:  # the server ends, and this took too long
            await request.refuse(HttpError(503, "closing", "the server was stopped before it responded"))
        except Exception as error:
            await request.refuse(refusal(error, scope["state"]))
        self._note(request, time.perf_counter() - start)

    def _check_host(self, request: _Request) -> None:
        """Refuse what a foreign page makes a browser send: by another name of this address, or from itself.

        The first is DNS rebinding; the second needs no answer to do harm, so that no CORS header is enough.
        """
        host = request.headers.get("host")
        if host is None and request.scope.get("http_version") == "1.1":
            raise HttpError(400, "invalid_request", "the request has no Host header")
        named = _hostname(f"//{host or ''}")
        if self._hosts and named not in self._hosts:
            message = (
                f"this server does not answer for {named[:100]!r}; start it with --allowed-host {named[:100]}"
            )
            raise HttpError(403, "forbidden", message)
        origin = request.headers.get("origin")
        if origin is None or request.scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return
        page = _hostname(origin)  # empty: it has none, and is no page of ours
        same = bool(page) and urlsplit(origin).netloc.lower() == (host or "").lower()
        if not same and page not in self._trusted:
            raise HttpError(403, "forbidden", f"requests of the page {origin[:200]!r} are not accepted")

    def _check_key(self, request: _Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        role = self._keys.role(given.strip().encode("latin-1")) if scheme.lower() == "bearer" else None
        request.scope["state"]["role"] = role
        if role is not None or not self._keys.users or OPEN.fullmatch(request.scope["path"]):
            return
        message = "send the API key in the header Authorization: Bearer KEY"
        raise HttpError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})

    @contextmanager
    def _body(self, request: _Request) -> Iterator[None]:
        """A block in which a request's body counts as held."""
        try:
            yield
        finally:
            self._held -= len(request.body)

    async def _read(self, request: _Request) -> None:
        """Read the body, as far as it is small enough and comes in time."""
        limit = self._limits.max_body_bytes
        if not request.headers.get("content-type", "").startswith("multipart/"):
            limit = min(limit, self._max_json_bytes())
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            _too_large(limit)
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while not request.whole:
                    chunk = await request.read()
                    self._held += len(chunk)
                    request.body += chunk
                    if len(request.body) > limit:
                        _too_large(limit)
                    if self._held > self._limits.max_held_bytes:
                        message = (
                            "the server has no memory for the request; try again later, or send less data "
                            "at once"
                        )
                        raise HttpError(429, "busy", message, _BUSY)
        except TimeoutError:
            message = (
                f"the request body was not received within {self._limits.body_timeout_s:g} s; the "
                "connection is closed"
            )
            raise HttpError(408, "body_timeout", message) from None

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self._working >= self._limits.max_concurrent:
            message = f"{self._working} requests are already running; try again later"
            raise HttpError(429, "busy", message, _BUSY)
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1

    async def _answer(self, request: _Request) -> None:
        """Run the endpoint, unless and until the client disconnects."""
        us, ended, gone = asyncio.current_task(), False, False
        assert us is not None

        def disconnected(task: asyncio.Task[None]) -> None:
            nonlocal gone
            if not (ended or request.answered or task.cancelled()):
                gone = True
                us.cancel()

        watch = asyncio.create_task(request.disconnected())
        watch.add_done_callback(disconnected)
        try:
            await self.app(request.scope, request.replay, request.send)
        except asyncio.CancelledError:
            if not gone:
                raise
            us.uncancel()
            raise _ClientGoneError from None
        finally:
            ended = True
            watch.cancel()

    def _note(self, request: _Request, seconds: float) -> None:
        """Count it, and put it into the log."""
        scope = request.scope
        route = getattr(scope.get("route"), "path", "unknown")
        tier = scope["state"].get("tier")
        self._metrics.answer(scope["method"], route, request.status, tier, seconds)
        if not access_log.isEnabledFor(logging.INFO):
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "method": scope["method"][:16],
            "route": route,
            "status": request.status,
            "ms": round(1000 * seconds, 2),
            "request_id": request.id,
            "tier": tier,
        }
        access_log.info("%s", json.dumps(line))


def _hostname(address: str) -> str:
    """The host of a URL in lower case, without its port; empty where there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _too_large(limit: int) -> NoReturn:
    raise HttpError(413, "too_large", f"the body is larger than {limit} bytes; send less data at once")


class _ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class _Allowance:
    """Bytes that may be read in a second; what is left of one second is lost in the next."""

    def __init__(self, most: int) -> None:
        self._most, self._second, self._left = most, 0, most

    def take(self, count: int) -> bool:
        """Whether there was any left."""
        if (second := int(time.monotonic())) != self._second:
            self._second, self._left = second, self._most
        self._left -= count
        return self._left > 0


class _Request:
    """One request: what came of it, and what was answered."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, lingering: _Allowance) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self._lingering = lingering
        self.headers = Headers(scope=scope)
        given = self.headers.get("x-request-id", "")
        self.id = given if _SAFE_ID.fullmatch(given) else os.urandom(8).hex()
        scope["state"] = {**scope.get("state", {}), "request_id": self.id}
        self.body, self.whole = bytearray(), False
        self.status = 0
        self.answered = False
        """Whether all of the answer was sent."""
        self._replayed = self._begun = False

    async def read(self) -> bytes:
        """The next part of the body."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        self.whole = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def disconnected(self) -> None:
        """Until the client is gone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def replay(self) -> Message:
        """The body, for the endpoint, which sees no disconnection: that cancels it."""
        if self._replayed:
            await asyncio.get_running_loop().create_future()
        self._replayed = True
        return {"type": "http.request", "body": bytes(self.body), "more_body": False}

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status, self._begun = message["status"], True
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        self.answered = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, error: HttpError) -> None:
        """Answer with an error, if nothing was answered yet; else the answer ends where it is."""
        if self._begun:
            self.status = error.status
            return
        if not self.whole:
            error.headers["Connection"] = "close"  # what still comes of the body is no request
        response = error.response(self.id, self.scope["path"])
        start: dict[str, Any] = {"type": "http.response.start", "status": error.status}
        await self.send({**start, "headers": response.raw_headers})
        await self._send({"type": "http.response.body", "body": response.body, "more_body": not self.whole})
        if not self.whole:
            if error.status != 408:
                with suppress(TimeoutError, _ClientGoneError):
                    async with asyncio.timeout(_LINGER_S):
                        while not self.whole and self._lingering.take(len(await self.read())):
                            pass
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
