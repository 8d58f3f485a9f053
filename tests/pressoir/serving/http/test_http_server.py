"""`pressoir serve` as it is run: a real process, real sockets."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import soundfile
import yaml
from click.testing import CliRunner
from serving_http import KEY, SENTENCE, events, refused
from speech_models import MAKERS, TIMES, make_ctc, make_whisper

from pressoir.errors import RecipeError
from pressoir.evaluation import datasets
from pressoir.evaluation.child.remote import open_remote_predictor, samples_of
from pressoir.evaluation.config import DataSetConfig, GenerationConfig
from pressoir.evaluation.jobs import Job, Remote
from pressoir.flows.commands.serve import serve
from pressoir.inference.feature_extraction import SentenceEncoder
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.text_generation import TextGenerator
from pressoir.inference.translation import Translator
from pressoir.recipe.sections import DataConfig
from pressoir.serving.http.server import listen

pytestmark = pytest.mark.process

PROGRAM = (
    "from pressoir.flows.cli import main; from pressoir.flows.commands.serve import serve\n"
    "main.add_command(serve); main()"
)
LIMITS = ("max_body_bytes=100000", "body_timeout_s=0.5", "header_timeout_s=0.5", "max_connections=150")


class Server:
    """A running server: its address, and what it has said."""

    def __init__(self, process):
        self.process, self.errors, self.url = process, [], None
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        while self.url is None:
            assert process.poll() is None, self.errors
            time.sleep(0.01)
        self.port = int(self.url.rpartition(":")[2])
        while httpx.get(f"{self.url}/health/ready").status_code != 200:
            assert process.poll() is None, self.errors
            time.sleep(0.05)

    def _read(self):
        for line in self.process.stderr:
            self.errors.append(line)
            if found := re.search(r"http://\S+", line):
                self.url = found[0]

    def stopped(self, number=signal.SIGTERM):
        """Tell it to stop; gives its exit code and its log of requests."""
        self.process.send_signal(number)
        lines = self.process.stdout.read().splitlines()
        return self.process.wait(), [json.loads(line) for line in lines]


@contextmanager
def running(config, home, limits=LIMITS, **environment):
    limits = [part for limit in limits for part in ("--limit", limit)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "serve", str(config), "--port", "0", *limits],
        env={**os.environ, "PRESSOIR_HOME": str(home), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


@pytest.fixture(scope="module")
def config(tiny_classifier, tiny_bert, tiny_marian, tiny_llama, tmp_path_factory):
    """A file that names local folders, as a person writes it."""
    chatty = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("chatty") / "llama")
    template = "{% for one in messages %}{{ one.role }}: {{ one.content }}\n{% endfor %}assistant:"
    (chatty / "chat_template.jinja").write_text(template)
    folders = {"reviews": tiny_classifier, "vectors": tiny_bert, "french": tiny_marian, "story": chatty}
    tiers = {name: {"model": str(folder)} for name, folder in folders.items()}
    for name in ("reviews", "vectors"):  # whose tokenizer does not say how much the model takes
        tiers[name]["settings"] = {"max_length": 60}
    tiers["french"]["settings"] = {"num_beams": 2}
    path = tmp_path_factory.mktemp("serving") / "serving.yaml"
    path.write_text(yaml.safe_dump({"isolation": "thread", "threads": 1, "tiers": tiers}))
    return path


@pytest.fixture(scope="module")
def server(config, tmp_path_factory):
    with running(config, tmp_path_factory.mktemp("home")) as server:
        yield server


def connected(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def all_of(connection):
    """Everything that comes until the other side closes."""
    received = b""
    while part := connection.recv(1 << 16):
        received += part
    return received


def gauge(server, name):
    text = httpx.get(f"{server.url}/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))


class TestConnections:
    def test_a_stream_comes_as_it_is_written(self, server):
        asked_for = {"prompt": "the film was", "tier": "story", "max_new_tokens": 200}
        with httpx.stream("POST", f"{server.url}/generate/stream", json=asked_for, timeout=60) as answer:
            parts = list(answer.iter_raw())
        assert len(parts) > 3  # not in one
        assert events(b"".join(parts).decode())[-1][1]["done"]

    def test_a_client_that_hangs_up_ends_its_stream(self, server):
        asked_for = {"prompt": "the film was", "tier": "story", "max_new_tokens": 250}
        with httpx.stream("POST", f"{server.url}/generate/stream", json=asked_for) as answer:
            next(answer.iter_raw())
        while gauge(server, "pressoir_model_leases"):
            time.sleep(0.01)
        text = httpx.get(f"{server.url}/metrics").text
        assert 'pressoir_requests_total{operation="generate",outcome="cancelled",tier="story"} 1.0' in text

    def test_a_chunked_body_that_is_too_large_is_refused_while_it_comes(self, server):
        sent = 0

        def parts():
            nonlocal sent
            for _ in range(10_000):
                sent += 10_000
                yield b" " * 10_000

        answer = httpx.post(f"{server.url}/classify", content=parts(), timeout=30)
        assert "larger than 100000 bytes" in refused(answer, 413, "too_large")
        assert answer.headers["connection"] == "close"
        answer = httpx.post(f"{server.url}/classify", content=b" " * 5_000_000, timeout=30)
        refused(answer, 413, "too_large")

    @pytest.mark.parametrize(
        ("sent", "type"),
        [
            (b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", b"body_timeout"),
            (
                b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
                b"body_timeout",
            ),
            (b"GET /stats HTTP/1.1\r\nHo", b"header_timeout"),
            (b"", b"header_timeout"),
        ],
    )
    def test_who_sends_too_slowly_is_told_and_disconnected(self, server, sent, type):
        with connected(server) as connection:
            connection.sendall(sent)
            received = all_of(connection)
        assert received.startswith(b"HTTP/1.1 408")
        assert b'{"error":{"type":"' + type in received

    def test_who_drips_a_second_head_is_disconnected_too(self, server):
        with connected(server) as connection:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while b'{"live":true}' not in received:
                received += connection.recv(1 << 16)
            connection.sendall(b"GET /health")
            assert all_of(connection).startswith(b"HTTP/1.1 408")

    def test_a_head_without_end_is_refused_while_it_comes(self, server):
        with connected(server) as connection:
            connection.sendall(b"GET /stats HTTP/1.1\r\n" + b"X-More: again and again\r\n" * 4000)
            received = all_of(connection)
        assert received.startswith(b"HTTP/1.1 431")
        assert b'{"error":{"type":"head_too_large"' in received

    def test_what_is_no_http_is_told_in_the_shape(self, server):
        with connected(server) as connection:
            connection.sendall(b"hello\r\n\r\n")
            received = all_of(connection)
        assert received.startswith(b"HTTP/1.1 400")
        assert b'"type":"invalid_request"' in received

    def test_connections_are_limited(self, server):
        connections = [connected(server) for _ in range(150)]
        try:
            with connected(server) as one_more:
                assert all_of(one_more).startswith(b"HTTP/1.1 503")
        finally:
            for connection in connections:
                connection.shutdown(socket.SHUT_WR)
                all_of(connection)  # until the server has closed it, too
                connection.close()

    def test_many_clients_of_whom_some_leave_get_their_own_answers(self, server, tiny_classifier):
        texts = [f"the {noun} was {word}" for noun in ("film", "soup", "song") for word in ("good", "bad")]
        expected = dict(zip(texts, TextClassifier.open(tiny_classifier, 1).predict(texts), strict=True))

        async def run():
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

                async def one(index):
                    text = texts[index % len(texts)]
                    timeout = 0.001 if index % 10 == 0 else 60
                    try:
                        answer = await client.post(
                            "/classify", json={"text": text, "tier": "reviews"}, timeout=timeout
                        )
                    except httpx.TimeoutException:
                        return
                    assert answer.status_code == 200, answer.text
                    [result] = answer.json()["results"]
                    assert result["probabilities"] == pytest.approx(expected[text], abs=1e-5)

                await asyncio.gather(*(one(index) for index in range(100)))

        asyncio.run(run())
        assert gauge(server, "pressoir_model_queue_length") == 0


class TestEvaluation:
    """What the project's own client of such servers makes of this one."""

    @pytest.fixture
    def predict(self, server, tmp_path, monkeypatch):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)

        def predict(tier, data, **fields):
            """The samples, and what is predicted for each."""
            remote = Remote(url=server.url, model=tier)
            given = {"model": "m", "remote": remote, "task": data.task, "data": data, "key": "k"}
            job = Job(**given, journal=tmp_path / "j.sqlite", batch_size=1, samples=4, **fields)
            loaded = datasets.load(data, 4)
            predictor = open_remote_predictor(job, loaded)
            samples = samples_of(job, loaded)
            return samples, [row for one in samples for row in predictor.predict([one])]

        return predict

    def test_classification(self, predict, tiny_data, tiny_classifier):
        splits = {name: tiny_data / f"{name}.tsv" for name in ("train", "validation", "test")}
        data = DataSetConfig(task="text-classification", classification=DataConfig(source="files", **splits))
        samples, rows = predict("reviews", data)
        expected = TextClassifier.open(tiny_classifier, 1).predict([one.input for one in samples])
        assert [row["logits"] for row in rows] == [pytest.approx(list(one.values())) for one in expected]
        assert [row["label"] for row in rows] == [int(np.argmax(list(one.values()))) for one in expected]

    def test_translation(self, predict, tmp_path, tiny_marian):
        for name in ("source", "reference"):
            (tmp_path / name).write_text("\n".join([SENTENCE] * 4))
        data = DataSetConfig(task="translation", source=tmp_path / "source", reference=tmp_path / "reference")
        _, rows = predict("french", data, generation=GenerationConfig(max_new_tokens=6, num_beams=2))
        translator = Translator.open(tiny_marian, 1)
        [expected] = translator.translate([SENTENCE], max_new_tokens=6, num_beams=2)
        assert [row["text"] for row in rows] == [expected.strip()] * 4

    def test_embeddings(self, predict, tiny_bert):
        samples, rows = predict("vectors", DataSetConfig(task="feature-extraction"))
        encoder = SentenceEncoder.open(tiny_bert, 1)
        for sample, row in zip(samples, rows, strict=True):
            first, second = sample.input
            assert row["similarity"] == pytest.approx(encoder.similarity([first], [second])[0], abs=1e-5)

    def test_perplexity(self, predict, tiny_llama, tmp_path):
        (tmp_path / "text.txt").write_text(f"{SENTENCE} and {SENTENCE}")
        data = DataSetConfig(task="causal-lm", text=tmp_path / "text.txt")
        samples, rows = predict("story", data, generation=GenerationConfig(window=16))
        generator = TextGenerator.open(tiny_llama, 1)
        for sample, row in zip(samples, rows, strict=True):
            window = len(generator.tokenizer.encode(sample.input))
            expected = generator.perplexity(sample.input, window)
            assert row == {
                "nll": pytest.approx(expected.nll * expected.tokens, rel=1e-4),
                "tokens": expected.tokens,
            }


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_requests_in_flight_are_answered_before_it_ends(self, config, tmp_path, number):
        with running(config, tmp_path, PRESSOIR_API_KEY="sesame") as server:
            asked_for = {"model": "story", "prompt": "the film was", "max_tokens": 250}
            answers = []

            def ask():
                answers.append(
                    httpx.post(f"{server.url}/v1/completions", json=asked_for, headers=KEY, timeout=60)
                )

            asking = threading.Thread(target=ask)
            asking.start()
            with httpx.Client(base_url=server.url, headers=KEY) as client:
                while 'pressoir_model_leases{model="' not in (
                    text := client.get("/metrics").text
                ) or not re.search(r"model_leases\S+ 1\.0", text):
                    assert asking.is_alive()
            code, lines = server.stopped(number)
            asking.join()
            assert answers[0].status_code == 200
            assert answers[0].json()["usage"]["completion_tokens"] == 250
            assert code == 0
            assert {"route": "/v1/completions", "status": 200, "tier": "story"}.items() <= lines[-1].items()
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{server.url}/health/live")


