"""The server's own endpoints: classify, translate, generate, and what the comparison page asks for."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from pressoir.serving.config import TierConfig
from pressoir.serving.errors import TimedOutError
from pressoir.serving.generation import Generation
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.comparison import Comparisons
from pressoir.serving.http.refusals import HttpError, JsonAnswer
from pressoir.serving.http.streams import Events, EventStream, event

MOST_COMPARED = 4
"""Most tiers in one comparison."""

Tier = Annotated[str | None, Field(description="Optional if only one tier supports the task.")]
Texts = Annotated[str | list[str], Field(description="One text or several texts.")]


class _Asked(BaseModel):
    """A request; unknown fields are errors, and null means that the field is omitted."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Classify(_Asked):
    """Texts to classify."""

    text: Texts
    tier: Tier = None
    max_length: int | None = None
    timeout_s: float | None = None


class Translate(_Asked):
    """Texts to translate; languages are codes such as `en`, or in the model's own notation."""

    text: Texts
    source_language: str | None = None
    target_language: str | None = None
    tier: Tier = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    num_beams: int | None = None
    timeout_s: float | None = None


class Generate(_Asked):
    """A text generation request."""

    prompt: str
    tier: Tier = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop: list[str] | None = None
    seed: int | None = None
    timeout_s: float | None = None


class Compare(_Asked):
    """Texts to classify by several tiers."""

    texts: list[str]
    tiers: Annotated[list[str], Field(min_length=2, max_length=MOST_COMPARED)]


def routes(backend: Backend) -> APIRouter:
    """The endpoints."""
    router, service, comparisons = APIRouter(tags=["tasks"]), backend.service, Comparisons()

    @router.post("/classify")
    async def classify(asked: Classify, request: Request) -> Response:
        """Classify texts: the probability of each label."""
        texts = [asked.text] if isinstance(asked.text, str) else asked.text
        backend.check_lengths(texts)
        tier = backend.tier(request, asked.tier, "text-classification")
        found = await service.classify(
            texts, tier=tier, max_length=asked.max_length, timeout_s=asked.timeout_s
        )
        return JsonAnswer({"tier": tier, "results": [_decided(row) for row in found]})

    @router.post("/translate")
    async def translate(asked: Translate, request: Request) -> Response:
        """Translate texts."""
        texts = [asked.text] if isinstance(asked.text, str) else asked.text
        backend.check_lengths(texts)
        tier = backend.tier(request, asked.tier, "translation")
        options = asked.model_dump(exclude={"text", "tier"})
        return JsonAnswer(
            {"tier": tier, "translations": await service.translate(texts, **options, tier=tier)}
        )

    @router.post("/generate/stream")
    async def generate(asked: Generate, request: Request) -> Response:
        """Generate text as a stream of `{"piece": …}`, ending with `{"done": true, "tokens", "seconds"}`.

        An error after the first piece is an event named `error`.
        """
        backend.check_lengths([asked.prompt])
        tier = backend.tier(request, asked.tier, "causal-lm")
        options = asked.model_dump(exclude={"prompt", "tier"})
        events = _pieces(service.generate(asked.prompt, **options, tier=tier))
        return await EventStream.begin(events, lambda content: event(content, "error"))

    @router.get("/tiers", tags=["status"])
    async def tiers() -> Response:
        """List the tiers."""
        config = backend.config
        return JsonAnswer(
            {
                "tiers": [_described(name, tier, backend.told(name)) for name, tier in config.tiers.items()],
                "default_pair": _default_pair(config.tiers),
            }
        )

    @router.post("/compare")
    async def compare(asked: Compare, request: Request) -> Response:
        """Run several tiers on the same texts, one text and tier at a time, and compare them."""
        backend.check_lengths(asked.texts)
        configs = _compared(backend, asked.tiers)
        most = min(tier.settings.max_batch for tier in configs.values())
        if not 1 <= len(asked.texts) <= most:
            raise HttpError(
                422, "invalid_request", f"the request has {len(asked.texts)} texts; expected 1 to {most}"
            )
        comparison = comparisons.of(_digests(configs))
        order, results = comparison.order(asked.tiers), []
        limit = max(tier.settings.timeout_s for tier in configs.values())
        try:
            async with asyncio.timeout(limit):
                for index, text in enumerate(asked.texts):
                    answers = {tier: await _timed(backend, text, tier) for tier in order}
                    agree = comparison.add(
                        {tier: (one["label"], one["latency_ms"]) for tier, one in answers.items()}
                    )
                    results.append(
                        {
                            "text_index": index,
                            "answers": [answers[tier] for tier in asked.tiers],
                            "agree": agree,
                        }
                    )
        except TimeoutError as error:
            raise TimedOutError(f"no result within {limit:g} s; send fewer texts") from error
        statistics = comparison.statistics(asked.tiers, _sizes(configs))
        return JsonAnswer({"results": results, "order": order, "statistics": statistics})

    @router.get("/compare/statistics")
    async def statistics(
        tiers: Annotated[str, Query(description="Two or more tiers, separated by commas.")],
    ) -> Response:
        """Comparison of tiers over all texts since the server started."""
        configs = _compared(backend, [name.strip() for name in tiers.split(",")])
        comparison = comparisons.of(_digests(configs))
        return JsonAnswer(comparison.statistics(list(configs), _sizes(configs)))

    return router


