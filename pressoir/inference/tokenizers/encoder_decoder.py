"""Texts to token ids and back, without special tokens: by the `tokenizers` library where that is enough.

A folder with a `tokenizer.json` needs no transformers and no torch. Some tokenizers (Marian's, M2M100's)
exist only in Python, over SentencePiece, and bring both.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pressoir.errors import SourceError

TOKENIZER = "tokenizer.json"


class Seq2SeqTokenizer(Protocol):
    """A tokenizer, as far as generating from text or sound needs one."""

    special: list[str]
    """Tokens beside the trained ones, such as language codes."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens are left out."""

    def id(self, token: str) -> int:
        """The id of a token that exists."""


def open_vocabulary(folder: Path) -> Seq2SeqTokenizer:
    """The vocabulary of a model folder.

    Raises:
        SourceError: there is none, or it is broken.
    """
    return FastSeq2SeqTokenizer(folder) if (folder / TOKENIZER).exists() else PythonSeq2SeqTokenizer(folder)


class FastSeq2SeqTokenizer:
    """The `tokenizer.json` of a model folder, by the `tokenizers` library alone."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers raises plain Exception
            raise SourceError(f"{folder / TOKENIZER} cannot be loaded: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    def encode(self, text: str) -> list[int]:
        """See `Vocabulary.encode`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Vocabulary.decode`."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def id(self, token: str) -> int:
        """See `Vocabulary.id`."""
        return int(self._tokenizer.token_to_id(token))


class PythonSeq2SeqTokenizer:
    """Any tokenizer that transformers loads; imports torch."""

    def __init__(self, folder: Path) -> None:
        from pressoir.models.loading import load_tokenizer

        with warnings.catch_warnings():
            # Marian's would normalise punctuation with it, which its models do without.
            warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
            self._tokenizer = load_tokenizer(folder)
        # Language codes are trained tokens (Marian), or come after the trained ones (M2M100).
        languages = getattr(self._tokenizer, "lang_code_to_token", {})
        self.special = [*self._tokenizer.get_vocab(), *languages.values()]

    def encode(self, text: str) -> list[int]:
        """See `Vocabulary.encode`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def decode(self, ids: Sequence[int]) -> str:
        """See `Vocabulary.decode`."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def id(self, token: str) -> int:
        """See `Vocabulary.id`."""
        return int(self._tokenizer.convert_tokens_to_ids(token))

    def save_fast(self, folder: Path) -> None:
        """Write a `tokenizer.json`, where transformers can make one."""
        from pressoir.models.loading import save_tokenizer

        if self._tokenizer.is_fast:
            save_tokenizer(self._tokenizer, folder)
