"""HTTP/1.1 on a connection, with the clocks that uvicorn leaves out, and with errors in the server's shape.

uvicorn waits for the head of a request as long as it takes, however long it gets, and for a client that does
not read. Here a connection that sends no whole head in time, or too long a one, is closed, as is one that
leaves an answer unread. The time of bodies is the gate's (`pressoir.serving.http.gate`), which can still
answer.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pressoir.serving.http.limits import HttpLimits
from pressoir.serving.http.refusals import HttpError, as_json


class TimedProtocol(HttpToolsProtocol):
    """One connection. `protocol_with` gives the class that has its limits."""

    limits = HttpLimits()

    def __init__(
        self, config: Config, server_state: Any, app_state: dict[str, Any], _loop: Any = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection too many; expect a request on any other."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            message = f"the limit of {self.limits.max_connections} connections is reached; try again later"
            self._refuse(HttpError(503, "busy", message, {"Retry-After": "1"}))
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take what came, and see whether a head is still on its way."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop("_head")
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > self.limits.max_head_bytes:
            message = f"the request head has more than {self.limits.max_head_bytes} bytes"
            self._refuse(HttpError(431, "head_too_large", message))
        elif self._head is None and not self.transport.is_closing():
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop("_head")
        self._stop("_stall")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads too slowly: not for long."""
        super().pause_writing()
        self._stall = self.loop.call_later(self.limits.stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        self._stop("_stall")
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(HttpError(400, "invalid_request", "the request is not valid HTTP/1.1"))

    def _expect_head(self) -> None:
        self._head = self.loop.call_later(self.limits.header_timeout_s, self._no_head)

    def _no_head(self) -> None:
        self._head = None
        seconds = self.limits.header_timeout_s
        self._refuse(
            HttpError(408, "header_timeout", f"no complete request head was received within {seconds:g} s")
        )

    def _refuse(self, error: HttpError) -> None:
        """Answer without an endpoint, and close."""
        if self.transport.is_closing():
            return
        id = os.urandom(8).hex()
        body = as_json(error.content(id))
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": id,
            "connection": "close",
            **error.headers,
        }
        lines = [
            f"HTTP/1.1 {error.status} {error.type}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()

    def _stop(self, clock: str) -> None:
        handle: asyncio.TimerHandle | None = getattr(self, clock)
        if handle is not None:
            handle.cancel()
            setattr(self, clock, None)


def protocol_with(limits: HttpLimits) -> type[TimedProtocol]:
    """The class of connections with some limits."""
    return type("LimitedProtocol", (TimedProtocol,), {"limits": limits})
