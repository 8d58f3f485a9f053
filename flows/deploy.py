"""The deploy flow: a serving configuration that is checked, tried, registered, and then served; or nothing.

`deploy("serving-demo")` runs it in plain Python; `prefect.yaml` deploys it. What can fail comes
first: models are found and hashed, and each tier answers in a server of its own, before anything is changed.
The changes are one transaction: if one of them fails, all are taken back.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.transactions import Transaction, transaction
from pydantic import BeforeValidator

from pressoir.errors import PressoirError
from pressoir.flows.linked import linked_run
from pressoir.serving import switch
from pressoir.serving.config import ServingConfig, load
from pressoir.serving.deployment import DeploymentError, DeployResult, entry, one_at_a_time
from pressoir.store.store import Store
from pressoir.tasks import deploy as steps
from pressoir.tasks.deploy_rollback import NOT_UNDONE, remember
from pressoir.tasks.progress import say
from pressoir.tasks.tracking.serving_version import ALIAS, model_name

SERVE = (sys.executable, "-m", "pressoir.flows", "serve")
"""How the server is started that tries a configuration out."""


@flow(name="deploy", flow_run_name="{config.name}", validate_parameters=True)
def deploy(
    config: Annotated[ServingConfig, BeforeValidator(load)], server: str | None = None
) -> DeployResult:
    """Check, test and register `config`; optionally switch the running server at `server` to it."""
    from prefect.runtime import flow_run

    store = Store()
    if server is not None:
        switch.check(server)
    with (
        one_at_a_time(store, say),
        linked_run(model_name(config), "flows.deploy.deploy", store) as run,
    ):
        resolved, artifacts = steps.resolve_models(config, store, run)
        latencies = steps.try_out(resolved, SERVE, store, run)
        create_table_artifact(_table(resolved, latencies), key="deploy")
        try:
            with transaction() as attempt:
                before = remember(resolved, server, store, run)
                steps.register(entry(resolved, artifacts), store)
                version = steps.promote(resolved, latencies, before, store, run)
                if server is not None:
                    steps.reload(resolved, server)
        except PressoirError as error:
            raise _failed(error, attempt) from error
    return DeployResult(
        name=resolved.name,
        config=resolved,
        registered_model=model_name(resolved),
        version=version,
        alias=ALIAS,
        earlier_version=before.version.holder,
        latencies_ms=latencies,
        server=server,
        prefect_run_id=str(flow_run.id),
        mlflow_run_id=run.run_id,
        tracking_uri=run.shown_uri,
    )


def _table(config: ServingConfig, latencies: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {"tier": name, "model": tier.model, "digest": tier.digest, "smoke_ms": round(latencies[name], 2)}
        for name, tier in config.tiers.items()
    ]


def _failed(error: PressoirError, attempt: Transaction) -> DeploymentError:
    """What went wrong, and what became of the changes before it."""
    left: list[str] = attempt.get(NOT_UNDONE, [])
    after = "; ".join(left) if left else "all changes were rolled back"
    return DeploymentError(f"{error}\n{after}")
