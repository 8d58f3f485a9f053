"""A server's address, key and patience: a request ends in an answer, or in an error that says what to change.

A server that cannot be reached, or answers 408, 425, 429 or a passing 5xx, is asked again after growing
pauses, or after its `Retry-After` (RFC 9110, section 10.2.3), all within the time of one request. Redirects
are not followed: the API key goes to the address it was given for, and into no message. Proxies and
certificates that the environment names (`HTTPS_PROXY`, `NO_PROXY`, `SSL_CERT_FILE`) are used.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from pressoir.errors import PressoirError, RecipeError, UnreachableError
from pressoir.evaluation.jobs import Remote

ATTEMPTS = 4
BACKOFF_S = 0.5
"""Pause after the first failure; each further one is twice as long."""
ANSWER_BYTES = 16 << 20
"""A longer answer is refused."""
_SHOWN = 300
_WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}
_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
Kind = TypeVar("Kind", bound=BaseModel)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    headers: httpx.Headers

    @property
    def ok(self) -> bool:
        """Whether it is what was asked for, by its status."""
        return 200 <= self.status < 300

    @property
    def json(self) -> JsonValue:
        """The body; None where it is no JSON."""
        try:
            return _JSON.validate_json(self.body)
        except ValidationError:
            return None


class Endpoint:
    """A server that speaks HTTP and JSON.

    Raises:
        RecipeError: the address or the key cannot be used.
    """

    def __init__(self, remote: Remote) -> None:
        self.url, self._key = _base(remote.url), _key(remote)
        self._key_name, self._timeout_s = remote.api_key_env, remote.timeout_s
        headers = {"User-Agent": "pressoir", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._client = httpx.Client(headers=headers, follow_redirects=False)
        weakref.finalize(self, self._client.close)

    def get(self, path: str) -> Answer:
        """An answer of any status that trying again would not change.

        Raises:
            UnreachableError: there is none.
        """
        return self._ask("GET", path)

    def post(self, path: str, kind: type[Kind], **content: Any) -> Kind:
        """The answer to `json=…`, or to a form's `data=…` and `files=…`.

        Raises:
            UnreachableError: there is none.
            PressoirError: the server refuses, or answers with something else.
        """
        return self.parsed(path, self._ask("POST", path, **content), kind)

    def parsed(self, path: str, answer: Answer, kind: type[Kind]) -> Kind:
        """What a path answered.

        Raises:
            PressoirError: it is an error, or of another kind.
        """
        if not answer.ok:
            raise self.refused(path, answer)
        try:
            return kind.model_validate_json(answer.body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "the body"
            raise self.malformed(
                path, f"{field}: {first['msg']}; the response is {self._said(answer)!r}"
            ) from None

    def refused(self, path: str, answer: Answer) -> PressoirError:
        """What an answer that is an error means."""
        where, said = self.url + path, self._said(answer)
        if answer.status in (401, 403):
            todo = (
                f"check the API key in the environment variable {self._key_name}"
                if self._key_name
                else "set api_key_env to the name of an environment variable that contains an API key"
            )
            return RecipeError(f"{where} denied access (HTTP {answer.status}: {said}); {todo}")
        if 300 <= answer.status < 400:
            to = self.shown(answer.headers.get("Location", "nowhere").partition("?")[0])
            return RecipeError(f"{where} redirects to {to}, which is not followed; set url to that address")
        return PressoirError(f"{where} returned HTTP {answer.status}: {said}")

    def malformed(self, path: str, what: str) -> PressoirError:
        """An answer is not as the protocol says."""
        return PressoirError(
            f"{self.url}{path} returned a response that does not match its protocol: {what}; check url and "
            "protocol"
        )

    def unreachable(self, reason: str, todo: str) -> UnreachableError:
        """There is no use in asking the server now."""
        return UnreachableError(f"{self.url} is unreachable: {reason}; {todo}")

    def shown(self, text: str) -> str:
        """Others' words in a message: short, on one line, and without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        return "".join(c for c in " ".join(text.split()) if c.isprintable())[:_SHOWN]

    def _ask(self, method: str, path: str, **content: Any) -> Answer:
        end, attempt = time.monotonic() + self._timeout_s, 0
        while True:
            pause, again, attempt = BACKOFF_S * 2**attempt, True, attempt + 1
            cause = None
            try:
                answer = self._once(method, path, end, content)
            except httpx.HTTPError as error:
                cause = error
                reason, todo, again = self._why(error)
            else:
                if answer.status not in _WORTH_RETRYING:
                    return answer
                reason = f"{path} returned HTTP {answer.status}: {self._said(answer)}"
                todo = "try again when the server is ready and less busy; see its log for details"
                if asked := _retry_after_s(answer):
                    reason += f", and asked to wait {asked:.0f} s"
                    pause = max(pause, asked)
            if not again or attempt == ATTEMPTS or time.monotonic() + pause >= end:
                tried = f" (tried {attempt} times)" if attempt > 1 else ""
                raise self.unreachable(reason + tried, todo) from cause
            time.sleep(pause)

    def _once(self, method: str, path: str, end: float, content: Mapping[str, Any]) -> Answer:
        body, left = bytearray(), max(end - time.monotonic(), 0.001)
        with self._client.stream(method, self.url + path, timeout=left, **content) as response:
            for piece in response.iter_bytes():
                body += piece
                if len(body) > ANSWER_BYTES:
                    raise self.malformed(path, f"the response has more than {ANSWER_BYTES} bytes")
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the response is too slow")
        return Answer(response.status_code, bytes(body), response.headers)

    def _why(self, error: httpx.HTTPError) -> tuple[str, str, bool]:
        """Why there was no answer, what to do about it, and whether another attempt may be better."""
        text = self.shown(str(error)) or type(error).__name__
        if isinstance(error, httpx.TimeoutException):
            limit = f"no complete response within {self._timeout_s:g} s"
            return limit, "check that the server is not overloaded, or increase request_timeout_s", False
        if isinstance(error, httpx.ProxyError):
            return f"the proxy returned {text}", "check HTTP_PROXY, HTTPS_PROXY and NO_PROXY", True
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError):
                return (
                    text,
                    "check the server's certificate, and whether url should start with http://",
                    False,
                )
            if isinstance(cause, socket.gaierror):
                return text, "check the host name in url and the network connection", True
            cause = cause.__cause__ or cause.__context__
        return text, "check that the server is running and listening on the host and port in url", True

    def _said(self, answer: Answer) -> str:
        """What a body says: in KServe's way, in OpenAI's, in others' usual ones, or as it is."""
        said: Any = answer.json
        for name in ("error", "message", "detail"):
            if isinstance(said, dict) and said.get(name):
                said = said[name]
        if said is None or isinstance(said, (dict, list)):
            said = answer.body[: 4 * _SHOWN].decode(errors="replace")
        return self.shown(str(said)) or "nothing"


def _base(url: str) -> str:
    """The address below which both protocols' paths are: without a last `/v1` or `/v2`."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise RecipeError(
                f"the url of a server on {parts.hostname} contains a user name, password, query or "
                "fragment; remove it, and set api_key_env to the environment variable that contains the "
                "API key"
            )
        path = parts.path.rstrip("/")
        base = f"{parts.scheme}://{parts.netloc}{path.removesuffix('/v1').removesuffix('/v2').rstrip('/')}"
        httpx.URL(base)
    except (ValueError, httpx.InvalidURL):
        raise RecipeError("the url of a model is not valid; expected http://host:port") from None
    return base


def _key(remote: Remote) -> str:
    """The API key; empty where there is none."""
    if remote.api_key_env is None:
        return ""
    key = os.environ.get(remote.api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        state = "contains characters that are not allowed in an API key" if key else "is not set"
        raise RecipeError(
            f"the environment variable {remote.api_key_env} (api_key_env) {state}; set it to the API key "
            f"of {_base(remote.url)}"
        )
    return key


def _retry_after_s(answer: Answer) -> float:
    """Seconds that a server asks to wait; 0 where it does not."""
    value = answer.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
        return max((when - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):  # TypeError: a date without a time zone
        return 0.0
