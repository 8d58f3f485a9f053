"""The app: a service behind its endpoints, the gate before them.

The service starts in the background, so that a server answers while it loads: `/health/live` at once,
`/health/ready` when everything is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from pressoir import __version__
from pressoir.errors import PressoirError
from pressoir.serving.config import ServingConfig
from pressoir.serving.http import kserve, pages, status, tasks
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.document import Document
from pressoir.serving.http.gate import Gate
from pressoir.serving.http.limits import HttpLimits
from pressoir.serving.http.metrics import Metrics
from pressoir.serving.http.openai.routes import routes as openai_routes
from pressoir.serving.http.refusals import HttpError, answer_error
from pressoir.serving.keys import Keys
from pressoir.serving.service import Service
from pressoir.store.store import Store


def create_app(
    config: ServingConfig,
    store: Store | None = None,
    limits: HttpLimits | None = None,
    api_key: str | None = None,
    admin_key: str | None = None,
    hosts: Collection[str] = (),
    trusted_hosts: Collection[str] = (),
) -> FastAPI:
    """An app that serves a resolved configuration.

    Without `api_key` and `admin_key` the environment variables are used, see `Keys`. For `hosts` and
    `trusted_hosts` see `Gate`.

    Raises:
        RecipeError: the configuration is not resolved, or a key has characters that no header carries.
    """
    store, limits, metrics = store or Store(), limits or HttpLimits(), Metrics()
    keys = Keys.read(api_key, admin_key)
    service = Service(config, store, metrics)
    metrics.watch(service)
    backend = Backend(service, store, limits, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def start() -> None:
            await backend.start()
            on_failure: Callable[[], None] | None = getattr(app.state, "on_failure", None)
            if backend.failure is not None and on_failure is not None:
                on_failure()

        starting = asyncio.create_task(start())
        yield
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await service.close()

    app = FastAPI(
        title="Pressoir",
        version=__version__,
        summary="Tiers that share models: tiers of the same model use one loaded instance.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # the address is ours, see `pages`
    )
    app.state.backend, app.state.administered = backend, bool(keys.admins)
    app.state.document = Document(app, backend, keys)
    for kind in (HTTPException, RequestValidationError, HttpError, PressoirError):
        app.add_exception_handler(kind, answer_error)
    for router in (
        tasks.routes(backend),
        openai_routes(backend),
        kserve.routes(backend),
        status.routes(backend),
        pages.routes(),
    ):
        app.include_router(router)
    app.add_middleware(
        Gate,
        limits=limits,
        keys=keys,
        metrics=metrics,
        max_json_bytes=backend.max_json_bytes,
        hosts=hosts,
        trusted=trusted_hosts,
    )
    return app
