"""Text generation and perplexity over any decoder: text in, pieces of text or a score out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pressoir.data import running_text
from pressoir.errors import PressoirError
from pressoir.formats.folder import Runtime
from pressoir.inference.arguments import opened
from pressoir.inference.engines.decoder import open_decoder
from pressoir.inference.engines.decoder_protocol import Decoder
from pressoir.inference.generation.sampling import Sampler
from pressoir.inference.tokenizers.tokenizers import LanguageModelTokenizer, TextStream

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
        prompt: str,
        *,
        max_new_tokens: int = 64,
        max_length: int | None = None,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Continuation:
        """Continue `prompt`: pieces of text as they come, none of which ends within a character.

        Ends at a token that ends a text, at a text of `stop` (which is not given, nor is what follows it),
        after `max_new_tokens`, or when prompt and continuation together reach `max_length` or fill the
        model's context. Greedy, unless `temperature` is above 0: see `Sampler`.

        Raises:
            PressoirError: the prompt is empty or leaves no room in the context, or an option is out of range.
        """
        stop = [stop] if isinstance(stop, str) else list(stop)
        if "" in stop:
            raise PressoirError("a stop sequence is empty; specify at least one character")
        ids = self.tokenizer.encode(prompt)
        limit = self._limit(ids, max_new_tokens, max_length)
        tokens = self.generate_ids(ids, limit, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return Continuation(self.tokenizer, ids, tokens, limit, stop)

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
        return self._tokens(ids, self._limit(ids, max_new_tokens), sampler)

    def perplexity(
        self,
        text: str,
        window: int = 128,
        max_windows: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Perplexity:
        """Perplexity on `text`, cut into windows of `window` tokens that do not overlap.

        Each window is scored from its second token on, by what precedes within the window; the rest of the
        text, shorter than a window, is left out. `progress` is told the windows done, and their number.

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

    def log_probabilities(self, ids: Sequence[int]) -> Iterator[NDArray[np.float64]]:
        """Of every token of `ids` but the first, given all before it, nats: part by part, each (tokens,).

        Raises:
            PressoirError: there are no ids, or more than the model's context.
        """
        if not 1 <= len(ids) <= self.decoder.context:
            raise PressoirError(
                f"the text has {len(ids)} tokens; the model supports 1 to {self.decoder.context}; shorten it"
            )
        cache = None
        for start in range(0, len(ids) - 1, SCORED):
            end = min(start + SCORED, len(ids) - 1)
            logits, cache = self.decoder.forward(np.asarray([ids[start:end]], dtype=np.int64), cache)
            expected = np.asarray([ids[start + 1 : end + 1]], dtype=np.int64)
            yield -negative_log_likelihood(logits, expected)[0]

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

    def _tokens(self, ids: Sequence[int], count: int, sampler: Sampler) -> Iterator[int]:
        logits, cache = self.decoder.forward(np.asarray([ids], dtype=np.int64), last_only=True)
        for left in range(count, 0, -1):
            token = sampler(logits[0, -1])
            if token in self.decoder.eos_ids:
                return
            yield token
            if left > 1:
                last = np.asarray([[token]], dtype=np.int64)
                logits, cache = self.decoder.forward(last, cache, last_only=True)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; empty where a token is part of a character, or has no text."""
        stream = TextStream(self.tokenizer)
        return [stream.push(id) for id in ids]


class Continuation(Iterator[str]):
    """Pieces of generated text; `completion_tokens` and `finish_reason` are final after the last piece."""

    def __init__(
        self,
        tokenizer: LanguageModelTokenizer,
        prompt: Sequence[int],
        tokens: Iterator[int],
        limit: int,
        stop: Sequence[str],
    ) -> None:
        self.prompt_tokens, self.completion_tokens, self._limit = len(prompt), 0, limit
        pieces = self._decoded(tokens, TextStream(tokenizer, prompt))
        self._pieces = _until(pieces, stop) if stop else pieces

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def finish_reason(self) -> str:
        """`length`: the limit of tokens was reached; `stop`: the model or a stop sequence ended it."""
        return "length" if self.completion_tokens >= self._limit else "stop"

    def _decoded(self, tokens: Iterator[int], stream: TextStream) -> Iterator[str]:
        for token in tokens:
            self.completion_tokens += 1
            if piece := stream.push(token):
                yield piece
        if piece := stream.rest():
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
    """`pieces` up to the first of `stops`, of which not even a beginning is given away."""
    held = ""
    for piece in pieces:
        held += piece
        if found := [place for stop in stops if (place := held.find(stop)) >= 0]:
            if min(found):
                yield held[: min(found)]
            return
        keep = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held
