"""Signals to the whole program in real work: one line, its exit code, and nothing left running."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = [pytest.mark.flow, pytest.mark.slow]


@pytest.fixture
def compress(real_recipe, tmp_path):
    """`pressoir compress`, as soon as it trains."""
    long = real_recipe.model_copy(update={"teacher": real_recipe.teacher.model_copy(update={"epochs": 2000})})
    (tmp_path / "recipe.yaml").write_text(long.to_yaml(), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect"), "PRESSOIR_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pressoir.flows", "compress", str(tmp_path / "recipe.yaml")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list((tmp_path / "home").glob("work/*/checkpoints/*/epoch.npz")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_program_with_one_line(compress, number, code, tmp_path):
    import mlflow

    children = psutil.Process(compress.pid).children(recursive=True)
    assert any("uvicorn" in each.cmdline() for each in children), "Prefect's temporary server"
    os.killpg(compress.pid, number)  # as a terminal does
    out, err = compress.communicate()
    assert compress.returncode == code
    assert err.splitlines()[-1].endswith(
        "stopped; run the same command again to go on: finished steps are kept"
    )
    assert "Traceback" not in out + err
    _, left = psutil.wait_procs(children, timeout=10)
    assert [each for each in left if each.status() != psutil.STATUS_ZOMBIE] == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}")
    states = {run.info.status for run in client.search_runs(["1"])}
    journals = list((tmp_path / "home" / "tracking").glob("*"))
    assert "RUNNING" not in states or journals, "ended, or to be ended by the next run"


def test_a_signal_in_a_destructor_ends_the_program_with_the_same_line():
    """Python prints, and goes on after, what is raised there."""
    program = (
        "import os, signal, time\n"
        "from pressoir.flows.commands.stopping import stoppable\n"
        "class Gone:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        for _ in range(100): time.sleep(0.01)\n"
        "with stoppable('run it again', 0.5):\n"
        "    Gone()\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "stopped; run it again\n"
