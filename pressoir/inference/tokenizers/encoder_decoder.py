"""Texts to token ids and back, as transformers' tokenizers do: by a lighter library where that is enough.

A folder of ONNX graphs needs no transformers and no torch where it has a `tokenizer.json`, or Marian's or
M2M100's SentencePiece models; a checkpoint, which needs them anyway, is read by transformers itself, whose
classes may frame a text otherwise than their file says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pressoir.errors import SourceError
from pressoir.formats.folder import Runtime, read_json
from pressoir.inference.tokenizers.sentence_piece import SentencePieceTokenizer, is_readable
from pressoir.inference.tokenizers.tokenizers import clean_up

TOKENIZER = "tokenizer.json"

Frame = tuple[list[int], list[int]]
"""Token ids before and after a text."""


class Seq2SeqTokenizer(Protocol):
    """A tokenizer, as far as generating from text or sound needs one."""

    special: list[str]
    """Tokens beside the trained ones, such as language codes."""
    truncation_side: str
    """Where a text that is too long is cut: `right` or `left`."""

    def frame(self) -> Frame:
        """What stands around every text: ends, and the code of the tokenizer's own source language."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without its frame."""

    def decode(self, ids: Sequence[int], strip: bool = True) -> str:
        """The text of token ids, stripped of spaces at its ends; special tokens are left out."""

    def id(self, token: str) -> int:
        """The id of a token that exists."""


def open_vocabulary(folder: Path, runtime: Runtime = "onnxruntime") -> Seq2SeqTokenizer:
    """The vocabulary of a model folder that is run by `runtime`.

    Raises:
        SourceError: there is none, or it is broken.
    """
    if runtime == "onnxruntime" and (folder / TOKENIZER).exists():
        return FastSeq2SeqTokenizer(folder)
    if runtime == "onnxruntime" and is_readable(folder):
        return SentencePieceTokenizer(folder)
    return PythonSeq2SeqTokenizer(folder)


def needs_transformers(folder: Path) -> bool:
    """Whether only transformers, which brings torch, reads the vocabulary of a folder of graphs."""
    return not (folder / TOKENIZER).exists() and not is_readable(folder)


class FastSeq2SeqTokenizer:
    """The `tokenizer.json` of a model folder, by the `tokenizers` library alone."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers raises plain Exception
            raise SourceError(f"{folder / TOKENIZER} cannot be loaded: {error}") from error
        cut = self._tokenizer.truncation or {}
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.exists() else {}
        self._cleans = bool(settings.get("clean_up_tokenization_spaces"))
        self.truncation_side = str(settings.get("truncation_side") or cut.get("direction", "right"))

    def frame(self) -> Frame:
        """See `Seq2SeqTokenizer.frame`."""
        return _around(self._tokenizer.encode("a").ids, self.encode("a"))

    def encode(self, text: str) -> list[int]:
        """See `Seq2SeqTokenizer.encode`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], strip: bool = True) -> str:
        """See `Seq2SeqTokenizer.decode`."""
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        text = clean_up(text) if self._cleans else text
        return text.strip() if strip else text

    def id(self, token: str) -> int:
        """See `Seq2SeqTokenizer.id`."""
        return int(self._tokenizer.token_to_id(token))


class PythonSeq2SeqTokenizer:
    """Any tokenizer that transformers loads; imports torch."""

    def __init__(self, folder: Path) -> None:
        from pressoir.models.loading import load_tokenizer

        self._tokenizer = load_tokenizer(folder)
        self.truncation_side = str(self._tokenizer.truncation_side)
        # Language codes are trained tokens (Marian: `>>fra<<`), or come after the trained ones.
        trained = (token for token in self._tokenizer.get_vocab() if token.startswith(">>"))
        added = (token.content for token in self._tokenizer.added_tokens_decoder.values())
        languages = getattr(self._tokenizer, "lang_code_to_token", {})
        self.special = list(dict.fromkeys([*trained, *added, *languages.values()]))

    def frame(self) -> Frame:
        """See `Seq2SeqTokenizer.frame`."""
        return _around(self._tokenizer("a")["input_ids"], self.encode("a"))

    def encode(self, text: str) -> list[int]:
        """See `Seq2SeqTokenizer.encode`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def decode(self, ids: Sequence[int], strip: bool = True) -> str:
        """See `Seq2SeqTokenizer.decode`."""
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        return text.strip() if strip else text

    def id(self, token: str) -> int:
        """See `Seq2SeqTokenizer.id`."""
        return int(self._tokenizer.convert_tokens_to_ids(token))

    def save(self, folder: Path) -> None:
        """Write a `tokenizer.json`, where transformers can make one, else the files of its own class."""
        from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

        from pressoir.models.loading import save_tokenizer

        # Rather than the lower limit of a loaded tokenizer.
        stated = self._tokenizer.init_kwargs.get("model_max_length")
        self._tokenizer.model_max_length = stated or VERY_LARGE_INTEGER
        save_tokenizer(self._tokenizer, folder)


def _around(whole: list[int], text: list[int]) -> Frame:
    """What stands before and after `text` in `whole`."""
    start = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
    return whole[:start], whole[start + len(text) :]
