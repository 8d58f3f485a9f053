"""The command line: `pressoir compress RECIPE`, `pressoir store …`, `pressoir ui`.

Options are the recipe's own fields (`--set distill.epochs=3`). An error that a user can mend is one screen
and exit code 2; nothing is written before the recipe, the model, the data and the disk have been checked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from pressoir import __version__
from pressoir.benchmark import reports
from pressoir.errors import PressoirError, StoreError
from pressoir.flows.commands.deploy import deploy
from pressoir.flows.commands.evaluate import evaluate
from pressoir.flows.commands.init import init
from pressoir.flows.commands.inspect import inspect
from pressoir.flows.commands.merge import merge
from pressoir.flows.commands.monitor import monitor
from pressoir.flows.commands.pool import pool
from pressoir.flows.commands.push import push
from pressoir.flows.commands.quantize import quantize
from pressoir.flows.commands.registry import registry
from pressoir.flows.commands.report import report
from pressoir.flows.commands.search import search
from pressoir.flows.commands.serve import serve
from pressoir.flows.commands.shard import shard, unshard, verify
from pressoir.flows.commands.terminal import console, progress, quiet_libraries
from pressoir.flows.commands.tracking import tracking
from pressoir.flows.commands.undeploy import undeploy
from pressoir.pipeline.checks import base_reference, check_inputs, check_space
from pressoir.pipeline.estimates import estimate_peak_bytes
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.reference import FILES
from pressoir.reference import reference as reference_of
from pressoir.registry.registry import Registry
from pressoir.store.store import Store
from pressoir.system.files import copy_folder, disk_errors, make_folder, write_text_atomic
from pressoir.system.output import replaced
from pressoir.system.reader import exists
from pressoir.tasks import report_to

if TYPE_CHECKING:
    from pressoir.pipeline.plan import PlanRow
    from pressoir.pipeline.runner import CompressResult


_OUTPUT = ("model", "report", "benchmark.json", "recipe.yaml", "report.html")


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


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Override a field; may be repeated."
)
@click.option(
    "--dry-run", is_flag=True, help="Print the plan (steps, cache hits, memory) without running it."
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Copy model and report to this folder."
)
@click.option("-v", "--verbose", is_flag=True, help="Also show Prefect's log.")
def compress(
    recipe: Path, overrides: tuple[str, ...], dry_run: bool, output: Path | None, verbose: bool
) -> None:
    """Run the compress flow on RECIPE, a YAML file or the name of an example, such as demo."""
    parsed = Recipe.from_yaml(recipe, overrides)
    quiet_libraries(verbose)
    from pressoir.flows.compress import compress as flow
    from pressoir.flows.compress import plan
    from pressoir.tasks.tracking.experiment import check_reachable

    sources = Sources(Store())
    sentences = check_inputs(parsed, sources)
    base = sources.model(base_reference(parsed))
    rows = plan(parsed, sources)
    if dry_run:
        _print_plan(rows, parsed, base.folder)
        return
    if any(row.state == "build" for row in rows):
        check_space(parsed, sources, base, sentences)
    if output is not None:
        _check_output(output)
    check_reachable(sources.store.home)

    with progress() as reporter, report_to(reporter), sources.shared():
        result = flow(parsed)
    if output is not None:
        _write_output(result, parsed, output)
    _print_comparison(result.report)
    _print_result(result, output)


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
    *(init, inspect, search, evaluate, merge, quantize, shard, unshard, verify, registry, monitor),
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


def _check_output(output: Path) -> None:
    if exists(output) and not (output / "recipe.yaml").exists() and any(output.iterdir()):
        raise StoreError(f"--output {output} is not empty and was not created by Pressoir; choose another")
    with disk_errors(output):
        make_folder(output)
        write_text_atomic(output / ".writable", "")
        (output / ".writable").unlink()


def _write_output(result: CompressResult, recipe: Recipe, output: Path) -> None:
    """`model/` with its card, `report/`, `report.html`, `recipe.yaml` (resolved), `benchmark.json`: in place
    together."""
    from pressoir.publishing import model_card, run_report  # NumPy, which no command needs at its start

    with replaced(output.absolute(), _OUTPUT) as draft:
        store = Store()
        store.copy(result.artifact, draft / "model")
        copy_folder(result.report, draft / "report")
        text = (result.report / "benchmark.json").read_text(encoding="utf-8")
        model_card.write(draft / "model", recipe, reports.read(result.report / "benchmark.json"), store)
        write_text_atomic(draft / "benchmark.json", text)
        write_text_atomic(draft / "recipe.yaml", recipe.to_yaml())
        run_report.write(draft)


def _print_plan(rows: list[PlanRow], recipe: Recipe, base: Path) -> None:
    table = Table("step", "input", "state", "key", "peak memory", box=None)
    peak = 0  # never falls: what a process has taken it rarely gives back
    for row in rows:
        if row.state == "build":
            peak = max(peak, estimate_peak_bytes(row.stage, recipe, base))
        memory = f"≤ {peak / 1e9:.1f} GB" if row.state == "build" else "–"
        table.add_row(row.stage, row.of or "", row.state, (row.key or "not known yet")[:16], memory)
    console.print(table)
    console.print(
        f"{sum(row.state == 'cached' for row in rows)} of {len(rows)} steps are in the store; nothing was run"
    )


def _print_comparison(report: Path) -> None:
    """`comparison.md`, its wide table cut to the columns that fit 80 characters."""
    benchmark = reports.read(report / "benchmark.json")
    columns, rows = reports.short_table(benchmark)
    table = Table(*columns[:2], box=None, pad_edge=False)
    for name in columns[2:]:
        table.add_column(name, justify="right")
    for cells in rows:
        table.add_row(*cells)
    console.print(f"\n[bold]{escape(reports.headline(benchmark))}[/]\n")
    console.print(table)
    text = (report / "comparison.md").read_text(encoding="utf-8")
    console.print(Markdown(text.rpartition("|\n")[2]))


def _print_result(result: CompressResult, output: Path | None) -> None:
    folder = output / "model" if output is not None else result.folder
    console.print(f"model   {folder}")
    console.print(f"report  {output / 'report' if output is not None else result.report}")
    if output is not None:
        console.print(f"page    {output / 'report.html'}")
    console.print(f"digest  {result.artifact.digest}")
    if result.registry_id is not None:
        console.print(escape(f"id      {result.registry_id}: {result.decision}"))
    console.print(f"MLflow  run {result.mlflow_run_id} in {result.tracking_uri} (to view: pressoir ui)")


if __name__ == "__main__":
    main(prog_name="pressoir")
