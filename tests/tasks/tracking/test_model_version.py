"""The registered model: what MLflow serves, and which version carries the alias."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECORDED = Path(__file__).with_name("recorded_pyfunc_model.py")


@pytest.fixture
def publish(store, tiny_classifier):
    """Put the tiny classifier into the store; `seed` makes another artifact of it."""
    from pressoir.store.artifact import StageKey

    def publish(seed=0, folder=tiny_classifier):
        def make(out, work):
            shutil.copytree(folder, out, dirs_exist_ok=True)
            (out / "seed.txt").write_text(str(seed))
            return {}

        return store.build(
            StageKey(stage="shard", version=1, kind="onnx", config={}, inputs={}, seed=seed), make
        )[0]

    return publish


@pytest.fixture
def run(store):
    from pressoir.tasks.tracking.experiment import parent_run

    with parent_run("tiny", "flows.compress.compress", store, {}) as run:
        yield run


def row(**figures):
    from pressoir.benchmark.classifier_report import BenchmarkRow

    values = dict.fromkeys(BenchmarkRow.model_fields, 1.0) | {
        "stage": "shard",
        "runtime": "onnxruntime",
        "parameters": 1,
    }
    return BenchmarkRow(**{**values, "accuracy": 0.9, "accuracy_delta": -0.01, **figures})


def log_version(store, run, artifact, **figures):
    from pressoir.recipe.sections import RegistryConfig
    from pressoir.tasks.tracking.model_version import version_request

    return run.log_version(
        version_request("tiny", RegistryConfig(), artifact, artifact, row(**figures), store)
    )


def test_what_mlflow_loads_answers_as_the_artifact_does(store, publish, run, tiny_classifier):
    import mlflow
    import pandas as pd

    from pressoir.inference.text_classification import TextClassifier
    from pressoir.tasks.tracking.model_version import _global_tracking_uri

    artifact = publish()
    version, promoted, _ = log_version(store, run, artifact)
    assert (version, promoted) == ("1", True)
    texts = ["the film was good", "the soup was awful and bland"]
    with _global_tracking_uri(run.journal.uri):
        model = mlflow.pyfunc.load_model("models:/tiny@champion")
        answer = model.predict(pd.DataFrame({"text": texts}))
    expected = TextClassifier.open(tiny_classifier, 1).predict(texts)
    assert list(answer.columns) == ["negative", "positive"]
    assert answer.to_dict("records") == [pytest.approx(probabilities, abs=1e-6) for probabilities in expected]
    assert model.metadata.signature.inputs.input_names() == ["text"]
    logged = json.loads(model.metadata.to_json())
    assert logged["flavors"]["python_function"]["config"]["digest"] == artifact.digest
    assert sum(f.stat().st_size for f in (store.home / "mlartifacts").rglob("*") if f.is_file()) < 100_000


def test_a_model_of_pairs_takes_two_columns(store, publish, run, pair_classifier):
    import mlflow
    import pandas as pd
    from transformers import pipeline

    from pressoir.tasks.tracking.model_version import _global_tracking_uri

    folder = pair_classifier("bert")
    log_version(store, run, publish(folder=folder))
    pair = {"text": "the film was good", "text_pair": "the soup was bad"}
    with _global_tracking_uri(run.journal.uri):
        model = mlflow.pyfunc.load_model("models:/tiny@champion")
        [answer] = model.predict(pd.DataFrame([pair])).to_dict("records")
    assert model.metadata.signature.inputs.input_names() == ["text", "text_pair"]
    expected = pipeline("text-classification", model=str(folder), top_k=None, device="cpu")(pair)
    assert answer == pytest.approx({row["label"]: row["score"] for row in expected}, abs=1e-5)


def test_a_model_that_an_earlier_version_registered_is_loaded_and_answers(
    store, publish, run, tiny_classifier, monkeypatch
):
    """MLflow keeps the code that it was registered with, here that of version 0.1.0."""
    import mlflow
    import pandas as pd

    from pressoir.inference.text_classification import TextClassifier
    from pressoir.tasks.tracking import model_version

    assert "from pressoir.artifact import" in RECORDED.read_text(encoding="utf-8")
    monkeypatch.setattr(model_version, "CODE", RECORDED)
    artifact = publish()
    log_version(store, run, artifact)
    (code,) = (store.home / "mlartifacts").rglob("recorded_pyfunc_model.py")
    assert code.read_bytes() == RECORDED.read_bytes()
    with model_version._global_tracking_uri(run.journal.uri):
        answer = mlflow.pyfunc.load_model("models:/tiny@champion").predict(pd.DataFrame({"text": ["good"]}))
    expected = TextClassifier.open(tiny_classifier, 1).predict(["good"])
    assert answer.to_dict("records") == [pytest.approx(expected[0], abs=1e-6)]


def test_the_model_is_logged_in_the_runs_experiment_and_nowhere_else(
    store, publish, run, tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    artifact = publish()
    log_version(store, run, artifact)
    (logged,) = run.client.search_logged_models([run.journal.experiment_id])
    assert logged.source_run_id == run.run_id
    assert logged.status.name == "READY"
    assert logged.artifact_location.startswith((store.home / "mlartifacts").as_uri())
    assert not [tag for tag in logged.tags if "git" in tag]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_changed_artifact_is_not_served(store, publish, run):
    import mlflow

    from pressoir.errors import StoreError
    from pressoir.tasks.tracking.model_version import _global_tracking_uri

    artifact = publish()
    log_version(store, run, artifact)
    (store.path(artifact) / "seed.txt").write_text("altered")
    with (
        _global_tracking_uri(run.journal.uri),
        pytest.raises(StoreError, match="differs from the registered model"),
    ):
        mlflow.pyfunc.load_model("models:/tiny/1")


def test_a_store_that_was_moved_is_found_through_the_environment(store, publish, run, tmp_path, monkeypatch):
    import mlflow

    from pressoir.errors import StoreError
    from pressoir.tasks.tracking.model_version import _global_tracking_uri

    artifact = publish()
    log_version(store, run, artifact)
    shutil.move(store.root, tmp_path / "elsewhere" / "store")
    with _global_tracking_uri(run.journal.uri):
        with pytest.raises(StoreError, match="does not contain shard/"):
            mlflow.pyfunc.load_model("models:/tiny/1")
        monkeypatch.setenv("PRESSOIR_HOME", str(tmp_path / "elsewhere"))
        mlflow.pyfunc.load_model("models:/tiny/1")


def test_the_alias_moves_only_to_a_better_version_and_every_decision_is_kept(store, publish, run):
    def register(seed, **figures):
        artifact = publish(seed)
        return log_version(store, run, artifact, **figures)

    def holder():
        return run.client.get_model_version_by_alias("tiny", "champion").version

    assert register(1, speedup=2.0)[:2] == ("1", True)
    assert register(2, speedup=1.5)[:2] == ("2", False)
    assert str(holder()) == "1"
    version, promoted, why = register(3, speedup=9.0, accuracy_delta=-0.2)
    assert (version, promoted) == ("3", False)
    assert "below the minimum" in why
    assert str(holder()) == "1"
    assert register(4, speedup=3.0)[:2] == ("4", True)
    assert str(holder()) == "4"
    tags = [run.client.get_model_version("tiny", str(version)).tags for version in (1, 2, 3, 4)]
    assert [version["promoted"] for version in tags] == ["true", "false", "false", "true"]
    assert "version 2 does not take 'champion' (against version 1)" in tags[1]["decision"]
    assert run.client.get_run(run.run_id).data.tags["decision"] == tags[3]["decision"]


def test_the_same_result_is_one_version(store, publish, run):
    artifact = publish()
    first = log_version(store, run, artifact)
    again = log_version(store, run, artifact)
    assert first[:2] == again[:2] == ("1", True)
    assert "already has the alias" in again[2]
    assert "no version holds it" in run.client.get_model_version("tiny", "1").tags["decision"]
    assert len(run.client.search_model_versions("name='tiny'")) == 1


def test_a_version_whose_creation_breaks_off_anywhere_waits_and_is_made_once(store, publish, monkeypatch):
    """The answer to each of MLflow's calls in turn is lost, after the call was carried out."""
    import mlflow

    from pressoir.tasks.tracking.experiment import parent_run
    from pressoir.tasks.tracking.journal import flush_journals

    calls = (
        "create_logged_model log_outputs finalize_logged_model create_registered_model create_model_version "
        "set_model_version_tag set_registered_model_alias log_batch".split()
    )
    steps = iter((*calls, "end"))
    lost = next(steps)

    def breaking(name):
        carry_out = getattr(mlflow.MlflowClient, name)

        def call(self, *args, **kwargs):
            nonlocal lost
            answer = carry_out(self, *args, **kwargs)
            if name == lost:
                lost = next(steps)
                raise ConnectionResetError("in the midst of the answer")
            return answer

        return call

    for name in calls:
        monkeypatch.setattr(mlflow.MlflowClient, name, breaking(name))
    artifact = publish()
    with parent_run("tiny", "flows.compress.compress", store, {}) as run:
        assert log_version(store, run, artifact) is None
    for _ in range(8):
        flush_journals(store.home, run.journal.uri)
    assert lost == "end"
    assert not list((store.home / "tracking").iterdir())
    (version,) = run.client.search_model_versions("name='tiny'")
    assert run.client.get_model_version_by_alias("tiny", "champion").version == version.version
    assert version.run_id == run.run_id
    (model,) = run.client.search_logged_models([run.journal.experiment_id])
    assert model.status.name == "READY"
    found = run.client.get_run(run.run_id)
    assert (found.data.tags["promoted"], found.info.status) == ("True", "FINISHED")


@pytest.mark.slow
def test_mlflows_own_server_serves_it_and_answers_as_the_artifact_does(
    store, publish, run, tiny_classifier, tmp_path
):
    import httpx

    from pressoir.inference.text_classification import TextClassifier

    artifact = publish()
    log_version(store, run, artifact)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{(port := probe.getsockname()[1])}"
    words = (
        f"models serve --env-manager local --host 127.0.0.1 --port {port} --model-uri models:/tiny@champion"
    )
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words.split()],
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": run.journal.uri,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # it calls uvicorn
            },
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/ping").status_code == 200:
                    break
            time.sleep(0.2)
        texts = ["the film was good", "the soup was awful and bland"]
        asked = {"dataframe_split": {"columns": ["text"], "data": [[text] for text in texts]}}
        answer = httpx.post(f"{address}/invocations", json=asked, timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert answer.status_code == 200, answer.text
    expected = TextClassifier.open(tiny_classifier, 1).predict(texts)
    assert answer.json()["predictions"] == [pytest.approx(one, abs=1e-6) for one in expected]
