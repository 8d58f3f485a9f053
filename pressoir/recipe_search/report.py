"""What a search leaves in its folder: the winning recipe, the table, the page and the picture.

| file | content |
|---|---|
| `search.yaml` | the configuration, with the recipe in it |
| `study.db` | the trials, an Optuna database |
| `winner.yaml` | the winning recipe, for `pressoir compress`; `nearest.yaml` where none meets the budget |
| `trials.json` | every trial: choices, predictions, figures, why it was cut |
| `report.md` | the answer, the Pareto front, all trials |
| `pareto.html`, `pareto.png` | the same as a picture: the page is interactive, and needs no network |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pressoir.benchmark.reports import AnyRow
from pressoir.recipe.recipe import Recipe
from pressoir.recipe_search.config import SearchConfig, with_values
from pressoir.recipe_search.outcome import SearchOutcome, verdict
from pressoir.recipe_search.records import Trial
from pressoir.system.files import make_folder, write_text_atomic

CONFIG, STUDY, WINNER, NEAREST = "search.yaml", "study.db", "winner.yaml", "nearest.yaml"
TRIALS, REPORT, PAGE, PICTURE = "trials.json", "report.md", "pareto.html", "pareto.png"


def recipe_of(config: SearchConfig, trial: Trial) -> Recipe:
    """The whole recipe of a trial."""
    return with_values(config.recipe, trial.values, config.name)


def begin(config: SearchConfig) -> Path:
    """Make the search's folder, or find it, and write what is looked for."""
    make_folder(config.folder)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
    write_text_atomic(config.folder / CONFIG, text)
    return config.folder


def write(config: SearchConfig, found: SearchOutcome, test: Sequence[AnyRow] = ()) -> list[Path]:
    """Write everything; `test` are the rows of the winner's benchmark, on the test split."""
    from pressoir.recipe_search import page, plots

    folder = config.folder
    for name in (WINNER, NEAREST):
        (folder / name).unlink(missing_ok=True)
    texts = {TRIALS: json.dumps(found.model_dump(mode="json"), indent=2) + "\n"}
    chosen = found.winner or found.nearest
    if chosen is not None:
        name = WINNER if found.winner else NEAREST
        texts[name] = f"# {found.headline()}\n{recipe_of(config, chosen).to_yaml()}"
    texts[REPORT] = to_markdown(config, found, test)
    texts[PAGE] = page.html(config.name, found)
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    plots.pareto(found, folder / PICTURE)
    return [folder / name for name in (*texts, PICTURE)]


