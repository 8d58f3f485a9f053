"""The server's own endpoints: classify, translate, generate, and what the comparison page asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from itertools import combinations
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from pressoir.data.texts import words_of
from pressoir.formats.problems import MULTI_LABEL, PROBLEMS, REGRESSION, SINGLE_LABEL
from pressoir.inference.text_classification import decided
from pressoir.inference.token_classification import Tagged
from pressoir.serving.checks import as_list, paired
from pressoir.serving.errors import TimedOutError
from pressoir.serving.generation import Generation
from pressoir.serving.http.answers import (
    Classified,
    Compared,
    ComparisonStatistics,
    Done,
    Piece,
    TaggedSentences,
    Tiers,
    Translated,
    event_of,
    stream_of,
)
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.body_route import BodyRoute
from pressoir.serving.http.comparison import Comparisons
from pressoir.serving.http.refusals import ErrorAnswer, HttpError, JsonAnswer, may_answer
from pressoir.serving.http.request_model import (
    TIERS,
    Batch,
    Beams,
    Length,
    Many,
    NewTokens,
    Seconds,
    Seed,
    Stop,
    StrictRequestModel,
    Temperature,
    Text,
    Texts,
    TopK,
    TopP,
    tier_with,
)
from pressoir.serving.http.streams import Events, EventStream, event
from pressoir.serving.pool.sharing import Tier

MOST_COMPARED = 4
"""Most tiers in one comparison."""

_PAIR = (
    "The second text of each, for a tier whose model was trained on pairs of texts; other tiers refuse it."
)
_TIER = "Optional if only one tier supports the task."
_SPLIT = "One text or several texts; words are letters and digits in a row, and every other character."
_WORDS = "The words of each sentence."


class Classify(StrictRequestModel):
    """Texts to classify."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "The film was good."}]})

    text: Texts
    text_pair: Annotated[Texts, Field(description=_PAIR)] | None = None
    tier: Annotated[str, tier_with("classify")] | None = Field(None, description=_TIER)
    max_length: Length | None = None
    timeout_s: Seconds | None = None


class Tag(StrictRequestModel):
    """Sentences whose words are tagged: their words, or texts, which are split into words."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"words": [["The", "film", "was", "good", "."]]}],
            "oneOf": [{"required": ["text"]}, {"required": ["words"]}],
        }
    )

    text: Annotated[Texts, Field(description=_SPLIT)] = None  # type: ignore[assignment]
    words: Annotated[Batch[Annotated[Many[Text], Field(min_length=1)]], Field(description=_WORDS)] = None  # type: ignore[assignment]
    tier: Annotated[str, tier_with("tag")] | None = Field(None, description=_TIER)
    max_length: Length | None = None
    timeout_s: Seconds | None = None


class Translate(StrictRequestModel):
    """Texts to translate; languages are codes such as `en`, or in the model's own notation."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": ["The film was good.", "A book."]}]})

    text: Texts
    source_language: str | None = None
    target_language: str | None = None
    tier: Annotated[str, tier_with("translate")] | None = Field(None, description=_TIER)
    max_length: Length | None = None
    max_new_tokens: NewTokens | None = None
    num_beams: Beams | None = None
    timeout_s: Seconds | None = None


class Generate(StrictRequestModel):
    """A text generation request."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "The film was", "max_new_tokens": 2}]}
    )

    prompt: Text
    tier: Annotated[str, tier_with("generate")] | None = Field(None, description=_TIER)
    max_length: Length | None = None
    max_new_tokens: NewTokens | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    timeout_s: Seconds | None = None


class Compare(StrictRequestModel):
    """Texts to classify by several tiers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["The film was good."]}]})

    texts: Batch[Text]
    text_pairs: Annotated[Batch[Text], Field(description=_PAIR)] | None = None
    tiers: Annotated[
        Many[Annotated[str, tier_with("classify")]],
        Field(min_length=2, max_length=MOST_COMPARED, json_schema_extra={"uniqueItems": True}),
    ]


_COMPARED = {
    "name": "tiers",
    "in": "query",
    "required": True,
    "description": "Two or more tiers, separated by commas.",
    "style": "form",
    "explode": False,
    "schema": {
        "type": "array",
        "items": {"type": "string", TIERS: "classify"},
        "minItems": 2,
        "maxItems": MOST_COMPARED,
        "uniqueItems": True,
    },
}


