"""Addresses as they may be shown, logged and published: without what opens them."""

from __future__ import annotations

import re

USER = re.compile(r"//[^/\s]*@")
"""User name and password of an address."""
_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\"]+")  # keys have many names
_SECRET = re.compile(r"([?&;](?:password|pwd|token)=)[^&;\s]*", re.IGNORECASE)


def without_password(text: str) -> str:
    """A text in which addresses have neither user names, passwords nor keys, as it may be shown."""
    return re.sub(_QUERY, r"\1?***", re.sub(_SECRET, r"\1***", re.sub(USER, "//***@", text)))
