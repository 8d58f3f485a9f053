"""The registry's serving section: found by name, kept from the collector, and undone to the byte."""

import json

import pytest

from pressoir.errors import RegistryError
from pressoir.registry.catalogue import Entry, ServingEntry, Urls, read
from pressoir.registry.registry import Registry
from pressoir.store.store import Store


def deployed(id="shop", **changes):
    values = {"id": id, "config": {"tiers": {"basic": {"model": "m"}}}, "digests": {"basic": "1" * 64}}
    return ServingEntry(**{**values, **changes})


def model(id):
    urls = Urls(base="store:shard/" + "0" * 64)
    return Entry(id=id, name=id, type="causal-lm", size_mb=1.0, urls=urls, license="MIT")


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "home")


def test_what_is_deployed_is_found_and_an_unknown_name_suggests_the_nearest(registry):
    with pytest.raises(RegistryError, match=r"none yet \(see `pressoir deploy`\)"):
        registry.serving("shop")
    registry.deploy(deployed())
    registry.deploy(deployed("cafe"))
    registry.deploy(deployed("cafe", digests={"basic": "2" * 64}))
    assert registry.serving("shop") == deployed()
    assert registry.serving("cafe").digests == {"basic": "2" * 64}
    with pytest.raises(RegistryError, match=r"did you mean 'shop'.*cafe, shop"):
        registry.serving("shp")


def test_models_and_deployments_do_not_disturb_each_other(registry):
    registry.add(model("one"))
    registry.deploy(deployed())
    registry.add(model("two"))
    registry.remove("one")
    assert set(registry.own()) == {"two"}
    assert registry.serving("shop") == deployed()
    assert read(registry.file).serving == {"shop": deployed()}


def test_a_file_without_deployments_has_no_section_for_them(registry):
    registry.add(model("one"))
    assert "serving" not in json.loads(registry.file.read_text())


def test_artifacts_behind_a_deployment_are_kept_from_the_collector(registry):
    registry.deploy(deployed(artifacts={"basic": "3" * 64}))
    assert registry.references() == {"3" * 64}


def test_a_key_that_is_not_the_id_is_refused(registry):
    registry.deploy(deployed())
    registry.file.write_text(registry.file.read_text().replace('"id": "shop"', '"id": "cafe"'))
    with pytest.raises(RegistryError, match=r"serving\.shop has the id 'cafe'"):
        registry.serving("shop")


class TestUndo:
    @pytest.mark.parametrize("before", ["no file", "a model", "an earlier deployment", "own layout"])
    def test_the_file_is_what_it_was_to_the_byte(self, registry, before):
        if before != "no file":
            registry.add(model("one"))
        if before in ("an earlier deployment", "own layout"):
            registry.deploy(deployed(digests={"basic": "2" * 64}))
        if before == "own layout":
            registry.file.write_bytes(registry.file.read_bytes().replace(b"\n", b"\r\n"))
        files = {path.name: path.read_bytes() for path in registry.home.glob("*.json")}
        text = registry.content()
        registry.deploy(deployed())
        assert registry.content() != text
        registry.undo_deploy("shop", text)
        assert {path.name: path.read_bytes() for path in registry.home.glob("*.json")} == files

    def test_what_somebody_else_registered_meanwhile_stays(self, registry):
        registry.deploy(deployed(digests={"basic": "2" * 64}))
        text = registry.content()
        registry.deploy(deployed())
        registry.deploy(deployed("cafe"))
        registry.add(model("one"))
        registry.undo_deploy("shop", text)
        assert registry.serving("shop").digests == {"basic": "2" * 64}
        assert registry.serving("cafe") == deployed("cafe")
        assert set(registry.own()) == {"one"}

    def test_where_nothing_was_done_nothing_is_written(self, registry):
        registry.undo_deploy("shop", None)
        assert not registry.file.exists()
        registry.add(model("one"))
        seen = registry.file.stat()
        registry.undo_deploy("shop", registry.content())
        assert registry.file.stat().st_ino == seen.st_ino


def test_a_store_keeps_what_is_served(registry, tmp_path):
    from pressoir.store.artifact import StageKey

    store = Store(registry.home)

    def make(out, work):
        (out / "model.txt").write_text("weights")
        return {}

    key = StageKey(stage="shard", version=1, kind="onnx", config={}, inputs={}, seed=0)
    artifact, _ = store.build(key, make)
    assert [name for name, _ in store.collect(registry.references(), 0, dry_run=True)]
    registry.deploy(deployed(artifacts={"basic": artifact.digest}))
    assert not store.collect(registry.references(), 0, dry_run=True)
