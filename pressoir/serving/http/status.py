"""How the server is: health, metrics, the sharing statistics; and going over to another configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from pressoir.config import validate
from pressoir.serving.config import API_KEY_VARIABLE, ServingConfig
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.refusals import HttpError, JsonAnswer
from pressoir.serving.http.request_model import StrictRequestModel

Result = TypeVar("Result")


class Reload(StrictRequestModel):
    """A reload request."""

    config: dict[str, Any] | None = None
    """A resolved serving configuration, as created by `pressoir deploy`; null reloads the loaded models."""


def key_needed(request: Request) -> None:
    """Refuse what changes the server where no key guards it; the gate has checked a key that there is."""
    if not request.app.state.guarded:
        raise HttpError(
            403,
            "forbidden",
            f"set {API_KEY_VARIABLE} when starting the server, and send the key with this request",
        )


def health(backend: Backend) -> APIRouter:
    """Whether it lives and is ready: of the server, and under KServe's prefix."""
    router = APIRouter(prefix="/health")

    @router.get("/live")
    async def live() -> Response:
        """Whether the server is alive."""
        return JsonAnswer({"live": True})

    @router.get("/ready")
    async def ready() -> Response:
        """Whether all models to load at startup are loaded; 503 until then."""
        check_ready(backend)
        return JsonAnswer({"ready": True})

    return router


def routes(backend: Backend) -> APIRouter:
    """The endpoints."""
    router, models = APIRouter(tags=["status"]), backend.service.models

    router.include_router(health(backend))

    @router.get("/stats")
    async def stats() -> Response:
        """Sharing statistics: which tiers share which model, and what that saves."""
        return JsonAnswer(await models.statistics())

    @router.get("/metrics")
    async def metrics() -> Response:
        """Metrics in Prometheus format."""
        await models.pool.measure()
        return Response(backend.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @router.get("/config", dependencies=[Depends(key_needed)])
    async def config() -> Response:
        """The resolved configuration being served."""
        return JsonAnswer(backend.config.model_dump(mode="json"))

    @router.post("/reload", dependencies=[Depends(key_needed)])
    async def reload(body: Reload | None = None) -> Response:
        """Switch to another configuration, or reload all loaded models; if it fails, nothing changes."""
        wanted = None
        if body is not None and body.config is not None:
            wanted = validate(ServingConfig, body.config, "config")
        await carried_through(models.reload(wanted))
        return JsonAnswer({"reloaded": True, "tiers": list(backend.config.tiers)})

    return router


async def carried_through(work: Coroutine[Any, Any, Result]) -> Result:
    """Complete an operation even if the client disconnects."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # the client may be gone
    return await asyncio.shield(task)


def check_ready(backend: Backend) -> None:
    """Refuse where the server is not ready, and say why."""
    if backend.failure is not None:
        raise HttpError(503, "load_failed", str(backend.failure))
    if not backend.service.models.ready:
        raise HttpError(503, "loading", "models are being loaded; try again later", {"Retry-After": "1"})
