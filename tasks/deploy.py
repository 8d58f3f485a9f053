"""The steps of a deployment as Prefect tasks, and what takes them back when a later one fails.

Prefect runs the rollback hooks of tasks that have succeeded, and not those of the one that failed, which may
have got halfway. So all that is to be taken back belongs to the task before the first change, `remember`: it
notes what there is, and its hook makes that so again, wherever the steps after it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from filelock import FileLock, Timeout
from prefect.logging import get_run_logger
from prefect.transactions import Transaction, get_transaction

from pressoir import tasks
from pressoir.errors import PressoirError, RecipeError, RegistryError
from pressoir.registry.catalogue import ServingEntry
from pressoir.registry.registry import Registry
from pressoir.serving import deployment, smoke
from pressoir.serving.client import Server
from pressoir.serving.config import API_KEY_VARIABLE, ServingConfig, resolve
from pressoir.serving.pool.sharing import analyse
from pressoir.store.store import Store
from pressoir.system.files import disk_errors
from pressoir.tasks import serving_version
from pressoir.tasks.stage import stage_task
from pressoir.tasks.tracking import Run

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
    server: str | None
    serves: ServingConfig | None
    """What the server serves, where it tells or the registry knows."""
    digests: dict[str, str]
    """Of its tiers."""


@contextmanager
def one_at_a_time(store: Store) -> Iterator[None]:
    """One deployment in a home at a time: a second waits for the first, and says so."""
    store.check_writable()
    with disk_errors(store.home):
        (store.home / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(store.home / "locks" / "deploy.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell("another deployment is in progress; waiting until it ends")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_server(server: str) -> None:
    """See, before any work, that a server is there and takes our key.

    Raises:
        RecipeError: the address or the key is wrong. UnreachableError, DeploymentError: it does not answer.
    """
    if not os.environ.get(API_KEY_VARIABLE, "").strip():
        raise RecipeError(
            f"{API_KEY_VARIABLE} is not set; set it to the API key of the server, which is required to "
            "reload it"
        )
    with closing(Server(server)) as running:
        running.digests()


@stage_task(name="resolve", task_run_name="resolve")
def resolve_models(config: ServingConfig, store: Store, run: Run) -> tuple[ServingConfig, dict[str, str]]:
    """Find and hash every model; return the resolved configuration, and the artifacts behind its tiers."""
    found = resolve(config, store, lambda uri: serving_version.reference_of(uri, store))
    artifacts = deployment.check(found, store)
    sharing = analyse(found)
    for line in sharing.lines():
        tell(line)
    for line in sharing.warnings():
        tell(f"warning: {line}")
    analysis = {
        "models": [
            {"digest": one.digest, "task": one.task, "runtime": one.runtime, "tiers": one.tiers}
            for one in sharing.models
        ],
        "loads_saved": sharing.loads_saved,
        "near_misses": sharing.near_misses,
    }
    run.client.log_text(run.run_id, found.to_yaml(), f"{serving_version.FOLDER}/serving.yaml")
    run.client.log_text(run.run_id, json.dumps(analysis, indent=2), f"{serving_version.FOLDER}/sharing.json")
    chosen = found.model_dump(mode="json", include={"name", "isolation", "memory_budget_gb", "threads"})
    tiers = {name: {"model": one.model, "digest": one.digest} for name, one in found.tiers.items()}
    run.log(
        params={**chosen, "tiers": tiers},
        metrics={
            "tiers": sharing.tiers,
            "unique_models": len(sharing.models),
            "loads_saved": sharing.loads_saved,
        },
    )
    return found, artifacts


@stage_task(name="smoke", task_run_name="smoke")
def try_out(config: ServingConfig, command: Sequence[str], store: Store, run: Run) -> dict[str, float]:
    """Test every tier in a temporary server; return its latency, milliseconds."""
    latencies = smoke.smoke(config, store, command, tell)
    run.log(metrics={f"smoke.{name}.latency_ms": value for name, value in latencies.items()})
    return latencies


@stage_task(name="remember", task_run_name="remember")
def remember(config: ServingConfig, server: str | None, store: Store, run: Run) -> Before:
    """Record the current state, which is restored if a later step fails."""
    registry = Registry(store.home)
    text = registry.content()
    version = serving_version.look(serving_version.model_name(config), run)
    serves, digests = None, dict[str, str]()
    if server is not None:
        with closing(Server(server)) as running:
            digests = running.digests()
            serves = running.config() or _registered(config.name, registry, digests)
    before = Before(config.name, store, run, text, version, server, serves, digests)
    transaction = get_transaction()
    if transaction is not None:
        transaction.set("before", before)
    return before


@remember.on_rollback
def put_back(transaction: Transaction) -> None:
    """Make registry, MLflow and server what they were; what fails does not keep the others from it."""
    before: Before = transaction.get("before")
    model, server = f"serving-{before.name}", f"the server at {before.server}"
    steps: dict[str, Callable[[], None]] = {
        server: lambda: _turn_back(before),
        f"MLflow's model {model}": lambda: serving_version.undo(
            model, before.version, before.run, before.store
        ),
        "the registry": lambda: Registry(before.store.home).undo_deploy(before.name, before.registry),
    }
    parent, failures = transaction.get_parent(), []
    if parent is None or not parent.get(_TOLD, False):
        del steps[server]
    for what, step in steps.items():
        try:
            step()
        except Exception as error:  # whatever it is, the others still have to be undone
            failures.append(f"{what} could not be restored: {error}")
            tell(failures[-1])
    if parent is not None:
        parent.set(NOT_UNDONE, failures)


@stage_task(name="register", task_run_name="register")
def register(entry: ServingEntry, store: Store) -> None:
    """Add the configuration to the registry, where `pressoir serve NAME` finds it."""
    registry = Registry(store.home)
    try:
        old = registry.serving(entry.id)
    except RegistryError:
        old = None
    if old is None or old.model_copy(update={"created_at": entry.created_at}) != entry:
        registry.deploy(entry)
    tell(f"registered as {entry.id} in {registry.file}")


@stage_task(name="version", task_run_name="version")
def promote(
    config: ServingConfig, latencies: Mapping[str, float], before: Before, store: Store, run: Run
) -> str:
    """Register the configuration as an MLflow model version with the alias; return the version."""
    name = serving_version.model_name(config)
    version = serving_version.register(config, dict(latencies), run, store)
    run.log(tags={"registered_model": name, "registered_version": version})
    held = before.version.holder
    whose = "" if held in (None, version) else f", previously held by version {held}"
    tell(f"version {version} of {name} in MLflow has the alias {serving_version.ALIAS!r}{whose}")
    return version


@stage_task(name="reload", task_run_name="reload")
def reload(config: ServingConfig, server: str) -> None:
    """Switch a running server to the configuration, and load and test all its tiers there.

    The files may be others where it runs, and it loads by itself only what it had loaded of a tier before.
    """
    transaction = get_transaction()
    if transaction is not None and (parent := transaction.get_parent()):
        parent.set(_TOLD, True)  # from now on it may have changed over, whatever is heard of it
    with closing(Server(server)) as running:
        running.reload(config)
        for name, tier in config.tiers.items():
            running.load(name, config.load_timeout_s)
            running.ask(name, tier)
    tell(f"{server} now serves it")


def tell(text: str) -> None:
    """Say it in Prefect's log and on the terminal."""
    get_run_logger().info(text)
    if (terminal := tasks.terminal.get()) is not None:
        terminal.message(text)


def _registered(name: str, registry: Registry, digests: Mapping[str, str]) -> ServingConfig | None:
    """What was deployed before, if that is what has these digests."""
    try:
        found = deployment.deployed(name, registry)
    except RegistryError:
        return None
    return found if {name: tier.digest for name, tier in found.tiers.items()} == digests else None


def _turn_back(before: Before) -> None:
    """Have the server serve again what it did, also where it is not known whether it has changed over."""
    if before.server is None:
        return
    with closing(Server(before.server)) as running:
        if before.serves is not None:
            running.reload(before.serves)
        elif running.digests() != before.digests:
            raise PressoirError(
                "it serves the new configuration, and its previous one is unknown; restart it"
            )
