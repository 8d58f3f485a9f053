"""Pairs of texts through tokenizers and classifiers, beside transformers' own."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from pressoir.errors import DataError
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.tokenizers.steps import iter_encoded
from pressoir.inference.tokenizers.tokenizers import FastTokenizer, encode_batch

KINDS = ("bert", "roberta", "mpnet")
LONG = "the film was good and the book was great and the soup was awful and the song was dull"
PAIRS = [
    ("the film was good", "the film was great"),
    (LONG, "the film was bad"),
    ("a soup", LONG),
    (LONG, f"{LONG} and {LONG}"),
    (f"{LONG} and {LONG}", LONG),
    ("good", "bad"),
]


@pytest.fixture(params=KINDS)
def folder(request, pair_classifier):
    return pair_classifier(request.param)


def expected_inputs(folder, limit=None):
    first, second = zip(*PAIRS, strict=True)
    options = {} if limit is None else {"max_length": limit}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer(
        list(first), list(second), truncation="longest_first", padding=True, return_tensors="np", **options
    )


@pytest.mark.parametrize("limit", [None, 17, 16, 9])
def test_ids_and_types_are_those_of_transformers(folder, limit):
    expected = expected_inputs(folder, limit)
    for tokenizer in (FastTokenizer(folder), AutoTokenizer.from_pretrained(folder)):
        found = encode_batch(tokenizer, PAIRS, limit)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_a_bert_has_two_types_and_a_roberta_two_separators(pair_classifier):
    bert = FastTokenizer(pair_classifier("bert"))(PAIRS[:1])
    assert set(bert["token_type_ids"][0]) == {0, 1}
    roberta = FastTokenizer(pair_classifier("roberta"))(PAIRS[:1])["input_ids"][0].tolist()
    assert (2, 2) in itertools.pairwise(roberta)
    assert "token_type_ids" not in FastTokenizer(pair_classifier("mpnet"))(PAIRS[:1])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("limit", [16, 17])
def test_a_server_cuts_long_pairs_to_the_same_tokens(folder, limit, side):
    """Both long, either much longer, and one without blanks: the excerpts decide as the whole texts do."""
    long, longer = " ".join([LONG] * 20), " ".join([LONG] * 30)
    pairs = [(long, longer), (longer, long), (long, "good"), ("good", long), ("a" * 2000, long), (long, long)]
    reference = AutoTokenizer.from_pretrained(folder, truncation_side=side)
    own = AutoTokenizer.from_pretrained(folder, truncation_side=side)
    for pair in pairs:
        expected = reference(*pair, truncation="longest_first", max_length=limit)["input_ids"]
        [encoded] = [found for found in iter_encoded(own, [pair], limit) if found is not None]
        assert encoded.inputs["input_ids"][0].tolist() == expected
        assert encoded.truncated == [True]


def test_a_pair_is_truncated_if_both_texts_together_are_too_long(folder):
    tokenizer = FastTokenizer(folder)
    whole = tokenizer.lengths(PAIRS)
    for limit in (8, 16, 24):
        found = [step for step in iter_encoded(tokenizer, PAIRS, limit) if step is not None]
        truncated = {row: cut for step in found for row, cut in zip(step.rows, step.truncated, strict=True)}
        assert [truncated[row] for row in range(len(PAIRS))] == [length > limit for length in whole]


def test_logits_are_those_of_transformers(folder):
    classifier = TextClassifier.open(folder, threads=1)
    with torch.inference_mode():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        inputs = {name: torch.from_numpy(array) for name, array in expected_inputs(folder).items()}
        expected = model(**inputs).logits.numpy()
    np.testing.assert_allclose(classifier.logits(PAIRS), expected, atol=1e-5)
    assert np.ptp(expected[:, 0]) > 1e-3


def test_probabilities_are_those_of_the_pipeline(folder):
    classify = pipeline("text-classification", model=str(folder), top_k=None, device="cpu", truncation=True)
    found = TextClassifier.open(folder, threads=1).predict(PAIRS)
    for pair, own in zip(PAIRS, found, strict=True):
        expected = classify({"text": pair[0], "text_pair": pair[1]})
        assert own == pytest.approx({row["label"]: row["score"] for row in expected}, abs=1e-5)


def test_a_model_of_pairs_refuses_a_single_text_and_the_reverse(pair_classifier, tiny_classifier):
    of_pairs = TextClassifier.open(pair_classifier("bert"), threads=1)
    with pytest.raises(DataError, match="trained on pairs"):
        of_pairs.predict("the film was good")
    with pytest.raises(DataError, match="trained on single texts"):
        TextClassifier.open(tiny_classifier, threads=1).predict([PAIRS[0]])
