"""Tokenise with the `tokenizers` library alone.

transformers' `AutoTokenizer` imports torch: hundreds of megabytes and seconds that a process which only runs
ONNX graphs does not need. The result is the same, id for id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pressoir.data.texts import Text, Words
from pressoir.errors import PressoirError, SourceError
from pressoir.formats.folder import is_token_classifier, read_json
from pressoir.formats.prefix_space import with_prefix_space
from pressoir.formats.tokenizer_limit import MAX_TOKENS, most_tokens
from pressoir.inference.tokenizers.token_bytes import TokenBytes
from pressoir.system.reader import is_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Classes of transformers that put their own post-processor into the tokenizer, and whether that adds a
# beginning-of-text token unless `tokenizer_config.json` says otherwise (an end-of-text token, none does).
_ADDS_BOS = {"Llama": True, "CodeLlama": True, "Gemma": True, "Cohere": True, "GPTNeoX": False}
# Tokens before the first new one that decide how it is written (a leading space, half a character).
_BEFORE = 8
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Classes of transformers that make no `token_type_ids`, unless `tokenizer_config.json` says otherwise.
_WITHOUT_TYPES = frozenset(
    "Roberta XLMRoberta Camembert DistilBert MPNet Longformer Bart Barthez MBart GPT2 Esm".split()
)
_REPLACEMENT = "\ufffd"  # what an incomplete character decodes to
# transformers' `clean_up_tokenization_spaces`: blanks that English does not write.
_CLEANED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
    *((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)


class FastTokenizer:
    """The `tokenizer.json` of an encoder; pads to the longest sentence, cuts at `model_max_length`, on the
    sides that transformers does.

    `max_tokens` is a limit beside the tokenizer's and the model's own.
    """

    def __init__(self, folder: Path, max_tokens: int | None = None) -> None:
        with _broken(folder):
            settings, self._tokenizer = _read(folder)
            own = int(settings.get("model_max_length") or MAX_TOKENS)
            self.model_max_length = min(own, max_tokens or MAX_TOKENS, most_tokens(folder))
            if is_token_classifier(folder):
                self._tokenizer = with_prefix_space(self._tokenizer)
            usual = _INPUTS[:2] if _family(settings) in _WITHOUT_TYPES else _INPUTS
            self._names = frozenset[str](settings.get("model_input_names") or usual)
            pad = content(settings.get("pad_token")) or "[PAD]"
            cut, padded = self._tokenizer.truncation or {}, self._tokenizer.padding or {}  # of tokenizer.json
            self.truncation_side = str(settings.get("truncation_side") or cut.get("direction", "right"))
            self._truncate(self.model_max_length)
            self._tokenizer.enable_padding(
                direction=settings.get("padding_side") or padded.get("direction", "right"),
                pad_id=self._tokenizer.token_to_id(pad) or 0,
                pad_token=pad,
            )

    def __call__(
        self, texts: Sequence[Text], max_length: int | None = None, **_: Any
    ) -> dict[str, NDArray[np.int64]]:
        """`input_ids`, `attention_mask` and, where the tokenizer gives them to its model, `token_type_ids`,
        each (sentences, longest sentence). A pair is one row; its longer text is cut first.

        `max_length` truncates earlier than `model_max_length`.
        """
        limit = min(max_length or self.model_max_length, self.model_max_length)
        if limit != self._limit:
            self._truncate(limit)
        return self.arrays(encode_all(self._tokenizer, texts))

    def encodings(self, sentences: Sequence[Words], limit: int) -> Sequence[Any]:
        """An `Encoding` of the tokenizers library of each sentence, padded to the longest; its `overflowing`
        has what is beyond `limit` tokens."""
        if limit != self._limit:
            self._truncate(limit)
        return encode_all(self._tokenizer, sentences)

    def arrays(self, encodings: Sequence[Any]) -> dict[str, NDArray[np.int64]]:
        """What a model takes of such encodings, see `__call__`."""
        rows = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        return {name: np.asarray(rows[name], dtype=np.int64) for name in rows if name in self._names}

    def lengths(self, texts: Sequence[Text]) -> list[int]:
        """Tokens of each text or pair, special ones included, before it is cut."""
        self._tokenizer.no_truncation()
        encodings = encode_all(self._tokenizer, texts)
        self._truncate(self._limit)
        return [sum(encoding.attention_mask) for encoding in encodings]

    def special_tokens(self, pair: bool) -> int:
        """How many stand around a text, or around and between a pair."""
        return int(self._tokenizer.num_special_tokens_to_add(pair))

    def whole(self, text: str) -> list[int]:
        """Token ids of a text, without special ones around it, before it is cut."""
        self._tokenizer.no_truncation()
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        self._truncate(self._limit)
        return ids

    def _truncate(self, limit: int) -> None:
        """Cut texts from here on to `limit` tokens, at the end or, where the tokenizer does so, the start."""
        self._limit = limit
        self._tokenizer.enable_truncation(limit, direction=self.truncation_side)


def encode_all(tokenizer: Any, texts: Sequence[Text], **options: Any) -> list[Any]:
    """An `Encoding` of each text by a `tokenizers.Tokenizer`; of words, each is tokenised by itself."""
    if texts and isinstance(texts[0], Words):
        return list(tokenizer.encode_batch([list(text) for text in texts], is_pretokenized=True, **options))
    return list(tokenizer.encode_batch(list(texts), **options))


class Truncation(NamedTuple):
    """How much of some texts a model never sees."""

    texts: int
    cut: int
    """Texts of more tokens than the limit."""
    tokens: int
    lost: int
    """Tokens beyond the limit."""
    limit: int
    """Tokens of a text at most."""
    split: int = 0
    """Sentences of words that go through a model in several parts, of which nothing is lost."""

    def __str__(self) -> str:
        if self.split:
            return (
                f"{self.split} of {self.texts} sentences have more than {self.limit} tokens and go through "
                "the models in several parts"
            )
        return (
            f"{self.cut} of {self.texts} texts have more than {self.limit} tokens and are truncated, which "
            f"loses {self.lost} tokens ({self.lost / max(self.tokens, 1):.1%})"
        )


def truncation(tokenizer: FastTokenizer | PreTrainedTokenizerBase, texts: Sequence[Text]) -> Truncation:
    """What cutting at the tokenizer's `model_max_length` takes from `texts`."""
    if isinstance(tokenizer, FastTokenizer):
        lengths = tokenizer.lengths(texts)
    else:
        words = bool(texts) and isinstance(texts[0], Words)
        asked: list[Any] = [list(text) for text in texts] if words else list(texts)
        encoded = tokenizer(asked, verbose=False, is_split_into_words=words)
        lengths = [len(ids) for ids in encoded["input_ids"]]
    limit = int(tokenizer.model_max_length)
    beyond = [length - limit for length in lengths if length > limit]
    if texts and isinstance(texts[0], Words):
        return Truncation(len(lengths), 0, sum(lengths), 0, limit, len(beyond))
    return Truncation(len(lengths), len(beyond), sum(lengths), sum(beyond), limit)


