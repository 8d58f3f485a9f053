"""Text generation and perplexity over any decoder: text in, pieces of text or a score out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pressoir.data import running_text
from pressoir.errors import PressoirError
from pressoir.formats.folder import Runtime
from pressoir.inference.arguments import opened
from pressoir.inference.engines.decoder import open_decoder
from pressoir.inference.engines.decoder_protocol import Decoder
from pressoir.inference.generation.penalties import Penalties
from pressoir.inference.generation.sampling import Sampler
from pressoir.inference.generation.token_scores import (
    ScoredToken,
    TokenScore,
    complete_last,
    scored_token,
    token_score,
)
from pressoir.inference.tokenizers.tokenizers import LanguageModelTokenizer, TextStream

if TYPE_CHECKING:
    from pressoir.inference.generation.json_grammar import JsonGrammar, JsonGrammars

WINDOWS = 8  # scored in one forward pass
SCORED = 64  # tokens scored in one forward pass, where each follows all before it
LOGITS_BYTES = 128_000_000  # most that one forward pass may give, if it takes more than one window


@dataclass(frozen=True)
class Perplexity:
    """How well a model foresees a text."""

    value: float
    """exp(nll); depends on the tokenizer and on the window."""
    tokens: int
    """Tokens that were scored."""
    nll: float
    """Mean negative log-likelihood of a token, nats."""


class TextGenerator:
    """A causal LM and its tokenizer."""

    def __init__(self, decoder: Decoder, tokenizer: LanguageModelTokenizer) -> None:
        self.decoder, self.tokenizer = decoder, tokenizer

    @classmethod
    def open(
        cls, folder: Path | str, threads: int | None = None, runtime: Runtime | None = None
    ) -> TextGenerator:
        """Open a model folder; see `open_decoder` for what it raises."""
        folder, threads = opened(folder, threads)
        return cls(open_decoder(folder, threads, runtime), LanguageModelTokenizer.open(folder))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 64,
        max_length: int | None = None,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        min_p: float = 0.0,
        penalties: Penalties | None = None,
        top_scores: int | None = None,
        json_schema: Mapping[str, Any] | None = None,
    ) -> Continuation:
        """Continue `prompt`, text or token ids: pieces of text, none of which ends within a character.

        Ends at a token that ends a text, at a text of `stop` (which is not given, nor is what follows it),
        after `max_new_tokens`, or when prompt and continuation together reach `max_length` or fill the
        model's context. Greedy, unless `temperature` is above 0: see `Sampler`. With `top_scores` the
        continuation also has the log-probability of each token, and of that many likeliest ones. With
        `json_schema` it is JSON of that schema, unless a limit ends it before.

        Raises:
            PressoirError: the prompt is empty or leaves no room in the context, or an option is out of range.
        """
        stop = [stop] if isinstance(stop, str) else list(stop)
        if "" in stop:
            raise PressoirError("a stop sequence is empty; specify at least one character")
        ids = self.ids(prompt)
        limit = self._limit(ids, max_new_tokens, max_length)
        sampler, penalties = Sampler(temperature, top_k, top_p, seed, min_p), penalties or Penalties()
        penalties.check(self.decoder.vocabulary)
        grammar = None if json_schema is None else self._grammars.open(json_schema)
        tokens = self._tokens(ids, limit, sampler, penalties, top_scores, grammar)
        return Continuation(self.tokenizer, ids, tokens, limit, stop, self.decoder.eos_ids, grammar)

    def generate_ids(
        self,
        ids: Sequence[int],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Token ids that follow `ids`; a token that ends the text is not given. See `generate`."""
        sampler = Sampler(temperature, top_k, top_p, seed)
        tokens = self._tokens(ids, self._limit(ids, max_new_tokens), sampler, Penalties())
        return (token.id for token in tokens if token.id not in self.decoder.eos_ids)

    def ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a text, or the ids themselves; raises PressoirError of one that the model has not."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        for id in prompt:
            if not 0 <= id < self.decoder.vocabulary:
                raise PressoirError(
                    f"the model has no token {id}; its tokens are 0 to {self.decoder.vocabulary - 1}"
                )
        return list(prompt)

    def perplexity(
        self,
        text: str,
        window: int = 128,
        max_windows: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Perplexity:
        """Perplexity on `text`, cut into windows of `window` tokens that do not overlap.

        Each window is scored from its second token on, by what precedes within the window; the rest of the
        text, shorter than a window, is left out. `progress` is called with the windows done and their number.

        Raises:
            DataError: the text is shorter than one window.
            PressoirError: the window does not fit into the model's context, or logits are not finite.
        """
        if not 2 <= window <= self.decoder.context:
            raise PressoirError(
                f"a window of {window} tokens does not fit the model; specify 2 to {self.decoder.context}"
            )
        windows = running_text.windows(self.tokenizer.encode(text), window, max_windows)
        room = LOGITS_BYTES // (4 * window * self.decoder.vocabulary)
        together = max(1, min(WINDOWS, room))
        total = 0.0
        for start in range(0, len(windows), together):
            batch = windows[start : start + together]  # (together, window)
            logits, _ = self.decoder.forward(batch)
            total += float(negative_log_likelihood(logits[:, :-1], batch[:, 1:]).sum())
            if progress is not None:
                progress(start + len(batch), len(windows))
        tokens = len(windows) * (window - 1)
        if not math.isfinite(total):
            raise PressoirError("the model produced logits that are not finite; its weights are corrupt")
        mean = total / tokens
        return Perplexity(math.exp(mean) if mean < 700 else math.inf, tokens, mean)

    def scores(self, ids: Sequence[int], top: int = 0) -> Iterator[list[TokenScore]]:
        """Of every token of `ids`, given all before it, with the `top` likeliest ones: part by part.

        Raises:
            PressoirError: there are no ids, or more than the model's context.
        """
        if not 1 <= len(ids) <= self.decoder.context:
            raise PressoirError(
                f"the text has {len(ids)} tokens; the model supports 1 to {self.decoder.context}; shorten it"
            )
        cache = None
        yield [TokenScore(ids[0])]
        for start in range(0, len(ids) - 1, SCORED):
            end = min(start + SCORED, len(ids) - 1)
            logits, cache = self.decoder.forward(np.asarray([ids[start:end]], dtype=np.int64), cache)
            yield [
                token_score(row, id, top) for row, id in zip(logits[0], ids[start + 1 : end + 1], strict=True)
            ]

    def _limit(self, ids: Sequence[int], max_new_tokens: int, max_length: int | None = None) -> int:
        """How many tokens may follow `ids`."""
        if max_new_tokens < 1:
            raise PressoirError(f"max_new_tokens is {max_new_tokens}; specify at least 1")
        if not ids:
            raise PressoirError("the prompt is empty; specify at least one token")
        longest, name = self.decoder.context, "the context of the model"
        if max_length is not None and max_length < longest:
            longest, name = max_length, "max_length"
        if len(ids) >= longest:
            raise PressoirError(
                f"the prompt has {len(ids)} tokens, but {name} is {longest} including generated tokens; "
                f"shorten the prompt to {longest - 1} tokens at most"
            )
        return min(max_new_tokens, longest - len(ids))

    @cached_property
    def _grammars(self) -> JsonGrammars:
        from pressoir.inference.generation.json_grammar import JsonGrammars

        return JsonGrammars(self.tokenizer, self.decoder.vocabulary, self.decoder.eos_ids)

    def _tokens(
        self,
        ids: Sequence[int],
        count: int,
        sampler: Sampler,
        penalties: Penalties,
        top_scores: int | None = None,
        grammar: JsonGrammar | None = None,
    ) -> Iterator[TokenScore]:
        """Tokens after `ids`, the one that ends the text included; scores where `top_scores` is a number."""
        generated: list[int] = []
        logits, cache = self.decoder.forward(np.asarray([ids], dtype=np.int64), last_only=True)
        while True:
            raw = logits[0, -1]
            changed = penalties(raw, ids, generated)
            token = sampler(changed if grammar is None else grammar.mask(changed))
            generated.append(token)
            if grammar is not None:
                grammar.accept(token)
            yield TokenScore(token) if top_scores is None else token_score(raw, token, top_scores)
            if token in self.decoder.eos_ids or len(generated) == count or (grammar and grammar.ended):
                return
            last = np.asarray([[token]], dtype=np.int64)
            logits, cache = self.decoder.forward(last, cache, last_only=True)

    def described(self, scores: Sequence[TokenScore]) -> list[ScoredToken]:
        """The tokens of a text with what each adds to it."""
        stream, result, length = TextStream(self.tokenizer), [], 0
        for score in scores:
            text = stream.push(score.id)
            result.append(scored_token(self.tokenizer, score, text, length))
            length += len(text)
        complete_last(result, stream.rest())
        return result


class Continuation(Iterator[str]):
    """Pieces of generated text; `completion_tokens` and `finish_reason` are final after the last piece.

    After each piece, and once more at the end, `take_scored` gives the tokens that it has let go.
    """

    def __init__(
        self,
        tokenizer: LanguageModelTokenizer,
        prompt: Sequence[int],
        tokens: Iterator[TokenScore],
        limit: int,
        stop: Sequence[str],
        eos_ids: frozenset[int],
        grammar: JsonGrammar | None = None,
    ) -> None:
        self.prompt_tokens, self.completion_tokens, self._limit = len(prompt), 0, limit
        self._tokenizer, self._eos_ids, self._grammar = tokenizer, eos_ids, grammar
        self._scored: list[ScoredToken] = []
        self._decoded_length = self._given_length = 0  # characters
        self._finished = False
        pieces = self._decoded(tokens, TextStream(tokenizer, prompt))
        self._pieces = _until(pieces, stop) if stop else pieces

    def __next__(self) -> str:
        try:
            piece = next(self._pieces)
        except StopIteration:
            self._finished = True
            raise
        self._given_length += len(piece)
        return piece

    def take_scored(self) -> list[ScoredToken]:
        """The tokens, not yet taken, whose text was given; none of a stop text, and none without scores."""
        whole = self._finished and self._given_length == self._decoded_length  # no stop text ended it
        count = sum(whole or token["start"] < self._given_length for token in self._scored)
        taken, self._scored = self._scored[:count], self._scored[count:]
        return taken

    @property
    def finish_reason(self) -> str:
        """`length`: the limit of tokens was reached; `stop`: the model, a stop text or a schema ended it."""
        if self._grammar is not None and self._grammar.ended:
            return "stop"
        return "length" if self.completion_tokens >= self._limit else "stop"

    def _decoded(self, tokens: Iterator[TokenScore], stream: TextStream) -> Iterator[str]:
        for token in tokens:
            ends = token.id in self._eos_ids
            self.completion_tokens += not ends
            piece = "" if ends else stream.push(token.id)
            if token.log_probability is not None:
                self._scored.append(scored_token(self._tokenizer, token, piece, self._decoded_length))
            self._decoded_length += len(piece)
            if piece:
                yield piece
        if piece := stream.rest():
            complete_last(self._scored, piece)
            self._decoded_length += len(piece)
            yield piece


def negative_log_likelihood(logits: NDArray[np.float32], expected: NDArray[np.int64]) -> NDArray[np.float64]:
    """−log p (batch, seq), in nats, of the tokens `expected` (batch, seq) under `logits` (…, vocabulary)."""
    highest = logits.max(axis=-1)
    shifted = logits - highest[..., None]
    right = np.take_along_axis(shifted, expected[..., None], axis=-1)[..., 0]
    np.exp(shifted, out=shifted)
    result: NDArray[np.float64] = np.log(shifted.sum(axis=-1, dtype=np.float64)) - right
    return result


def _until(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """`pieces` up to the first of `stops` that is complete; not even its beginning is yielded.

    Each character is read once for each stop (Knuth, Morris and Pratt 1977, SIAM J. Comput. 6:323).
    """
    tables = [_borders(stop) for stop in stops]
    matched = [0] * len(stops)  # characters at the end of the text that begin each stop
    held = ""
    for piece in pieces:
        fresh, held = len(held), held + piece
        for index in range(fresh, len(held)):
            for number, (stop, table) in enumerate(zip(stops, tables, strict=True)):
                count = matched[number]
                while count and stop[count] != held[index]:
                    count = table[count - 1]
                matched[number] = count + (stop[count] == held[index])
            ended = [len(stop) for stop, count in zip(stops, matched, strict=True) if count == len(stop)]
            if ended:
                if kept := held[: index + 1 - max(ended)]:
                    yield kept
                return
        if len(held) > (keep := max(matched)):
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def _borders(text: str) -> list[int]:
    """Of each beginning of `text`: length of the longest shorter beginning that it ends with."""
    result, count = [0], 0
    for character in text[1:]:
        while count and text[count] != character:
            count = result[count - 1]
        count += text[count] == character
        result.append(count)
    return result
