"""Text-classification data: the embedded demo corpus, local files, or a hub data set, as three clean splits.

Whatever the source, the result is a `datasets.DatasetDict` with `train`, `validation` and `test`, columns `text` (string)
and `label` (class label). A sentence of the test split never stands in another split, and one of the validation split never
in train: such copies are dropped from the larger side and counted.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets

from pressoir.artifact import digest_of, file_sha256
from pressoir.errors import DataError, SourceError
from pressoir.recipe import DataConfig

DEMO = Path(__file__).parent / "demo"
SPLITS = ("train", "validation", "test")
INFO = "data.json"
Row = tuple[str, str]  # text, label name


def source_digest(config: DataConfig) -> str:
    """SHA-256 that changes whenever the raw data does: file contents, or hub id, configuration and revision.

    Raises:
        DataError: a named file does not exist.
    """
    if config.source == "hub":
        folder = Path(config.hub_id or "")
        if folder.is_dir():
            return digest_of([file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()])
        return digest_of([config.hub_id, config.hub_config, config.hub_revision])
    return digest_of([file_sha256(path) for path in _files(config).values()])


def load(config: DataConfig, seed: int) -> tuple[datasets.DatasetDict, dict[str, int]]:
    """Read, check, split and sub-sample; return the splits and the counts of dropped copies.

    Raises:
        DataError: a file is missing or has a malformed row (named with file and line), or a split is too small.
        SourceError: the hub data set cannot be loaded.
    """
    raw = _read_hub(config) if config.source == "hub" else _read_files(config)
    labels = config.labels or tuple(sorted({label for rows in raw.values() for _, label in rows}))
    if len(labels) < 2:
        raise DataError(f"the data has only the label {labels}; a classifier needs at least two")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(labels))})
    dropped, seen = {}, set[str]()
    clean: dict[str, datasets.Dataset] = {}
    for split in reversed([name for name in SPLITS if name in raw]):  # test first: the others give way to it
        kept, own = [], set[str]()
        for text, label in raw[split]:
            form = " ".join(text.lower().split())
            if form in seen or (split == "train" and form in own):
                continue
            own.add(form)
            kept.append({"text": text, "label": labels.index(label)})
        dropped[f"{split}_copies_dropped"] = len(raw[split]) - len(kept)
        seen |= own
        clean[split] = datasets.Dataset.from_list(kept, features=features)
    if "validation" not in clean:
        wanted = config.validation_samples
        if len(clean["train"]) <= wanted + len(labels):
            raise DataError(f"train has {len(clean['train'])} rows, too few to hold out {wanted} for validation")
        parts = clean["train"].train_test_split(test_size=wanted, seed=seed, stratify_by_column="label")
        clean["train"], clean["validation"] = parts["train"], parts["test"]
    sizes = {"train": config.train_samples, "validation": config.validation_samples, "test": config.test_samples}
    for split, size in sizes.items():
        if size is not None and size < len(clean[split]):
            clean[split] = clean[split].shuffle(seed=seed).select(range(size))
        if not len(clean[split]):
            raise DataError(f"the {split} split is empty")
    return datasets.DatasetDict({split: clean[split].flatten_indices() for split in SPLITS}), dropped


def save(splits: datasets.DatasetDict, dropped: dict[str, int], folder: Path) -> dict[str, float]:
    """Write `train.jsonl`, `validation.jsonl`, `test.jsonl` and `data.json`; return the counts as metrics."""
    counts = {f"{split}_rows": len(splits[split]) for split in SPLITS} | dropped
    for split in SPLITS:
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for row in splits[split]:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    info = {"labels": splits["train"].features["label"].names, **counts}
    (folder / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return {name: float(count) for name, count in counts.items()}


def labels_of(folder: Path) -> list[str]:
    """Label names of a saved data folder, in class order."""
    return list(json.loads((folder / INFO).read_text(encoding="utf-8"))["labels"])


def load_split(folder: Path, split: str) -> datasets.Dataset:
    """One split of a saved data folder: columns `text` (str) and `label` (int)."""
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        return datasets.Dataset.from_list([json.loads(line) for line in file])


def _files(config: DataConfig) -> dict[str, Path]:
    if config.source == "demo":
        return {split: DEMO / f"{split}.tsv" for split in SPLITS}
    files = {split: path for split in SPLITS if (path := getattr(config, split)) is not None}
    for split, path in files.items():
        if not path.is_file():
            raise DataError(f"data.{split}: {path} is not a file (looked from {Path.cwd()})")
    return files


def _read_files(config: DataConfig) -> dict[str, list[Row]]:
    return {split: list(_read(path, config)) for split, path in _files(config).items()}


def _read(path: Path, config: DataConfig) -> Iterator[Row]:
    """Yield (text, label) of every record; the first malformed one is a `DataError` with its line."""
    readers = {".tsv": _tsv, ".txt": _tsv, ".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; use {', '.join(sorted(readers))}")
    text_key: str | int = config.text_column
    label_key: str | int = config.label_column
    try:
        for line, record in reader(path, config):
            values = []
            for role, key in (("text", text_key), ("label", label_key)):
                try:
                    value = record[key]  # type: ignore[index]
                except (KeyError, IndexError, TypeError):
                    value = None
                if value is None or not str(value).strip():
                    raise DataError(
                        f"{path}, line {line}: no {role} (column {key!r}); fix the row, or data.{role}_column"
                    )
                values.append(str(value).strip())
            text, label = values
            if config.labels is not None and label not in config.labels:
                raise DataError(f"{path}, line {line}: label {label!r} is not one of {list(config.labels)}")
            yield text, label
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error


Record = dict[str | int, Any] | list[Any]


def _table(rows: Iterable[tuple[int, list[str]]], path: Path, config: DataConfig) -> Iterator[tuple[int, Record]]:
    rows = iter(rows)
    if not config.header:
        yield from rows
        return
    names = next(rows, (0, []))[1]
    for key in (config.text_column, config.label_column):
        if isinstance(key, str) and key not in names:
            raise DataError(
                f"{path}: no column {key!r} in its first line {names}; set data.text_column and data.label_column, "
                "or data.header: false with column positions"
            )
    for line, row in rows:
        if len(row) > len(names):
            raise DataError(f"{path}, line {line}: {len(row)} columns, but the first line names {len(names)}")
        yield line, {**dict(zip(names, row, strict=False)), **dict(enumerate(row))}


def _tsv(path: Path, config: DataConfig) -> Iterator[tuple[int, Record]]:
    with path.open(encoding="utf-8", newline="\n") as file:  # one record a line, no quoting
        lines = ((n, line.rstrip("\r\n").split("\t")) for n, line in enumerate(file, 1) if line.strip())
        yield from _table(lines, path, config)


def _csv(path: Path, config: DataConfig) -> Iterator[tuple[int, Record]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            yield from _table(((reader.line_num, row) for row in reader if row), path, config)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _jsonl(path: Path, config: DataConfig) -> Iterator[tuple[int, Record]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: not a JSON object")
            yield number, record


def _parquet(path: Path, config: DataConfig) -> Iterator[tuple[int, Record]]:
    try:
        rows = datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
    except Exception as error:  # pyarrow has a family of its own for broken files
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    yield from enumerate(rows, 1)


def _read_hub(config: DataConfig) -> dict[str, list[Row]]:
    wanted = {name: part for name, part in zip(SPLITS, config.hub_splits, strict=True) if part is not None}
    result = {}
    for split, part in wanted.items():
        try:
            rows = datasets.load_dataset(
                config.hub_id, config.hub_config, revision=config.hub_revision, split=part, trust_remote_code=None
            )
        except Exception as error:  # the hub client, fsspec and pyarrow each raise their own
            state = "HF_HUB_OFFLINE is set; " if os.environ.get("HF_HUB_OFFLINE") else ""
            raise SourceError(
                f"data set {config.hub_id!r}, split {part!r}: {state}{error}; give a local folder of the same form as "
                "data.hub_id, or files with `source: files`"
            ) from error
        text, label = config.text_column, config.label_column
        for column in (text, label):
            if column not in rows.column_names:
                raise DataError(f"data set {config.hub_id!r} has columns {rows.column_names}, not {column!r}")
        feature = rows.features[label]
        name = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
        result[split] = [(str(row[text]), name(row[label])) for row in rows]
    return result
