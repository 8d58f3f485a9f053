"""Tags of words: which scheme they are written in, and the spans that they mark.

A tag is `O`, or a prefix and a type (`B-PER`). The schemes:

IOB2    `B-` begins every span, `I-` continues it; also named BIO
IOB1    `I-` begins a span, `B-` only one that directly follows another of its type
BIOES   IOB2 with `E-` for the last word of a span and `S-` for a span of one word; BILOU writes `L-` and `U-`
plain   types without prefixes, such as parts of speech: words in a row with the same tag are one span

Spans are those of seqeval's default mode, in which the script `conlleval` of CoNLL-2000 reads tags: a tag
that may not stand where it does, such as an `I-` after `O`, begins a span.

Sources. L. Ramshaw and M. Marcus 1995, "Text Chunking using Transformation-Based Learning"; E. Tjong Kim Sang
and J. Veenstra 1999, "Representing Text Chunks"; https://github.com/chakki-works/seqeval
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from pressoir.metrics import Statistic, Tags

OUTSIDE = "O"
Scheme = Literal["IOB2", "IOB1", "BIOES", "BILOU", "plain"]
_PREFIXES = frozenset("BIOESLU")
"""A prefix, as a tag by itself, is one of these as well."""
_BILOU = {"L": "E", "U": "S"}


class Span(NamedTuple):
    """Words that belong together."""

    type: str
    start: int
    """Its first word, from 0."""
    end: int
    """The word after its last."""


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix, of BIOES, and type of a tag.

    A type without a prefix has `I`, so that words in a row with it are one span; a bare prefix has the type
    `_`.
    """
    prefix, dash, kind = tag.partition("-")
    if tag in _PREFIXES or (dash and prefix in _PREFIXES):
        return _BILOU.get(prefix, prefix), kind or "_"
    return "I", tag


def as_scored(tag: str) -> str:
    """A tag as seqeval reads it in its default mode: with a prefix of BIOES."""
    prefix, kind = split_tag(tag)
    return OUTSIDE if prefix == OUTSIDE else f"{prefix}-{kind}"


def scheme_of(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme that the tags of sentences are written in.

    Where an `I-` begins a span it is IOB1, unless a `B-` does so as well where no span goes before: the tags
    are then IOB2 with mistakes.
    """
    begun_by_i = begun_by_b = False
    written = set[str]()
    for tags in sentences:
        before = (OUTSIDE, "_")
        for tag in tags:
            written.add(tag[0] if tag in _PREFIXES or (tag[1:2] == "-" and tag[0] in _PREFIXES) else "")
            prefix, kind = split_tag(tag)
            begins = before[0] == OUTSIDE or before[1] != kind
            begun_by_i |= prefix == "I" and begins
            begun_by_b |= prefix == "B" and begins
            before = (prefix, kind)
    if "" in written:
        return "plain"
    if written & {"L", "U"}:
        return "BILOU"
    if written & {"E", "S"}:
        return "BIOES"
    return "IOB1" if begun_by_i and not begun_by_b else "IOB2"


def converted(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Tags of IOB1 as those of IOB2, and of BILOU as those of BIOES: the same spans; others as they are."""
    if scheme == "BILOU":
        return [as_scored(tag) for tag in tags]
    if scheme != "IOB1":
        return list(tags)
    result, before = list[str](), (OUTSIDE, "_")
    for tag in tags:
        prefix, kind = split_tag(tag)
        begins = prefix == "I" and (before[0] == OUTSIDE or before[1] != kind)
        result.append(f"B-{kind}" if begins else tag)
        before = (prefix, kind)
    return result


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans of a sentence, in their order."""
    found, start, before = list[Span](), 0, (OUTSIDE, "_")
    for place, tag in enumerate([*tags, OUTSIDE]):
        current = split_tag(tag)
        apart = before[0] in ("E", "S") or current[0] in ("B", "S") or before[1] != current[1]
        if before[0] != OUTSIDE and (apart or current[0] == OUTSIDE):
            found.append(Span(before[1], start, place))
        if current[0] != OUTSIDE and (apart or before[0] == OUTSIDE):
            start = place
        before = current
    return found


def score(predicted: Tags, expected: Tags) -> dict[str, float]:
    """What seqeval says of tags of any scheme, see `metrics.span_scores`."""
    from pressoir import metrics

    given, right = ([list(map(as_scored, tags)) for tags in rows] for rows in (predicted, expected))
    return metrics.span_scores(given, right)


def statistic(predicted: Tags, expected: Tags) -> Statistic:
    """F1 of the spans as sums over the sentences."""
    from pressoir import metrics

    return metrics.span_statistic([*map(spans_of, predicted)], [*map(spans_of, expected)])
