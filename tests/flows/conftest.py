"""Prefect's test harness, a home of its own for every test, and stages that only copy a folder."""

import shutil
import time

import pytest

from pressoir import tasks  # noqa: F401 — before Prefect: it turns telemetry off


@pytest.fixture(scope="session")
def prefect_harness():
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def artifacts_of():
    """The artifacts of one flow run by key: without a filter, the server returns 200 of all tests."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    def artifacts_of(run):
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        with get_client(sync_client=True) as client:
            return {one.key: one for one in client.read_artifacts(artifact_filter=wanted)}

    return artifacts_of


@pytest.fixture
def tasks_of():
    """The states of one flow run's tasks by their names, when so many of them have ended."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    def tasks_of(run, count):
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
        with get_client(sync_client=True) as client:
            for _ in range(100):  # task runs reach the server as events, a little later
                tasks = client.read_task_runs(flow_run_filter=wanted)
                if sum(task.state.is_final() for task in tasks) >= count:
                    break
                time.sleep(0.2)
        return {task.name: task.state_name for task in tasks}

    return tasks_of


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A PRESSOIR_HOME; MLflow's database lies in it."""
    monkeypatch.setenv("PRESSOIR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"


@pytest.fixture
def tracked(home, database):
    """The home, with MLflow's database made beforehand."""
    home.mkdir()
    shutil.copy(database, home)
    return home


@pytest.fixture
def recipe(tiny_classifier, tiny_data):
    """A recipe over the tiny classifier and the tiny data."""
    from pressoir.recipe.recipe import Recipe

    files = {split: str(tiny_data / f"{split}.tsv") for split in ("train", "validation", "test")}
    return Recipe.from_dict(
        {"name": "tiny", "model": str(tiny_classifier), "data": {"source": "files", **files}}
    )


@pytest.fixture
def real_recipe(tiny_bert, tiny_data):
    """A recipe over the tiny model that takes the real stages seconds."""
    from pressoir.recipe.recipe import Recipe

    brief = {"epochs": 1, "learning_rate": 1e-3}
    files = {split: str(tiny_data / f"{split}.tsv") for split in ("train", "validation", "test")}
    return Recipe.from_dict(
        {
            "name": "tiny",
            "model": str(tiny_bert),
            "threads": 2,
            "data": {"source": "files", **files},
            "teacher": brief,
            "distill": {**brief, "student": {"layers": 2}},
            "prune": {**brief, "calibration_samples": 64},
            "quantize": {"max_accuracy_drop": None},
            "export": {"min_label_agreement": 0.5},
            "benchmark": {"warmup": 1, "latency_samples": 10, "throughput_batches": 1},
        }
    )


@pytest.fixture
def fake_stages(replace_run):
    """Stages that copy their model stand in for all but `data`; the value is the list of those that ran."""
    from pressoir.stage import load_stage, stage_names

    ran = []
    for name in stage_names():
        fakes = {"data": load_stage(name).run, "benchmark": _fake_benchmark}
        replace_run(name, _noting(ran, name, fakes.get(name) or _fake_stage(name)))
    return ran


def _noting(ran, name, run):
    def noted(inputs, config, context):
        ran.append(name)
        return run(inputs, config, context)

    return noted


def _fake_stage(name):
    def run(inputs, config, context):
        source = inputs.get("model") or inputs["teacher"]
        shutil.copytree(
            source,
            context.out_dir,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("artifact.json", "*.png"),
        )
        (context.out_dir / f"{name}.txt").write_text(config.model_dump_json())
        (context.out_dir / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        for epoch in (1, 2):
            context.reporter.progress(epoch, 2, f"{name}: epochs")
            context.reporter.metric("validation_accuracy", epoch / 4, epoch)
        context.reporter.message(f"{name}: done")
        return {"validation_accuracy": 0.75}

    return run


def _fake_benchmark(inputs, config, context):
    from pressoir.benchmark.classifier_report import Benchmark, BenchmarkRow

    folders = [name for name in inputs if name != "data"]
    rows = []
    for place, name in enumerate(folders):
        stage = name.removesuffix("_onnx")
        onnx = name in ("teacher_onnx", "export", "shard")
        figures = dict.fromkeys(BenchmarkRow.model_fields, 1.0) | {
            "stage": stage,
            "parameters": 100,
            "accuracy_delta": 0.0,
        }
        figures |= {"runtime": "onnxruntime" if onnx else "pytorch", "speedup": 1.0 + place, "accuracy": 0.9}
        rows.append(BenchmarkRow(**figures))
    header = dict.fromkeys(Benchmark.model_fields, 1) | {"recorded_at": "2020-01-01T00:00:00+00:00"}
    header |= {
        "machine": {},
        "versions": {},
        "f1_label": "positive",
        "linear_baseline": None,
        "rows": tuple(rows),
    }
    Benchmark(**header).write(context.out_dir / "benchmark.json")
    (context.out_dir / "comparison.md").write_text("| stage | accuracy |\n|---|---|\n| teacher | 0.9 |\n")
    (context.out_dir / "sizes.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return {"speedup": rows[-1].speedup}
