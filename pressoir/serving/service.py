"""The service: what tiers offer, over the models that they share.

::

    async with Service(config) as service:
        await service.translate("Hello", "en", "fr", tier="basic")
        async with service.generate("Once upon", tier="story") as pieces:
            async for piece in pieces: ...

A request names a tier, or leaves that out where only one has its task. The tier is looked up once
(`ModelHost.lookup`); the request's settings are merged into the tier's (`pressoir.serving.settings`); the
model is leased, loaded first if necessary, and the request waits for its turn. The timeout (`timeout_s`)
covers all of that. Where a worker is ended because a step of a request outlasts its time, the others are
begun again on the reloaded model. There is no HTTP here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pressoir.data.texts import Text, Words
from pressoir.inference.token_classification import Tagged
from pressoir.serving.answers import Answers, Embeddings
from pressoir.serving.checks import (
    as_list,
    check_pairs,
    check_prompt,
    check_sentences,
    check_texts,
    check_waveform,
    paired,
)
from pressoir.serving.config import DEFAULT_NEW_TOKENS, ServingConfig, TierSettings
from pressoir.serving.errors import RequestError, ServingError, TimedOutError, WorkerDiedError
from pressoir.serving.generation import Generation, GenerationOptions, Scored
from pressoir.serving.pool.model_handle import ModelHandle
from pressoir.serving.pool.model_host import ModelHost
from pressoir.serving.pool.observer import Observer, SilentObserver
from pressoir.serving.pool.sharing import Tier
from pressoir.serving.settings import merge_settings
from pressoir.serving.transcription import Transcription, TranscriptionOptions
from pressoir.store.store import Store

MOST_EMBEDDED = 2048
"""Most texts in one request for embeddings, as in OpenAI's API."""
Result = TypeVar("Result")
Work = Callable[[TierSettings, ModelHandle, float], Awaitable[Result]]
"""Answers a request with its settings and its model; the last argument is when its time is over."""


@dataclass(frozen=True)
class Streamed:
    """A request whose answer comes in pieces."""

    operation: str
    tier: Tier
    settings: TierSettings
    arguments: dict[str, Any]
    array: NDArray[np.float32] | None = None
    check: Callable[[ModelHandle], None] = lambda model: None
    """May refuse it once its model is known, before it waits for its turn."""


