"""How a table is laid out: its encoding, delimiter, quoting and header, found by reading it in each way.

The readers are those of `pressoir.data.tables`: a layout is the settings with which they make the most
regular table of a file, and of settings that do equally well the file type's own.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pressoir.config import validate
from pressoir.data import tables
from pressoir.data.columns import NAMES, is_missing, number_of
from pressoir.errors import DataError
from pressoir.recipe.sections import DataConfig
from pressoir.system.reader import shown

SAMPLE = 5000
"""Records that are looked at: the first ones for the delimiter, of the whole file for the columns."""
DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "vertical bar"}
_DELIMITED = {".csv": (",", "csv"), ".tsv": ("\t", "none"), ".txt": ("\t", "none")}
_NEARLY_ALL = 0.98
"""Fraction of the records that must have the same columns without quoting where reading it as CSV fails."""
_LETTER, _FOREIGN = re.compile(r"[^\W\d_]"), re.compile(r"[^\W\d_\x00-\x7f]")
_STRANGE = re.compile("[a-zA-Z][^\\w\\s\x00-\x7f\u2019\xad\xb7][a-zA-Z]")
"""A sign inside of a word, such as `³` where Polish has `ł`."""


@dataclass(frozen=True)
class Layout:
    """How one file is laid out, and its first records."""

    path: Path
    settings: dict[str, Any]
    """Fields of `DataConfig` without which the file is not read rightly."""
    encoding: str | None
    """The encoding it is read in; None of Parquet."""
    encoding_guess: str | None
    """A word that shows whether the encoding was guessed rightly; None where nothing was guessed."""
    delimiter: str | None
    """Of TSV and CSV only, as `quoting` and `header_reason`."""
    quoting: str | None
    header_reason: str | None
    """Why the first line is, or is not, the columns' names."""
    columns: tuple[str | int, ...]
    """As `data.text_column` names them."""
    rows: tuple[dict[str | int, Any], ...]
    """The sample's records by column; malformed ones are left out."""

    @property
    def header(self) -> bool:
        """Whether a TSV or CSV file has one."""
        return bool(self.settings.get("header", True))


def find(path: Path, encoding: str | None = None) -> Layout:
    """How a file is laid out; an encoding that is given is taken.

    Raises:
        DataError: it cannot be read, is no table of at least two columns, or is in an encoding that cannot be
            recognised.
    """
    kind, settings, guess = path.suffix.lower(), dict[str, Any](), None
    base = validate(DataConfig, {"encoding": encoding}, "pressoir init")
    if kind == ".parquet":
        return _of_objects(path, {}, None, None)
    if encoding is None and (found := guess_encoding(path)):
        encoding, guess = found
        base = DataConfig(encoding=encoding)
    if encoding is not None:
        settings["encoding"] = encoding
    read_as = encoding or tables.encoding_of(path)
    if kind not in _DELIMITED:
        return _of_objects(path, settings, read_as, guess)
    delimiter, quoting, rows = _most_regular(path, base)
    usual = _DELIMITED[kind]
    settings |= {"delimiter": delimiter} if delimiter != usual[0] else {}
    settings |= {"quoting": quoting} if quoting != usual[1] else {}
    header, reason = _find_header(rows)
    width = Counter(map(len, rows)).most_common(1)[0][0]
    columns: list[str | int] = list(range(width))
    if header:
        names, rows = rows[0], rows[1:]
        columns = [name if name.strip() and names.count(name) == 1 else i for i, name in enumerate(names)]
    else:
        settings["header"] = False
    if not rows:
        raise DataError(f"{path} has no rows below its header")
    records = tuple(dict(zip(columns, row, strict=False)) for row in rows if len(row) <= len(columns))
    return Layout(path, settings, read_as, guess, delimiter, quoting, reason, tuple(columns), records)


def _of_objects(path: Path, settings: dict[str, Any], encoding: str | None, guess: str | None) -> Layout:
    """That of JSONL and Parquet, whose records name their columns themselves."""
    sample = _sample(tables.records(path, DataConfig(encoding=settings.get("encoding"))))
    rows = tuple(record for record in sample if isinstance(record, dict))
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    if not rows:
        raise DataError(f"{path} has no records" + (f"; the first is {sample[0]}" if sample else ""))
    return Layout(path, settings, encoding, guess, None, None, None, columns, rows)


