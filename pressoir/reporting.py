"""How a stage tells what it is doing, without knowing who listens.

A stage calls a `Reporter`; a terminal draws a bar, Prefect updates a progress artifact, MLflow logs a metric.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
log = logging.getLogger("pressoir")


class Reporter(Protocol):
    """What a stage may say while it works."""

    def progress(self, done: int, total: int, what: str) -> None:
        """`done` of `total` units of `what` are finished; called often, must be cheap."""

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """One figure, in the unit its name says; `step` is the epoch or trial it belongs to."""

    def message(self, text: str) -> None:
        """One line a person should read."""


class LogReporter:
    """Reports to the `pressoir` logger: one line at each tenth of the way."""

    def __init__(self) -> None:
        self._tenth: dict[str, int] = {}

    def progress(self, done: int, total: int, what: str) -> None:
        """Log a line whenever another tenth is done."""
        tenth = 10 * done // max(total, 1)
        if tenth != self._tenth.get(what):
            self._tenth[what] = tenth
            log.info("%s: %d of %d", what, done, total)

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """Log the figure."""
        log.info("%s%s = %.6g", name, "" if step is None else f" at {step}", value)

    def message(self, text: str) -> None:
        """Log the line."""
        log.info(text)


def track(items: Iterable[Item], total: int, what: str, reporter: Reporter) -> Iterator[Item]:
    """Yield `items`, reporting progress after each."""
    for done, item in enumerate(items, start=1):
        yield item
        reporter.progress(done, total, what)


class Forwarding:
    """A reporter that passes everything on; those that change one thing derive from it."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def progress(self, done: int, total: int, what: str) -> None:
        """See `Reporter.progress`."""
        self._reporter.progress(done, total, what)

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """See `Reporter.metric`."""
        self._reporter.metric(name, value, step)

    def message(self, text: str) -> None:
        """See `Reporter.message`."""
        self._reporter.message(text)


class Silent:
    """A reporter that tells nothing."""

    def progress(self, done: int, total: int, what: str) -> None:
        """See `Reporter.progress`."""

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """See `Reporter.metric`."""

    def message(self, text: str) -> None:
        """See `Reporter.message`."""