def routes(backend: Backend) -> APIRouter:
    """The endpoints."""
    router = APIRouter(tags=["tasks"], route_class=BodyRoute)
    service, comparisons = backend.service, Comparisons()

    @router.post("/classify", response_model=Classified, responses=may_answer(404, 504))
    async def classify(body: Classify, request: Request) -> Response:
        """Classify texts, or pairs of texts: the probability of each label; with multi-label models also the
        labels over their thresholds, with regression models the score."""
        backend.check_lengths([*as_list(body.text), *as_list(body.text_pair or [])])
        paired(body.text, body.text_pair)
        texts, others = as_list(body.text), None if body.text_pair is None else as_list(body.text_pair)
        tier = backend.tier(request, body.tier, "classify")
        options = body.model_dump(include={"max_length", "timeout_s"})
        found = await service.classify(texts, text_pair=others, tier=tier, **options)
        info = await backend.info(tier)
        results = [_decided(row, cut, info) for row, cut in zip(found, found.truncated, strict=True)]
        return JsonAnswer({"tier": tier.name, "results": results})

    @router.post("/tag", response_model=TaggedSentences, responses=may_answer(404, 504))
    async def tag(body: Tag, request: Request) -> Response:
        """Tag the words of sentences, and give the spans that the tags mark, such as names."""
        if (body.text is None) == (body.words is None):
            raise HttpError(422, "invalid_request", "expected either text or words")
        texts = as_list(body.text) if body.words is None else [" ".join(words) for words in body.words]
        backend.check_lengths(texts)
        asked = [list(words_of(text)) for text in texts] if body.words is None else body.words
        tier = backend.tier(request, body.tier, "tag")
        options = body.model_dump(include={"max_length", "timeout_s"})
        found = await service.tag(asked, tier=tier, **options)
        return JsonAnswer({"tier": tier.name, "results": [_tagged(each) for each in found]})

    @router.post("/translate", response_model=Translated, responses=may_answer(404, 504))
    async def translate(body: Translate, request: Request) -> Response:
        """Translate texts."""
        texts = as_list(body.text)
        backend.check_lengths(texts)
        tier = backend.tier(request, body.tier, "translate")
        options = body.model_dump(exclude={"text", "tier"})
        found = await service.translate(texts, **options, tier=tier)
        return JsonAnswer({"tier": tier.name, "translations": found, "truncated": found.truncated})

    @router.post(
        "/generate/stream",
        response_class=Response,  # of the media type below
        responses={
            200: {"content": stream_of(event_of(Piece, Done), event_of(ErrorAnswer, name="error"))},
            **may_answer(404, 504),
        },
    )
    async def generate(body: Generate, request: Request) -> Response:
        """Generate text as a stream of `{"piece": …}`, ending with `{"done": true, "tokens", "seconds"}`.

        An error after the first piece is an event named `error`.
        """
        backend.check_lengths([body.prompt])
        tier = backend.tier(request, body.tier, "generate")
        options = body.model_dump(exclude={"prompt", "tier"})
        events = _pieces(service.generate(body.prompt, **options, tier=tier))
        return await EventStream.begin(events, lambda content: event(content, "error"))

    @router.get("/tiers", tags=["status"], response_model=Tiers)
    async def tiers() -> Response:
        """List the tiers."""
        tiers = backend.service.models.tiers
        found = [_described(tier, backend.model_info(tier)) for tier in tiers.values()]
        return JsonAnswer({"tiers": found, "default_pair": _default_pair(tiers.values())})

    @router.post("/compare", response_model=Compared, responses=may_answer(404, 504))
    async def compare(body: Compare, request: Request) -> Response:
        """Run several tiers on the same texts, one text and tier at a time, and compare them."""
        backend.check_lengths([*body.texts, *(body.text_pairs or ())])
        paired(body.texts, body.text_pairs)
        tiers = _compared(backend, body.tiers)
        most = min(tier.config.settings.max_batch for tier in tiers.values())
        if not 1 <= len(body.texts) <= most:
            raise HttpError(
                422, "invalid_request", f"the request has {len(body.texts)} texts; expected 1 to {most}"
            )
        await _check_one_label(backend, tiers.values())
        comparison = comparisons.of(_digests(tiers))
        order, results = comparison.order(body.tiers), []
        limit = max(tier.config.settings.timeout_s for tier in tiers.values())
        try:
            async with asyncio.timeout(limit):
                for index, text in enumerate(body.texts):
                    second = None if body.text_pairs is None else [body.text_pairs[index]]
                    answers = {name: await _timed(backend, text, second, tiers[name]) for name in order}
                    agree = comparison.add(
                        {name: (answer["label"], answer["latency_ms"]) for name, answer in answers.items()}
                    )
                    results.append(
                        {
                            "text_index": index,
                            "answers": [answers[name] for name in body.tiers],
                            "agree": agree,
                        }
                    )
        except TimeoutError as error:
            raise TimedOutError(f"no result within {limit:g} s; send fewer texts") from error
        statistics = comparison.statistics(body.tiers, _sizes(tiers))
        return JsonAnswer({"results": results, "order": order, "statistics": statistics})

    @router.get(
        "/compare/statistics",
        response_model=ComparisonStatistics,
        responses=may_answer(404, 422),
        openapi_extra={"parameters": [_COMPARED]},
    )
    async def statistics(
        tiers: Annotated[str, Query(include_in_schema=False)],
    ) -> Response:
        """Comparison of tiers over all texts since the server started."""
        compared = _compared(backend, [name.strip() for name in tiers.split(",")])
        comparison = comparisons.of(_digests(compared))
        return JsonAnswer(comparison.statistics(list(compared), _sizes(compared)))

    return router


