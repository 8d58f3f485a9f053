"""What a server puts up with, whoever asks: sizes, numbers, and how long a connection may keep it waiting.

What a tier allows (texts in a request, tokens, seconds) stands in its settings; these are about connections
and bodies, before anybody has looked at what they say.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pressoir.config import Config, Positive, PositiveReal


class HttpLimits(Config):
    """Limits of a server."""

    max_body_bytes: Positive = 32 << 20
    """Largest body of a request. A minute of sound is 2 MB as 16-bit samples, and about 20 MB as JSON."""
    max_head_bytes: Positive = 64 << 10
    """Largest head (request line and headers) of a request."""
    max_held_bytes: Positive = 256 << 20
    """Most memory that the bodies of all requests take together; beyond that, requests are put off."""
    max_text_characters: Positive = 100_000
    """Longest text, characters."""
    max_concurrent: Positive = 256
    """Most requests at work at once, those that wait for a model included."""
    max_connections: Positive = 1000
    """Most connections, idle ones included; further ones are closed."""
    header_timeout_s: PositiveReal = 10.0
    """Longest that a connection may take to send the head of a request."""
    body_timeout_s: PositiveReal = 30.0
    """Longest that a request's body may take to come."""
    stall_timeout_s: PositiveReal = 30.0
    """Longest that a client may leave an answer unread, once the buffers on the way are full."""
    keep_alive_s: Annotated[int, Field(ge=1)] = 30
    """How long an idle connection stays open."""
