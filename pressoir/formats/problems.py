"""What a classifier decides of a text: one of several labels, any number of them, a score, or a tag for each
word.

One entry of `PROBLEMS` per `problem_type` of transformers, and one for token classifiers: what logits become,
what is decided by them, what is expected, and how both are scored. Losses, which need torch, are in
`pressoir.training.losses`.

**Tags of words.** Logits are (sentences, most words of one, labels), 0 where a sentence has no word.
Decisions and targets are (sentences, words), `NO_WORD` there. They are scored by the spans that tags mark
(`pressoir.formats.tags`), for which the names of the labels have to be known: `Problem.of`.

**Thresholds.** A text has the labels whose probability is at least their threshold. The thresholds of a
multi-label model are chosen on validation data and stored in `config.json` as `label_thresholds`, a list in
the order of the logits, which transformers keeps; without it they are 0.5. One threshold for all labels is
that of the highest micro-averaged F1; one for each label that of the label's own F1 (labels that the
validation split lacks get the common one).

Sources. Z. Lipton et al. 2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure"
(arXiv:1402.1892); R.-E. Fan and C.-J. Lin 2007, "A Study on Threshold Selection for Multi-label
Classification", for one threshold per label and why rare labels overfit it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pressoir.errors import SourceError
from pressoir.formats import tags
from pressoir.formats.tags import OUTSIDE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

THRESHOLDS = "label_thresholds"
"""Field of `config.json`: the threshold of each label's probability, in the order of the logits."""
SCORE = "score"
"""The one output of a regression model."""
DEFAULT_THRESHOLD = 0.5
NO_WORD = -100
"""The decision and the target where a sentence has no word; transformers' losses leave such tokens out."""
Thresholds = Sequence[float] | None
TOKEN_HEAD = "ForTokenClassification"
"""How the names of classes end that tag each token."""


@dataclass(frozen=True)
class Problem:
    """One kind of decision."""

    name: str
    """As a recipe has it in `data.problem`."""
    problem_type: str | None
    """As transformers has it in `config.json`; None of token classifiers, whose head says it."""
    model: str
    """What a model of it is, for a message."""
    scores: tuple[str, ...]
    """Metrics of an epoch on the validation split, the main one first."""
    selecting: tuple[str, ...]
    """Those of them, all higher for better, by which an epoch can be chosen."""
    probabilities: Callable[[Floats], NDArray[np.float64]]
    """Of logits (texts, labels): probabilities, or for regression the logits themselves."""
    decide: Callable[[Floats, Thresholds], NDArray[Any]]
    """Of logits: the label's index (texts,), whether each label is given (texts, labels), or scores
    (texts,)."""
    targets: Callable[[Sequence[Any], int], NDArray[Any]]
    """Of the labels of saved rows, and the number of labels: what `decide` gives if all is right, as
    transformers takes it."""
    score: Callable[[NDArray[Any], NDArray[Any], int], dict[str, float]]
    """Of decisions, targets and the number of labels: the metrics in `scores`."""
    interval: Callable[[NDArray[Any], NDArray[Any]], tuple[float, float]]
    """Of decisions and targets: the 95 % confidence interval of the main metric. Accuracy has Wilson's, the
    others the percentiles of a bootstrap over the texts."""
    agreement: Callable[[NDArray[Any], NDArray[Any]], float]
    """Of the decisions of two models: the fraction that is the same; of scores the fraction of the second's
    variance that the first reproduces (R²), at least 0."""
    divergence: Callable[[Floats, Floats], float]
    """How far the second logits are from the first: mean KL divergence, or mean squared difference."""

    @property
    def metric(self) -> str:
        """The main metric: by it models are chosen, compared and promoted."""
        return self.scores[0]

    def of(self, labels: Sequence[str]) -> Problem:
        """The same for the labels of a model or of data, in their order: scores of tags need their names."""
        if self.name != TOKENS.name:
            return self
        names = tuple(labels)
        return replace(
            self,
            score=partial(_score_tags, names),
            interval=partial(_of_tags, names),
            agreement=partial(_same_tags, names),
        )


def _softmax(logits: Floats) -> NDArray[np.float64]:
    import numpy as np

    wide = logits.astype(np.float64)
    exp = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exp / exp.sum(axis=1, keepdims=True)
    return probabilities


