"""What a client is told of faults of the server: no path, no digest; the log has them, and administrators."""

import asyncio
import json
import shutil

import pytest
from serving_http import KEY, SENTENCE, asked, configured

from pressoir.errors import RegistryError, ShardError, SourceError, StoreError
from pressoir.serving.errors import BudgetError, InferenceError, LoadError, WorkerDiedError
from pressoir.serving.http.app import create_app
from pressoir.store.store import Store

ADMIN = {"Authorization": "Bearer root"}
TEXT = {"text": SENTENCE, "tier": "reviews"}
ASKED = {
    "/classify": TEXT,
    "/v2/models/reviews/infer": {
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [SENTENCE]}]
    },
}


@pytest.fixture
def folder(tiny_classifier, tmp_path):
    return shutil.copytree(tiny_classifier, tmp_path / "a model")


def served(folder, tmp_path, work):
    async def started():
        config = configured(Store(tmp_path / "home"), {"reviews": (folder, {})})
        app = create_app(config, Store(tmp_path / "home"), None, "sesame", "root")
        async with asked(app) as client:
            await work(app, client, config.tiers["reviews"].digest)

    asyncio.run(started())


def private(answer, tmp_path, digest):
    """The message of an answer in which nothing of the server's stands."""
    text = json.loads(answer.text)
    assert str(tmp_path) not in json.dumps(text), text
    assert digest[:8] not in json.dumps(text), text
    error = text["error"]
    return error["message"] if isinstance(error, dict) else error


def vanish(folder):
    shutil.rmtree(folder)


def other_weights(folder):
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def cut_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def other_config(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("damage", [vanish, other_weights, cut_weights, other_config])
def test_a_model_that_cannot_be_loaded_again_tells_clients_nothing_of_its_folder(
    damage, folder, tmp_path, caplog
):
    async def work(app, client, digest):
        assert (await client.post("/v2/repository/models/reviews/unload", headers=ADMIN)).is_success
        damage(folder)
        for path, body in ASKED.items():
            answer = await client.post(path, json=body, headers=KEY)
            assert answer.status_code == 503
            message = private(answer, tmp_path, digest)
            assert message == "this tier's model cannot be loaded; see the server log for this request id"
            assert f"request {answer.headers['x-request-id']} failed: " in caplog.text
        assert str(folder) in caplog.text
        answer = await client.post("/classify", json=TEXT, headers=ADMIN)
        assert str(folder) in answer.text or digest in answer.text

    served(folder, tmp_path, work)


@pytest.mark.parametrize(
    "kind",
    [
        *(LoadError, BudgetError, WorkerDiedError, InferenceError),
        *(SourceError, StoreError, RegistryError, ShardError),
    ],
)
def test_whatever_a_model_says_when_it_fails_stays_in_the_log(kind, folder, tmp_path, caplog):
    async def work(app, client, digest):
        async def fail(*args, **kwargs):
            raise kind(f"{folder} is broken, {digest}")

        app.state.backend.service.classify = fail
        answer = await client.post("/classify", json=TEXT, headers=KEY)
        assert answer.status_code in (500, 503)
        assert "this tier's model" in private(answer, tmp_path, digest)
        assert f"{folder} is broken" in caplog.text

    served(folder, tmp_path, work)


def test_ready_is_the_truth(folder, tmp_path):
    async def work(app, client, digest):
        ready = ["/health/ready", "/v2/health/ready", "/v2/models/reviews/ready"]
        for path in ready:
            assert (await client.get(path, headers=KEY)).status_code == 200
        assert (await client.post("/v2/repository/models/reviews/unload", headers=ADMIN)).is_success
        for path in ready:  # the next request loads it
            assert (await client.get(path, headers=KEY)).status_code == 200
        kept = shutil.copytree(folder, tmp_path / "kept")
        shutil.rmtree(folder)
        for path in ready:
            answer = await client.get(path, headers=KEY)
            assert answer.status_code == 503
            assert "reviews: the files of the model are missing" in private(answer, tmp_path, digest)
        [one] = (await client.post("/v2/repository/index", headers=KEY)).json()
        assert one["state"] == "UNAVAILABLE"
        for content, expected in (({"ready": True}, []), ({"ready": False}, [one]), ({}, [one])):
            answer = await client.post("/v2/repository/index", headers=KEY, content=json.dumps(content))
            assert answer.json() == expected
        wrong = await client.post("/v2/repository/index", headers=KEY, json={"ready": "yes"})
        assert wrong.status_code == 422
        assert "pressoir_ready 0.0" in (await client.get("/metrics", headers=KEY)).text
        shutil.copytree(kept, folder)
        for path in ready:
            assert (await client.get(path, headers=KEY)).status_code == 200

    served(folder, tmp_path, work)
