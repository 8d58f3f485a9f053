"""The deploy flow: all of it, or nothing. Servers are fakes, but for the last test's."""

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from fake_tier_server import FakeServer

ROOT = Path(__file__).parents[2]
FAKE = (sys.executable, str(Path(__file__).with_name("fake_tier_server.py")))
KEY = "a-key"


@pytest.fixture
def values(tiny_classifier, tiny_llama):
    """A configuration of three tiers on two models."""
    classifier = {"model": str(tiny_classifier), "settings": {"max_length": 32}}
    return {
        "name": "tiny",
        "tiers": {
            "basic": classifier,
            "premium": {**classifier, "settings": {"max_length": 64}},
            "story": {"model": str(tiny_llama)},
        },
    }


@pytest.fixture
def fake_serve(monkeypatch):
    """What is tried out is tried in a fake."""
    use_fake(monkeypatch)


def use_fake(patch):
    import pressoir.flows.deploy

    patch.setattr(pressoir.flows.deploy, "SERVE", FAKE)
    patch.setenv("PRESSOIR_ADMIN_KEY", KEY)


def whole(config):
    """A configuration with all its defaults, as a server tells it."""
    from pressoir.serving.config import ServingConfig

    return ServingConfig.model_validate(config).model_dump(mode="json")


def client_of(home):
    from mlflow import MlflowClient

    uri = f"sqlite:///{home / 'mlflow.db'}"
    return MlflowClient(uri, uri)


def state(home, server=None):
    """All that a deployment changes: files, MLflow's versions and alias, what the server serves."""
    files = {
        name: (home / name).read_bytes() if (home / name).exists() else None
        for name in ("models.json", "models.schema.json")
    }
    models = {}
    if (home / "mlflow.db").exists():
        client = client_of(home)
        for model in client.search_registered_models():
            versions = client.search_model_versions(f"name='{model.name}'")
            tags = {str(version.version): dict(version.tags) for version in versions}
            models[model.name] = (dict(model.aliases), dict(model.tags), tags)
    return files, models, None if server is None else (server.config, server.digests)