class Service:
    """Tiers and their models, on one event loop. Make it, `start` it, `close` it (or `async with`)."""

    def __init__(
        self, config: ServingConfig, store: Store | None = None, observer: Observer | None = None
    ) -> None:
        """Raises RecipeError where the configuration is not resolved."""
        self.observer = observer or SilentObserver()
        self.models = ModelHost(config, store or Store(), self.observer)
        """The models behind the tiers: loading, unloading, reloading, statistics."""

    async def start(self) -> None:
        """Load what is pinned and what the budget has room for; log who shares what.

        Raises:
            LoadError: a model cannot be loaded; what was loaded is unloaded again.
        """
        try:
            await self.models.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Take no more requests, let those in flight end (`drain_timeout_s`), and end all models."""
        await self.models.close()

    async def __aenter__(self) -> Service:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @overload
    async def classify(
        self,
        text: str,
        *,
        text_pair: str | None = None,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, float]: ...

    @overload
    async def classify(
        self,
        text: list[str],
        *,
        text_pair: list[str] | None = None,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
    ) -> Answers[dict[str, float]]: ...

    async def classify(
        self,
        text: str | list[str],
        *,
        text_pair: str | list[str] | None = None,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, float] | Answers[dict[str, float]]:
        """The probability of each label, of a text or of each of several (`truncated` says which were cut);
        of a regression model its score by its name.

        A model that was trained on pairs needs the second text of each as `text_pair`.

        Raises:
            ServingError: see `pressoir.serving.errors`; so do the other methods.
        """

        async def work(settings: TierSettings, model: ModelHandle, until: float) -> Answers[dict[str, float]]:
            labels = model.info["labels"]
            check_pairs(texts, model.info.get("pairs", False), tier.name if isinstance(tier, Tier) else tier)
            rows = await model.answer("classify", texts, until=until, max_length=settings.max_length)
            named = [dict(zip(labels, row, strict=True)) for row, _ in rows]
            return Answers(named, (cut for _, cut in rows))

        texts = paired(text, text_pair)
        overrides = {"max_length": max_length, "timeout_s": timeout_s}
        found = await self._answer("classify", tier, overrides, work, texts)
        return found[0] if isinstance(text, str) else found

    async def tag(
        self,
        sentences: Sequence[Sequence[str]],
        *,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Tagged]:
        """The tags of the words of each sentence, and the spans that they mark.

        A sentence of more tokens than the model takes, or than `max_length`, goes through it in several
        parts.
        """
        texts = [list(words) for words in sentences]
        check_sentences(texts)

        async def work(settings: TierSettings, model: ModelHandle, until: float) -> list[Tagged]:
            rows = await model.answer("tag", texts, until=until, max_length=settings.max_length)
            return [Tagged(Words(own), *row) for own, row in zip(texts, rows, strict=True)]

        overrides = {"max_length": max_length, "timeout_s": timeout_s}
        return await self._answer("tag", tier, overrides, work, texts)

    async def embed(
        self,
        texts: Sequence[str],
        *,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings (texts, hidden), of lengths that are not normalised."""
        return (await self.embed_many(texts, tier=tier, max_length=max_length, timeout_s=timeout_s)).vectors

    async def embed_many(
        self,
        texts: Sequence[str] | Sequence[list[int]],
        *,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
        most: int | None = None,
    ) -> Embeddings:
        """The same, with what the model was given of the texts; at most `most` texts are allowed.

        They are computed in batches of the tier's `max_batch`, one after another, so that other requests have
        their turn. A text may be its token ids, as the model's tokenizer makes them, special ones included.
        """
        operation = "embed" if all(isinstance(text, str) for text in texts) else "embed_tokens"

        async def work(settings: TierSettings, model: ModelHandle, until: float) -> Embeddings:
            rows: list[tuple[NDArray[np.float32], int, bool]] = []
            for start in range(0, len(texts), settings.max_batch):
                batch = texts[start : start + settings.max_batch]
                rows += await model.answer(operation, batch, until=until, max_length=settings.max_length)
            vectors, tokens, truncated = zip(*rows, strict=True)
            return Embeddings(np.stack(vectors), sum(tokens), list(truncated))

        overrides = {"max_length": max_length, "timeout_s": timeout_s}
        return await self._answer("embed", tier, overrides, work, texts, most)

    @overload
    async def translate(
        self,
        text: str,
        source_language: str | None = None,
        target_language: str | None = None,
        tier: str | Tier | None = None,
        *,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        timeout_s: float | None = None,
    ) -> str: ...

    @overload
    async def translate(
        self,
        text: list[str],
        source_language: str | None = None,
        target_language: str | None = None,
        tier: str | Tier | None = None,
        *,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        timeout_s: float | None = None,
    ) -> Answers[str]: ...

    async def translate(
        self,
        text: str | list[str],
        source_language: str | None = None,
        target_language: str | None = None,
        tier: str | Tier | None = None,
        *,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        timeout_s: float | None = None,
    ) -> str | Answers[str]:
        """The translation of a text, or of each of several (`truncated` says which were cut).

        A language is a common code (`fr`) or the model's own (`fra_Latn`); without one the tier's is taken,
        then the model's. One that is unknown is refused with those that are known.
        """
        overrides = {
            "source_language": source_language,
            "target_language": target_language,
            "max_length": max_length,
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "timeout_s": timeout_s,
        }

        async def work(settings: TierSettings, model: ModelHandle, until: float) -> Answers[str]:
            rows = await model.answer(
                "translate",
                as_list(text),
                until=until,
                source_language=settings.source_language,
                target_language=settings.target_language,
                max_length=settings.max_length,
                max_new_tokens=settings.max_new_tokens or settings.max_length,
                num_beams=settings.num_beams,
            )
            return Answers((text for text, _ in rows), (cut for _, cut in rows))

        found = await self._answer("translate", tier, overrides, work, text)
        return found[0] if isinstance(text, str) else found

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: Sequence[str] | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        options: GenerationOptions | None = None,
    ) -> Generation:
        """The continuation of a prompt (text or token ids), piece by piece; see `Generation`.

        Raises:
            ServingError: the tier is unknown or a setting is out of range, at once; the rest, from the
                iterator.
        """
        overrides = {
            "max_length": max_length,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "stop": [stop] if isinstance(stop, str) else stop,
            "seed": seed,
            "timeout_s": timeout_s,
        }
        found = self.models.lookup(tier, "generate")
        settings = merge_settings(found.config.settings, overrides, found.name)
        check_prompt(prompt, "the prompt")
        return Generation(self._generate(prompt, found, settings, options or GenerationOptions()))

    async def score(
        self,
        text: str | Sequence[int],
        *,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
        top_scores: int = 0,
    ) -> Scored:
        """How probable a causal LM finds each token of a text (or of token ids): perplexity is made of it."""

        async def work(settings: TierSettings, model: ModelHandle, until: float) -> Scored:
            check_prompt(text, "the text")
            limit = settings.max_length
            async with model.limiter.slot():
                answer = await model.client.call(
                    "score", until=until, prompt=text, max_length=limit, top_scores=top_scores
                )
            return Scored(**answer.body)

        return await self._answer("score", tier, {"max_length": max_length, "timeout_s": timeout_s}, work)

    async def transcribe(
        self,
        waveform: NDArray[np.float32],
        language: str | None = None,
        *,
        tier: str | Tier | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        timeout_s: float | None = None,
        options: TranscriptionOptions | None = None,
    ) -> str:
        """The transcript of mono float32 samples (samples,) in −1…1, at the model's rate (`sampling_rate`).

        `language` is a code such as `en`, for a multilingual Whisper alone, which detects it without. For its
        pieces and its times see `transcription`.
        """
        transcription = self.transcription(
            waveform,
            language,
            tier=tier,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            timeout_s=timeout_s,
            options=options,
        )
        return (await transcription.whole()).text

    def transcription(
        self,
        waveform: NDArray[np.float32],
        language: str | None = None,
        *,
        tier: str | Tier | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        timeout_s: float | None = None,
        options: TranscriptionOptions | None = None,
    ) -> Transcription:
        """The same, window by window, and with its times where `options` ask for them; see `Transcription`.

        Raises:
            ServingError: as `generate`.
        """
        overrides = {
            "source_language": language,
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "timeout_s": timeout_s,
        }
        check_waveform(waveform)
        found = self.models.lookup(tier, "transcribe")
        settings = merge_settings(found.config.settings, overrides, found.name)
        return Transcription(self._transcribe(waveform, found, settings, options or TranscriptionOptions()))

    async def info(self, tier: str | Tier) -> dict[str, Any]:
        """Description of the model of a tier: `labels`, `languages`, `context`, `sampling_rate`, …"""
        async with self.models.pool.lease(self.models.lookup(tier).spec) as model:
            return dict(model.info)

    async def _answer(
        self,
        operation: str,
        tier: str | Tier | None,
        overrides: dict[str, Any],
        work: Work[Result],
        text: str | Sequence[Text | list[int] | list[str]] | None = None,
        most: int | None = None,
    ) -> Result:
        """What `work` makes of a request within its time, with its settings and the model, leased.

        It is done again, once, where the model's worker was ended because of another request. The request
        has at most `most` texts, or else the tier's `max_batch`.
        """
        found = self.models.lookup(tier, operation)
        with self._observed(found.name, operation):
            settings = merge_settings(found.config.settings, overrides, found.name)
            if text is not None:
                texts = [text] if isinstance(text, str) else text
                check_texts(texts, most or settings.max_batch)
            until = asyncio.get_running_loop().time() + settings.timeout_s
            try:
                async with asyncio.timeout_at(until):
                    return await self._leased(found, settings, work, until)
            except TimeoutError as error:
                raise _timed_out(settings) from error

    async def _leased(
        self, tier: Tier, settings: TierSettings, work: Work[Result], until: float, again: bool = True
    ) -> Result:
        try:
            async with self.models.pool.lease(tier.spec) as model:
                return await work(settings, model, until)
        except WorkerDiedError as error:
            if not (error.stuck and again):
                raise
        return await self._leased(tier, settings, work, until, again=False)

    def _generate(
        self, prompt: str | Sequence[int], tier: Tier, settings: TierSettings, options: GenerationOptions
    ) -> AsyncGenerator[dict[str, Any], None]:
        arguments = {
            "prompt": prompt,
            "max_length": settings.max_length,
            "max_new_tokens": settings.max_new_tokens or DEFAULT_NEW_TOKENS,
            **settings.model_dump(include={"temperature", "top_k", "top_p", "stop", "seed"}),
            **options.model_dump(exclude_defaults=True),
        }
        return self._stream(Streamed("generate", tier, settings, arguments))

    async def _transcribe(
        self, waveform: NDArray[np.float32], tier: Tier, settings: TierSettings, options: TranscriptionOptions
    ) -> AsyncGenerator[dict[str, Any], None]:
        seconds = 0.0

        def check(model: ModelHandle) -> None:
            nonlocal seconds
            seconds = len(waveform) / model.info["sampling_rate"]
            if seconds > settings.max_audio_s:
                raise RequestError(
                    f"the audio is {seconds:.1f} s long, and {settings.max_audio_s:g} s are allowed; "
                    "shorten it"
                )

        arguments = {
            "language": settings.source_language,
            **settings.model_dump(include={"max_new_tokens", "num_beams"}),
            **options.model_dump(exclude_defaults=True),
        }
        bodies = self._stream(Streamed("transcribe", tier, settings, arguments, waveform, check))
        async with aclosing(bodies):
            async for body in bodies:
                yield {**body, "duration_s": seconds} if "language" in body else body

    async def _stream(self, request: Streamed) -> AsyncGenerator[dict[str, Any], None]:
        """The bodies of the pieces and of the result of a request.

        It is begun again, once, where the model's worker was ended because of another request before
        anything was given.
        """
        until, given = asyncio.get_running_loop().time() + request.settings.timeout_s, False
        with self._observed(request.tier.name, request.operation):
            for last in (False, True):
                try:
                    async with aclosing(self._attempt(request, until)) as bodies:
                        async for body in bodies:
                            given = True
                            yield body
                    return
                except WorkerDiedError as error:
                    if given or last or not error.stuck:
                        raise

    async def _attempt(self, request: Streamed, until: float) -> AsyncGenerator[dict[str, Any], None]:
        async def in_time(step: Awaitable[Result]) -> Result:
            # Around each step alone: a time limit belongs to one task, and those who iterate may change.
            try:
                async with asyncio.timeout_at(until):
                    return await step
            except TimeoutError as error:
                raise _timed_out(request.settings) from error

        async with AsyncExitStack() as stack:
            lease = self.models.pool.lease(self.models.lookup(request.tier, request.operation).spec)
            model = await in_time(stack.enter_async_context(lease))
            request.check(model)
            await in_time(stack.enter_async_context(model.limiter.slot()))
            messages = model.client.stream(request.operation, request.array, until=until, **request.arguments)
            await stack.enter_async_context(aclosing(messages))
            while (message := await in_time(anext(messages))).kind == "piece":
                yield message.body
            yield message.body

    @contextmanager
    def _observed(self, tier: str, operation: str) -> Iterator[None]:
        """Report to the observer how a request ends."""
        start, outcome = time.monotonic(), "cancelled"
        try:
            yield
            outcome = "ok"
        except ServingError as error:
            outcome = type(error).__name__
            raise
        finally:
            self.observer.request(tier, operation, outcome, time.monotonic() - start)


TranslationService = Service
"""The service, where translation is all that is wanted of it."""


def _timed_out(settings: TierSettings) -> TimedOutError:
    return TimedOutError(f"no result within {settings.timeout_s:g} s; try again, or request less")
