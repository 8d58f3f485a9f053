"""Real servers on free ports, in temporary homes: a deployment run by a worker, and the two pages."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.flow


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(address):
    with urllib.request.urlopen(address, timeout=5) as answer:
        return answer.status, answer.read()


def send(method, address, content=None):
    request = urllib.request.Request(
        address, json.dumps(content).encode(), headers={"Content-Type": "application/json"}, method=method
    )

    def answer():
        try:
            with urllib.request.urlopen(request, timeout=10) as found:
                return found.read() or b"null"
        except urllib.error.HTTPError as error:
            if error.code == 503:  # its database is locked for a moment; Prefect's own client tries again too
                return None
            raise

    return json.loads(wait_for(answer, 60, address))


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := condition()) is not None:
            return found
        time.sleep(0.5)
    raise TimeoutError(f"{what}: nothing within {seconds} s")


def answers(address):
    try:
        return True if get(address)[0] == 200 else None
    except (urllib.error.URLError, OSError):
        return None


@pytest.fixture
def environment(tmp_path):
    """Environment of all processes: homes of their own, no MLflow or Prefect server of the user's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "PRESSOIR_"))}
    return {
        **kept,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PRESSOIR_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_COLORS": "false",
    }


@pytest.fixture
def start(environment, tmp_path):
    """Start a program in a process group of its own; the group is killed in the end."""
    running = []

    def start(*command, log, cwd=ROOT, **more):
        with (tmp_path / log).open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=cwd,
                env={**environment, **more},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running.append(process)
        return process

    yield start
    for process in reversed(running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Server:
    """Prefect's server with the deployments of prefect.yaml, and workers, as the README starts them."""

    def __init__(self, start, environment):
        self.start, self.environment = start, environment
        port = free_port()
        self.api = f"http://127.0.0.1:{port}/api"
        command = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        start(*command, log="server.log")
        wait_for(lambda: answers(f"{self.api}/health"), 180, "Prefect's server")
        environment["PREFECT_API_URL"] = self.api
        self.command("pressoir.flows", "pool")
        self.command("prefect", "--no-prompt", "deploy", "--all")

    def command(self, *command):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def worker(self, folder, log="worker.log"):
        worker = ("-m", "prefect", "worker", "start", "--pool", "pressoir", "--name", log)
        return self.start(*worker, log=log, cwd=folder)

    def run(self, recipe):
        """Create a run as Prefect's form does; return its id."""
        demo = json.loads(get(f"{self.api}/deployments/name/compress/compress-demo")[1])
        address = f"{self.api}/deployments/{demo['id']}/create_flow_run"
        return send("POST", address, {"parameters": {"recipe": recipe}})["id"]

    def state(self, run):
        return send("GET", f"{self.api}/flow_runs/{run}")["state"]

    def artifacts(self, run):
        wanted = {"artifacts": {"flow_run_id": {"any_": [run]}}}
        return send("POST", f"{self.api}/artifacts/filter", wanted)

    def wait(self, run, *states, seconds=300):
        """The state of a run, as soon as its name is one of these."""

        def there():
            state = self.state(run)
            return state if state["name"] in states else None

        return wait_for(there, seconds, f"{states} of {run}, now {self.state(run)}")


@pytest.fixture
def server(start, environment):
    return Server(start, environment)


@pytest.mark.slow
def test_a_worker_runs_the_deployment_of_prefect_yaml(server, real_recipe, tmp_path):
    tiny, api = real_recipe.model_dump(mode="json"), server.api
    deployments = {
        name: json.loads(get(f"{api}/deployments/name/compress/{name}")[1])
        for name in ("compress-demo", "compress-sst2")
    }
    evaluation = json.loads(get(f"{api}/deployments/name/batch-evaluation/evaluation-demo")[1])
    assert evaluation["entrypoint"] == "flows.batch_evaluation.batch_evaluation"
    assert evaluation["parameters"]["config"]["name"] == "evaluation-demo"
    assert [schedule["active"] for schedule in evaluation["schedules"]] == [False]
    deploy = json.loads(get(f"{api}/deployments/name/deploy/deploy-demo")[1])
    assert deploy["entrypoint"] == "flows.deploy.deploy"
    assert set(deploy["parameters"]["config"]["tiers"]) == {"teacher", "compressed"}
    assert [schedule["active"] for schedule in deploy["schedules"]] == [False]
    demo = deployments["compress-demo"]
    assert demo["entrypoint"] == "flows.compress.compress"
    assert demo["parameters"]["recipe"]["name"] == "demo"
    assert demo["enforce_parameter_schema"] is False
    assert [schedule["active"] for schedule in demo["schedules"]] == [False]
    assert demo["parameter_openapi_schema"]["definitions"]["Recipe"]["additionalProperties"] is False

    server.worker(tmp_path)
    params = json.dumps({"recipe": tiny})
    server.command("prefect", "deployment", "run", "compress/compress-demo", "--params", params)

    def ended(scheduled):
        """The first run that has ended, of those that the server scheduled or of the others."""
        runs = send("POST", f"{api}/flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"})
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        found = [r for r in runs if r["state_type"] in final and r["auto_scheduled"] is scheduled]
        return found[0] if found else None

    run = wait_for(lambda: ended(scheduled=False), 600, "the flow run")
    assert run["state_type"] == "COMPLETED", (tmp_path / "worker.log").read_text()
    assert any(tag.startswith("mlflow:") for tag in run["tags"])
    artifacts = tmp_path / "home" / "store"
    stages = ("data", "teacher", "teacher_outputs", "distill", "prune")
    stages += ("quantize", "export", "shard", "benchmark")
    assert {folder.name for folder in artifacts.iterdir()} == set(stages)
    assert (tmp_path / "home" / "mlflow.db").exists()
    registered = json.loads((tmp_path / "home" / "models.json").read_text(encoding="utf-8"))
    assert registered["models"]["tiny"]["quantization"] == "int8"

    # Nobody starts this one: the server's scheduler makes it, and the worker carries it out.
    address = f"{api}/deployments/{demo['id']}"
    send("PATCH", address, {"parameters": {"recipe": tiny}})
    [schedule] = send("POST", f"{address}/schedules", [{"active": True, "schedule": {"interval": 30}}])
    run = wait_for(lambda: ended(scheduled=True), 300, "a scheduled run")
    assert run["state_type"] == "COMPLETED", (tmp_path / "worker.log").read_text()
    assert run["created_by"]["type"] == "SCHEDULE"
    send("DELETE", f"{address}/schedules/{schedule['id']}")
    assert "Can't evaluate" not in (tmp_path / "server.log").read_text()


