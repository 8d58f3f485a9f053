"""The names of the classes: what a label in a file is called, which labels are the same, and their order."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pressoir.errors import DataError

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
            "the label is a list; one label per text is supported, neither several (multi-label) nor one "
            "per word (token classification)"
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
                "regression is not supported (labels that look like numbers can be listed in data.labels)"
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
