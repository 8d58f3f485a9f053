"""A model's classes and the data's labels: matched by name, counted only where nothing is named."""

import pytest

from pressoir.errors import DataError, SourceError
from pressoir.formats.labels import check_single_label, labels_of, match


@pytest.mark.parametrize(
    ("own", "wanted", "ordered", "places"),
    [
        (["bad", "good"], ["bad", "good"], False, [0, 1]),
        (["good", "bad"], ["bad", "good"], False, [1, 0]),
        (["POSITIVE", "NEGATIVE"], ["negative", "positive"], False, [1, 0]),
        (["c", "a", "b"], ["a", "b", "c"], False, [1, 2, 0]),
        (["A", "a"], ["a", "A"], False, [1, 0]),
        (["1", "0"], ["0", "1"], False, [1, 0]),
        (["LABEL_0", "LABEL_1"], ["0", "1"], False, [0, 1]),
        (["NEGATIVE", "POSITIVE"], ["0", "1"], False, [0, 1]),
        (["LABEL_0", "LABEL_1"], ["positive", "negative"], True, [0, 1]),
        (["0", "1"], ["positive", "negative"], True, [0, 1]),
    ],
)
def test_labels_are_matched_by_name_and_numbers_by_index(own, wanted, ordered, places):
    assert match(own, wanted, ordered) == places


@pytest.mark.parametrize(
    ("own", "wanted", "ordered"),
    [
        (["spam", "ham"], ["negative", "positive"], False),
        (["spam", "ham"], ["negative", "positive"], True),
        (["LABEL_0", "LABEL_1"], ["negative", "positive"], False),
        (["negative", "neutral", "positive"], ["negative", "positive"], True),
        (["negative", "positive"], ["0", "1", "2"], False),
        (["negative", "positive"], ["1", "2"], False),
        (["A", "a"], ["a", "b"], False),
        (["a", "a"], ["a", "b"], False),
    ],
)
def test_other_labels_are_refused_with_both_lists(own, wanted, ordered):
    with pytest.raises(DataError) as caught:
        match(own, wanted, ordered)
    for name in (*own, *wanted):
        assert repr(name) in str(caught.value)


def test_unnamed_classes_say_which_field_names_them():
    with pytest.raises(DataError, match=r"set data\.labels to .* in the order of the model's classes"):
        match(["LABEL_0", "LABEL_1"], ["negative", "positive"])


def test_the_names_are_in_the_order_of_the_logits_however_many_there_are():
    names = {str(index): f"class {index}" for index in reversed(range(12))}
    assert labels_of({"id2label": names}) == [f"class {index}" for index in range(12)]
    assert labels_of({}) == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"architectures": ["BertForTokenClassification"]}, "token classifier"),
        ({"problem_type": "multi_label_classification"}, "multi-label classifier"),
        ({"problem_type": "regression"}, "regression model"),
        ({"id2label": {"0": "LABEL_0"}}, "regression model"),
    ],
)
def test_models_that_do_not_choose_one_label_are_named_for_what_they_are(config, kind):
    with pytest.raises(SourceError, match=f"some/model is a {kind}"):
        check_single_label({"architectures": ["BertForSequenceClassification"], **config}, "some/model")


def test_a_classifier_passes():
    check_single_label({"architectures": ["BertForSequenceClassification"]}, "m")
    check_single_label({"problem_type": "single_label_classification"}, "m")
