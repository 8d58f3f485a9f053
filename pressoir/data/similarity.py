"""Scored pairs of texts for a sentence encoder that is trained already, as a data folder.

A folder has what one of classifiers has, so that whatever needs texts alone reads it likewise: `data.json`,
and the texts, each once, as every split. The pairs are in `pairs.jsonl`. Nothing is trained, so nothing has
to be held out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pressoir.data import tables
from pressoir.data.sentences import INFO, SPLITS
from pressoir.errors import DataError
from pressoir.recipe.sections import DataConfig

DEMO = Path(__file__).parent / "demo" / "pairs.tsv"
COLUMNS = ("sentence1", "sentence2", "score")
_PAIRS = "pairs.jsonl"


class Pair(NamedTuple):
    """Two texts and how alike they are."""

    first: str
    second: str
    score: float


def save_demo(folder: Path) -> None:
    """Write the embedded pairs as a data folder."""
    rows = (line.rstrip("\n").split("\t") for line in tables.lines_of(DEMO))
    _save([Pair(first, second, float(score)) for first, second, score in rows], folder)


def save_table(path: Path, folder: Path) -> None:
    """Write a table (TSV, CSV, JSONL or Parquet with the columns sentence1, sentence2 and score) as a data
    folder.

    Raises:
        DataError: the table is malformed, or has too few pairs for a correlation.
    """
    found, wrong = [], []
    for number, record in enumerate(_records(path), start=1):
        first, second, score = (record.get(name) for name in COLUMNS)
        try:
            value = float(score)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            value = math.nan
        texts = [text.strip() for text in (first, second) if isinstance(text, str)]
        if len(texts) < 2 or not all(texts) or not math.isfinite(value):
            wrong.append(f"{path}, row {number}: expected two texts and a number ({', '.join(COLUMNS)})")
        else:
            found.append(Pair(texts[0], texts[1], value))
    tables.refuse(wrong)
    if len({pair.score for pair in found}) < 2:
        raise DataError(
            f"{path} has {len(found)} pairs without two different scores; a correlation needs them"
        )
    _save(found, folder)


def load_pairs(folder: Path) -> list[Pair]:
    """The pairs of a data folder."""
    with (folder / _PAIRS).open(encoding="utf-8") as file:
        return [Pair(**json.loads(line)) for line in file]


def _records(path: Path) -> Iterator[dict[Any, Any]]:
    """The rows of a table by column."""
    header: list[Any] | None = None
    for record in tables.records(path, DataConfig()):
        if isinstance(record, str):
            raise DataError(f"{path}: {record}")
        if not isinstance(record, list):
            yield record
        elif header is not None:
            yield dict(zip(header, record, strict=False))
        else:
            header = record
            if missing := [name for name in COLUMNS if name not in header]:
                raise DataError(f"{path} has the columns {', '.join(map(str, header))}, but not {missing[0]}")


def _save(pairs: list[Pair], folder: Path) -> None:
    texts = dict.fromkeys(text for pair in pairs for text in pair[:2])
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    rows = "".join(json.dumps(pair._asdict(), ensure_ascii=False) + "\n" for pair in pairs)
    (folder / _PAIRS).write_text(rows, encoding="utf-8")
    facts = {"labels": [], "max_tokens": DataConfig().max_tokens}
    (folder / INFO).write_text(json.dumps(facts) + "\n", encoding="utf-8")