def deploy(*words):
    from pressoir.flows.deploy import deploy

    return deploy(*words)


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness", "tracked", "fake_serve")
class TestDeployment:
    def test_what_was_checked_and_tried_is_registered_everywhere(self, values, home, tasks_of):
        from prefect.client.orchestration import get_client

        from pressoir.registry.registry import Registry
        from pressoir.serving.deployment import deployed

        result = deploy(values)
        assert (result.version, result.alias, result.earlier_version) == ("1", "champion", None)
        assert result.latencies_ms.keys() == values["tiers"].keys()

        served = deployed("tiny", Registry(home))
        assert served == result.config
        assert served.resolved
        entry = json.loads((home / "models.json").read_text())["serving"]["tiny"]
        assert entry["digests"] == {name: tier.digest for name, tier in served.tiers.items()}
        assert entry["digests"]["basic"] == entry["digests"]["premium"] != entry["digests"]["story"]

        client = client_of(home)
        version = client.get_model_version_by_alias("serving-tiny", "champion")
        assert str(version.version) == "1"
        assert version.tags["tiers"] == "basic, premium, story"
        assert version.tags["tier.basic.digest"] == served.tiers["basic"].digest
        assert version.tags["tier.story.model"] == values["tiers"]["story"]["model"]
        run = client.get_run(result.mlflow_run_id)
        assert version.run_id == run.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.metrics["loads_saved"] == 1
        assert run.data.metrics["smoke.basic.latency_ms"] == result.latencies_ms["basic"]
        assert run.data.tags["registered_version"] == "1"
        logged = Path(client.download_artifacts(run.info.run_id, "serving"))
        assert version.source == f"{run.info.artifact_uri}/serving"
        assert yaml.safe_load((logged / "serving.yaml").read_text()) == yaml.safe_load(served.to_yaml())
        assert json.loads((logged / "sharing.json").read_text())["loads_saved"] == 1
        with get_client(sync_client=True) as prefect:
            assert f"mlflow:{result.mlflow_run_id}" in prefect.read_flow_run(result.prefect_run_id).tags
        wanted = {"resolve", "smoke", "remember", "register", "version"}
        assert wanted <= tasks_of(result.prefect_run_id, len(wanted)).keys()

    def test_an_earlier_configuration_gets_its_version_back(self, values, home):
        other = {**values, "tiers": {"basic": values["tiers"]["basic"]}}
        assert deploy(values).version == "1"
        second = deploy(other)
        assert (second.version, second.earlier_version) == ("2", "1")
        text = (home / "models.json").read_bytes()
        assert deploy(other).version == "2"
        assert (home / "models.json").read_bytes() == text
        assert deploy(values).version == "1"
        client = client_of(home)
        assert str(client.get_model_version_by_alias("serving-tiny", "champion").version) == "1"
        assert len(client.search_model_versions("name='serving-tiny'")) == 2

    def test_a_running_server_goes_over_to_it(self, values, home):
        old = {"name": "old", "tiers": {"other": {"model": "m", "digest": "1" * 64}}}
        with FakeServer(whole(old), KEY) as server:
            result = deploy(values, server.url)
            assert server.digests == {name: tier.digest for name, tier in result.config.tiers.items()}
            assert result.server == server.url

    def test_a_second_deployment_waits_for_the_first_and_says_so(self, values, home):
        from filelock import FileLock

        from pressoir.tasks import report_to

        first = FileLock(home / "locks" / "deploy.lock", thread_local=False)
        told = []

        class Reporter:
            def message(self, text):
                if first.is_locked:
                    told.append(text)
                    first.release()

        Path(first.lock_file).parent.mkdir()
        first.acquire()
        with report_to(Reporter()):
            assert deploy(values).version == "1"
        assert told == ["another deployment is in progress; waiting until it ends"]

    def test_what_could_not_be_taken_back_is_told(self, values, home):
        from pressoir.serving.deployment import DeploymentError

        old = {"name": "old", "tiers": {"other": {"model": "m", "digest": "1" * 64}}}
        with FakeServer(whole(old), KEY) as server:
            server.tells_config, server.faults = False, ["lost"]
            with pytest.raises(DeploymentError) as failed:
                deploy(values, server.url)
        assert "its previous one is unknown; restart it" in str(failed.value)
        assert "rolled back" not in str(failed.value)
        files, models, _ = state(home)
        assert files["models.json"] is None
        assert models == {}

    def test_a_server_that_cannot_be_told_is_found_out_before_any_work(self, values, home, monkeypatch):
        from pressoir.errors import PressoirError

        with FakeServer({"tiers": {}}, "another-key") as server:
            for url, message in (
                (server.url, "PRESSOIR_ADMIN_KEY is not a key of the server"),
                ("http://127.0.0.1:9", "check that the server is running"),
                ("127.0.0.1:5001", "expected http://host:port"),
            ):
                with pytest.raises(PressoirError, match=message):
                    deploy(values, url)
            monkeypatch.delenv("PRESSOIR_ADMIN_KEY")
            with pytest.raises(PressoirError, match="PRESSOIR_ADMIN_KEY is not set"):
                deploy(values, server.url)
        assert not client_of(home).get_experiment_by_name("serving-tiny")

    def test_a_name_that_mlflow_has_for_a_model_is_refused(self, values, home):
        from pressoir.errors import PressoirError

        client_of(home).create_registered_model("serving-tiny")
        with pytest.raises(PressoirError, match="not a serving configuration; choose another `name`"):
            deploy(values)


def refuse(*_, **__):
    from mlflow.exceptions import MlflowException

    raise MlflowException("the disk is full")


def write_then_fail(monkeypatch):
    from pressoir.errors import StoreError
    from pressoir.registry.registry import Registry

    write = Registry.deploy

    def deploy(self, entry):
        write(self, entry)
        raise StoreError("no space left")

    monkeypatch.setattr(Registry, "deploy", deploy)


def fail_alias(monkeypatch):
    """Fails once: after the version was made, and not when the alias is given back."""
    from mlflow import MlflowClient

    real, calls = MlflowClient.set_registered_model_alias, []

    def once(self, *words):
        calls.append(words)
        return refuse() if len(calls) == 1 else real(self, *words)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", once)


def interrupt(monkeypatch):
    import pressoir.tasks.tracking.serving_version

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pressoir.tasks.tracking.serving_version, "register", stop)


FAULTS = {
    "pinned digest": "is specified, but the files",
    "damaged artifact": "was modified after its stage created it",
    "no server": "exited with code 1; its output was:\nno memory for the models",
    "mute tier": "tiers.story failed its smoke test",
    "registry": "no space left",
    "version": "the disk is full",
    "alias": "the disk is full",
    "interrupt": "",
    "reload refused": "the model cannot be loaded",
    "reload ignored": "was requested to reload, but serves",
    "reload lost": "does not respond",
    "reload unfit": "story failed",
}


