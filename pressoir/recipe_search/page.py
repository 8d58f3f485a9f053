"""The interactive page of a search: one HTML file that holds its data and its program, and loads nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pressoir.plots.standalone_page import render
from pressoir.recipe_search.budget import meets
from pressoir.recipe_search.outcome import SearchOutcome, verdict

_TEMPLATE = Path(__file__).with_name("page.html")


def html(name: str, found: SearchOutcome) -> str:
    """The page of a search."""
    return render(_TEMPLATE, title=name, headline=found.headline(), data=content(found))


def content(found: SearchOutcome) -> dict[str, Any]:
    """What the page shows: fractions as percent, every trial with what is best known of it."""
    front = {trial.number for trial in found.front}
    rows = []
    for trial in found.trials:
        outcome, cost = trial.outcome, trial.outcome.cost
        accuracy = outcome.accuracy
        rows.append(
            {
                "number": trial.number,
                "values": {key: json.dumps(value) for key, value in trial.values.items()},
                "state": outcome.state,
                "meets": outcome.figures is not None and meets(outcome.figures, found.limits),
                "front": trial.number in front,
                "wins": found.winner is not None and trial.number == found.winner.number,
                "verdict": verdict(found, trial),
                "accuracy": None if accuracy is None else 100 * accuracy,
                "size_mb": cost.size_mb if cost else None,
                "latency_ms": cost.latency_ms if cost else None,
            }
        )
    first, limits = found.reference, found.limits
    return {
        "trials": rows,
        "limits": {
            "accuracy": None if limits.min_accuracy is None else 100 * limits.min_accuracy,
            "size_mb": limits.max_size_mb,
            "latency_ms": limits.max_latency_ms,
        },
        "teacher": {
            "accuracy": 100 * first.accuracy,
            "size_mb": first.size_mb,
            "latency_ms": first.latency_ms,
        },
    }
