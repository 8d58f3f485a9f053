"""Text classification over any engine: sentences, or pairs of them, in; label probabilities (or scores) out.

What a model decides of a text, one label, any number of them or a score, its `config.json` says: see
`pressoir.formats.problems`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from pressoir.data.texts import Text, Words, characters, check_pair, takes_pairs
from pressoir.errors import SourceError
from pressoir.formats.folder import Runtime, read_json
from pressoir.formats.labels import labels_of
from pressoir.formats.problems import (
    DEFAULT_THRESHOLD,
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    TOKENS,
    Problem,
    problem_of,
    thresholds_of,
)
from pressoir.inference.arguments import listed, opened
from pressoir.inference.engines.classifier import Engine, open_engine
from pressoir.inference.token_alignment import windows, word_logits
from pressoir.inference.token_groups import split_inputs
from pressoir.inference.tokenizers.steps import iter_encoded
from pressoir.inference.tokenizers.tokenizers import FastTokenizer, encode_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Logits(NamedTuple):
    """What a classifier gives for some of several texts."""

    rows: list[int]
    """Which of the texts they are."""
    values: NDArray[np.float32]
    """(rows, labels)"""
    truncated: list[bool]
    """Whether a text has more tokens than the model was given."""


class TextClassifier:
    """A classifier and its tokenizer; sentences are cut at the tokenizer's `model_max_length`.

    Where `pairs` is true it was trained on pairs: a text then is a tuple of two.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: FastTokenizer | PreTrainedTokenizerBase,
        labels: Sequence[str],
        pairs: bool = False,
        problem: Problem = SINGLE_LABEL,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        self.engine, self.tokenizer, self.labels = engine, tokenizer, list(labels)
        self.pairs, self.problem = pairs, problem
        self.thresholds: list[float] | None = None
        """Multi-label only: the probability from which on a text has a label, of each label."""
        if problem is MULTI_LABEL:
            self.thresholds = list(thresholds or [DEFAULT_THRESHOLD] * len(self.labels))

    @classmethod
    def open(cls, folder: Path | str, threads: int | None = None, runtime: Runtime | None = None) -> Self:
        """Open a model folder; see `open_engine` and `problem_of` for what it raises.

        Raises:
            SourceError: it is a token classifier, and this is not `TokenClassifier`, or the reverse.
        """
        folder, threads = opened(folder, threads)
        config = read_json(folder / "config.json")
        problem = problem_of(config, str(folder))
        cls._check(problem, folder)
        decided = (takes_pairs(config), problem, thresholds_of(config, str(folder)))
        labels = labels_of(config)
        engine = open_engine(folder, threads, runtime)
        if (folder / "tokenizer.json").exists():
            return cls(engine, FastTokenizer(folder), labels, *decided)
        from pressoir.models.loading import load_tokenizer  # a tokenizer that exists only in Python

        return cls(engine, load_tokenizer(folder), labels, *decided)

    @classmethod
    def _check(cls, problem: Problem, folder: Path) -> None:
        if problem.name == TOKENS.name:
            raise SourceError(
                f"{folder} is a token classifier (such as for named entities), which labels words and not "
                "texts; a classifier of texts is needed"
            )

    def encode(self, texts: Sequence[Text], max_length: int | None = None) -> dict[str, NDArray[np.int64]]:
        """Token ids and masks, each (batch, longest sentence); see `encode_batch`, and of words `windows`."""
        if texts and isinstance(texts[0], Words):
            return windows(self.tokenizer, cast("Sequence[Words]", texts), max_length).inputs
        return encode_batch(self.tokenizer, texts, max_length)

    def logits(self, texts: Sequence[Text], batch_size: int = 32) -> NDArray[np.float32]:
        """Logits (sentences, labels), in the order of `texts`; of words as `word_logits`.

        Sentences of like length are batched together. An engine whose result depends on the batch (dynamic
        int8 activations) is always run one sentence at a time, so that a score does not depend on
        `batch_size`.
        """
        if texts and isinstance(texts[0], Words):
            words = cast("Sequence[Words]", texts)
            return word_logits(self.engine, self.tokenizer, words, len(self.labels), batch_size)
        size = batch_size if self.engine.batch_invariant else 1
        order = sorted(range(len(texts)), key=lambda index: characters(texts[index]))
        result = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            result[batch] = self.engine.run(self.encode([texts[index] for index in batch]))
        return result

    def iter_logits(
        self, texts: Sequence[Text], max_length: int | None = None, max_tokens: int = 0
    ) -> Iterator[Logits | None]:
        """Logits of a group of texts after another; None after a step of tokenising, see `iter_encoded`.

        A group has at most `max_tokens` tokens, see `token_groups`; with 0 each text is run alone.
        """
        for encoded in iter_encoded(self.tokenizer, texts, max_length):
            if encoded is None:
                yield None
                continue
            for rows, inputs in split_inputs(encoded.inputs, max_tokens):
                found, cut = self.engine.run(inputs), [encoded.truncated[row] for row in rows]
                yield Logits([encoded.rows[row] for row in rows], found, cut)

    def predict(self, texts: Sequence[Text] | str) -> list[dict[str, float]]:
        """Probability of each label, for each sentence, or for each pair `(text, text_pair)`; of a regression
        model the score by its name.

        Of one label per text the probabilities add up to 1; of several each is by itself.

        Raises:
            DataError: the model was trained on pairs, and is given a single text, or the reverse.
        """
        asked = listed(texts)
        for text in asked:
            check_pair(text, self.pairs)
        probabilities = self.problem.probabilities(self.logits(asked))
        return [dict(zip(self.labels, map(float, row), strict=True)) for row in probabilities]

    def decide(self, texts: Sequence[Text] | str) -> list[Any]:
        """For each sentence, or pair, its label (str), its labels (a list), or its score (float)."""
        return [decided(self.problem, row, self.labels, self.thresholds) for row in self.predict(texts)]


def decided(
    problem: Problem,
    probabilities: Mapping[str, float],
    labels: Sequence[str],
    thresholds: Sequence[float] | None,
) -> Any:
    """What probabilities say of a text: the likeliest label, those over their thresholds, or the score."""
    if problem is REGRESSION:
        return probabilities[labels[0]]
    if problem is MULTI_LABEL:
        least = thresholds or [DEFAULT_THRESHOLD] * len(labels)
        return [label for label, limit in zip(labels, least, strict=True) if probabilities[label] >= limit]
    return max(probabilities, key=lambda label: probabilities[label])


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities (batch, labels)."""
    return SINGLE_LABEL.probabilities(logits)
