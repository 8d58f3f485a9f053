"""Smoke test of a configuration: a temporary server is started on it and each tier gets two requests.

**Why.** That files are whole does not say that they load, that there is memory for them, or that a tier's
settings suit its model. Here all of it happens as it will, in another process and on a port of its own.

**Cost.** The models are loaded once more, beside those of a server that runs already.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pressoir.errors import PressoirError
from pressoir.serving.client import Server
from pressoir.serving.config import ADMIN_KEY_VARIABLE, ServingConfig
from pressoir.serving.deployment import DeploymentError
from pressoir.store.store import Store

HOST = "127.0.0.1"
_START_S = 60.0  # interpreter and libraries, on a busy machine
_STOP_S = 15.0
_TAIL = 2000
Found = TypeVar("Found")


def smoke(
    config: ServingConfig, store: Store, command: Sequence[str], report: Callable[[str], None]
) -> dict[str, float]:
    """Start `command CONFIG --host … --port 0` on a resolved configuration, and have each tier answer.

    Returns the milliseconds of the second answer of each tier.

    Raises:
        DeploymentError: the server does not start, serves other files, or a tier does not answer.
    """
    with _running(config, store, command) as server:
        expected = {name: tier.digest for name, tier in config.tiers.items()}
        if server.digests() != expected:
            raise DeploymentError(
                f"the server at {server.url} serves different files than {config.name} specifies"
            )
        latencies = {}
        for name, tier in config.tiers.items():
            try:
                server.ask(name, tier)
                latencies[name] = server.ask(name, tier)
            except PressoirError as error:
                raise DeploymentError(f"tiers.{name} failed its smoke test: {error}") from error
            report(f"{name} answers in {latencies[name]:.1f} ms")
    return latencies


@contextmanager
def _running(config: ServingConfig, store: Store, command: Sequence[str]) -> Iterator[Server]:
    """The server, ready; it has ended when the block has."""
    with tempfile.TemporaryDirectory(prefix="pressoir-smoke-") as folder:
        path, log = Path(folder) / "serving.yaml", Path(folder) / "server.log"
        path.write_text(config.to_yaml(), encoding="utf-8")
        key = secrets.token_hex(16)  # an administrator is shown why a model cannot be loaded
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, str(path), "--host", HOST, "--port", "0"],
                env={**os.environ, "PRESSOIR_HOME": str(store.home), ADMIN_KEY_VARIABLE: key},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us, who then end it
            )
        try:
            end = time.monotonic() + _START_S + config.load_timeout_s * len(config.tiers)
            address = _wait(lambda: _address(log), process, end, log)
            with closing(Server(address, _limit_s(config), direct=True, key=key)) as server:
                _wait(server.is_ready, process, end, log)
                yield server
        finally:
            _end(process)


def _wait(look: Callable[[], Found], process: subprocess.Popen[bytes], end: float, log: Path) -> Found:
    """What `look` finds, as soon as it finds anything."""
    while time.monotonic() < end:
        if found := look():
            return found
        if process.poll() is not None:
            raise DeploymentError(
                f"the test server exited with code {process.returncode}; its output was:\n{_tail(log)}"
            )
        time.sleep(0.05)
    raise DeploymentError(f"the test server was not ready in time; its output was:\n{_tail(log)}")


def _address(log: Path) -> str:
    """Where the server listens, which it tells once it does."""
    found = re.search(rf"http://{re.escape(HOST)}:\d+", log.read_text(errors="replace"))
    return found[0] if found else ""


def _limit_s(config: ServingConfig) -> float:
    """Longest that a request may take: its tier's time, and what the server needs to say so."""
    return max(tier.settings.timeout_s for tier in config.tiers.values()) + 5.0


def _tail(log: Path) -> str:
    return log.read_bytes()[-_TAIL:].decode(errors="replace").strip() or "nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server, and whatever it has started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
