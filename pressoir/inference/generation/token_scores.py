"""How probable a model finds tokens: those of a text, those that it generates, and the likeliest instead."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import PressoirError
from pressoir.inference.tokenizers.tokenizers import LanguageModelTokenizer


class TokenScore(NamedTuple):
    """A token in its place."""

    id: int
    log_probability: float | None = None
    """Given all before it, nats, of the logits before any change; None of a text's first token."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """The most probable tokens in its place and their log-probabilities, the most probable first."""


class ScoredToken(TypedDict):
    """A token in its place, as text."""

    text: str
    """What it adds to the text; empty where it is special, or a part of a character that is not complete."""
    bytes: list[int]
    start: int
    """Characters of the text before it."""
    log_probability: float | None
    likeliest: list[tuple[str, list[int], float]]
    """Name, bytes and log-probability of the most probable tokens in its place."""


def token_score(logits: NDArray[np.float32], id: int, top: int) -> TokenScore:
    """The score of a token under `logits` (vocabulary,), and the `top` likeliest.

    Raises:
        PressoirError: the logits are not finite.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    shifted -= np.log(np.exp(shifted).sum())
    if not np.isfinite(shifted[id]):
        raise PressoirError("the model produced logits that are not finite; its weights are corrupt")
    top = min(top, len(shifted))
    chosen = np.argpartition(-shifted, top - 1)[:top] if top else np.zeros(0, dtype=np.int64)
    chosen = chosen[np.lexsort((chosen, -shifted[chosen]))]
    return TokenScore(id, float(shifted[id]), tuple((int(token), float(shifted[token])) for token in chosen))


def scored_token(tokenizer: LanguageModelTokenizer, score: TokenScore, text: str, start: int) -> ScoredToken:
    """A score with the token's `text`, which begins after `start` characters."""
    names = tokenizer.token_bytes
    return {
        "text": text,
        "bytes": list(names[score.id]),
        "start": start,
        "log_probability": score.log_probability,
        "likeliest": [
            (text if id == score.id and text else names.name(id), list(names[id]), value)
            for id, value in score.likeliest
        ],
    }


def complete_last(tokens: list[ScoredToken], text: str) -> None:
    """Give the last token that stands for bytes the `text` of the character that it leaves incomplete."""
    for token in reversed(tokens):
        if token["bytes"]:
            token["text"] += text
            return
