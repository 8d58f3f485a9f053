"""The compress flow over stages that only copy: order, cache, records, errors."""

import dataclasses
import inspect
import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from pressoir import errors

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_harness", "tracked")]

ORDER = [
    *("data", "teacher", "teacher_outputs", "export", "distill", "prune", "quantize"),
    *("export", "shard", "benchmark"),
]


def set_(recipe, **sections):
    """The recipe with some fields changed."""
    from pressoir.recipe.recipe import Recipe

    raw = yaml.safe_load(recipe.to_yaml())
    for name, value in sections.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) and raw[name] is not None else value
    return Recipe.from_dict(raw)


def runs_of(result):
    """The parent run in MLflow, and the nested ones in the order they ran."""
    from mlflow import MlflowClient

    client = MlflowClient(result.tracking_uri, result.tracking_uri)
    parent = client.get_run(result.mlflow_run_id)
    query = f"tags.`mlflow.parentRunId` = '{result.mlflow_run_id}'"
    nested = client.search_runs([parent.info.experiment_id], query, order_by=["attributes.start_time ASC"])
    return client, parent, nested


def test_a_run_builds_every_stage_in_order_and_the_next_finds_all_in_the_store(recipe, fake_stages):
    from pressoir.flows.compress import compress

    first = compress(recipe)
    assert fake_stages == ORDER
    fake_stages.clear()
    second = compress(recipe)
    assert fake_stages == []
    assert second.artifact == first.artifact
    assert first.artifact.stage == "shard"
    assert first.folder.is_dir()
    assert [row.stage for row in first.rows] == [
        *("teacher", "teacher", "distill", "prune", "quantize", "export", "shard")
    ]
    assert second.mlflow_run_id != first.mlflow_run_id
    _, _, nested = runs_of(second)
    assert {run.data.tags["cached"] for run in nested} == {"true"}
    assert len(nested) == len(ORDER)


def test_cached_tasks_end_in_a_state_of_that_name(recipe, fake_stages, tasks_of):
    from pressoir.flows.compress import compress

    compress(recipe)
    result = compress(recipe)
    states = tasks_of(result.prefect_run_id, len(ORDER) + 2)
    assert states.pop("register") == "Completed"
    assert states.pop(f"fetch {recipe.model}") == "Completed"
    assert set(states.values()) == {"Cached"}
    assert {"export teacher", "export quantize"} <= set(states)


def test_changing_a_late_stage_runs_again_only_from_there(recipe, fake_stages):
    from pressoir.flows.compress import compress

    compress(recipe)
    fake_stages.clear()
    compress(set_(recipe, quantize={"max_accuracy_drop": 0.5}))
    assert fake_stages == ["quantize", "export", "shard", "benchmark"]


def test_refresh_builds_everything_again(recipe, fake_stages):
    from pressoir.flows.compress import compress

    compress(recipe)
    fake_stages.clear()
    compress(set_(recipe, refresh=True))
    assert fake_stages == ORDER


def test_stages_set_to_null_are_left_out(recipe, fake_stages):
    from pressoir.flows.compress import compress

    result = compress(set_(recipe, distill=None, prune=None, quantize=None, shard=None, registry=None))
    assert fake_stages == ["data", "teacher", "export", "benchmark"]
    assert result.artifact.stage == "export"
    assert result.registry_id is None
    assert result.promoted is None


def test_pruning_alone_still_gets_the_teachers_outputs(recipe, fake_stages):
    from pressoir.flows.compress import compress

    compress(set_(recipe, distill=None, quantize=None))
    assert fake_stages == [
        *("data", "teacher", "teacher_outputs", "export", "prune", "export", "shard", "benchmark")
    ]


def test_text_that_augment_makes_is_learnt_from_but_does_not_decide_the_vocabulary(recipe, fake_stages):
    from pressoir.flows.compress import compress

    compress(set_(recipe, augment={"copies": 1}, vocabulary={}))
    assert fake_stages.index("augment") < fake_stages.index("distill")
    fake_stages.clear()
    compress(set_(recipe, augment={"copies": 2}, vocabulary={}))
    assert fake_stages[:3] == ["augment", "teacher_outputs", "distill"]


