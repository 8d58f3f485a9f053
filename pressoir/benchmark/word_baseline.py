"""What a linear classifier of words makes of the same data: does it need a Transformer at all?

Logistic regression from scikit-learn (by stochastic gradient descent) over features of a word and of its
neighbours: the word in small letters, its first and last letters, and its shape (`Xxx` for a word with a
capital, `dd-dd` for digits with a dash, …); two words before and after it are looked at. It is trained on the
training split in seconds and timed on one thread, from words to tags; its size is that of its weights and of
the names of its features, which are not kept.

Source. L. Ratinov and D. Roth 2009, "Design Challenges and Misconceptions in Named Entity Recognition",
https://aclanthology.org/W09-1119, for features of this kind; without their lists of names.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pressoir.benchmark.classifier_report import WordBaseline
from pressoir.data import sentences
from pressoir.data.texts import Text, Words, texts_of
from pressoir.formats import tags as tagging
from pressoir.metrics import bootstrap as bootstrap_of
from pressoir.metrics import percentile_interval

if TYPE_CHECKING:
    from datasets import Dataset

MOST_SENTENCES = 20_000
"""Sentences that it is trained on, at most."""
_REGULARISATION, _EPOCHS, _WARMUP = 1e-5, 15, 5
_NEIGHBOURS, _AFFIX = (-2, -1, 0, 1, 2), 4
_RUN = re.compile(r"(.)\1{2,}")


def measure(data: Path, test: Dataset, sample: Sequence[Text], seed: int) -> WordBaseline | None:
    """Train on the folder `data`, score on `test`, time on `sample`; None if one tag is all there is."""
    train = sentences.load_split(data, "train")
    if len(train) > MOST_SENTENCES:
        train = train.shuffle(seed=seed).select(range(MOST_SENTENCES))
    labels = sentences.info(data)["labels"]
    tags = [labels[index] for row in train["label"] for index in row]
    if len(set(tags)) < 2:
        return None
    start = time.perf_counter()
    model = _fitted(texts_of(train), tags, seed)
    train_s = time.perf_counter() - start

    texts = texts_of(test)
    expected = [[labels[index] for index in row] for row in test["label"]]
    start = time.perf_counter()
    found: Iterator[str] = iter(model.predict([f for text in texts for f in features(text)]).tolist())
    predicted = [[next(found) for _ in text] for text in texts]
    predict_s = time.perf_counter() - start
    p50, p95 = np.percentile(_latencies_ms(model, sample), [50, 95])
    scores = tagging.score(predicted, expected)
    low, high = percentile_interval(*bootstrap_of(tagging.statistic(predicted, expected)))
    vectorizer, regression = model[0], model[-1]
    names = sum(len(name.encode()) + 4 for name in vectorizer.vocabulary_)  # with an index of four bytes each
    return WordBaseline(
        training_sentences=len(train),
        train_s=train_s,
        span_f1=scores["span_f1"],
        span_f1_ci_low=low,
        span_f1_ci_high=high,
        tag_accuracy=scores["tag_accuracy"],
        parameters=regression.coef_.size + regression.intercept_.size,
        size_mb=(regression.coef_.nbytes + regression.intercept_.nbytes + names) / 1e6,
        latency_ms_p50=float(p50),
        latency_ms_p95=float(p95),
        throughput_per_s=len(texts) / predict_s,
    )


def features(words: Sequence[str]) -> list[list[str]]:
    """The features of each word of a sentence."""
    own = [_of_word(word) for word in words]
    rows = []
    for place in range(len(words)):
        row = []
        for step in _NEIGHBOURS:
            inside = 0 <= place + step < len(words)
            for name in own[place + step] if inside else ("edge",):
                if abs(step) < 2 or not name.startswith(("first=", "last=")):
                    row.append(f"{step}:{name}")
        rows.append(row)
    return rows


def shape(word: str) -> str:
    """Capitals as X, small letters as x, digits as d; of more than three of a kind in a row, three."""
    letters = "".join("d" if c.isdigit() else "X" if c.isupper() else "x" if c.isalpha() else c for c in word)
    return _RUN.sub(r"\1\1\1", letters)


def _of_word(word: str) -> list[str]:
    small = word.lower()
    affixes = range(1, min(_AFFIX, len(small)) + 1)
    return [
        f"word={small}",
        f"shape={shape(word)}",
        *(f"first={small[:size]}" for size in affixes),
        *(f"last={small[-size:]}" for size in affixes),
    ]


def _fitted(texts: Sequence[Text], tags: Sequence[str], seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        CountVectorizer(analyzer=list, dtype=np.float64),
        SGDClassifier(
            loss="log_loss", alpha=_REGULARISATION, max_iter=_EPOCHS, average=True, random_state=seed
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline that still gains is one all the same
        return model.fit([row for text in texts for row in features(text)], tags)


def _latencies_ms(model: Any, sample: Sequence[Text]) -> NDArray[np.float64]:
    for text in sample[:_WARMUP]:
        model.predict(features(Words(text)))
    times = []
    for text in sample:
        start = time.perf_counter_ns()
        model.predict(features(Words(text)))
        times.append((time.perf_counter_ns() - start) / 1e6)
    return np.asarray(times)
