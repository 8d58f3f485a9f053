"""What is deployed is what was registered, to the last byte; and it is found again by name."""

import shutil

import pytest

from pressoir.errors import RegistryError
from pressoir.registry.registry import Registry
from pressoir.serving import deployment
from pressoir.serving.config import ServingConfig, resolve
from pressoir.serving.deployment import DeploymentError
from pressoir.sources.describe import Details, register
from pressoir.store.artifact import StageKey
from pressoir.store.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def artifact(store, tiny_classifier):
    def make(out, work):
        shutil.copytree(tiny_classifier, out, dirs_exist_ok=True)
        (out / "notes.md").write_text("not one of the files that a server reads")
        return {}

    return store.build(StageKey(stage="shard", version=1, kind="onnx", config={}, inputs={}, seed=0), make)[0]


def resolved(store, **models):
    tiers = {name: {"model": str(model)} for name, model in models.items()}
    return resolve(ServingConfig.model_validate({"name": "shop", "tiers": tiers}), store)


def test_artifacts_behind_the_tiers_are_told_and_folders_have_none(store, artifact, tiny_classifier):
    place = f"store:shard/{artifact.key}"
    register(Registry(store.home), "press", place, Details(license="MIT"))
    config = resolved(store, stored=place, named="press", folder=tiny_classifier)
    assert config.tiers["stored"].digest != artifact.digest  # of the files that are served, and of all
    assert deployment.check(config, store) == {"stored": artifact.digest, "named": artifact.digest}


def test_every_tier_whose_files_were_altered_is_told(store, artifact, tiny_classifier, tmp_path):
    own = shutil.copytree(tiny_classifier, tmp_path / "own")
    register(Registry(store.home), "mine", str(own), Details(license="MIT"))
    (own / "README.md").write_text("altered")
    (store.path(artifact) / "notes.md").write_text("altered")
    config = resolved(store, fine=tiny_classifier, mine="mine", stored=f"store:shard/{artifact.key}")
    with pytest.raises(DeploymentError) as failed:
        deployment.check(config, store)
    assert "tiers.mine.model: mine is damaged" in str(failed.value)
    assert "tiers.stored.model" in str(failed.value)
    assert "run its recipe again" in str(failed.value)
    assert "fine" not in str(failed.value)


def test_a_stored_folder_without_its_manifest_is_refused(store, artifact):
    (store.path(artifact) / "artifact.json").unlink()
    config = resolved(store, stored=f"store:shard/{artifact.key}")
    with pytest.raises(DeploymentError, match=r"no readable artifact\.json"):
        deployment.check(config, store)


def test_it_is_found_by_name_as_it_was_deployed(store, tiny_classifier):
    config, registry = resolved(store, basic=tiny_classifier), Registry(store.home)
    registry.deploy(deployment.entry(config, {}))
    assert deployment.deployed("shop", registry) == config
    with pytest.raises(RegistryError, match="no deployed configuration 'shp'; did you mean 'shop'"):
        deployment.deployed("shp", registry)


def test_an_entry_that_is_no_configuration_names_its_fields(store, tiny_classifier):
    config, registry = resolved(store, basic=tiny_classifier), Registry(store.home)
    entry = deployment.entry(config, {})
    registry.deploy(entry.model_copy(update={"config": {**entry.config, "colour": "red"}}))
    with pytest.raises(
        RegistryError, match=r"serving\.shop\.config is not valid \(colour\); deploy it again"
    ):
        deployment.deployed("shop", registry)


def test_configurations_that_serve_the_same_have_one_fingerprint(store, tiny_classifier):
    config = resolved(store, basic=tiny_classifier)
    assert deployment.fingerprint(config) == deployment.fingerprint(config.model_copy())
    assert deployment.fingerprint(config) != deployment.fingerprint(config.model_copy(update={"threads": 7}))
