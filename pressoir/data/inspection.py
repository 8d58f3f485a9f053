"""What a user's labelled files hold: which split each is, its labels, lengths, copies and malformed rows.

`pressoir init` prints it, and a first recipe follows from it: see `pressoir.data.first_recipe`.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pressoir.data import classes, tables
from pressoir.data.columns import Choice, is_missing
from pressoir.data.layout import Layout, guess_encoding
from pressoir.data.sentences import SPLITS, normal_form
from pressoir.data.texts import Text
from pressoir.errors import DataError
from pressoir.formats.problems import SINGLE_LABEL
from pressoir.recipe.sections import DataConfig
from pressoir.system import reader
from pressoir.system.reader import shown

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MAX_TOKENS = (32, 64, 128, 256, 512)
_TOKENS_PER_WORD = 1.5
"""Of English, with punctuation and rare words; more in other languages with a tokenizer made for English."""
_UNSPACED = re.compile("[\u2e80-\u9fff\uf900-\ufaff]")
"""Characters of scripts that are written without spaces; each is about a token."""
_HELD_OUT = (0.2, 0.1)
"""Fraction of the training file that becomes the test split: of few rows, of many."""
_FEW_ROWS = 2000


@dataclass(frozen=True)
class Lengths:
    """Words of a text: the nearest-rank percentiles of a split."""

    median: int
    p95: int
    longest: int


@dataclass(frozen=True)
class SplitFacts:
    """What the file of one split holds."""

    path: Path
    rows: int
    """Rows with a text and a label."""
    labels: dict[str, int]
    """Rows of each label, in class order; of scores none."""
    scores: tuple[float, float] | None
    """The lowest and the highest score, where a text has one."""
    problems: dict[str, list[int]]
    """Lines of the rows that cannot be used, by what is wrong with them."""
    repeated: int
    """Rows whose text stands before them with the same label, whatever its case and spacing."""
    conflicting: int
    """Texts that have more than one label."""
    lengths: Lengths

    @property
    def malformed(self) -> int:
        """Rows that cannot be used."""
        return sum(map(len, self.problems.values()))


@dataclass(frozen=True)
class Inspection:
    """What the files hold, and the settings that follow from it."""

    layout: Layout
    """That of the training file."""
    choice: Choice
    splits: dict[str, SplitFacts]
    left_out: dict[str, str]
    """Splits whose file cannot be used, and why."""
    overlaps: dict[tuple[str, str], int]
    """By two splits, the texts that stand in both."""
    max_tokens: int
    tokens_p95: int
    """An estimate: 95 % of the training texts have at most so many tokens."""
    settings: dict[str, Any]
    """Fields of `DataConfig` that differ from their defaults, without the paths."""

    @property
    def imbalance(self) -> float:
        """How many times as many training rows the most frequent label has as the rarest, where each text has
        one label."""
        counts = self.splits["train"].labels.values()
        return max(counts) / min(counts) if self.choice.problem == SINGLE_LABEL.name else 1.0


def splits_of(words: Sequence[str]) -> dict[str, Path]:
    """The file of each split, by its name (`dev.tsv`), or as `SPLIT=FILE` says; a single one is for training.

    Raises:
        DataError: a file is missing, its split is not known, two are of one split, or none is for training.
    """
    found: dict[str, Path] = {}
    for word in words:
        role, separator, name = word.partition("=")
        given = separator and role in SPLITS and not reader.exists(word)
        path = Path(name if given else word)
        if not reader.is_file(path):
            raise DataError(f"{reader.named(path)} is not a file (relative to {Path.cwd()})")
        if not os.access(path, os.R_OK):
            raise DataError(f"{path} cannot be read: permission denied")
        named = named_splits(path)
        if given:
            named = {role}
        elif len(words) == 1:
            named = {"train"}
        if len(named) != 1:
            raise DataError(
                f"{path}: its name does not say which split it is; write train={path}, validation={path} or "
                f"test={path}"
            )
        split = named.pop()
        if split in found:
            raise DataError(f"{found[split]} and {path} are both {split} files; a recipe takes one of each")
        found[split] = path
    if "train" not in found:
        raise DataError(f"no file is for training; write train=FILE (there are {', '.join(found)})")
    return {split: found[split] for split in SPLITS if split in found}


def named_splits(path: Path) -> set[str]:
    """The splits that the words of a file's name stand for."""
    return {_SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", path.stem.lower()) if word in _SPLIT_NAMES}


def inspect(files: Mapping[str, Path], layout: Layout, choice: Choice, encoding: str | None) -> Inspection:
    """Read every row of the files by the layout of the training file.

    Raises:
        DataError: a file cannot be read so, most of its rows are malformed, or the label has about as many
            values as there are rows.
    """
    settings = {**layout.settings, **_encoding(files, encoding)}
    chosen = {
        "text_column": choice.text,
        "text_pair_column": choice.text_pair,
        "label_column": choice.label,
    }.items()
    for field, column in chosen:
        if column != DataConfig.model_fields[field].default:
            settings[field] = column
    if choice.problem != SINGLE_LABEL.name:
        settings["problem"] = choice.problem
    if choice.separator is not None:
        settings["label_separator"] = choice.separator
    config = DataConfig().model_copy(update=settings)
    names = classes.LABELLINGS[choice.problem].names
    read: dict[str, tables.Table] = {}
    left_out: dict[str, str] = {}
    for split, path in files.items():
        if split != "train" and _lacks_label(path, config):
            left_out[split] = f"has no column {choice.label!r}"
            continue
        read[split] = tables.read(path, config)
        if split != "train" and not read[split].rows:
            problems = _problems(path, read.pop(split).malformed)
            left_out[split] = (
                f"has no row that can be used ({'; '.join(list(problems)[:3]) or 'it is empty'})"
            )
        elif len(read[split].malformed) > len(read[split].rows):
            tables.refuse(read[split].malformed)
    labels = _labels(read["train"], choice, names)
    for split in [split for split in read if split != "train"]:
        found = {name for _, label in read[split].rows for name in names(label)}
        if labels and not found & set(labels):
            left_out[split] = f"has no label of the training file (its labels: {shown(sorted(found))})"
            del read[split]
    forms = {split: {normal_form(text) for text, _ in table.rows} for split, table in read.items()}
    overlaps = {
        (first, second): count
        for i, first in enumerate(forms)
        for second in list(forms)[i + 1 :]
        if (count := len(forms[first] & forms[second]))
    }
    splits = {split: _facts(files[split], table, labels, names) for split, table in read.items()}
    own = forms["train"].difference(*(forms[split] for split in forms if split != "train"))
    settings |= _held_out(splits, len(own), len(labels))
    if any(facts.problems for facts in splits.values()):
        settings["on_bad_row"] = "drop"
    tokens = sorted(_tokens(_joined(text)) for text, _ in read["train"].rows)
    tokens_p95 = _percentile(tokens, 0.95)
    max_tokens = next((size for size in _MAX_TOKENS if size >= tokens_p95), _MAX_TOKENS[-1])
    return Inspection(
        layout,
        choice,
        splits,
        left_out,
        overlaps,
        max_tokens,
        tokens_p95,
        {**settings, "max_tokens": max_tokens},
    )


def _encoding(files: Mapping[str, Path], given: str | None) -> dict[str, str]:
    """The one encoding that a recipe has for all of its files, where it must be named."""
    if given is not None:
        return {"encoding": given}
    text = {path: guess_encoding(path) for path in files.values() if path.suffix.lower() != ".parquet"}
    guessed = [path for path, guess in text.items() if guess]
    if not guessed:
        return {}
    others = [path for path, guess in text.items() if not guess and not path.read_bytes().isascii()]
    if others:
        raise DataError(
            f"{guessed[0]} is not UTF-8 and {others[0]} is; a recipe has one encoding for all files: save "
            "both as UTF-8"
        )
    return {"encoding": "cp1252"}


def _lacks_label(path: Path, config: DataConfig) -> bool:
    """Whether a file has the texts alone, as competitions publish their test files."""
    sample = [record for record in islice(tables.records(path, config), 50) if not isinstance(record, str)]
    label, text = config.label_column, config.text_column
    if not sample or isinstance(sample[0], dict):
        return all(is_missing(record.get(label)) for record in sample if isinstance(record, dict))
    first = sample[0]
    if isinstance(label, int):
        return len(first) <= label and (not isinstance(text, int) or len(first) > text)
    return label not in first and (isinstance(text, int) or text in first)


def _labels(table: tables.Table, choice: Choice, names: Callable[[Any], Iterable[str]]) -> tuple[str, ...]:
    """The classes of the training file, in their order; of scores there are none."""
    if table.labels:
        return table.labels
    labels = classes.in_order(name for _, label in table.rows for name in names(label))
    if len(labels) > 2 and 2 * len(labels) > len(table.rows):
        raise DataError(
            f"column {choice.label!r} has {len(labels):,} different values in {len(table.rows):,} rows, so "
            "it is not a label; name the label's column with --label-column"
        )
    return labels


def _facts(
    path: Path, table: tables.Table, labels: Sequence[str], names: Callable[[Any], Iterable[str]]
) -> SplitFacts:
    counts = Counter(name for _, label in table.rows for name in names(label))
    scores = [label for _, label in table.rows if isinstance(label, float)]
    by_form: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text, label in table.rows:
        by_form[normal_form(text)][str(label)] += 1
    words = sorted(len(_joined(text).split()) for text, _ in table.rows)
    return SplitFacts(
        path=path,
        rows=len(table.rows),
        scores=(min(scores), max(scores)) if scores else None,
        labels={label: counts[label] for label in dict.fromkeys((*labels, *sorted(counts))) if counts[label]},
        problems=_problems(path, table.malformed),
        repeated=sum(count - 1 for found in by_form.values() for count in found.values()),
        conflicting=sum(len(found) > 1 for found in by_form.values()),
        lengths=Lengths(_percentile(words, 0.5), _percentile(words, 0.95), words[-1]),
    )


def _problems(path: Path, malformed: Sequence[str]) -> dict[str, list[int]]:
    """What is wrong with rows, and their lines; each message begins with its place."""
    found: dict[str, list[int]] = {}
    for message in malformed:
        line, _, problem = message.removeprefix(f"{path}, line ").partition(": ")
        found.setdefault(problem.partition(";")[0], []).append(int(line))
    return found


def _percentile(ordered: Sequence[int], fraction: float) -> int:
    """The nearest-rank percentile."""
    return ordered[math.ceil(fraction * len(ordered)) - 1]


def _joined(text: Text) -> str:
    """A text, or the two of a pair as one."""
    return text if isinstance(text, str) else " ".join(text)


def _tokens(text: str) -> int:
    """An estimate of a text's tokens, with the two that mark its ends."""
    return math.ceil(_TOKENS_PER_WORD * len(text.split())) + len(_UNSPACED.findall(text)) + 2


def _held_out(splits: Mapping[str, SplitFacts], rows: int, labels: int) -> dict[str, Any]:
    """What is taken of the training file for the splits that have no file; each label can be in them."""
    settings: dict[str, Any] = {}
    if "test" not in splits:
        settings["test_fraction"] = fraction = _HELD_OUT[rows >= _FEW_ROWS]
        rows -= math.ceil(rows * fraction)
    usual = DataConfig.model_fields["validation_samples"].default
    if "validation" not in splits:
        settings["validation_samples"] = min(usual, max(labels, round(rows * _HELD_OUT[0])))
    elif splits["validation"].rows > usual:
        settings["validation_samples"] = usual
    return settings
