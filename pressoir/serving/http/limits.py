"""Limits of a server for all clients: sizes, numbers, and how long a connection may keep it waiting.

Limits of a tier (texts per request, tokens, seconds) are in its settings; these are about connections and
bodies, before their content is parsed.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pressoir.config import Config, Positive, PositiveReal


class HttpLimits(Config):
    """Limits of a server."""

    max_body_bytes: Positive = 32 << 20
    """Maximum size of a request body. A minute of audio is 2 MB as 16-bit samples and about 20 MB as JSON."""
    max_json_bytes: Positive | None = None
    """Maximum size of a JSON body; null means what the tiers can need (texts per request × tokens of a text ×
    12 bytes), 1 MiB at least, and for a speech tier `max_body_bytes`."""
    max_head_bytes: Positive = 64 << 10
    """Maximum size of a request head (request line and headers)."""
    max_held_bytes: Positive = 256 << 20
    """Maximum total size of all request bodies in memory; further requests are rejected."""
    max_text_characters: Positive = 100_000
    """Maximum length of a text, characters."""
    max_concurrent: Positive = 256
    """Maximum number of concurrent requests, including those waiting for a model."""
    max_connections: Positive = 1000
    """Maximum number of connections, including idle ones; further connections are closed."""
    header_timeout_s: PositiveReal = 10.0
    """Maximum time for receiving a request head."""
    body_timeout_s: PositiveReal = 30.0
    """Maximum time for receiving a request body."""
    stall_timeout_s: PositiveReal = 30.0
    """Maximum time that a client may not read a response, once the network buffers are full."""
    keep_alive_s: Annotated[int, Field(ge=1)] = 30
    """Time after which an idle connection is closed."""
