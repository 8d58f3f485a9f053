"""Generated text that is JSON of a schema: at each step only tokens that can still lead there are allowed.

**Why.** A model that is only asked for JSON gives it most of the time; a program needs it every time.

**How.** llguidance compiles the schema to a grammar, and walks it over the bytes of the vocabulary at each
step; its own limits bound the time and memory of both. What it does not support of JSON Schema it refuses.

Sources. https://github.com/guidance-ai/llguidance; https://json-schema.org/draft/2020-12
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from pressoir.errors import PressoirError
from pressoir.inference.tokenizers.tokenizers import LanguageModelTokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_OPTIONS: JsonCompileOptions = {
    "lenient": False,  # a keyword that is not supported is an error
    "whitespace_pattern": r"[ \n]{1,16}",  # a model that likes blanks comes to an end
}


class JsonGrammars:
    """Grammars over one vocabulary of `vocabulary` logits.

    Raises:
        PressoirError: the bytes of its tokens, or a token that ends a text, are not known.
    """

    def __init__(self, tokenizer: LanguageModelTokenizer, vocabulary: int, eos_ids: frozenset[int]) -> None:
        tokens = tokenizer.token_bytes
        size = min(len(tokens), vocabulary)
        ends = sorted(id for id in eos_ids if id < size)
        if not tokens.exact or not ends:
            raise PressoirError(
                "response_format: the model's tokenizer is neither byte-level nor SentencePiece-like, or "
                "has no end-of-text token; ask for JSON in the prompt"
            )
        words = _Vocabulary(tokenizer, [tokens[id] for id in range(size)], ends[0])
        words.special_token_ids = sorted({*(id for id in tokens.special if id < size), *ends})
        self._tokenizer = LLTokenizer(TokenizerWrapper(words), eos_token=ends)

    def open(self, schema: Mapping[str, Any]) -> JsonGrammar:
        """The grammar of a schema, at its start.

        Raises:
            PressoirError: the schema is not valid, too large, or uses what is not supported.
        """
        try:
            source = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)
        except ValueError as error:
            raise _refused(error) from error
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        matcher.compute_bitmask()  # shows what nothing can satisfy
        return JsonGrammar(matcher)


class JsonGrammar:
    """What may follow the tokens so far."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._check()

    @property
    def ended(self) -> bool:
        """Whether the JSON is complete, and nothing can follow."""
        return self._matcher.is_stopped()

    def mask(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """`logits` (vocabulary,) with −inf for each token that cannot follow."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        masked = np.full_like(logits, -np.inf)
        masked[: len(allowed)][allowed] = logits[: len(allowed)][allowed]
        return masked

    def accept(self, token: int) -> None:
        """Go on after `token`, which `mask` allowed."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: LanguageModelTokenizer, tokens: list[bytes], eos_token_id: int) -> None:
        self._tokenizer, self.tokens, self.eos_token_id = tokenizer, tokens, eos_token_id
        self.special_token_ids: list[int] = []

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace"))


def _refused(reason: object) -> PressoirError:
    [line, *_] = [*str(reason).splitlines(), "no reason is given"]
    if line.startswith("NoExtension"):
        line = "no text satisfies it"
    return PressoirError(f"response_format: the JSON schema is not supported: {line[:300]}")
