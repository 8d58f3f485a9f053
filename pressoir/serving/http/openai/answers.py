"""What the paths of OpenAI's API answer, for the OpenAPI document.

Sources. https://github.com/openai/openai-openapi
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pressoir.serving.http.answers import Answer, Number

LogProbability = Annotated[float, Field(le=0)]
FinishReason = Literal["stop", "length"]


class ModelDescription(Answer):
    """A tier."""

    id: str
    object: Literal["model"]
    created: int
    """When the server was started, seconds since 1970."""
    owned_by: str


class Models(Answer):
    """The tiers."""

    object: Literal["list"]
    data: list[ModelDescription]


class TokenUsage(Answer):
    """Numbers of tokens."""

    prompt_tokens: Number
    completion_tokens: Number
    total_tokens: Number


class EmbeddingUsage(Answer):
    """Numbers of tokens."""

    prompt_tokens: Number
    total_tokens: Number


class Embedding(Answer):
    """A vector of length 1."""

    object: Literal["embedding"]
    index: Number
    embedding: list[float] | Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
    """Numbers, or the base64 of them as float32, little-endian."""
    truncated: Literal[True] = True
    """Only of a text that is longer than what was read of it."""


class EmbeddingList(Answer):
    """The vectors of texts, in their order."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class TokenScores(Answer):
    """Log-probabilities of a completion's tokens: four lists with an entry per token."""

    tokens: list[str]
    token_logprobs: list[LogProbability | None]
    """Null of the first token of a text."""
    top_logprobs: list[dict[str, LogProbability] | None]
    text_offset: list[Number]


class ChatTokenScore(Answer):
    """A token and its log-probability."""

    token: str
    logprob: LogProbability | None
    bytes: list[Annotated[int, Field(ge=0, le=255)]] | None


class ChatToken(ChatTokenScore):
    """A token of a chat, with the most probable ones in its place."""

    top_logprobs: list[ChatTokenScore]


class ChatScores(Answer):
    """Log-probabilities of a chat's tokens."""

    content: list[ChatToken]
    refusal: None


class CompletionChoice(Answer):
    """The continuation of a prompt."""

    index: Number
    text: str
    logprobs: TokenScores | None
    finish_reason: FinishReason


class CompletionPart(CompletionChoice):
    """A piece of a continuation; the last one has a reason."""

    finish_reason: FinishReason | None  # type: ignore[assignment]


class Message(Answer):
    """What the model says."""

    role: Literal["assistant"]
    content: str


class ChatChoice(Answer):
    """The next message of a chat."""

    index: Number
    message: Message
    logprobs: ChatScores | None
    finish_reason: FinishReason


class Delta(Answer):
    """A piece of a message; the first says who speaks, the last is empty."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatPart(Answer):
    """A piece of a message; the last one has a reason."""

    index: Number
    delta: Delta
    logprobs: ChatScores | None
    finish_reason: FinishReason | None


class _Head(Answer):
    id: str
    created: int
    """Seconds since 1970."""
    model: str


class CompletionAnswer(_Head):
    """Continuations of prompts, in their order."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: TokenUsage


class CompletionChunk(_Head):
    """An event of a streamed completion."""

    object: Literal["text_completion"]
    choices: list[CompletionPart]
    usage: TokenUsage | None = None
    """With `include_usage`: null but in the last event, which has no choice."""


class ChatAnswer(_Head):
    """The next message of a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: TokenUsage


class ChatChunk(_Head):
    """An event of a streamed chat."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatPart]
    usage: TokenUsage | None = None
    """With `include_usage`: null but in the last event, which has no choice."""
