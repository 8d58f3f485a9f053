"""Altered sentences: some words replaced by ones that a language model, or its embedding, considers similar.

A word is a run of letters that the tokenizer splits off, with all its pieces; what replaces it is a whole
word of one piece, so an altered sentence is tokenised as naturally as any. There are two sources of
replacements behind one interface (`Proposer`): `MaskedLM` asks a masked language model what it expects in the
word's place, one pass a replaced word; `Neighbours` takes the words of the vocabulary that lie nearest in the
embedding, a few matrix products.

Negations and function words stay, and never replace another word: changing them says something else, or
nothing new. The list is English; in other languages only the teacher's labels follow what a copy says.

Source: X. Jiao et al. 2020, "TinyBERT" (arXiv:1909.10351), section 3.2 and appendix A (algorithm 1).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pressoir.errors import SourceError

NEGATIONS = frozenset(
    "no not never none nobody nothing nowhere neither nor without cannot hardly scarcely barely rarely "
    "seldom few little lack lacks lacked lacking except unless".split()
)
FUNCTION_WORDS = frozenset(
    "a an the and or but if because as until while of at by for with about against between into through "
    "during before after above below to from up down in out on off over under again further then once here "
    "there when where why how what which who whom whose this that these those i me my mine myself we us our "
    "ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its "
    "itself they them their theirs themselves one am is are was were be been being have has had having do "
    "does did doing done will would shall should can could may might must all any both each every more most "
    "much many other another some such only own same so than too very just also even still yet though "
    "although however else ever".split()
)
KEPT = NEGATIONS | FUNCTION_WORDS
APOSTROPHES = "'’"


@dataclass(frozen=True)
class Word:
    """A word of a sentence that may be replaced."""

    start: int
    """Where it begins in the text; `end` is one past its last character."""
    end: int
    text: str
    first: int
    """Its first piece's place in `Sentence.ids`."""
    pieces: tuple[int, ...]
    """Ids of its pieces."""

    @property
    def is_one_piece(self) -> bool:
        """Whether the vocabulary has it whole."""
        return len(self.pieces) == 1


@dataclass(frozen=True)
class Sentence:
    """A tokenised sentence."""

    text: str
    ids: tuple[int, ...]
    """All its pieces, special tokens included, cut at the tokenizer's `model_max_length`."""
    words: int
    """Number of its words, those that stay included."""
    replaceable: tuple[Word, ...]


Query = tuple[Sentence, Word]


class Proposer(Protocol):
    """What finds replacements."""

    def __call__(self, queries: Sequence[Query]) -> list[list[str]]:
        """For each word its replacements, best first; fewer, or none, where no more are known."""


def sentences(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Sentence]:
    """Tokenise `texts` and find the words that may be replaced.

    Raises:
        SourceError: the tokenizer cannot say which pieces make a word.
    """
    if not tokenizer.is_fast:
        raise SourceError(
            "augment needs a fast tokenizer (tokenizer.json) to find word boundaries, but this is "
            f"{type(tokenizer).__name__}"
        )
    found = []
    for start in range(0, len(texts), 1024):
        batch = list(texts[start : start + 1024])
        encodings = tokenizer(batch, truncation=True).encodings or []
        found += [_sentence(text, encoding) for text, encoding in zip(batch, encodings, strict=True)]
    return found


def _sentence(text: str, encoding: Any) -> Sentence:
    places = dict[int, list[int]]()  # of each word's pieces
    for index, word in enumerate(encoding.word_ids):
        if word is not None:
            places.setdefault(word, []).append(index)
    if encoding.overflowing and places:
        places.popitem()  # the cut may go through the last word
    words, replaceable = 0, []
    for own in places.values():
        start, end = encoding.offsets[own[0]][0], encoding.offsets[own[-1]][1]
        start += len(text[start:end]) - len(text[start:end].lstrip())  # some pieces begin with the space
        word = text[start:end]
        after = start >= 2 and text[start - 1] in APOSTROPHES and text[start - 2].isalpha()
        before = end + 1 < len(text) and text[end] in APOSTROPHES and text[end + 1].isalpha()
        if not _is_word(word) or after:  # the n't of a verb belongs to it
            continue
        words += 1
        if word.lower() not in KEPT and not before:
            pieces = tuple(encoding.ids[own[0] : own[-1] + 1])
            replaceable.append(Word(start, end, word, own[0], pieces))
    return Sentence(text, tuple(encoding.ids), words, tuple(replaceable))


def _is_word(text: str) -> bool:
    """Whether `text` is all letters, and the marks that some scripts write on them."""
    return bool(text) and text[0].isalpha() and all(unicodedata.category(c)[0] in "LM" for c in text)


def _may_replace(word: str) -> bool:
    return _is_word(word) and word.lower() not in KEPT and not (word.isascii() and len(word) < 2)


def alter(text: str, replacements: Mapping[Word, str]) -> str:
    """`text` with some words replaced, each in the letter case of the word whose place it takes."""
    for word in sorted(replacements, key=lambda word: word.start, reverse=True):
        new = replacements[word]
        if word.text.isupper() and len(word.text) > 1:
            new = new.upper()
        elif word.text[0].isupper():
            new = new[0].upper() + new[1:]
        text = text[: word.start] + new + text[word.end :]
    return text


