"""`pressoir tracking flush`: send to MLflow what waits for it."""

from __future__ import annotations

import sys

import click

from pressoir.flows.commands.terminal import console
from pressoir.store.store import Store
from pressoir.system.addresses import without_password


@click.group()
def tracking() -> None:
    """Manage what runs log to MLflow."""


@tracking.command("flush")
def tracking_flush() -> None:
    """Send what waits for MLflow, and end the runs of killed processes as KILLED.

    Exit code 1 if something still waits. Runs also do this when they start. Sending twice changes nothing.
    """
    from pressoir.tasks.tracking.database import tracking_uri
    from pressoir.tasks.tracking.experiment import check_reachable
    from pressoir.tasks.tracking.journal import flush_journals

    home = Store().home
    check_reachable(home)
    uri, _ = tracking_uri(home)

    def tell(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    found = flush_journals(home, uri, tell)
    tell(f"{without_password(uri)} has all of {found.runs} earlier runs, {found.killed} of them KILLED now")
    if found.running:
        tell(f"{found.running} runs are in progress and send their own")
    for address in found.elsewhere:
        tell(f"entries wait for {address}; set MLFLOW_TRACKING_URI to it and flush again")
    if found.waiting:
        tell(f"{found.waiting} entries still wait")
    sys.exit(1 if found.waiting or found.elsewhere else 0)
