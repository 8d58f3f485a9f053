"""All endpoints below /v1, and the models that there are."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pressoir.serving.http.backend import Backend
from pressoir.serving.http.body_route import BodyRoute
from pressoir.serving.http.openai import audio, completions, embeddings
from pressoir.serving.http.openai.answers import ModelDescription, Models
from pressoir.serving.http.refusals import JsonAnswer, may_answer
from pressoir.serving.http.request_model import TierPath


def routes(backend: Backend) -> APIRouter:
    """The endpoints, all on one router: of a router within another, the log would have half of the path."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=BodyRoute)
    started = int(time.time())

    def described(tier: str) -> dict[str, Any]:
        return {"id": tier, "object": "model", "created": started, "owned_by": "pressoir"}

    @router.get("/models", response_model=Models)
    async def models() -> Response:
        """List the tiers."""
        return JsonAnswer({"object": "list", "data": [described(tier) for tier in backend.config.tiers]})

    @router.get("/models/{tier}", response_model=ModelDescription, responses=may_answer(404))
    async def model(tier: TierPath, request: Request) -> Response:
        """Describe a tier."""
        backend.tier(request, tier)
        return JsonAnswer(described(tier))

    for module in (completions, embeddings, audio):
        module.add_routes(router, backend)
    return router
