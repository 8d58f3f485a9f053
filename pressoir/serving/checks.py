"""Checks of a request's content before it is queued."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import DataError
from pressoir.serving.errors import RequestError


def as_list(text: str | Sequence[str]) -> list[str]:
    """One text or several, as a list."""
    return [text] if isinstance(text, str) else list(text)


def check_texts(texts: Sequence[str | list[int]], max_batch: int) -> None:
    """Refuse a request of no texts or too many, or with a text that is empty or not valid Unicode.

    Token ids are checked by the model, which knows its vocabulary.

    Raises:
        RequestError: it says which.
    """
    if not 1 <= len(texts) <= max_batch:
        raise RequestError(f"the request has {len(texts)} texts; expected 1 to {max_batch}")
    for index, text in enumerate(texts):
        if not isinstance(text, list):
            check_text(text, f"text {index}" if len(texts) > 1 else "the text")


def check_prompt(prompt: str | Sequence[int], what: str) -> None:
    """Refuse an empty prompt, of text or of token ids; raises RequestError."""
    if isinstance(prompt, str):
        check_text(prompt, what)
    elif not prompt:
        raise RequestError(f"{what} has no tokens")


def check_text(text: str, what: str) -> None:
    """Refuse what is no text, or has nothing in it; raises RequestError."""
    if not isinstance(text, str):
        raise RequestError(f"{what} is a {type(text).__name__}; expected a string")
    if not text.strip():
        raise RequestError(f"{what} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{what} is not valid Unicode text: lone surrogate at {error.start}") from None


def check_waveform(waveform: NDArray[np.float32]) -> None:
    """Refuse what is not mono float32 audio; raises RequestError."""
    from pressoir.inference.audio import check_waveforms

    try:
        check_waveforms([np.asarray(waveform)])
    except DataError as error:
        raise RequestError(str(error)) from error
