"""What goes into MLflow, and where; no Prefect needed."""

import contextlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe():
    from pressoir.recipe.recipe import Recipe

    return Recipe(name="tiny")


def test_the_default_is_sqlite_in_the_home_and_the_environment_wins(tmp_path, monkeypatch):
    from pressoir.tasks.tracking.database import tracking_uri

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == (f"sqlite:///{tmp_path}/mlflow.db", True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(tmp_path) == ("http://127.0.0.1:5000", False)


def test_nested_values_become_dotted_names():
    from pressoir.recipe.sections import DistillConfig
    from pressoir.tasks.tracking.run import flatten

    flat = flatten({"distill": DistillConfig(), "seed": 1})
    assert flat["distill.temperature"] == 2.0
    assert flat["distill.student.layers"] is None
    assert flat["seed"] == 1


def test_runs_end_as_finished_failed_or_killed(store):
    from pressoir.tasks.tracking.experiment import parent_run

    ids = []
    for error in (None, ValueError("no good"), KeyboardInterrupt()):
        expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
        with (
            expected,
            parent_run("tiny", "flows.compress.compress", store, {}) as parent,
            parent.nested("stage", {"stage": "x"}) as nested,
        ):
            ids.append((parent, nested))
            if error:
                raise error
    found = [[run.client.get_run(run.run_id) for run in pair] for pair in ids]
    assert [[run.info.status for run in pair] for pair in found] == [
        ["FINISHED", "FINISHED"],
        ["FAILED", "FAILED"],
        ["KILLED", "KILLED"],
    ]
    assert found[1][1].data.tags["error"] == "ValueError: no good"
    assert found[0][1].data.tags["mlflow.parentRunId"] == ids[0][0].run_id


def test_nothing_of_mlflow_is_left_set_in_the_process(store):
    import os

    from pressoir.tasks.tracking.experiment import parent_run

    with parent_run("tiny", "flows.compress.compress", store, {}):
        pass
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_deleted_experiment_is_taken_up_again(store):
    from pressoir.tasks.tracking.experiment import parent_run

    with parent_run("tiny", "flows.compress.compress", store, {}) as first:
        pass
    first.client.delete_experiment(first.journal.experiment_id)
    with parent_run("tiny", "flows.compress.compress", store, {}) as second:
        assert second.journal.experiment_id == first.journal.experiment_id


def test_artifacts_lie_in_the_home_by_default(store, recipe):
    from pressoir.tasks.tracking.experiment import parent_run
    from pressoir.tasks.tracking.run import log_recipe

    with parent_run("tiny", "flows.compress.compress", store, {}) as run:
        log_recipe(run, recipe)
        uri = run.client.get_run(run.run_id).info.artifact_uri
    assert uri.startswith((store.home / "mlartifacts" / "tiny").as_uri())
    assert (store.home / "mlartifacts" / "tiny" / run.run_id / "artifacts" / "recipe.yaml").exists()


def test_many_metrics_are_sent_in_parts_that_mlflow_takes(store):
    from mlflow.entities import Metric

    from pressoir.tasks.tracking.experiment import parent_run

    with parent_run("tiny", "flows.compress.compress", store, {}) as run:
        run.log_series([Metric("loss", float(step), 1, step) for step in range(2500)])
        assert len(run.client.get_metric_history(run.run_id, "loss")) == 2500


def run_at(uri):
    from pressoir.tasks.tracking.journal import Journal
    from pressoir.tasks.tracking.run import Run

    return Run(Journal(uri, "7", Path("journal")), "abc")


def test_the_page_is_on_the_server_or_where_the_ui_will_be():
    assert run_at("sqlite:////x.db").page == "http://127.0.0.1:5000/#/experiments/7/runs/abc"
    assert run_at("https://host/").page == "https://host/#/experiments/7/runs/abc"
    assert "secret" not in run_at("https://user:secret@host/").page


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://user:secret@host:5000/x", "https://***@host:5000/x"),
        ("postgresql://user:se@cret@host/db", "postgresql://***@host/db"),
        ("mysql://host/db?user=me&password=secret&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        ("sqlite:////home/x@y/mlflow.db", "sqlite:////home/x@y/mlflow.db"),
        ("https://host/a@b", "https://host/a@b"),
    ],
)
def test_an_address_is_shown_without_its_password(address, shown):
    assert run_at(address).shown_uri == shown


def test_links_lead_to_the_port_where_the_ui_was_last_started(store):
    from pressoir.tasks.tracking.database import set_ui_port
    from pressoir.tasks.tracking.experiment import parent_run

    for port in (5000, 5123):
        set_ui_port(store.home, port)
        with parent_run("tiny", "flows.compress.compress", store, {}) as run:
            assert run.page.startswith(f"http://127.0.0.1:{port}/#/experiments/")


@pytest.mark.slow
def test_processes_that_start_at_once_share_one_new_database(tmp_path):
    program = (
        "import sys; from pathlib import Path; from pressoir.store.store import Store\n"
        "from pressoir.tasks.tracking.experiment import parent_run\n"
        "store = Store(Path(sys.argv[1]))\n"
        "with parent_run('tiny', 'flows', store, {}) as run: print(run.journal.experiment_id)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    workers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [worker.communicate()[0].strip() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    assert len(set(answers)) == 1


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL, logger="mlflow")
