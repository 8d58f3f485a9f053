"""Texts to token ids in steps, for a server: what a step costs depends on what is kept, not on the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pressoir.inference.tokenizers.shortening import shortened
from pressoir.inference.tokenizers.tokenizers import FastTokenizer, encode_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEP = 8192
"""Characters of the texts that are tokenised in one step, if they are several."""


class Encoded(NamedTuple):
    """Some of several texts as a model takes them."""

    rows: list[int]
    """Which of the texts they are."""
    inputs: dict[str, NDArray[np.int64]]
    """Token ids and masks, see `encode_batch`."""
    truncated: list[bool]
    """Whether a text has more tokens than these."""


def iter_encoded(
    tokenizer: FastTokenizer | PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None = None
) -> Iterator[Encoded | None]:
    """What `encode_batch` gives, in steps: each gives some of the texts, or None.

    All come together where they are short, else those of like length.
    """
    limit = min(max_length or tokenizer.model_max_length, tokenizer.model_max_length)
    encode, left = partial(_whole, tokenizer), tokenizer.truncation_side == "left"
    excerpts, characters = dict[int, str](), 0
    for row in sorted(range(len(texts)), key=lambda index: len(texts[index])):
        excerpt = yield from shortened(encode, texts[row], limit, left=left)
        if excerpts and characters + len(excerpt) > STEP:
            yield _encoded(tokenizer, texts, excerpts, limit)
            excerpts, characters = {}, 0
        excerpts[row] = excerpt
        characters += len(excerpt)
    yield _encoded(tokenizer, texts, excerpts, limit)


def _encoded(
    tokenizer: FastTokenizer | PreTrainedTokenizerBase,
    texts: Sequence[str],
    excerpts: dict[int, str],
    limit: int,
) -> Encoded:
    rows = sorted(excerpts)
    inputs = encode_batch(tokenizer, [excerpts[row] for row in rows], limit)
    room = limit - _special_tokens(tokenizer)
    truncated = [
        len(excerpts[row]) < len(texts[row])
        or (tokens >= limit and len(_whole(tokenizer, excerpts[row])) > room)
        for row, tokens in zip(rows, inputs["attention_mask"].sum(axis=1).tolist(), strict=True)
    ]
    return Encoded(rows, inputs, truncated)


def _whole(tokenizer: FastTokenizer | PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, nothing added, nothing cut."""
    if isinstance(tokenizer, FastTokenizer):
        return tokenizer.whole(text)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _special_tokens(tokenizer: FastTokenizer | PreTrainedTokenizerBase) -> int:
    if isinstance(tokenizer, FastTokenizer):
        return tokenizer.special_tokens
    return int(tokenizer.num_special_tokens_to_add())
