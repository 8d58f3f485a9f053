"""Text-classification data: the embedded demo corpus, local files, or a hub data set, as three clean splits.

Whatever the source, the result is a `datasets.DatasetDict` with `train`, `validation` and `test`, columns
`text` (string) and `label` (class label). A sentence of the test split never stands in another split, and one
of the validation split never in train: such copies are dropped from the larger side and counted. Where the
recipe names a file of unlabelled sentences there is a fourth split, `unlabelled`, with the column `text`
alone; it shares no sentence with the others.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pressoir.errors import DataError, SourceError
from pressoir.formats.labels import match
from pressoir.recipe.sections import DataConfig
from pressoir.store.artifact import digest_of
from pressoir.system.files import file_sha256, folder_digest

if TYPE_CHECKING:
    import datasets

DEMO = Path(__file__).parent / "demo"
SPLITS = ("train", "validation", "test")
UNLABELLED = "unlabelled"
EXCERPT_TRAIN_ROWS, EXCERPT_VALIDATION_ROWS = 32, 64
INFO = "data.json"
ORDERED = "labels_ordered"
Row = tuple[str, str]  # text, label name
Record = dict[str | int, Any] | list[Any]


def source_digest(config: DataConfig) -> str:
    """SHA-256 that changes whenever the raw data does: file contents, or hub id, configuration and revision.

    Raises:
        DataError: a named file does not exist.
    """
    if config.unlabelled is not None:
        labelled = source_digest(config.model_copy(update={UNLABELLED: None}))
        return digest_of([labelled, file_sha256(_existing(UNLABELLED, config.unlabelled))])
    if config.source == "hub":
        folder = Path(config.hub_id or "")
        if folder.is_dir():
            return folder_digest(folder)[0]
        return digest_of([config.hub_id, config.hub_config, config.hub_revision])
    return digest_of([file_sha256(path) for path in _files(config).values()])


def load(config: DataConfig, seed: int) -> tuple[datasets.DatasetDict, dict[str, int]]:
    """Read, check, split and sub-sample; return the splits and the counts of dropped copies.

    Unlabelled sentences that stand in validation or test are left out before these are sub-sampled, those of
    train after: what a sub-sample of train leaves aside may come back without its label.

    Raises:
        DataError: a file is missing or has a malformed row (named with file and line), a split is too small,
            or it holds a label that train lacks.
        SourceError: the hub data set cannot be loaded.
    """
    datasets = _library()
    labels, rows, dropped = _clean(config)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(labels))}
    )
    clean = {split: datasets.Dataset.from_list(kept, features=features) for split, kept in rows.items()}
    if "validation" not in clean:
        wanted = config.validation_samples
        try:
            parts = clean["train"].train_test_split(test_size=wanted, seed=seed, stratify_by_column="label")
        except ValueError as error:  # fewer rows than asked for, or than there are labels on either side
            raise DataError(
                f"train has {len(clean['train'])} rows, from which data.validation_samples = {wanted} "
                f"cannot be held out so that both splits contain each of the {len(labels)} labels: {error}"
            ) from error
        clean["train"], clean["validation"] = parts["train"], parts["test"]
    known = forms(clean["validation"]["text"]) | forms(clean["test"]["text"]) if config.unlabelled else set()
    sizes = {
        "train": config.train_samples,
        "validation": config.validation_samples,
        "test": config.test_samples,
    }
    for split, size in sizes.items():
        if size is not None and size < len(clean[split]):
            clean[split] = clean[split].shuffle(seed=seed).select(range(size))
    result = datasets.DatasetDict({split: clean[split] for split in SPLITS})
    if config.unlabelled is not None:
        sentences, copies = _read_unlabelled(config.unlabelled, known | forms(clean["train"]["text"]))
        text = datasets.Features({"text": datasets.Value("string")})
        result[UNLABELLED] = datasets.Dataset.from_dict({"text": sentences}, features=text)
        dropped[f"{UNLABELLED}_copies_dropped"] = copies
    return result, dropped


def normal_form(text: str) -> str:
    """What decides whether two sentences are copies of each other: letter case and spacing do not."""
    return " ".join(text.lower().split())


def forms(texts: Iterable[str]) -> set[str]:
    """The normal forms of `texts`."""
    return {normal_form(text) for text in texts}


def test_rows(config: DataConfig, seed: int) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Labels, and the test split of `load` as a list of `{"text": str, "label": int}`.

    Without the datasets library, which takes a second to import, where no random choice needs it.

    Raises:
        DataError, SourceError: as `load`, for every split.
    """
    if config.source != "hub":
        labels, rows, _ = _clean(config)
        if config.test_samples is None or config.test_samples >= len(rows["test"]):
            return labels, rows["test"]
    splits, _ = load(config, seed)
    return tuple(splits["test"].features["label"].names), list(splits["test"])


