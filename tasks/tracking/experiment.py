"""Where runs are tracked, and the parent run of a flow run in its experiment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.entities import LifecycleStage
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME

from pressoir.store.store import Store
from pressoir.tasks.tracking.run import Run, running


@contextmanager
def parent_run(name: str, entrypoint: str, store: Store, tags: Mapping[str, str]) -> Iterator[Run]:
    """The MLflow run of a whole flow run, in the experiment of that name; `entrypoint` is the flow."""
    uri, default = tracking_uri(store.home)
    experiment_id = _experiment(name, uri, store.home if default else None, store.home)
    tags = {MLFLOW_SOURCE_NAME: entrypoint, "pressoir.home": str(store.home), **tags}
    with running(uri, experiment_id, name, tags) as run:
        yield run


def tracking_uri(home: Path) -> tuple[str, bool]:
    """Where runs are tracked, and whether that is the default (SQLite in `home`) or MLFLOW_TRACKING_URI."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    return (chosen, False) if chosen else (f"sqlite:///{(home / 'mlflow.db').absolute()}", True)


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
