"""The command line: `pressoir compress RECIPE`, `pressoir store …`, `pressoir ui`.

Options are the recipe's own fields (`--set distill.epochs=3`). An error that a user can mend is one screen
and exit code 2; nothing is written before the recipe, the model, the data and the disk have been checked.
"""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pressoir import __version__
from pressoir.errors import PressoirError
from pressoir.flows.commands.compress import compress
from pressoir.flows.commands.deploy import deploy
from pressoir.flows.commands.evaluate import evaluate
from pressoir.flows.commands.init import init
from pressoir.flows.commands.inspect import inspect
from pressoir.flows.commands.merge import merge
from pressoir.flows.commands.monitor import monitor
from pressoir.flows.commands.pool import pool
from pressoir.flows.commands.press import press
from pressoir.flows.commands.push import push
from pressoir.flows.commands.quantize import quantize
from pressoir.flows.commands.registry import registry
from pressoir.flows.commands.report import report
from pressoir.flows.commands.search import search
from pressoir.flows.commands.serve import serve
from pressoir.flows.commands.shard import shard, unshard, verify
from pressoir.flows.commands.terminal import console
from pressoir.flows.commands.tracking import tracking
from pressoir.flows.commands.undeploy import undeploy
from pressoir.reference import FILES
from pressoir.reference import reference as reference_of
from pressoir.registry.registry import Registry
from pressoir.store.store import Store


class _Group(click.Group):
    """Turns the errors a user can mend into one message and exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except PressoirError as error:
            Console(stderr=True, highlight=False).print(
                f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True
            )
            sys.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Compress Transformer models into small, fast ones, and measure what each step costs."""


@main.group()
def store() -> None:
    """Manage the artifacts in $PRESSOIR_HOME (default: .pressoir/)."""


@store.command("ls")
def store_ls() -> None:
    """List all artifacts."""
    table = Table("stage", "key", "MB", "created (UTC)", box=None, expand=True)
    table.add_column("metrics", no_wrap=True, ratio=1)  # the rest of the line
    for artifact in Store().artifacts():
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in list(artifact.metrics.items())[:3])
        size = f"{artifact.size_bytes / 1e6:.1f}"
        table.add_row(artifact.stage, artifact.key[:12], size, artifact.created_at[:16], metrics)
    console.print(table)


@store.command("verify")
def store_verify() -> None:
    """Verify the hashes of all artifacts; exit code 1 if one is damaged (it is rebuilt when needed)."""
    the_store, damaged, total = Store(), 0, 0
    for artifact in the_store.artifacts():
        total += 1
        if not the_store.verify(artifact):
            damaged += 1
            console.print(f"[red]damaged[/] {artifact.stage}/{artifact.key}")
    console.print(f"{total} artifacts, {damaged} damaged")
    sys.exit(1 if damaged else 0)


@store.command("gc")
@click.option(
    "--older-than-days", default=30.0, show_default=True, help="Keep artifacts used within this many days."
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed without removing it.")
def store_gc(older_than_days: float, dry_run: bool) -> None:
    """Remove artifacts that no registered model was built from and that were not used recently.

    What a run in progress has made or used is kept.
    """
    from pressoir.tasks.tracking.journal import live_since

    the_store = Store()
    referenced, live = Registry(the_store.home).references(), live_since(the_store.home)
    removed = the_store.collect(referenced, older_than_days, dry_run, live)
    for name, size in removed:
        console.print(f"{name}  {size / 1e6:.1f} MB")
    verb = "would free" if dry_run else "freed"
    console.print(f"artifacts: {len(removed)}, {verb} {sum(size for _, size in removed) / 1e6:.1f} MB")


@main.command()
@click.option("--prefect-port", default=4200, show_default=True, help="Port of the Prefect UI.")
@click.option("--mlflow-port", default=5000, show_default=True, help="Port of the MLflow UI.")
def ui(prefect_port: int, mlflow_port: int) -> None:
    """Start the Prefect and MLflow UIs on this machine; Ctrl-C stops both."""
    from pressoir.flows.commands.ui import serve_ui

    serve_ui(prefect_port, mlflow_port)


for command in (
    *(
        press,
        init,
        compress,
        inspect,
        search,
        evaluate,
        merge,
        quantize,
        shard,
        unshard,
        verify,
        registry,
        monitor,
    ),
    *(serve, deploy, undeploy, tracking, pool, push, report),
):
    main.add_command(command)


@main.command()
@click.argument("of", type=click.Choice(FILES), default="recipe")
def reference(of: str) -> None:
    """Print the reference of a type of configuration file as Markdown."""
    click.echo(reference_of(of))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    For bash, add to ~/.bashrc: eval "$(pressoir completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "pressoir", "_PRESSOIR_COMPLETE").source())


if __name__ == "__main__":
    main(prog_name="pressoir")
