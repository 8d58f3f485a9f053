"""Routes whose requests have the media type that the document says; any other is refused unread.

A page of another origin can send `text/plain` and forms without asking; what such a body holds is not read.
JSON is parsed while the garbage collector rests: it would look at all objects again and again as they come,
and 100,000 of them would hold other requests up for much longer.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from pressoir.serving.http.refusals import HttpError

JSON, BYTES = "application/json", "application/octet-stream"
MOST_FIELDS = 20_000
"""Of a body: a chat has 2,048 messages and parts at most, of a few fields each."""


class BodyRequest(Request):
    """A request whose JSON is parsed at once, without the garbage collector."""

    async def json(self) -> Any:
        """See `Request`."""
        await self.body()
        resting = gc.isenabled()
        gc.disable()
        try:
            return await super().json()
        finally:
            if resting:
                gc.enable()


def check_fields(body: bytes) -> None:
    """Refuse JSON of more fields than any request has, at a hundredth of what parsing it would take.

    Counted is what ends a name, `":`; within a text a quotation mark is escaped. Where blanks stand between
    them nothing is counted, and the body is parsed.

    Raises:
        HttpError: it says how many may be there.
    """
    if body.count(b'":') - body.count(b'\\":') > MOST_FIELDS:
        raise HttpError(422, "invalid_request", f"the body has more than {MOST_FIELDS:,} fields")


class BodyRoute(APIRoute):
    """A route that takes its declared media type alone."""

    @property
    def accepted(self) -> Collection[str]:
        """Media types that a body may have; empty where the route takes none."""
        info: Any = getattr(self.body_field, "field_info", None)
        return () if info is None else (info.media_type,)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle, accepted = super().get_route_handler(), self.accepted

        async def handler(request: Request) -> Response:
            if not isinstance(request, BodyRequest):
                request = BodyRequest(request.scope, request.receive)
            if accepted and (body := await request.body()):
                check_media_type(request.headers.get("content-type", ""), accepted)
                check_fields(body)
            return await handle(request)

        return handler


def check_media_type(given: str, accepted: Collection[str]) -> None:
    """Refuse a content type that is none of `accepted`; what ends in `+json` is JSON.

    Raises:
        HttpError: it says which are.
    """
    name = given.partition(";")[0].strip().lower()
    if name.startswith("application/") and name.endswith("+json"):
        name = JSON
    if name in accepted:
        return
    expected = " or ".join(media_type for media_type in accepted if media_type)
    message = f"the content type of the body is {given[:100]!r}; send {expected}"
    raise HttpError(415, "unsupported_media_type", message, {"Accept": expected.replace(" or ", ", ")})