@pytest.mark.slow
def test_a_run_is_refused_cancelled_and_killed_and_the_next_one_starts(server, real_recipe, tmp_path):
    import psutil

    tiny = real_recipe.model_dump(mode="json")
    long = {**tiny, "name": "long", "teacher": {**tiny["teacher"], "epochs": 2000}}
    worker, store = server.worker(tmp_path), tmp_path / "home"

    bad = server.run({"name": "x", "prune": {"ffn_sparsity": 3}, "distill": {"epochs": -1}, "tempo": 4})
    said = server.wait(bad, "Failed")["message"]
    assert all(name in said for name in ("prune.ffn_sparsity", "distill.epochs", "tempo")), said
    missing = server.run({**tiny, "model": str(tmp_path / "nowhere")})
    said = server.wait(missing, "Failed")["message"]
    assert "no such folder" in said
    assert "\n" not in said

    cancelled = server.run(long)
    wait_for(lambda: list(store.glob("work/*/checkpoints/*/epoch.npz")) or None, 300, "a checkpoint")

    def bars():
        return [one for one in server.artifacts(cancelled) if one["type"] == "progress"] or None

    wait_for(bars, 60, "a progress bar, which work longer than a few seconds gets")
    children = psutil.Process(worker.pid).children(recursive=True)
    send("POST", f"{server.api}/flow_runs/{cancelled}/set_state", {"state": {"type": "CANCELLING"}})
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive
    server.wait(cancelled, "Cancelled")

    # Killed with its worker, it would count as running for ever; the next one waits for its place.
    killed = server.run(long)
    wait_for(lambda: "resuming from checkpoint" in (tmp_path / "worker.log").read_text() or None, 300, "it")
    following = server.run(tiny)
    os.killpg(worker.pid, signal.SIGKILL)
    for child in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if child.environ().get("PREFECT__FLOW_RUN_ID") == killed:
                child.kill()
    server.worker(tmp_path, "second.log")
    server.wait(following, "Late", "AwaitingConcurrencySlot")
    assert server.state(killed)["name"] == "Running"
    said = server.wait(killed, "Crashed")["message"]
    assert said.startswith("No sign of life for 90 s")
    server.wait(following, "Completed")

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("long")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.tags.get("prefect.flow_run_id") for run in runs} >= {cancelled, killed}
    assert {run.info.status for run in runs if "mlflow.parentRunId" not in run.data.tags} == {"KILLED"}
    assert "RUNNING" not in {run.info.status for run in runs}
    assert {"comparison", "mlflow-run"} <= {artifact["key"] for artifact in server.artifacts(following)}


