"""The steps of a deployment as Prefect tasks; `deploy_rollback.py` takes back what they change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pressoir.registry.catalogue import ServingEntry
from pressoir.registry.registry import Registry
from pressoir.serving import deployment, smoke, switch
from pressoir.serving.config import ServingConfig, resolve
from pressoir.serving.pool.sharing import analyse
from pressoir.store.store import Store
from pressoir.tasks.deploy_rollback import Before, server_told
from pressoir.tasks.progress import say
from pressoir.tasks.stage import stage_task
from pressoir.tasks.tracking import serving_version
from pressoir.tasks.tracking.run import Run


@stage_task(name="resolve", task_run_name="resolve")
def resolve_models(config: ServingConfig, store: Store, run: Run) -> tuple[ServingConfig, dict[str, str]]:
    """Find and hash every model; return the resolved configuration, and the artifacts behind its tiers."""
    found = resolve(config, store, lambda uri: serving_version.reference_of(uri, store))
    artifacts = deployment.check(found, store)
    sharing = analyse(found)
    for line in sharing.lines():
        say(line)
    for line in sharing.warnings():
        say(f"warning: {line}")
    run.log_text(found.to_yaml(), f"{serving_version.FOLDER}/serving.yaml")
    run.log_text(json.dumps(sharing.summary(), indent=2), f"{serving_version.FOLDER}/sharing.json")
    chosen = found.model_dump(mode="json", include={"name", "isolation", "memory_budget_gb", "threads"})
    tiers = {name: {"model": tier.model, "digest": tier.digest} for name, tier in found.tiers.items()}
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
    latencies = smoke.smoke(config, store, command, say)
    run.log(metrics={f"smoke.{name}.latency_ms": value for name, value in latencies.items()})
    return latencies


@stage_task(name="register", task_run_name="register")
def register(entry: ServingEntry, store: Store) -> None:
    """Add the configuration to the registry, where `pressoir serve NAME` finds it."""
    registry = Registry(store.home)
    deployment.register(entry, registry)
    say(f"registered as {entry.id} in {registry.file}")


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
    say(f"version {version} of {name} in MLflow has the alias {serving_version.ALIAS!r}{whose}")
    return version


@stage_task(name="reload", task_run_name="reload")
def reload(config: ServingConfig, server: str) -> None:
    """Switch a running server to the configuration, and load and test all its tiers there."""
    server_told()
    switch.switch(config, server)
    say(f"{server} now serves it")
