"""What a classifier is asked: a text, a pair of texts, or the words of a sentence.

A pair is a tuple, which the encode calls of tokenizers and transformers take as such: most of Pressoir passes
texts through without looking inside. A data folder has the second text of a row in the column `text_pair`.
The words of a sentence, for a token classifier, are `Words`; a data folder has them as a list in `text`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pressoir.errors import DataError


class Words(tuple[str, ...]):
    """The words of a sentence, which a token classifier tags one by one."""

    __slots__ = ()


Text = str | tuple[str, str] | Words
_WORD = re.compile(r"\w+|[^\w\s]")
PAIR = "text_pair"
"""Column of the second text; and the fact of a data folder, and the field of a `config.json`, that it is true
of pairs."""


def texts_of(rows: Any) -> list[Text]:
    """The texts of a data folder's split, in its order."""
    first = [_text(text) for text in rows["text"]]
    return list(zip(first, rows[PAIR], strict=True)) if PAIR in rows.column_names else first


def _text(stored: str | Sequence[str]) -> Any:
    return stored if isinstance(stored, str) else Words(stored)


def text_of(row: Mapping[str, Any]) -> Text:
    """The text of one row."""
    text: Text = (row["text"], row[PAIR]) if PAIR in row else _text(row["text"])
    return text


def as_read(text: Text) -> str:
    """One text to be read: of a pair both, with a bar between them; words with spaces."""
    if isinstance(text, str):
        return text
    return (" " if isinstance(text, Words) else " | ").join(text)


def words_of(text: str) -> Words:
    """The words of a text: letters and digits in a row, and every other character that is not a space."""
    return Words(_WORD.findall(text))


def given_words(text: str) -> Words:
    """The words of a text where a column of texts is all there is: those of `words_of`, or, of a text that is
    a JSON list of strings, these.
    """
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return words_of(text)
        if isinstance(found, list) and found and all(isinstance(word, str) for word in found):
            return Words(found)
    return words_of(text)


def characters(text: Text) -> int:
    """How long a text is, or the two of a pair together."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


def check_pair(text: Any, pairs: bool) -> None:
    """Refuse a single text for a classifier of pairs, and a pair for another one.

    Raises:
        DataError: it says what the model takes.
    """
    if isinstance(text, str) and pairs:
        raise DataError(
            "the model was trained on pairs of texts, but the text is a single one; add text_pair"
        )
    if not isinstance(text, str) and not pairs:
        raise DataError(
            "the model was trained on single texts, but the text is a pair; omit text_pair (if the model was "
            f'trained on pairs elsewhere, add "{PAIR}": true to its config.json)'
        )


def takes_pairs(config: Mapping[str, Any]) -> bool:
    """Whether a classifier was trained on pairs, by its `config.json`."""
    return config.get(PAIR) is True
