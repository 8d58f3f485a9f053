"""What a search leaves: the recipe, the report, the page that needs no network, the picture."""

import json
import re

import pytest

from pressoir.benchmark.cost import Cost, CostConditions
from pressoir.recipe.recipe import Recipe
from pressoir.recipe_search import outcome as search_found
from pressoir.recipe_search import page, report
from pressoir.recipe_search.budget import SearchLimits
from pressoir.recipe_search.config import SearchConfig
from pressoir.recipe_search.records import Figures, Trial, TrialOutcome

REFERENCE = Figures(accuracy=0.9, size_mb=90.0, latency_ms=20.0)
CONDITIONS = CostConditions(threads=2, batch_size=1, samples=100)


@pytest.fixture
def config(tmp_path):
    return SearchConfig.from_dict(
        {
            "name": "small",
            "recipe": {"name": "base"},
            "budget": {"max_size_mb": 20, "max_accuracy_drop": 0.1},
            "space": {"distill.student.layers": [1, 2, 3], "prune.ffn_sparsity": [0.25, 0.5]},
            "results": str(tmp_path),
        }
    )


def trial(number, layers, sparsity, **outcome):
    values = {"distill.student.layers": layers, "prune.ffn_sparsity": sparsity}
    return Trial(number=number, values=values, outcome=TrialOutcome(**outcome))


TRIALS = [
    trial(
        0,
        2,
        0.5,
        state="finished",
        predicted=Cost(size_mb=15.0, latency_ms=2.2),
        short_accuracy=0.6,
        figures=Figures(accuracy=0.85, size_mb=15.0, latency_ms=2.0),
        digest="abc",
    ),
    trial(1, 3, 0.25, state="cut", reason="too <large>", predicted=Cost(size_mb=25.0, latency_ms=4.0)),
    trial(
        2, 1, 0.5, state="finished", figures=Figures(accuracy=0.7, size_mb=9.0, latency_ms=1.0), digest="d"
    ),
    trial(3, 1, 0.25, state="failed", reason="ParityError: no"),
]


def conclude(config, trials=TRIALS, size=20.0):
    limits = SearchLimits(max_size_mb=size, max_latency_ms=None, min_accuracy=0.8)
    return search_found.conclude(config, trials, REFERENCE, limits, CONDITIONS)


def test_the_winning_recipe_reads_back_with_its_choices(config):
    report.begin(config)
    report.write(config, conclude(config))
    recipe = Recipe.from_yaml(config.folder / report.WINNER)
    assert recipe.name == "small"
    assert recipe.distill.student.layers == 2
    assert recipe.prune.ffn_sparsity == 0.5
    again = SearchConfig.from_yaml(config.folder / report.CONFIG)
    assert again.identity == config.identity


def test_the_report_tells_what_became_of_each_recipe(config):
    report.begin(config)
    report.write(config, conclude(config))
    text = (config.folder / report.REPORT).read_text()
    assert "15.00 MB, 2.00 ms, validation accuracy 85.0 % (6.0× smaller, 10.0× faster, −5.0 points" in text
    assert "| 0 | 2 | 0.5 | 85.0 % | 15.00 | 2.00 | wins |" in text
    assert "| 1 | 3 | 0.25 | – | ~25.00 | ~4.00 | cut too <large> |" in text
    assert "| 2 | 1 | 0.5 | 70.0 % | 9.00 | 1.00 | accuracy 70.0 %, 10.0 points below" in text
    assert "| 3 | 1 | 0.25 | – | – | – | failed ParityError: no |" in text
    assert "4 recipes were tried: 2 fully trained, 1 cut, 1 failed" in text
    assert "size predicted before training was off by at most 0.00 %, the latency by 10 %" in text
    assert text.index("| 2 | 1 |") < text.index("| 0 | 2 |"), "the front has the smallest first"


def test_without_a_winner_the_nearest_is_written_and_an_old_winner_is_gone(config):
    report.begin(config)
    report.write(config, conclude(config))
    found = conclude(config, size=14.0)
    report.write(config, found)
    assert found.winner is None
    assert not (config.folder / report.WINNER).exists()
    assert (
        (config.folder / report.NEAREST).read_text().startswith("# No recipe meets the budget. The nearest")
    )
    assert "15.00 MB, 1.00 MB above max_size_mb 14" in found.headline()


@pytest.mark.parametrize("trials", [[], TRIALS[3:], TRIALS[1:2]], ids=["none", "failed", "cut"])
def test_it_is_told_where_nothing_was_finished(config, trials):
    report.begin(config)
    paths = report.write(config, conclude(config, trials))
    assert all(path.stat().st_size > 0 for path in paths)
    assert "No recipe meets the budget" in (config.folder / report.REPORT).read_text()


def test_the_page_holds_all_and_loads_nothing(config):
    html = page.html("a <b> & c", conclude(config))
    assert "<title>a &lt;b&gt; &amp; c</title>" in html
    assert not re.search(r"""(src|href)\s*=|url\(|@import|fetch\(""", html)
    assert "default-src 'none'" in html
    data = html.partition('type="application/json">')[2].partition("</script>")[0]
    assert "<" not in data, "nothing in it can end the element"
    content = json.loads(data)
    assert [one["number"] for one in content["trials"]] == [0, 1, 2, 3]
    assert [one["wins"] for one in content["trials"]] == [True, False, False, False]
    assert content["trials"][1]["verdict"] == "cut too <large>"
    assert content["trials"][1]["size_mb"] == 25.0
    assert content["trials"][3]["size_mb"] is None
    assert content["limits"] == {"accuracy": 80.0, "size_mb": 20.0, "latency_ms": None}


def test_fields_are_named_by_what_tells_them_apart():
    keys = ["distill.epochs", "prune.epochs", "distill.student.layers"]
    assert [report.short_name(key, keys) for key in keys] == ["distill.epochs", "prune.epochs", "layers"]