def test_a_killed_worker_is_replaced_and_without_its_files_the_server_is_not_ready(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "vectors")
    path = tmp_path / "serving.yaml"
    path.write_text(yaml.safe_dump({"threads": 1, "tiers": {"vectors": {"model": str(folder)}}}))

    def state(server):
        ready = httpx.get(f"{server.url}/health/ready").status_code
        tier = httpx.get(f"{server.url}/v2/models/vectors/ready").status_code
        gauge = re.search(r"^pressoir_ready (\d)", httpx.get(f"{server.url}/metrics").text, re.MULTILINE)
        return ready, tier, int(gauge[1])

    def embed(server):
        body = {"model": "vectors", "input": "the film was good"}
        return httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60)

    def kill_worker(server):
        workers = [
            child
            for child in psutil.Process(server.process.pid).children(recursive=True)
            if any("pressoir" in word and "worker" in word for word in child.cmdline())
        ]
        assert workers
        for worker in workers:
            worker.kill()

    with running(path, tmp_path, limits=()) as server:
        before = embed(server).json()["data"]
        assert state(server) == (200, 200, 1)
        kill_worker(server)
        again = embed(server)
        if again.status_code != 200:  # it came before the server saw that its worker had ended
            assert again.json()["error"]["type"] == "worker_died"
            again = embed(server)
        assert again.json()["data"] == before, "the model is loaded again from its files"
        kill_worker(server)
        shutil.rmtree(folder)
        for refused in (embed(server), embed(server)):
            assert refused.status_code == 503
            assert str(tmp_path) not in refused.text
        assert state(server) == (503, 503, 0)
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        shutil.copytree(tiny_bert, folder)
        assert state(server) == (200, 200, 1)
        assert embed(server).json()["data"] == before


