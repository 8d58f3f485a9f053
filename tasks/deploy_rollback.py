"""What takes the changes of a deployment back when a later one fails.

Prefect runs the rollback hooks of tasks that have succeeded, and not those of the one that failed, which may
have got halfway. So all that is to be taken back belongs to the task before the first change, `remember`: it
notes what there is, and its hook makes that so again, wherever the steps after it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prefect.transactions import Transaction, get_transaction

from pressoir.registry.registry import Registry
from pressoir.serving import switch
from pressoir.serving.config import ServingConfig
from pressoir.serving.switch import ServerState
from pressoir.store.store import Store
from pressoir.tasks.progress import say
from pressoir.tasks.stage import stage_task
from pressoir.tasks.tracking import serving_version
from pressoir.tasks.tracking.run import Run

NOT_UNDONE = "not undone"
"""What a rollback leaves in the transaction around it: a line for each thing that it could not take back."""

_TOLD = "server told"


@dataclass(frozen=True)
class Before:
    """What there was before the first change."""

    name: str
    store: Store
    run: Run
    registry: str | None
    """The text of the registry's file."""
    version: serving_version.Before
    server: ServerState | None


@stage_task(name="remember", task_run_name="remember")
def remember(config: ServingConfig, server: str | None, store: Store, run: Run) -> Before:
    """Record the current state, which is restored if a later step fails."""
    registry = Registry(store.home)
    text = registry.content()
    version = serving_version.look(serving_version.model_name(config), run)
    state = None if server is None else switch.look(server, config.name, registry)
    before = Before(config.name, store, run, text, version, state)
    transaction = get_transaction()
    if transaction is not None:
        transaction.set("before", before)
    return before


def server_told() -> None:
    """Note that the server may have changed over from now on, whatever is heard of it."""
    transaction = get_transaction()
    if transaction is not None and (parent := transaction.get_parent()):
        parent.set(_TOLD, True)


@remember.on_rollback
def put_back(transaction: Transaction) -> None:
    """Make registry, MLflow and server what they were; what fails does not keep the others from it."""
    before: Before = transaction.get("before")
    model, server = f"serving-{before.name}", before.server
    steps: dict[str, Callable[[], None]] = {
        f"MLflow's model {model}": lambda: serving_version.undo(
            model, before.version, before.run, before.store
        ),
        "the registry": lambda: Registry(before.store.home).undo_deploy(before.name, before.registry),
    }
    parent, failures = transaction.get_parent(), []
    if server is not None and parent is not None and parent.get(_TOLD, False):
        steps = {f"the server at {server.server}": lambda: switch.turn_back(server), **steps}
    for what, step in steps.items():
        try:
            step()
        except Exception as error:  # whatever it is, the others still have to be undone
            failures.append(f"{what} could not be restored: {error}")
            say(failures[-1])
    if parent is not None:
        parent.set(NOT_UNDONE, failures)
