"""What `models:/` names mean, and what MLflow tells when they mean nothing."""

import json
import shutil

import pytest

from pressoir.errors import RegistryError


@pytest.fixture
def registered(store, tiny_classifier):
    """A model as a recipe registers it: two versions, the first with the alias. Returns their places."""
    from mlflow import MlflowClient

    from pressoir.store.artifact import StageKey
    from pressoir.tasks.tracking.database import tracking_uri

    uri = tracking_uri(store.home)[0]
    client, places = MlflowClient(uri, uri), []
    client.create_registered_model("press")
    for seed in (1, 2):

        def make(out, work, seed=seed):
            shutil.copytree(tiny_classifier, out, dirs_exist_ok=True)
            (out / "seed.txt").write_text(str(seed))
            return {}

        key = StageKey(stage="shard", version=1, kind="onnx", config={}, inputs={}, seed=seed)
        artifact, _ = store.build(key, make)
        places.append(f"store:shard/{artifact.key}")
        tags = {"digest": artifact.digest, "store": places[-1]}
        client.create_model_version("press", store.path(artifact).as_uri(), tags=tags)
    client.set_registered_model_alias("press", "champion", "1")
    return client, places


def test_an_alias_and_a_version_lead_to_what_was_registered(store, registered):
    from pressoir.tasks.tracking.serving_version import reference_of

    client, places = registered
    assert reference_of("models:/press@champion", store) == places[0]
    assert reference_of("models:/press/2", store) == places[1]
    client.set_registered_model_alias("press", "champion", "2")
    assert reference_of("models:/press@champion", store) == places[1]


def test_a_configuration_is_resolved_through_mlflow(store, registered):
    from pressoir.serving.config import ServingConfig, resolve
    from pressoir.serving.pool.sharing import analyse
    from pressoir.tasks.tracking.serving_version import reference_of

    _, places = registered
    tiers = {"basic": {"model": "models:/press@champion"}, "stored": {"model": places[0]}}
    config = resolve(
        ServingConfig.model_validate({"tiers": tiers}), store, lambda uri: reference_of(uri, store)
    )
    assert config.tiers["basic"].source == places[0]
    assert analyse(config).loads_saved == 1


def test_what_cannot_be_found_says_what_there_is(store, registered, tmp_path):
    from pressoir.tasks.tracking.serving_version import reference_of

    client, places = registered
    client.create_registered_model("foreign")
    client.create_model_version("foreign", tmp_path.as_uri())
    for uri, told in {
        "models:/pres@champion": "no registered model 'pres'; did you mean 'press'",
        "models:/zzz@champion": "available: foreign, press",
        "models:/press@best": "no alias 'best'; available: champion",
        "models:/press/7": "has no version 7",
        "models:/press": "expected models:/NAME@ALIAS or models:/NAME/VERSION",
        "models:/foreign/1": "was not registered by Pressoir",
    }.items():
        with pytest.raises(RegistryError, match=told):
            reference_of(uri, store)
    folder = store.root / places[0].removeprefix("store:")
    made = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps({**made, "digest": "0" * 64}))
    shutil.rmtree(store.root / places[1].removeprefix("store:"))
    with pytest.raises(RegistryError, match=r"has the digest .* run its recipe again"):
        reference_of("models:/press/1", store)
    with pytest.raises(RegistryError, match=r"is not in the store .*; set PRESSOIR_HOME"):
        reference_of("models:/press/2", store)


def test_an_mlflow_that_does_not_answer_is_told_with_its_address(store, monkeypatch):
    from pressoir.tasks.tracking.serving_version import reference_of

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match=r"MLflow at http://127.0.0.1:9 failed"):
        reference_of("models:/press@champion", store)
