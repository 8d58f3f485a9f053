"""Text-classification data: the embedded demo corpus, local files, or a hub data set, as three clean splits.

Whatever the source, the result is a `datasets.DatasetDict` with `train`, `validation` and `test`, columns
`text` (string) and `label` (class label), and `text_pair` between them where the recipe names a column of
second texts: a sentence is then a pair. Of words with tags (`task: token-classification`) both columns have
lists. A sentence of the test split never stands in another split, and one
of the validation split never in train: such copies are dropped from the larger side and counted. Where the
recipe names a file of unlabelled sentences there is a fourth split, `unlabelled`, with the column `text`
alone; it shares no sentence with the others.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressoir.data import classes, tables, tagged
from pressoir.data.classes import LABELLINGS, Label
from pressoir.data.tables import Table
from pressoir.data.texts import PAIR, Text, Words
from pressoir.errors import DataError, SourceError
from pressoir.formats.labels import match
from pressoir.formats.problems import (
    MULTI_LABEL,
    PROBLEMS,
    REGRESSION,
    SCORE,
    SINGLE_LABEL,
    TOKENS,
    Problem,
)
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
PROBLEM, THRESHOLDS = "problem", "thresholds"
Rows = list[dict[str, Any]]
"""Each `{"text": str, "label": …}`, of pairs with `"text_pair": str`; the label is an index into the
labels, a sorted list of them (multi-label), or a number (regression); of words with tags both are lists."""


@dataclass(frozen=True)
class Corpus:
    """Checked splits, and what was found while they were read."""

    splits: datasets.DatasetDict
    counts: dict[str, int]
    """By split: copies dropped; where there are any, rows whose text has another label too, and malformed
    rows dropped."""
    remarks: tuple[str, ...] = ()
    """What a person should know of how the files were read."""
    ordered: bool = False
    """Whether the order of the labels is the recipe's or the data set's own, and not merely sorted."""
    problem: str = SINGLE_LABEL.name
    thresholds: str = "global"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in their order."""
        label = self.splits["train"].features["label"]
        return tuple(getattr(getattr(label, "feature", label), "names", (SCORE,)))


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
        return digest_of([config.hub_id, config.hub_config, _commit(config)])
    return digest_of([file_sha256(path) for path in _files(config).values()])


def _commit(config: DataConfig) -> str | None:
    """Commit that a hub data set's branch or tag is at now.

    Where the hub does not answer, it is the revision as specified: `datasets` may have a copy of it.
    """
    from huggingface_hub import HfApi

    if Path(config.hub_id or "").is_dir():
        return None
    try:
        return HfApi().dataset_info(str(config.hub_id), revision=config.hub_revision, timeout=10).sha
    except Exception:  # the hub client has many; what is wrong with the data set, loading it says
        return config.hub_revision