def _sigmoid(logits: Floats) -> NDArray[np.float64]:
    import numpy as np

    wide = logits.astype(np.float64)
    small = np.exp(-np.abs(wide))  # never overflows
    probabilities: NDArray[np.float64] = np.where(wide >= 0, 1.0, small) / (1.0 + small)
    return probabilities


def _unchanged(logits: Floats) -> NDArray[np.float64]:
    import numpy as np

    return logits.astype(np.float64)


def _most_likely(logits: Floats, thresholds: Thresholds = None) -> NDArray[Any]:
    found: NDArray[Any] = logits.argmax(axis=1)
    return found


def _over_threshold(logits: Floats, thresholds: Thresholds = None) -> NDArray[Any]:
    import numpy as np

    least = np.full(logits.shape[1], DEFAULT_THRESHOLD) if thresholds is None else np.asarray(thresholds)
    found: NDArray[Any] = _sigmoid(logits) >= least
    return found


def _scores(logits: Floats, thresholds: Thresholds = None) -> NDArray[Any]:
    return _unchanged(logits)[:, 0]


def _indices(labels: Sequence[Any], count: int) -> NDArray[Any]:
    import numpy as np

    return np.asarray(labels, dtype=np.int64)


def _multi_hot(labels: Sequence[Any], count: int) -> NDArray[Any]:
    import numpy as np

    hot = np.zeros((len(labels), count), dtype=np.float32)
    for row, indices in zip(hot, labels, strict=True):
        row[list(indices)] = 1
    return hot


def _floats(labels: Sequence[Any], count: int) -> NDArray[Any]:
    import numpy as np

    return np.asarray(labels, dtype=np.float32)


def _score_labels(predicted: NDArray[Any], expected: NDArray[Any], count: int) -> dict[str, float]:
    from pressoir import metrics

    return {
        "accuracy": metrics.accuracy(predicted, expected),
        "f1": metrics.f1(predicted, expected, count),
        "macro_f1": metrics.macro_f1(predicted, expected),
    }


def _score_sets(predicted: NDArray[Any], expected: NDArray[Any], count: int) -> dict[str, float]:
    from pressoir import metrics

    return metrics.label_set_scores(predicted, expected)


def _score_numbers(predicted: NDArray[Any], expected: NDArray[Any], count: int) -> dict[str, float]:
    from pressoir import metrics

    return metrics.regression_scores(predicted, expected)


