"""Token classification over any engine: words in, a tag for each word and the spans that they mark out.

Words are aligned with tokens as in training, see `pressoir.inference.token_alignment`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pressoir.data.texts import Text, Words, words_of
from pressoir.errors import DataError, SourceError
from pressoir.formats.problems import NO_WORD, TOKENS, Problem
from pressoir.formats.tags import OUTSIDE, spans_of
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.token_alignment import iter_word_logits


class Entity(NamedTuple):
    """A span of words."""

    type: str
    start: int
    """Its first word, from 0."""
    end: int
    """The word after its last."""
    text: str
    """Its words, with spaces."""
    score: float
    """Mean probability of the tags of its words, as transformers' pipeline has it."""


class Tagged(NamedTuple):
    """What a token classifier says of a sentence."""

    words: Words
    tags: list[str]
    """One for each word; `O` also of a word without a token."""
    scores: list[float]
    """The probability of each tag."""

    @property
    def entities(self) -> list[Entity]:
        """The spans that the tags mark."""
        return [
            Entity(kind, start, end, " ".join(self.words[start:end]), float(np.mean(self.scores[start:end])))
            for kind, start, end in spans_of(self.tags)
        ]


class TokenClassifier(TextClassifier):
    """A token classifier and its tokenizer. A sentence of more tokens than the model takes goes through it in
    several windows.
    """

    def tag(self, sentences: Sequence[Sequence[str]] | str) -> list[Tagged]:
        """The tags of the words of each sentence.

        A sentence is a list of words, or a text: its words are letters and digits in a row, and every other
        character that is not a space.

        Raises:
            DataError: a word is empty.
        """
        given = [sentences] if isinstance(sentences, str) else sentences
        asked = [words_of(each) if isinstance(each, str) else Words(each) for each in given]
        for words in asked:
            check_words(words)
        logits = self.logits(asked)
        return [tagged(words, row, self.labels) for words, row in zip(asked, logits, strict=True)]

    def iter_tagged(
        self, sentences: Sequence[Words], max_length: int | None = None, max_tokens: int = 0
    ) -> Iterator[tuple[int, Tagged] | None]:
        """The index and the tags of one sentence after another; None after each group of windows.

        A group has at most `max_tokens` tokens, see `token_groups`; with 0 each window is run alone.
        """
        for found in iter_word_logits(
            self.engine, self.tokenizer, sentences, len(self.labels), max_length, max_tokens
        ):
            yield found and (found[0], tagged(sentences[found[0]], found[1], self.labels))

    @classmethod
    def _check(cls, problem: Problem, folder: Path) -> None:
        if problem.name != TOKENS.name:
            raise SourceError(f"{folder} is {problem.model}; {TOKENS.model} is needed")


def tagged(words: Words, logits: NDArray[np.float32], labels: Sequence[str]) -> Tagged:
    """The tags that logits (words at least, labels) mean."""
    own = logits[: len(words)]
    best, likely = TOKENS.decide(own, None), TOKENS.probabilities(own)
    tags = [OUTSIDE if index == NO_WORD else labels[index] for index in best]
    scores = [1.0 if index == NO_WORD else float(row[index]) for index, row in zip(best, likely, strict=True)]
    return Tagged(words, tags, scores)


def check_words(words: Text) -> None:
    """Refuse a sentence with an empty word.

    Raises:
        DataError: there is one.
    """
    if blank := [number for number, word in enumerate(words, 1) if not word.strip()]:
        raise DataError(f"word {blank[0]} of {len(words)} is empty; omit it")