class Neighbours:
    """Replaces a word by those of the vocabulary whose input embedding is nearest, by cosine.

    The text need not have them: a student learns words that nobody wrote there. Only words of one piece are
    replaced: the pieces of a longer word lie near other pieces, not near similar words.
    """

    BLOCK = 256
    """Words whose neighbours are looked for at a time: memory is `BLOCK` × words × 4 bytes."""

    def __init__(self, embedding: Tensor, tokenizer: PreTrainedTokenizerBase, candidates: int) -> None:
        """`embedding` is (vocabulary, hidden)."""
        self.words, self.candidates = whole_words(tokenizer), candidates
        self.ids = torch.tensor(sorted(self.words), dtype=torch.long)
        self.vectors = F.normalize(embedding.detach()[self.ids].float(), dim=1)  # (words, hidden)
        self._row = {index: row for row, index in enumerate(self.ids.tolist())}
        self._found = dict[int, list[str]]()

    def __call__(self, queries: Sequence[Query]) -> list[list[str]]:
        """See `Proposer`."""
        asked = dict.fromkeys(word.pieces[0] for _, word in queries if word.is_one_piece)
        wanted = [index for index in asked if index in self._row and index not in self._found]
        for start in range(0, len(wanted), self.BLOCK):
            self._look_up(wanted[start : start + self.BLOCK])
        return [self._found.get(word.pieces[0], []) if word.is_one_piece else [] for _, word in queries]

    def _look_up(self, wanted: list[int]) -> None:
        rows = torch.tensor([self._row[index] for index in wanted])
        cosines = self.vectors[rows] @ self.vectors.T  # (wanted, words)
        cosines[torch.arange(len(rows)), rows] = -torch.inf  # a word is no neighbour of itself
        count = min(self.candidates, len(self.ids) - 1)
        for index, best in zip(wanted, self.ids[cosines.topk(count, dim=1).indices].tolist(), strict=True):
            self._found[index] = [self.words[neighbour] for neighbour in best]


class MaskedLM:
    """Replaces a word by those a masked language model expects in its place, its whole sentence in sight.

    All pieces of the word give way to one mask, since what replaces it is one piece. The last projection
    sees the masks alone: a batch of logits is (batch, vocabulary), not (batch, seq, vocabulary).
    """

    BATCH = 64

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, candidates: int) -> None:
        """Raises SourceError where the tokenizer has no mask token, or the model no last projection."""
        if tokenizer.mask_token_id is None or model.get_output_embeddings() is None:
            lacking = "mask token" if tokenizer.mask_token_id is None else "projection onto the vocabulary"
            raise SourceError(f"the base model has no {lacking}, so it cannot predict masked words")
        self.model, self.candidates = model, candidates
        self.mask, self.pad = tokenizer.mask_token_id, tokenizer.pad_token_id or 0
        self.words = whole_words(tokenizer)
        self.ids = torch.tensor(sorted(self.words), dtype=torch.long)

    def __call__(self, queries: Sequence[Query]) -> list[list[str]]:
        """See `Proposer`."""
        found: list[list[str]] = [[]] * len(queries)
        order = sorted(range(len(queries)), key=lambda index: len(queries[index][0].ids))
        for start in range(0, len(order), self.BATCH):
            batch = order[start : start + self.BATCH]
            for index, words in zip(batch, self._expected([queries[index] for index in batch]), strict=True):
                found[index] = words
        return found

    def _expected(self, queries: Sequence[Query]) -> list[list[str]]:
        masked = []
        for sentence, word in queries:
            rest = sentence.ids[word.first + len(word.pieces) :]
            masked.append(torch.tensor([*sentence.ids[: word.first], self.mask, *rest]))
        places = torch.tensor([word.first for _, word in queries])
        lengths = torch.tensor([len(ids) for ids in masked])
        ids = pad_sequence(masked, batch_first=True, padding_value=self.pad)  # (batch, seq)
        attention = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        logits = self._logits(ids, attention, places)[:, self.ids]  # (batch, whole words)
        best = self.ids[logits.topk(min(self.candidates + 1, len(self.ids)), dim=1).indices].tolist()
        result = []
        for (_, word), row in zip(queries, best, strict=True):
            words = [self.words[index] for index in row]
            result.append([w for w in words if w.lower() != word.text.lower()][: self.candidates])
        return result

    def _logits(self, ids: Tensor, attention: Tensor, places: Tensor) -> Tensor:
        """Logits of the masked places, (batch, vocabulary); the last projection is given them alone."""

        def only_masks(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
            return (inputs[0][torch.arange(len(places)), places][:, None],)

        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(only_masks)
        try:
            with torch.inference_mode():
                logits: Tensor = self.model(
                    input_ids=ids, attention_mask=attention
                ).logits  # (batch, 1, vocab)
        finally:
            hook.remove()
        return logits[:, 0]


def whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The pieces of the vocabulary that are a word of their own and may replace another, with that word.

    What goes on a word is marked in WordPiece (`##ing`), what begins one in byte-level BPE (`Ġ`) and
    SentencePiece (`▁`).
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    mark = max("Ġ▁", key=lambda mark: sum(piece.startswith(mark) for piece in pieces))
    marked = any(piece.startswith(mark) for piece in pieces)
    continued = any(piece.startswith("##") for piece in pieces)
    found = {}
    for index, piece in enumerate(pieces):
        begins = not piece.startswith("##") if continued or not marked else piece.startswith(mark)
        if begins and index not in special:
            word = tokenizer.convert_tokens_to_string([piece]).strip()
            if _may_replace(word):
                found[index] = word
    return found