class TestStarting:
    def test_answers_are_sent_at_once_and_not_when_the_last_packet_is_acknowledged(self):
        async def run():
            loop, accepted = asyncio.get_running_loop(), asyncio.Queue()

            class Protocol(asyncio.Protocol):
                def connection_made(self, transport):
                    accepted.put_nowait(transport)

            listening = listen("127.0.0.1", 0)
            server = await loop.create_server(Protocol, sock=listening)
            _, writer = await asyncio.open_connection(*listening.getsockname())
            transport = await accepted.get()
            opened = transport.get_extra_info("socket")
            assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            await writer.wait_closed()
            transport.close()
            server.close()
            await server.wait_closed()

        asyncio.run(run())

    def test_a_taken_port_is_told_with_one_that_is_free(self, config):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            result = CliRunner().invoke(serve, [str(config)], env={"PRESSOIR_PORT": str(port)})
            assert isinstance(result.exception, RecipeError)
            said = str(result.exception)
            assert said.startswith(f"port {port} on 127.0.0.1 is taken; --port ")
            free = int(re.search(r"--port (\d+) is free", said)[1])
            listen("127.0.0.1", free).close()

    def test_a_host_that_is_not_this_machine_is_told(self):
        for host in ("no.such.host.invalid", "192.0.2.1"):
            with pytest.raises(RecipeError, match=r"choose another --host|not an address of this machine"):
                listen(host, 0)

    def test_models_of_a_registry_are_refused_with_what_to_run(self, tmp_path):
        path = tmp_path / "serving.yaml"
        path.write_text("tiers:\n  basic:\n    model: models:/demo@champion\n")
        result = CliRunner().invoke(serve, [str(path)])
        assert isinstance(result.exception, RecipeError)
        assert "run `pressoir deploy" in str(result.exception)

    def test_a_limit_that_is_not_known_is_told(self, config):
        result = CliRunner().invoke(serve, [str(config), "--limit", "max_body_byts=1"])
        assert "did you mean `max_body_bytes`" in str(result.exception)

    def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_reason(
        self, config, tmp_path, tiny_classifier
    ):
        from pressoir.serving.config import ServingConfig, resolve
        from pressoir.store.store import Store

        resolved = resolve(ServingConfig.from_yaml(config), Store(tmp_path))
        broken = resolved.tiers["reviews"].model_copy(update={"digest": "0" * 64})
        path = tmp_path / "resolved.yaml"
        path.write_text(resolved.model_copy(update={"tiers": {"reviews": broken}}).to_yaml())
        found = subprocess.run(
            [sys.executable, "-c", PROGRAM, "serve", str(path), "--port", "0"],
            env={**os.environ, "PRESSOIR_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert found.returncode == 2
        assert "have the digest" in found.stderr.splitlines()[-1]


def test_openais_own_client_finds_nothing_wrong(server):
    script = Path(__file__).parents[3] / "clients" / "openai_client.py"
    found = subprocess.run(
        [sys.executable, str(script), server.url, "story"], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    assert [line.partition(":")[0] for line in found.stdout.splitlines()] == [
        "completions",
        "chat",
        *["refused"] * 3,
        "response_format",
    ]


@pytest.fixture
def speech(tmp_path, built_once, sentencepiece_model):
    """A file that names models of sound of each kind, and a recording."""
    folders = {
        "whisper": built_once("whisper-timed", lambda out: make_whisper(out, "multilingual", **TIMES)),
        "english": built_once("whisper-english", lambda out: make_whisper(out, "English only")),
        "letters": built_once("ctc-words", lambda out: make_ctc(out, "Wav2Vec2", likes="x")),
        "seamless": built_once(
            "speech-seamless_m4t", lambda out: MAKERS["seamless_m4t"](out, sentencepiece_model)
        ),
    }
    tiers = {name: {"model": str(folder)} for name, folder in folders.items()}
    tiers["seamless"]["settings"] = {"source_language": "fr"}
    path, sound = tmp_path / "speech.yaml", tmp_path / "speech.flac"
    path.write_text(yaml.safe_dump({"isolation": "thread", "threads": 1, "tiers": tiers}))
    generator, time = np.random.default_rng(3), np.arange(40_000) / 16_000
    sweep = np.sin(2 * np.pi * 900 * time * (1 + time)) + 0.2 * generator.standard_normal(len(time))
    soundfile.write(sound, 0.3 * sweep, 16_000)
    return path, sound


def test_openais_own_client_gets_transcripts_in_every_format(speech, tmp_path):
    script = Path(__file__).parents[3] / "clients" / "openai_audio_client.py"
    config, sound = speech
    with running(config, tmp_path, limits=()) as server:
        found = subprocess.run(
            [sys.executable, str(script), server.url, str(sound)], capture_output=True, text=True, timeout=120
        )
    assert found.returncode == 0, found.stderr
    assert [line.partition(":")[0] for line in found.stdout.splitlines()] == [
        *("transcriptions", "stream", "stream"),
        *("translations", "refusals"),
    ]


def test_openais_own_client_reads_which_texts_were_truncated(server):
    from openai import OpenAI

    texts = ["the film", "the film was good " * 200]
    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = client.embeddings.create(model="vectors", input=texts)
    assert len(answer.data[0].embedding) == 32
    assert [one.model_extra for one in answer.data] == [{}, {"truncated": True}]


def test_nvidias_own_client_of_kserve_finds_nothing_wrong(server, tiny_classifier):
    script = Path(__file__).parents[3] / "clients" / "triton_client.py"
    found = subprocess.run(
        [sys.executable, str(script), server.url, "reviews", "french", str(tiny_classifier)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert [line.partition(":")[0] for line in found.stdout.splitlines()] == [
        "tensors",
        "metadata",
        "versions",
        "refusals",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 100}, "add up to 100 bytes, but 8 follow"),
        ({"header": "9999"}, "is not a length within the body"),
        ({"header": "x"}, "is not a length within the body"),
        ({"tail": b"\xff\xff\xff\xffgood"}, "a text is longer than what follows"),
        ({"tail": b"\x04\0\0\0\xff\xff\xff\xff"}, "is not of the datatype BYTES"),
        ({"size": None}, "expected either data or parameters.binary_data_size"),
        ({"data": ["good"], "size": None}, "8 bytes follow the JSON, but no input has a binary_data_size"),
        ({"data": ["good"]}, "expected either data or parameters.binary_data_size"),
        ({"datatype": "FP32"}, "expected BYTES"),
    ],
)
def test_binary_tensors_that_do_not_add_up_are_refused(server, change, message):
    tail = change.get("tail", b"\x04\0\0\0good")
    size = change.get("size", len(tail))
    tensor = {"name": "text", "shape": [1], "datatype": change.get("datatype", "BYTES")}
    tensor |= {"data": change["data"]} if "data" in change else {}
    tensor |= {} if size is None else {"parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": change.get("header", str(len(head)))}
    answer = httpx.post(f"{server.url}/v2/models/reviews/infer", content=head + tail, headers=headers)
    assert answer.status_code == 422
    assert message in answer.json()["error"]