def guess_encoding(path: Path) -> tuple[str, str] | None:
    """cp1252 and a word to check it by, of text that is not UTF-8, -16 or -32; None of text that is.

    Raises:
        DataError: it does not read like Western European text either.
    """
    try:
        for _ in tables.lines_of(path):
            pass
    except DataError as error:
        content = path.read_bytes()
        if not any(_is_utf8(line) for line in content.split(b"\n") if not line.isascii()):
            text = content.decode("cp1252", "replace")
            foreign = len(_FOREIGN.findall(text))
            letters, strange = len(_LETTER.findall(text)), len(_STRANGE.findall(text))
            if "\ufffd" not in text and foreign < 0.3 * letters and strange <= 0.1 * foreign:
                return "cp1252", next((w for w in text.split() if _FOREIGN.search(w)), text.strip()[:40])
        raise DataError(f"{error}; pressoir init takes it as --encoding") from error
    return None


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _most_regular(path: Path, base: DataConfig) -> tuple[str, str, list[list[str]]]:
    """The delimiter and the quoting with which most records have the same number of columns; a sample."""
    usual_delimiter, usual_quoting = _DELIMITED[path.suffix.lower()]
    found: dict[tuple[str, str], list[list[str]]] = {}
    shares: dict[tuple[str, str], float] = {}
    refusals: dict[str, DataError] = {}  # by delimiter, of the quoting that it is first tried with
    for delimiter in dict.fromkeys((usual_delimiter, *DELIMITERS)):
        first = usual_quoting if delimiter == "\t" else "csv"
        for quoting in dict.fromkeys((first, "none", "csv")):
            config = base.model_copy(update={"delimiter": delimiter, "quoting": quoting})
            try:
                sample = list(islice(tables.records(path, config), SAMPLE))
            except DataError as error:
                if quoting == first:
                    refusals[delimiter] = error
                continue
            rows = [row for row in sample if isinstance(row, list)]
            found[delimiter, quoting], shares[delimiter, quoting] = rows, _regularity(rows)
    best = max(shares, key=lambda layout: shares[layout], default=(usual_delimiter, usual_quoting))
    share = shares.get(best, 0.0)
    if best[0] in refusals and best[1] == "none" and share < _NEARLY_ALL:
        raise refusals[best[0]]
    if not found.get(best):
        raise refusals.get(best[0], DataError(f"{path} has no records"))
    if share < 0.5:
        raise DataError(
            f"{path}: neither a tab nor a comma, a semicolon or a vertical bar separates its lines into the "
            "same columns; a table has a column of texts and one of labels"
        )
    delimiter, quoting = best
    quoted = (delimiter, "csv")
    if quoting == "none" and shares.get(quoted, 0) >= share and _looks_quoted(found[best]):
        quoting = "csv"
    rows = found[delimiter, quoting]
    if len(rows) == SAMPLE:
        config = base.model_copy(update={"delimiter": delimiter, "quoting": quoting})
        rows = [row for row in _sample(tables.records(path, config)) if isinstance(row, list)]
    return delimiter, quoting, rows


def _sample(records: Iterable[tables.Record]) -> list[tables.Record]:
    """The first record, and others of the whole file: it may be sorted by its labels."""
    rng, kept = random.Random(0), list[tables.Record]()
    for number, record in enumerate(records):
        if number < SAMPLE:
            kept.append(record)
        elif (place := rng.randrange(1, number + 1)) < SAMPLE:
            kept[place] = record
    return kept


def _regularity(rows: Sequence[Sequence[str]]) -> float:
    """Fraction of the rows that have as many columns as most, which must be two at least."""
    width, count = Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
    if width < 2 or len(rows[0]) != width:
        return 0.0
    return count / len(rows)


def _looks_quoted(rows: Sequence[Sequence[str]]) -> bool:
    """Whether a column stands in double quotes as CSV writes them: most fields, or one with `""` inside."""
    for column in zip(*(row for row in rows if len(row) == len(rows[0])), strict=True):
        quoted = [field for field in map(str.strip, column) if tables.QUOTED.fullmatch(field)]
        if any('""' in field[1:-1] for field in quoted) or len(quoted) > max(1, len(column) / 2):
            return True
    return False


def _find_header(rows: Sequence[Sequence[str]]) -> tuple[bool, str]:
    """Whether the first row names the columns, and why it is thought so."""
    first, rest = rows[0], rows[1:]
    columns = [[row[i] for row in rest if len(row) > i and not is_missing(row[i])] for i in range(len(first))]
    few = [bool(values) and 2 * len(set(values)) <= len(values) for values in columns]
    for cell, values in zip(first, columns, strict=True):
        if cell.strip().casefold() in NAMES and cell not in values:
            return True, f"the first line has the name {shown(cell)}"
    for cell, values, repeats in zip(first, columns, few, strict=True):
        if repeats and cell in values:
            return False, f"the first line has {shown(cell)} where other lines have it too"
    short = all(len(cell.split()) <= 3 for cell in first)
    for cell, values, repeats in zip(first, columns, few, strict=True):
        if not short or is_missing(cell):
            continue
        if values and number_of(cell) is None and all(number_of(value) is not None for value in values):
            return True, f"the first line has {shown(cell)} above numbers"
        if repeats and min(Counter(values).values()) > 1:
            return True, f"the first line has {shown(cell)} above a column of other values that repeat"
    return False, "the first line looks like the others"