def load(config: DataConfig, seed: int) -> Corpus:
    """Read, check, split and sub-sample.

    Unlabelled sentences that stand in validation or test are left out before these are sub-sampled, those of
    train after: what a sub-sample of train leaves aside may come back without its label.

    Raises:
        DataError: a file is missing or has malformed rows (all are named with file and line), a split is too
            small, or it holds a label that train lacks.
        SourceError: the hub data set cannot be loaded.
    """
    datasets, read = _library(), _clean(config)
    second = {} if config.text_pair_column is None else {PAIR: datasets.Value("string")}
    names = datasets.ClassLabel(names=list(read.labels))
    label = {
        SINGLE_LABEL.name: names,
        MULTI_LABEL.name: datasets.Sequence(names),
        TOKENS.name: datasets.Sequence(names),
        REGRESSION.name: datasets.Value("float64"),
    }[config.problem]
    text: Any = datasets.Value("string")
    if config.problem == TOKENS.name:
        text = datasets.Sequence(text)
    features = datasets.Features({"text": text, **second, "label": label})
    clean = {split: datasets.Dataset.from_list(kept, features=features) for split, kept in read.rows.items()}
    if config.test_fraction is not None:
        clean["train"], clean["test"] = _hold_out(clean["train"], "test_fraction", config.test_fraction, seed)
    if "validation" not in clean:
        clean["train"], clean["validation"] = _hold_out(
            clean["train"], "validation_samples", config.validation_samples, seed
        )
    known = forms(clean["validation"]["text"]) | forms(clean["test"]["text"]) if config.unlabelled else set()
    sizes = {
        "train": config.train_samples,
        "validation": config.validation_samples,
        "test": config.test_samples,
    }
    for split, size in sizes.items():
        if size is not None and size < len(clean[split]):
            clean[split] = clean[split].shuffle(seed=seed).select(range(size))
    result, counts = datasets.DatasetDict({split: clean[split] for split in SPLITS}), read.counts
    if config.unlabelled is not None:
        path = _existing(UNLABELLED, config.unlabelled)
        sentences, copies = _read_unlabelled(path, config.encoding, known | forms(clean["train"]["text"]))
        text = datasets.Features({"text": datasets.Value("string")})
        result[UNLABELLED] = datasets.Dataset.from_dict({"text": sentences}, features=text)
        counts = counts | {f"{UNLABELLED}_copies_dropped": copies}
    return Corpus(result, counts, read.remarks, read.ordered, config.problem, config.thresholds)


def _hold_out(train: Any, field: str, size: float, seed: int) -> tuple[Any, Any]:
    """A part of train, drawn by the seed, stratified if rows have one label: what is left, and that part."""
    by_label = "label" if hasattr(train.features["label"], "names") else None
    try:
        splits = train.train_test_split(test_size=size, seed=seed, stratify_by_column=by_label)
    except ValueError as error:  # fewer rows than asked for, or than there are labels on either side
        if by_label is None:
            raise DataError(
                f"train has {len(train)} rows, from which data.{field} = {size} cannot be held out: {error}"
            ) from error
        raise DataError(
            f"train has {len(train)} rows, from which data.{field} = {size} cannot be held out so that both "
            f"splits contain each of the {len(train.features['label'].names)} labels: {error}"
        ) from error
    return splits["train"], splits["test"]


def normal_form(text: Text) -> str:
    """What decides whether two sentences are copies of each other: letter case and spacing do not.

    Pairs are copies if both their texts are, in the same order.
    """
    if not isinstance(text, str):
        return "\0".join(map(normal_form, text))
    return " ".join(text.lower().split())


def forms(texts: Iterable[Text]) -> set[str]:
    """The normal forms of `texts`."""
    return {normal_form(text) for text in texts}


def test_rows(config: DataConfig, seed: int) -> tuple[tuple[str, ...], Rows]:
    """Labels, and the test split of `load` as a list of `{"text": str, "label": int}`.

    Without the datasets library, which takes a second to import, where no random choice needs it.

    Raises:
        DataError, SourceError: as `load`, for every split.
    """
    if config.source != "hub" and config.test_fraction is None:
        read = _clean(config)
        if config.test_samples is None or config.test_samples >= len(read.rows["test"]):
            return read.labels, read.rows["test"]
    corpus = load(config, seed)
    return corpus.labels, list(corpus.splits["test"])


@dataclass(frozen=True)
class _Clean:
    """See `Corpus`; not yet held out, sub-sampled or of the datasets library."""

    labels: tuple[str, ...]
    rows: dict[str, Rows]
    counts: dict[str, int]
    remarks: tuple[str, ...]
    ordered: bool


