"""How far the work is: on the terminal, in Prefect's log and on its page, in MLflow."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import Metric
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from pressoir.reporting import Reporter
from pressoir.tasks import terminal
from pressoir.tasks.tracking.run import Run

_LONG_S, _EVERY_S = 5.0, 2.0


def say(text: str) -> None:
    """Say it in Prefect's log and on the terminal."""
    get_run_logger().info(text)
    if (listener := terminal.get()) is not None:
        listener.message(text)


class ProgressArtifact:
    """A bar on Prefect's page, for work that takes longer than a few seconds."""

    def __init__(self, name: str) -> None:
        self._key = re.sub(r"[^a-z0-9]+", "-", f"progress-{name}".lower())
        self._started, self._told = time.monotonic(), 0.0
        self._bar: Any = None

    def show(self, percent: float, what: str) -> bool:
        """Show the progress, unless it was shown a moment ago; return whether it was shown."""
        now = time.monotonic()
        if now - self._started <= _LONG_S or (now - self._told <= _EVERY_S and percent < 100):
            return False
        self._told = now
        if self._bar is None:
            self._bar = create_progress_artifact(percent, key=self._key, description=what)
        else:
            update_progress_artifact(self._bar, progress=percent, description=what)
        return True


@dataclass
class StageReporter:
    """Tells the terminal at once, MLflow in batches, and, of long stages, Prefect every few seconds."""

    name: str
    run: Run
    terminal: Reporter | None
    last_step: int = -1
    _tenth: dict[str, int] = field(default_factory=dict)
    _metrics: list[Metric] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._bar = ProgressArtifact(self.name)

    def progress(self, done: int, total: int, what: str) -> None:
        """See `Reporter.progress`."""
        percent = 100.0 * done / max(total, 1)
        if self.terminal is not None:
            self.terminal.progress(done, total, what)
        elif (tenth := int(percent // 10)) != self._tenth.get(what):
            self._tenth[what] = tenth
            get_run_logger().info("%s: %d of %d", what, done, total)
        if self._bar.show(percent, what):
            self.flush()

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """See `Reporter.metric`."""
        self._metrics.append(Metric(name, value, int(time.time() * 1000), step or 0))
        self.last_step = max(self.last_step, step or 0)
        if self.terminal is not None:
            self.terminal.metric(name, value, step)

    def message(self, text: str) -> None:
        """See `Reporter.message`."""
        say(text)

    def flush(self) -> None:
        """Send the collected metrics to MLflow."""
        metrics, self._metrics = self._metrics, []
        self.run.log_series(metrics)


@contextmanager
def stage_reporter(name: str, run: Run) -> Iterator[StageReporter]:
    """The reporter of one stage; its metrics are sent when the block ends."""
    reporter = StageReporter(name, run, terminal.get())
    try:
        yield reporter
    finally:
        reporter.flush()
