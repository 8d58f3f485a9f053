"""What a classifier is asked: a text, or a pair of texts.

A pair is a tuple, which the encode calls of tokenizers and transformers take as such: most of Pressoir passes
texts through without looking inside. A data folder has the second text of a row in the column `text_pair`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pressoir.errors import DataError

Text = str | tuple[str, str]
PAIR = "text_pair"
"""Column of the second text; and the fact of a data folder, and the field of a `config.json`, that it is true
of pairs."""


def texts_of(rows: Any) -> list[Text]:
    """The texts of a data folder's split, in its order."""
    first = list(rows["text"])
    return list(zip(first, rows[PAIR], strict=True)) if PAIR in rows.column_names else first


def text_of(row: Mapping[str, Any]) -> Text:
    """The text of one row."""
    return (row["text"], row[PAIR]) if PAIR in row else str(row["text"])


def as_read(text: Text) -> str:
    """One text to be read: of a pair both, with a bar between them."""
    return text if isinstance(text, str) else " | ".join(text)


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
