"""A compression run as one HTML page, `report.html`, from the folder that `compress --output` wrote.

It opens offline, loads nothing and runs no script. Nothing is measured here: of what a run has not kept, the
page says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pressoir.benchmark import page_plots, reports
from pressoir.benchmark.classifier_details import DETAILS, ClassifierDetails, ClassResult
from pressoir.benchmark.classifier_report import (
    Benchmark,
    baseline_note,
    points,
    truncation_note,
)
from pressoir.benchmark.reports import RESULT, AnyBenchmark
from pressoir.errors import PressoirError
from pressoir.plots.standalone_page import Table, render
from pressoir.recipe.recipe import Recipe
from pressoir.system.addresses import without_password
from pressoir.system.files import MANIFEST, disk_errors, write_text_atomic
from pressoir.system.reader import YAML_BYTES, is_file, is_folder, read_text

HTML = "report.html"
RECIPE = "recipe.yaml"
_TEMPLATE = Path(__file__).with_name("run_report.html")
_CONDITIONS = {"cpu": "CPU", "cpu_features": "CPU features", "cpus": "CPUs", "system": "operating system"}


@dataclass(frozen=True)
class _Run:
    """What a folder has of a run."""

    name: str
    description: str
    benchmark: AnyBenchmark
    details: ClassifierDetails | None
    recipe: str | None


def write(folder: Path, output: Path | None = None) -> Path:
    """Write the page of the run in `folder`, there or to `output`; returns where it is.

    Raises:
        PressoirError: the folder holds no run, a file of it is damaged, or it is an artifact of the store and
            no `output` is given. StoreError: the page cannot be written.
    """
    run = _read(folder)
    if output is None:
        if is_file(folder / MANIFEST):
            raise PressoirError(
                f"{folder} is an artifact of the store, which does not change; specify a file with --output"
            )
        output = folder / HTML
    with disk_errors(output):
        write_text_atomic(output, _page(run))
    return output


def _read(folder: Path) -> _Run:
    advice = "specify the folder that `pressoir compress RECIPE --output FOLDER` wrote"
    if not is_folder(folder):
        raise PressoirError(f"{folder} is not a folder; {advice}")
    if not is_file(folder / RESULT):
        raise PressoirError(f"{folder} is not the output of a compression run: it has no {RESULT}; {advice}")
    benchmark = reports.read(folder / RESULT)
    found = [path for path in (folder / "report" / DETAILS, folder / DETAILS) if is_file(path)]
    details = ClassifierDetails.read(found[0]) if found and isinstance(benchmark, Benchmark) else None
    name, description, text = "Compression run", "", None
    path = folder / RECIPE
    if is_file(path):
        text = read_text(path, PressoirError, advice, "valid YAML", YAML_BYTES)
        recipe = _recipe(path)
        if recipe is not None:
            name, description = recipe.name, recipe.description or ""
    return _Run(name, without_password(description), benchmark, details, text and without_password(text))


def _recipe(path: Path) -> Recipe | None:
    """None of a recipe of another version, or of a package that is no longer installed: its text is shown."""
    try:
        return Recipe.from_yaml(path)
    except PressoirError:
        return None


def _page(run: _Run) -> str:
    benchmark, details = run.benchmark, run.details
    columns, rows = reports.full_table(benchmark)
    classifiers = benchmark if isinstance(benchmark, Benchmark) else None
    baseline = baseline_note(classifiers) if classifiers else None
    truncation = truncation_note(classifiers) if classifiers else None
    return render(
        _TEMPLATE,
        name=run.name,
        description=run.description,
        headline=reports.headline(benchmark),
        busy=benchmark.busy(),
        models=Table(tuple(columns), 2, tuple(map(tuple, rows))),
        method=reports.method(benchmark),
        notes=[note for note in reports.notes(benchmark) if note not in (baseline, truncation)],
        charts=page_plots.charts(benchmark),
        classifiers=classifiers,
        details=details,
        compared=len(benchmark.rows) > 1,
        classes=_classes(details, len(benchmark.rows) > 1) if details else None,
        baseline=baseline,
        truncation=truncation,
        ends=[f"{row.stage} ({row.runtime})" for row in (benchmark.rows[0], benchmark.rows[-1])],
        conditions=_conditions(benchmark),
        recipe=run.recipe,
    )


def _classes(details: ClassifierDetails, compared: bool) -> Table:
    """A row a class; of one model alone there is nothing to compare."""
    scores = ("precision", "recall", "F1")
    columns = ["class", "test sentences", *(f"{score}, first" for score in scores)]
    if not compared:
        return Table(("class", "test sentences", *scores), 1, tuple(map(_class_cells, details.classes)))
    columns += [*(f"{score}, final" for score in scores), "Δ F1, points"]
    rows = (
        (*_class_cells(one), *_percents(one.final), points(one.final.f1 - one.reference.f1))
        for one in details.classes
    )
    return Table(tuple(columns), 1, tuple(rows))


def _class_cells(one: ClassResult) -> tuple[str, ...]:
    return (one.label, str(one.sentences), *_percents(one.reference))


def _percents(scores: object) -> tuple[str, ...]:
    return tuple(f"{100 * getattr(scores, name):.1f} %" for name in ("precision", "recall", "f1"))


def _conditions(benchmark: AnyBenchmark) -> list[tuple[str, str]]:
    rows = [
        (_CONDITIONS.get(name, name), value) for name, value in benchmark.machine.items() if name != "threads"
    ]
    rows += [("threads", str(benchmark.threads))]
    if benchmark.free_cpus is not None:
        rows.append(("CPUs that other programs left free", f"{benchmark.free_cpus:.1f}"))
    if benchmark.drift is not None:
        rows.append(("drift of the medians while they were measured", f"{100 * benchmark.drift:.0f} %"))
    rows += list(benchmark.versions.items())
    return [*rows, ("seed", str(benchmark.seed)), ("measured (UTC)", benchmark.recorded_at)]
