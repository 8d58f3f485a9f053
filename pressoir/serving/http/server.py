"""Run an app on a port: taken before anything is loaded, given back when the last request has its answer."""

from __future__ import annotations

import errno
import logging
import math
import signal
import socket
from collections.abc import Callable
from contextlib import closing, suppress

import uvicorn
from fastapi import FastAPI

from pressoir.errors import PressoirError, RecipeError
from pressoir.serving.http.limits import HttpLimits
from pressoir.serving.http.protocol import protocol_with

_BACKLOG = 1024
_TRIED = 20  # ports after a taken one that are looked at before the system is asked for any

log = logging.getLogger("pressoir")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        RecipeError: the port is taken (another is named that is free), or the host is not this machine's.
    """
    family, address = _address(host, port)
    # asyncio sends at once (TCP_NODELAY) only where the protocol is named; else each answer is 40 ms late.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)  # two that are only bound may share a port; two that listen may not
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} on {host} is taken; --port {_free_port(host, port)} is free"
        elif error.errno == errno.EACCES:
            reason = f"port {port} on {host} requires more privileges; choose a port above 1023"
        else:
            reason = f"cannot listen on {host}, port {port} ({error.strerror}); choose another --host"
        raise RecipeError(reason) from error
    opened.setblocking(False)
    return opened


def run(
    app: FastAPI, listening: socket.socket, limits: HttpLimits, drain_s: float, started: Callable[[], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C, then let requests in flight end, for `drain_s` seconds at most.

    A second Ctrl-C ends it at once. `started` is called when requests are taken; models may load still.

    Raises:
        PressoirError: the models cannot be loaded.
    """
    config = uvicorn.Config(
        app,
        http=protocol_with(limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=math.ceil(drain_s),
    )
    server = _Server(config, started)

    def fail() -> None:
        server.should_exit = True

    app.state.on_failure = fail
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # uvicorn raises again what it has handled, which then arrives here: a request to stop is not a failure.
    for number in before:
        signal.signal(number, server.handle_exit)
    try:
        with closing(listening):
            server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    failure: PressoirError | None = app.state.backend.failure
    if failure is not None:
        raise failure


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()


def _address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise RecipeError(
            f"--host {host} is not an address of this machine; use one such as 127.0.0.1"
        ) from error
    return family, (str(address[0]), port)


def _free_port(host: str, taken: int) -> int:
    """One that is free now: a near one, or else any."""
    family, _ = _address(host, taken)
    for port in (*range(taken + 1, min(taken + 1 + _TRIED, 65536)), 0):
        with socket.socket(family, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
            return int(probe.getsockname()[1])
    return 0
