"""The labels of a text: how a file or a data set has them, which are the same, and their order.

`LABELLINGS` has an entry for each kind of problem (`data.problem`): one name, a tuple of names, a number, or
a tuple of names, one for each word.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pressoir.data import tagged
from pressoir.errors import DataError
from pressoir.formats.problems import MULTI_LABEL, REGRESSION, SCORE, SINGLE_LABEL, TOKENS
from pressoir.recipe.sections import DataConfig

_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+)")
_INTEGER = re.compile(r"[+-]?\d+")


def name_of(value: Any, labels: Sequence[str] | None = None) -> str:
    """The name of a label as a file or a data set has it: `1`, `1.0` and `"1"` are all `1`.

    With `labels` it must be one of these, as it is written or by that name.

    Raises:
        ValueError: there is none, it is a list, a number that is not whole, or not one of `labels`.
    """
    if isinstance(value, list | tuple | dict):
        raise ValueError(
            "the label is a list; a text has one label unless data.problem is multi-label (one per word: set "
            "task: token-classification)"
        )
    missing = value is None or isinstance(value, bytes) or (isinstance(value, float) and math.isnan(value))
    written = "" if missing else str(value).strip()
    if not written:
        raise ValueError("no label")
    if labels is not None and written in labels:
        return written
    name = written
    if not isinstance(value, bool | int) and _DECIMAL.fullmatch(written):
        if not float(written).is_integer():
            raise ValueError(
                f"label {written!r} is a number that is not whole; classes are whole numbers or names, and "
                "scores need data.problem: regression (labels that look like numbers can be listed in "
                "data.labels)"
            )
        name = str(int(float(written)))
    if labels is not None and name not in labels:
        raise ValueError(f"label {written!r} is not one of {list(labels)}")
    return name


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Different names sorted: whole numbers by value, anything else as text.

    Raises:
        DataError: two of them are one label in two spellings (`true` and `1`, `Spam` and `spam`).
    """
    by_meaning: dict[int | str, list[str]] = {}
    for name in sorted(set(names)):
        by_meaning.setdefault(_meaning(name), []).append(name)
    if alike := [spellings for spellings in by_meaning.values() if len(spellings) > 1]:
        listing = "; ".join(" and ".join(map(repr, spellings)) for spellings in alike[:10])
        raise DataError(
            f"labels that differ only in how they are written: {listing}; write each in one way, or list all "
            "labels in data.labels if they are different classes"
        )
    found = [spellings[0] for spellings in by_meaning.values()]
    numbers = all(_INTEGER.fullmatch(name) for name in found)
    return tuple(sorted(found, key=int) if numbers else sorted(found))


def _meaning(name: str) -> int | str:
    lowered = name.casefold()
    if lowered in ("true", "false"):
        return int(lowered == "true")
    return int(name) if _INTEGER.fullmatch(name) else lowered


Label = str | tuple[str, ...] | float
"""What a row has: a name, several names in the order in which they were written, or a score."""


def _one_name(value: Any, labels: Sequence[str] | None, own: Sequence[str] | None, config: DataConfig) -> str:
    if own is not None and isinstance(value, int):
        value = own[value] if 0 <= value < len(own) else None  # −1 where it is hidden
    return name_of(value, labels)


def _several_names(
    value: Any, labels: Sequence[str] | None, own: Sequence[str] | None, config: DataConfig
) -> tuple[str, ...]:
    """Those of a list, or of a text with separators, whose empty form has none."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("[") and text.endswith("]"):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"labels {text[:80]!r} are not a list of JSON; write them as one, or with "
                    "data.label_separator between them"
                ) from error
        else:
            parts = text.split(config.label_separator or ",") if text else []
            value = [part for part in map(str.strip, parts) if part]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("no label")
    if isinstance(value, dict | bytes):
        raise ValueError("the labels are neither a list nor text")
    found = [value] if not isinstance(value, list | tuple) else value
    return tuple(dict.fromkeys(_one_name(each, labels, own, config) for each in found))


def _number(value: Any, labels: Sequence[str] | None, own: Sequence[str] | None, config: DataConfig) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError("no label")
    try:
        number = math.nan if isinstance(value, bool | bytes | list | dict) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or abs(number) > _LARGEST:
        raise ValueError(f"label {str(value)[:80]!r} is not a finite number, as a regression needs")
    return number


def _tags(
    value: Any, labels: Sequence[str] | None, own: Sequence[str] | None, config: DataConfig
) -> tuple[str, ...]:
    """One for each word; numbers are indices into the labels that are given."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("no label")
    return tuple(_one_name(each, labels, own or labels, config) for each in tagged.items_of(value, "tags"))


_LARGEST = 3.4e38
"""Of float32, in which scores are trained."""


def _index(label: Label, labels: Sequence[str]) -> Any:
    return labels.index(str(label))


def _indices(label: Label, labels: Sequence[str]) -> Any:
    assert isinstance(label, tuple)
    return sorted(labels.index(name) for name in label)


def _itself(label: Label, labels: Sequence[str]) -> Any:
    return label


def _tag_indices(label: Label, labels: Sequence[str]) -> Any:
    assert isinstance(label, tuple)
    return [labels.index(name) for name in label]


def _moved(stored: int, places: Sequence[int]) -> Any:
    return places[stored]


def _all_moved(stored: Sequence[int], places: Sequence[int]) -> Any:
    return sorted(places[index] for index in stored)


def _each_moved(stored: Sequence[int], places: Sequence[int]) -> Any:
    return [places[index] for index in stored]


def _unmoved(stored: float, places: Sequence[int]) -> Any:
    return stored


@dataclass(frozen=True)
class Labelling:
    """How the labels of one kind of problem are read and stored."""

    read: Callable[[Any, Sequence[str] | None, Sequence[str] | None, DataConfig], Label]
    """`(value, labels that there are, names of the data set's class numbers, config)`; raises ValueError."""
    names: Callable[[Any], Iterable[str]]
    """The names in a row's label."""
    stored: Callable[[Label, Sequence[str]], Any]
    """What a row of a saved data folder has: an index into the labels, a sorted list of them, or the
    number."""
    moved: Callable[[Any, Sequence[int]], Any]
    """That for labels in another order, by the place of each."""
    least: int
    """Labels that there must be."""
    too_few: str
    fixed: tuple[str, ...] | None = None
    """The labels, where data have none."""
    order: Callable[[Iterable[str]], tuple[str, ...]] = in_order
    """Those that are found, in their order; raises DataError."""


LABELLINGS = {
    SINGLE_LABEL.name: Labelling(
        _one_name, lambda name: (name,), _index, _moved, 2, "a classifier needs at least two"
    ),
    MULTI_LABEL.name: Labelling(
        _several_names, lambda names: names, _indices, _all_moved, 1, "a multi-label classifier needs one"
    ),
    REGRESSION.name: Labelling(_number, lambda _: (), _itself, _unmoved, 1, "", (SCORE,)),
    TOKENS.name: Labelling(
        _tags,
        lambda tags: tags,
        _tag_indices,
        _each_moved,
        2,
        "a token classifier needs at least two",
        order=tagged.in_order,
    ),
}
