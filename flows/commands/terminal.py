"""The terminal: one console, bars for long work, a line for each message."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pressoir.formats.problems import MAIN_METRICS
from pressoir.reporting import LogReporter, Reporter

console = Console()


class TerminalReporter:
    """A bar for each piece of long work, a line for each message and each epoch's accuracy."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, Any] = {}

    def progress(self, done: int, total: int, what: str) -> None:
        """Move the bar of `what`."""
        if what not in self._bars:
            self._bars[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._bars[what], completed=done, total=total)

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """Show accuracies as they come; the other figures are in MLflow."""
        if name.endswith(MAIN_METRICS) and step is not None:
            self.message(f"  epoch {step}: {name.replace('_', ' ')} {value:.1%}")

    def message(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(escape(text), soft_wrap=True)


@contextmanager
def progress() -> Iterator[Reporter]:
    """A reporter for this terminal: bars where there is one, lines in the log elsewhere."""
    if not console.is_terminal:
        lines = logging.StreamHandler()
        lines.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger = logging.getLogger("pressoir")
        logger.addHandler(lines)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # Prefect's handler on the root would say it again
        yield LogReporter()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield TerminalReporter(bars)


def quiet_libraries(verbose: bool) -> None:
    """Keep Prefect's own log off the screen, and every kind of telemetry off; what the user has set wins."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO" if verbose else "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Prefect's own 20 seconds are too few on a busy machine, where it makes its database.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
