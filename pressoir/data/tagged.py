"""Sentences whose words have tags: how files have them, and in which scheme the tags are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pressoir.data.texts import Words
from pressoir.formats.tags import OUTSIDE, Scheme, converted, scheme_of, split_tag

_DOCUMENT = "-DOCSTART-"
_PREFIXES_OF: dict[Scheme, str] = {"IOB2": "BI", "IOB1": "BI", "BIOES": "BIES", "BILOU": "BIES", "plain": ""}
_NOTES: dict[Scheme, str] = {
    "IOB2": "the tags are IOB2 (BIO)",
    "IOB1": "the tags are IOB1; they are converted to IOB2 (BIO), which marks the same spans",
    "BIOES": "the tags are BIOES",
    "BILOU": "the tags are BILOU; they are converted to BIOES, which marks the same spans",
    "plain": "the tags have no prefixes such as B- and I-; words in a row with the same tag are one span",
}


def items_of(value: Any, what: str) -> list[Any]:
    """A list of words or tags: as JSON and Parquet have it, or as text, a JSON list or parted by spaces.

    Raises:
        ValueError: it is neither.
    """
    missing = (
        value is None or isinstance(value, dict | bytes) or (isinstance(value, float) and math.isnan(value))
    )
    if isinstance(value, str):
        text = value.strip()
        if not (text.startswith("[") and text.endswith("]")):
            return text.split()
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text.split()  # a sentence in brackets
    if missing or not isinstance(value, list | tuple):
        raise ValueError(f"the {what} are not a list")
    return list(value)


def words_of_record(value: Any, column: str | int) -> Words:
    """The words of a record.

    Raises:
        ValueError: there are none, or one of them is no text.
    """
    try:
        words = [word if isinstance(word, str) else str(word) for word in items_of(value, "words")]
    except ValueError as error:
        raise ValueError(f"{error} (column {column!r}); fix the row or data.text_column") from error
    if not words:
        raise ValueError(f"no words (column {column!r}); fix the row or data.text_column")
    if blank := [number for number, word in enumerate(words, 1) if not word.strip()]:
        raise ValueError(f"word {blank[0]} of {len(words)} is empty; fix the row")
    return Words(words)


def sentences_of_columns(
    lines: Iterable[tuple[int, str]], word: str | int, tag: str | int
) -> Iterator[tuple[int, list[str], list[str]] | tuple[int, str]]:
    """Sentences of a file with a word a line, as CoNLL's: columns between spaces or tabs, and an empty line
    after each sentence.

    The word stands in the first column and the tag in the last, unless `word` and `tag` are indices. Gives
    the line where a sentence begins, its words and its tags; or what is wrong with it.
    """
    begin, words, tags, wrong = 0, list[str](), list[str](), ""
    columns = word if isinstance(word, int) else 0, tag if isinstance(tag, int) else -1
    for number, line in [*lines, (0, "")]:
        fields = line.split()
        if fields and fields[0] != _DOCUMENT:
            begin = begin or number
            if len(fields) < 2 or max(columns) >= len(fields):
                wrong = wrong or f"line {number} has {len(fields)} columns; a word and its tag are expected"
                continue
            words.append(fields[columns[0]])
            tags.append(fields[columns[1]])
        elif begin:
            yield (begin, wrong) if wrong else (begin, words, tags)
            begin, words, tags, wrong = 0, [], [], ""


def unify(rows: Sequence[Sequence[tuple[Any, Any]]]) -> tuple[list[list[tuple[Any, Any]]], str]:
    """The rows of all splits with their tags in one scheme, see `converted`; and a remark that names it."""
    scheme = scheme_of(tags for split in rows for _, tags in split)
    return [[(words, tuple(converted(tags, scheme))) for words, tags in split] for split in rows], _NOTES[
        scheme
    ]


def in_order(tags: Iterable[str]) -> tuple[str, ...]:
    """Different tags, `O` first, then by type; of each type every prefix that the scheme has."""
    found = set(tags)
    scheme = scheme_of([sorted(found)])
    if scheme == "plain":
        return tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, tag)))
    prefixes = _PREFIXES_OF["BIOES" if any(split_tag(tag)[0] in ("E", "S") for tag in found) else "IOB2"]
    kinds = sorted({split_tag(tag)[1] for tag in found if tag != OUTSIDE})
    named = (prefix if kind == "_" else f"{prefix}-{kind}" for kind in kinds for prefix in prefixes)
    return (OUTSIDE, *named)
