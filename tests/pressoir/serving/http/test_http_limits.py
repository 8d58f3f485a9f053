"""Limits, the key, the log, and clients that leave: what every request passes, without a network."""

import asyncio
import json
import logging

import pytest
from serving_http import KEY, SENTENCE, app_of, asked, refused

from pressoir.errors import RecipeError
from pressoir.serving.config import API_KEY_VARIABLE
from pressoir.serving.http.limits import HttpLimits
from pressoir.store.store import Store


@pytest.fixture
def app(tmp_path, tiny_classifier):
    """`app(**limits)`: two tiers of one classifier; what is not a limit is the configuration's."""

    def make(api_key="", settings=None, batching=None, **limits):
        tiers = dict.fromkeys(("reviews", "more"), (tiny_classifier, settings or {}))
        store = Store(tmp_path / "home")
        return app_of(store, tiers, limits=HttpLimits(**limits), api_key=api_key, batching=batching or {})

    return make


def run(app, work):
    async def started():
        async with asked(app) as client:
            await work(client)

    asyncio.run(started())


TEXT = {"text": SENTENCE, "tier": "reviews"}


class Held:
    """Makes a model's answers wait until they are released."""

    def __init__(self, app):
        [entry] = app.state.backend.service.models.pool.entries.values()
        self.model, self.begun, self.release, self.cancelled = entry.model, 0, asyncio.Event(), 0
        self._call, entry.model.client.call = entry.model.client.call, self

    async def __call__(self, *arguments, **named):
        self.begun += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await self._call(*arguments, **named)

    async def until_begun(self):
        while not self.begun:
            await asyncio.sleep(0.001)


class TestSizes:
    def test_a_body_that_is_too_large_is_refused_before_it_is_parsed(self, app):
        async def work(client):
            body = json.dumps({"text": "x" * 2000}).encode()
            answer = await client.post("/classify", content=body)
            assert "larger than 1000 bytes" in refused(answer, 413, "too_large")
            assert answer.headers["connection"] == "close"

            async def parts():
                for start in range(0, len(body), 100):
                    yield body[start : start + 100]

            answer = await client.post("/classify", content=parts())  # chunked: no length is announced
            assert "content-length" not in answer.request.headers
            refused(answer, 413, "too_large")
            assert (await client.post("/classify", json=TEXT)).is_success

        run(app(max_body_bytes=1000), work)

    def test_the_memory_of_all_bodies_together_is_bounded_and_given_back(self, app):
        async def work(client):
            held = Held(client._transport.app)
            body = json.dumps({**TEXT, "text": "good " * 50})
            first = asyncio.create_task(client.post("/classify", content=body, headers=JSON))
            await held.until_begun()
            answer = await client.post("/classify", content=body, headers=JSON)
            refused(answer, 429, "busy")
            assert answer.headers["retry-after"] == "1"
            held.release.set()
            assert (await first).is_success
            assert (await client.post("/classify", content=body, headers=JSON)).is_success

        run(app(max_held_bytes=450), work)

    def test_long_texts_and_large_batches_are_refused(self, app):
        async def work(client):
            answer = await client.post("/classify", json={**TEXT, "text": ["good", "x" * 101]})
            assert "text 1 has 101 characters, but at most 100 are allowed" in refused(
                answer, 422, "too_long"
            )
            answer = await client.post("/classify", json={**TEXT, "text": ["good"] * 4})
            assert "has 4 texts; expected 1 to 3" in refused(answer, 422, "invalid_request")

        run(app(max_text_characters=100, settings={"max_batch": 3}), work)


JSON = {"Content-Type": "application/json"}


