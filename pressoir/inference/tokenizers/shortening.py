"""The excerpt of a text that decides which tokens are kept: tokenising costs what is kept, not the rest.

A model takes `limit` tokens, but a tokenizer reads the whole text before the rest is thrown away: seconds for
some texts of 100,000 characters without blanks. Here the beginning of a long text (its end, where the
tokenizer keeps that) is tokenised, longer ones until there are enough tokens.

**Exactness.** Segmentations are found from left to right, by words (WordPiece, byte-level BPE) or as a best
path (Unigram): the tokens up to a boundary between two tokens do not depend on what follows it. A blank
between two letters or digits is such a boundary. Without blanks nobody knows where one is, so the text is cut
at as many neighbouring positions as a token has characters (one must be a boundary) and, because a long
word that is cut may look like a known one, at one farther away than the longest known word (WordPiece: 100
characters). Only a beginning on which all of them agree is believed. If they disagree twice, as within a
single huge word whose segmentation depends on its length, the whole text is tokenised.

**Bounds.** Cuts that agree could all be wrong where tokens are longer than that, or have blanks; no text is
known for which it happens at the beginning of one. At the end of a text (`left`) a best path's
probabilities are sums that begin elsewhere, and rounded: where two segmentations of one word without blanks
are equally probable (`=====…`), the other one may be found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Generator
from typing import TypeVar

Encode = Callable[[str], list[int]]
"""Token ids of a text, without special tokens around it, nothing cut."""
Result = TypeVar("Result")

_BLANK = re.compile(r"(?<=[^\W_]) (?=[^\W_])")
_FAR = 128  # characters between two cuts: more than the longest word of WordPiece
_NEIGHBOURS = (
    17  # cuts beside each other, where there are no blanks: SentencePiece's pieces have 16 characters
)
_SPARSE, _DENSE = 8, 2  # characters a token, more than most texts have: with blanks, and without
_LONGER = 4
_REPLACEMENT = "\ufffd"
_TRIES = 2
_WORTH = 16  # characters a token of the limit, up to which a text is tokenised as it is


def shortened(encode: Encode, text: str, limit: int, *, left: bool = False) -> Generator[None, None, str]:
    """The beginning of `text` that has its first `limit` tokens and at least one more; `left`: the end.

    It is the whole text where that is short, or has no more tokens, or no excerpt can be trusted. A step is
    the tokenisation of one excerpt, see `pressoir.serving.worker.step_scheduler`.
    """
    if len(text) <= _WORTH * limit + 8 * _FAR:
        return text
    size = _first_size(text, limit, left)
    tries = 0
    while 2 * size < len(text) and tries < _TRIES:
        excerpts = [_excerpt(text, cut, left) for cut in _cuts(text, size, left)]
        kept = list[list[int]]()
        for excerpt in excerpts:
            ids = encode(excerpt)
            yield None
            if len(ids) <= limit:
                break
            kept.append(ids[-limit:] if left else ids[:limit])
        else:
            if all(ids == kept[0] for ids in kept[1:]):
                return excerpts[0]
            tries += 1
        size *= _LONGER
    return text


def finished(steps: Generator[None, None, Result]) -> Result:
    """What some steps lead to, all of them done at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


def _excerpt(text: str, size: int, left: bool) -> str:
    return text[len(text) - size :] if left else text[:size]


def _first_size(text: str, limit: int, left: bool) -> int:
    dense = _DENSE * limit + 2 * _FAR
    blanks = len(_BLANK.findall(_excerpt(text, dense, left)))
    return _SPARSE * limit + 2 * _FAR if 2 * _SPARSE * blanks > dense else dense


def _cuts(text: str, size: int, left: bool) -> list[int]:
    """Sizes of the excerpts to compare, the smallest first: at blanks, or else anywhere."""
    first, last = (len(text) - size, len(text) - size // 2) if left else (size // 2, size + 1)
    blanks = [found.start() for found in _BLANK.finditer(text, first, last)]
    sizes = sorted(len(text) - blank if left else blank for blank in blanks)
    if sizes and sizes[0] <= sizes[-1] - _FAR:
        return [max(length for length in sizes if length <= sizes[-1] - _FAR), sizes[-1]]
    return [_far(text, size, left), *(size - _NEIGHBOURS + 1 + index for index in range(_NEIGHBOURS))]


def _far(text: str, size: int, left: bool) -> int:
    """A size so much smaller that no word with pieces of its own begins before and ends after the difference;
    0 if there is none. Normalisation may drop marks and control characters: they do not count."""
    counted = 0
    for smaller in range(size - 1, size // 2, -1):
        character = text[len(text) - smaller - 1] if left else text[smaller]
        counted += character != _REPLACEMENT and unicodedata.category(character)[0] not in "MCZ"
        if counted == _FAR:
            return smaller
    return 0
