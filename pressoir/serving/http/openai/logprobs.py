"""Log-probabilities of tokens as OpenAI's two completions show them.

Sources. https://github.com/openai/openai-openapi (`CreateCompletionResponse`, `ChatCompletionTokenLogprob`)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pressoir.inference.generation.token_scores import ScoredToken


def after(tokens: Iterable[ScoredToken], characters: int) -> list[ScoredToken]:
    """The tokens where so many characters stand before their text."""
    return [{**token, "start": token["start"] + characters} for token in tokens]


def of_completion(tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    """Four lists with an entry per token; a text's first token has no probability."""
    return {
        "tokens": [token["text"] for token in tokens],
        "token_logprobs": [token["log_probability"] for token in tokens],
        "top_logprobs": [_named(token) for token in tokens],
        "text_offset": [token["start"] for token in tokens],
    }


def of_chat(tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    """An object per token."""
    content = [
        {
            **_entry(token["text"], token["bytes"], token["log_probability"]),
            "top_logprobs": [_entry(*candidate) for candidate in token["likeliest"]],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(text: str, content: list[int], value: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": content or None}


def _named(token: ScoredToken) -> dict[str, float] | None:
    """The likeliest tokens and this one; of two of the same name the likelier one."""
    if token["log_probability"] is None:
        return None
    found = {text: value for text, _, value in reversed(token["likeliest"])}
    return {
        **dict(reversed(found.items())),
        **({} if token["text"] in found else {token["text"]: token["log_probability"]}),
    }
