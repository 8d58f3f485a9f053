"""Which column of a table is the text and which the label, and what kind of labels these are.

Names that are usual decide first, then the values: a text has the most words, a label repeats. Labels may be
one per text, several, or a score; a label per word is refused by what it is.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pressoir.errors import DataError
from pressoir.formats.problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from pressoir.system.reader import shown

TEXT_NAMES = tuple(
    """text sentence review review_text reviewtext comment comment_text tweet tweet_text message sms email
    post utterance content body document article paragraph query question description summary headline
    title""".split()
)
LABEL_NAMES = tuple(
    """label labels class category target sentiment emotion emotions intent topic topics polarity gold_label
    label_name label_text coarse_label tag tags ner_tags pos_tags y rating stars score similarity""".split()
)
_OTHER_NAMES = "id idx index guid domain source language lang split date user author url".split()
_PAIRS = tuple(
    tuple(pair.split("+"))
    for pair in """sentence1+sentence2 sentence_1+sentence_2 sentence_a+sentence_b sentencea+sentenceb
    premise+hypothesis question1+question2 text1+text2 text_1+text_2 text_a+text_b texta+textb
    question+sentence question+passage question+answer question+context query+passage query+document
    anchor+positive""".split()
)
_BY_NAME = "by its name"
NAMES = frozenset((*TEXT_NAMES, *LABEL_NAMES, *_OTHER_NAMES, *(name for pair in _PAIRS for name in pair)))
"""What the columns of such tables are usually called, in lower case."""
Key = str | int
_MOST = 0.9
"""Fraction of a column's values that makes it what they are; a few may be malformed."""
_SCORES = 0.05
"""Fraction of values that are not whole from which on a column has scores."""
_TAG = re.compile(r"O|[BIESLUM]-\S+")
_LIST = re.compile(r"\[.*\]", re.DOTALL)


@dataclass(frozen=True)
class Choice:
    """The columns that a classifier is trained on, and why these."""

    text: Key
    text_reason: str
    label: Key
    label_reason: str
    text_pair: Key | None = None
    """That of the second text, where there is one."""
    text_pair_reason: str = ""
    problem: str = SINGLE_LABEL.name
    """What the label's column holds, as `data.problem` has it."""
    separator: str | None = None
    """What separates the labels of a text where they are written in one, other than a comma."""


