"""A server from outside: requests that the server's own types take, and errors that say what to do."""

import json
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pressoir.errors import RecipeError, UnreachableError
from pressoir.extensions.task import task, tasks
from pressoir.serving.client import Server
from pressoir.serving.config import TierConfig
from pressoir.serving.deployment import DeploymentError
from pressoir.serving.examples import example_requests
from pressoir.serving.http import kserve


@pytest.fixture
def answering():
    """Start a server that answers with the given statuses and bodies in turn; its url, and what it got."""
    started = []

    def start(*answers):
        got, left = [], list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body):
                got.append((self.path, self.headers.get("Authorization"), body))
                status, content = left.pop(0)
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}", got

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def tier(task, **settings):
    return TierConfig(model="m", task=task, settings=settings)


@pytest.mark.parametrize("name", [one.name for one in tasks()])
def test_the_small_request_of_each_task_is_one_that_the_server_takes(name):
    for body in example_requests(tier(name)):
        asked = kserve.Inference.model_validate(body)
        assert kserve._options(task(name), asked.parameters) == asked.parameters


def test_small_requests_stay_within_a_tiers_limits():
    assert example_requests(tier("causal-lm", max_new_tokens=2))[0]["parameters"] == {"max_new_tokens": 2}
    (sound,) = example_requests(tier("automatic-speech-recognition", max_audio_s=0.1))[0]["inputs"]
    assert sound["shape"] == [1, 1600]


def test_a_translator_that_needs_languages_is_told_some(answering):
    refused = 422, {"error": {"message": "target_language: name one"}}
    answer = 200, {"outputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Bon."]}]}
    url, got = answering(refused, answer)
    with closing(Server(url)) as server:
        assert server.ask("basic", tier("translation", target_language="de")) > 0
    languages = {"source_language": "en", "target_language": "de"}
    assert [body["parameters"] for _, _, body in got] == [
        {"max_new_tokens": 4},
        {"max_new_tokens": 4, **languages},
    ]


def test_the_key_goes_with_every_request_and_into_no_message(answering, monkeypatch):
    monkeypatch.setenv("PRESSOIR_API_KEY", "sk-secret")
    url, got = answering((401, {"error": {"message": "wrong"}}))
    with closing(Server(url)) as server, pytest.raises(RecipeError) as failed:
        server.digests()
    assert got == [("/tiers", "Bearer sk-secret", None)]
    assert "PRESSOIR_API_KEY is not a key of the server" in str(failed.value)
    assert "sk-secret" not in str(failed.value)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((503, {"error": {"message": "no room for it"}}), "returned HTTP 503: no room for it"),
        ((200, b"<html>another server</html>"), "does not respond like a Pressoir server"),
        ((302, b""), "returned HTTP 302"),
    ],
)
def test_what_a_server_says_is_told(answering, answer, told):
    url, _ = answering(answer)
    with closing(Server(url)) as server, pytest.raises(DeploymentError, match=told):
        server.digests()


def test_nobody_at_an_address_and_no_address_are_told():
    with closing(Server("http://127.0.0.1:9")) as server:
        assert not server.is_ready()
        with pytest.raises(UnreachableError, match="check that the server is running, and its address"):
            server.digests()
    for url in ("127.0.0.1:5001", "ftp://host", "http://", "http://host/?key=1"):
        with pytest.raises(RecipeError, match="expected http://host:port"):
            Server(url)