def table(found: SearchOutcome, trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of some trials; choices that all share a section are named without it."""
    keys = list(found.trials[0].values) if found.trials else []
    columns = ["trial", *(short_name(key, keys) for key in keys), "accuracy", "MB", "ms", "outcome"]
    rows = []
    for trial in trials:
        outcome = trial.outcome
        cost, accuracy = outcome.cost, outcome.accuracy
        about = "" if outcome.figures else "~"
        rows.append(
            [
                str(trial.number),
                *(_value(trial.values[key]) for key in keys),
                f"{about}{100 * accuracy:.1f} %" if accuracy is not None else "–",
                f"{about}{cost.size_mb:.2f}" if cost else "–",
                f"{about}{cost.latency_ms:.2f}" if cost else "–",
                verdict(found, trial),
            ]
        )
    return columns, rows


def short_name(key: str, keys: Sequence[str]) -> str:
    """The last part of a dotted name that tells it from the others."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        name = ".".join(parts[-count:])
        if sum(other == name or other.endswith(f".{name}") for other in keys) == 1:
            return name
    return key


def to_markdown(config: SearchConfig, found: SearchOutcome, test: Sequence[AnyRow] = ()) -> str:
    """`report.md`."""
    first, conditions = found.reference, found.conditions
    states = [trial.outcome.state for trial in found.trials]
    lines = [f"# {config.name}", "", f"**{found.headline()}**", ""]
    if found.winner is not None:
        lines += [f"`pressoir compress {config.folder / WINNER}` rebuilds it from the store.", ""]
    lines += [
        "## Budget",
        "",
        "| limit | | nearest recipe |" if found.winner is None else "| limit | | the winner |",
        "|---|---:|---:|",
        *(f"| {name} | {limit} | {value} |" for name, limit, value in _budget_rows(found)),
        "",
        f"{len(states)} recipes were tried: {states.count('finished')} fully trained, "
        f"{states.count('cut')} cut, {states.count('failed')} failed. Trials are compared on the "
        f"validation split only. Latency is the median of {conditions.samples} batches of "
        f"{conditions.batch_size}, {conditions.threads} threads. The exported teacher: accuracy "
        f"{100 * first.accuracy:.1f} %, {first.size_mb:.2f} MB, {first.latency_ms:.2f} ms.",
        "",
    ]
    if test:
        lines += ["## The winner on the test split", "", *_test(test), ""]
    lines += ["## Pareto front", "", *_table(found, found.front), "", f"![Trials]({PICTURE})", ""]
    lines += ["## All trials", "", *_table(found, found.trials), ""]
    lines += ["`~`: predicted before training, or after the short distillation.", ""]
    if accurate := _prediction(found.trials):
        lines += [accurate, ""]
    return "\n".join(lines)


def _budget_rows(found: SearchOutcome) -> list[tuple[str, str, str]]:
    chosen = found.winner or found.nearest
    cost = chosen.outcome.cost if chosen else None
    accuracy = chosen.outcome.accuracy if chosen else None
    rows = []
    if found.limits.max_size_mb is not None:
        value = f"{cost.size_mb:.2f} MB" if cost else "–"
        rows.append(("size (maximum)", f"{found.limits.max_size_mb:g} MB", value))
    if found.limits.max_latency_ms is not None:
        value = f"{cost.latency_ms:.2f} ms" if cost else "–"
        rows.append(("latency (maximum)", f"{found.limits.max_latency_ms:g} ms", value))
    if found.limits.min_accuracy is not None:
        value = f"{100 * accuracy:.1f} %" if accuracy is not None else "–"
        rows.append(("accuracy (minimum)", f"{100 * found.limits.min_accuracy:.1f} %", value))
    return rows


def _test(rows: Sequence[AnyRow]) -> list[str]:
    lines = ["| stage | runtime | accuracy | MB | p50 ms |", "|---|---|---:|---:|---:|"]
    for row in rows:
        metrics: Mapping[str, Any] = row.model_dump()
        lines.append(
            f"| {row.stage} | {row.runtime} | {100 * metrics['accuracy']:.1f} % | {row.size_mb:.2f} | "
            f"{metrics['latency_ms_p50']:.2f} |"
        )
    return [
        *lines,
        "",
        "Latency here is measured on test sentences at batch size 1, with the models taking turns.",
    ]


def _table(found: SearchOutcome, trials: Sequence[Trial]) -> list[str]:
    if not trials:
        return ["None was fully trained."]
    columns, rows = table(found, trials)
    choices = len(columns) - 5
    return [
        f"| {' | '.join(columns)} |",
        f"|{'---:|' * (choices + 4)}---|",
        *(f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |" for row in rows),
    ]


def _prediction(trials: Sequence[Trial]) -> str:
    """How well the finished trials were predicted."""
    pairs = [
        (trial.outcome.predicted, trial.outcome.figures)
        for trial in trials
        if trial.outcome.predicted and trial.outcome.figures
    ]
    if not pairs:
        return ""
    size = max(abs(predicted.size_mb / real.size_mb - 1) for predicted, real in pairs)
    time = sorted(abs(predicted.latency_ms / real.latency_ms - 1) for predicted, real in pairs)
    return (
        f"For the {len(pairs)} finished recipes, the size predicted before training was off by at most "
        f"{100 * size:.2f} %, the latency by {100 * time[len(time) // 2]:.0f} % in the median, "
        f"{100 * time[-1]:.0f} % at most."
    )


def _value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) or value is None else str(value)
