"""A tracking server that is out of reach is one line, at once; no work has begun."""

import os
import socket
import time

import pytest

from pressoir.errors import UnreachableError


@pytest.fixture
def listening():
    """A socket that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def refusing():
    """A port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_a_server_that_is_down_is_told_at_once_and_its_password_is_not(
    scheme, refusing, tmp_path, monkeypatch
):
    from pressoir.tasks.tracking.experiment import check_reachable

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://user:secret@127.0.0.1:{refusing}/runs")
    with pytest.raises(UnreachableError, match=r"does not answer \(Connection refused\); start") as found:
        check_reachable(tmp_path)
    assert f"{scheme}://***@127.0.0.1:{refusing}/runs" in str(found.value)
    assert "secret" not in str(found.value)


def test_a_server_that_accepts_and_never_answers_is_told_within_seconds(listening, tmp_path, monkeypatch):
    from pressoir.tasks.tracking import experiment

    monkeypatch.setattr(experiment, "_PATIENCE_S", 0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="does not answer; start that server, or unset MLFLOW_TRACK"):
        experiment.check_reachable(tmp_path)
    assert time.monotonic() - started < 60
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"


@pytest.mark.parametrize(
    "uri", [None, "sqlite:///runs.db", "file:./runs", "./runs", "databricks", "databricks://profile"]
)
def test_files_need_no_server(uri, tmp_path, monkeypatch):
    from pressoir.tasks.tracking.experiment import check_reachable

    monkeypatch.chdir(tmp_path)
    if uri is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    check_reachable(tmp_path)
    assert not list(tmp_path.iterdir())
