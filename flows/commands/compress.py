"""`pressoir compress`: a recipe, run; its plan, comparison and result, printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from pressoir.benchmark import reports
from pressoir.flows.commands.terminal import console, progress, quiet_libraries
from pressoir.flows.output import check_output, write_output
from pressoir.pipeline.checks import base_reference, check_inputs, check_space
from pressoir.pipeline.estimates import estimate_peak_bytes
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.store.store import Store
from pressoir.tasks import report_to

if TYPE_CHECKING:
    from pressoir.pipeline.plan import PlanRow
    from pressoir.pipeline.runner import CompressResult


@click.command()
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
        print_plan(rows, parsed, base.folder)
        return
    if any(row.state == "build" for row in rows):
        check_space(parsed, sources, base, sentences)
    if output is not None:
        check_output(output)
    check_reachable(sources.store.home)

    with progress() as reporter, report_to(reporter), sources.shared():
        result = flow(parsed)
    if output is not None:
        write_output(result, parsed, output)
    print_comparison(result.report)
    print_result(result, output)


def print_plan(rows: list[PlanRow], recipe: Recipe, base: Path) -> None:
    """Every step, whether the store has it, and the memory that it takes at most."""
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


def print_comparison(report: Path) -> None:
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


def print_result(result: CompressResult, output: Path | None) -> None:
    """Where the model, its report and its runs are."""
    folder = output / "model" if output is not None else result.folder
    console.print(f"model   {folder}")
    console.print(f"report  {output / 'report' if output is not None else result.report}")
    if output is not None:
        console.print(f"page    {output / 'report.html'}")
    console.print(f"digest  {result.artifact.digest}")
    if result.registry_id is not None:
        console.print(escape(f"id      {result.registry_id}: {result.decision}"))
    console.print(f"MLflow  run {result.mlflow_run_id} in {result.tracking_uri} (to view: pressoir ui)")
