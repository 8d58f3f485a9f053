"""Which word pieces a text needs, and a fast tokenizer cut to some of its pieces.

Everything here works on the content of a `tokenizer.json`. A text that the old tokenizer splits into pieces
that all stay is split into the same pieces by the new one:

- WordPiece takes the longest piece that fits. Of fewer pieces, the longest that stayed is still the longest.
- BPE applies the first merge of its list that fits, again and again. A piece that stays keeps the merges that
  lead to it; that others are gone changes nothing where they were not applied.
- Unigram takes the split with the largest sum of scores. Of fewer splits, the largest that stayed is still
  the largest. The lowest score of all, which decides what an unknown character costs, stays too.

Any other text can still be spelt, since single characters stay, as the beginning of a word and within it.

Source: A. Ushio et al. 2023, "An Efficient Multilingual Language Model Compression through Vocabulary
Trimming" (arXiv:2305.15020); the algorithms are those of https://github.com/huggingface/tokenizers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

from pressoir.data.texts import Text
from pressoir.errors import SourceError

Content = Mapping[str, Any]
"""What a `tokenizer.json` holds."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # what BPE and Unigram spell unknown characters with, where they can
_BATCH = 1000


@dataclass(frozen=True)
class Coverage:
    """How much of some sentences two tokenizers split alike."""

    tokens: float
    """Fraction of the first one's tokens that the second finds too, at the same position."""
    sentences: float
    """Fraction of the sentences with the same tokens throughout."""
    length: float
    """The second one's tokens, divided by the first one's: above 1 where words are split into more pieces."""


