"""Rows of text and label from TSV, CSV, JSONL and Parquet files, each malformed one with its line.

What a file cannot be read as a whole for (a broken Parquet file, an encoding, a column that is missing) stops
at once; malformed rows are all found before they are refused or left out.
"""

from __future__ import annotations

import codecs
import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressoir.data import tagged
from pressoir.data.classes import LABELLINGS, Label
from pressoir.data.texts import Text, as_read
from pressoir.errors import DataError
from pressoir.formats.problems import TOKENS
from pressoir.recipe.sections import DataConfig

if TYPE_CHECKING:
    import pyarrow.parquet

LISTED = 20
"""Malformed rows that a message names; of the others it gives the number."""
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins as UTF-16's does
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
QUOTED = re.compile(r'"(?:[^"]|"")*"')
"""A field as CSV writes it in double quotes."""
Row = tuple[Text, Label]  # text or pair, and label: a name, several, or a number
Record = dict[str | int, Any] | list[Any] | str
"""A row's fields by name or index, or what is wrong with it."""


@dataclass
class Table:
    """What was read."""

    rows: list[Row] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    """What is wrong with each row that is not among `rows`, and where."""
    remarks: list[str] = field(default_factory=list)
    """What a person should know of how the file was read."""
    labels: tuple[str, ...] | None = None
    """The class names that the data set itself has, in its order."""

    def add(self, record: Record, config: DataConfig, place: str) -> None:
        """Take a record as a row, or as a malformed one."""
        try:
            if isinstance(record, str):
                raise ValueError(record)
            self.rows.append(_row(record, config, self.labels))
        except ValueError as error:
            self.malformed.append(f"{place}: {error}")


def read(path: Path, config: DataConfig) -> Table:
    """The rows of a file.

    Raises:
        DataError: it cannot be read as a table with these columns. Malformed rows are in the result.
    """
    table = Table()
    for line, record in _reader(path)(path, config, table):
        table.add(record, config, f"{path}, line {line}")
    return table


