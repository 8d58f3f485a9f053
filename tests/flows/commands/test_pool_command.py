"""`pressoir pool` without a server; with one see `tests/flows/test_deployment.py`."""

import os
import socket
import subprocess
import sys

import pytest


@pytest.mark.process
@pytest.mark.parametrize("address", [None, "refused"])
def test_without_a_server_it_says_what_to_do(address, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path), "PREFECT_CLIENT_MAX_RETRIES": "0"}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        if address is not None:
            environment["PREFECT_API_URL"] = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
        done = subprocess.run(
            [sys.executable, "-m", "pressoir.flows", "pool"], env=environment, capture_output=True, text=True
        )
    assert done.returncode == 2, done.stdout + done.stderr
    expected = "PREFECT_API_URL is not set" if address is None else "Prefect's server does not answer"
    assert done.stderr.startswith(f"error: {expected}")
    assert len(done.stderr.splitlines()) == 1
