"""Generated text as an asynchronous iterator of pieces, token counts at the end; how it is chosen."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from pressoir.config import Config

if TYPE_CHECKING:
    from pressoir.inference.generation.token_scores import ScoredToken

MOST_BIASES = 1024
"""Most tokens of a `logit_bias`."""
MOST_SCHEMA_BYTES, MOST_SCHEMA_DEPTH = 32 << 10, 32
"""Largest JSON schema; how long one takes to compile, its compiler bounds."""


_ID = "[0-9]{1,9}"


def _few(bias: Any) -> Any:
    if isinstance(bias, dict) and len(bias) > MOST_BIASES:
        raise ValueError(f"{len(bias)} tokens are given; at most {MOST_BIASES} are allowed")
    if isinstance(bias, dict) and not all(re.fullmatch(_ID, str(token)) for token in bias):
        raise ValueError("a key is not a token id")
    return bias


def _compact(schema: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [schema]
    for _ in range(MOST_SCHEMA_DEPTH):
        level = [
            inner
            for container in level
            for inner in (container.values() if isinstance(container, dict) else container)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise ValueError(f"the schema is nested deeper than {MOST_SCHEMA_DEPTH} levels; flatten it")
    if (size := len(json.dumps(schema, allow_nan=False))) > MOST_SCHEMA_BYTES:
        raise ValueError(f"the schema has {size} bytes; at most {MOST_SCHEMA_BYTES} are allowed")
    return schema


JsonSchema = Annotated[dict[str, Any], AfterValidator(_compact)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]
LogitBias = Annotated[
    dict[Annotated[int, Field(lt=2**31, strict=False)], Annotated[float, Field(ge=-100, le=100)]],
    BeforeValidator(_few),
    Field(json_schema_extra={"maxProperties": MOST_BIASES, "propertyNames": {"pattern": f"^{_ID}$"}}),
]
TopScores = Annotated[int, Field(ge=0, le=20)]
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class GenerationOptions(Config):
    """How tokens are chosen, where a request says it and no tier does; see `Penalties` and `Sampler`."""

    frequency_penalty: Penalty = 0.0
    """Subtracted from a token's logit for each time that it was generated."""
    presence_penalty: Penalty = 0.0
    """Subtracted from a token's logit if it was generated."""
    repetition_penalty: RepetitionPenalty = 1.0
    """Makes tokens of prompt and continuation less likely (above 1) or more likely (below 1)."""
    logit_bias: LogitBias = Field(default_factory=dict)
    """Added to the logits of tokens, by their ids."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Leaves out tokens whose probability is less than this fraction of the most probable one's."""
    top_scores: TopScores | None = None
    """Gives the log-probability of each token, and of this many most probable ones."""
    json_schema: JsonSchema | None = None
    """Makes the text JSON of this schema."""


class Usage(NamedTuple):
    """Token counts of a continuation, and why it ended."""

    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    """`stop`: the model, or a stop text, ended it; `length`: a limit did."""


class Scored(NamedTuple):
    """How well a model predicts a text."""

    tokens: list[ScoredToken]
    """The text's, in its order."""

    @property
    def text(self) -> str:
        """What the tokens are of."""
        return "".join(token["text"] for token in self.tokens)


class Generation:
    """`async for piece in generation`; then `usage` is known. `aclose` ends it early.

    Nothing starts before the first piece is requested. A caller that stops early must close it (`async with
    generation` does), so that the model stops as well.
    """

    def __init__(self, source: AsyncGenerator[dict[str, Any], None]) -> None:
        self._source = source
        self.scored: list[ScoredToken] = []
        """The tokens of the pieces so far, where `top_scores` asks for them."""
        self.usage: Usage | None = None
        """None until the last piece has come."""

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> str:
        item = await anext(self._source)
        self.scored += item.pop("scored", ())
        if "text" not in item:
            self.usage = Usage(**item)
            item = await anext(self._source)  # ends it
        return str(item["text"])

    async def aclose(self) -> None:
        """Stop it; the model goes on with other requests."""
        await self._source.aclose()

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
