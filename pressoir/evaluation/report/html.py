"""A report as one HTML file, `report.html`: it opens offline, runs no script, and shows the worst samples."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pressoir.evaluation.report import worst
from pressoir.evaluation.report.content import PICTURE_TITLES, Content
from pressoir.evaluation.report.results import EvaluationOutcome
from pressoir.evaluation.report.worst import WorstSample
from pressoir.extensions.task import task
from pressoir.plots.standalone_page import render

_TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class _Picture:
    title: str
    address: str
    """All of it, as a data URI."""


@dataclass(frozen=True)
class _RunSamples:
    """What a run's samples have to show."""

    run: str
    worst: Sequence[WorstSample]
    scored: int
    unit: str
    missing: Sequence[WorstSample]
    """The first of those without a prediction."""
    missing_count: int
    reason: str
    """Why they have none."""


def to_html(content: Content, results: Sequence[EvaluationOutcome], pictures: Sequence[Path]) -> str:
    """The whole page, in which `pictures`, PNG files, are embedded."""
    return render(
        _TEMPLATE,
        content=content,
        verdicts={failure.verdict for failure in content.failures},
        pictures={path.name: _picture(path) for path in pictures},
        samples=[found for result in results if (found := _samples(result)).worst or found.missing_count],
    )


def _picture(path: Path) -> _Picture:
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    return _Picture(PICTURE_TITLES[path.name], f"data:image/png;base64,{encoded}")


def _samples(result: EvaluationOutcome) -> _RunSamples:
    declared = task(result.data.task)
    scored = set(result.score.samples)
    # Where nothing was predicted at all, the run's failure says it; windows are known to the model alone.
    missing = [] if declared.windows or not scored else [s for s in result.data.samples if s.id not in scored]
    return _RunSamples(
        run=result.run_id,
        worst=result.score.worst,
        scored=len(scored),
        unit=declared.unit,
        missing=[worst.unanswered(result.data, sample) for sample in missing[: worst.SHOWN]],
        missing_count=len(missing),
        reason=result.outcome.detail if missing else "",
    )
