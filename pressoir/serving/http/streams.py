"""Answers that come in pieces: server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

The first event is waited for before anything is sent, so that a request that is refused, or has to wait too
long, is answered with its own status. An error that comes later is an event.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pressoir.serving.http.refusals import as_json, refusal

Events = AsyncGenerator[bytes, None]


def event(content: Any, name: str | None = None) -> bytes:
    """One event, of JSON."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + as_json(content) + b"\n\n"


class EventStream(Response):
    """An answer of events; they are closed with it, however it ends. `failed` makes an event of an error."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: Events, failed: Callable[[dict[str, Any]], bytes]) -> None:
        self._first, self._rest, self._failed = first, rest, failed
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    @classmethod
    async def begin(cls, events: Events, failed: Callable[[dict[str, Any]], bytes]) -> EventStream:
        """Wait for the first event; an error of it is raised."""
        try:
            return cls(await anext(events), events, failed)
        except BaseException:
            await events.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        async with aclosing(self._rest):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _send(send, self._first)
            try:
                async for chunk in self._rest:
                    await _send(send, chunk)
            except Exception as error:
                found = refusal(error, scope["state"])
                await _send(send, self._failed(found.content(scope["state"]["request_id"])))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})
