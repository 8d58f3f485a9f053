"""A password in an address is in nothing that a run leaves or prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow_server import Server

ROOT = Path(__file__).parents[2]
SECRET = "s3cr3t-pa55"


@pytest.fixture
def environment(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    return {
        **kept,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PRESSOIR_HOME": str(tmp_path / "home"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


@pytest.fixture
def compress(environment, tmp_path):
    def compress(recipe, uri):
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pressoir.flows", "compress", str(path), "--verbose"],
            cwd=ROOT,
            env={**environment, "MLFLOW_TRACKING_URI": uri},
            capture_output=True,
            text=True,
        )
        (tmp_path / f"output-{len(list(tmp_path.glob('output-*')))}").write_text(done.stdout + done.stderr)
        return done

    return compress


def found_in(folder):
    """Files with the secret: what was printed, the store, the journal, MLflow's and Prefect's databases."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


@pytest.mark.flow
@pytest.mark.slow
def test_a_password_in_the_address_of_mlflow_is_nowhere(compress, real_recipe, tmp_path, environment):
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    server.start()
    address = server.uri.replace("http://", f"http://me:{SECRET}@")
    done = compress(real_recipe, address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"http://***@127.0.0.1:{server.port}" in done.stdout
    server.stop()
    done = compress(real_recipe, address)  # out of reach at the start
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: MLflow at http://***@127.0.0.1:{server.port} does not answer")
    named = real_recipe.model_copy(update={"model": f"http://me:{SECRET}@127.0.0.1:{server.port}/x"})
    done = compress(named, "")
    assert done.returncode == 2
    assert "has a user name or a password, which is not supported" in done.stderr
    assert len(list((tmp_path / "prefect").rglob("*.db"))) == 1
    (tmp_path / "recipe.yaml").unlink()
    assert found_in(tmp_path) == []