@contextmanager
def fault(name, values, server, monkeypatch, home):
    """What goes wrong with a deployment of `values`."""
    from mlflow import MlflowClient

    with monkeypatch.context() as patch:
        match name:
            case "pinned digest":
                values["tiers"]["basic"]["digest"] = "0" * 64
            case "damaged artifact":
                folder = next((home / "store" / "shard").iterdir())
                (folder / "notes.md").write_text("altered")
                values["tiers"]["basic"]["model"] = f"store:shard/{folder.name}"
            case "no server":
                patch.setenv("MUTE_TIERS", "all")
            case "mute tier":
                patch.setenv("MUTE_TIERS", "story")
            case "registry":
                write_then_fail(patch)
            case "version":
                patch.setattr(MlflowClient, "create_model_version", refuse)
            case "alias":
                fail_alias(patch)
            case "interrupt":
                interrupt(patch)
            case _:
                server.faults = [name.split()[1]]
        yield
        server.faults = []


@pytest.fixture(scope="module", params=["no deployed configuration", "something was deployed"])
def place(request, tmp_path_factory, tiny_classifier, database, prefect_harness):
    """A home, and a server; each failed deployment leaves both as they are, so that the next can be tried."""
    from pressoir.store.artifact import StageKey
    from pressoir.store.store import Store

    home = tmp_path_factory.mktemp("home")
    shutil.copy(database, home)

    def make(out, work):
        shutil.copytree(tiny_classifier, out, dirs_exist_ok=True)
        return {}

    Store(home).build(StageKey(stage="shard", version=1, kind="onnx", config={}, inputs={}, seed=0), make)
    old = {"name": "tiny", "tiers": {"basic": {"model": str(tiny_classifier)}}}
    config = {"name": "by-hand", "tiers": {"other": {"model": "m", "digest": "1" * 64}}}
    if request.param.startswith("something"):
        with pytest.MonkeyPatch.context() as patch:
            use_fake(patch)
            patch.setenv("PRESSOIR_HOME", str(home))
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            config = deploy(old).config.model_dump(mode="json")
        text = (home / "models.json").read_text().replace("  ", "\t")
        (home / "models.json").write_text(text)  # somebody's own layout, which is not to be lost
    with FakeServer(whole(config), KEY) as server:
        yield home, server


