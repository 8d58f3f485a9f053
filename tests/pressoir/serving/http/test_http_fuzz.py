"""Requests of every kind that the server's own OpenAPI allows, and of many that it does not: never a 500."""

import asyncio
import threading
from contextlib import suppress

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from serving_http import KEY, app_of

from pressoir.serving.http.limits import HttpLimits
from pressoir.serving.http.protocol import protocol_with
from pressoir.serving.http.server import listen
from pressoir.store.store import Store

EXAMPLES = 7  # of each kind, of each endpoint
TIERS = ("reviews", "vectors", "french", "story", "speech")


@pytest.fixture(scope="module")
def url(tmp_path_factory, tiny_classifier, tiny_bert, tiny_marian, tiny_llama, tiny_whisper):
    """A server of every task in a thread of this process."""
    short = {"timeout_s": 5}
    tiers = {
        "reviews": (tiny_classifier, {**short, "max_length": 60}),
        "vectors": (tiny_bert, {**short, "max_length": 60}),
        "french": (tiny_marian, {**short, "max_new_tokens": 4}),
        "story": (tiny_llama, {**short, "max_new_tokens": 4}),
        "speech": (tiny_whisper, {**short, "max_new_tokens": 4, "max_audio_s": 2}),
    }
    app = app_of(Store(tmp_path_factory.mktemp("home")), tiers, api_key="sesame")
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(app, http=protocol_with(HttpLimits()), ws="none", lifespan="on", log_config=None)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    port = listening.getsockname()[1]
    while not app.state.backend.service.models.ready:
        assert thread.is_alive()
        assert app.state.backend.failure is None
        threading.Event().wait(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def aimed(case, tier):
    """Most names that are made up lead nowhere: give the request one that exists."""
    for place in (case.path_parameters, case.body):
        if isinstance(place, dict):
            for name in {"tier", "model"} & place.keys():
                place[name] = tier
            if "tiers" in place:
                place["tiers"] = ["reviews", "reviews"]
    return case


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")  # schemathesis does
def test_no_request_makes_the_server_fail(url):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    seen = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:

            @settings(
                max_examples=EXAMPLES,
                derandomize=True,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(mode), tier=st.sampled_from((None, *TIERS)))
            def ask(case, tier):
                nonlocal seen
                seen += 1
                answer = (case if tier is None else aimed(case, tier)).call(
                    base_url=url, headers=KEY, timeout=120
                )
                # 504: some ask for an answer within a millionth of a second.
                assert answer.status_code < 500 or answer.status_code == 504, case.as_curl_command()
                if answer.status_code >= 400:
                    assert set(answer.json()) == {"error"}

            with suppress(Unsatisfiable):  # nothing can be wrong with a request that has no fields
                ask()
    assert seen > 200
    metrics = httpx.get(f"{url}/metrics", headers=KEY).text.splitlines()
    left = [
        line
        for line in metrics
        if line.startswith(("pressoir_model_leases{", "pressoir_model_queue_length{"))
    ]
    assert {line.split()[-1] for line in left} <= {"0.0"}
