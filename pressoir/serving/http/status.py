"""How the server is: health, metrics, the sharing statistics; and going over to another configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from starlette.responses import PlainTextResponse, Response

from pressoir.config import validate
from pressoir.serving.config import ADMIN_KEY_VARIABLE, ServingConfig
from pressoir.serving.errors import LoadError
from pressoir.serving.http.answers import Live, Ready, Reloaded, Statistics
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.body_route import BodyRoute
from pressoir.serving.http.refusals import HttpError, JsonAnswer
from pressoir.serving.http.request_model import StrictRequestModel

Result = TypeVar("Result")


ADMIN: dict[str, Any] = {"security": [{"admin": []}]}
"""What the document says of an administrator's operation."""


class _Configuration:
    """Of a mapping that is a configuration, which is checked, with messages of its own, when it is used."""

    def __get_pydantic_json_schema__(
        self, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(ServingConfig.__pydantic_core_schema__)


class Reload(StrictRequestModel):
    """A reload request."""

    config: Annotated[dict[str, Any], _Configuration()] | None = None
    """A resolved serving configuration, as created by `pressoir deploy`; null reloads the loaded models."""


def admin_only(request: Request) -> None:
    """Refuse what changes the server, or shows its configuration, to all but its administrators."""
    if request.state.role == "admin":
        return
    todo = f"send the server's {ADMIN_KEY_VARIABLE} as Authorization: Bearer KEY"
    if not request.app.state.administered:
        todo = f"set {ADMIN_KEY_VARIABLE} when starting the server, and send that key with this request"
    raise HttpError(403, "forbidden", f"only an administrator may do this; {todo}")


def add_health(router: APIRouter, backend: Backend) -> None:
    """Whether it lives and is ready: of the server, and under KServe's prefix."""

    @router.head("/health/live")
    @router.get("/health/live", response_model=Live)
    async def live() -> Response:
        """Whether the server is alive."""
        return JsonAnswer({"live": True})

    @router.head("/health/ready")
    @router.get("/health/ready", response_model=Ready)
    async def ready() -> Response:
        """Whether every tier would answer: 503 until the models to load at startup are loaded, and while one
        that is not loaded lacks its files."""
        await check_ready(backend)
        return JsonAnswer({"ready": True})


def routes(backend: Backend) -> APIRouter:
    """The endpoints."""
    router, models = APIRouter(tags=["status"], route_class=BodyRoute), backend.service.models

    add_health(router, backend)

    @router.head("/health")
    @router.get("/health", response_model=Ready)
    async def healthy() -> Response:
        """As `/health/ready`, at the path that OpenAI-style servers have."""
        await check_ready(backend)
        return JsonAnswer({"ready": True})

    @router.get("/stats", response_model=Statistics)
    async def stats() -> Response:
        """Sharing statistics: which tiers share which model, and what that saves."""
        return JsonAnswer(await models.statistics())

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics in Prometheus format."""
        await models.pool.measure()
        try:
            await check_ready(backend)
        except (HttpError, LoadError):
            backend.metrics.ready(False)
        else:
            backend.metrics.ready(True)
        return Response(backend.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @router.get(
        "/config",
        dependencies=[Depends(admin_only)],
        response_model=ServingConfig,
        openapi_extra=ADMIN,
    )
    async def config() -> Response:
        """The resolved configuration being served."""
        return JsonAnswer(backend.config.model_dump(mode="json"))

    @router.post("/reload", dependencies=[Depends(admin_only)], response_model=Reloaded, openapi_extra=ADMIN)
    async def reload(body: Reload | None = None) -> Response:
        """Switch to another configuration, or reload all loaded models; if it fails, nothing changes."""
        wanted = None
        if body is not None and body.config is not None:
            wanted = validate(ServingConfig, body.config, "config", strict=True)
        await carried_through(models.reload(wanted))
        return JsonAnswer({"reloaded": True, "tiers": list(backend.config.tiers)})

    return router


async def carried_through(work: Coroutine[Any, Any, Result]) -> Result:
    """Complete an operation even if the client disconnects."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # the client may be gone
    return await asyncio.shield(task)


async def check_ready(backend: Backend) -> None:
    """Refuse where the server is not ready, and say why."""
    if backend.failure is not None:
        raise LoadError(str(backend.failure))
    if not backend.service.models.ready:
        raise HttpError(503, "loading", "models are being loaded; try again later", {"Retry-After": "1"})
    missing = [
        name for name, tier in backend.service.models.tiers.items() if not await backend.is_ready(tier)
    ]
    if missing:
        message = f"{', '.join(missing)}: the files of the model are missing or damaged"
        raise HttpError(503, "load_failed", message)
