"""From a data file to a compressed model: a first recipe for the data, and a short search within a budget.

`press("reviews.csv", "out", max_size_mb=15)` runs it in plain Python. It has no steps of its own: the recipe
is that of `pressoir init`, the search that of `pressoir search`, the run that of `pressoir compress`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pressoir import tasks
from pressoir.data import columns, first_recipe, layout
from pressoir.data.inspection import inspect, splits_of
from pressoir.errors import RecipeError
from pressoir.flows.compress import compress, pipeline, plan
from pressoir.flows.output import check_output, write_output
from pressoir.flows.search import search
from pressoir.pipeline.checks import base_reference, check_inputs, check_space
from pressoir.pipeline.plan import PlanRow
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.recipe_search.config import Budget, SearchConfig, with_values
from pressoir.recipe_search.outcome import SearchOutcome
from pressoir.recipe_search.press import (
    CARD_MB,
    PressResult,
    budget_from,
    folder_mb,
    headline,
    missed,
    search_for,
    with_size,
)
from pressoir.recipe_search.records import Figures
from pressoir.recipe_search.trial import StoreRunner, score
from pressoir.reporting import Silent
from pressoir.store.store import Store
from pressoir.tasks.tracking.experiment import check_reachable


@dataclass(frozen=True)
class Prepared:
    """What `press` is about to do, checked."""

    recipe: Recipe
    """The first recipe, with which a search begins."""
    budget: Budget | None
    search: SearchConfig | None
    """None without a budget."""
    rows: list[PlanRow]
    """The steps of the recipe."""
    sentences: int
    """Of the training split."""
    sources: Sources


def press(
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    model: str = Recipe.model_fields["model"].default,
    max_size_mb: float | None = None,
    max_latency_ms: float | None = None,
    max_accuracy_drop: float | None = None,
    overrides: Sequence[str] = (),
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    encoding: str | None = None,
) -> PressResult:
    """Compress `model` for the labelled texts of `data`, and write the result to the folder `output`.

    `data` is a file, or one for each split (`train.tsv`, `dev.tsv`, `test=b.csv`). With a limit (MB of the
    model folder, milliseconds per sentence, percentage points of accuracy below the teacher) a few recipes
    are tried; if none meets all limits, the closest is written and named in `misses`. `overrides` are fields
    of the recipe, such as `distill.epochs=3`.

    Raises:
        PressoirError: the data, the model, a limit or the output folder cannot be used.
    """
    budget = budget_from(max_size_mb, max_latency_ms, max_accuracy_drop)
    files = splits_of([str(path) for path in ([data] if isinstance(data, (str, Path)) else data)])
    found = layout.find(files["train"], encoding)
    choice = columns.choose(found.columns, found.rows, text_column, label_column, text_pair_column)
    _, recipe, _ = first_recipe.first_recipe(files, inspect(files, found, choice, encoding), model, overrides)
    return carry_out(prepare(recipe, budget, overrides), Path(output))


def prepare(recipe: Recipe, budget: Budget | None, overrides: Sequence[str]) -> Prepared:
    """Check everything before any work; nothing is written.

    Raises:
        PressoirError: see `check_inputs` and `search_for`.
    """
    sources = Sources(Store())
    sentences = check_inputs(recipe, sources)
    config = None
    if budget is not None:
        fixed = [override.partition("=")[0] for override in overrides]
        config = search_for(recipe, budget, fixed, sources)
    return Prepared(recipe, budget, config, plan(recipe, sources), sentences, sources)


def carry_out(prepared: Prepared, output: Path) -> PressResult:
    """Search, compress, and write the output folder.

    Raises:
        PressoirError: a stage fails, no recipe of the search can be run, or the output cannot be written.
    """
    recipe, sources, config = prepared.recipe, prepared.sources, prepared.search
    output = output.absolute()  # also if it is the current folder, which is replaced
    if any(row.state == "build" for row in prepared.rows):
        check_space(recipe, sources, sources.model(base_reference(recipe)), prepared.sentences)
    check_output(output)
    check_reachable(sources.store.home)
    with sources.shared():
        if config is None or prepared.budget is None:
            result = compress(recipe)
            write_output(result, recipe, output)
            return PressResult(folder=output, size_mb=folder_mb(output / "model"), compressed=result)
        found = search(config).found
        chosen, figures = _choose(recipe, found, sources)
        if missed(figures, found, prepared.budget):
            chosen = chosen.model_copy(update={"registry": None})
        result = compress(chosen)
    budget = prepared.budget
    write_output(
        result,
        chosen,
        output,
        (config.folder, lambda model: headline(with_size(figures, model), found, budget)),
    )
    measured = with_size(figures, output / "model")
    return PressResult(
        folder=output,
        size_mb=measured.size_mb,
        compressed=result,
        found=found,
        figures=measured,
        misses=missed(measured, found, budget),
        headline=headline(measured, found, budget),
    )


def _choose(recipe: Recipe, found: SearchOutcome, sources: Sources) -> tuple[Recipe, Figures]:
    """The recipe that meets the budget best, or is closest to it, and what its model has: trained to its end
    where the search has stopped it before."""
    trial = found.winner or found.nearest
    if trial is None:
        reasons = "\n".join(f"  {one.named()}: {one.outcome.reason}" for one in found.trials)
        raise RecipeError(f"none of the recipes could be run:\n{reasons}")
    terminal = tasks.terminal.get() or Silent()
    trained = trial.outcome.figures is not None
    if not trained:
        terminal.message(f"no recipe meets the budget; training the closest, {trial.named()}")
    chosen = with_values(recipe, trial.values)
    made = pipeline(
        chosen, StoreRunner(chosen, sources.store, Silent() if trained else terminal, sources=sources)
    )
    figures = score(made.final, made.data, sources.store, found.conditions, recipe.seed)
    return chosen, figures.model_copy(update={"size_mb": made.final.size_bytes / 1e6 + CARD_MB})