class TestLoad:
    def test_more_requests_than_may_work_at_once_are_put_off(self, app):
        async def work(client):
            held = Held(client._transport.app)
            first = asyncio.create_task(client.post("/classify", json=TEXT))
            await held.until_begun()
            answer = await client.post("/classify", json=TEXT)
            refused(answer, 429, "busy")
            assert answer.headers["retry-after"] == "1"
            held.release.set()
            assert (await first).is_success
            assert (await client.post("/classify", json=TEXT)).is_success

        run(app(max_concurrent=1), work)

    def test_a_full_queue_says_when_to_come_back(self, app):
        async def work(client):
            held = Held(client._transport.app)
            first = asyncio.create_task(client.post("/classify", json=TEXT))
            await held.until_begun()
            second = asyncio.create_task(client.post("/classify", json=TEXT))
            await asyncio.sleep(0.01)
            answer = await client.post("/classify", json=TEXT)
            assert "are already waiting" in refused(answer, 429, "queue_full")
            assert int(answer.headers["retry-after"]) >= 1
            held.release.set()
            assert (await first).is_success
            assert (await second).is_success

        run(app(batching={"max_queue": 1}), work)

    def test_a_request_that_takes_too_long_is_told(self, app):
        async def work(client):
            held = Held(client._transport.app)
            answer = await client.post("/classify", json={**TEXT, "timeout_s": 0.01})
            assert "0.01 s" in refused(answer, 504, "timed_out")
            pair = ["reviews", "more"]
            answer = await client.post("/compare", json={"texts": [SENTENCE], "tiers": pair})
            refused(answer, 504, "timed_out")
            assert held.model.waiting == 0

        run(app(settings={"timeout_s": 0.05}), work)

    def test_a_client_that_leaves_takes_its_request_out_of_the_queue(self, app):
        the_app = app()

        async def work(client):
            held = Held(the_app)
            running = asyncio.create_task(client.post("/classify", json=TEXT))
            await held.until_begun()
            left = asyncio.Event()
            body = [{"type": "http.request", "body": json.dumps(TEXT).encode()}]

            async def receive():
                if body:
                    return body.pop()
                await left.wait()
                return {"type": "http.disconnect"}

            sent = []

            async def send(message):
                sent.append(message)

            head = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": "/classify", "headers": head}
            scope |= {"query_string": b"", "root_path": "", "raw_path": b"/classify", "scheme": "http"}
            leaving = asyncio.create_task(the_app(scope, receive, send))
            while not held.model.waiting:
                await asyncio.sleep(0.001)
            left.set()
            await leaving
            assert held.model.waiting == 0
            assert sent == []
            held.release.set()
            assert (await running).is_success
            assert b'status="499"' in the_app.state.backend.metrics.text()

        run(the_app, work)

    def test_a_body_that_does_not_come_is_not_waited_for(self, app):
        async def work(client):
            async def slowly():
                yield b'{"text": '
                await asyncio.sleep(60)

            answer = await client.post("/classify", content=slowly(), headers=JSON)
            assert "within 0.05 s" in refused(answer, 408, "body_timeout")
            assert answer.headers["connection"] == "close"

        run(app(body_timeout_s=0.05), work)


class TestShape:
    def test_every_error_has_the_shape_and_the_request_id(self, app):
        cases = [
            ("POST", "/classify", b"{", 422, "invalid_request", "not valid JSON: Expecting property name"),
            (
                "POST",
                "/classify",
                b"\xff\xfe",
                422,
                "invalid_request",
                "not valid JSON: Expecting value, character 0",
            ),
            ("POST", "/classify", b"[" * 100_000, 400, "invalid_request", "body"),
            (
                "POST",
                "/classify",
                b'{"text": 7}',
                422,
                "invalid_request",
                "text.str: Input should be a valid",
            ),
            (
                "POST",
                "/classify",
                b'{"text": "a", "teir": "b"}',
                422,
                "invalid_request",
                "teir: Extra inputs",
            ),
            ("POST", "/classify", b'{"text": "\\ud800", "tier": "more"}', 422, "invalid_request", "text"),
            ("POST", "/classify", b'{"text": "a", "tier": "\\ud800"}', 404, "unknown_tier", "\\ud800"),
            ("POST", "/classify", b'{"text": "a"}', 404, "unknown_tier", "specify one of: reviews, more"),
            ("POST", "/classify", b'{"text": "a", "tier": "best"}', 404, "unknown_tier", "available: more"),
            ("POST", "/classify", b'{"text": "a", "timeout_s": NaN}', 422, "invalid_request", "timeout_s"),
            ("POST", "/translate", b'{"text": "a"}', 404, "unknown_tier", "no tier supports translation"),
            ("GET", "/classify", b"", 405, "method_not_allowed", "POST"),
            ("GET", "/nothing/here", b"", 404, "not_found", "/docs"),
            ("GET", "/compare/statistics", b"", 422, "invalid_request", "tiers: Field required"),
        ]

        async def work(client):
            for method, path, content, status, type, message in cases:
                answer = await client.request(method, path, content=content, headers=JSON)
                assert message in refused(answer, status, type)
                if status == 405:
                    assert answer.headers["allow"] == "POST"

        run(app(), work)

    def test_what_was_sent_is_not_repeated(self, app):
        async def work(client):
            answer = await client.post("/classify", json={"text": {"secret": "hunter2"}})
            assert "hunter2" not in answer.text

        run(app(), work)

    def test_a_fault_of_ours_is_told_without_its_details_and_logged_with_them(self, app, caplog):
        the_app = app()

        async def work(client):
            async def broken(*_, **__):
                raise ZeroDivisionError("secret")

            the_app.state.backend.service.classify = broken
            answer = await client.post("/classify", json=TEXT)
            assert "secret" not in refused(answer, 500, "internal")
            assert answer.headers["x-request-id"] in caplog.text
            assert "ZeroDivisionError: secret" in caplog.text

        run(the_app, work)

    def test_a_request_id_of_the_clients_is_kept_if_it_is_harmless(self, app):
        async def work(client):
            for given, kept in (("abc-1.2:3", True), ("x" * 65, False), ('"}{', False)):
                answer = await client.get("/health/live", headers={"X-Request-ID": given})
                assert (answer.headers["x-request-id"] == given) is kept

        run(app(), work)