def pieces(content: Content) -> dict[str, int]:
    """Every piece and added token, with its id.

    Raises:
        SourceError: the tokenizer is of a kind that cannot be cut.
    """
    model = content["model"]
    if model["type"] not in _FORMS:
        raise SourceError(
            f"vocabulary: a {model['type']} tokenizer cannot be pruned; supported are {', '.join(_FORMS)}"
        )
    if model["type"] == "Unigram":
        found = {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    else:
        found = dict(model["vocab"])
    return found | {token["content"]: token["id"] for token in content["added_tokens"]}


def count(tokenizer: Tokenizer, texts: Sequence[Text]) -> Counter[int]:
    """How often each id occurs in `texts`, special tokens not counted."""
    counts: Counter[int] = Counter()
    for encoding in _encode(tokenizer, texts):
        counts.update(encoding.ids)
    return counts


def needed(content: Content, used: Iterable[int]) -> list[int]:
    """Ids of the pieces that must stay, ascending.

    They are `used`, all added tokens, all single characters in each of their forms, and what these rest on:
    of BPE the pieces that a piece is merged from. Where the vocabulary has a character only inside longer
    pieces, all of these stay.

    Raises:
        SourceError: the tokenizer is of a kind that cannot be cut.
    """
    known, model = pieces(content), content["model"]
    keep = {*used, *(token["id"] for token in content["added_tokens"])}
    if model.get("unk_token") is not None:
        keep.add(known[model["unk_token"]])
    if model.get("unk_id") is not None:
        keep.add(model["unk_id"])
    forms = _FORMS[model["type"]]
    for piece, token_id in known.items():
        spelt = forms(piece, model)
        if len(spelt) == 1 or _BYTE.fullmatch(piece) or not all(form in known for form in spelt):
            keep.add(token_id)
    if model["type"] == "BPE":
        _add_merged_from(keep, known, model)
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        keep.add(scores.index(min(scores)))
    return sorted(keep)


def cut(content: Content, ids: Sequence[int]) -> dict[str, Any]:
    """The content of a tokenizer with the pieces `ids` alone (ascending); their new ids are 0, 1, 2, …"""
    index, model = {old: new for new, old in enumerate(ids)}, dict(content["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in index]
        model["unk_id"] = index.get(model["unk_id"])
    else:
        by_id = sorted(model["vocab"].items(), key=lambda item: item[1])
        model["vocab"] = {piece: index[old] for piece, old in by_id if old in index}
    if model["type"] == "BPE":
        model["merges"] = [
            pair
            for pair in model["merges"]
            if all(piece in model["vocab"] for piece in (*pair, _merged(pair, model)))
        ]
    padding = content["padding"]
    return {
        **content,
        "model": model,
        "added_tokens": [token | {"id": index[token["id"]]} for token in content["added_tokens"]],
        "post_processor": _renumbered(content["post_processor"], index),
        "padding": padding and padding | {"pad_id": index[padding["pad_id"]]},
    }


def coverage(old: Tokenizer, new: Tokenizer, texts: Sequence[Text]) -> Coverage:
    """How much of `texts` both tokenizers split alike; special tokens are left out."""
    tokens = longer = alike = same = 0
    for before, after in zip(_encode(old, texts), _encode(new, texts), strict=True):
        tokens += len(before.tokens)
        longer += len(after.tokens)
        if before.tokens == after.tokens:
            alike += len(before.tokens)
            same += 1
        else:
            alike += (_placed(before) & _placed(after)).total()
    return Coverage(alike / max(tokens, 1), same / max(len(texts), 1), longer / max(tokens, 1))


def _placed(encoding: Encoding) -> Counter[tuple[str, tuple[int, int]]]:
    return Counter(zip(encoding.tokens, encoding.offsets, strict=True))


def _encode(tokenizer: Tokenizer, texts: Sequence[Text]) -> Iterator[Encoding]:
    """Whole sentences, whatever length the tokenizer is set to cut at or pad to."""
    from pressoir.inference.tokenizers.tokenizers import encode_all  # NumPy, which `inspect` does without

    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    whole.no_padding()
    for start in range(0, len(texts), _BATCH):
        yield from encode_all(whole, texts[start : start + _BATCH], add_special_tokens=False)


def _word_piece_forms(piece: str, model: Content) -> list[str]:
    """The single characters that spell the same text: `##ab` is `##a`, `##b`."""
    prefix = model["continuing_subword_prefix"]
    if len(piece) > len(prefix) and piece.startswith(prefix):
        return [prefix + character for character in piece[len(prefix) :]]
    return [*piece[:1], *(prefix + character for character in piece[1:])]


def _bpe_forms(piece: str, model: Content) -> list[str]:
    """Of a single character, itself; of others nothing: every merge begins with characters that are there."""
    prefix, suffix = model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""
    return [piece] if len(piece.removeprefix(prefix).removesuffix(suffix)) == 1 else []


def _unigram_forms(piece: str, model: Content) -> list[str]:
    return list(piece)


_FORMS = {"WordPiece": _word_piece_forms, "BPE": _bpe_forms, "Unigram": _unigram_forms}


def _merged(pair: Sequence[str], model: Content) -> str:
    return pair[0] + pair[1].removeprefix(model["continuing_subword_prefix"] or "")


def _add_merged_from(keep: set[int], known: Mapping[str, int], model: Content) -> None:
    """Add to `keep` the pieces that its pieces are merged from, and the pieces that those are merged from."""
    merged_from: dict[int, set[int]] = {}
    for pair in model["merges"]:
        merged_from.setdefault(known[_merged(pair, model)], set()).update(known[piece] for piece in pair)
    fresh = list(keep)
    while fresh:
        for token_id in merged_from.get(fresh.pop(), ()):
            if token_id not in keep:
                keep.add(token_id)
                fresh.append(token_id)


def _renumbered(processor: Any, index: Mapping[int, int]) -> Any:
    """A post-processor (what puts [CLS] and [SEP] around a sentence) with new ids."""
    if processor is None:
        return None
    changed = dict(processor)
    if "processors" in processor:  # a sequence of them
        changed["processors"] = [_renumbered(each, index) for each in processor["processors"]]
    for name in ("sep", "cls"):  # of BERT and RoBERTa: (token, id)
        if name in processor:
            changed[name] = [processor[name][0], index[processor[name][1]]]
    if isinstance(processor.get("special_tokens"), dict):  # of a template
        changed["special_tokens"] = {
            token: entry | {"ids": [index[old] for old in entry["ids"]]}
            for token, entry in processor["special_tokens"].items()
        }
    return changed
