"""The service: what tiers offer, over the models that they share.

::

    async with Service(config) as service:
        await service.translate("Hello", "en", "fr", tier="basic")
        async with service.generate("Once upon", tier="story") as pieces:
            async for piece in pieces: ...

A request names a tier, or leaves that out where only one has its task. The tier is looked up once
(`ModelHost.lookup`); the request's settings are merged into the tier's (`pressoir.serving.settings`); the
model is leased, loaded first if necessary, and the request waits for its turn. The timeout (`timeout_s`)
covers all of that. There is no HTTP here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pressoir.serving.checks import as_list, check_text, check_texts, check_waveform
from pressoir.serving.config import DEFAULT_NEW_TOKENS, ServingConfig, TierSettings
from pressoir.serving.errors import RequestError, ServingError, TimedOutError
from pressoir.serving.generation import Generation, Scored
from pressoir.serving.pool.model_handle import ModelHandle
from pressoir.serving.pool.model_host import ModelHost
from pressoir.serving.pool.observer import Observer, SilentObserver
from pressoir.serving.pool.sharing import Tier
from pressoir.serving.settings import merge_settings
from pressoir.store.store import Store

Result = TypeVar("Result")


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
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, float]: ...

    @overload
    async def classify(
        self,
        text: list[str],
        *,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
    ) -> list[dict[str, float]]: ...

    async def classify(
        self,
        text: str | list[str],
        *,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, float] | list[dict[str, float]]:
        """The probability of each label, of a text or of each of several.

        Raises:
            ServingError: see `pressoir.serving.errors`; so do the other methods.
        """
        overrides = {"max_length": max_length, "timeout_s": timeout_s}
        async with self._request("classify", tier, overrides, text) as (settings, model):
            rows = await model.answer("classify", as_list(text), max_length=settings.max_length)
            found = [dict(zip(model.info["labels"], row, strict=True)) for row in rows]
        return found[0] if isinstance(text, str) else found

    async def embed(
        self,
        texts: Sequence[str],
        *,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings (texts, hidden), of lengths that are not normalised."""
        overrides = {"max_length": max_length, "timeout_s": timeout_s}
        async with self._request("embed", tier, overrides, texts) as (settings, model):
            rows = await model.answer("embed", as_list(texts), max_length=settings.max_length)
        return np.stack(rows)

    @overload
    async def translate(
        self,
        text: str,
        source_language: str | None = None,
        target_language: str | None = None,
        *,
        tier: str | Tier | None = None,
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
        *,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        timeout_s: float | None = None,
    ) -> list[str]: ...

    async def translate(
        self,
        text: str | list[str],
        source_language: str | None = None,
        target_language: str | None = None,
        *,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        timeout_s: float | None = None,
    ) -> str | list[str]:
        """The translation of a text, or of each of several.

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
        async with self._request("translate", tier, overrides, text) as (settings, model):
            found = await model.answer(
                "translate",
                as_list(text),
                source_language=settings.source_language,
                target_language=settings.target_language,
                max_length=settings.max_length,
                max_new_tokens=settings.max_new_tokens or settings.max_length,
                num_beams=settings.num_beams,
            )
        return str(found[0]) if isinstance(text, str) else list(found)

    def generate(
        self,
        prompt: str,
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
    ) -> Generation:
        """The continuation of a prompt, piece by piece; see `Generation`.

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
        check_text(prompt, "the prompt")
        return Generation(self._generate(prompt, found, settings))

    async def score(
        self,
        text: str,
        *,
        tier: str | Tier | None = None,
        max_length: int | None = None,
        timeout_s: float | None = None,
    ) -> Scored:
        """How probable a causal LM finds each token of a text, of which perplexity is computed."""
        overrides = {"max_length": max_length, "timeout_s": timeout_s}
        request = self._request("score", tier, overrides, text)
        async with request as (settings, model), model.limiter.slot():
            answer = await model.client.call("score", prompt=text, max_length=settings.max_length)
        return Scored(**answer.body)

    async def transcribe(
        self,
        waveform: NDArray[np.float32],
        language: str | None = None,
        *,
        tier: str | Tier | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """The transcript of mono float32 samples (samples,) in −1…1, at the model's rate (`sampling_rate`).

        `language` is a code such as `en`, for a multilingual Whisper alone, which detects it without.
        """
        overrides = {
            "source_language": language,
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "timeout_s": timeout_s,
        }
        check_waveform(waveform)
        async with self._request("transcribe", tier, overrides) as (settings, model):
            seconds = len(waveform) / model.info["sampling_rate"]
            if seconds > settings.max_audio_s:
                raise RequestError(
                    f"the audio is {seconds:.1f} s long, and {settings.max_audio_s:g} s are allowed; "
                    "shorten it"
                )
            async with model.limiter.slot():
                answer = await model.client.call(
                    "transcribe",
                    waveform,
                    language=settings.source_language,
                    max_new_tokens=settings.max_new_tokens,
                    num_beams=settings.num_beams,
                )
        return str(answer.body["text"])

    async def info(self, tier: str | Tier) -> dict[str, Any]:
        """Description of the model of a tier: `labels`, `languages`, `context`, `sampling_rate`, …"""
        async with self.models.pool.lease(self.models.lookup(tier).spec) as model:
            return dict(model.info)

    @asynccontextmanager
    async def _request(
        self,
        operation: str,
        tier: str | Tier | None,
        overrides: dict[str, Any],
        text: str | Sequence[str] | None = None,
    ) -> AsyncIterator[tuple[TierSettings, ModelHandle]]:
        """A block that answers a request, within its time: its settings, and the model, leased."""
        found = self.models.lookup(tier, operation)
        with self._observed(found.name, operation):
            settings = merge_settings(found.config.settings, overrides, found.name)
            if text is not None:
                check_texts(as_list(text), settings.max_batch)
            try:
                async with asyncio.timeout(settings.timeout_s):
                    async with self.models.pool.lease(found.spec) as model:
                        yield settings, model
            except TimeoutError as error:
                raise _timed_out(settings) from error

    async def _generate(
        self, prompt: str, tier: Tier, settings: TierSettings
    ) -> AsyncGenerator[str | dict[str, Any], None]:
        deadline = asyncio.get_running_loop().time() + settings.timeout_s

        async def in_time(step: Awaitable[Result]) -> Result:
            # Around each step alone: a time limit belongs to one task, and those who iterate may change.
            try:
                async with asyncio.timeout_at(deadline):
                    return await step
            except TimeoutError as error:
                raise _timed_out(settings) from error

        with self._observed(tier.name, "generate"):
            async with AsyncExitStack() as stack:
                lease = self.models.pool.lease(self.models.lookup(tier, "generate").spec)
                model = await in_time(stack.enter_async_context(lease))
                await in_time(stack.enter_async_context(model.limiter.slot()))
                messages = model.client.stream(
                    "generate",
                    prompt=prompt,
                    max_length=settings.max_length,
                    max_new_tokens=settings.max_new_tokens or DEFAULT_NEW_TOKENS,
                    **settings.model_dump(include={"temperature", "top_k", "top_p", "stop", "seed"}),
                )
                await stack.enter_async_context(aclosing(messages))
                while (message := await in_time(anext(messages))).kind == "piece":
                    yield message.body["text"]
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
