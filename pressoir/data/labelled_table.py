"""Sentences with labels for a model that is trained already: its own classes, in its own order."""

from __future__ import annotations

import json
from pathlib import Path

from pressoir.data import sentences
from pressoir.errors import DataError
from pressoir.models import loading
from pressoir.recipe.sections import DataConfig


def save_demo(folder: Path) -> None:
    """Write the embedded reviews as a data folder, whatever the model's classes are."""
    config = DataConfig()
    splits, dropped = sentences.load(config, seed=0)
    sentences.save(splits, dropped, folder, config.max_tokens)


def save_table(path: Path, model: Path, folder: Path) -> None:
    """Write a table (TSV, CSV, JSONL or Parquet with columns `text` and `label`) as a data folder.

    Every split holds all of its rows: nothing is trained, so nothing has to be held out. A label is one of
    the model's class names, or a class number.

    Raises:
        DataError: the table is malformed, or has a label that the model lacks.
    """
    names: dict[int, str] = loading.load_config(model).id2label
    known = {name.lower(): number for number, name in names.items()} | {str(n): n for n in names}
    rows = []
    for text, label in sentences.read_table(path):
        if label.lower() not in known:
            raise DataError(
                f"{path}: label {label!r} is not one of the model's classes {list(names.values())}"
            )
        rows.append({"text": text, "label": known[label.lower()]})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for split in sentences.SPLITS:
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    info = {"labels": list(names.values()), "max_tokens": DataConfig().max_tokens}
    (folder / sentences.INFO).write_text(json.dumps(info) + "\n", encoding="utf-8")
