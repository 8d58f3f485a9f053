"""`pressoir search`: from a budget to the recipe that meets it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from pressoir.flows.commands.terminal import console, progress, quiet_libraries
from pressoir.store.store import Store
from pressoir.tasks import report_to

if TYPE_CHECKING:
    from pressoir.recipe_search.outcome import SearchResult


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Override a field; may be repeated."
)
@click.option("-v", "--verbose", is_flag=True, help="Also show Prefect's log.")
def search(config: Path, overrides: tuple[str, ...], verbose: bool) -> None:
    """Find a recipe that meets the budget of CONFIG, a YAML file or search-demo.

    Results are written to results/<name>-<digest>/. Running the command again resumes the search, or adds
    trials. Exit code 1 means that no recipe meets the budget.
    """
    from pressoir.recipe_search.config import SearchConfig

    parsed = SearchConfig.from_yaml(config, overrides)
    quiet_libraries(verbose)
    from pressoir.flows.search import search as flow
    from pressoir.tasks.tracking.experiment import check_reachable

    check_reachable(Store().home)

    with progress() as reporter, report_to(reporter):
        result = flow(parsed)
    _print(result)
    sys.exit(0 if result.found.winner is not None else 1)


def _print(result: SearchResult) -> None:
    from pressoir.recipe_search import report

    found = result.found
    console.print(f"\n[bold]{escape(found.headline())}[/]\n", soft_wrap=True)
    columns, rows = report.table(found, found.front)
    table = Table(box=None, pad_edge=False)
    for name in columns[:-1]:
        table.add_column(name, justify="right")
    table.add_column(columns[-1])
    for cells in rows:
        table.add_row(*(escape(cell) for cell in cells))
    console.print(table)
    states = [trial.outcome.state for trial in found.trials]
    console.print(
        f"\n{len(states)} recipes: {states.count('finished')} trained, {states.count('cut')} cut, "
        f"{states.count('failed')} failed; listed are the Pareto-optimal ones (accuracy, size, latency)"
    )
    if found.winner is not None:
        console.print(f"recipe  {escape(str(result.folder / report.WINNER))}", soft_wrap=True)
        console.print(f"digest  {result.model}")
    elif found.nearest is not None:
        console.print(f"nearest {escape(str(result.folder / report.NEAREST))}", soft_wrap=True)
    console.print(f"report  {escape(str(result.folder / report.REPORT))}", soft_wrap=True)
    console.print(f"page    {escape(str(result.folder / report.PAGE))}", soft_wrap=True)
    console.print(f"MLflow  run {result.mlflow_run_id} in {result.tracking_uri} (to view: pressoir ui)")
