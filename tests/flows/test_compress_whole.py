"""The whole chain with the real stages, on the tiny model: to a registered int8 graph that MLflow serves."""

import pytest
import yaml

pytestmark = [
    pytest.mark.flow,
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_harness", "no_cold_starts"),
]

STEPS = [
    *("data", "teacher", "teacher_outputs", "export teacher", "distill", "prune", "quantize"),
    *("export quantize", "shard", "benchmark"),
]


def nested_runs(result):
    """The nested MLflow runs, in the order they ran."""
    from mlflow import MlflowClient

    client = MlflowClient(result.tracking_uri, result.tracking_uri)
    experiment = client.get_run(result.mlflow_run_id).info.experiment_id
    query = f"tags.`mlflow.parentRunId` = '{result.mlflow_run_id}'"
    return client, client.search_runs([experiment], query, order_by=["attributes.start_time ASC"])


def test_pressed_registered_served_and_found_again(real_recipe, home, tmp_path):
    import mlflow
    import pandas as pd

    from pressoir.flows.compress import compress, plan
    from pressoir.inference.text_classification import TextClassifier
    from pressoir.registry.registry import Registry
    from pressoir.store.store import Store
    from pressoir.tasks.tracking.model_version import _global_tracking_uri

    path = tmp_path / "tiny.yaml"
    path.write_text(real_recipe.to_yaml(), encoding="utf-8")
    first = compress(str(path))
    assert (first.folder / "shard_manifest.json").exists()
    assert (first.rows[0].runtime, first.rows[-1].runtime) == ("pytorch", "onnxruntime")
    assert first.rows[-1].size_mb < first.rows[0].size_mb
    client, nested = nested_runs(first)
    assert [run.info.run_name for run in nested] == STEPS
    assert {run.info.status for run in nested} == {"FINISHED"}
    assert {run.data.tags["cached"] for run in nested} == {"false"}
    for run in nested:
        logged = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert "artifact.json" in logged
        if run.info.run_name in ("teacher", "distill", "benchmark"):
            assert any(name.endswith(".png") for name in logged), run.info.run_name
    parent = client.get_run(first.mlflow_run_id)
    assert len(parent.inputs.dataset_inputs) == 3
    assert parent.data.metrics["accuracy"] == first.rows[-1].accuracy

    entry = Registry(home).get("tiny")
    assert entry.quantization == "int8"
    assert set(entry.urls.shards) == {file.name for file in first.folder.glob("shard_*.safetensors")}
    assert Registry(home).references() >= {first.artifact.digest}
    texts = ["the film was good", "the soup was awful"]
    with _global_tracking_uri(first.tracking_uri):
        served = mlflow.pyfunc.load_model("models:/tiny@champion").predict(pd.DataFrame({"text": texts}))
    expected = TextClassifier.open(first.folder, 2).predict(texts)
    assert served.to_dict("records") == [pytest.approx(probabilities, abs=1e-6) for probabilities in expected]

    assert {row.state for row in plan(real_recipe)} == {"cached"}
    before = {artifact.digest for artifact in Store(home).artifacts()}
    second = compress(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert second.artifact == first.artifact
    assert second.rows == first.rows
    assert {artifact.digest for artifact in Store(home).artifacts()} == before
    _, again = nested_runs(second)
    assert [run.info.run_name for run in again] == STEPS
    assert {run.data.tags["cached"] for run in again} == {"true"}
    assert [run.data.tags["digest"] for run in again] == [run.data.tags["digest"] for run in nested]
    assert len(client.search_model_versions("name='tiny'")) == 1


def test_the_classic_recipe_runs_on_local_folders_of_the_hubs_form(tiny_bert, tiny_data, home, tmp_path):
    """BERT teaches DistilBERT, 30 % of the weights go to zero, int8: on tiny models and a local data set."""
    from pathlib import Path

    from transformers import DistilBertConfig, DistilBertModel

    from pressoir.data import sentences
    from pressoir.flows.compress import compress
    from pressoir.models import loading
    from pressoir.recipe.recipe import Recipe

    student, hub = tmp_path / "distilbert", tmp_path / "sst2"
    size = loading.load_config(tiny_bert).vocab_size
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}
    DistilBertModel(DistilBertConfig(vocab_size=size, **sizes)).save_pretrained(student)
    loading.save_tokenizer(loading.load_tokenizer(tiny_bert), student)
    hub.mkdir()
    for split in ("train", "validation"):
        rows = sentences.load_split(tiny_data, split).rename_column("text", "sentence")
        rows.to_parquet(str(hub / f"{split}.parquet"))
    overrides = {
        "model": tiny_bert,
        "distill.student.model": student,
        "data.hub_id": hub,
        "data.train_samples": 300,
        "data.validation_samples": 60,
        "export.min_label_agreement": 0.5,
        "quantize.max_accuracy_drop": "null",
        "benchmark": "{warmup: 1, latency_samples: 10, throughput_batches: 1}",
    }
    path = Path(__file__).parents[2] / "configs" / "sst2-bert.yaml"
    recipe = Recipe.from_yaml(path, tuple(f"{name}={value}" for name, value in overrides.items()))
    result = compress(recipe)
    assert [row.stage for row in result.rows] == [
        *("teacher", "teacher", "distill", "prune", "quantize", "export", "shard"),
    ]
    assert loading.load_config(result.folder).model_type == "distilbert"
    assert result.rows[3].size_mb == pytest.approx(result.rows[2].size_mb, rel=0.01), (
        "zeros take as much room"
    )