def _clean(config: DataConfig) -> tuple[tuple[str, ...], dict[str, list[dict[str, Any]]], dict[str, int]]:
    """Labels, the rows of each split without copies, and the counts of dropped copies."""
    raw = _read_hub(config) if config.source == "hub" else _read_files(config)
    for split in SPLITS:
        if not raw.get(split, True):
            raise DataError(f"the {split} split is empty")
    found = {split: {label for _, label in rows} for split, rows in raw.items()}
    labels = config.labels or tuple(sorted(found["train"]))
    if len(labels) < 2:
        raise DataError(f"train has only the label {labels[0]!r}; a classifier needs at least two")
    for split in raw:
        if strange := sorted(found[split] - set(labels)):
            raise DataError(
                f"the {split} split has labels that do not occur in train: {strange}; train has "
                f"{list(labels)}"
            )
    dropped, seen = {}, set[str]()
    clean: dict[str, list[dict[str, Any]]] = {}
    for split in reversed([name for name in SPLITS if name in raw]):  # test first: the others give way to it
        kept, own = [], set[str]()
        for text, label in raw[split]:
            form = normal_form(text)
            if form in seen or (split == "train" and form in own):
                continue
            own.add(form)
            kept.append({"text": text, "label": labels.index(label)})
        if not kept:
            raise DataError(f"the {split} split is empty: all its sentences also occur in other splits")
        dropped[f"{split}_copies_dropped"] = len(raw[split]) - len(kept)
        seen |= own
        clean[split] = kept
    return labels, clean, dropped


