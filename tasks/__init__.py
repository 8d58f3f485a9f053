"""Prefect tasks: one for all stages, in `stages.py`, and the steps of other flows; `tracking.py` records.

Nothing is reported to the makers of the libraries used here, no bar shows each copied file, and threads do
not spin for long, unless the user's environment says otherwise. MLflow, Prefect and OpenMP read these
variables when they are loaded, so this comes first. The package is `pressoir.tasks`; in the repository it can
also be imported as `tasks`, and is the same.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pressoir.aliases import stand_for
from pressoir.reporting import Reporter
from pressoir.system.runtime import spin_briefly

for _name, _value in {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "DO_NOT_TRACK": "true",  # Prefect's client also takes "1"; MLflow takes only "true"
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_name, _value)
spin_briefly()

terminal: ContextVar[Reporter | None] = ContextVar("terminal", default=None)
"""Who else hears what tasks report. Not a flow parameter: those are the user's, and must be JSON."""


@contextmanager
def report_to(reporter: Reporter | None) -> Iterator[None]:
    """Pass everything that tasks report inside this block on to `reporter` too."""
    token = terminal.set(reporter)
    try:
        yield
    finally:
        terminal.reset(token)


if __name__ == "tasks":
    stand_for(__name__, "pressoir.tasks")
