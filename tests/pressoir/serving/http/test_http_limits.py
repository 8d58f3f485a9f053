"""Limits, the key, the log, and clients that leave: what every request passes, without a network."""

import asyncio
import json
import logging
import time
import tracemalloc
from types import SimpleNamespace

import pytest
from serving_http import KEY, SENTENCE, app_of, asked, configured, refused

from pressoir.errors import RecipeError
from pressoir.serving.config import API_KEY_VARIABLE
from pressoir.serving.http import gate
from pressoir.serving.http.app import create_app
from pressoir.serving.http.limits import HttpLimits
from pressoir.store.store import Store


@pytest.fixture
def app(tmp_path, tiny_classifier):
    """`app(**limits)`: two tiers of one classifier; what is not a limit is the configuration's."""

    def make(api_key="", settings=None, batching=None, admin_key="", **limits):
        tiers = dict.fromkeys(("reviews", "more"), (tiny_classifier, settings or {}))
        store = Store(tmp_path / "home")
        keys = {"api_key": api_key, "admin_key": admin_key}
        return app_of(store, tiers, limits=HttpLimits(**limits), batching=batching or {}, **keys)

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

    def test_json_bodies_are_limited_to_what_the_tiers_can_need(self, app):
        async def work(client):
            body = json.dumps({**TEXT, "text": "x" * (1 << 20)}).encode()
            assert "larger than 1048576 bytes" in refused(
                await client.post("/classify", content=body), 413, "too_large"
            )

        run(app(settings={"max_batch": 3, "max_length": 16}), work)

        async def more(client):
            answer = await client.post("/classify", json={**TEXT, "text": ["x" * (1 << 20)]})
            refused(answer, 422, "too_long")
            body = json.dumps({**TEXT, "text": "x" * 5_000_000}).encode()
            assert "larger than 3072000 bytes" in refused(
                await client.post("/classify", content=body), 413, "too_large"
            )

        run(app(settings={"max_batch": 500, "max_length": 512}), more)

    def test_no_more_of_refused_bodies_is_read_in_a_second_than_there_is_time_for(self, app, monkeypatch):
        monkeypatch.setattr(gate, "_LINGER_BYTES", 30_000)
        clock = SimpleNamespace(perf_counter=time.perf_counter, monotonic=lambda: 7.5)
        monkeypatch.setattr(gate, "time", clock)
        read = 0

        async def work(client):
            async def parts():
                nonlocal read
                read = 0
                while read < 100:
                    read += 1
                    yield b" " * 1000

            for second, expected in ((7.5, 30), (7.9, 1), (8.0, 30)):
                clock.monotonic = lambda now=second: now
                refused(await client.post("/classify", content=parts()), 413, "too_large")
                assert read == 2 + expected, "two parts until it is too large"

        run(app(max_body_bytes=1000), work)

    @pytest.mark.parametrize(
        ("path", "body", "message"),
        [
            (
                "/classify",
                {**TEXT, "text": [1] * 100_000},
                ".0: Input should be a valid string",
            ),
            (
                "/classify",
                {f"f{i}": 1 for i in range(20_000)},
                "unknown fields: f0, f1, f2, f3, f4, f5, f6, f7, f8, f9; known: text, text_pair, tier",
            ),
            ("/classify", {f"f{i}": 1 for i in range(20_001)}, "the body has more than 20,000 fields"),
            (
                "/compare",
                {"texts": [{}] * 100_000, "tiers": ["a", "b"]},
                "texts.0: Input should be a valid string",
            ),
            ("/v1/completions", {"model": "m", "prompt": [{}] * 100_000}, "prompt"),
            (
                "/v1/chat/completions",
                {"model": "m", "messages": [{}] * 2000},
                "messages.0.role: Field required",
            ),
            ("/v1/embeddings", {"model": "m", "input": [{}] * 100_000}, "input"),
            ("/v2/models/reviews/infer", {"inputs": [{}] * 100_000}, "inputs.0.name: Field required"),
            (
                "/v1/chat/completions",
                {"model": "m", "messages": [{"role": "user", "content": "a"}] * 9000},
                "9000 messages and parts of them; at most 2048 are allowed",
            ),
            (
                "/v1/chat/completions",
                {"model": "m", "messages": [{"role": "a", "content": [{"type": "text", "text": ""}] * 9000}]},
                "9001 messages and parts of them",
            ),
            (
                "/v2/models/reviews/infer",
                {"inputs": [{"name": "a", "shape": [1], "datatype": "FP32"}] * 6000},
                "inputs: List should have at most 16 items",
            ),
            (
                "/v2/models/reviews/infer",
                {
                    "inputs": [{"name": "a", "shape": [1], "datatype": "FP32"}],
                    "outputs": [{"name": "a"}] * 17,
                },
                "outputs: List should have at most 16 items",
            ),
        ],
    )
    def test_the_first_of_many_wrong_elements_ends_the_check(self, app, path, body, message):
        """Describing each of them took minutes and gigabytes."""

        async def work(client):
            tracemalloc.start()
            content = json.dumps(body, separators=(",", ":"))
            answer = await client.post(path, content=content, headers=JSON)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            told = refused(answer, 422, "invalid_request")
            assert message in told
            assert len(told) < 1000
            assert peak < 30e6

        run(app(), work)

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
                "unknown fields: teir",
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
            for path in ("/health", "/health/live", "/health/ready", "/v2/health/ready", "/docs"):
                assert (await client.get(path)).status_code == 200
                assert (await client.head(path)).status_code == 200 or path == "/docs"
            assert (await client.get("/openapi.json")).status_code == 200
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

    def test_there_may_be_several_keys_and_the_administrators_are_good_for_all(self, app):
        async def work(client):
            for key, status in (("one", 200), ("two", 200), ("root", 200), ("one,two", 401), ("", 401)):
                answer = await client.get("/tiers", headers={"Authorization": f"Bearer {key}"})
                assert answer.status_code == status

        run(app(api_key=" one, two,,", admin_key="root"), work)

    def test_with_an_administrators_key_alone_requests_need_none(self, app):
        async def work(client):
            assert (await client.get("/tiers")).status_code == 200
            refused(await client.get("/config"), 403, "forbidden")
            assert (await client.get("/config", headers=KEY)).status_code == 200

        run(app(admin_key="sesame"), work)

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
    def test_a_line_has_the_whole_address_as_the_documentation_has_it(self, app, caplog):
        caplog.set_level(logging.INFO, "pressoir.access")
        the_app = app()
        known = {
            (method.upper(), path)
            for path, methods in the_app.openapi()["paths"].items()
            for method in methods
        }

        async def work(client):
            for method, path in sorted(known):
                await client.request(method, path.format(tier="reviews", version="1"), json={})

        run(the_app, work)
        lines = [json.loads(one.message) for one in caplog.records if one.name == "pressoir.access"]
        assert {(line["method"], line["route"]) for line in lines} == known

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


