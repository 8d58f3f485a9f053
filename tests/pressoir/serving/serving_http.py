"""A server's app for tests: configured, started, and asked without a network."""

import asyncio
import json
import shutil
from contextlib import asynccontextmanager

import httpx
import numpy as np

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
        httpx.AsyncClient(transport=transport, base_url="http://localhost:5001") as client,
    ):
        while (await client.get("/health/ready")).status_code == 503:
            assert app.state.backend.failure is None
            await asyncio.sleep(0.01)
        yield client


def app_of(store, tiers, *, limits=None, api_key="", admin_key="", **fields):
    """An app that is not started."""
    return create_app(configured(store, tiers, **fields), store, limits, api_key, admin_key)


def refused(answer, status, type):
    """The message of an error, which has the one shape, and the request id in both places."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    if answer.request.url.path.startswith("/v2"):
        assert set(content) == {"error", "type", "request_id"}
        assert isinstance(content["error"], str)
        content = {"error": {"message": content.pop("error"), **content}}
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


def bag_of_words(source, folder):
    """Make a folder of a classifier in ONNX with the tokenizer of `source`, whose worker starts quickly."""
    import onnx
    from onnx import helper, numpy_helper

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    words = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
    words[0] = 0  # padding says nothing
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["found"]),
        helper.make_node("ReduceSum", ["found", "axis"], ["logits"], keepdims=0),
    ]
    tokens = helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "seq"])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])
    weights = [numpy_helper.from_array(words, "words"), numpy_helper.from_array(np.array([1]), "axis")]
    graph = helper.make_graph(nodes, "bag-of-words", [tokens], [logits], weights)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), folder / "model.onnx")
    return folder
