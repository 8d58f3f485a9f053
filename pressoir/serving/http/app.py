"""The app: a service behind its endpoints, the gate before them.

The service starts in the background, so that a server answers while it loads: `/health/live` at once,
`/health/ready` when everything is there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from pressoir import __version__
from pressoir.errors import PressoirError, RecipeError
from pressoir.serving.config import API_KEY_VARIABLE, ServingConfig
from pressoir.serving.http import kserve, openai, pages, status, tasks
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.gate import Gate
from pressoir.serving.http.limits import HttpLimits
from pressoir.serving.http.metrics import Metrics
from pressoir.serving.http.refusals import ErrorAnswer, HttpError, answer_error
from pressoir.serving.service import Service
from pressoir.store.store import Store

_ERRORS = {
    401: "The API key is missing or wrong.",
    404: "There is no such tier.",
    413: "The body is too large.",
    422: "The request is not valid.",
    429: "Too many requests; `Retry-After` says when to try again.",
    503: "A model is loading, unavailable or does not fit in memory; `Retry-After` is set if trying again "
    "may help.",
    504: "The request timed out.",
}


def create_app(
    config: ServingConfig,
    store: Store | None = None,
    limits: HttpLimits | None = None,
    api_key: str | None = None,
) -> FastAPI:
    """An app that serves a resolved configuration.

    Without `api_key` the environment variable `PRESSOIR_API_KEY` is used; if that is empty, requests need no
    key, and loading, unloading and reloading are disabled.

    Raises:
        RecipeError: the configuration is not resolved, or the key has characters that no header carries.
    """
    store, limits, metrics = store or Store(), limits or HttpLimits(), Metrics()
    key = _checked_key(os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key)
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
        responses={number: {"model": ErrorAnswer, "description": text} for number, text in _ERRORS.items()},
    )
    app.state.backend, app.state.guarded = backend, key is not None
    for kind in (HTTPException, RequestValidationError, HttpError, PressoirError):
        app.add_exception_handler(kind, answer_error)
    for router in (
        tasks.routes(backend),
        openai.routes(backend),
        kserve.routes(backend),
        status.routes(backend),
        pages.routes(),
    ):
        app.include_router(router)
    app.add_middleware(Gate, limits=limits, key=key, metrics=metrics)
    return app


def _checked_key(key: str) -> str | None:
    key = key.strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise RecipeError(
            f"{API_KEY_VARIABLE} contains characters that are not allowed in a header; use letters and digits"
        )
    return key or None
