"""Where runs are tracked, and the parent run of a flow run in its experiment."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from filelock import FileLock
from mlflow.entities import LifecycleStage
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME

from pressoir.errors import UnreachableError
from pressoir.store.store import Store
from pressoir.system.files import write_text_atomic
from pressoir.tasks.tracking.run import MLFLOW_PORT, Run, running, without_password

_PATIENCE_S = 5.0
_PORT = "mlflow-port"
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


@contextmanager
def parent_run(name: str, entrypoint: str, store: Store, tags: Mapping[str, str]) -> Iterator[Run]:
    """The MLflow run of a whole flow run, in the experiment of that name; `entrypoint` is the flow."""
    uri, default = tracking_uri(store.home)
    experiment_id = _experiment(name, uri, store.home if default else None, store.home)
    tags = {MLFLOW_SOURCE_NAME: entrypoint, "pressoir.home": str(store.home), **tags}
    with running(uri, experiment_id, name, tags, ui_port(store.home)) as run:
        yield run


def check_reachable(home: Path) -> None:
    """See within seconds that the server in MLFLOW_TRACKING_URI answers; MLflow itself tries for minutes.

    Raises:
        UnreachableError: it does not, or it refuses.
    """
    uri, _ = tracking_uri(home)
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if parts.hostname is None or kind not in _PORTS:  # a database file, a folder, or MLflow's own plugins
        return
    reason: list[str] = []

    def ask() -> None:
        try:
            if kind in ("http", "https"):
                prepare_database(uri)
            else:  # of a new database, MLflow's first call makes the tables, which takes its time
                address = (str(parts.hostname), parts.port or _PORTS[kind])
                socket.create_connection(address, _PATIENCE_S).close()
        except Exception as error:  # MLflow, requests and urllib3 have one each
            reason.append(f" ({_cause(error)})")

    asking = threading.Thread(target=ask, daemon=True)
    with _environment("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"):
        asking.start()
        asking.join(_PATIENCE_S)
    if asking.is_alive() or reason:
        raise UnreachableError(
            f"MLflow at {without_password(uri)} does not answer{''.join(reason)}; start that server, or "
            f"unset MLFLOW_TRACKING_URI to track in {home}"
        )


def tracking_uri(home: Path) -> tuple[str, bool]:
    """Where runs are tracked, and whether that is the default (SQLite in `home`) or MLFLOW_TRACKING_URI."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    return (chosen, False) if chosen else (f"sqlite:///{(home / 'mlflow.db').absolute()}", True)


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
    """Create the database, or bring it up to date, where `uri` is one; hold `database_lock` meanwhile."""
    mlflow.MlflowClient(uri, uri).search_experiments(max_results=1)


def _experiment(name: str, uri: str, artifacts: Path | None, home: Path) -> str:
    """Id of the experiment, made where it is missing; the first call creates the database."""
    with database_lock(home):
        client = mlflow.MlflowClient(uri, uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            location = None if artifacts is None else (artifacts / "mlartifacts").as_uri()
            return str(client.create_experiment(name, artifact_location=location and f"{location}/{name}"))
        if found.lifecycle_stage == LifecycleStage.DELETED:
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


def _cause(error: BaseException) -> str:
    """What is behind an error that wraps others, in a few words."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return without_password(getattr(error, "strerror", None) or f"{error}").partition("\n")[0][:200]


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
