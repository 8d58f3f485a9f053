"""Where runs are tracked, and the parent run of a flow run in its experiment."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME
from sqlalchemy.exc import SQLAlchemyError

from pressoir.errors import UnreachableError
from pressoir.store.store import Store
from pressoir.system.addresses import without_password
from pressoir.tasks.tracking.database import (
    database_lock,
    environment,
    prepare_database,
    tracking_uri,
    ui_port,
)
from pressoir.tasks.tracking.journal import flush_journals, journal, log, reason_of
from pressoir.tasks.tracking.run import Run, running

_PATIENCE_S = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


@contextmanager
def parent_run(
    name: str,
    entrypoint: str,
    store: Store,
    tags: Mapping[str, str],
    tell: Callable[[str], None] = log.warning,
) -> Iterator[Run]:
    """The MLflow run of a whole flow run, in the experiment of that name; `entrypoint` is the flow.

    What earlier runs could not send is sent first, and those whose process was killed end as KILLED. `tell`
    hears when MLflow does not answer any more.

    Raises:
        UnreachableError: MLflow cannot make the run.
    """
    uri, default = tracking_uri(store.home)
    tags = {MLFLOW_SOURCE_NAME: entrypoint, "pressoir.home": str(store.home), **tags}
    with ExitStack() as stack:
        try:
            experiment_id = _experiment(name, uri, store.home if default else None, store.home)
            flush_journals(store.home, uri, tell)
            book = stack.enter_context(journal(store.home, uri, experiment_id, tell))
            run = stack.enter_context(running(book, name, tags, ui_port=ui_port(store.home)))
        except (MlflowException, OSError, SQLAlchemyError) as error:
            # Not `from error`, whose text has the address.
            raise _unreachable(uri, default, store.home, f" ({reason_of(error)})") from None
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
            reason.append(f" ({reason_of(error)})")

    asking = threading.Thread(target=ask, daemon=True)
    with environment("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"):
        asking.start()
        asking.join(_PATIENCE_S)
    if asking.is_alive() or reason:
        raise _unreachable(uri, False, home, "".join(reason))


def _unreachable(uri: str, default: bool, home: Path, reason: str) -> UnreachableError:
    if default:
        return UnreachableError(
            f"MLflow's database {uri.removeprefix('sqlite:///')} cannot be used{reason}; end what uses it, "
            "or set MLFLOW_TRACKING_URI to track elsewhere"
        )
    return UnreachableError(
        f"MLflow at {without_password(uri)} does not answer{reason}; start that server, or "
        f"unset MLFLOW_TRACKING_URI to track in {home}"
    )


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
