"""Text classification over any engine: sentences, or pairs of them, in; label probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pressoir.data.texts import Text, characters, check_pair, takes_pairs
from pressoir.formats.folder import Runtime, read_json
from pressoir.formats.labels import check_single_label, labels_of
from pressoir.inference.arguments import opened
from pressoir.inference.engines.classifier import Engine, open_engine
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
    ) -> None:
        self.engine, self.tokenizer, self.labels, self.pairs = engine, tokenizer, list(labels), pairs

    @classmethod
    def open(
        cls, folder: Path | str, threads: int | None = None, runtime: Runtime | None = None
    ) -> TextClassifier:
        """Open a model folder; see `open_engine` and `check_single_label` for what it raises."""
        folder, threads = opened(folder, threads)
        config = read_json(folder / "config.json")
        check_single_label(config, str(folder))
        labels = labels_of(config)
        engine = open_engine(folder, threads, runtime)
        if (folder / "tokenizer.json").exists():
            return cls(engine, FastTokenizer(folder), labels, takes_pairs(config))
        from pressoir.models.loading import load_tokenizer  # a tokenizer that exists only in Python

        return cls(engine, load_tokenizer(folder), labels, takes_pairs(config))

    def encode(self, texts: Sequence[Text], max_length: int | None = None) -> dict[str, NDArray[np.int64]]:
        """Token ids and masks, each (batch, longest sentence); see `encode_batch`."""
        return encode_batch(self.tokenizer, texts, max_length)

    def logits(self, texts: Sequence[Text], batch_size: int = 32) -> NDArray[np.float32]:
        """Logits (sentences, labels), in the order of `texts`.

        Sentences of like length are batched together. An engine whose result depends on the batch (dynamic
        int8 activations) is always run one sentence at a time, so that a score does not depend on
        `batch_size`.
        """
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
        """Probability of each label, for each sentence, or for each pair `(text, text_pair)`.

        Raises:
            DataError: the model was trained on pairs, and is given a single text, or the reverse.
        """
        asked: Sequence[Text] = [texts] if isinstance(texts, str) else texts
        for text in asked:
            check_pair(text, self.pairs)
        probabilities = softmax(self.logits(asked))
        return [dict(zip(self.labels, map(float, row), strict=True)) for row in probabilities]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities (batch, labels)."""
    wide = logits.astype(np.float64)
    exp = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exp / exp.sum(axis=1, keepdims=True)
    return probabilities
