"""The keys of a server: users' for requests, administrators' for what changes the server.

Two environment variables hold them, each several keys separated by commas. Without an administrator's key
nobody may load, unload or reload; an administrator's key is good for all requests.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pressoir.errors import RecipeError
from pressoir.serving.config import ADMIN_KEY_VARIABLE, API_KEY_VARIABLE

Role = Literal["user", "admin"]


@dataclass(frozen=True)
class Keys:
    """The keys that a server accepts."""

    users: tuple[bytes, ...] = ()
    """Without any, requests need no key."""
    admins: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, users: str | None = None, admins: str | None = None) -> Keys:
        """Keys separated by commas; where None, those of the environment.

        Raises:
            RecipeError: a key has characters that no header carries.
        """
        return cls(_split(API_KEY_VARIABLE, users), _split(ADMIN_KEY_VARIABLE, admins))

    def role(self, given: bytes) -> Role | None:
        """Whose key it is; the time that this takes says nothing about the keys."""
        if _among(given, self.admins):
            return "admin"
        return "user" if _among(given, self.users) else None


def _split(variable: str, text: str | None) -> tuple[bytes, ...]:
    found = os.environ.get(variable, "") if text is None else text
    keys = [key.strip() for key in found.split(",")]
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise RecipeError(
            f"{variable} contains characters that are not allowed in a header; use letters and digits"
        )
    return tuple(key.encode() for key in keys if key)


def _among(given: bytes, keys: Iterable[bytes]) -> bool:
    return sum(hmac.compare_digest(given, key) for key in keys) > 0  # all are compared