def _decided(probabilities: dict[str, float], truncated: bool, info: dict[str, Any]) -> dict[str, Any]:
    problem = PROBLEMS[info.get("problem", SINGLE_LABEL.name)]
    found = decided(problem, probabilities, list(probabilities), info.get("thresholds"))
    if problem is REGRESSION:
        return {"score": found, "truncated": truncated}
    if problem is MULTI_LABEL:
        return {"labels": found, "probabilities": probabilities, "truncated": truncated}
    return {
        "label": found,
        "confidence": probabilities[found],
        "probabilities": probabilities,
        "truncated": truncated,
    }


def _tagged(found: Tagged) -> dict[str, Any]:
    entities = [entity._asdict() for entity in found.entities]
    return {"words": list(found.words), "tags": found.tags, "entities": entities}


async def _check_one_label(backend: Backend, tiers: Iterable[Tier]) -> None:
    """Raises HttpError where a tier's model does not decide one label per text."""
    for tier in tiers:
        info = await backend.info(tier)
        if (problem := info.get("problem", SINGLE_LABEL.name)) != SINGLE_LABEL.name:
            raise HttpError(
                422,
                "invalid_request",
                f"tier {tier.name!r} is a {problem} model; use /classify: one label per text is compared",
            )


async def _timed(backend: Backend, text: str, second: list[str] | None, tier: Tier) -> dict[str, Any]:
    start = time.perf_counter()
    found = await backend.service.classify([text], text_pair=second, tier=tier)
    latency_ms = 1000 * (time.perf_counter() - start)
    return {"tier": tier.name, **_decided(found[0], found.truncated[0], {}), "latency_ms": latency_ms}


async def _pieces(generation: Generation) -> Events:
    start = time.perf_counter()
    async with generation:
        async for piece in generation:
            yield event({"piece": piece})
        tokens = generation.usage.completion_tokens if generation.usage else 0
    yield event({"done": True, "tokens": tokens, "seconds": round(time.perf_counter() - start, 3)})


def _described(tier: Tier, info: dict[str, Any]) -> dict[str, Any]:
    return {
        "tier": tier.name,
        "task": tier.spec.task,
        "model": tier.config.model,
        "digest": tier.spec.digest,
        "runtime": tier.spec.runtime,
        "size_mb": _mb(tier),
        "labels": info.get("labels"),
        "pairs": info.get("pairs"),
        "problem": info.get("problem"),
        "settings": tier.config.settings.model_dump(mode="json"),
    }


def _default_pair(tiers: Iterable[Tier]) -> list[str] | None:
    """The first two tiers of one task whose models differ."""
    for first, second in combinations(tiers, 2):
        if first.spec.task == second.spec.task and first.spec.digest != second.spec.digest:
            return [first.name, second.name]
    return None


def _compared(backend: Backend, names: list[str]) -> dict[str, Tier]:
    """The tiers of a comparison, which must be of a kind; raises UnknownTierError or HttpError."""
    if not 2 <= len(set(names)) == len(names) <= MOST_COMPARED:
        raise HttpError(
            422,
            "invalid_request",
            f"expected 2 to {MOST_COMPARED} different tiers; the request has {len(names)}",
        )
    return {name: backend.service.models.lookup(name, "classify") for name in names}


def _digests(tiers: dict[str, Tier]) -> dict[str, str]:
    return {name: tier.spec.digest for name, tier in tiers.items()}


def _sizes(tiers: dict[str, Tier]) -> dict[str, float]:
    return {name: _mb(tier) for name, tier in tiers.items()}


def _mb(tier: Tier) -> float:
    return round(tier.spec.size_bytes / 1e6, 3)
