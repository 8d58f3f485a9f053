"""Observers of a service, such as the counters of `/metrics`."""

from __future__ import annotations

from typing import Protocol

from pressoir.serving.pool.pool_entry import Event


class Observer(Protocol):
    """Called on the event loop for each event; must return quickly."""

    def request(self, tier: str, operation: str, outcome: str, seconds: float) -> None:
        """A request ended: `ok`, or the name of the error's class, or `cancelled`."""

    def batch(self, model: str, texts: int, waited_s: float, run_s: float) -> None:
        """A batch was run, whose oldest request had waited for `waited_s`."""

    def event(self, event: Event, model: str) -> None:
        """A model was loaded, evicted, …"""


class SilentObserver:
    """Ignores all events."""

    def request(self, tier: str, operation: str, outcome: str, seconds: float) -> None:
        """See `Observer.request`."""

    def batch(self, model: str, texts: int, waited_s: float, run_s: float) -> None:
        """See `Observer.batch`."""

    def event(self, event: Event, model: str) -> None:
        """See `Observer.event`."""