@pytest.mark.slow
def test_the_ui_starts_both_pages_and_stops_them_with_all_their_children(start, tmp_path):
    import psutil

    from pressoir.tasks.tracking.database import ui_port

    ports = {"prefect": free_port(), "mlflow": free_port()}
    program = (
        "import sys; from pressoir.flows.commands.ui import serve_ui\n"
        "serve_ui(int(sys.argv[1]), int(sys.argv[2]))"
    )
    ui = start("-c", program, *map(str, ports.values()), log="ui.log")
    wait_for(lambda: "Ctrl-C stops both" in (tmp_path / "ui.log").read_text() or None, 240, "the pages")
    assert get(f"http://127.0.0.1:{ports['prefect']}/api/health")[0] == 200
    assert get(f"http://127.0.0.1:{ports['mlflow']}/health")[0] == 200
    assert f"http://127.0.0.1:{ports['mlflow']}" in (tmp_path / "ui.log").read_text()
    assert ui_port(tmp_path / "home") == ports["mlflow"]  # where the links of later runs lead
    children = psutil.Process(ui.pid).children(recursive=True)
    assert len(children) >= 2
    ui.send_signal(signal.SIGTERM)
    assert ui.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    for port in ports.values():
        assert answers(f"http://127.0.0.1:{port}/health") is None


def test_a_taken_port_is_told_with_what_to_do(tmp_path, monkeypatch):
    from pressoir.errors import RecipeError
    from pressoir.flows.commands.ui import serve_ui

    monkeypatch.setenv("PRESSOIR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RecipeError, match=f"port {port} .* --prefect-port"):
            serve_ui(port, free_port())


def test_every_deployment_names_a_file_that_is_valid():
    from pressoir.evaluation.config import EvaluationConfig
    from pressoir.flows import recipes
    from pressoir.recipe.recipe import Recipe
    from pressoir.recipe_search.config import SearchConfig
    from pressoir.serving.config import ServingConfig

    kinds = {
        "flows.compress.compress": ("read_recipe", "recipe", Recipe),
        "flows.batch_evaluation.batch_evaluation": ("read_evaluation", "config", EvaluationConfig),
        "flows.deploy.deploy": ("read_serving", "config", ServingConfig),
        "flows.search.search": ("read_search", "config", SearchConfig),
    }
    described = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert {deployment["entrypoint"] for deployment in described} == kinds.keys()
    assert len({deployment["schedules"][0]["cron"] for deployment in described}) == len(described)
    for deployment in described:
        step, parameter, kind = kinds[deployment["entrypoint"]]
        assert deployment["schedules"][0]["active"] is False
        assert parameter in deployment["parameters"]
        path = ROOT / deployment["build"][0][f"flows.recipes.{step}"]["path"]
        read = getattr(recipes, step)(str(path))
        assert kind.model_validate(read[parameter]) == kind.from_yaml(path)
