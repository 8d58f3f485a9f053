"""Tags and spans, compared with seqeval."""

import itertools
import random

import pytest
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from pressoir.formats.tags import as_scored, converted, scheme_of, spans_of

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-PER", "S-LOC", "E-LOC"]


def test_spans_are_those_of_seqeval() -> None:
    for tags in itertools.product(TAGS, repeat=4):
        expected = [(kind, start, end + 1) for kind, start, end in get_entities(list(tags))]
        assert spans_of(tags) == expected, tags


SENTENCE = [("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 4), ("PER", 6, 9), ("PER", 9, 10)]


def written(scheme: str) -> list[str]:
    """The spans of SENTENCE in a scheme, by its definition."""
    tags, last = ["O"] * 12, {}
    for kind, start, end in SENTENCE:
        follows = last.get(start) == kind
        last[end] = kind
        for place in range(start, end):
            first, only, final = place == start, end - start == 1, place == end - 1
            tags[place] = {
                "IOB2": "B" if first else "I",
                "IOB1": "B" if first and follows else "I",
                "BIOES": "S" if only else "B" if first else "E" if final else "I",
                "BILOU": "U" if only else "B" if first else "L" if final else "I",
            }[scheme] + f"-{kind}"
    return tags


@pytest.mark.parametrize("scheme", ["IOB2", "IOB1", "BIOES", "BILOU"])
def test_a_scheme_is_recognised_and_keeps_its_spans(scheme: str) -> None:
    tags = written(scheme)
    assert scheme_of([tags]) == scheme
    assert spans_of(converted(tags, scheme)) == SENTENCE
    assert [as_scored(tag) for tag in converted(tags, scheme)] == written(
        {"IOB1": "IOB2", "BILOU": "BIOES"}.get(scheme, scheme)
    )


@pytest.mark.parametrize(("scheme", "theirs"), [("IOB1", IOB1), ("IOB2", IOB2), ("BIOES", IOBES)])
def test_converted_tags_have_the_entities_of_seqeval_s_strict_schemes(scheme: str, theirs: type) -> None:
    entities = [entity.to_tuple()[1:] for entity in Entities([written(scheme)], theirs).entities[0]]
    assert [(kind, start, end) for kind, start, end in entities] == spans_of(
        converted(written(scheme), scheme)
    )


def test_types_without_prefixes_are_spans_as_long_as_they_repeat() -> None:
    tags = ["NOUN", "NOUN", "VERB", "O", "L", "NOUN"]
    assert scheme_of([["NOUN", "VERB"]]) == "plain"
    assert spans_of(tags[:4]) == [("NOUN", 0, 2), ("VERB", 2, 3)]
    assert as_scored("NOUN") == "I-NOUN"


def test_iob2_with_a_mistake_is_not_taken_for_iob1() -> None:
    assert scheme_of([["O", "B-PER", "O"], ["O", "I-LOC", "O"]]) == "IOB2"


def test_conversion_from_iob1_keeps_seqeval_s_entities() -> None:
    random.seed(3)
    for _ in range(200):
        tags = random.choices(["O", "I-A", "I-B", "B-A"], k=8)
        assert get_entities(converted(tags, "IOB1")) == get_entities(tags)