def _library() -> Any:
    """The datasets library, with its bars off: progress goes through the reporter."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


def save(
    splits: datasets.DatasetDict, dropped: dict[str, int], folder: Path, max_tokens: int
) -> dict[str, float]:
    """Write `train.jsonl`, `validation.jsonl`, `test.jsonl` and `data.json`; return the counts as metrics.

    Where there is an `unlabelled` split it is written likewise.
    """
    counts = {f"{split}_rows": len(rows) for split, rows in splits.items()} | dropped
    for split, rows in splits.items():
        _write(rows, folder / f"{split}.jsonl")
    info = {"labels": splits["train"].features["label"].names, "max_tokens": max_tokens, **counts}
    (folder / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return {name: float(count) for name, count in counts.items()}


def save_extended(source: Path, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write a data folder with `rows` (`text`, `label`) as its training split, all else as in `source`.

    Validation and test are copied byte for byte. Unlabelled sentences are left out: `rows` has them.
    """
    for split in SPLITS[1:]:
        shutil.copyfile(source / f"{split}.jsonl", folder / f"{split}.jsonl")
    _write(rows, folder / "train.jsonl")
    facts = {name: fact for name, fact in info(source).items() if not name.startswith(UNLABELLED)}
    facts["train_rows"] = len(rows)
    (folder / INFO).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _write(rows: Iterable[Any], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def info(folder: Path) -> dict[str, Any]:
    """Facts of a saved data folder: `labels` in class order, `max_tokens`, and the counts.

    `labels_ordered` is true where the order of the labels is the recipe's or the data set's own.
    """
    facts: dict[str, Any] = json.loads((folder / INFO).read_text(encoding="utf-8"))
    return facts


def load_split(folder: Path, split: str, labels: Sequence[str] | None = None) -> datasets.Dataset:
    """One split of a saved data folder: columns `text` (str) and `label` (int).

    `label` is a place in the data's labels, or in those of a model, `labels`, where they are given.

    Raises:
        DataError: the model has other labels than the data.
    """
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if labels is not None:
        places = label_places(folder, labels)
        rows = [{**row, "label": places[row["label"]]} for row in rows]
    return _library().Dataset.from_list(rows)


def label_places(folder: Path, labels: Sequence[str]) -> list[int]:
    """For each label of a saved data folder its place in `labels`, those of a model.

    Raises:
        DataError: the model has other labels than the data.
    """
    facts = info(folder)
    return match(labels, facts["labels"], ordered=facts.get(ORDERED, False))


def load_unlabelled(folder: Path) -> list[str]:
    """The unlabelled sentences of a saved data folder; none where the recipe named no file of them."""
    path = folder / f"{UNLABELLED}.jsonl"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def read_table(path: Path) -> list[Row]:
    """Text and label of every record of a TSV, CSV, JSONL or Parquet file with these two columns.

    Raises:
        DataError: a record or the file is malformed; it is named, with its line.
    """
    return list(read(path, DataConfig()))


def _files(config: DataConfig) -> dict[str, Path]:
    if config.source == "demo":
        return {split: DEMO / f"{split}.tsv" for split in SPLITS}
    files = {split: path for split in SPLITS if (path := getattr(config, split)) is not None}
    for split, path in files.items():
        _existing(split, path)
    return files


def _existing(field: str, path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"data.{field}: {path} is not a file (relative to {Path.cwd()})")
    return path


def _read_unlabelled(path: Path, known: set[str]) -> tuple[list[str], int]:
    """The sentences of a text file, a line each, but blank ones, copies, and those whose form is in `known`.

    Returns them in order, and how many were left out (blank lines not counted).
    """
    sentences, seen, lines = [], set(known), 0
    try:
        with _existing(UNLABELLED, path).open(encoding="utf-8-sig") as file:
            for line in file:
                form = normal_form(line)
                lines += bool(form)
                if form and form not in seen:
                    seen.add(form)
                    sentences.append(line.strip())
    except UnicodeDecodeError as error:
        raise _undecodable(path) from error
    if not lines:
        raise DataError(f"data.{UNLABELLED}: {path} has no sentences; write one per line, or omit the field")
    return sentences, lines - len(sentences)


def _read_files(config: DataConfig) -> dict[str, list[Row]]:
    return {split: list(read(path, config)) for split, path in _files(config).items()}


def read(path: Path, config: DataConfig) -> Iterator[Row]:
    """Yield (text, label) of every record; the first malformed one is a `DataError` with its line."""
    readers = {
        ".tsv": _tsv,
        ".txt": _tsv,
        ".csv": _csv,
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".parquet": _parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unsupported file type {path.suffix!r}; use {', '.join(sorted(readers))}")
    try:
        for line, record in reader(path, config):
            yield _row(record, config, f"{path}, line {line}")
    except UnicodeDecodeError as error:
        raise _undecodable(path) from error


def _row(record: Record, config: DataConfig, place: str) -> Row:
    """Text and label of one record; `place` opens the message of what is wrong with it."""
    values = []
    for role, key in (("text", config.text_column), ("label", config.label_column)):
        try:
            value = record[key]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            value = None
        text = "" if value is None or isinstance(value, list | dict) else str(value).strip()
        if not text:
            raise DataError(f"{place}: no {role} (column {key!r}); fix the row or data.{role}_column")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"{place}: the {role} contains a lone surrogate (half a character); fix the row")
        values.append(text)
    text, label = values
    if config.labels is not None and label not in config.labels:
        raise DataError(f"{place}: label {label!r} is not one of {list(config.labels)}")
    return text, label


def _undecodable(path: Path) -> DataError:
    """What to say of a file that is not UTF-8, with the first line that is not."""
    content, line = path.read_bytes(), 1
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    return DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8")


def _table(
    rows: Iterable[tuple[int, list[str]]], path: Path, config: DataConfig
) -> Iterator[tuple[int, Record]]:
    rows = iter(rows)
    if not config.header:
        for key in (config.text_column, config.label_column):
            if isinstance(key, str):
                raise DataError(
                    f"{path} has no header, so column {key!r} cannot be found; specify data.text_column "
                    "and data.label_column as zero-based indices"
                )
        yield from rows
        return
    names = next(rows, (0, []))[1]
    for key in (config.text_column, config.label_column):
        if isinstance(key, str) and key not in names:
            raise DataError(
                f"{path}: no column {key!r} in the header {names}; set data.text_column and "
                "data.label_column, or set data.header: false and use column indices"
            )
    for line, row in rows:
        if len(row) > len(names):
            raise DataError(f"{path}, line {line}: {len(row)} columns, but the header has {len(names)}")
        yield line, {**dict(zip(names, row, strict=False)), **dict(enumerate(row))}


def _tsv(path: Path, config: DataConfig) -> Iterator[tuple[int, Record]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:  # one record a line, no quoting
        lines = ((n, line.rstrip("\r\n").split("\t")) for n, line in enumerate(file, 1) if line.strip())
        yield from _table(lines, path, config)


def _csv(path: Path, config: DataConfig) -> Iterator[tuple[int, Record]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from _table(_csv_rows(file, path), path, config)


def _csv_rows(file: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the line it starts on; a quoted field may run over several."""
    reader, start = csv.reader(file, strict=True), 1
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


def _jsonl(path: Path, config: DataConfig) -> Iterator[tuple[int, Record]]:
    with path.open(encoding="utf-8-sig") as file:
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
    import pyarrow
    import pyarrow.parquet

    names, number = [str(config.text_column), str(config.label_column)], 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _read_hub(config: DataConfig) -> dict[str, list[Row]]:
    datasets, result = _library(), dict[str, list[Row]]()
    for split, part in zip(SPLITS, config.hub_splits, strict=True):
        if part is None:
            continue
        place = f"data set {config.hub_id!r}, split {part!r}"
        try:
            rows = datasets.load_dataset(
                config.hub_id, config.hub_config, revision=config.hub_revision, split=part
            )
        except Exception as error:  # the hub client, fsspec and pyarrow each raise their own
            state = "HF_HUB_OFFLINE is set; " if os.environ.get("HF_HUB_OFFLINE") else ""
            raise SourceError(
                f"{place}: {state}{error}; set data.hub_id to a local folder with the same layout, or use "
                "local files with `source: files`"
            ) from error
        columns = [config.text_column, config.label_column]
        for column in columns:
            if column not in rows.column_names:
                raise DataError(f"data set {config.hub_id!r} has columns {rows.column_names}, not {column!r}")
        label = rows.features[config.label_column]
        names = dict(enumerate(label.names)) if isinstance(label, datasets.ClassLabel) else None  # −1: hidden
        result[split] = []
        for number, row in enumerate(rows.select_columns(columns), 1):
            if names is not None:
                row[config.label_column] = names.get(row[config.label_column])
            result[split].append(_row(row, config, f"{place}, row {number}"))
    return result


def excerpt(source: Path, folder: Path) -> None:
    """A data folder of the first sentences of another's training and validation splits."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", EXCERPT_TRAIN_ROWS), ("validation", EXCERPT_VALIDATION_ROWS)):
        with (source / f"{split}.jsonl").open(encoding="utf-8") as file:
            lines = [line for _, line in zip(range(rows), file, strict=False)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    facts = info(source) | {"train_rows": EXCERPT_TRAIN_ROWS, "validation_rows": EXCERPT_VALIDATION_ROWS}
    (folder / INFO).write_text(json.dumps(facts) + "\n", encoding="utf-8")