class TestHosts:
    """What a page elsewhere can make a browser send."""

    def guarded(self, store, folder, **options):
        config = configured(store, {"reviews": (folder, {})})
        return create_app(config, store, HttpLimits(), "", hosts=("localhost", "127.0.0.1"), **options)

    @pytest.mark.parametrize(
        ("host", "allowed"),
        [
            ("localhost:5001", True),
            ("127.0.0.1", True),
            ("LOCALHOST", True),
            ("evil.example", False),
            ("", False),
        ],
    )
    def test_another_name_of_the_address_is_refused(self, tmp_path, tiny_classifier, host, allowed):
        async def work(client):
            answer = await client.post("/classify", json=TEXT, headers={"Host": host})
            if allowed:
                assert answer.is_success
            else:
                assert "--allowed-host" in refused(answer, 403, "forbidden")

        run(self.guarded(Store(tmp_path), tiny_classifier), work)

    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [
            *(("http://localhost:5001", True), (None, True), ("https://proxy.example", True)),
            *(
                ("http://localhost:3000", False),
                ("http://evil.example", False),
                ("null", False),
                ("//", False),
            ),
        ],
    )
    @pytest.mark.parametrize("kind", ["json", "multipart", "plain"])
    def test_pages_of_other_origins_send_nothing(self, tmp_path, tiny_classifier, origin, allowed, kind):
        body = {
            "json": {"json": TEXT},
            "multipart": {"data": {"model": "x"}, "files": {"file": ("a.wav", b"RIFF")}},
            "plain": {"content": json.dumps({"inputs": []}), "headers": {"content-type": "text/plain"}},
        }[kind]
        path = {
            "json": "/classify",
            "multipart": "/v1/audio/transcriptions",
            "plain": "/v2/models/reviews/infer",
        }
        headers = {
            "Host": "localhost:5001",
            **body.pop("headers", {}),
            **({"Origin": origin} if origin else {}),
        }

        async def work(client):
            answer = await client.post(path[kind], headers=headers, **body)
            assert (answer.status_code != 403) is allowed, answer.text

        app = self.guarded(Store(tmp_path), tiny_classifier, trusted_hosts=("proxy.example",))
        run(app, work)

    def test_an_open_address_needs_a_key_or_a_word(self, tmp_path, tiny_classifier, monkeypatch):
        from pressoir.serving.http.serve import serve

        monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
        config = {"tiers": {"reviews": {"model": str(tiny_classifier)}}}
        with pytest.raises(RecipeError, match=f"set {API_KEY_VARIABLE}, or start with --insecure"):
            serve(config, "0.0.0.0", 0)
        monkeypatch.setenv(API_KEY_VARIABLE, " , ")  # which is no key
        with pytest.raises(RecipeError, match=f"set {API_KEY_VARIABLE}, or start with --insecure"):
            serve(config, "0.0.0.0", 0)
        ran = []

        def run_it(app, listening, *_):
            ran.append(listening.close())

        monkeypatch.setattr("pressoir.serving.http.serve.run", run_it)
        serve(config, "0.0.0.0", 0, insecure=True)
        monkeypatch.setenv(API_KEY_VARIABLE, "sesame")
        serve(config, "0.0.0.0", 0)
        assert len(ran) == 2