class TestKey:
    def test_with_a_key_everything_but_health_page_and_documentation_needs_it(self, app):
        async def work(client):
            for path in ("/health/live", "/health/ready", "/v2/health/ready", "/docs", "/openapi.json"):
                assert (await client.get(path)).status_code == 200
            for path in ("/stats", "/metrics", "/tiers", "/v1/models", "/v2/models/reviews", "/nothing"):
                answer = await client.get(path)
                assert "Authorization: Bearer" in refused(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
            for wrong in ("Bearer open", "Bearer", "Basic sesame", "sesame", "Bearer sesame2", "Bearer \xff"):
                headers = {"Authorization": wrong.encode("latin-1")}
                refused(await client.post("/classify", json=TEXT, headers=headers), 401, "unauthorized")
            for right in ("Bearer sesame", "bearer  sesame "):
                answer = await client.post("/classify", json=TEXT, headers={"Authorization": right})
                assert answer.status_code == 200

        run(app(api_key="sesame"), work)

    def test_the_key_comes_from_the_environment(self, app, monkeypatch):
        monkeypatch.setenv(API_KEY_VARIABLE, "sesame")

        async def work(client):
            refused(await client.get("/stats"), 401, "unauthorized")
            assert (await client.get("/stats", headers=KEY)).status_code == 200

        run(app(api_key=None), work)

    def test_a_key_that_no_header_carries_is_refused_at_the_start(self, app):
        with pytest.raises(RecipeError, match=API_KEY_VARIABLE):
            app(api_key="süß")


class TestLog:
    def test_a_line_of_json_for_each_request_without_what_it_says(self, app, caplog):
        caplog.set_level(logging.INFO, "pressoir.access")

        async def work(client):
            await client.post("/classify", json=TEXT, headers={"X-Request-ID": "one"})
            await client.post("/classify", json={"text": SENTENCE, "tier": "secret"})
            await client.get("/secret?x=secret")
            await client.get("/v2/models/secret")
            await client.get("/v2/models/more")

        run(app(), work)
        lines = [json.loads(one.message) for one in caplog.records if one.name == "pressoir.access"]
        lines = [line for line in lines if line["route"] != "/health/ready"]
        assert [(line["method"], line["route"], line["status"], line["tier"]) for line in lines] == [
            ("POST", "/classify", 200, "reviews"),
            ("POST", "/classify", 404, None),
            ("GET", "unknown", 404, None),
            ("GET", "/v2/models/{tier}", 404, None),
            ("GET", "/v2/models/{tier}", 200, "more"),
        ]
        assert lines[0]["request_id"] == "one"
        assert lines[0]["ms"] > 0
        assert set(lines[0]) == {"time", "method", "route", "status", "ms", "request_id", "tier"}
        assert "secret" not in json.dumps(lines)
        assert SENTENCE not in json.dumps(lines)


def test_an_app_can_be_made_of_a_resolved_configuration_alone(tmp_path, tiny_classifier):
    from pressoir.serving.config import ServingConfig
    from pressoir.serving.http.app import create_app

    config = ServingConfig.model_validate({"tiers": {"a": {"model": str(tiny_classifier)}}})
    with pytest.raises(RecipeError, match="not resolved"):
        create_app(config, Store(tmp_path))
