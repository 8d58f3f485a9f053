"""A store of its own for every test, with MLflow's database made beforehand."""

import shutil

import pytest


@pytest.fixture
def store(tmp_path, monkeypatch, database):
    from pressoir.store.store import Store

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "home").mkdir()
    shutil.copy(database, tmp_path / "home")
    return Store(tmp_path / "home")
