"""`pressoir evaluate`: many models on one machine, never more memory than there is."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Column, Table

from pressoir.config import plain, validate
from pressoir.errors import RecipeError
from pressoir.flows.commands.merge import ManyValues
from pressoir.flows.commands.terminal import console, progress, quiet_libraries
from pressoir.store.store import Store
from pressoir.tasks import report_to

if TYPE_CHECKING:
    from pressoir.evaluation.config import EvaluationConfig
    from pressoir.evaluation.run import EvaluationResult, Prepared, Survey

STRATEGIES = ("aggressive", "moderate", "conservative")


@click.command(cls=ManyValues)
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option(
    "--auto",
    is_flag=True,
    help="Ignore strategy and batches of CONFIG; choose them by available memory.",
)
@click.option(
    "--analyze-only", is_flag=True, help="Print machine, memory estimates and plan without running it."
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use only the first N samples of each data set.",
)
@click.option(
    "--batches",
    multiple=True,
    metavar="NAME …",
    help="Run only these batches of the plan (see --list-batches).",
)
@click.option("--list-batches", is_flag=True, help="Print the batches of the plan, one per line.")
@click.option("--resume", metavar="RUN", help="Resume a previous run, given by name or folder.")
@click.option(
    "--strategy", type=click.Choice(STRATEGIES), help="Override the strategy chosen by available memory."
)
@click.option("--interactive", is_flag=True, help="Ask for strategy and batches, and confirm the start.")
@click.option(
    "--max-parallel", type=click.IntRange(min=1), metavar="N", help="Maximum number of parallel models."
)
@click.option("--probe", is_flag=True, help="Estimate memory by short measurements of each model.")
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE …", help="Override a field of CONFIG."
)
@click.option("-v", "--verbose", is_flag=True, help="Also show Prefect's log.")
def evaluate(
    config: Path | None,
    auto: bool,
    analyze_only: bool,
    samples: int | None,
    batches: tuple[str, ...],
    list_batches: bool,
    resume: str | None,
    strategy: str | None,
    interactive: bool,
    max_parallel: int | None,
    probe: bool,
    overrides: tuple[str, ...],
    verbose: bool,
) -> None:
    """Evaluate the models of CONFIG, a YAML file or an example, in batches that fit the available memory.

    Results are written to results/<run>/. Exit code 1 means that a model failed; the report says why.
    """
    from pressoir.evaluation import run

    chosen: dict[str, Any] = {"samples": samples, "strategy": strategy, "max_parallel": max_parallel}
    if probe:
        chosen["probe"] = True
    if auto:
        chosen |= {"strategy": strategy, "batches": {}}
    parsed, folder = _configuration(config, resume, overrides, chosen, auto)
    run.check_batches(parsed, batches)
    store = Store()
    looking = analyze_only or list_batches
    if interactive and not looking:
        parsed = _ask_strategy(parsed)
    if looking or interactive:
        prepared = run.prepare(parsed, store, batches=batches, fetch=not looking)
        if list_batches:
            _print_batches(prepared)
        else:
            _print_survey(prepared.survey)
            _print_estimates(prepared)
            _print_plan(prepared)
        if looking:
            if not list_batches:
                console.print("nothing was run")
            return
        batches = _ask_batches(prepared)
    quiet_libraries(verbose)
    from pressoir.flows.batch_evaluation import batch_evaluation
    from pressoir.tasks.tracking.experiment import check_reachable

    check_reachable(store.home)

    with progress() as reporter, report_to(reporter):
        result = batch_evaluation(parsed, None if folder is None else str(folder), batches)
    _print_result(result)


def _configuration(
    path: Path | None, resume: str | None, overrides: tuple[str, ...], chosen: dict[str, Any], auto: bool
) -> tuple[EvaluationConfig, Path | None]:
    """What to evaluate, and the folder of the run that is resumed."""
    from pressoir.evaluation import run
    from pressoir.evaluation.config import EvaluationConfig

    if path is None and resume is None:
        raise RecipeError("specify CONFIG (a YAML file, or the example evaluation-demo), or --resume RUN")
    parsed = None if path is None else EvaluationConfig.from_yaml(path, overrides)
    folder = None
    if resume is not None:
        results = parsed.results if parsed is not None else Path("results")
        folder = run.find(resume, results)
        parsed = parsed or run.read_config(folder)
    values = parsed.model_dump(mode="json") if parsed is not None else {}
    if path is None:
        values = plain(values, overrides, f"{resume} with --set")
    values |= {
        name: value for name, value in chosen.items() if value is not None or (auto and name == "strategy")
    }
    return validate(EvaluationConfig, values, str(path or folder)), folder


def _ask_strategy(config: EvaluationConfig) -> EvaluationConfig:
    from pressoir.evaluation import run

    seen = run.survey(config)
    _print_survey(seen)
    strategy = click.prompt("strategy", type=click.Choice(STRATEGIES), default=seen.strategy)
    return config.model_copy(update={"strategy": strategy})


def _ask_batches(prepared: Prepared) -> tuple[str, ...]:
    names = [batch.name for batch in prepared.plan.batches]
    answer = click.prompt(f"batches ({', '.join(names)})", default="all")
    chosen = () if answer.strip() == "all" else tuple(answer.replace(",", " ").split())
    click.confirm("start", default=True, abort=True)
    return chosen


def _print_survey(seen: Survey) -> None:
    memory = seen.memory
    limit = "none" if memory.limit_bytes is None else f"{_gb(memory.limit_bytes)} ({memory.limit_source})"
    swap = f"{_gb(memory.swap_free_bytes)} of {_gb(memory.swap_total_bytes)} free"
    gpus = ", ".join(f"{gpu.name} {_gb(gpu.used_bytes)} of {_gb(gpu.total_bytes)}" for gpu in seen.gpus)
    table = Table.grid(padding=(0, 2))
    for name, value in {
        "RAM": f"{_gb(memory.total_bytes)} installed",
        "limit": limit,
        "available": f"{_gb(memory.available_bytes)} (from {memory.available_source})",
        "swap": swap if memory.swap_total_bytes else "none",
        "GPU": gpus or "none",
        "CPUs": f"{seen.cpus}; {seen.threads} threads for the models",
        "strategy": f"{seen.strategy} ({'specified' if seen.chosen else 'by available memory'}): reserve "
        f"{_gb(seen.reserve_bytes)}, batch size {seen.batch_size}, up to {seen.max_parallel} in parallel",
        "budget": _gb(seen.budget_bytes),
    }.items():
        table.add_row(name, escape(value))
    console.print(table)
    for note in memory.notes:
        console.print(escape(f"note: {note}"))


def _print_estimates(prepared: Prepared) -> None:
    from pressoir.evaluation.planner import GB

    table = Table(_whole("model"), "runtime", box=None, pad_edge=False)
    for heading in ("fixed\nGB", "sample\nGB", "peak\nGB"):
        table.add_column(heading, justify="right")
    table.add_column("estimated\nby")
    estimated = [name for name in prepared.names if name not in prepared.refused]
    for task, names in itertools.groupby(estimated, lambda name: prepared.jobs[name].task):
        table.add_row(f"[dim]{task}[/]")
        for name in names:
            estimate, job = prepared.estimates[name], prepared.jobs[name]
            sizes = (estimate.fixed_bytes, estimate.per_sample_bytes, estimate.peak_bytes(job.batch_size))
            table.add_row(name, job.runs_in, *(f"{size / GB:.3f}" for size in sizes), estimate.origin)
    console.print()
    console.print(table)
    for name, outcome in prepared.refused.items():
        console.print(f"[red]{outcome.verdict}[/] {escape(name)}: {escape(outcome.detail)}", soft_wrap=True)


def _print_plan(prepared: Prepared) -> None:
    from pressoir.evaluation.planner import GB

    table = Table("batch", _whole("models (batch size)"), "peak GB", box=None)
    for batch in prepared.plan.batches:
        members = ", ".join(f"{placement.model} ({placement.batch_size})" for placement in batch.placements)
        table.add_row(batch.name, members, f"{batch.peak_bytes / GB:.3f}")
    console.print()
    console.print(table)
    for skipped in prepared.plan.skipped:
        console.print(
            f"[red]skipped[/] {escape(skipped.model)}: needs {_gb(skipped.peak_bytes)} for a single sample, "
            f"but the budget is {_gb(skipped.budget_bytes)}"
        )


def _print_batches(prepared: Prepared) -> None:
    for batch in prepared.plan.batches:
        click.echo(f"{batch.name}: {', '.join(placement.model for placement in batch.placements)}")


def _print_result(result: EvaluationResult) -> None:
    from pressoir.evaluation.report import page

    columns, rows = page.short_table(result.rows)
    table = Table(*map(_whole, columns[:2]), box=None, pad_edge=False)
    for name in columns[2:]:
        table.add_column(name, justify="right")
    for cells in rows:
        table.add_row(*(escape(cell) for cell in cells))
    console.print()
    console.print(table)
    bad = [row.result for row in result.rows if row.result.verdict != "ok"]
    for failure in bad:
        last = (failure.detail.strip().splitlines() or [""])[-1]
        console.print(f"[red]{failure.verdict}[/] {escape(failure.id)}: {escape(last)}", soft_wrap=True)
    console.print(f"\nreport  {escape(str(result.folder / 'report.html'))}", soft_wrap=True)
    console.print(f"MLflow  run {result.mlflow_run_id} in {result.tracking_uri} (to view: pressoir ui)")
    if bad:
        console.print(
            f"{len(bad)} of {len(result.rows)} failed; to retry after fixing the cause: "
            f"pressoir evaluate --resume {escape(str(result.folder))}",
            soft_wrap=True,
        )
        sys.exit(1)


def _whole(name: str) -> Column:
    """A column of ids: what is cut off could not be asked for."""
    return Column(name, overflow="fold")


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
