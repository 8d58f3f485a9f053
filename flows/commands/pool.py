"""`pressoir pool`: prepare Prefect's server to run the deployments of `prefect.yaml`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from pressoir.errors import UnreachableError
from pressoir.flows.commands.terminal import console

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

HEARTBEAT_S = 30
"""How often a run tells the server that it lives; the shortest time that Prefect takes."""
AUTOMATION = "pressoir: mark dead runs as crashed"


@click.command()
@click.option("--name", default="pressoir", show_default=True, help="Name of the work pool.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=1, show_default=True, help="How many runs at a time."
)
@click.option(
    "--dead-after",
    type=click.IntRange(min=2 * HEARTBEAT_S),
    default=3 * HEARTBEAT_S,
    show_default=True,
    help="Seconds without a sign of life after which a run is marked as crashed.",
)
def pool(name: str, limit: int, dead_after: int) -> None:
    """Create or update the work pool on Prefect's server (PREFECT_API_URL), and see to runs that died.

    Two runs at once would disturb each other's measurements. Runs of the pool send heartbeats, and an
    automation marks one as crashed whose machine or process is gone: otherwise it would count as running, and
    hold its place, for ever.
    """
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    address = get_current_settings().api.url
    if address is None:
        raise UnreachableError(
            "PREFECT_API_URL is not set; set it to your server's address, such as http://127.0.0.1:4200/api "
            "after `pressoir ui`"
        )
    try:
        with get_client(sync_client=True) as client:
            _pool(client, name, limit)
            _automation(client, dead_after)
    except HTTPError as error:
        raise UnreachableError(f"Prefect's server does not answer as expected: {error}") from error
    console.print(
        f"work pool {name}: {limit} at a time; a run without a sign of life for {dead_after} s is marked as "
        f"crashed. Next: prefect deploy --all, then prefect worker start --pool {name}",
        soft_wrap=True,
        markup=False,
    )


def _pool(client: SyncPrefectClient, name: str, limit: int) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["env"]["default"] = {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)
    }
    asked = WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=limit)
    client.create_work_pool(asked, overwrite=True)


def _automation(client: SyncPrefectClient, dead_after: int) -> None:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    heartbeat = "prefect.flow-run.heartbeat"
    ends = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended")
    trigger = EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        after={heartbeat},
        expect={heartbeat, *(f"prefect.flow-run.{end}" for end in ends)},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=dead_after),
    )
    message = f"No sign of life for {dead_after} s: the machine or the process is gone. Run it again."
    asked = AutomationCore(
        name=AUTOMATION,
        description="Frees the place of a run that died without a word.",
        enabled=True,
        trigger=trigger,
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message=message, force=False)],
    )
    if found := client.read_automations_by_name(AUTOMATION):
        client.update_automation(found[0].id, asked)
    else:
        client.create_automation(asked)
