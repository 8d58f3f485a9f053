"""Checks of a request's content before it is queued."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pressoir.data.texts import Text
from pressoir.errors import DataError
from pressoir.serving.errors import RequestError


def as_list(text: str | Sequence[str]) -> list[str]:
    """One text or several, as a list."""
    return [text] if isinstance(text, str) else list(text)


def paired(text: str | Sequence[str], second: str | Sequence[str] | None) -> list[Text]:
    """Texts with their second ones, or, without these, as they are.

    Raises:
        RequestError: there is not one second text for each text.
    """
    texts = as_list(text)
    if any(isinstance(one, list | tuple) for one in texts):
        raise RequestError(
            "a text is a list; expected a string (of pairs, send the second texts as text_pair)"
        )
    if second is None:
        return list(texts)
    others = as_list(second)
    if isinstance(text, str) != isinstance(second, str) or len(texts) != len(others):
        raise RequestError(
            f"text_pair has {len(others)} texts, but text has {len(texts)}; each text needs one, in a list "
            "where text is one"
        )
    return list(zip(texts, others, strict=True))


def check_pairs(texts: Sequence[Text], pairs: bool, tier: str | None) -> None:
    """Refuse single texts for a model of pairs, and pairs for another one; raises RequestError."""
    given, what = not isinstance(texts[0], str), "the tier" if tier is None else f"tier {tier!r}"
    if pairs and not given:
        raise RequestError(f"{what} was trained on pairs of texts; send the second text as text_pair")
    if given and not pairs:
        raise RequestError(f"{what} was trained on single texts; omit text_pair")


def check_texts(texts: Sequence[Text | list[int] | list[str]], max_batch: int) -> None:
    """Refuse a request of no texts or too many, or with a text that is empty or not valid Unicode.

    Token ids are checked by the model, which knows its vocabulary, and words by `check_sentences`.

    Raises:
        RequestError: it says which.
    """
    if not 1 <= len(texts) <= max_batch:
        raise RequestError(f"the request has {len(texts)} texts; expected 1 to {max_batch}")
    for index, text in enumerate(texts):
        if isinstance(text, tuple):
            for part, name in zip(text, ("text", "text_pair"), strict=True):
                check_text(part, f"{name} {index}" if len(texts) > 1 else f"the {name}")
        elif not isinstance(text, list):
            check_text(text, f"text {index}" if len(texts) > 1 else "the text")


def check_sentences(sentences: Sequence[Sequence[str]]) -> None:
    """Refuse a sentence without words, or one that is empty or not valid Unicode; raises RequestError."""
    for index, words in enumerate(sentences):
        if not words:
            raise RequestError(f"sentence {index} has no words")
        for place, word in enumerate(words):
            check_text(word, f"word {place} of sentence {index}")


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
