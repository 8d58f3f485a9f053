"""Prefect's and MLflow's pages on this machine, over the stores that the flows write: `pressoir ui`.

Both listen on 127.0.0.1 alone. Ctrl-C or SIGTERM stops both, and every process they have started.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pressoir.errors import PressoirError, RecipeError
from pressoir.flows.commands.stopping import sigterm_as_interrupt
from pressoir.store.store import Store
from pressoir.system.addresses import without_password
from pressoir.tasks.tracking.database import (
    MLFLOW_PORT,
    database_lock,
    prepare_database,
    set_ui_port,
    tracking_uri,
)

HOST = "127.0.0.1"
PREFECT_PORT = 4200
_START_S, _STOP_S = 180.0, 10.0


@dataclass(frozen=True)
class Server:
    """One of the two servers."""

    name: str
    port: int
    health: str
    """Path that answers 200 once it is up."""
    command: tuple[str, ...]
    environment: dict[str, str]


def serve_ui(prefect_port: int = PREFECT_PORT, mlflow_port: int = MLFLOW_PORT) -> None:
    """Start both servers, print where they are, and wait until one ends or a signal stops them.

    Raises:
        RecipeError: a port is taken. PressoirError: a server does not start, or ends by itself.
    """
    servers = [_prefect(prefect_port), _mlflow(mlflow_port, Store())]
    for server in servers:
        _check_free(server)
    with sigterm_as_interrupt(), ExitStack() as stack:
        try:
            processes = [stack.enter_context(_running(server)) for server in servers]
            for server, process in zip(servers, processes, strict=True):
                _wait_until_healthy(server, process)
            set_ui_port(Store().home, mlflow_port)
            for server in servers:
                print(f"{server.name:8} http://{HOST}:{server.port}", flush=True)
            print(f"To show runs there: export PREFECT_API_URL=http://{HOST}:{prefect_port}/api", flush=True)
            print("Ctrl-C stops both.", flush=True)
            while True:
                for server, process in zip(servers, processes, strict=True):
                    if process.poll() is not None:
                        raise PressoirError(
                            f"{server.name} exited unexpectedly with code {process.returncode}"
                        )
                time.sleep(0.5)
        except KeyboardInterrupt:
            print("stopping", flush=True)


def _prefect(port: int) -> Server:
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port))
    # The page must ask this server, whatever API the user's profile names.
    environment = {
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",
    }
    return Server("Prefect", port, "/api/health", command, environment)


def _mlflow(port: int, store: Store) -> Server:
    uri, default = tracking_uri(store.home)
    if uri.startswith("http"):
        raise RecipeError(
            f"MLFLOW_TRACKING_URI is {without_password(uri)}, which is already a server: open it, or unset "
            "the variable"
        )
    artifacts = (store.home / "mlartifacts").as_uri() if default else "./mlruns"
    with database_lock(store.home):
        prepare_database(uri)
    command = (
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", uri, "--artifacts-destination", artifacts),
    )
    return Server("MLflow", port, "/health", command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})


def _check_free(server: Server) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, server.port))
        except OSError as error:
            raise RecipeError(
                f"port {server.port} on {HOST} is not available for {server.name} ({error.strerror}); stop "
                f"the process that uses it, or choose another with --{server.name.lower()}-port"
            ) from error


def _wait_until_healthy(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PressoirError(
                f"{server.name} did not start (code {process.returncode}); see its output above"
            )
        try:
            with urllib.request.urlopen(f"http://{HOST}:{server.port}{server.health}", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise PressoirError(f"{server.name} did not answer on port {server.port} within {_START_S:.0f} s")


@contextmanager
def _running(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """The server in a process group of its own; the whole group is stopped in the end."""
    process = subprocess.Popen(
        server.command,
        env={**os.environ, **server.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + _STOP_S
        while time.monotonic() < deadline and _group_lives(process):
            time.sleep(0.1)
    process.wait()


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the leader, who would count as alive
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    try:
        serve_ui()
    except PressoirError as error:
        sys.exit(f"error: {error}")
