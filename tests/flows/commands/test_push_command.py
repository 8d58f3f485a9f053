"""What `compress --output` leaves has a card, which the store has not; `push` sends both to a hub."""

import json
import shutil

import pytest
from click.testing import CliRunner
from hub_server import TOKEN
from huggingface_hub import ModelCard

from pressoir.benchmark.classifier_report import Benchmark, BenchmarkRow
from pressoir.flows import cli
from pressoir.flows.output import FILES, write_output
from pressoir.pipeline.runner import CompressResult
from pressoir.recipe.recipe import Recipe
from pressoir.store.artifact import StageKey
from pressoir.store.store import Store


@pytest.fixture
def result(tiny_classifier, tmp_path, monkeypatch):
    """A finished run, whose model has another card: that of a merge."""
    monkeypatch.setenv("PRESSOIR_HOME", str(tmp_path / "home"))
    store = Store()

    def build(stage, make):
        key = StageKey(stage=stage, version=1, kind="model", config={}, inputs={}, seed=0)
        return store.build(key, lambda out, work: make(out) or {})[0]

    def model(out):
        shutil.copytree(tiny_classifier, out, dirs_exist_ok=True)
        (out / "README.md").write_text("a merge\n", encoding="utf-8")

    def report(out):
        figures = dict.fromkeys(BenchmarkRow.model_fields, 1.0) | {"parameters": 100, "accuracy_delta": 0.0}
        row = {**figures, "stage": "shard", "runtime": "onnxruntime"}
        head = dict.fromkeys(Benchmark.model_fields, 1) | {"recorded_at": "2020-01-01", "machine": {}}
        head |= {"versions": {}, "f1_label": "positive", "linear_baseline": None, "rows": (row,)}
        Benchmark.model_validate(head).write(out / "benchmark.json")

    made, measured = build("shard", model), build("benchmark", report)
    rows = Benchmark.read(store.path(measured) / "benchmark.json").rows
    nothing = dict.fromkeys(("registry_id", "decision", "promoted"))
    return CompressResult(
        artifact=made,
        folder=store.path(made),
        report=store.path(measured),
        rows=rows,
        prefect_run_id="",
        mlflow_run_id="",
        tracking_uri="",
        **nothing,
    )


def push(*words):
    return CliRunner().invoke(cli.main, ["push", *map(str, words)])


def test_the_card_is_the_outputs_and_not_the_stores_and_arrives_at_the_hub(
    result, tmp_path, hub, monkeypatch
):
    output = tmp_path / "out"
    for _ in range(2):  # the second replaces the first
        write_output(result, Recipe(name="tiny"), output)
    assert {path.name for path in output.iterdir()} == set(FILES)
    page = (output / "report.html").read_bytes()
    assert CliRunner().invoke(cli.main, ["report", str(output)]).exit_code == 0
    assert (output / "report.html").read_bytes() == page
    assert ModelCard.load(output / "model" / "README.md").data.model_name == "tiny"
    assert (result.folder / "README.md").read_text(encoding="utf-8") == "a merge\n"
    assert Store().verify(result.artifact)
    assert json.loads((output / "benchmark.json").read_text())["rows"][0]["stage"] == "shard"

    refused = push(output, "me/tiny")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "error: no token for the hub; set HF_TOKEN" in refused.stderr
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pushed = push(output, "me/tiny", "--private", "--revision", "int8")
    assert pushed.exit_code == 0, pushed.output
    assert pushed.output.startswith("pushed 6 files, ")
    assert pushed.output.endswith(f" MB: {hub.url}/me/tiny/commit/abc\n")
    assert hub.repositories["me/tiny"]["private"] is True
    assert hub.files["int8", "README.md"] == (output / "model" / "README.md").read_bytes()
    assert TOKEN not in pushed.output