def encode_batch(
    tokenizer: FastTokenizer | PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int | None = None
) -> dict[str, NDArray[np.int64]]:
    """Token ids and masks, each (texts, longest text), padded to the longest.

    Texts are truncated at the tokenizer's `model_max_length`, or at `max_length` if that is less; of a pair
    the longer text first, as transformers' `longest_first` does.
    """
    options: dict[str, Any] = {}
    if max_length is not None and max_length < tokenizer.model_max_length:
        options["max_length"] = max_length
    if texts and isinstance(texts[0], Words) and not isinstance(tokenizer, FastTokenizer):
        texts, options = [list(text) for text in texts], {**options, "is_split_into_words": True}  # type: ignore[misc]
    encoded = tokenizer(list(texts), padding=True, truncation=True, return_tensors="np", **options)
    return {name: np.asarray(array, dtype=np.int64) for name, array in encoded.items()}


class LanguageModelTokenizer:
    """A causal LM's tokenizer: text to ids, as transformers makes them, and back; nothing is cut."""

    def __init__(self, backend: Any) -> None:
        self._tokenizer = backend  # a tokenizers.Tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @classmethod
    def open(cls, folder: Path) -> LanguageModelTokenizer:
        """The tokenizer of a model folder. What exists only in Python is built by transformers.

        Raises:
            SourceError: there is none, or it is broken.
        """
        if (folder / "tokenizer.json").exists() and (folder / "tokenizer_config.json").exists():
            with _broken(folder):
                settings, tokenizer = _read(folder)
                if _completed(tokenizer, settings):
                    return cls(tokenizer)
        from pressoir.models.loading import load_tokenizer

        loaded = load_tokenizer(folder)
        if not loaded.is_fast:
            raise SourceError(f"{folder} has no fast tokenizer; save it as tokenizer.json")
        with _broken(folder):
            _try(loaded.backend_tokenizer)
        return cls(loaded.backend_tokenizer)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """What each token stands for."""
        return TokenBytes(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of the whole text, with a beginning-of-text token where the tokenizer adds one."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out; an incomplete character is U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


class TextStream:
    """Token ids to pieces of text, none of which ends within a character."""

    def __init__(self, tokenizer: LanguageModelTokenizer, before: Sequence[int] = ()) -> None:
        """`before` are the ids after which the text goes on: a first piece keeps its leading space."""
        self._tokenizer = tokenizer
        self._ids, self._text, self._told = list(before), "", 0
        self._start()

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        self._ids.append(token)
        self._text = self._tokenizer.decode(self._ids)
        complete = self._text.rstrip(_REPLACEMENT)
        piece = complete[self._told :]
        self._told = max(self._told, len(complete))
        if len(complete) == len(self._text) and len(self._ids) > 8 * _BEFORE:
            self._start()  # decoding again from the first token would cost more and more
        return piece

    def rest(self) -> str:
        """What was held back, when no more tokens come."""
        piece, self._told = self._text[self._told :], len(self._text)
        return piece

    def _start(self) -> None:
        # Not within a character: byte fallback would then replace all bytes that follow each other.
        for count in range(_BEFORE, 2 * _BEFORE):
            self._text = self._tokenizer.decode(self._ids[-count:])
            if not self._text.startswith(_REPLACEMENT):
                break
        self._ids = self._ids[-count:]
        self._told = len(self._text)


def _read(folder: Path) -> tuple[dict[str, Any], Any]:
    """`tokenizer_config.json`, and the `tokenizers.Tokenizer` of `tokenizer.json`."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not is_file(path):
        raise SourceError(f"{path} is missing, or not a regular file; download or create the model again")
    return read_json(folder / "tokenizer_config.json"), _try(Tokenizer.from_file(str(path)))


def _try(tokenizer: Any) -> Any:
    """The tokenizer, once it has encoded something: only then does it look for the tokens that it adds."""
    tokenizer.encode("a")
    return tokenizer


@contextmanager
def _broken(folder: Path) -> Iterator[None]:
    """What stumbles over a tokenizer's files is a SourceError; tokenizers raises Exception, or panics."""
    try:
        yield
    except PressoirError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise SourceError(f"{folder} has no tokenizer that can be loaded: {error}") from error


def _family(settings: dict[str, Any]) -> str:
    """What a tokenizer's class in transformers is named after."""
    return str(settings.get("tokenizer_class")).removesuffix("Fast").removesuffix("Tokenizer")


def _completed(tokenizer: Any, settings: dict[str, Any]) -> bool:
    """Do to a causal LM's tokenizer what transformers' class for it does; False where that takes Python."""
    if "tokenizer_class" not in settings:
        return False  # the model's type decides
    family = _family(settings)
    added = [content(token) for token in (settings.get("added_tokens_decoder") or {}).values()]
    added += [content(settings.get(name)) for name in ("bos_token", "eos_token")]
    if any(token is not None and tokenizer.token_to_id(token) is None for token in added):
        return False
    prefix_space = settings.get("add_prefix_space")
    if family in ("Llama", "CodeLlama") and prefix_space is not None:
        return False  # it is then converted anew from its sentencepiece model
    if getattr(tokenizer.pre_tokenizer, "add_prefix_space", None) is not None:
        tokenizer.pre_tokenizer.add_prefix_space = bool(prefix_space)
    if family in _ADDS_BOS:
        return _post_process(tokenizer, settings, _ADDS_BOS[family])
    return True


def _post_process(tokenizer: Any, settings: dict[str, Any], adds_bos: bool) -> bool:
    from tokenizers.processors import TemplateProcessing

    bos = content(settings.get("bos_token")) if settings.get("add_bos_token", adds_bos) else None
    eos = content(settings.get("eos_token")) if settings.get("add_eos_token", False) else None
    if (settings.get("add_bos_token", adds_bos) and bos is None) or (
        settings.get("add_eos_token", False) and eos is None
    ):
        return False  # the class has default names
    template = [token for token in (bos, "$A", eos) if token is not None]
    special = [(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token is not None]
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return True


def clean_up(text: str) -> str:
    """What transformers makes of a decoded text with `clean_up_tokenization_spaces`."""
    for apart, together in _CLEANED:
        text = text.replace(apart, together)
    return text


def content(token: Any) -> Any:
    """The text of a special token, which a configuration gives as such or as an object."""
    return token["content"] if isinstance(token, dict) else token
