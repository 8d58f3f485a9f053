"""`pressoir deploy`: a serving configuration that is checked, tried and registered, and then served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from pressoir.flows.commands.merge import ManyValues
from pressoir.flows.commands.terminal import console, progress, quiet_libraries
from pressoir.store.store import Store
from pressoir.tasks import report_to

if TYPE_CHECKING:
    from pressoir.serving.deployment import DeployResult


@click.command(cls=ManyValues)
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--server",
    metavar="URL",
    envvar="PRESSOIR_SERVER",
    show_envvar=True,
    help="A running server to switch to the new configuration; its key is read from PRESSOIR_ADMIN_KEY.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE …", help="Override a field of CONFIG."
)
@click.option("-v", "--verbose", is_flag=True, help="Also show Prefect's log.")
def deploy(config: Path, server: str | None, overrides: tuple[str, ...], verbose: bool) -> None:
    """Deploy CONFIG, a YAML file or serving-demo; `pressoir serve NAME` then serves it.

    All models are hashed and all tiers are tested in a temporary server before anything is registered. If a
    step fails, all changes are rolled back.
    """
    from pressoir.serving.config import ServingConfig

    parsed = ServingConfig.from_yaml(config, overrides)
    quiet_libraries(verbose)
    from pressoir.flows.deploy import deploy as flow
    from pressoir.tasks.tracking.experiment import check_reachable

    check_reachable(Store().home)

    with progress() as reporter, report_to(reporter):
        result = flow(parsed, server)
    _print(result)


def _print(result: DeployResult) -> None:
    table = Table("tier", "model", "digest", "runtime", box=None, pad_edge=False)
    table.add_column("latency", justify="right")
    for name, tier in result.config.tiers.items():
        digest, latency = (tier.digest or "")[:12], f"{result.latencies_ms[name]:.1f} ms"
        table.add_row(*map(escape, (name, tier.model, digest, tier.runtime or "", latency)))
    console.print(table)
    was = result.earlier_version
    before = f", previously version {was}" if was not in (None, result.version) else ""
    console.print(
        f"version {result.version} of {result.registered_model} has the alias {result.alias!r}{before}"
    )
    console.print(f"MLflow  run {result.mlflow_run_id} in {result.tracking_uri} (to view: pressoir ui)")
    description = f"now served by {result.server}" if result.server else f"pressoir serve {result.name}"
    console.print(escape(f"serve   {description}"))
