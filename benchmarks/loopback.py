"""Server processes on this machine, and a lean client that keeps them busy, for the benchmarks of serving.

The client speaks just enough HTTP/1.1 to be cheap: a connection a client, requests made beforehand, the next
one sent when the last was answered (closed loop).
"""

from __future__ import annotations

import asyncio
import csv
import http.client
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pressoir.data.sentences import DEMO

HOST = "127.0.0.1"
START_S, STOP_S = 600.0, 30.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    port: int
    pid: int

    def get(self, path: str) -> str:
        """The body of a GET; RuntimeError where it is not answered with 200."""
        status, body = _get(self.port, path)
        if status != 200:
            raise RuntimeError(f"GET {path} is answered with {status}: {body[:500]}")
        return body


@dataclass
class Load:
    """What some clients saw."""

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    """Of answers with status 200."""
    failures: list[str] = field(default_factory=list)
    """Status and body of all others."""

    def percentile_ms(self, percent: int) -> float:
        """Such as 50 and 95."""
        if len(self.latencies_ms) < 2:
            return float("nan")
        return statistics.quantiles(self.latencies_ms, n=100, method="inclusive")[percent - 1]

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.latencies_ms) / self.seconds

    def add(self, other: Load) -> None:
        """Take the measurements of another round."""
        self.seconds += other.seconds
        self.latencies_ms += other.latencies_ms
        self.failures += other.failures


@contextmanager
def running(
    command: Sequence[object],
    port: int,
    ready: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[Server]:
    """A block in which a server runs, from when GET `ready` is answered with 200.

    Raises:
        RuntimeError: it ended, or was not ready in time; with the end of its log.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **(environment or {})},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        while _get(port, ready)[0] != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not serve:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with suppress(ProcessLookupError):  # what it started, and may have left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def pressoir(config: dict[str, Any], work: Path, home: Path, *limits: str) -> Iterator[Server]:
    """A block in which Pressoir serves a configuration, with limits such as `max_body_bytes=1000000`."""
    port = free_port()
    path = work / f"serving-{port}.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML, too
    command = [Path(sys.executable).with_name("pressoir"), "serve", path, "--port", str(port)]
    command += [word for limit in limits for word in ("--limit", limit)]
    environment = {"PRESSOIR_HOME": str(home.resolve())}
    with running(command, port, "/health/ready", work / f"serving-{port}.log", environment) as server:
        yield server


def demo_texts(count: int) -> list[str]:
    """The first texts of the demo's test split."""
    with (DEMO / "test.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row["text"] for row in itertools.islice(rows, count)]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def post(path: str, body: Any) -> bytes:
    """A whole request."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def ask_all(port: int, requests: Sequence[bytes], clients: int) -> list[Any]:
    """The answers to all requests, in their order; RuntimeError where one is an error."""

    async def run() -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        left = iter(range(len(requests)))

        async def client() -> None:
            reader, writer = await asyncio.open_connection(HOST, port)
            for index in left:
                status, body = await _ask(reader, writer, requests[index])
                if status != 200:
                    raise RuntimeError(f"a request is answered with {status}: {body[:500]!r}")
                answers[index] = json.loads(body)
            writer.close()

        await asyncio.gather(*(client() for _ in range(clients)))
        return answers

    return asyncio.run(run())


def load(
    port: int,
    requests: Sequence[bytes],
    clients: int,
    seconds: float,
    on_answer: Callable[[], None] = lambda: None,
) -> Load:
    """Keep a server busy for some time; each client begins at another request."""
    return asyncio.run(_load(port, requests, clients, seconds, on_answer))


async def _load(
    port: int, requests: Sequence[bytes], clients: int, seconds: float, on_answer: Callable[[], None]
) -> Load:
    found = Load()
    connections = [await asyncio.open_connection(HOST, port) for _ in range(clients)]
    start = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = connections[number]
        first = number * len(requests) // clients
        sent = time.perf_counter()
        for index in itertools.count(first):
            status, body = await _ask(reader, writer, requests[index % len(requests)])
            now = time.perf_counter()
            on_answer()
            if status == 200:
                found.latencies_ms.append(1000 * (now - sent))
            else:
                found.failures.append(f"{status}: {body[:300]!r}")
            if now - start >= seconds:
                break
            sent = now
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    found.seconds = time.perf_counter() - start
    return found


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes]:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if length is None:
        raise RuntimeError(f"an answer without its length: {head!r}")
    return int(head[9:12]), await reader.readexactly(int(length[1]))


def _get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a GET; 0 where nobody answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()
