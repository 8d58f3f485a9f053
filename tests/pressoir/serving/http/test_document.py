"""The OpenAPI document: whose keys, which tiers, which errors; `openapi/` compares it with a server."""

import asyncio
import re

import pytest
from fastapi.openapi.models import OpenAPI
from serving_http import KEY, SENTENCE, app_of, asked, refused

from pressoir.store.store import Store

ADMIN = {"Authorization": "Bearer mellon"}
KEYED = {"api_key": "sesame", "admin_key": "mellon"}


@pytest.fixture
def run(tmp_path, tiny_classifier):
    """`run(work, **keys)` runs `work(client)` on a server of one tier, or of `tiers`."""

    def start(work, tiers=("reviews",), **keys):
        served = {name: (tiny_classifier, {"max_length": 9, "max_batch": 3}) for name in tiers}

        async def session():
            async with asked(app_of(Store(tmp_path / "home"), served, **keys)) as client:
                await work(client)

        asyncio.run(session())

    return start


async def document(client, headers=None):
    answer = await client.get("/openapi.json", headers=headers)
    assert answer.status_code == 200
    OpenAPI.model_validate(answer.json())
    return answer.json()


def operations(found):
    return {
        (method, path): operation
        for path, item in found["paths"].items()
        for method, operation in item.items()
    }


def test_every_reference_leads_somewhere_and_no_mark_is_left(run):
    async def work(client):
        found = await document(client, KEY)
        text = str(found)
        assert "x-tiers" not in text
        assert "x-limit" not in text
        for reference in set(re.findall(r"'#/components/(\w+)/([\w.-]+)'", text)):
            assert reference[1] in found["components"][reference[0]]

    run(work, **KEYED)


def test_operations_name_the_keys_that_they_need(run):
    async def work(client):
        found = operations(await document(client))
        for method, path in found:
            needed = {name for key in found[method, path].get("security", ()) for name in key}
            url = path.format(tier="reviews", version="1")
            bare = await client.request(method, url)
            assert (bare.status_code == 401) is bool(needed), path
            if needed:
                held = await client.request(method, url, headers=KEY)
                assert (held.status_code == 403) is ("user" not in needed), path

    run(work, **KEYED)


def test_without_keys_no_operation_needs_one(run):
    async def work(client):
        found = await document(client)
        assert "securitySchemes" not in found["components"]
        for operation in operations(found).values():
            assert "security" not in operation
            assert "401" not in operation["responses"]

    run(work)


def test_tiers_are_named_to_those_alone_who_may_use_them(run):
    async def work(client):
        stranger, user = await document(client), await document(client, KEY)
        assert "reviews" not in str(stranger)
        body = user["components"]["schemas"]["Classify"]
        assert body["properties"]["tier"]["anyOf"][0]["enum"] == ["reviews"]
        assert body["properties"]["text"]["anyOf"][1]["maxItems"] == 3
        assert body["properties"]["max_length"]["anyOf"][0]["maximum"] == 9
        assert body["required"] == ["text"]
        [example] = body["examples"]
        assert (await client.post("/classify", json=example, headers=KEY)).status_code == 200
        assert "reviews" not in (await client.get("/docs")).text

    run(work, **KEYED)


def test_of_several_tiers_one_must_be_named(run):
    async def work(client):
        body = (await document(client))["components"]["schemas"]["Classify"]
        assert body["required"] == ["text", "tier"]
        refused(await client.post("/classify", json={"text": SENTENCE}), 404, "unknown_tier")

    run(work, ("reviews", "again"))


def test_the_document_follows_a_reload(run):
    async def work(client):
        config = (await client.get("/config", headers=ADMIN)).json()
        config["tiers"]["more"] = config["tiers"]["reviews"]
        assert (await client.post("/reload", json={"config": config}, headers=ADMIN)).is_success
        found = operations(await document(client, KEY))["get", "/v1/models/{tier}"]
        assert found["parameters"][0]["schema"]["enum"] == ["reviews", "more"]

    run(work, **KEYED)


def test_the_types_of_a_configuration_are_not_guessed(run):
    async def work(client):
        config = (await client.get("/config", headers=ADMIN)).json()
        assert (await client.post("/reload", json={"config": config}, headers=ADMIN)).is_success
        answer = await client.post("/reload", json={"config": {**config, "threads": "1"}}, headers=ADMIN)
        assert "threads: Input should be a valid integer" in refused(answer, 422, "invalid_request")

    run(work, **KEYED)


def test_a_wrong_method_is_told_every_right_one(run):
    async def work(client):
        for path in ("/health/ready", "/v2/models/reviews", "/v2/models/reviews/versions/1/ready"):
            answer = await client.post(path)
            refused(answer, 405, "method_not_allowed")
            assert answer.headers["allow"] == "GET, HEAD"

    run(work)


def test_a_body_of_another_media_type_is_refused(run):
    right = ("application/json", "Application/JSON; charset=utf-8", "application/vnd.pressoir+json")

    async def work(client):
        for given in (*right, "text/plain", "application/x-www-form-urlencoded", None):
            headers = {} if given is None else {"Content-Type": given}
            answer = await client.post("/classify", content=b'{"text": "a film"}', headers=headers)
            assert answer.status_code == (200 if given in right else 415), given
            if given not in right:
                assert "send application/json" in refused(answer, 415, "unsupported_media_type")
                assert answer.headers["accept"] == "application/json"

    run(work)


def test_values_have_the_types_of_json(run):
    async def work(client):
        for more, status in (
            ({"max_length": 4}, 200),
            ({"max_length": 4.0}, 200),
            ({"max_length": 4.5}, 422),
            ({"max_length": "4"}, 422),
            ({"max_length": True}, 422),
            ({"timeout_s": 5}, 200),
            ({"timeout_s": "5"}, 422),
        ):
            answer = await client.post("/classify", json={"text": "a film", **more})
            assert answer.status_code == status, more

    run(work)