def _decided(probabilities: dict[str, float]) -> dict[str, Any]:
    label = max(probabilities, key=lambda name: probabilities[name])
    return {"label": label, "confidence": probabilities[label], "probabilities": probabilities}


async def _timed(backend: Backend, text: str, tier: str) -> dict[str, Any]:
    start = time.perf_counter()
    found = await backend.service.classify(text, tier=tier)
    latency_ms = 1000 * (time.perf_counter() - start)
    return {"tier": tier, **_decided(found), "latency_ms": latency_ms}


async def _pieces(generation: Generation) -> Events:
    start = time.perf_counter()
    async with generation:
        async for piece in generation:
            yield event({"piece": piece})
        tokens = generation.usage.completion_tokens if generation.usage else 0
    yield event({"done": True, "tokens": tokens, "seconds": round(time.perf_counter() - start, 3)})


def _described(name: str, tier: TierConfig, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "tier": name,
        "task": tier.task,
        "model": tier.model,
        "digest": tier.digest,
        "runtime": tier.runtime,
        "size_mb": _mb(tier),
        "labels": told.get("labels"),
        "settings": tier.settings.model_dump(mode="json"),
    }


def _default_pair(tiers: dict[str, TierConfig]) -> list[str] | None:
    """The first two tiers that do the same with different models."""
    for name, one in tiers.items():
        for other, two in tiers.items():
            if other != name and one.task == two.task and one.digest != two.digest:
                return [name, other]
    return None


def _compared(backend: Backend, names: list[str]) -> dict[str, TierConfig]:
    """The tiers of a comparison, which must be of a kind; raises UnknownTierError or HttpError."""
    if not 2 <= len(set(names)) == len(names) <= MOST_COMPARED:
        raise HttpError(
            422,
            "invalid_request",
            f"expected 2 to {MOST_COMPARED} different tiers; the request has {len(names)}",
        )
    return {
        name: backend.config.tiers[backend.service.models.tier(name, "text-classification")] for name in names
    }


def _digests(configs: dict[str, TierConfig]) -> dict[str, str]:
    return {name: tier.digest or "" for name, tier in configs.items()}


def _sizes(configs: dict[str, TierConfig]) -> dict[str, float]:
    return {name: _mb(tier) for name, tier in configs.items()}


def _mb(tier: TierConfig) -> float:
    return round((tier.size_bytes or 0) / 1e6, 3)
