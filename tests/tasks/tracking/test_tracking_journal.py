"""MLflow is lost in the middle of a run: the run goes on, and nothing of its record is lost or doubled.

MLflow's own server, stopped and started; its database, locked by another program; a process that is killed.
"""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow_server import Server

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def one_server(tmp_path_factory, database):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder / "server.db")
    server = Server(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(one_server, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", one_server.uri)
    return one_server


@pytest.fixture
def soon(monkeypatch):
    """Tries again at once."""
    from pressoir.tasks.tracking import journal

    monkeypatch.setattr(journal, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(journal, "_LONGEST_PAUSE_S", 0.001)


def record(client, experiment_id, name="tiny"):
    """What MLflow has of the newest run of that name and of those below it, as plain values."""

    def one(run):
        data, run_id = run.data, run.info.run_id
        return {
            "name": run.info.run_name,
            "status": run.info.status,
            "params": data.params,
            "tags": {k: v for k, v in data.tags.items() if not k.startswith(("mlflow.", "pressoir."))},
            "metrics": {
                key: sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))
                for key in data.metrics
            },
            "files": sorted(file.path for file in client.list_artifacts(run_id)),
            "inputs": sorted(each.dataset.name for each in run.inputs.dataset_inputs),
        }

    parent = client.search_runs([experiment_id], f"attributes.run_name = '{name}'")[0]
    below = client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return {**one(parent), "below": sorted(map(one, below), key=lambda run: run["name"])}


def logs_everything(run, folder, between=lambda: None):
    """Write something of every kind, with `between` after the first nested run has begun."""
    from mlflow.entities import Metric

    picture = folder / "picture.md"
    picture.write_text("a picture")
    with run.nested("first", {"stage": "first"}) as first:
        first.log(params={"layers": 2, "deep": {"er": None}}, tags={"cached": "false"})
        between()
        first.log_series([Metric("loss", 3.0 - step, 1000 + step, step) for step in range(3)])
        first.log(metrics={"nan": float("nan")}, step=4)
        first.log_files([picture])
    with contextlib.suppress(ZeroDivisionError), run.nested("second", {"stage": "second"}) as second:
        second.log_files([picture], "folder")
        second.log_text("hello", "folder/text.txt")
        raise ZeroDivisionError("nothing by nothing")
    run.log(metrics={"accuracy": 0.5}, params={f"many.{n}": n for n in range(250)})
    picture.write_text("altered after it was logged")


def expected():
    first = {
        "name": "first",
        "status": "FINISHED",
        "params": {"layers": "2", "deep.er": "None"},
        "tags": {"cached": "false", "stage": "first"},
        "metrics": {
            "loss": [(0, 3.0), (1, 2.0), (2, 1.0)],
            "nan": [(4, pytest.approx(float("nan"), nan_ok=True))],
        },
        "files": ["picture.md"],
        "inputs": [],
    }
    second = {
        "name": "second",
        "status": "FAILED",
        "params": {},
        "tags": {"error": "ZeroDivisionError: nothing by nothing", "stage": "second"},
        "metrics": {},
        "files": ["folder"],
        "inputs": [],
    }
    return {
        "name": "tiny",
        "status": "FINISHED",
        "params": {f"many.{n}": str(n) for n in range(250)},
        "tags": {},
        "metrics": {"accuracy": [(0, 0.5)]},
        "files": [],
        "inputs": [],
        "below": [first, second],
    }


@pytest.mark.flow
def test_a_server_that_is_lost_and_comes_back_has_everything_once(server, store, tmp_path, soon, monkeypatch):
    """Stopped, and hung: what was logged meanwhile waits; the same run sends it when the server is back."""
    from pressoir.tasks.tracking.experiment import parent_run

    said = []
    with parent_run("tiny", "flows.compress.compress", store, {}, said.append) as run:
        logs_everything(run, tmp_path, server.stop)
        assert len(run.journal.outbox.waiting()) >= 9
        server.start()
    assert record(run.client, run.journal.experiment_id) == expected()
    assert [text for text in said if "does not answer (Connection re" in text] == said[:1]
    assert "entries that had waited were sent" in said[1]
    assert not list((store.home / "tracking").iterdir())

    said.clear()
    with parent_run("tiny", "flows.compress.compress", store, {}, said.append) as run:
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
            logs_everything(run, tmp_path, server.hang)
        server.resume()
    assert record(run.client, run.journal.experiment_id) == expected()
    assert "does not answer (timed out)" in said[0]


@pytest.mark.flow
def test_what_waits_at_the_end_is_sent_by_the_next_run_or_by_flush(server, store, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from pressoir.flows.cli import main
    from pressoir.tasks.tracking.experiment import parent_run
    from pressoir.tasks.tracking.journal import Journal, flush_journals

    said = []
    with parent_run("tiny", "flows.compress.compress", store, {}, said.append) as run:
        logs_everything(run, tmp_path, server.stop)
    assert "the next run sends them, or `pressoir tracking flush`" in said[-1]
    (folder,) = (store.home / "tracking").iterdir()
    waiting = len(run.journal.outbox.waiting())
    assert waiting >= 10

    monkeypatch.setenv("PRESSOIR_HOME", str(store.home))
    flush = ["tracking", "flush"]
    answer = CliRunner().invoke(main, flush)
    assert (answer.exit_code, "does not answer" in answer.stderr) == (2, True), answer.output
    server.start()
    # Killed when half was sent, with the last one sent and not yet noted: nothing is doubled.
    sent = []
    send = Journal._send

    def dies(self, entry, again=False):
        send(self, entry, again)
        sent.append(entry)
        if len(sent) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_send", dies)
        with pytest.raises(KeyboardInterrupt):
            flush_journals(store.home, server.uri)
    assert len(run.journal.outbox.waiting()) == waiting - 4
    answer = CliRunner().invoke(main, flush)
    assert answer.exit_code == 0, answer.output
    assert "has all of 1 earlier runs, 0 of them KILLED now" in answer.output
    assert record(run.client, run.journal.experiment_id) == expected()
    assert not folder.exists()
    assert CliRunner().invoke(main, flush).exit_code == 0
    assert record(run.client, run.journal.experiment_id) == expected()


@pytest.mark.flow
def test_a_database_that_is_locked_costs_nothing(store, tmp_path):
    from pressoir.tasks.tracking.experiment import parent_run

    other = sqlite3.connect(store.home / "mlflow.db", isolation_level=None)
    said = []

    def lock():
        other.execute("BEGIN EXCLUSIVE")

    with parent_run("tiny", "flows.compress.compress", store, {}, said.append) as run:
        logs_everything(run, tmp_path, lock)
        other.execute("COMMIT")
    other.close()
    assert record(run.client, run.journal.experiment_id) == expected()
    assert "does not answer (database is locked)" in said[0]


@pytest.mark.flow
def test_the_runs_of_a_killed_process_end_as_killed_at_the_next_run(store):
    program = (
        "import os, signal, sys; from pathlib import Path; from pressoir.store.store import Store\n"
        "from pressoir.tasks.tracking.experiment import parent_run\n"
        "with parent_run('tiny', 'flows', Store(Path(sys.argv[1])), {}) as run:\n"
        "    with run.nested('done', {}): pass\n"
        "    with run.nested('distill', {}) as nested:\n"
        "        nested.log(metrics={'loss': 1.0}, step=1); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", program, str(store.home)], cwd=ROOT)
    assert died.returncode == -signal.SIGKILL

    from pressoir.tasks.tracking.experiment import parent_run

    with parent_run("tiny", "flows", store, {}) as run:
        with parent_run("tiny", "flows", store, {}) as beside:  # one that runs is left alone
            assert run.client.get_run(run.run_id).info.status == "RUNNING"
        found = run.client.search_runs([run.journal.experiment_id])
    dead = [each for each in found if each.info.status == "KILLED"]
    assert sorted(each.info.run_name for each in dead) == ["distill", "tiny"]
    assert beside.run_id not in {each.info.run_id for each in dead}
    assert all(abs(each.info.end_time - 1000 * time.time()) < 600_000 for each in dead)


def test_what_mlflow_refuses_for_good_is_an_error_at_once(store):
    from mlflow.exceptions import MlflowException

    from pressoir.tasks.tracking.experiment import parent_run

    with parent_run("tiny", "flows.compress.compress", store, {}) as run:
        run.log(params={"a": 1})
        with pytest.raises(MlflowException, match="param"):
            run.log(params={"a": 2})
        run.log(tags={"b": 1})
    assert run.client.get_run(run.run_id).data.tags["b"] == "1"


def test_what_a_run_in_progress_has_used_is_not_collected(store, monkeypatch):
    from click.testing import CliRunner

    from pressoir.flows.cli import main
    from pressoir.store.artifact import StageKey
    from pressoir.tasks.tracking.experiment import parent_run

    def build(seed):
        key = StageKey(stage="x", version=1, kind="model", config={}, inputs={}, seed=seed)
        return store.path(store.build(key, lambda out, work: {})[0])

    def collect():
        answer = CliRunner().invoke(main, ["store", "gc", "--older-than-days", "0"])
        assert answer.exit_code == 0, answer.output
        return [path.exists() for path in folders]

    monkeypatch.setenv("PRESSOIR_HOME", str(store.home))
    folders = [build(0), build(1)]
    for folder in folders:
        os.utime(folder / "artifact.json", (1, 1))
    with parent_run("tiny", "flows.compress.compress", store, {}):
        build(1)  # finds it
        assert collect() == [False, True]
    assert collect() == [False, False]
