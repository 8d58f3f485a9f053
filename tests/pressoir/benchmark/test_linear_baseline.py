"""The linear baseline, against scikit-learn's pipeline; test_classifier_report.py has what is said of it."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from pressoir.benchmark import linear_baseline
from pressoir.data import sentences


def test_it_is_scikit_learns_classifier_on_the_same_sentences(tiny_data):
    train, validation, test = (sentences.load_split(tiny_data, s) for s in ("train", "validation", "test"))
    found = linear_baseline.measure(tiny_data, test, list(test["text"]), seed=0)
    models = {
        "words": TfidfVectorizer(ngram_range=(1, 3), token_pattern=r"\S+"),
        "characters": TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)),
    }
    scores = {}
    for name, vectorizer in models.items():
        model = make_pipeline(vectorizer, LogisticRegression(C=10, max_iter=1000))
        model.fit(list(train["text"]), train["label"])
        scores[name] = (
            model.score(validation["text"], validation["label"]),
            model.score(test["text"], test["label"]),
        )
    assert found.ngrams == max(scores, key=lambda name: scores[name][0])
    assert found.accuracy == scores[found.ngrams][1]
    assert found.training_sentences == len(train)
    assert 8e-6 * found.parameters < found.size_mb < 100e-6 * found.parameters
    assert found.accuracy_ci_low < found.accuracy <= found.accuracy_ci_high


def test_text_without_spaces_takes_characters(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    rng = np.random.default_rng(0)
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})

    def texts(count):
        rows = {"text": [], "label": []}
        for number in range(count):
            filler = "".join(rng.choice(list("天地人日月山水火木金土上下左右"), 12))
            cut = int(rng.integers(12))
            rows["text"].append(filler[:cut] + ("很好", "糟糕")[number % 2] + filler[cut:])
            rows["label"].append(1 - number % 2)
        return Dataset.from_dict(rows, features=features)

    data = {"train": texts(200), "validation": texts(60), "test": texts(60)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentences, "load_split", lambda folder, split: data[split])
        found = linear_baseline.measure(tmp_path, data["test"], data["test"]["text"], seed=0)
    assert found.ngrams == "characters"
    assert found.accuracy > 0.95


def test_a_split_with_one_label_has_no_baseline(tmp_path, monkeypatch):
    from datasets import Dataset

    rows = Dataset.from_dict({"text": ["a b", "c d"], "label": [1, 1]})
    monkeypatch.setattr(sentences, "load_split", lambda folder, split: rows)
    assert linear_baseline.measure(tmp_path, rows, ["a"], seed=0) is None
