"""Files of a server, over connections that break: retried with growing pauses, resumed where they stopped.

Redirects are followed to HTTP and HTTPS alone, and never from HTTPS to HTTP. No more is read of a file than
it may have. Ranges: RFC 9110, section 14, https://www.rfc-editor.org/rfc/rfc9110#section-14.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import ssl
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

from pressoir.errors import SourceError, UnreachableError
from pressoir.formats.sharding import LoadingCancelledError

ATTEMPTS = 5
BACKOFF_S = 0.5
"""Pause after the first failure; each further one is twice as long."""
TIMEOUT_S = 30.0
"""Longest silence of a server."""
PIECE_BYTES = 1 << 18
# An attempt that brought this much counts as none: a long download may break more often than ATTEMPTS.
PROGRESS_BYTES = 1 << 20
_WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
Result = TypeVar("Result")


class _BrokenError(Exception):
    """An attempt failed in a way that another one may not."""


class Server:
    """The files below one URL.

    What fetches may raise SourceError, which is an UnreachableError if trying again did not help, and
    LoadingCancelledError once the event given to it is set.
    """

    def __init__(self, url: str, cancelled: Event) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SourceError(f"{url!r} is not the URL of a folder; expected https://host/path")
        if "@" in parts.netloc:
            raise SourceError(
                f"the URL of a folder at {parts.hostname} has a user name or a password, which is not "
                "supported, since recipes are logged; serve the folder without one"
            )
        self._parts = parts._replace(path=parts.path.rstrip("/"), fragment="")
        self._cancelled = cancelled
        self._sockets = _Sockets()
        self._opener = urllib.request.build_opener(_Http(self._sockets), _Https(self._sockets), _Redirects())

    def shown(self, name: str) -> str:
        """The URL of a file as it may be printed: without a query, which may be a key."""
        return self._url(name).partition("?")[0]

    def interrupt(self) -> None:
        """End, from another thread, a read that waits; the event given to this object must be set before."""
        self._sockets.shut()

    def read(self, name: str, limit: int) -> bytes:
        """A small file as a whole; more than `limit` bytes are an error."""

        def attempt() -> bytes:
            content = bytearray()
            with self._network(name), self._open(name, 0) as response:
                while piece := response.read1(PIECE_BYTES):
                    content += piece
                    if len(content) > limit:
                        raise SourceError(
                            f"{self.shown(name)} has more than {limit} bytes, which is not accepted"
                        )
                if response.length:
                    raise _BrokenError("the server closed the connection")
            return bytes(content)

        return self._retried(name, attempt, lambda: 0, "")

    def fetch(self, name: str, part: Path, size: int, tell: Callable[[int], None]) -> str:
        """Fetch what `part` still lacks of the `size` bytes of a file; return the whole file's SHA-256.

        `tell` is called with the length of each piece, also of what is there already; less than 0 where the
        server cannot go on in the middle and the file starts anew. A failure keeps what has come.
        """
        with part.open("a+b") as file:
            digest = hashlib.sha256()

            def take(piece: bytes) -> None:
                digest.update(piece)
                tell(len(piece))

            def attempt() -> str:
                nonlocal digest
                if (done := file.tell()) == size:
                    return digest.hexdigest()
                with self._network(name):
                    response = self._open(name, done)
                with response:
                    if self._start(name, response, done, size) != done:
                        file.truncate(0)
                        file.seek(0)
                        digest = hashlib.sha256()
                        tell(-done)
                    while left := size - file.tell():
                        with self._network(name):
                            piece = response.read1(min(PIECE_BYTES, left))
                        if not piece:
                            raise _BrokenError(
                                f"the server closed the connection with {left} bytes remaining"
                            )
                        file.write(piece)
                        take(piece)
                return digest.hexdigest()

            if file.tell() > size:
                file.truncate(0)
            file.seek(0)
            while piece := file.read(PIECE_BYTES):
                self._check_cancelled()
                take(piece)
            kept = f"; {part} keeps the partial download, and the next run resumes it"
            return self._retried(name, attempt, file.tell, kept)

    def _retried(
        self, name: str, attempt: Callable[[], Result], done: Callable[[], int], kept: str
    ) -> Result:
        failures = 0
        while True:
            before = done()
            try:
                return attempt()
            except _BrokenError as error:
                self._check_cancelled()
                failures = 1 if done() - before >= PROGRESS_BYTES else failures + 1
                if failures >= ATTEMPTS:
                    raise UnreachableError(
                        f"{self.shown(name)}: {error}; tried {ATTEMPTS} times{kept}"
                    ) from error
                self._cancelled.wait(BACKOFF_S * 2 ** (failures - 1))
                self._check_cancelled()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise LoadingCancelledError(f"loading {self.shown('')} was cancelled")

    def _url(self, name: str) -> str:
        return self._parts._replace(path=f"{self._parts.path}/{quote(name)}").geturl()

    def _open(self, name: str, start: int) -> http.client.HTTPResponse:
        headers = {"User-Agent": "pressoir", **({"Range": f"bytes={start}-"} if start else {})}
        request = urllib.request.Request(self._url(name), headers=headers)
        response: http.client.HTTPResponse = self._opener.open(request, timeout=TIMEOUT_S)
        return response

    def _start(self, name: str, response: http.client.HTTPResponse, asked: int, size: int) -> int:
        """The byte that an answer begins with: the one asked for, or 0 from a server without ranges."""
        start, total = 0, response.headers.get("Content-Length", "*")
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != asked:
                raise SourceError(f"{self.shown(name)}: the server returned a different range than requested")
            start, total = asked, match[2]
        if total != "*" and total != str(size):
            raise SourceError(
                f"{self.shown(name)} has {total} bytes, but the manifest says {size}; the folder on the "
                "server is incomplete or was changed"
            )
        return start

    @contextmanager
    def _network(self, name: str) -> Iterator[None]:
        """Tell failures that another attempt may not meet from those that it would."""
        try:
            yield
        except HTTPError as error:
            error.close()
            text = f"HTTP {error.code} {error.reason}"
            if error.code in _WORTH_RETRYING:
                raise _BrokenError(text) from error
            raise SourceError(f"{self.shown(name)} cannot be downloaded: {text}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise SourceError(f"{self.shown(name)} cannot be downloaded: {reason}") from error
            raise _BrokenError(str(reason) or type(reason).__name__) from error


class _Sockets:
    """Open sockets, so that another thread can end a wait for one."""

    def __init__(self) -> None:
        self._open = weakref.WeakSet[socket.socket]()
        self._lock, self._shut = Lock(), False

    def add(self, new: socket.socket) -> None:
        with self._lock:
            self._open.add(new)
            if self._shut:
                new.close()

    def shut(self) -> None:
        with self._lock:
            self._shut = True
            for old in self._open:
                with suppress(OSError):  # already closed
                    old.shutdown(socket.SHUT_RDWR)


def _remembering(
    kind: type[http.client.HTTPConnection], sockets: _Sockets
) -> type[http.client.HTTPConnection]:
    """A connection whose socket is put into `sockets`."""

    class Connection(kind):  # type: ignore[valid-type,misc]
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    return Connection


class _Http(urllib.request.HTTPHandler):
    def __init__(self, sockets: _Sockets) -> None:
        super().__init__()
        self._kind = _remembering(http.client.HTTPConnection, sockets)

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._kind, request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, sockets: _Sockets) -> None:
        super().__init__()
        self._kind = _remembering(http.client.HTTPSConnection, sockets)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._kind, request, context=ssl.create_default_context())


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, request: urllib.request.Request, answer: Any, code: int, text: str, headers: Any, url: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(request.full_url).scheme, urlsplit(url).scheme
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            answer.close()
            raise SourceError(f"{request.full_url} redirects from {old} to {new}, which is not allowed")
        return super().redirect_request(request, answer, code, text, headers, url)
