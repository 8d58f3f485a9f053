"""Sentences with labels for a model that is trained already: its own classes, in its own order."""

from __future__ import annotations

import json
from pathlib import Path

from pressoir.data import sentences, tables
from pressoir.data.texts import PAIR, takes_pairs
from pressoir.errors import DataError
from pressoir.formats.folder import read_json
from pressoir.formats.labels import labels_of
from pressoir.recipe.sections import DataConfig


def save_demo(model: Path, folder: Path) -> None:
    """Write the embedded reviews as a data folder, whatever the model's classes are: their labels stand for
    its first two, unless it has the same ones.

    Raises:
        DataError: the model was trained on pairs.
    """
    if takes_pairs(read_json(model / "config.json")):
        raise DataError(
            f"{model} was trained on pairs of texts, and the embedded reviews are single ones; specify a "
            f"table with the columns text, {PAIR} and label"
        )
    config = DataConfig()
    sentences.save(sentences.load(config, seed=0), folder, config.max_tokens)
    names = labels_of(read_json(model / "config.json"))
    try:
        sentences.label_places(folder, names)
    except DataError:
        facts = sentences.info(folder) | {"labels": names}
        (folder / sentences.INFO).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def save_table(path: Path, model: Path, folder: Path) -> None:
    """Write a table (TSV, CSV, JSONL or Parquet with columns `text` and `label`, for a model of pairs with
    `text_pair`) as a data folder.

    Every split holds all of its rows: nothing is trained, so nothing has to be held out. A label is one of
    the model's class names, or a class number.

    Raises:
        DataError: the table is malformed, or has a label that the model lacks.
    """
    config = read_json(model / "config.json")
    names, pairs = labels_of(config), takes_pairs(config)
    known = {str(number): number for number in range(len(names))}
    known |= {name.casefold(): number for number, name in enumerate(names)}
    rows, columns = [], {"text_pair_column": PAIR if pairs else None}
    for text, label in tables.read_rows(path, DataConfig().model_copy(update=columns)):
        if label.casefold() not in known:
            raise DataError(f"{path}: label {label!r} is not one of the model's classes {names}")
        rows.append({**sentences.columns_of(text), "label": known[label.casefold()]})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for split in sentences.SPLITS:
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    info = {"labels": names, **({PAIR: True} if pairs else {}), "max_tokens": DataConfig().max_tokens}
    (folder / sentences.INFO).write_text(json.dumps(info) + "\n", encoding="utf-8")
