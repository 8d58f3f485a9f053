"""`pressoir search`: what it prints, and its exit codes."""

import pytest
import yaml
from click.testing import CliRunner

from pressoir.benchmark.cost import CostConditions
from pressoir.recipe_search.budget import SearchLimits
from pressoir.recipe_search.outcome import SearchResult, conclude
from pressoir.recipe_search.records import Figures, Trial, TrialOutcome

VALUES = {
    "name": "small",
    "recipe": {"name": "base"},
    "budget": {"max_size_mb": 20},
    "space": {"distill.student.layers": [1, 2]},
}


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs the command over a search that has found one model of 15 MB."""
    from pressoir.flows import search as module
    from pressoir.flows.cli import main

    def fake(config):
        figures = Figures(accuracy=0.85, size_mb=15.0, latency_ms=2.0)
        outcome = TrialOutcome(state="finished", figures=figures, digest="abc")
        trials = [Trial(number=0, values={"distill.student.layers": 2}, outcome=outcome)]
        teacher = Figures(accuracy=0.9, size_mb=90.0, latency_ms=20.0)
        limits = SearchLimits.from_budget(config.budget, teacher)
        conditions = CostConditions(threads=1, batch_size=1, samples=10)
        found = conclude(config, trials, teacher, limits, conditions)
        return SearchResult(
            folder=config.folder.absolute(),
            found=found,
            model="abc" if found.winner else None,
            rows=(),
            prefect_run_id="p",
            mlflow_run_id="m",
            tracking_uri="sqlite:///x",
        )

    monkeypatch.setattr(module, "search", fake)
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump({**VALUES, "results": str(tmp_path)}))

    def run(*options):
        return CliRunner().invoke(main, ["search", str(path), *options])

    return run


def test_a_winner_is_named_with_its_recipe(command):
    done = command()
    assert done.exit_code == 0, done.output
    assert "distill.student.layers=2: 15.00 MB, 2.00 ms" in done.output
    assert "winner.yaml" in done.output
    assert "wins" in done.output


def test_a_budget_that_nothing_meets_ends_with_code_1_and_says_what_is_missing(command):
    done = command("--set", "budget.max_size_mb=14")
    assert done.exit_code == 1
    assert "15.00 MB, 1.00 MB above max_size_mb 14" in done.output
    assert "nearest.yaml" in done.output


def test_a_wrong_configuration_ends_with_code_2_before_any_work(command, tmp_path):
    done = command("--set", "recipe.distill.temprature=1.0")
    assert done.exit_code == 2
    assert "did you mean `temperature`" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["search.yaml"]
