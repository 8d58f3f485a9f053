"""A report as Markdown, `report.md`, and the table that fits a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pressoir.evaluation.report.content import (
    PICTURE_TITLES,
    Content,
    Failure,
    number_gb,
    samples_of,
    score_of,
)
from pressoir.evaluation.report.results import EvaluationRow, clipped, rate
from pressoir.plots.standalone_page import Table

_ID_COLUMNS = 22


def short_table(rows: Sequence[EvaluationRow]) -> tuple[list[str], list[list[str]]]:
    """Names and cells of the columns that fit 100 characters; the first two are text.

    `GB` is the measured peak, `planned` the predicted one.
    """
    columns = ["model", "verdict", "score", "samples", "per s", "batch", "GB", "planned"]
    names = clipped([row.result.id for row in rows], _ID_COLUMNS)
    return columns, [[name, *_short_cells(row)] for name, row in zip(names, rows, strict=True)]


def to_markdown(content: Content, pictures: Sequence[str] = ()) -> str:
    """The whole page; `pictures` are the files beside it that it shows."""
    verdicts = {failure.verdict for failure in content.failures}
    results = _table(content.results, bold=verdicts)
    sections = [
        [f"# {_cell(content.name)}", f"**{content.headline}**", results, content.legend],
        _picture(pictures, "metrics.png"),
        _comparisons(content),
        _failures(content.failures),
        ["## Memory", _cell(content.estimates), "\n".join(f"- {line}" for line in content.memory)],
        _picture(pictures, "peaks.png"),
        _picture(pictures, "memory.png"),
        ["## Batches", *_batches(content)],
        ["## Speed", *_picture(pictures, "speed.png")] if "speed.png" in pictures else [],
        ["## Notes", "\n".join(f"- {note}" for note in content.notes)] if content.notes else [],
        ["## Conditions", _table(content.conditions)],
    ]
    return "\n\n".join(block for section in sections for block in section if block) + "\n"


def _table(table: Table, bold: Collection[str] = ()) -> str:
    numbers = len(table.columns) - table.texts
    rows = [[f"**{cell}**" if cell in bold else _cell(cell) for cell in cells] for cells in table.rows]
    return "\n".join(
        [
            f"| {' | '.join(table.columns)} |",
            f"|{'---|' * table.texts}{'---:|' * numbers}",
            *(f"| {' | '.join(cells)} |" for cells in rows),
        ]
    )


def _short_cells(row: EvaluationRow) -> list[str]:
    result, measured = row.result, row.measured
    return [
        result.verdict,
        score_of(row),
        samples_of(result),
        rate(measured.samples_per_s),
        str(measured.batch_size or "–"),
        number_gb(measured.measured_peak_bytes),
        number_gb(measured.predicted_peak_bytes),
    ]


def _comparisons(content: Content) -> list[str]:
    if not content.comparisons.rows:
        return []
    return ["## Differences", _table(content.comparisons), content.comparisons_legend]


def _failures(failures: Sequence[Failure]) -> list[str]:
    """Each model that did not end well: what its verdict means, and the first lines of what happened."""
    if not failures:
        return []
    blocks = [
        "## Failures",
        "Full error messages are in `consolidated_results.json`. Completed predictions are kept: "
        "`pressoir evaluate --resume` retries the failed models without repeating them.",
    ]
    for failure in failures:
        blocks.append(f"**{_cell(failure.run)}: {failure.verdict}**: {failure.meaning}.")
        blocks.append("\n".join(f"    {line}" for line in failure.lines))
    return blocks


def _batches(content: Content) -> list[str]:
    if not content.batches.rows:
        return ["No model could be run."]
    return [_table(content.batches), content.batches_legend]


def _picture(pictures: Sequence[str], name: str) -> list[str]:
    return [f"![{PICTURE_TITLES[name]}]({name})"] if name in pictures else []


def _cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
