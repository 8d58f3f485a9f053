"""Texts to token ids in steps, for a server: what a step costs depends on what is kept, not on the texts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pressoir.data.texts import Text, Words, characters
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
    tokenizer: FastTokenizer | PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int | None = None
) -> Iterator[Encoded | None]:
    """What `encode_batch` gives, in steps: each gives some of the texts, or None.

    All come together where they are short, else those of like length.
    """
    limit = min(max_length or tokenizer.model_max_length, tokenizer.model_max_length)
    encode, left = partial(_whole, tokenizer), tokenizer.truncation_side == "left"
    excerpts, size = dict[int, Text](), 0
    for row in sorted(range(len(texts)), key=lambda index: characters(texts[index])):
        text = texts[row]
        excerpt: Text
        if isinstance(text, str | Words):  # words have steps of their own, see `iter_word_logits`
            assert isinstance(text, str)
            excerpt = yield from shortened(encode, text, limit, left=left)
        else:
            room = limit - _special_tokens(tokenizer, pair=True)
            excerpt = yield from _shortened_pair(encode, text, limit, room, left)
        if excerpts and size + characters(excerpt) > STEP:
            yield _encoded(tokenizer, texts, excerpts, limit)
            excerpts, size = {}, 0
        excerpts[row] = excerpt
        size += characters(excerpt)
    yield _encoded(tokenizer, texts, excerpts, limit)


def _shortened_pair(
    encode: Callable[[str], list[int]], pair: tuple[str, str], limit: int, room: int, left: bool
) -> Generator[None, None, tuple[str, str]]:
    """Excerpts of both texts that are cut to the same tokens as the whole ones; `room` is what they share.

    Where both have more than half of an odd number of tokens, the longer one gets one more: if the excerpts
    do not tell which that is, they are the whole texts.
    """
    first = yield from shortened(encode, pair[0], limit, left=left)
    second = yield from shortened(encode, pair[1], limit, left=left)
    if (first, second) == pair or room % 2 == 0:
        return first, second
    counts = len(encode(first)), len(encode(second))
    yield None
    longer = counts[0] <= counts[1]  # the one that has more as far as is known
    known = (first, second)[not longer] == pair[not longer]
    return (first, second) if known or min(counts) <= room // 2 else pair


def _encoded(
    tokenizer: FastTokenizer | PreTrainedTokenizerBase,
    texts: Sequence[Text],
    excerpts: dict[int, Text],
    limit: int,
) -> Encoded:
    rows = sorted(excerpts)
    inputs = encode_batch(tokenizer, [excerpts[row] for row in rows], limit)
    truncated = [
        excerpts[row] != texts[row] or (tokens >= limit and _overflows(tokenizer, texts[row], limit))
        for row, tokens in zip(rows, inputs["attention_mask"].sum(axis=1).tolist(), strict=True)
    ]
    return Encoded(rows, inputs, truncated)


def _overflows(tokenizer: FastTokenizer | PreTrainedTokenizerBase, text: Text, limit: int) -> bool:
    """Whether a text, or a pair, has more tokens than `limit`."""
    parts = (text,) if isinstance(text, str) else text
    room = limit - _special_tokens(tokenizer, pair=not isinstance(text, str))
    return sum(len(_whole(tokenizer, part)) for part in parts) > room


def _whole(tokenizer: FastTokenizer | PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, nothing added, nothing cut."""
    if isinstance(tokenizer, FastTokenizer):
        return tokenizer.whole(text)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _special_tokens(tokenizer: FastTokenizer | PreTrainedTokenizerBase, pair: bool) -> int:
    if isinstance(tokenizer, FastTokenizer):
        return tokenizer.special_tokens(pair)
    return int(tokenizer.num_special_tokens_to_add(pair))