def _clean(config: DataConfig) -> _Clean:
    """The rows of each split that was read, without copies."""
    raw = _read_hub(config) if config.source == "hub" else _read_files(config)
    remarks = [remark for table in raw.values() for remark in table.remarks]
    malformed = {split: table.malformed for split, table in raw.items() if table.malformed}
    if config.on_bad_row == "error":
        tables.refuse([text for texts in malformed.values() for text in texts])
    remarks += [f"{split}: malformed rows dropped:\n{tables.listed(t)}" for split, t in malformed.items()]
    if config.problem == TOKENS.name:
        rows, remark = tagged.unify([table.rows for table in raw.values()])
        remarks.append(remark)
        raw = {split: replace(table, rows=own) for (split, table), own in zip(raw.items(), rows, strict=True)}
    labels, ordered = _labels(config, raw)
    counts = {f"{split}_bad_rows_dropped": len(texts) for split, texts in malformed.items()}
    labelling = LABELLINGS[config.problem]
    known: defaultdict[str, set[Label]] = defaultdict(set)  # labels by text, of the splits that go before
    clean: dict[str, Rows] = {}
    for split in reversed([name for name in SPLITS if name in raw]):  # test first: the others give way to it
        kept, own, conflicts = [], defaultdict[str, set[Label]](set), 0
        for text, label in raw[split].rows:
            form = normal_form(text)
            copies = known.get(form, set()) | own[form]
            conflicts += bool(copies - {label})
            if form not in known and not (split == "train" and copies):
                kept.append({**columns_of(text), "label": labelling.stored(label, labels)})
            own[form].add(label)
        if not kept:
            raise DataError(f"the {split} split is empty: all its sentences also occur in other splits")
        counts[f"{split}_copies_dropped"] = len(raw[split].rows) - len(kept)
        if conflicts:
            counts[f"{split}_label_conflicts"] = conflicts
        for form, found in own.items():
            known[form] |= found
        clean[split] = kept
    return _Clean(labels, clean, counts, tuple(remarks), ordered)


def columns_of(text: Text) -> dict[str, Any]:
    """The columns of a row that have its text, or its two."""
    if isinstance(text, Words):
        return {"text": list(text)}
    return {"text": text} if isinstance(text, str) else {"text": text[0], PAIR: text[1]}


def _labels(config: DataConfig, raw: Mapping[str, Table]) -> tuple[tuple[str, ...], bool]:
    """The labels in class order, and whether that is the recipe's or the data set's own."""
    for split, table in raw.items():
        if not table.rows:
            raise DataError(f"the {split} split is empty")
    labelling = LABELLINGS[config.problem]
    if labelling.fixed is not None:
        return labelling.fixed, False
    found = {
        split: {name for _, label in table.rows for name in labelling.names(label)}
        for split, table in raw.items()
    }
    given = config.labels or raw["train"].labels
    labels = given or labelling.order(found["train"])
    if len(labels) < labelling.least:
        what = f"only the label {labels[0]!r}" if labels else "no label"
        raise DataError(f"train has {what}; {labelling.too_few}")
    if given is None:
        classes.in_order(set().union(*found.values()))
    for split in raw:
        if strange := sorted(found[split] - set(labels)):
            raise DataError(
                f"the {split} split has labels that do not occur in train: {strange}; train has "
                f"{list(labels)}"
            )
    return labels, given is not None


def _library() -> Any:
    """The datasets library, with its bars off: progress goes through the reporter."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


def save(corpus: Corpus, folder: Path, max_tokens: int) -> dict[str, float]:
    """Write `train.jsonl`, `validation.jsonl`, `test.jsonl` and `data.json`; return the counts as metrics.

    Where there is an `unlabelled` split it is written likewise.
    """
    counts = {f"{split}_rows": len(rows) for split, rows in corpus.splits.items()} | corpus.counts
    for split, rows in corpus.splits.items():
        _write(rows, folder / f"{split}.jsonl")
    ordered = {ORDERED: True} if corpus.ordered else {}
    pairs = {PAIR: True} if PAIR in corpus.splits["train"].column_names else {}
    problem = {} if corpus.problem == SINGLE_LABEL.name else {PROBLEM: corpus.problem}
    each = {THRESHOLDS: corpus.thresholds} if corpus.problem == MULTI_LABEL.name else {}
    facts = {
        "labels": corpus.labels,
        **ordered,
        **pairs,
        **problem,
        **each,
        "max_tokens": max_tokens,
        **counts,
    }
    (folder / INFO).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
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

    `labels_ordered` is true where the order of the labels is the recipe's or the data set's own,
    `text_pair` where each row has two texts; `problem` is absent where a text has one label,
    `thresholds` where it has not several.
    """
    facts: dict[str, Any] = json.loads((folder / INFO).read_text(encoding="utf-8"))
    return facts


