"""Where runs are tracked: a server, or a database in the home folder; and how its address is shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock

from pressoir.system.addresses import USER
from pressoir.system.files import write_text_atomic

MLFLOW_PORT = 5000
"""Where `pressoir ui` serves MLflow when nothing else is said."""
_PORT = "mlflow-port"


def tracking_uri(home: Path) -> tuple[str, bool]:
    """Where runs are tracked, and whether that is the default (SQLite in `home`) or MLFLOW_TRACKING_URI."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    return (chosen, False) if chosen else (f"sqlite:///{(home / 'mlflow.db').absolute()}", True)


def server_page(uri: str, port: int) -> str:
    """Address of MLflow's page: the server itself, or where `pressoir ui` serves a database."""
    return re.sub(USER, "//", uri).rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{port}"


def ui_port(home: Path) -> int:
    """Port of MLflow's page where `pressoir ui` was last started for this home, or its default."""
    try:
        return int((home / _PORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return MLFLOW_PORT


def set_ui_port(home: Path, port: int) -> None:
    """Note where `pressoir ui` serves MLflow, so that links of later runs lead there."""
    write_text_atomic(home / _PORT, f"{port}\n")


@contextmanager
def database_lock(home: Path) -> Iterator[None]:
    """One process at a time creates the database, an experiment, or a model version and its alias."""
    (home / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(home / "locks" / "mlflow.lock"):
        yield


def prepare_database(uri: str) -> None:
    """Create the database, or bring it up to date, where `uri` is one; hold `database_lock` while it runs."""
    mlflow.MlflowClient(uri, uri).search_experiments(max_results=1)


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """A variable of the environment, from which MLflow reads its settings, within a block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
