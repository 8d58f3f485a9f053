"""Classes and sentences of a benchmark: as scikit-learn counts them, the most different first."""

import json

import numpy as np
import pytest
from sklearn.metrics import classification_report

from pressoir.benchmark.classifier_details import LEAST, SHOWN, ClassifierDetails, details
from pressoir.errors import PressoirError

LABELS = ("bad", "fair", "good")


def probabilities(seed, count=200):
    logits = np.random.default_rng(seed).normal(size=(count, len(LABELS)))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def models():
    """Correct labels, of which the last is never one, and the probabilities of two models."""
    expected = np.random.default_rng(2).integers(0, 2, 200)
    return expected, probabilities(0), probabilities(1)


@pytest.fixture(scope="module")
def found(models):
    return details([str(i) for i in range(200)], models[0], LABELS, *models[1:])


def test_classes_are_scored_as_scikit_learn_reports_them(models, found):
    expected, *both = models
    for which, one in zip(("reference", "final"), both, strict=True):
        report = classification_report(
            expected,
            one.argmax(axis=1),
            labels=range(3),
            target_names=LABELS,
            output_dict=True,
            zero_division=0,
        )
        for row in found.classes:
            scores, outside = getattr(row, which), report[row.label]
            assert (scores.precision, scores.recall) == (outside["precision"], outside["recall"])
            assert (scores.f1, row.sentences) == (outside["f1-score"], outside["support"])
    assert [row.label for row in found.classes] == list(LABELS)
    assert found.classes[2].sentences == 0


def test_sentences_that_one_model_alone_labels_correctly_are_counted(models, found):
    expected, reference, final = models
    first, last = (one.argmax(axis=1) == expected for one in (reference, final))
    assert found.only_reference_correct == sum(a and not b for a, b in zip(first, last, strict=True))
    assert found.only_final_correct == sum(b and not a for a, b in zip(first, last, strict=True))


def test_the_most_different_sentences_come_first_with_what_both_say(models, found):
    expected, reference, final = models
    distances = np.maximum(reference - final, 0).sum(axis=1)  # total variation, by its other definition
    order = sorted(range(200), key=lambda i: -distances[i])[:SHOWN]
    assert [one.text for one in found.differences] == [str(i) for i in order]
    for one, i in zip(found.differences, order, strict=True):
        assert one.distance == pytest.approx(distances[i])
        assert one.expected == LABELS[expected[i]]
        for answer, row in ((one.reference, reference[i]), (one.final, final[i])):
            assert (answer.label, answer.probability) == (LABELS[row.argmax()], row.max())
            assert answer.expected_probability == row[expected[i]]


def test_models_that_hardly_differ_have_no_differences(models):
    expected, reference, _ = models
    near = reference.copy()
    near[:, 0] += LEAST / 2
    near /= near.sum(axis=1, keepdims=True)
    same = details(["a"] * 200, expected, LABELS, reference, near)
    assert same.differences == ()


def test_a_long_text_is_shortened_and_the_file_is_read_again(tmp_path):
    sure, unsure = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    found = details(["word " * 100_000], np.array([0]), LABELS[:2], sure, unsure)
    found.write(tmp_path / "details.json")
    assert ClassifierDetails.read(tmp_path / "details.json") == found
    assert (tmp_path / "details.json").stat().st_size < 4000
    assert found.differences[0].text.endswith("(499,000 more characters)")
    assert found.differences[0].distance == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"classes": [{"label": "<b>"}]}'])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "details.json"
    path.write_text(content)
    with pytest.raises(PressoirError, match=str(path)):
        ClassifierDetails.read(path)


def test_a_file_with_a_probability_that_is_none_is_refused(found, tmp_path):
    content = json.loads(found.model_dump_json())
    content["differences"][0]["final"]["probability"] = 1.5
    path = tmp_path / "details.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PressoirError, match="probability"):
        ClassifierDetails.read(path)
