"""The demo corpus is fit to be learnt from: balanced, varied, and no split helps with another."""

import re
from collections import Counter, defaultdict

import pytest

from pressoir.data import sentences
from pressoir.recipe.sections import DataConfig

NEGATIONS = re.compile(
    r"\b(?:not|no|never|nothing|nobody|nowhere|none|neither|nor|without|hardly|cannot|\w+n[’']t)\b", re.I
)
WORD = re.compile(r"[\w’'-]+")


def words(text):
    return WORD.findall(text.lower().replace("’", "'"))


def read(split):
    """Rows of a split, split at tabs and nothing else."""
    lines = (sentences.DEMO / f"{split}.tsv").read_text(encoding="utf-8").split("\n")
    assert lines[0] == "text\tlabel\tdomain"
    assert lines[-1] == "", "the file does not end with a line feed"
    return [tuple(line.split("\t")) for line in lines[1:-1]]


CORPUS = {split: read(split) for split in sentences.SPLITS}
NEGATED = read("negations")
"""Verdicts that a negation turns, for measuring alone: no split has them."""
ROWS = [row for rows in CORPUS.values() for row in rows]
TEXTS = [row[0] for row in ROWS]


def near_duplicates(texts, threshold=0.2):
    """Pairs of texts whose sets of word 3-grams have a Jaccard index of `threshold` or more.

    An inverted index counts the shared 3-grams, so that only pairs that share one are ever looked at.
    """
    grams = [set(zip(w, w[1:], w[2:], strict=False)) or {tuple(w)} for w in map(words, texts)]
    holders = defaultdict(list)
    for index, own in enumerate(grams):
        for gram in own:
            holders[gram].append(index)
    shared = Counter(
        (first, second)
        for holding in holders.values()
        for i, first in enumerate(holding)
        for second in holding[i + 1 :]
    )
    return [
        (texts[first], texts[second])
        for (first, second), count in shared.items()
        if count >= threshold * (len(grams[first]) + len(grams[second]) - count)
    ]


def openings(texts):
    """How many texts open with each three words."""
    return Counter(tuple(words(text)[:3]) for text in texts)


def test_every_row_has_a_sentence_a_label_and_a_domain():
    assert {len(row) for row in ROWS} == {3}
    assert {label for _, label, _ in ROWS} == {"negative", "positive"}
    assert all(re.fullmatch("[a-z]+", domain) for *_, domain in ROWS)


def test_the_splits_that_choose_and_measure_are_large_enough_to_tell_models_apart():
    """A difference of 3 points between two models is then as large as its own standard error at least."""
    assert len(CORPUS["train"]) >= 6000
    assert len(CORPUS["validation"]) == DataConfig().validation_samples
    assert len(CORPUS["test"]) >= 800


@pytest.mark.parametrize("split", sentences.SPLITS)
def test_labels_are_balanced(split):
    positive = sum(label == "positive" for _, label, _ in CORPUS[split]) / len(CORPUS[split])
    assert 0.45 <= positive <= 0.55


@pytest.mark.parametrize("split", sentences.SPLITS)
def test_every_domain_is_in_every_split_with_both_labels(split):
    domains = {domain for *_, domain in ROWS}
    assert len(domains) >= 5
    assert {(label, domain) for _, label, domain in CORPUS[split]} == {
        (label, domain) for label in ("negative", "positive") for domain in domains
    }


def test_a_domain_does_not_give_the_label_away():
    by_domain = defaultdict(list)
    for _, label, domain in ROWS:
        by_domain[domain].append(label == "positive")
    for domain, labels in by_domain.items():
        assert 0.35 <= sum(labels) / len(labels) <= 0.65, domain


def test_no_two_sentences_of_any_file_are_nearly_the_same():
    assert near_duplicates([*TEXTS, *(text for text, *_ in NEGATED)]) == []


def test_fifty_negations_turn_verdicts_either_way():
    assert len(NEGATED) == 50
    assert {len(row) for row in NEGATED} == {3}
    assert 20 <= sum(label == "positive" for _, label, _ in NEGATED) <= 30
    assert [text for text, *_ in NEGATED if not NEGATIONS.search(text)] == []


def test_the_detector_catches_a_planted_near_duplicate_and_only_that():
    original = max(TEXTS, key=lambda text: len(words(text)))
    middle = original.split()
    middle[len(middle) // 2] = "surprisingly"
    planted = [f"{original} Really.", " ".join(middle), original.upper(), original.replace(",", " ,")]
    for text in planted:
        assert near_duplicates([*TEXTS, text]) == [(original, text)]
    assert near_duplicates(["bad film", "Bad film!"]) == [("bad film", "Bad film!")]
    assert near_duplicates(["the film was good and short", "the film was bad and very long"]) == []


def test_no_opening_is_worn_out():
    opening, count = openings(TEXTS).most_common(1)[0]
    assert count <= 10, f"{count} sentences open with {' '.join(opening)!r}"
    assert openings(["The film was it", "the film, was that"]) == {("the", "film", "was"): 2}


def test_sentences_are_of_4_to_60_words():
    assert [text for text in TEXTS if not 4 <= len(words(text)) <= 60] == []


def test_characters_are_printable_and_spaces_single():
    assert [text for text in TEXTS if not text.isprintable() or text != " ".join(text.split())] == []


@pytest.mark.parametrize("label", ["negative", "positive"])
def test_at_least_a_tenth_of_each_label_has_a_negation(label):
    texts = [text for text, own, _ in ROWS if own == label]
    assert sum(bool(NEGATIONS.search(text)) for text in texts) >= 0.1 * len(texts)


def test_the_vocabulary_is_rich():
    vocabulary = Counter(word for text in TEXTS for word in words(text))
    assert len(vocabulary) >= 4000
    assert vocabulary.most_common(1)[0][1] / vocabulary.total() < 0.08
    once = sum(count == 1 for count in vocabulary.values()) / len(vocabulary)
    assert 0.3 <= once <= 0.7  # real text has about half


def test_no_word_gives_the_label_away_too_cheaply():
    """The best rule of one word, `label is positive where the word stands`, is not far above guessing."""
    counts = defaultdict(lambda: [0, 0])
    for text, label, _ in ROWS:
        for word in set(words(text)):
            counts[word][label == "positive"] += 1
    totals = Counter(label == "positive" for _, label, _ in ROWS)
    best = max(counts, key=lambda word: abs(counts[word][1] / totals[True] - counts[word][0] / totals[False]))
    gain = abs(counts[best][1] / totals[True] - counts[best][0] / totals[False]) / 2
    assert gain < 0.1, f"{best!r} alone is right in {50 + 100 * gain:.0f} % of the cases"


def test_it_loads_without_dropping_a_copy():
    corpus = sentences.load(DataConfig(), seed=0)
    splits, dropped = corpus.splits, corpus.counts
    assert set(dropped.values()) == {0}
    assert {split: len(splits[split]) for split in splits} == {
        split: len(rows) for split, rows in CORPUS.items()
    }
    assert splits["train"].features["label"].names == ["negative", "positive"]