@pytest.mark.flow
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.usefixtures("fake_serve")
def test_whatever_step_fails_everything_is_as_it_was(name, place, values, monkeypatch):
    from pressoir.errors import PressoirError

    home, server = place
    monkeypatch.setenv("PRESSOIR_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = state(home, server)
    kind = KeyboardInterrupt if name == "interrupt" else PressoirError
    with fault(name, values, server, monkeypatch, home), pytest.raises(kind) as failed:
        deploy(values, server.url)
    assert FAULTS[name] in str(failed.value)
    assert state(home, server) == before
    if name in ("registry", "version", "alias") or name.startswith("reload"):
        assert "all changes were rolled back" in str(failed.value)
    client = client_of(home)
    experiment = client.get_experiment_by_name("serving-tiny")
    latest = client.search_runs([experiment.experiment_id], max_results=1)[0]
    assert latest.info.status == ("KILLED" if name == "interrupt" else "FAILED")


def run(*words):
    from pressoir.flows.cli import main
    from pressoir.flows.commands.deploy import deploy

    if "deploy" not in main.commands:
        main.add_command(deploy)
    return CliRunner().invoke(main, ["deploy", *(str(word) for word in words)])


class TestCommand:
    @pytest.fixture
    def written(self, values, tmp_path):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    @pytest.mark.flow
    @pytest.mark.usefixtures("prefect_harness", "tracked", "fake_serve")
    def test_it_tells_what_is_deployed_and_how_to_serve_it(self, written):
        done = run(written)
        assert done.exit_code == 0, done.output
        for part in ("premium", "champion", "version 1 of serving-tiny", "pressoir serve tiny"):
            assert part in done.output

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["--set", "tires=1"], "tires: unknown field; did you mean `tiers`?"),
            (["--set", "tiers.basic.settings.num_beams=4"], "num_beams is not supported"),
        ],
    )
    def test_mistakes_are_one_message_and_exit_code_2(self, written, home, words, told):
        done = run(written, "--set", "tiers.basic.task=text-classification", *words)
        assert done.exit_code == 2
        assert told in done.stderr.replace("\n", " ")
        assert not (home / "locks").exists()

    def test_a_missing_file_is_told(self, home, tmp_path):
        done = run(tmp_path / "gone.yaml")
        assert done.exit_code == 2
        assert "gone.yaml" in done.stderr


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_harness", "tracked")
def test_a_real_server_tries_it_and_another_goes_over_to_it_or_stays(
    values, home, tmp_path, monkeypatch, tiny_classifier
):
    import pressoir.flows.deploy
    import pressoir.tasks.tracking.serving_version
    from pressoir.errors import PressoirError
    from pressoir.registry.registry import Registry
    from pressoir.serving.client import Server
    from pressoir.serving.deployment import deployed

    monkeypatch.setenv("PRESSOIR_ADMIN_KEY", KEY)
    own = shutil.copytree(tiny_classifier, tmp_path / "own")
    (own / "config.json").write_text((own / "config.json").read_text() + "\n")  # other bytes: not shared
    tiers = {"basic": values["tiers"]["basic"]}
    first = deploy({**values, "isolation": "thread", "tiers": tiers})
    assert first.latencies_ms["basic"] > 0
    path = tmp_path / "served.yaml"
    path.write_text(deployed("tiny", Registry(home)).to_yaml())
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*pressoir.flows.deploy.SERVE, str(path), "--port", "0"], stderr=output, stdout=subprocess.DEVNULL
        )
    try:
        address = until(lambda: re.search(r"http://[\d.]+:\d+", log.read_text()))[0]
        with closing(Server(address)) as server:
            until(server.is_ready)
            before = state(home), server.digests()

            monkeypatch.setattr(pressoir.flows.deploy, "SERVE", FAKE)  # the real one has been tried
            more = {**tiers, "own": {"model": str(own)}, "story": values["tiers"]["story"]}
            register = pressoir.tasks.tracking.serving_version.register

            def spoil(*words):
                weights = own / "model.safetensors"
                content = weights.read_bytes()
                weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
                return register(*words)

            with monkeypatch.context() as patch:
                patch.setattr(pressoir.tasks.tracking.serving_version, "register", spoil)
                with pytest.raises(PressoirError, match="all changes were rolled back"):
                    deploy({**values, "isolation": "thread", "tiers": more}, address)
            assert (state(home), server.digests()) == before
            server.ask("basic", first.config.tiers["basic"])

            second = deploy({**values, "isolation": "thread", "tiers": more}, address)
            assert server.digests() == {name: tier.digest for name, tier in second.config.tiers.items()}
            assert server.ask("story", second.config.tiers["story"]) > 0
    finally:
        process.terminate()
        process.wait(30)


def until(look, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    raise TimeoutError


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness", "tracked", "fake_serve")
class TestUndeploy:
    def test_it_is_gone_everywhere_and_comes_back_with_its_version(self, values, home):
        from pressoir.errors import RegistryError
        from pressoir.flows.cli import main
        from pressoir.registry.registry import Registry

        deploy(values)
        deploy({**values, "name": "other"})
        assert cli(main, "undeploy", "tiny") == (
            "tiny is no longer deployed; a running server goes on until it is stopped\n"
            "MLflow: version 1 of serving-tiny lost the alias 'champion', and stays\n"
        )
        assert json.loads((home / "models.json").read_text())["serving"].keys() == {"other"}
        client = client_of(home)
        assert client.get_registered_model("serving-tiny").aliases == {}
        assert client.get_registered_model("serving-other").aliases == {"champion": 1}
        with pytest.raises(RegistryError, match="no deployed configuration 'tiny'; deployed: other"):
            Registry(home).serving("tiny")
        assert deploy(values).version == "1"
        assert client.get_registered_model("serving-tiny").aliases == {"champion": 1}

    def test_an_unknown_name_is_refused_with_those_that_are_deployed(self, values, home):
        from pressoir.flows.cli import main

        deploy(values)
        before = (home / "models.json").read_bytes()
        assert "no deployed configuration 'tinny'; did you mean 'tiny'?" in cli(main, "undeploy", "tinny", 2)
        assert (home / "models.json").read_bytes() == before


def cli(main, command, name, status=0):
    from click.testing import CliRunner

    done = CliRunner().invoke(main, [command, name])
    assert done.exit_code == status, done.output
    return done.output
