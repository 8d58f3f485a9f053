"""What a linear classifier makes of the same data: does it need a Transformer at all?

TF-IDF of n-grams and logistic regression, from scikit-learn, trained on the training split in seconds. The
n-grams are sequences of one to three words, or of two to five characters within words, whichever is right
more often on the validation split: languages that do not separate words with spaces need the latter. It is
timed on one thread, from text to probabilities; its size is that of its weights and n-grams, which are not
kept.

Of pairs, the n-grams are those of both texts joined. They do not tell how alike the two are, so three
features are added: the words in both as a fraction of the words in either (Jaccard index), of those in the
first, and of those in the second.

Sources. https://scikit-learn.org/stable/modules/feature_extraction.html#tfidf-term-weighting; S. Wang and
C. Manning 2012, "Baselines and Bigrams", https://aclanthology.org/P12-2018
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pressoir.benchmark.classifier_report import LinearBaseline
from pressoir.data import sentences
from pressoir.data.texts import Text, texts_of
from pressoir.metrics import accuracy, macro_f1, wilson_interval

if TYPE_CHECKING:
    from datasets import Dataset

MOST_SENTENCES = 50_000
"""Sentences that it is trained on, at most: a linear model gains little from more, and takes minutes."""
_INVERSE_REGULARISATION, _ITERATIONS, _WARMUP = 10.0, 1000, 5
_OF_PAIRS = "of both texts joined, and their word overlap"
_NGRAMS: dict[str, dict[str, Any]] = {
    "words": {"ngram_range": (1, 3), "token_pattern": r"\S+"},
    "characters": {"ngram_range": (2, 5), "analyzer": "char_wb"},
}


def measure(data: Path, test: Dataset, sample: Sequence[Text], seed: int) -> LinearBaseline | None:
    """Train on the folder `data`, score on `test`, time on `sample`; None if one label is all there is.

    Costs seconds, minutes at `MOST_SENTENCES` long texts.
    """
    train = sentences.load_split(data, "train")
    if len(train) > MOST_SENTENCES:
        train = train.shuffle(seed=seed).select(range(MOST_SENTENCES))
    if len(set(train["label"])) < 2:
        return None
    start = time.perf_counter()
    ngrams, model = _best(train, sentences.load_split(data, "validation"))
    train_s = time.perf_counter() - start

    texts, expected = texts_of(test), np.asarray(test["label"])
    start = time.perf_counter()
    predicted = np.asarray(model.predict(texts))  # (sentences,)
    predict_s = time.perf_counter() - start
    p50, p95 = np.percentile(_latencies_ms(model, sample), [50, 95])
    low, high = wilson_interval(int((predicted == expected).sum()), len(expected))
    return LinearBaseline(
        ngrams=ngrams if isinstance(texts[0], str) else f"{ngrams} ({_OF_PAIRS})",
        training_sentences=len(train),
        train_s=train_s,
        accuracy=accuracy(predicted, expected),
        accuracy_ci_low=low,
        accuracy_ci_high=high,
        macro_f1=macro_f1(predicted, expected),
        parameters=model[-1].coef_.size + model[-1].intercept_.size,
        size_mb=_bytes(*model) / 1e6,
        latency_ms_p50=float(p50),
        latency_ms_p95=float(p95),
        throughput_per_s=len(texts) / predict_s,
    )


def _best(train: Any, validation: Any) -> tuple[str, Any]:
    """The kind of n-grams that is right most often on `validation`, and its model; the first of equals."""
    models = {name: _fitted(name, train) for name in _NGRAMS}
    texts, labels = texts_of(validation), list(validation["label"])
    scores = {name: model.score(texts, labels) for name, model in models.items()}
    best = max(scores, key=lambda name: scores[name])
    return best, models[best]


def _fitted(name: str, train: Any) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = texts_of(train)
    vectorizer = TfidfVectorizer(**_NGRAMS[name])
    model = make_pipeline(
        vectorizer if isinstance(texts[0], str) else _pair_features(vectorizer),
        LogisticRegression(C=_INVERSE_REGULARISATION, max_iter=_ITERATIONS),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline that still gains is one all the same
        return model.fit(texts, train["label"])


def _pair_features(vectorizer: Any) -> Any:
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer

    return make_union(
        make_pipeline(FunctionTransformer(_joined), vectorizer), FunctionTransformer(_word_overlap)
    )


def _joined(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [" ".join(pair) for pair in pairs]


def _word_overlap(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """(pairs, 3), see the module."""
    rows = []
    for pair in pairs:
        first, second = (set(text.lower().split()) for text in pair)
        shared = len(first & second)
        rows.append([shared / max(1, len(words)) for words in (first | second, first, second)])
    return np.asarray(rows)


def _bytes(features: Any, classifier: Any) -> int:
    """Of the weights as they are, and of the n-grams as text with an index of four bytes each."""
    of_pairs = hasattr(features, "transformer_list")
    vectorizer = features.transformer_list[0][1][-1] if of_pairs else features
    weights = (vectorizer.idf_, classifier.coef_, classifier.intercept_)
    ngrams = sum(len(ngram.encode()) + 4 for ngram in vectorizer.vocabulary_)
    return int(sum(array.nbytes for array in weights) + ngrams)


def _latencies_ms(model: Any, sample: Sequence[Text]) -> NDArray[np.float64]:
    for text in sample[:_WARMUP]:
        model.predict_proba([text])
    times = []
    for text in sample:
        start = time.perf_counter_ns()
        model.predict_proba([text])
        times.append((time.perf_counter_ns() - start) / 1e6)
    return np.asarray(times)