def records(path: Path, config: DataConfig) -> Iterator[Record]:
    """The records of a file, each with all of its columns: lists of a TSV or CSV file, whose header is the
    first of them, else mappings.

    Raises:
        DataError: it cannot be read as a table.
    """
    if path.suffix.lower() == ".parquet":
        with _parquet_file(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
        return
    columns = {"text_column": 0, "text_pair_column": None, "label_column": 1}
    whole = config.model_copy(update={"header": False, **columns})
    for _, record in _reader(path)(path, whole, Table()):
        yield record


def _reader(path: Path) -> Callable[[Path, DataConfig, Table], Iterator[tuple[int, Record]]]:
    readers: dict[str, Callable[[Path, DataConfig, Table], Iterator[tuple[int, Record]]]] = {
        ".tsv": _delimited,
        ".txt": _delimited,
        ".csv": _delimited,
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".parquet": _parquet,
        **dict.fromkeys((".conll", ".iob", ".bio"), _columns_of_words),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unsupported file type {path.suffix!r}; use {', '.join(sorted(readers))}")
    return reader


def read_rows(path: Path, config: DataConfig) -> list[Row]:
    """The rows of a file.

    Raises:
        DataError: as `read`; or rows are malformed, and `config` does not say to drop them.
    """
    table = read(path, config)
    if config.on_bad_row == "error":
        refuse(table.malformed)
    return table.rows


def refuse(malformed: Sequence[str]) -> None:
    """Raise a DataError that lists what is wrong with rows, if there are any."""
    if len(malformed) == 1:
        raise DataError(malformed[0])
    if malformed:
        advice = "fix them, or set data.on_bad_row: drop to leave them out"
        raise DataError(f"{len(malformed)} malformed rows; {advice}:\n{listed(malformed)}")


def listed(malformed: Sequence[str]) -> str:
    """The first of them, one a line, and how many more there are."""
    more = [f"  and {len(malformed) - LISTED} more"] if len(malformed) > LISTED else []
    return "\n".join([*(f"  {text}" for text in malformed[:LISTED]), *more])


def lines_of(path: Path, encoding: str | None = None, newline: str | None = None) -> Iterator[str]:
    """The lines of a text file without its byte-order mark, decoded by `encoding` or by what it looks like.

    Raises:
        DataError: a byte is not text of that encoding; the line is named.
    """
    with path.open(encoding=encoding or encoding_of(path), newline=newline) as file:
        try:
            for number, line in enumerate(file):
                yield line if number else line.removeprefix("\ufeff")
        except UnicodeError as error:
            raise _undecodable(path, file.encoding) from error


def encoding_of(path: Path) -> str:
    """UTF-8, UTF-16 or UTF-32 by the byte-order mark; without one UTF-8, or UTF-16 where every other byte of
    the beginning is zero.
    """
    with path.open("rb") as file:
        head = file.read(2048)
    for mark, encoding in _BOMS.items():
        if head.startswith(mark):
            return encoding
    for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if (
            len(head) > 3
            and head[offset::2].count(0) > 0.4 * len(head)
            and not head[1 - offset :: 2].count(0)
        ):
            return encoding
    return "utf-8"


def _row(record: dict[str | int, Any] | list[Any], config: DataConfig, labels: Sequence[str] | None) -> Row:
    """Text and label of one record, whose label may be an index into `labels`.

    Raises:
        ValueError: what is wrong with it.
    """
    tokens = config.problem == TOKENS.name
    text: Text = (
        tagged.words_of_record(_value(record, config.text_column), config.text_column)
        if tokens
        else _text(record, "text_column", config)
    )
    pair = None if config.text_pair_column is None else _text(record, "text_pair_column", config)
    labelling = LABELLINGS[config.problem]
    try:
        label = labelling.read(_value(record, config.label_column), config.labels or labels, labels, config)
    except ValueError as error:
        if str(error) != "no label":
            raise
        raise ValueError(
            f"no label (column {config.label_column!r}); fix the row or data.label_column"
        ) from error
    named = [("label", name) for name in labelling.names(label)]
    if tokens and len(text) != len(named):
        raise ValueError(f"{len(text)} words, but {len(named)} tags; fix the row")
    for role, value in (("text", as_read(text)), ("second text", pair or ""), *named):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"the {role} contains a lone surrogate (half a character); fix the row")
        if "\0" in value:
            raise ValueError(f"the {role} contains a NUL character; fix the row, or data.encoding")
    return text if pair is None else (str(text), pair), label


def _text(record: Record, field: str, config: DataConfig) -> str:
    """The text in the column that a field of the configuration names; raises ValueError."""
    column = getattr(config, field)
    text = _value(record, column)
    if (
        isinstance(text, list | dict | bytes)
        or text is None
        or (isinstance(text, float) and math.isnan(text))
    ):
        text = ""
    text = str(text).strip()
    if not text:
        raise ValueError(f"no text (column {column!r}); fix the row or data.{field}")
    return text


def columns_of(config: DataConfig) -> list[str | int]:
    """Those that are read, the label's last."""
    pair = [] if config.text_pair_column is None else [config.text_pair_column]
    return [config.text_column, *pair, config.label_column]


def _value(record: Record, key: str | int) -> Any:
    try:
        return record[key]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        return None


def _undecodable(path: Path, encoding: str) -> DataError:
    """What to say of a file that is not in an encoding, with the first line that is not."""
    content, line, hint = path.read_bytes(), 1, ""
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        before, after = content[: error.start], content[error.start :]
        line = before.decode(encoding, "ignore").count("\n") + 1
        if encoding.startswith("utf-8"):
            there = before.rpartition(b"\n")[2][-15:] + after.partition(b"\n")[0][:15]
            hint = (
                f" (as cp1252, of Windows in Western Europe, it reads {there.decode('cp1252', 'replace')!r})"
            )
    name = "UTF-8" if encoding.startswith("utf-8") else encoding
    return DataError(
        f"{path}, line {line}: not {name} text; save the file as UTF-8, or set data.encoding{hint}"
    )


def _delimited(path: Path, config: DataConfig, table: Table) -> Iterator[tuple[int, Record]]:
    """TSV and CSV. Without quoting a line is a record, whatever quotes it contains."""
    commas = path.suffix.lower() == ".csv"
    delimiter = config.delimiter or ("," if commas else "\t")
    quoting = config.quoting or ("csv" if commas else "none")
    _tell_encoding(path, config, table)
    if quoting == "csv":
        lines = lines_of(path, config.encoding, newline="")
        yield from _by_column(_csv_rows(lines, delimiter, path), path, config)
        return
    quoted = doubled = count = 0
    lines = lines_of(path, config.encoding, newline="\n")
    rows = ((n, line.rstrip("\r\n").split(delimiter)) for n, line in enumerate(lines, 1) if line.strip())
    for line, record in _by_column(rows, path, config):
        if isinstance(text := _value(record, config.text_column), str) and QUOTED.fullmatch(text.strip()):
            quoted, doubled = quoted + 1, doubled + ('""' in text.strip()[1:-1])
        count += 1
        yield line, record
    if doubled or (quoted > 1 and quoted > count / 2):
        table.remarks.append(
            f"{path}: {quoted} of {count} texts stand in double quotes, as CSV writes them; they are read "
            "with the quotes, and data.quoting: csv reads them without"
        )


def _by_column(
    rows: Iterator[tuple[int, list[str]]], path: Path, config: DataConfig
) -> Iterator[tuple[int, Record]]:
    wanted = columns_of(config)
    if not config.header:
        for key in wanted:
            if isinstance(key, str):
                raise DataError(
                    f"{path} has no header, so column {key!r} cannot be found; specify data.text_column "
                    "and data.label_column as zero-based indices"
                )
        yield from rows
        return
    names = next(rows, (0, []))[1]
    for key in wanted:
        if isinstance(key, str) and key not in names:
            raise DataError(
                f"{path}: no column {key!r} in the header {names}; set data.text_column and "
                "data.label_column, set data.header: false and use column indices, or set data.delimiter or "
                "data.quoting if the columns are not separated rightly"
            )
        if names.count(str(key)) > 1:
            raise DataError(
                f"{path}: the header has the column {key!r} {names.count(str(key))} times; rename one, or "
                "set data.text_column and data.label_column to indices"
            )
    for line, row in rows:
        if len(row) > len(names):
            yield line, f"{len(row)} columns, but the header has {len(names)}"
        else:
            yield line, {**dict(zip(names, row, strict=False)), **dict(enumerate(row))}


def _csv_rows(lines: Iterable[str], delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the line it starts on; a quoted field may run over several."""
    reader, start = csv.reader(lines, strict=True, delimiter=delimiter), 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {start}: {error}") from error
        if row:
            yield start, row
        start = reader.line_num + 1


def _jsonl(path: Path, config: DataConfig, table: Table) -> Iterator[tuple[int, Record]]:
    _tell_encoding(path, config, table)
    for number, line in enumerate(lines_of(path, config.encoding), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_once)
        except RecursionError:
            yield number, "not JSON that can be read (nested too deeply)"
        except _TwiceError as error:
            yield number, str(error)
        except ValueError as error:  # a number of more digits than Python reads is no JSONDecodeError
            yield number, f"not JSON ({getattr(error, 'msg', error)})"
        else:
            yield number, record if isinstance(record, dict) else "not a JSON object"


class _TwiceError(ValueError):
    """A key that an object has more than once; JSON readers silently take the last."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _TwiceError(f"the key {twice!r} is given {keys.count(twice)} times")
    return found


def _columns_of_words(path: Path, config: DataConfig, table: Table) -> Iterator[tuple[int, Record]]:
    """CoNLL's format, see `sentences_of_columns`; for token classification."""
    if config.problem != TOKENS.name:
        raise DataError(f"{path}: a word a line is for token classification; set the recipe's task")
    _tell_encoding(path, config, table)
    lines = enumerate(lines_of(path, config.encoding), 1)
    for found in tagged.sentences_of_columns(lines, config.text_column, config.label_column):
        if len(found) == 2:
            yield found
        else:
            begin, words, tags = found
            yield begin, {config.text_column: words, config.label_column: tags}


def _parquet(path: Path, config: DataConfig, table: Table) -> Iterator[tuple[int, Record]]:
    names, number = list(map(str, columns_of(config))), 0
    with _parquet_file(path) as file:
        if twice := [name for name in names if file.schema_arrow.names.count(name) > 1]:
            raise DataError(f"{path} has the column {twice[0]!r} more than once; rename one")
        table.labels = _class_names(file.schema_arrow.metadata or {}, names[-1])
        for batch in file.iter_batches(columns=names):
            for row in batch.to_pylist():
                number += 1
                yield number, row


@contextmanager
def _parquet_file(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _class_names(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...] | None:
    """Those that the datasets library stores in a Parquet file beside a column of class numbers."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        feature = feature.get("feature", feature)  # of a list: that of its items
        return tuple(feature["names"]) if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


def _tell_encoding(path: Path, config: DataConfig, table: Table) -> None:
    encoding = config.encoding or encoding_of(path)
    if config.encoding is None and not encoding.startswith("utf-8"):
        table.remarks.append(f"{path}: read as {encoding.upper()}; data.encoding sets another encoding")