def is_missing(value: Any) -> bool:
    """Whether a field is empty."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def number_of(value: Any) -> float | None:
    """The finite number that a value is, or that it is written as."""
    try:
        number = float(value) if isinstance(value, bool | int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


class Column:
    """What the sample's values of one column are like."""

    def __init__(self, key: Key, cells: Sequence[Any]) -> None:
        self.key, self.cells = key, cells
        self.values = [cell for cell in cells if not is_missing(cell)]

    @property
    def name(self) -> str:
        """As it is compared with names that are usual."""
        return str(self.key).strip().casefold()

    @property
    def example(self) -> str:
        """One of its values, for a message."""
        lists = [value for value in self.values if isinstance(value, list) and len(value) > 1]
        return shown((lists or self.values)[0])

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each value occurs."""
        return Counter(str(value) for value in self.values)

    @cached_property
    def numbers(self) -> list[float]:
        """Those of its values that are numbers."""
        return [number for value in self.values if (number := number_of(value)) is not None]

    @cached_property
    def words(self) -> float:
        """The median number of words."""
        return statistics.median(len(str(value).split()) for value in self.values) if self.values else 0

    @property
    def filled(self) -> bool:
        """Whether at least half of its fields are not empty."""
        return bool(self.values) and 2 * len(self.values) >= len(self.cells)

    def mostly(self, count: int) -> bool:
        """Whether so many of its values are most of them."""
        return bool(self.values) and count >= _MOST * len(self.values)

    @property
    def lists(self) -> bool:
        """Whether its values are lists, also written ones."""
        return self.mostly(
            sum(isinstance(v, list | dict) or bool(_LIST.fullmatch(str(v).strip())) for v in self.values)
        )

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers."""
        return self.mostly(len(self.numbers))

    @property
    def scores(self) -> bool:
        """Whether its values are numbers of which many are not whole."""
        fractions = sum(not number.is_integer() for number in self.numbers)
        return self.numeric and fractions > _SCORES * len(self.values)

    @property
    def binary(self) -> bool:
        """Whether its values are 0 and 1."""
        return bool(self.values) and len(self.numbers) == len(self.values) and {*self.numbers} <= {0.0, 1.0}

    @property
    def identifies(self) -> bool:
        """Whether it numbers the rows."""
        return self.name in ("id", "idx", "index", "guid", "unnamed: 0") or (
            self.numeric and not self.scores and len(self.counts) == len(self.values) > 2
        )

    @property
    def repeats(self) -> bool:
        """Whether its values are few and short, as labels are."""
        different = len(self.counts)
        return 2 <= different <= max(2, len(self.values) // 2) and self.words <= 3

    @property
    def tags(self) -> bool:
        """Whether its values are tags of words, such as `B-PER`, or rows of them."""
        found = [_tags_of(value) for value in self.values]
        tagged = sum(bool(tags) and all(map(_TAG.fullmatch, tags)) for tags in found)
        return self.mostly(tagged) and any("-" in tag for tags in found for tag in tags)

    @property
    def problem(self) -> str:
        """What a classifier decides of whose labels it has, by the names of `data.problem`."""
        if self.lists or self.joined:
            return MULTI_LABEL.name
        return REGRESSION.name if self.scores else SINGLE_LABEL.name

    @property
    def separator(self) -> str | None:
        """What stands between several labels in one value: the most frequent of `,`, `;` and `|`; None for a
        comma, and where there are not several in one."""
        if self.lists or not self.joined:
            return None
        found = Counter(character for value in self.counts for character in value if character in ",;|")
        most = found.most_common(1)[0][0]
        return None if most == "," else most

    @property
    def joined(self) -> bool:
        """Whether many of its values are several labels in one, such as `joy,anger` beside `joy`."""
        parts = {value: [p.strip() for p in re.split(r"[,;|]", value)] for value in self.counts}
        places = Counter(part for several in parts.values() for part in set(several))
        joined = [
            v for v, several in parts.items() if len(several) > 1 and all(places[p] > 1 for p in several)
        ]
        return sum(self.counts[value] for value in joined) > _SCORES * len(self.values)


def _tags_of(value: Any) -> list[str]:
    if isinstance(value, list):
        return [str(item) for item in value]
    return [part.strip("'\"[]") for part in re.split(r"[\s,]+", str(value).strip("[] \n"))]


def choose(
    keys: Sequence[Key],
    rows: Sequence[Mapping[Key, Any]],
    text: str | None = None,
    label: str | None = None,
    text_pair: str | None = None,
) -> Choice:
    """The column of the text and that of the label, and of pairs that of the second text; `text`, `label` and
    `text_pair` are names or indices to take.

    Raises:
        DataError: there is none, several could be it, or what they hold is not supported; each of the reasons
            is a sentence.
    """
    columns = {key: Column(key, [row.get(key) for row in rows]) for key in keys}
    the_label = columns[_given(label, keys, "--label-column")] if label is not None else _named(columns)
    candidates = [column for column in columns.values() if column is not the_label]
    second, second_reason = None, "as specified"
    if text_pair is not None:
        second = columns[_given(text_pair, keys, "--text-pair-column")]
        candidates = [column for column in candidates if column is not second]
    if text is not None:
        the_text: Column | None = columns[_given(text, keys, "--text-column")]
        text_reason, pair = "as specified", None
    else:
        the_text, text_reason, pair = _text(candidates)
        if pair is not None and second is None and text_reason == _BY_NAME:
            second, second_reason = pair[1], _BY_NAME
        pair = None if second is not None else pair
    label_reason = "as specified" if label is not None else _BY_NAME
    problems = []
    if the_label is None:
        texts = (the_text, second, *(pair or ()))
        others = [column for column in candidates if column not in texts]
        the_label, label_reason, problem = _by_values(others)
        problems += [problem] if problem else []
    if the_label is not None and (problem := _unsupported(the_label, columns.values())):
        problems.append(problem)
    if pair is not None:
        problems.append(
            f"columns {pair[0].key!r} and {pair[1].key!r} are two texts per row; name the one to read with "
            "--text-column, or both, as a pair, with --text-column and --text-pair-column"
        )
    if the_text is None and not problems:
        problems.append(f"no column of {list(keys)} has texts; name it with --text-column")
    if problems or the_text is None or the_label is None:
        reasons = "".join(f"\n  {problem}" for problem in problems)
        raise DataError(
            problems[0] if len(problems) == 1 else f"{len(problems)} things stand in the way:{reasons}"
        )
    if the_text is the_label:
        raise DataError(f"column {the_text.key!r} cannot be both the text and the label")
    if second is the_text or second is the_label:
        other = "text" if second is the_text else "label"
        raise DataError(f"column {second.key!r} cannot be both the second text and the {other}")
    chosen = Choice(
        the_text.key,
        text_reason,
        the_label.key,
        label_reason,
        problem=the_label.problem,
        separator=the_label.separator,
    )
    return chosen if second is None else replace(chosen, text_pair=second.key, text_pair_reason=second_reason)


def _given(name: str, keys: Sequence[Key], option: str) -> Key:
    if name in keys:
        return name
    if name.isdecimal() and int(name) < len(keys):
        return keys[int(name)]
    raise DataError(f"{option}: no column {shown(name)}; there are {list(keys)}")


def _named(columns: Mapping[Key, Column]) -> Column | None:
    """The label by its name: of several the first usual one whose values are classes."""
    by_name = {column.name: column for column in columns.values() if column.values}
    named = [by_name[name] for name in LABEL_NAMES if name in by_name]
    supported = [c for c in named if not _unsupported(c, columns.values())]
    classes = [column for column in supported if column.problem == SINGLE_LABEL.name]
    return next(iter(classes or supported or named), None)


def _text(candidates: Sequence[Column]) -> tuple[Column | None, str, tuple[Column, Column] | None]:
    """The text, why it is that, and the two columns between which it could not be decided."""
    texts = [c for c in candidates if c.filled and not (c.lists or c.numeric or c.tags or c.identifies)]
    by_name = {column.name: column for column in texts}
    for first, second in _PAIRS:
        if first in by_name and second in by_name:
            return by_name[first], _BY_NAME, (by_name[first], by_name[second])
    for name in TEXT_NAMES:
        if name in by_name:
            return by_name[name], _BY_NAME, None
    texts.sort(key=lambda column: (column.words, len(column.counts)), reverse=True)
    if not texts:
        return None, "", None
    pair = None
    if len(texts) > 1 and _also_text(texts[1]) and 2 * texts[1].words >= texts[0].words:
        pair = (texts[0], texts[1])
    return texts[0], f"the longest texts, {texts[0].words:g} words in the median", pair


def _also_text(column: Column) -> bool:
    return column.words >= 3 and 2 * len(column.counts) > len(column.values)


def _by_values(others: Sequence[Column]) -> tuple[Column | None, str, str | None]:
    """The label by what its column holds, why, and what is wrong where there is no one such column."""
    for column in others:
        if column.tags or column.lists:
            return column, "lists, as several labels per text are", None
    likely = [c for c in others if c.filled and c.repeats and not (c.scores or c.identifies)]
    if len(likely) == 1:
        found = f"{len(likely[0].counts)} different values in {len(likely[0].values):,} rows, as labels have"
        return likely[0], found, None
    if likely and all(column.binary for column in likely):
        names = ", ".join(repr(column.key) for column in likely[:6]) + ", …" * (len(likely) > 6)
        return (
            None,
            "",
            (
                f"columns {names} hold 0 or 1 each: several labels per text (multi-label) are not read from "
                "a column each; put them into one as a list, or name one of them with --label-column"
            ),
        )
    if likely:
        listing = ", ".join(f"{c.key!r} ({len(c.counts)} different values)" for c in likely[:6])
        return None, "", f"several columns could be the label: {listing}; name it with --label-column"
    for column in others:
        if column.scores:
            return column, "numbers that are not whole, as scores are", None
    names = ", ".join(repr(column.key) for column in others) or "there is no other column"
    return (
        None,
        "",
        (
            "no column besides the text has few values that repeat, as labels do "
            f"({names}); name the label with --label-column"
        ),
    )


def _unsupported(label: Column, columns: Sequence[Column] | Any) -> str | None:
    """What kind of label a column has that one class per text is not."""
    held = f"column {label.key!r} holds"
    per_word = label.tags or (label.lists and any(_as_long(label, c) for c in columns if c is not label))
    if per_word:
        return (
            f"{held} a label per word, such as {label.example}: tags of words (token classification, named "
            "entities) need a recipe with task: token-classification; here a text needs one label"
        )
    return None


def _as_long(label: Column, other: Column) -> bool:
    """Whether the lists of a column are as long as those, or the texts in words, of the other one."""
    pairs = [
        (len(tags), len(words) if isinstance(words, list) else len(str(words).split()))
        for tags, words in zip(label.cells, other.cells, strict=True)
        if isinstance(tags, list) and not is_missing(words)
    ]
    alike = sum(tags == words for tags, words in pairs)
    return bool(pairs) and alike >= _MOST * len(pairs) and max(tags for tags, _ in pairs) > 1
