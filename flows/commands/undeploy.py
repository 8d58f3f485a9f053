"""`pressoir undeploy`: a deployed serving configuration that is no longer served under its name."""

from __future__ import annotations

import click

from pressoir.flows.commands.terminal import console, quiet_libraries
from pressoir.registry.registry import Registry
from pressoir.serving.deployment import one_at_a_time
from pressoir.store.store import Store


@click.command()
@click.argument("name")
def undeploy(name: str) -> None:
    """Take the deployed configuration NAME out of the registry, and its alias from MLflow.

    A server that is running goes on. The models stay in the store, where `pressoir store gc` then finds them
    unused, and MLflow keeps the versions: deploying the configuration again gives the alias back.
    """
    quiet_libraries(False)
    from pressoir.tasks.tracking import serving_version
    from pressoir.tasks.tracking.experiment import check_reachable

    store = Store()
    registry = Registry(store.home)
    registry.serving(name)  # before anything is changed
    check_reachable(store.home)
    with one_at_a_time(store, console.print):
        version = serving_version.retire(name, store)
        registry.undeploy(name)
    console.print(f"{name} is no longer deployed; a running server goes on until it is stopped")
    if version is not None:
        console.print(
            f"MLflow: version {version} of {serving_version.PREFIX}{name} lost the alias "
            f"{serving_version.ALIAS!r}, and stays"
        )
