"""The MLflow run of a flow run: each of the two records names the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.artifacts import create_link_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from pressoir.store.store import Store
from pressoir.system.family import guard
from pressoir.tasks.progress import say
from pressoir.tasks.tracking.experiment import check_reachable, parent_run
from pressoir.tasks.tracking.run import Run


@contextmanager
def linked_run(name: str, entrypoint: str, store: Store) -> Iterator[Run]:
    """An MLflow run in the experiment `name` for the flow run that we are in; `entrypoint` is the flow.

    Raises:
        UnreachableError: MLflow's server does not answer.
    """
    guard()
    check_reachable(store.home)
    with parent_run(name, entrypoint, store, {"prefect.flow_run_id": str(flow_run.id)}, say) as parent:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, tags={*flow_run.tags, f"mlflow:{parent.run_id}"})
        create_link_artifact(parent.page, link_text="The run in MLflow", key="mlflow-run")
        yield parent
