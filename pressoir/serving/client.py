"""A running server, from outside: what it serves, one small request to each tier, and going over to another
configuration.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from pressoir.errors import RecipeError, UnreachableError
from pressoir.serving.config import ADMIN_KEY_VARIABLE, API_KEY_VARIABLE, ServingConfig, TierConfig
from pressoir.serving.deployment import DeploymentError
from pressoir.serving.examples import example_requests
from pressoir.serving.keys import Keys

_SHOWN = 300
Kind = TypeVar("Kind", bound=BaseModel)


class _Tier(BaseModel):
    tier: str
    digest: str


class _Tiers(BaseModel):
    tiers: list[_Tier]


class _Tensor(BaseModel):
    data: list[Any]


class _Inference(BaseModel):
    outputs: list[_Tensor]


class _Anything(BaseModel):
    pass


class Server:
    """A server at an address; its key is `key`, or the first of the environment's PRESSOIR_ADMIN_KEY, or else
    of PRESSOIR_API_KEY.

    `direct` goes past proxies that the environment names. Redirects are not followed: the key goes to the
    address it was given for.

    Raises:
        RecipeError: the address cannot be one, or a key is none.
    """

    def __init__(
        self, url: str, timeout_s: float = 60.0, *, direct: bool = False, key: str | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise RecipeError(f"{url!r} is not a valid server address; expected http://host:port")
        keys = Keys.read() if key is None else Keys.read("", key)
        self._key_from = ADMIN_KEY_VARIABLE if keys.admins else API_KEY_VARIABLE if keys.users else None
        first = next(iter((*keys.admins, *keys.users)), b"").decode()
        headers = {"Authorization": f"Bearer {first}"} if first else {}
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._client = httpx.Client(headers=headers, trust_env=not direct)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def is_ready(self) -> bool:
        """Whether it runs, and has loaded its models."""
        try:
            return self._client.get(f"{self.url}/v2/health/ready", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    def digests(self) -> dict[str, str]:
        """The digest of the model that each tier serves.

        Raises:
            DeploymentError, UnreachableError: it does not answer, or is no server of Pressoir's.
        """
        return {tier.tier: tier.digest for tier in self._ask("GET", "/tiers", _Tiers).tiers}

    def ask(self, name: str, tier: TierConfig) -> float:
        """Send a small request to a tier, and look at the answer; returns the milliseconds it took.

        Raises:
            DeploymentError, UnreachableError: the tier refuses, or answers nothing.
        """
        path = f"/v2/models/{quote(name, safe='')}/infer"
        first, *others = example_requests(tier)
        start = time.perf_counter()
        try:
            outputs = self._ask("POST", path, _Inference, first).outputs
        except DeploymentError:
            if not others:
                raise
            start = time.perf_counter()
            outputs = self._ask("POST", path, _Inference, others[0]).outputs
        if not any(output.data for output in outputs):
            raise DeploymentError(f"{self.url}{path} returned an empty response")
        return 1000 * (time.perf_counter() - start)

    def load(self, name: str, timeout_s: float) -> None:
        """Load the model of a tier, and wait until it is loaded.

        Raises:
            RecipeError: it has a key, and this is not it. DeploymentError: the model cannot be loaded.
            UnreachableError: it does not answer in time.
        """
        path = f"/v2/repository/models/{quote(name, safe='')}/load"
        self._ask("POST", path, _Anything, {}, timeout_s)

    def config(self) -> ServingConfig | None:
        """What it serves, to go back to; None where it does not tell.

        Raises:
            RecipeError: it has a key, and this is not it. UnreachableError: it does not answer.
        """
        try:
            return self._ask("GET", "/config", ServingConfig)
        except DeploymentError:
            return None

    def reload(self, config: ServingConfig) -> None:
        """Switch the server to `config`, which is resolved; if that fails, it keeps its configuration.

        Raises:
            RecipeError: it has a key, and this is not it. DeploymentError: it does not take it.
            UnreachableError: it does not answer, and may do it nevertheless.
        """
        limit_s = config.load_timeout_s * len(config.tiers) + config.drain_timeout_s
        self._ask("POST", "/reload", _Anything, {"config": config.model_dump(mode="json")}, limit_s)
        expected = {name: tier.digest for name, tier in config.tiers.items()}
        if (found := self.digests()) != expected:
            raise DeploymentError(
                f"{self.url} was requested to reload, but serves {found} instead of {expected}"
            )

    def _ask(
        self, method: str, path: str, kind: type[Kind], body: Any = None, timeout_s: float | None = None
    ) -> Kind:
        where = self.url + path
        try:
            limit = self._timeout_s if timeout_s is None else timeout_s
            answer = self._client.request(method, where, json=body, timeout=limit)
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"{where} does not respond ({error or type(error).__name__}); check that the server is "
                "running, and its address"
            ) from error
        if answer.status_code in (401, 403):
            todo = (
                f"{self._key_from} is not a key of the server that allows this"
                if self._key_from
                else f"set {ADMIN_KEY_VARIABLE} to the administrator's key of the server"
            )
            raise RecipeError(f"{where} denied access (HTTP {answer.status_code}); {todo}")
        if not answer.is_success:
            raise DeploymentError(f"{where} returned HTTP {answer.status_code}: {_said(answer)}")
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise DeploymentError(
                f"{where} does not respond like a Pressoir server ({_said(answer)}); check its address"
            ) from error


def _said(answer: httpx.Response) -> str:
    """What an answer says: the message, in the server's own shape of errors."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(answer.text.split())[:_SHOWN] or "nothing"