def _wilson(predicted: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    from pressoir import metrics

    return metrics.wilson_interval(int((predicted == expected).sum()), len(expected))


def _of_sets(predicted: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    from pressoir import metrics

    (draws,) = metrics.bootstrap(metrics.label_set_statistics(predicted, expected)["micro_f1"])
    return metrics.percentile_interval(draws)


def _of_numbers(predicted: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    from pressoir import metrics

    (draws,) = metrics.bootstrap(metrics.regression_statistics(predicted, expected)["pearson"])
    return metrics.percentile_interval(draws)


def _same(predicted: NDArray[Any], reference: NDArray[Any]) -> float:
    return float((predicted == reference).mean())


def _same_set(predicted: NDArray[Any], reference: NDArray[Any]) -> float:
    return float((predicted == reference).all(axis=1).mean())


def _reproduced(predicted: NDArray[Any], reference: NDArray[Any]) -> float:
    apart = float(((predicted - reference) ** 2).sum())
    spread = float(((reference - reference.mean()) ** 2).sum())
    if apart == 0:
        return 1.0
    return max(0.0, 1.0 - apart / spread) if spread else 0.0


def _kl(expected: Floats, actual: Floats) -> float:
    import numpy as np

    first, second = (_log_softmax(logits) for logits in (expected, actual))
    return float((np.exp(first) * (first - second)).sum(axis=1).mean())


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    import numpy as np

    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return result


def _binary_kl(expected: Floats, actual: Floats) -> float:
    """That of each label's two outcomes, summed over the labels."""
    import numpy as np

    p = _sigmoid(expected)
    first, second = (logits.astype(np.float64) for logits in (expected, actual))
    yes = np.logaddexp(0, -second) - np.logaddexp(0, -first)  # log σ(first) − log σ(second)
    no = np.logaddexp(0, second) - np.logaddexp(0, first)
    return float((p * yes + (1 - p) * no).sum(axis=1).mean())


def _squared_difference(expected: Floats, actual: Floats) -> float:
    return float(((_unchanged(expected) - _unchanged(actual)) ** 2).mean())


def _softmax_of_tags(logits: Floats) -> NDArray[np.float64]:
    import numpy as np

    return np.exp(_log_softmax_of_tags(logits))


def _log_softmax_of_tags(logits: Floats) -> NDArray[np.float64]:
    flat: Floats = logits.reshape(-1, logits.shape[-1])
    return _log_softmax(flat).reshape(logits.shape)


def _tags(logits: Floats, thresholds: Thresholds = None) -> NDArray[Any]:
    import numpy as np

    return np.where(logits.any(axis=-1), logits.argmax(axis=-1), NO_WORD)


def _tag_indices(labels: Sequence[Any], count: int) -> NDArray[Any]:
    import numpy as np

    rows = np.full((len(labels), max(map(len, labels), default=0)), NO_WORD, dtype=np.int64)
    for row, own in zip(rows, labels, strict=True):
        row[: len(own)] = own
    return rows


def _named(
    labels: Sequence[str], predicted: NDArray[Any], expected: NDArray[Any]
) -> tuple[list[list[str]], list[list[str]]]:
    """Both as names, of the words that are expected; a word that got no tag is outside of all spans."""
    given, right = [], []
    for own, wanted in zip(predicted, expected, strict=True):
        words = wanted != NO_WORD
        given.append([labels[index] if index >= 0 else OUTSIDE for index in own[words]])
        right.append([labels[index] for index in wanted[words]])
    return given, right


def _score_tags(
    labels: Sequence[str], predicted: NDArray[Any], expected: NDArray[Any], count: int
) -> dict[str, float]:
    return tags.score(*_named(labels, predicted, expected))


def _of_tags(labels: Sequence[str], predicted: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    from pressoir import metrics

    (draws,) = metrics.bootstrap(tags.statistic(*_named(labels, predicted, expected)))
    return metrics.percentile_interval(draws)


def _same_tags(labels: Sequence[str], predicted: NDArray[Any], reference: NDArray[Any]) -> float:
    """Of the words that either model takes into a span, the fraction with the same tag; 1 without such."""
    outside = labels.index(OUTSIDE) if OUTSIDE in labels else NO_WORD
    counted = (reference != NO_WORD) & ((predicted != outside) | (reference != outside))
    return float((predicted == reference)[counted].mean()) if counted.any() else 1.0


def _unnamed(*_: Any) -> Any:
    raise TypeError("the labels of a token classifier have to be given: Problem.of(labels)")


def _kl_of_tags(expected: Floats, actual: Floats) -> float:
    import numpy as np

    words = expected.any(axis=-1)
    first, second = (_log_softmax_of_tags(logits[words]) for logits in (expected, actual))
    return float((np.exp(first) * (first - second)).sum(axis=-1).mean())


SINGLE_LABEL = Problem(
    name="single-label",
    problem_type="single_label_classification",
    model="a classifier with one label per text",
    scores=("accuracy", "f1", "macro_f1"),
    selecting=("accuracy", "macro_f1"),
    probabilities=_softmax,
    decide=_most_likely,
    targets=_indices,
    score=_score_labels,
    interval=_wilson,
    agreement=_same,
    divergence=_kl,
)
MULTI_LABEL = Problem(
    name="multi-label",
    problem_type="multi_label_classification",
    model="a multi-label classifier, which gives a text any number of labels",
    scores=("micro_f1", "macro_f1"),
    selecting=("micro_f1", "macro_f1"),
    probabilities=_sigmoid,
    decide=_over_threshold,
    targets=_multi_hot,
    score=_score_sets,
    interval=_of_sets,
    agreement=_same_set,
    divergence=_binary_kl,
)
REGRESSION = Problem(
    name="regression",
    problem_type="regression",
    model="a regression model, which gives a text a number",
    scores=("pearson", "spearman", "mae"),
    selecting=("pearson", "spearman"),
    probabilities=_unchanged,
    decide=_scores,
    targets=_floats,
    score=_score_numbers,
    interval=_of_numbers,
    agreement=_reproduced,
    divergence=_squared_difference,
)
TOKENS = Problem(
    name="tags",
    problem_type=None,
    model="a token classifier, which gives each word a tag",
    scores=("span_f1", "span_precision", "span_recall", "macro_f1", "tag_accuracy"),
    selecting=("span_f1", "macro_f1"),
    probabilities=_softmax_of_tags,
    decide=_tags,
    targets=_tag_indices,
    score=_unnamed,
    interval=_unnamed,
    agreement=_unnamed,
    divergence=_kl_of_tags,
)
PROBLEMS: dict[str, Problem] = {
    entry.name: entry for entry in (SINGLE_LABEL, MULTI_LABEL, REGRESSION, TOKENS)
}
MAIN_METRICS = tuple(entry.metric for entry in PROBLEMS.values())


def problem_of(config: Mapping[str, Any], model: str = "the model") -> Problem:
    """What the classifier decides whose `config.json` this is: tags of words where it has such a head, else
    its `problem_type`; of one without, regression
    if it has one output, as transformers has it, else one of its labels.

    Raises:
        SourceError: it gives several scores, or has a `problem_type` that transformers does not have.
    """
    head = str((config.get("architectures") or [""])[0])
    if head.endswith(TOKEN_HEAD):
        names = config.get("id2label") or {}
        return TOKENS.of([str(names[index]) for index in sorted(names, key=int)])
    declared = config.get("problem_type")
    outputs = len(config.get("id2label") or (0, 1))
    if declared == REGRESSION.problem_type and outputs > 1:
        raise SourceError(
            f"{model} is a regression model with {outputs} outputs; a regression has one score per text"
        )
    if outputs < 2 and declared in (None, SINGLE_LABEL.problem_type):
        return REGRESSION
    if declared is None:
        return SINGLE_LABEL
    known_types = {entry.problem_type: entry for entry in PROBLEMS.values() if entry.problem_type}
    found = known_types.get(declared)
    if found is None:
        known = ", ".join(known_types)
        raise SourceError(f"{model}: config.json has the problem_type {declared!r}; use one of {known}")
    return found


def thresholds_of(config: Mapping[str, Any], model: str = "the model") -> list[float] | None:
    """The stored thresholds of a multi-label classifier, in the order of its logits; None of other models and
    where there are none.

    Raises:
        SourceError: they are not one number from 0 to 1 for each label.
    """
    stored = config.get(THRESHOLDS)
    if stored is None or problem_of(config, model) is not MULTI_LABEL:
        return None
    labels = len(config.get("id2label") or (0, 1))
    numbers = isinstance(stored, list | tuple) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 for value in stored
    )
    if not numbers or len(stored) != labels:
        raise SourceError(
            f"{model}: {THRESHOLDS} in config.json is not a list of {labels} numbers from 0 to 1, one for "
            "each label; correct it, or remove it to use 0.5"
        )
    return [float(value) for value in stored]


def choose_thresholds(logits: Floats, expected: NDArray[Any], each: bool) -> list[float]:
    """The thresholds of the highest F1 for logits and targets (texts, labels): one for all, or one for each
    label.
    """
    probabilities, right = _sigmoid(logits), expected > 0
    common = _best_threshold(probabilities.ravel(), right.ravel())
    if not each:
        return [common] * logits.shape[1]
    return [
        _best_threshold(probabilities[:, label], right[:, label]) if right[:, label].any() else common
        for label in range(logits.shape[1])
    ]


def _best_threshold(probabilities: NDArray[np.float64], right: NDArray[Any]) -> float:
    """Halfway between the last probability that is best taken and the next lower one."""
    import numpy as np

    order = np.argsort(-probabilities, kind="stable")
    falling, found = probabilities[order], np.cumsum(right[order])
    if not found.size or not found[-1]:
        return DEFAULT_THRESHOLD
    f1 = 2 * found / (np.arange(1, len(found) + 1) + found[-1])
    f1[:-1][falling[:-1] == falling[1:]] = -1  # equal ones are taken together
    best = int(f1.argmax())
    below = falling[best + 1] if best + 1 < len(falling) else 0.0
    return float((falling[best] + below) / 2)