def load_split(folder: Path, split: str, labels: Sequence[str] | None = None) -> datasets.Dataset:
    """One split of a saved data folder: columns `text` (str), of pairs `text_pair` (str), and `label` (see
    `Rows`); see `pressoir.data.texts`.

    `label` has indices into the data's labels, or into those of a model, `labels`, where they are given.

    Raises:
        DataError: the model has other labels than the data.
    """
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if labels is not None:
        places, moved = label_places(folder, labels), LABELLINGS[problem_of(folder).name].moved
        rows = [{**row, "label": moved(row["label"], places)} for row in rows]
    return _library().Dataset.from_list(rows)


def label_places(folder: Path, labels: Sequence[str]) -> list[int]:
    """For each label of a saved data folder its index in `labels`, those of a model.

    Raises:
        DataError: the model has other labels than the data.
    """
    facts = info(folder)
    if problem_of(folder) is REGRESSION and len(labels) == 1:
        return [0]  # the names of scores say nothing
    return match(labels, facts["labels"], ordered=facts.get(ORDERED, False))


def problem_of(folder: Path) -> Problem:
    """What a model for a saved data folder decides of a text."""
    facts = info(folder)
    return PROBLEMS[facts.get(PROBLEM, SINGLE_LABEL.name)].of(facts["labels"])


def load_unlabelled(folder: Path) -> list[str]:
    """The unlabelled sentences of a saved data folder; none where the recipe named no file of them."""
    path = folder / f"{UNLABELLED}.jsonl"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


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


def _read_unlabelled(path: Path, encoding: str | None, known: set[str]) -> tuple[list[str], int]:
    """The sentences of a text file, a line each, but blank ones, copies, and those whose form is in `known`.

    Returns them in order, and how many were left out (blank lines not counted).
    """
    sentences, seen, lines = [], set(known), 0
    for line in tables.lines_of(path, encoding):
        form = normal_form(line)
        lines += bool(form)
        if form and form not in seen:
            seen.add(form)
            sentences.append(line.strip())
    if not lines:
        raise DataError(f"data.{UNLABELLED}: {path} has no sentences; write one per line, or omit the field")
    return sentences, lines - len(sentences)


def _read_files(config: DataConfig) -> dict[str, Table]:
    return {split: tables.read(path, config) for split, path in _files(config).items()}


def _read_hub(config: DataConfig) -> dict[str, Table]:
    datasets, result = _library(), dict[str, Table]()
    for split, hub_split in zip(SPLITS, config.hub_splits, strict=True):
        if hub_split is None:
            continue
        location = f"data set {config.hub_id!r}, split {hub_split!r}"
        try:
            rows = datasets.load_dataset(
                config.hub_id, config.hub_config, revision=_commit(config), split=hub_split
            )
        except Exception as error:  # the hub client, fsspec and pyarrow each raise their own
            state = "HF_HUB_OFFLINE is set; " if os.environ.get("HF_HUB_OFFLINE") else ""
            raise SourceError(
                f"{location}: {state}{error}; set data.hub_id to a local folder with the same layout, or use "
                "local files with `source: files`"
            ) from error
        columns = tables.columns_of(config)
        for column in columns:
            if column not in rows.column_names:
                raise DataError(f"data set {config.hub_id!r} has columns {rows.column_names}, not {column!r}")
        label = rows.features[config.label_column]
        label = getattr(label, "feature", label)  # of a list: that of its items
        names = tuple(label.names) if isinstance(label, datasets.ClassLabel) else None
        result[split] = Table(labels=names)
        for number, row in enumerate(rows.select_columns(columns), 1):
            result[split].add(row, config, f"{location}, row {number}")
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
