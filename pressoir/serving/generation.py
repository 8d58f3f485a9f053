"""Generated text as an asynchronous iterator of pieces, with token counts at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, NamedTuple


class Usage(NamedTuple):
    """Token counts of a continuation, and why it ended."""

    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    """`stop`: the model, or a stop text, ended it; `length`: a limit did."""


class Scored(NamedTuple):
    """How well a model predicts a text."""

    tokens: list[str]
    """The text's, in its order; empty where a token is a part of a character or of no text."""
    log_probabilities: list[float]
    """Of each token but the first, given all before it, nats."""


class Generation:
    """`async for piece in generation`; then `usage` is known. `aclose` ends it early.

    Nothing starts before the first piece is requested. A caller that stops early must close it (`async with
    generation` does), so that the model stops as well.
    """

    def __init__(self, source: AsyncGenerator[str | dict[str, Any], None]) -> None:
        self._source = source
        self.usage: Usage | None = None
        """None until the last piece has come."""

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> str:
        item = await anext(self._source)
        if isinstance(item, dict):
            self.usage = Usage(**item)
            item = await anext(self._source)  # ends it
        assert isinstance(item, str)
        return item

    async def aclose(self) -> None:
        """Stop it; the model goes on with other requests."""
        await self._source.aclose()

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
