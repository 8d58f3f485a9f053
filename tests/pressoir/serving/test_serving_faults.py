"""A real server that everything happens to: clients that leave, dawdle or err; files and workers that break.

Whatever happens, 64 clients ask on meanwhile, and each of their answers is checked: it is right, or (only
where their model's worker is killed) an error in the one shape.
"""

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import yaml
from serving_http import KEY, bag_of_words, refused

from pressoir.inference.text_classification import TextClassifier
from pressoir.system.memory import process_tree

pytestmark = pytest.mark.process

CLIENTS = 64
TEXTS = [f"the {noun} was {word}" for noun in ("film", "soup", "song") for word in ("good", "bad and cold")]
TIERS = ("basic", "premium")
LIMITS = ("max_body_bytes=100000", "body_timeout_s=2")
COMMAND = [sys.executable, "-c", "from pressoir.flows.cli import main; main()", "serve"]


@pytest.fixture(scope="module")
def model(tiny_classifier, tmp_path_factory):
    """Folder of a bag-of-words classifier in ONNX: answers differ by text, and its worker starts quickly."""
    return bag_of_words(tiny_classifier, tmp_path_factory.mktemp("bag-of-words"))


class Server:
    """The server's process, and what is asked of it."""

    def __init__(self, process, url, model):
        self.process, self.url, self.graph = process, url, model / "model.onnx"
        self.met = set()  # faults that it has been through
        self.expected = dict(zip(TEXTS, TextClassifier.open(model, 1).predict(TEXTS), strict=True))

    def client(self):
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(
            base_url=self.url, headers=KEY, timeout=120, limits=limits, trust_env=False, verify=False
        )

    @property
    def workers(self):
        return [process.pid for process in process_tree(self.process.pid)[1:]]

    @property
    def anonymous_bytes(self):
        """What can leak, of all its processes. How pages of files count depends on who else has them open."""
        found = 0
        for process in process_tree(self.process.pid):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            found += 1024 * int(re.search(r"^(?:Pss_Anon|Anonymous): +(\d+)", rollup, re.MULTILINE)[1])
        return found

    @property
    def descriptors(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def check(self, answer, text, allowed=()):
        """An answer is right, or an allowed error in the one shape."""
        if answer.status_code == 200:
            [result] = answer.json()["results"]
            assert result["probabilities"] == pytest.approx(self.expected[text], abs=1e-5)
        else:
            type = answer.json()["error"]["type"]
            refused(answer, answer.status_code, type)
            assert type in allowed, answer.text

    def under_load(self, fault, allowed=()):
        """Run `fault(client)` while clients ask, all of whose answers are checked."""

        async def run():
            async with self.client() as client, asyncio.TaskGroup() as group:
                ended, answered = asyncio.Event(), asyncio.Semaphore(0)

                async def ask(number):
                    for index in itertools.count(number):
                        text, tier = TEXTS[index % len(TEXTS)], TIERS[index % len(TIERS)]
                        answer = await client.post("/classify", json={"text": text, "tier": tier})
                        self.check(answer, text, allowed)
                        answered.release()
                        if ended.is_set():
                            return

                for number in range(CLIENTS):
                    group.create_task(ask(number))
                for _ in range(CLIENTS):  # now they are all at it
                    await answered.acquire()
                await fault(client)
                ended.set()

        asyncio.run(run())
        assert self.process.poll() is None
        self.met.add(fault.__qualname__.partition(".")[0])


@contextmanager
def started(config, home, log, model, stdout=subprocess.DEVNULL):
    limits = [part for limit in LIMITS for part in ("--limit", limit)]
    environment = {
        "PRESSOIR_ADMIN_KEY": "sesame",
        "PRESSOIR_HOME": str(home),
        "PRESSOIR_API_KEY": "a-key",
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, str(config), "--port", "0", *limits],
            env={**os.environ, **environment},
            stdout=stdout,
            stderr=output,
        )
    try:
        while not (found := re.search(r"http://\S+", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        while httpx.get(f"{found[0]}/health/ready", trust_env=False).status_code != 200:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield Server(process, found[0], model)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    config = folder / "serving.yaml"
    tiers = {tier: {"model": str(model), "settings": {"max_length": 60}} for tier in TIERS}
    config.write_text(yaml.safe_dump({"threads": 1, "tiers": tiers}))
    with started(config, folder / "home", folder / "log", model) as server:
        yield server


def leave(server):
    """A tenth of the requests is given up, each after another time."""

    async def fault(client):
        async def ask(index):
            text = TEXTS[index % len(TEXTS)]
            asking = asyncio.create_task(client.post("/classify", json={"text": text, "tier": "basic"}))
            if index % 10 == 0:
                await asyncio.sleep(index / 5_000)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            else:
                server.check(await asking, text)

        await asyncio.gather(*(ask(index) for index in range(CLIENTS)))

    server.under_load(fault)


def dawdle(server):
    """Bodies that come byte by byte, announced or in chunks; gives what the connections were told."""
    told = []

    async def fault(client):
        async def drip(head, part):
            reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
            writer.write(
                b"POST /classify HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sesame\r\n" + head
            )
            answered = asyncio.create_task(everything(reader))
            while not answered.done():
                writer.write(part)
                await asyncio.sleep(0.05)
            told.append(await answered)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

        async def everything(reader):
            """All that comes; a part that was on its way when the server closed resets the connection."""
            received = b""
            with suppress(ConnectionResetError):
                while block := await reader.read(65536):
                    received += block
            return received

        announced = drip(b"Content-Length: 90000\r\n\r\n{", b" ")
        chunked = drip(b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")
        again = [drip(b"Content-Length: 90000\r\n\r\n{", b" ") for _ in range(14)]
        await asyncio.gather(announced, chunked, *again)

    server.under_load(fault)
    return told


WRONG = {
    "a body that is too large": ({"content": b" " * 200_000}, 413, "too_large"),
    "no JSON": ({"content": b'{"text": '}, 422, "invalid_request"),
    "no text at all": ({"content": b"\xff\xfe\x00"}, 400, "invalid_request"),
    "an unknown tier": ({"json": {"text": "good", "tier": "best"}}, 404, "unknown_tier"),
    "a wrong type": ({"json": {"text": 7, "tier": "basic"}}, 422, "invalid_request"),
    "a wrong key": (
        {"json": {"text": "good"}, "headers": {"Authorization": "Bearer sesam"}},
        401,
        "unauthorized",
    ),
}


def err(server):
    """Requests that are wrong, of all kinds, many at once."""

    async def fault(client):
        async def ask(request, status, type):
            headers = {"Content-Type": "application/json", **request.get("headers", {})}
            answer = await client.post("/classify", **{**request, "headers": headers})
            refused(answer, status, type)

        await asyncio.gather(*(ask(*one) for one in 8 * list(WRONG.values())))

    server.under_load(fault)


def reload(server):
    """The model is loaded anew; gives the old workers and the new ones."""
    before = server.workers

    async def fault(client):
        answer = await client.post("/v2/repository/models/basic/reload")
        assert answer.status_code == 200, answer.text

    server.under_load(fault)
    return before, server.workers


def corrupt(server):
    """The model's file is broken when it is to be loaded anew; gives the workers before and after."""
    before, whole = server.workers, server.graph.read_bytes()

    async def fault(client):
        server.graph.write_bytes(whole[:-20] + bytes(20))
        try:
            answer = await client.post("/v2/repository/models/basic/reload")
        finally:
            server.graph.write_bytes(whole)
        assert "digest" in refused(answer, 503, "load_failed")

    server.under_load(fault)
    return before, server.workers


def kill(server):
    """The worker is killed; gives the old workers and the new ones."""
    before = server.workers

    async def fault(client):
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        while before[0] in server.workers or not server.workers:
            await asyncio.sleep(0.02)
        text = TEXTS[0]
        answer = await client.post("/classify", json={"text": text, "tier": "premium"})
        server.check(answer, text)  # the one that was loaded in its place

    server.under_load(fault, allowed=("worker_died",))
    return before, server.workers


def test_clients_that_leave_take_nothing_from_the_others(server):
    leave(server)
    leases = re.compile(r"^pressoir_model_(?:leases|queue_length)\{\S+ 0\.0$", re.MULTILINE)
    while len(leases.findall(httpx.get(f"{server.url}/metrics", headers=KEY, trust_env=False).text)) < 2:
        time.sleep(0.05)


def test_bodies_that_dribble_in_are_refused_and_hold_nobody_up(server):
    told = dawdle(server)
    assert len(told) == 16
    for answer in told:
        head, _, body = answer.decode().partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 408")
        error = json.loads(body)["error"]
        assert error["type"] == "body_timeout"
        assert f"x-request-id: {error['request_id']}" in head.lower()


def test_wrong_requests_under_load_are_told_in_the_one_shape(server):
    err(server)


def test_a_reload_under_load_is_not_noticed(server):
    before, after = reload(server)
    assert len(before) == len(after) == 1
    assert before != after


def test_files_that_broke_are_refused_and_the_loaded_model_serves_on(server):
    before, after = corrupt(server)
    assert before == after
    reload(server)  # the files are whole again


def test_a_killed_worker_is_told_of_and_replaced(server):
    before, after = kill(server)
    assert len(before) == len(after) == 1
    assert before != after


def test_a_closed_standard_output_is_said_once_and_the_server_goes_on(model, tmp_path):
    config, log = tmp_path / "serving.yaml", tmp_path / "log"
    config.write_text(yaml.safe_dump({"threads": 1, "tiers": {"basic": {"model": str(model)}}}))
    reader, writer = os.pipe()
    with started(config, tmp_path / "home", log, model, writer) as server:
        os.close(writer)
        assert os.read(reader, 1) == b"{"  # the log of a request
        os.close(reader)
        with httpx.Client(base_url=server.url, headers=KEY, trust_env=False, timeout=120) as client:
            for text in TEXTS:
                server.check(client.post("/classify", json={"text": text}), text)
        server.process.terminate()
        server.process.wait()
    told = log.read_text()
    assert told.count("standard output was closed; requests are no longer logged") == 1
    assert not re.search("Traceback|Logging error|Broken ?[Pp]ipe", told)


def test_all_of_it_leaves_nothing_behind(server):
    faults = (leave, dawdle, err, reload, corrupt, kill)
    for fault in faults:
        if fault.__name__ not in server.met:  # what is imported and kept on first use
            fault(server)
    memory, descriptors = server.anonymous_bytes, server.descriptors
    for fault in faults:
        fault(server)
    for _ in range(200):  # connections that the clients have closed
        if server.descriptors <= descriptors:
            break
        time.sleep(0.05)
    assert server.descriptors <= descriptors
    assert len(server.workers) == 1
    assert server.anonymous_bytes <= 1.05 * memory
