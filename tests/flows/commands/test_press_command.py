"""`pressoir press`: files of labelled texts, limits, what is written, and the exit codes."""

import json
import shutil

import pytest
import yaml
from click.testing import CliRunner

from pressoir.benchmark.classifier_report import Benchmark, BenchmarkRow
from pressoir.benchmark.cost import Cost, CostConditions
from pressoir.flows.output import FILES
from pressoir.pipeline.runner import CompressResult, PipelineOutput
from pressoir.recipe_search.budget import SearchLimits
from pressoir.recipe_search.outcome import SearchResult, conclude
from pressoir.recipe_search.records import Figures, Trial, TrialOutcome
from pressoir.store.artifact import StageKey
from pressoir.store.store import Store

TEACHER = Figures(accuracy=0.9, size_mb=90.0, latency_ms=20.0)


def run(*words):
    from pressoir.flows.cli import main

    return CliRunner().invoke(main, ["press", *(str(word) for word in words)])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, home):
    """An empty folder to work in."""
    del home
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def words(tiny_classifier, tiny_data):
    """The tiny model and the tiny data."""
    files = [tiny_data / f"{split}.tsv" for split in ("train", "validation", "test")]
    return ["--data", *files, "--model", tiny_classifier, "--output", "out"]


@pytest.fixture
def made(home, tiny_classifier):
    """A model and its benchmark in the store, as `compress` leaves them."""
    store = Store()

    def build(stage, make):
        key = StageKey(stage=stage, version=1, kind="model", config={}, inputs={}, seed=0)
        return store.build(key, lambda out, work: make(out) or {})[0]

    def report(out):
        figures = dict.fromkeys(BenchmarkRow.model_fields, 1.0) | {"parameters": 100, "accuracy_delta": 0.0}
        rows = [{**figures, "stage": stage, "runtime": "onnxruntime"} for stage in ("teacher", "shard")]
        head = dict.fromkeys(Benchmark.model_fields, 1) | {"recorded_at": "2020-01-01", "machine": {}}
        head |= {"versions": {}, "f1_label": "positive", "linear_baseline": None, "rows": tuple(rows)}
        Benchmark.model_validate(head).write(out / "benchmark.json")
        (out / "comparison.md").write_text("| stage |\n|---|\n| teacher |\n")

    model = build("shard", lambda out: shutil.copytree(tiny_classifier, out, dirs_exist_ok=True) and None)
    return store, model, build("benchmark", report)


@pytest.fixture
def compressed(made, monkeypatch):
    """The recipes that were compressed; the flow stands still, and its model is `made`."""
    from pressoir.flows import press as module

    store, model, measured = made
    ran = []

    def compress(recipe):
        ran.append(recipe)
        return CompressResult(
            artifact=model,
            folder=store.path(model),
            report=store.path(measured),
            rows=Benchmark.read(store.path(measured) / "benchmark.json").rows,
            **dict.fromkeys(("registry_id", "decision", "promoted")),
            **dict.fromkeys(("prefect_run_id", "mlflow_run_id", "tracking_uri"), ""),
        )

    monkeypatch.setattr(module, "compress", compress)
    monkeypatch.setattr(module, "check_reachable", lambda home: None)
    return ran


@pytest.fixture
def searches(compressed, made, monkeypatch):
    """The searches that were run; their recipes have 70 %, 71 %, … of accuracy. Those from `searches.cut` on
    are stopped before training."""
    from pressoir.flows import press as module
    from pressoir.recipe_search import report

    class Searches(list):
        cut = 99

    searched = Searches()
    cost = {"size_mb": 0.1, "latency_ms": 2.0}

    def search(config):
        searched.append(config)
        trials = []
        for number, values in enumerate(config.first):
            figures = Figures(accuracy=0.7 + number / 100, **cost)
            outcome = TrialOutcome(state="finished", figures=figures, digest="abc")
            if number >= searched.cut:
                outcome = TrialOutcome(state="cut", reason="before training", predicted=Cost(**cost))
            trials.append(Trial(number=number, values=values, outcome=outcome))
        limits = SearchLimits.from_budget(config.budget, TEACHER)
        conditions = CostConditions(threads=1, batch_size=1, samples=10)
        found = conclude(config, trials, TEACHER, limits, conditions)
        report.begin(config)
        report.write(config, found)
        runs = dict.fromkeys(("prefect_run_id", "mlflow_run_id", "tracking_uri"), "")
        return SearchResult(folder=config.folder, found=found, model=None, rows=(), **runs)

    def pipeline(recipe, runner):
        return PipelineOutput(artifacts={}, data=made[1], final=made[1], report=made[2])

    monkeypatch.setattr(module, "search", search)
    monkeypatch.setattr(module, "pipeline", pipeline)
    monkeypatch.setattr(module, "score", lambda *call: Figures(accuracy=0.75, **cost))
    return searched


