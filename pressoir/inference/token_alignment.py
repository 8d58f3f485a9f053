"""Words and their tokens: which token stands for a word, and sentences that are longer than a model takes.

A word is cut into one or several tokens; its first one stands for it, in training and when it is tagged, and
the others are not looked at. That is what `aggregation_strategy="first"` of transformers' pipeline does, and
what J. Devlin et al. 2019, "BERT" (arXiv:1810.04805), section 5.3 describes.

A sentence of more tokens than the model takes is cut between words into windows, each of as many words as
fit, which the model sees one by one: every word is tagged. A word that has no token (an invisible character)
is tagged by nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pressoir.data.texts import Words, characters
from pressoir.errors import SourceError
from pressoir.inference.engines.classifier import Engine
from pressoir.inference.token_groups import split_inputs
from pressoir.inference.tokenizers.tokenizers import FastTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Windows(NamedTuple):
    """Sentences as a model takes them, padded to the longest window."""

    inputs: dict[str, NDArray[np.int64]]
    """Token ids and masks, each (windows, longest window)."""
    rows: list[int]
    """Which of the sentences each window is of."""
    words: list[list[int]]
    """Of each window, the words that have a token in it, from 0 in their sentence."""
    places: list[list[int]]
    """Of each window, where the first tokens of these words stand in it."""


def windows(
    tokenizer: FastTokenizer | PreTrainedTokenizerBase,
    sentences: Sequence[Words],
    max_length: int | None = None,
) -> Windows:
    """The windows of sentences; nearly always one a sentence.

    Raises:
        SourceError: the tokenizer does not say which word a token is of.
    """
    limit = min(max_length or tokenizer.model_max_length, tokenizer.model_max_length)
    inputs, encodings = _encoded(tokenizer, sentences, limit)
    rows, first = list(range(len(sentences))), [0] * len(sentences)
    if any(encoding.overflowing for encoding in encodings):
        room = limit - _special_tokens(tokenizer)
        parts = [
            part for row, e in enumerate(encodings) for part in _parts(e, row, len(sentences[row]), room)
        ]
        rows, first = [row for row, _, _ in parts], [start for _, start, _ in parts]
        inputs, encodings = _encoded(
            tokenizer, [Words(sentences[row][start:end]) for row, start, end in parts], limit
        )
    words, places = [], []
    for begin, encoding in zip(first, encodings, strict=True):
        firsts: dict[int, int] = {}
        for place, word in enumerate(encoding.word_ids):
            if word is not None:
                firsts.setdefault(begin + word, place)
        words.append(list(firsts))
        places.append(list(firsts.values()))
    return Windows(inputs, rows, words, places)


def word_logits(
    engine: Engine,
    tokenizer: FastTokenizer | PreTrainedTokenizerBase,
    sentences: Sequence[Words],
    labels: int,
    batch_size: int = 32,
    max_length: int | None = None,
) -> NDArray[np.float32]:
    """Logits (sentences, most words of one, labels), in the order of `sentences`; 0 where there is no word,
    and of words without a token.

    Sentences of like length are batched together; an engine whose result depends on the batch gets one window
    at a time.
    """
    most = max(map(len, sentences), default=0)
    result = np.zeros((len(sentences), most, labels), dtype=np.float32)
    size = batch_size if engine.batch_invariant else 1
    order = sorted(range(len(sentences)), key=lambda index: characters(sentences[index]))
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        found = windows(tokenizer, [sentences[index] for index in batch], max_length)
        for own in _runs(found, engine.batch_invariant):
            inputs = _part(found.inputs, own)
            for values, window in zip(engine.run(inputs), own, strict=True):  # values: (tokens, labels)
                row = batch[found.rows[window]]
                result[row, found.words[window]] = values[_moved(found, window, inputs)]
    return result


def flat(padded: NDArray[Any], sentences: Sequence[Words]) -> NDArray[Any]:
    """Of values (sentences, most words, …) those of words, (words of all sentences, …)."""
    return np.concatenate(
        [
            padded[:0].reshape(0, *padded.shape[2:]),
            *(p[: len(s)] for p, s in zip(padded, sentences, strict=True)),
        ]
    )


def padded(values: NDArray[Any], sentences: Sequence[Words]) -> NDArray[Any]:
    """The reverse of `flat`, with zeros where there is no word."""
    result = np.zeros((len(sentences), max(map(len, sentences), default=0), *values.shape[1:]), values.dtype)
    start = 0
    for row, sentence in zip(result, sentences, strict=True):
        row[: len(sentence)] = values[start : start + len(sentence)]
        start += len(sentence)
    return result


def _runs(found: Windows, together: bool) -> list[list[int]]:
    everything = list(range(len(found.rows)))
    return [everything] if together else [[window] for window in everything]


def _part(inputs: dict[str, NDArray[np.int64]], rows: list[int]) -> dict[str, NDArray[np.int64]]:
    """Some windows, padded to the longest of them."""
    if len(rows) == len(inputs["attention_mask"]):
        return inputs
    columns = inputs["attention_mask"][rows].any(axis=0)
    return {name: np.ascontiguousarray(array[rows][:, columns]) for name, array in inputs.items()}


def _encoded(
    tokenizer: FastTokenizer | PreTrainedTokenizerBase, sentences: Sequence[Words], limit: int
) -> tuple[dict[str, NDArray[np.int64]], Sequence[Any]]:
    """Inputs, and encodings of the tokenizers library."""
    if isinstance(tokenizer, FastTokenizer):
        encodings = tokenizer.encodings(sentences, limit)
        return tokenizer.arrays(encodings), encodings
    if not tokenizer.is_fast:
        raise SourceError(
            f"a {type(tokenizer).__name__} does not say which word a token is of; token classification needs "
            "a fast tokenizer (tokenizer.json)"
        )
    encoded = tokenizer(
        [list(sentence) for sentence in sentences],
        is_split_into_words=True,
        padding=True,
        truncation=True,
        max_length=limit,
        return_tensors="np",
    )
    assert encoded.encodings is not None
    inputs = {name: np.asarray(array, dtype=np.int64) for name, array in encoded.items()}
    return inputs, encoded.encodings


def _parts(encoding: Any, row: int, words: int, room: int) -> list[tuple[int, int, int]]:
    """The windows of a sentence as `(row, first word, word after the last)`."""
    if not encoding.overflowing:
        return [(row, 0, words)]
    pieces = [encoding, *encoding.overflowing]
    counts = Counter(word for piece in pieces for word in piece.word_ids if word is not None)
    found, start, taken = [], 0, 0
    for word in range(words):
        if taken and taken + counts[word] > room:
            found.append((row, start, word))
            start, taken = word, 0
        taken += counts[word]
    return [*found, (row, start, words)]


def _special_tokens(tokenizer: FastTokenizer | PreTrainedTokenizerBase) -> int:
    if isinstance(tokenizer, FastTokenizer):
        return tokenizer.special_tokens(pair=False)
    return int(tokenizer.num_special_tokens_to_add(False))


def iter_word_logits(
    engine: Engine,
    tokenizer: FastTokenizer | PreTrainedTokenizerBase,
    sentences: Sequence[Words],
    labels: int,
    max_length: int | None = None,
    max_tokens: int = 0,
) -> Iterator[tuple[int, NDArray[np.float32]] | None]:
    """The index and the logits (words, labels) of one sentence after another, as each is complete; None after
    a group of windows. A group has at most `max_tokens` tokens, see `token_groups`.
    """
    found = windows(tokenizer, sentences, max_length)
    yield None
    left, results = Counter(found.rows), [np.zeros((len(words), labels), np.float32) for words in sentences]
    for rows, inputs in split_inputs(found.inputs, max_tokens):
        for values, window in zip(engine.run(inputs), rows, strict=True):
            row = found.rows[window]
            places = _moved(found, window, inputs)
            results[row][found.words[window]] = values[places]
            left[row] -= 1
            if not left[row]:
                yield row, results[row]
        yield None


def _moved(found: Windows, window: int, inputs: Mapping[str, NDArray[np.int64]]) -> list[int]:
    """The places of a window's words in inputs that were padded to fewer tokens, on whichever side."""
    less = found.inputs["input_ids"].shape[1] - inputs["input_ids"].shape[1]
    begins = not found.inputs["attention_mask"][window][0]  # padded at the beginning
    return [place - less for place in found.places[window]] if begins else found.places[window]
