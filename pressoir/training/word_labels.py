"""Words with tags as rows of a training split: one row a window, each word's tag at its first token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from transformers import PreTrainedTokenizerBase

from pressoir.data.texts import Words
from pressoir.formats.problems import NO_WORD
from pressoir.inference.token_alignment import windows

_TOGETHER = 512


def encode(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Words], tags: Sequence[Sequence[int]]
) -> dict[str, list[Any]]:
    """Columns as `transformers` takes them: token ids and masks without padding, `labels` (`NO_WORD` but at
    first tokens), and `words`: which of all words, counted through the sentences, these are.
    """
    first = [0, *accumulate(map(len, sentences))]
    columns: dict[str, list[Any]] = {"labels": [], "words": []}
    for start in range(0, len(sentences), _TOGETHER):
        found = windows(tokenizer, sentences[start : start + _TOGETHER])
        for window, row in enumerate(found.rows):
            kept = found.inputs["attention_mask"][window].nonzero()[0]
            for name, values in found.inputs.items():
                columns.setdefault(name, []).append(values[window][kept].tolist())
            labels = [NO_WORD] * len(kept)
            for word, place in zip(found.words[window], found.places[window], strict=True):
                labels[place - int(kept[0])] = tags[start + row][word]
            columns["labels"].append(labels)
            columns["words"].append([first[start + row] + word for word in found.words[window]])
    return columns
