"""What people write first: a folder by its name, no threads, one text that is not in a list."""

import numpy as np
import pytest

from pressoir.errors import SourceError
from pressoir.inference.feature_extraction import SentenceEncoder
from pressoir.inference.text_classification import TextClassifier


def test_a_folder_may_be_a_string_and_threads_are_those_there_are(tiny_classifier):
    model = TextClassifier.open(str(tiny_classifier))
    texts = ["the film was good", "the soup was bland"]
    assert model.predict(texts) == TextClassifier.open(tiny_classifier, 1).predict(texts)


def test_one_text_is_one_text_and_not_its_characters(tiny_classifier, tiny_bert):
    text = "the film was good"
    classifier, encoder = TextClassifier.open(tiny_classifier, 1), SentenceEncoder.open(tiny_bert, 1)
    assert classifier.predict(text) == classifier.predict([text])
    np.testing.assert_array_equal(encoder.embed(text), encoder.embed([text]))


@pytest.mark.parametrize("adapter", [TextClassifier, SentenceEncoder])
def test_a_folder_that_is_not_there_is_one_error(adapter, tmp_path):
    with pytest.raises(SourceError, match=r"nowhere is not a folder; specify a model folder"):
        adapter.open(str(tmp_path / "nowhere"))