def test_the_plan_is_what_the_run_then_does(recipe, fake_stages):
    from pressoir.flows.compress import compress, plan

    before = plan(recipe)
    assert [row.stage for row in before] == ORDER
    assert {row.state for row in before} == {"build"}
    assert before[0].key is not None  # of the data; everything after it depends on a digest not known yet
    assert before[-1].key is None
    assert fake_stages == []
    result = compress(recipe)
    after = plan(recipe)
    assert {row.state for row in after} == {"cached"}
    assert result.artifact.key in {row.key for row in after}
    assert [row.of for row in after if row.stage == "export"] == ["teacher", "quantize"]
    changed = plan(set_(recipe, shard={"shards": 3}))
    assert [row.stage for row in changed if row.state == "build"] == ["shard", "benchmark"]


def test_the_record_in_mlflow_is_complete(recipe, fake_stages, home):
    from pressoir.flows.compress import compress
    from pressoir.tasks.tracking.model_version import _global_tracking_uri

    result = compress(recipe)
    client, parent, nested = runs_of(result)
    assert result.tracking_uri == f"sqlite:///{home / 'mlflow.db'}"
    assert client.get_experiment(parent.info.experiment_id).name == "tiny"
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["prefect.flow_run_id"] == result.prefect_run_id
    assert not [tag for tag in parent.data.tags if "git" in tag]
    assert parent.data.metrics["speedup"] == result.rows[-1].speedup
    headline = {"accuracy", "size_mb", "latency_ms_p50", "speedup", "compression"}
    assert headline <= parent.data.metrics.keys()
    params = parent.data.params
    chosen = ("distill.student.layers", "prune.ffn_sparsity", "quantize.scheme", "merge", "seed")
    assert [params[name] for name in chosen] == [
        "None",
        "None",
        recipe.quantize.scheme,
        "None",
        str(recipe.seed),
    ]
    text = (result.report / "comparison.md").read_text(encoding="utf-8")
    assert parent.data.tags["mlflow.note.content"] == text
    with _global_tracking_uri(result.tracking_uri):
        table = client.load_table(str(parent.info.experiment_id), "comparison.json", [parent.info.run_id])
    assert table["stage"].tolist() == [row.stage for row in result.rows]
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"recipe.yaml", "comparison.json", "comparison.md", "benchmark.json", "sizes.png"} <= files
    logged = client.download_artifacts(parent.info.run_id, "recipe.yaml")
    assert yaml.safe_load(Path(logged).read_text(encoding="utf-8")) == yaml.safe_load(recipe.to_yaml())
    contexts = {i.tags[0].value: i.dataset for i in parent.inputs.dataset_inputs}
    assert set(contexts) == {"train", "validation", "test"}
    assert len({dataset.digest for dataset in contexts.values()}) == 1
    assert '"num_rows": 400' in contexts["train"].profile

    names = [run.info.run_name for run in nested]
    assert [name.partition(" ")[0] for name in names] == ORDER
    assert [name for name in names if " " in name] == ["export teacher", "export quantize"]
    distill = next(run for run in nested if run.info.run_name == "distill")
    assert distill.info.status == "FINISHED"
    assert distill.data.tags["cached"] == "false"
    assert distill.data.params["student.layers"] == "None"
    assert distill.data.params["temperature"] == "2.0"
    assert distill.data.metrics["validation_accuracy"] == 0.75  # of the artifact, not of the last epoch
    history = client.get_metric_history(distill.info.run_id, "validation_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert {"artifact.json", "distill.png"} <= {f.path for f in client.list_artifacts(distill.info.run_id)}


def test_the_record_in_prefect_names_the_one_in_mlflow(recipe, fake_stages, artifacts_of):
    from prefect.client.orchestration import get_client

    from pressoir.flows.compress import compress

    result = compress(recipe)
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(result.prefect_run_id)
    artifacts = artifacts_of(result.prefect_run_id)
    assert run.name == "tiny"
    assert f"mlflow:{result.mlflow_run_id}" in run.tags
    assert artifacts["comparison"].type == "markdown"
    assert "| teacher | 0.9 |" in artifacts["comparison"].data
    assert result.mlflow_run_id in artifacts["mlflow-run"].data


def test_the_result_is_registered_and_resolves_by_its_id(recipe, fake_stages, home):
    from pressoir.flows.compress import compress
    from pressoir.registry.registry import Registry
    from pressoir.sources import resolve
    from pressoir.store.store import Store

    result = compress(recipe)
    entry = Registry(home).get("tiny")
    assert (result.registry_id, result.promoted) == ("tiny", True)
    assert entry.digest == result.artifact.digest
    assert entry.metrics["speedup"] == result.rows[-1].speedup
    assert list(entry.lineage) == [
        *("teacher", "teacher_onnx", "distill", "prune", "quantize", "export", "shard", "benchmark")
    ]
    assert resolve.resolve("tiny", Store(home)).folder == result.folder


def test_what_stages_report_reaches_the_terminal(recipe, fake_stages, reporter):
    from pressoir.flows.compress import compress
    from pressoir.tasks import report_to

    with report_to(reporter):
        compress(recipe)
    assert (2, 2, "distill: epochs") in reporter.progressed
    assert ("validation_accuracy", 0.25, 1) in reporter.metrics
    assert "distill: done" in reporter.messages
    assert any(text.startswith("shard: built in") for text in reporter.messages)


def test_long_stages_show_their_progress_in_prefect(recipe, fake_stages, monkeypatch, artifacts_of):
    from pressoir.flows.compress import compress
    from pressoir.tasks import progress

    monkeypatch.setattr(progress, "_LONG_S", -1.0)
    monkeypatch.setattr(progress, "_EVERY_S", -1.0)
    result = compress(set_(recipe, registry=None))
    found = artifacts_of(result.prefect_run_id)
    bars = {key: one.data for key, one in found.items() if one.type == "progress"}
    assert bars["progress-distill"] == 100.0
    assert "progress-export-teacher" in bars


@pytest.mark.parametrize("form", ["path", "mapping", "recipe"])
def test_a_recipe_is_taken_as_path_mapping_or_value(recipe, fake_stages, tmp_path, form):
    from pressoir.flows.compress import compress

    small = set_(recipe, distill=None, prune=None, quantize=None, shard=None, registry=None)
    path = tmp_path / "recipe.yaml"
    path.write_text(small.to_yaml(), encoding="utf-8")
    given = {"path": str(path), "mapping": yaml.safe_load(small.to_yaml()), "recipe": small}[form]
    assert compress(given).artifact.stage == "export"


def test_the_form_in_prefect_is_the_recipes_own_schema():
    from prefect.utilities.callables import parameter_schema

    from pressoir.flows.compress import compress
    from pressoir.recipe.recipe import Recipe

    schema = parameter_schema(compress).model_dump()
    own = Recipe.model_json_schema()
    shown = schema["definitions"]["Recipe"]
    assert shown["additionalProperties"] is False
    assert set(shown["properties"]) == set(own["properties"])
    assert schema["definitions"]["DistillConfig"]["properties"]["temperature"]["default"] == 2.0
    assert schema["required"] == ["recipe"]


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    """A home that nothing has made yet."""
    monkeypatch.setenv("PRESSOIR_HOME", str(tmp_path / "empty"))
    return tmp_path / "empty"


def test_a_misspelt_field_is_refused_before_any_work(recipe, fake_stages, empty_home):
    from pressoir.errors import RecipeError
    from pressoir.flows.compress import compress

    raw = yaml.safe_load(recipe.to_yaml())
    raw["distill"]["temprature"] = 3
    with pytest.raises(RecipeError, match="did you mean `temperature`"):
        compress(raw)
    assert fake_stages == []
    assert not empty_home.exists()


def test_a_missing_data_file_is_told_before_any_work(recipe, fake_stages, empty_home):
    from pressoir.errors import DataError
    from pressoir.flows.compress import compress

    with pytest.raises(DataError, match="is not a file"):
        compress(set_(recipe, data={"train": "nowhere.tsv"}))
    assert fake_stages == []
    assert not (empty_home / "mlflow.db").exists()


def test_a_stage_that_fails_is_recorded_and_not_tried_again(recipe, fake_stages, replace_run):
    from mlflow import MlflowClient

    from pressoir.errors import ParityError
    from pressoir.flows.compress import compress
    from pressoir.store.store import Store
    from pressoir.tasks.tracking.database import tracking_uri

    def fail(inputs, config, context):
        fake_stages.append("quantize")
        raise ParityError("the codes do not match")

    replace_run("quantize", fail)
    with pytest.raises(ParityError, match="the codes do not match"):
        compress(recipe)
    assert fake_stages.count("quantize") == 1
    uri, _ = tracking_uri(Store().home)
    client = MlflowClient(uri, uri)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    status = {run.info.run_name: run.info.status for run in runs}
    assert (status["tiny"], status["quantize"], status["prune"]) == ("FAILED", "FAILED", "FINISHED")
    failed = next(run for run in runs if run.info.run_name == "quantize")
    assert failed.data.tags["error"] == "ParityError: the codes do not match"


@pytest.mark.parametrize(("offline", "tries"), [(False, 3), (True, 1)])
def test_only_an_unreachable_hub_is_tried_again_and_not_when_offline(home, monkeypatch, offline, tries):
    from prefect import flow

    from pressoir.errors import UnreachableError
    from pressoir.pipeline.sources import Sources
    from pressoir.sources import resolve
    from pressoir.store.store import Store
    from pressoir.tasks import fetch as module

    seen = []

    def unreachable(reference, store):
        seen.append(reference)
        raise UnreachableError("no answer")

    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(resolve, "resolve", unreachable)
    quick = module.fetch.with_options(retry_delay_seconds=0)

    @flow
    def fetching():
        quick("org/name", Sources(Store(home)))

    with pytest.raises(UnreachableError):
        fetching()
    assert len(seen) == tries
    assert errors.UnreachableError is UnreachableError


def test_a_wrong_reference_is_not_tried_again(home, monkeypatch):
    from prefect import flow

    from pressoir.errors import SourceError
    from pressoir.pipeline.sources import Sources
    from pressoir.store.store import Store
    from pressoir.tasks.fetch import fetch

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    @flow
    def fetching():
        fetch("./nowhere", Sources(Store(home)))

    with pytest.raises(SourceError, match="no such folder"):
        fetching()


def watch_reading(monkeypatch, root):
    """A counter of how often each file below `root` is hashed, and `data.load` called."""
    from collections import Counter

    from pressoir.data import sentences
    from pressoir.sources import resolve
    from pressoir.system import files

    seen, file_sha256, load = Counter(), files.file_sha256, sentences.load

    def hashed(path):
        if path.is_relative_to(root):
            seen[path.relative_to(root).as_posix()] += 1
        return file_sha256(path)

    def loaded(config, seed):
        seen["data.load"] += 1
        return load(config, seed)

    for module in (files, resolve, sentences):
        monkeypatch.setattr(module, "file_sha256", hashed)
    stage = sys.modules["pressoir.stages.data"]
    monkeypatch.setattr(stage, "STAGE", dataclasses.replace(stage.STAGE, prepare=loaded))
    monkeypatch.setattr(sentences, "load", loaded)
    return seen


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_command_hashes_each_file_and_reads_the_data_once(
    recipe, fake_stages, monkeypatch, tmp_path, tiny_classifier, tiny_data, dry_run
):
    from click.testing import CliRunner

    from pressoir.flows.cli import main

    outside = tmp_path / "outside"
    shutil.copytree(tiny_classifier, outside / "model")
    shutil.copytree(tiny_data, outside / "data")
    splits = {split: str(outside / "data" / f"{split}.tsv") for split in ("train", "validation", "test")}
    moved = set_(recipe, model=str(outside / "model"), data=splits)
    (tmp_path / "recipe.yaml").write_text(moved.to_yaml())
    seen = watch_reading(monkeypatch, outside)
    done = CliRunner().invoke(
        main, ["compress", str(tmp_path / "recipe.yaml"), *(["--dry-run"] if dry_run else [])]
    )
    assert done.exit_code == 0, done.output
    assert fake_stages == ([] if dry_run else ORDER)
    assert {"data.load", "data/train.tsv", "data/test.tsv", "model/model.safetensors"} <= set(seen)
    assert set(seen.values()) == {1}, seen


def test_a_flow_looks_up_once_too(recipe, fake_stages, monkeypatch, tmp_path, tiny_classifier):
    from pressoir.flows.compress import compress

    shutil.copytree(tiny_classifier, tmp_path / "outside" / "model")
    seen = watch_reading(monkeypatch, tmp_path / "outside")
    compress(set_(recipe, model=str(tmp_path / "outside" / "model")))
    assert {"data.load", "model/model.safetensors"} <= set(seen)
    assert set(seen.values()) == {1}, seen


def test_a_stage_of_another_package_runs_in_its_place_and_is_compared(recipe, fake_stages, smooth):
    """Its section is that of any stage, its task and its run in MLflow are named after it."""
    from pressoir.flows.compress import compress, plan
    from pressoir.recipe import recipe as recipes

    smooth.install(after="'prune'")
    kind = recipes.with_outside_sections(recipes.Recipe)
    raw = yaml.safe_load(recipe.to_yaml())
    without = kind.from_dict(raw)
    chosen = kind.from_dict({**raw, "smooth": {"strength": 0.25}})
    assert [row.stage for row in plan(without)] == ORDER
    place = ORDER.index("prune") + 1
    order = [*ORDER[:place], "smooth", *ORDER[place:]]
    assert [row.stage for row in plan(chosen)] == order
    result = compress(chosen)
    assert fake_stages == ORDER, "the fakes stand in for Pressoir's own alone"
    assert [row.stage for row in result.rows] == [
        *("teacher", "teacher", "distill", "prune", "smooth", "quantize", "export", "shard")
    ]
    _, parent, nested = runs_of(result)
    assert [run.info.run_name.partition(" ")[0] for run in nested] == order
    assert parent.data.params["smooth.strength"] == "0.25"
    run = next(run for run in nested if run.info.run_name == "smooth")
    assert run.data.params["strength"] == run.data.metrics["strength"].__str__() == "0.25"
    assert (result.folder / "smooth.txt").read_text() == "0.25 ['data', 'model']", "later ones take its model"
    assert [row.state for row in plan(chosen)] == ["cached"] * len(order)


@pytest.mark.parametrize(
    ("after", "before"), [("teacher", "teacher_outputs"), ("distill", "prune"), ("shard", "benchmark")]
)
def test_its_place_does_not_depend_on_which_stages_the_recipe_has(recipe, smooth, after, before):
    from pressoir.flows.compress import plan
    from pressoir.recipe import recipe as recipes

    smooth.install(after=repr(after))
    raw = {**yaml.safe_load(recipe.to_yaml()), "smooth": {}}
    kind = recipes.with_outside_sections(recipes.Recipe)
    for left_out in ({}, {"quantize": None, "shard": None}):
        steps = [row.stage for row in plan(kind.from_dict({**raw, **left_out}))]
        assert steps[steps.index("smooth") + 1] == before


def test_the_pipeline_fits_on_one_screen():
    from pressoir.flows.compress import pipeline

    assert len(inspect.getsource(pipeline).splitlines()) <= 50


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Prefect's own log is not what is tested."""
    caplog.set_level(logging.CRITICAL, logger="prefect")


@pytest.mark.parametrize(
    ("model_type", "field", "way"),
    [
        *((name, "prune.head_sparsity", "compress") for name in ("deberta-v2", "modernbert", "mpnet")),
        *((name, "prune", "compress") for name in ("megatron-bert", "fnet")),
        *(("mobilebert", "prune", way) for way in ("compress", "--dry-run", "flow", "search")),
    ],
)
def test_an_architecture_that_a_step_does_not_take_is_refused_before_any_work(
    recipe, fake_stages, tiny_encoder, home, tmp_path, model_type, field, way
):
    from click.testing import CliRunner

    from pressoir.errors import RecipeError
    from pressoir.flows.cli import main
    from pressoir.flows.compress import compress

    wrong = set_(recipe, model=str(tiny_encoder(model_type)))
    path = tmp_path / "recipe.yaml"
    path.write_text(wrong.to_yaml())
    if way == "flow":
        with pytest.raises(RecipeError, match=f"model type '{model_type}'"):
            compress(wrong)
    else:
        words = ["compress", str(path), *([way] if way == "--dry-run" else [])]
        if way == "search":
            values = {"recipe": str(path), "budget": {"max_size_mb": 9}}
            values["space"] = {"distill.student.layers": [1, 2]}
            (tmp_path / "search.yaml").write_text(
                json.dumps({**values, "results": str(tmp_path / "results")})
            )
            words = ["search", str(tmp_path / "search.yaml")]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 2, done.output
        assert f"model type '{model_type}'" in done.stderr
        assert f"\n  {field}: " in done.stderr
        assert "leave it out (prune: null). Supported are albert, bert, camembert" in done.stderr
    assert fake_stages == []
