"""A server's app for tests: configured, started, and asked without a network."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx

from pressoir.serving.config import ServingConfig, resolve
from pressoir.serving.http.app import create_app

KEY = {"Authorization": "Bearer sesame"}
SENTENCE = "the book was bad and dull and the soup was cold"


def configured(store, tiers, **fields):
    """A resolved configuration of `{tier: (folder, settings)}`, in threads."""
    raw = {name: {"model": str(folder), "settings": settings} for name, (folder, settings) in tiers.items()}
    given = {"isolation": "thread", "threads": 1, "tiers": raw, **fields}
    return resolve(ServingConfig.model_validate(given), store)


@asynccontextmanager
async def asked(app):
    """A client of a started app, once it is ready; what the app does not catch is raised."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://server") as client,
    ):
        while (await client.get("/health/ready")).status_code == 503:
            assert app.state.backend.failure is None
            await asyncio.sleep(0.01)
        yield client


def app_of(store, tiers, *, limits=None, api_key="", **fields):
    """An app that is not started."""
    return create_app(configured(store, tiers, **fields), store, limits, api_key)


def refused(answer, status, type):
    """The message of an error, which has the one shape, and the request id in both places."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"type", "message", "request_id"}
    assert content["error"]["type"] == type
    assert content["error"]["request_id"] == answer.headers["x-request-id"]
    return content["error"]["message"]


def events(text):
    """The events of a stream: (name, content) each."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        data = lines["data"]
        found.append((lines.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found
