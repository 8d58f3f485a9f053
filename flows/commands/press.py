"""`pressoir press`: from a data file to a compressed model, within a budget if there is one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from pressoir.data import first_recipe
from pressoir.flows.commands.compress import print_comparison, print_plan, print_result
from pressoir.flows.commands.init import examine, print_findings, table_options
from pressoir.flows.commands.merge import ManyValues
from pressoir.flows.commands.terminal import console, progress, quiet_libraries
from pressoir.pipeline.checks import base_reference
from pressoir.recipe.recipe import Recipe
from pressoir.tasks import report_to

if TYPE_CHECKING:
    from pressoir.flows.press import Prepared
    from pressoir.recipe_search.press import PressResult


@click.command(cls=ManyValues)
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="FILE …",
    help="Files of labelled texts, as `pressoir init` takes them: one, or one for each split.",
)
@click.option(
    "--model",
    default=Recipe.model_fields["model"].default,
    show_default=True,
    help="Base model: folder, catalogue id or hub id.",
)
@click.option(
    "--max-size-mb", type=float, metavar="N", help="Maximum size of the model folder, MB = 10^6 bytes."
)
@click.option(
    "--max-latency-ms", type=float, metavar="N", help="Maximum median latency of one text on this machine."
)
@click.option(
    "--max-accuracy-drop",
    type=float,
    metavar="N",
    help="Maximum drop in validation accuracy below the teacher, in percentage points.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for model, report and recipe; an earlier result is replaced.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE …", help="Override a field of the recipe."
)
@click.option(
    "--dry-run", is_flag=True, help="Print the recipe, its steps, their memory and what would be tried."
)
@table_options
@click.option("-v", "--verbose", is_flag=True, help="Also show Prefect's log.")
def press(
    data: tuple[str, ...],
    model: str,
    max_size_mb: float | None,
    max_latency_ms: float | None,
    max_accuracy_drop: float | None,
    output: Path,
    overrides: tuple[str, ...],
    dry_run: bool,
    text_column: str | None,
    text_pair_column: str | None,
    label_column: str | None,
    encoding: str | None,
    verbose: bool,
) -> None:
    """Compress a model for the labelled texts of your files, in one command.

    Without a limit, the recipe that `pressoir init` would write is run. With limits, up to seven recipes from
    gentle to hard are tried; of those that meet all limits, the one with the best validation accuracy is kept
    (the smallest, if only the accuracy drop is limited). If none does, the closest is written, and the exit
    code is 1. Run the same command again to resume it.

    \b
      pressoir press --data reviews.csv --output out/reviews
      pressoir press --data train.tsv dev.tsv test.tsv --max-size-mb 15 --output out/reviews
      pressoir press --data reviews.csv --max-latency-ms 2 --max-accuracy-drop 1 --output out/fast
    """
    from pressoir.recipe_search.press import budget_from  # NumPy, which no other command needs at its start

    budget = budget_from(max_size_mb, max_latency_ms, max_accuracy_drop)
    files, inspection = examine(data, text_column, label_column, encoding, text_pair_column)
    text, recipe, sizes = first_recipe.first_recipe(files, inspection, model, overrides)
    print_findings(inspection, sizes)
    quiet_libraries(verbose)
    from pressoir.flows.press import carry_out, prepare

    prepared = prepare(recipe, budget, overrides)
    if dry_run:
        _print_prepared(prepared, text, overrides)
        return
    with progress() as reporter, report_to(reporter):
        result = carry_out(prepared, output)
    print_comparison(result.compressed.report)
    print_result(result.compressed, output)
    _print_verdict(result)
    sys.exit(1 if result.misses else 0)


def _print_prepared(prepared: Prepared, text: str, overrides: tuple[str, ...]) -> None:
    console.print(f"\n{escape(text)}", soft_wrap=True, highlight=False)
    for override in overrides:
        console.print(escape(f"--set {override}"), soft_wrap=True)
    if prepared.search is not None:
        from pressoir.recipe_search.records import describe

        console.print(f"\n[bold]{len(prepared.search.first)} recipes would be tried, from gentle to hard[/]")
        for number, values in enumerate(prepared.search.first):
            console.print(escape(f"{number}  {describe(values)}"), soft_wrap=True)
        console.print("\n[bold]steps of the first recipe[/]")
    base = prepared.sources.model(base_reference(prepared.recipe))
    print_plan(prepared.rows, prepared.recipe, base.folder)


def _print_verdict(result: PressResult) -> None:
    console.print(f"size    {result.size_mb:.2f} MB, every file of the model folder")
    if result.headline:
        console.print(f"\n[bold]{escape(result.headline)}[/]", soft_wrap=True)
