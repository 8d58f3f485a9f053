"""BLEU, chrF, WER and CER: known values, and a signature that says how each was computed."""

from importlib.metadata import version

import pytest

from pressoir.errors import DataError
from pressoir.metrics import TRANSCRIPT_NORMALISER, bleu, cer, chrf, normalise_transcript, wer

SCORES = [bleu, chrf, wer, cer]


@pytest.mark.parametrize(("score", "best"), [(bleu, 100), (chrf, 100), (wer, 0), (cer, 0)])
def test_equal_texts_have_the_best_score(score, best):
    texts = ["a dog runs over the green grass", "two men are talking"]
    assert score(texts, texts).value == best


def test_bleu_is_that_of_the_paper():
    # Papineni et al., example 1 shortened: 5/6 words, 3/5 pairs, 1/4 triples; the one quadruple is none.
    found = bleu(["the cat sat on the mat"], ["the cat is on the mat"])
    smoothed = (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25  # exp smoothing: half of 1/3
    assert found.value == pytest.approx(100 * smoothed)
    assert bleu(["the cat"], ["the cat is on the mat"]).value < found.value, "brevity is penalised"


def test_bleu_counts_the_corpus_not_the_sentences():
    predicted, expected = ["a b c d e", "x"], ["a b c d e", "a b c d e"]
    sentences = [bleu([p], [e]).value for p, e in zip(predicted, expected, strict=True)]
    assert bleu(predicted, expected).value != pytest.approx(sum(sentences) / 2)


def test_error_rates_count_the_corpus_not_the_sentences():
    assert wer(["one two three", "x"], ["one two three", "y"]).value == pytest.approx(1 / 4)
    assert cer(["abc", "xy"], ["abc", "xz"]).value == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("predicted", "value"),
    [("one two", 1 / 3), ("one two tree", 1 / 3), ("one two big three", 1 / 3), ("", 1), ("a b c d e f", 2)],
)
def test_word_errors_are_deletions_substitutions_and_insertions(predicted, value):
    assert wer([predicted], ["one two three"]).value == pytest.approx(value)


def test_case_and_punctuation_are_no_errors_of_a_recogniser():
    assert wer(["Hello, World!"], ["hello world"]).value == 0
    assert bleu(["Hello, World!"], ["hello world"]).value < 100


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Zero,\tone  TWO. ", "zero one two"),
        ("It’s well-known – isn't it?", "it's well-known isn't it"),
        ("«\u00a0Café\u00a0»", "café"),
        ("'quoted' - 3.5%", "quoted 35"),
        ("ﬁve", "five"),
        ("…", ""),
    ],
)
def test_transcripts_are_normalised(text, normal):
    assert normalise_transcript(text) == normal
    assert normalise_transcript(normal) == normal


def test_signatures_say_how():
    for score in (bleu, chrf):
        assert f"version:{version('sacrebleu')}" in score(["a"], ["a"]).signature
    assert "tok:13a" in bleu(["a"], ["a"]).signature
    for score in (wer, cer):
        signature = score(["a"], ["a"]).signature
        assert TRANSCRIPT_NORMALISER in signature
        assert signature.endswith(f"jiwer:{version('jiwer')}")
    assert len({score(["a"], ["a"]).signature.partition("|")[0] for score in SCORES}) == 4


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("predicted", "expected"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_texts_must_come_in_pairs(score, predicted, expected):
    with pytest.raises(DataError, match=f"{len(predicted)} predicted texts cannot be scored against"):
        score(predicted, expected)
