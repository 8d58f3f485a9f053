"""`--output`: the folder with a model, its card, its report and its recipe, which changes as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pressoir.benchmark import reports
from pressoir.errors import StoreError
from pressoir.pipeline.runner import CompressResult
from pressoir.recipe.recipe import Recipe
from pressoir.store.store import Store
from pressoir.system.files import copy_folder, disk_errors, make_folder, write_text_atomic
from pressoir.system.output import replaced
from pressoir.system.reader import exists

FILES = ("model", "report", "benchmark.json", "recipe.yaml", "report.html")
SEARCH = "search"
"""In the report: that of the search which chose the recipe."""


def check_output(output: Path) -> None:
    """Refuse a folder that cannot be written, or that Pressoir did not make.

    Raises:
        StoreError: it is such a folder.
    """
    if exists(output) and not (output / "recipe.yaml").exists() and any(output.iterdir()):
        raise StoreError(f"--output {output} is not empty and was not created by Pressoir; choose another")
    with disk_errors(output):
        make_folder(output)
        write_text_atomic(output / ".writable", "")
        (output / ".writable").unlink()


def write_output(
    result: CompressResult,
    recipe: Recipe,
    output: Path,
    found: tuple[Path, Callable[[Path], str]] | None = None,
) -> None:
    """`model/` with its card, `report/`, `report.html`, `recipe.yaml` (resolved), `benchmark.json`: in place
    together.

    `found` is the folder of the search that chose the recipe, and what makes a comment above the recipe from
    the finished model folder.
    """
    from pressoir.publishing import model_card, run_report  # NumPy, which no command needs at its start

    with replaced(output.absolute(), FILES) as draft:
        store = Store()
        store.copy(result.artifact, draft / "model")
        copy_folder(result.report, draft / "report")
        if found is not None:
            _copy_report(found[0], draft / "report" / SEARCH)
        text = (result.report / "benchmark.json").read_text(encoding="utf-8")
        model_card.write(draft / "model", recipe, reports.read(result.report / "benchmark.json"), store)
        write_text_atomic(draft / "benchmark.json", text)
        comment = f"# {found[1](draft / 'model')}\n" if found is not None else ""
        write_text_atomic(draft / "recipe.yaml", comment + recipe.to_yaml())
        run_report.write(draft)


def _copy_report(search: Path, target: Path) -> None:
    """What a search found, without its study and its configuration, which has paths of this machine."""
    from pressoir.recipe_search import report

    make_folder(target)
    for name in (report.REPORT, report.TRIALS, report.PAGE, report.PICTURE):
        (target / name).write_bytes((search / name).read_bytes())