def written(folder):
    return {path.name for path in (folder / "out").iterdir()}


# --- refused before any work ---


def refused(*words):
    """The message, in one line; nothing is written."""
    result = run(*words)
    assert (type(result.exception), result.exit_code) == (SystemExit, 2), result.output
    return " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (["--max-size-mb", "-3"], "--max-size-mb (max_size_mb) is -3"),
        (["--max-size-mb", "nan"], "--max-size-mb (max_size_mb) is nan"),
        (["--max-latency-ms", "0"], "--max-latency-ms (max_latency_ms) is 0"),
        (["--max-latency-ms", "inf"], "--max-latency-ms (max_latency_ms) is inf"),
        (["--max-accuracy-drop", "-1"], "--max-accuracy-drop (max_accuracy_drop) is -1"),
        (["--max-accuracy-drop", "101"], "percentage points, from 0 to 100"),
    ],
)
def test_a_wrong_limit_is_refused_by_name_before_the_data_is_read(limit, told, home, folder):
    assert told in refused("--data", "missing.csv", "--output", "out", *limit)
    assert not home.exists()
    assert not list(folder.iterdir())


TABLES = {
    "labels of words": ("tokens\tner_tags\n", "['The', 'film']\t['O', 'B-PER']\n", "label per word"),
    "a missing file": (None, None, "is not a file"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_data_that_init_refuses_is_refused_in_its_words(kind, folder, home):
    from pressoir.flows.cli import main

    header, row, told = TABLES[kind]
    if header is not None:
        lines = [row.format(text="the film was long and", i=i) for i in range(60)]
        (folder / "a.tsv").write_text(header + "".join(lines))
    message = refused("--data", "a.tsv", "--output", "out")
    by_init = CliRunner().invoke(main, ["init", "a.tsv"])
    assert message == " ".join(by_init.stderr.split())
    assert told in message
    assert not home.exists()
    assert not (folder / "out").exists()


def test_a_search_is_for_one_label_per_text(folder, home, tiny_bert):
    rows = [f"the film was long {i}\t{i}.37\n" for i in range(60)]
    (folder / "a.tsv").write_text("text\tscore\n" + "".join(rows))
    message = refused("--data", "a.tsv", "--model", tiny_bert, "--output", "out", "--max-size-mb", "5")
    assert "one label per text" in message
    assert "omit the limits" in message
    assert not (folder / "out").exists()


@pytest.mark.parametrize("limit", [[], ["--max-size-mb", "5"]])
def test_an_output_folder_with_other_peoples_files_is_left_alone(limit, words, folder):
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("x")
    assert "not empty and was not created by Pressoir" in refused(*words, *limit)
    assert written(folder) == {"thesis.tex"}


@pytest.mark.parametrize("override", ["distil.epochs=3", "teacher.epochs=many"])
def test_a_wrong_override_is_refused(override, words, folder):
    assert override.partition("=")[0].partition(".")[0] in refused(*words, "--set", override)
    assert not list(folder.iterdir())


# --- the dry run ---


def test_the_dry_run_shows_recipe_steps_and_memory_and_writes_nothing(words, folder, home):
    result = run(*words, "--dry-run", "--set", "distill.epochs=2")
    assert result.exit_code == 0, result.output
    for part in ("head_sparsity: 0.25", "--set distill.epochs=2", "teacher_outputs", "GB", "0 of 10 steps"):
        assert part in result.output
    assert "would be tried" not in result.output
    limited = run(*words, "--dry-run", "--max-size-mb", "9")
    assert "7 recipes would be tried" in limited.output
    assert "6  distill.student.layers=1, prune.head_sparsity=0.5" in limited.output
    assert not home.exists()
    assert not list(folder.iterdir())


# --- what is made ---


def test_a_messy_file_without_a_limit_becomes_a_model(compressed, folder, tiny_classifier, tiny_data):
    rows = [line.split("\t") for line in (tiny_data / "train.tsv").read_text().splitlines()[1:]]
    lines = [
        "avis;note",
        *(f"déjà vu {text};{'négatif' if label[0] == 'n' else label}" for text, label in rows),
    ]
    (folder / "avis.csv").write_bytes("\n".join(lines).encode("latin-1"))
    result = run("--data", "avis.csv", "--model", tiny_classifier, "--output", "out")
    assert result.exit_code == 0, result.output
    assert "columns separated by a semicolon" in result.output
    assert written(folder) == set(FILES)
    recipe = yaml.safe_load((folder / "out" / "recipe.yaml").read_text(encoding="utf-8"))
    assert (recipe["data"]["delimiter"], recipe["data"]["encoding"]) == (";", "cp1252")
    assert compressed[0].registry is not None
    assert not (folder / "out" / "report" / "search").exists()


def test_pairs_of_texts_are_recognised_or_named(compressed, folder, tiny_classifier, tiny_data):
    rows = [line.split("\t") for line in (tiny_data / "train.tsv").read_text().splitlines()[1:]]
    for header in (["premise", "hypothesis", "label"], ["a", "b", "label"]):
        table = [header, *([text, text[::-1], label] for text, label in rows)]
        (folder / "pairs.tsv").write_text("".join("\t".join(row) + "\n" for row in table))
        named = [] if header[0] == "premise" else ["--text-column", "b", "--text-pair-column", "a"]
        result = run("--data", "pairs.tsv", "--model", tiny_classifier, "--output", "out", *named)
        assert result.exit_code == 0, result.output
        recipe = yaml.safe_load((folder / "out" / "recipe.yaml").read_text(encoding="utf-8"))
        expected = ("b", "a") if named else ("premise", "hypothesis")
        assert (recipe["data"]["text_column"], recipe["data"]["text_pair_column"]) == expected
        assert compressed[-1].data.text_pair_column == expected[1]


def test_the_most_accurate_recipe_within_the_limits_is_written_and_registered(
    searches, compressed, words, folder, home
):
    result = run(*words, "--max-size-mb", "5", "--max-latency-ms", "3", "--max-accuracy-drop", "17")
    assert result.exit_code == 0, result.output
    assert "The budget is met (distill.student.layers=1, prune.head_sparsity=0.5" in result.output
    (config,) = searches
    assert config.folder.parent == home / "press"
    text = (folder / "out" / "recipe.yaml").read_text(encoding="utf-8")
    assert text.startswith("# The budget is met")
    recipe = yaml.safe_load(text)
    assert recipe["distill"]["student"]["layers"] == 1
    assert recipe["prune"]["ffn_sparsity"] == 0.75
    assert recipe["vocabulary"] is not None
    report = folder / "out" / "report" / "search"
    assert {path.name for path in report.iterdir()} == {
        *("report.md", "trials.json", "pareto.html", "pareto.png")
    }
    assert len(json.loads((report / "trials.json").read_text())["trials"]) == 7
    assert [one.registry is not None for one in compressed] == [True]


@pytest.mark.parametrize("cut", [99, 0], ids=["trained", "stopped before training"])
def test_a_budget_that_nothing_meets_ends_with_code_1_and_the_closest_model(
    searches, compressed, words, folder, cut
):
    searches.cut = cut
    result = run(*words, "--max-latency-ms", "1.5")
    assert result.exit_code == 1, result.output
    told = " ".join(result.output.split())
    assert "No recipe meets the budget. The closest (distill.student.layers=4" in told
    assert "2.00 ms, 0.50 ms above max_latency_ms 1.5." in told
    assert ("training the closest" in told) == (cut == 0)
    assert (folder / "out" / "model" / "config.json").is_file()
    text = (folder / "out" / "recipe.yaml").read_text(encoding="utf-8")
    assert text.startswith("# No recipe meets the budget")
    assert yaml.safe_load(text)["registry"] is None
    assert [one.registry for one in compressed] == [None]


def test_the_size_is_that_of_the_whole_folder(searches, words, folder):
    """The search counts 0.1 MB of files without which the model cannot be opened."""
    result = run(*words, "--max-size-mb", "0.16")
    model = folder / "out" / "model"
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) / 1e6
    assert size > 0.16
    assert result.exit_code == 1, result.output
    assert f"{size:.2f} MB, every file of the model folder" in result.output
    assert "above max_size_mb 0.16" in " ".join(result.output.split())


def test_an_earlier_result_is_replaced_and_its_search_with_it(searches, words, folder):
    assert run(*words, "--max-latency-ms", "3").exit_code == 0
    (folder / "out" / "notes.txt").write_text("mine")
    assert run(*words).exit_code == 0
    assert written(folder) == {*FILES, "notes.txt"}
    assert not (folder / "out" / "report" / "search").exists()


def test_it_is_a_function_too(searches, folder, tiny_classifier, tiny_data):
    from pressoir import press

    shutil.copy(tiny_data / "train.tsv", folder / "reviews.tsv")
    result = press("reviews.tsv", "out", model=str(tiny_classifier), max_accuracy_drop=17)
    assert (result.misses, len(result.found.trials)) == ((), 7)
    assert result.headline.startswith("The budget is met")
    assert result.size_mb > 0.1
    assert result.folder == folder / "out"
    assert (folder / "out" / "benchmark.json").is_file()
