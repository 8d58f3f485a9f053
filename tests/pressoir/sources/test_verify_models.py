"""Verification: what was registered is hashed again; what is not here is said to be elsewhere."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from pressoir.errors import RegistryError, ShardError
from pressoir.formats import sharding
from pressoir.registry.catalogue import Entry
from pressoir.registry.registry import Registry
from pressoir.sources.describe import Details, register
from pressoir.sources.verify import is_gone, verify
from pressoir.store.store import Store
from pressoir.system.files import file_sha256


@pytest.fixture
def home(tmp_path):
    return Registry(tmp_path / "home")


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model")


def make_model(folder, value=1.0):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    save_file({"w": np.full(1000, value, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of two shards, each of one tensor."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    shards = []
    for order, name in enumerate(("shard_00.safetensors", "shard_01.safetensors")):
        save_file({f"w{order}": np.full(100, order, np.float32)}, folder / name)
        size = (folder / name).stat().st_size
        tensor = sharding.TensorRecord(
            name=f"w{order}", dtype="F32", shape=[100], offset=size - 400, bytes=400
        )
        record = {"file": name, "sha256": file_sha256(folder / name), "bytes": size}
        shards.append(sharding.ShardRecord(**record, order=order, role="layers", tensors=[tensor]))
    manifest = sharding.ShardManifest(
        format_version=sharding.FORMAT_VERSION,
        kind="checkpoint",
        shards=shards,
        total_bytes=sum(shard.bytes for shard in shards),
        tied={},
        files=[],
    )
    (folder / sharding.MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


def put(home, id, folder, **said):
    return register(home, id, str(folder), Details(**said))[0]


def state(home, id, fetch=False):
    (finding,) = verify(home, [id], fetch=fetch)
    return finding.state, finding.what


def test_a_model_that_is_what_was_registered_is_ok(model, home):
    put(home, "mine", model)
    assert state(home, "mine") == ("ok", "")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda m: save_file({"w": np.zeros(1000, np.float32)}, m / "model.safetensors"),
            "model.safetensors has SHA",
        ),
        (lambda m: (m / "model.safetensors").write_bytes(b"x" * 99), "is not a complete safetensors file"),
        (lambda m: (m / "model.safetensors").unlink(), "has no *.safetensors weights"),
        (lambda m: (m / "config.json").write_text("{}"), "a file was changed, added or removed"),
        (lambda m: (m / "added.txt").write_text(""), "a file was changed, added or removed"),
        (lambda m: (m / "config.json").unlink(), "has no config.json"),
    ],
)
def test_a_model_that_was_altered_is_damaged_and_what_is_wrong_is_said(damage, told, model, home):
    put(home, "mine", model)
    damage(model)
    found, what = state(home, "mine")
    assert found == "damaged"
    assert told in what


def test_the_shards_are_named_in_order_and_each_is_checked(sharded, home):
    names = ("shard_00.safetensors", "shard_01.safetensors")
    assert put(home, "mine", sharded).urls.shards == names
    assert state(home, "mine") == ("ok", "")
    content = bytearray((sharded / names[1]).read_bytes())
    content[-1] ^= 1
    (sharded / names[1]).write_bytes(content)
    found, what = state(home, "mine")
    assert found == "damaged"
    assert "shard_01.safetensors was modified" in what
    assert "shard_00" not in what
    with pytest.raises(ShardError, match=r"shard_01\.safetensors was modified"):
        put(home, "again", sharded)


def test_shards_that_are_not_those_of_the_entry_are_damage(sharded, home):
    entry = put(home, "mine", sharded)
    reversed_urls = entry.urls.model_copy(update={"shards": entry.urls.shards[::-1]})
    home.add(entry.model_copy(update={"urls": reversed_urls}))
    assert "names 2 shards that differ from `urls.shards` of the entry" in state(home, "mine")[1]
    home.add(entry)
    (sharded / sharding.MANIFEST).unlink()
    assert "shard_manifest.json is missing, but the entry has shards" in state(home, "mine")[1]


def test_a_local_model_whose_files_are_gone_is_damaged(model, home):
    put(home, "mine", model)
    shutil.rmtree(model)
    found, what = state(home, "mine")
    assert found == "damaged"
    assert "its files are missing" in what


def test_where_a_mirror_is_used_its_weights_are_checked_and_that_is_said(model, home, tmp_path):
    mirror = shutil.copytree(model, tmp_path / "mirror")
    (mirror / "notes.md").write_text("a mirror need not have the same notes")
    entry = put(home, "mine", model, mirrors=(str(mirror),))
    shutil.rmtree(model)
    assert state(home, "mine") == ("ok", f"found at {mirror}; its digest is that of {entry.urls.base}")
    save_file({"w": np.zeros(1000, np.float32)}, mirror / "model.safetensors")
    assert state(home, "mine")[0] == "damaged"


def test_an_entry_without_any_digest_is_ok_and_says_how_little_that_means(model, home):
    home.add(put(home, "mine", model).model_copy(update={"digest": None, "weights_sha256": None}))
    assert state(home, "mine") == ("ok", "cannot be verified: its entry has no digest")


@pytest.fixture
def elsewhere(monkeypatch):
    """Neither the hub's cache nor the server's has anything, until they are asked to fetch."""
    served = SimpleNamespace(folder=None)

    def snapshot_download(repository, local_files_only, **options):
        if local_files_only or served.folder is None:
            raise FileNotFoundError("not here")
        return str(served.folder)

    def fetch(url, folder):
        if served.folder is None:
            raise ShardError("shard_00.safetensors was modified")
        return shutil.copytree(served.folder, folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("pressoir.sources.shards.fetch", fetch)
    return served


@pytest.mark.parametrize("base", ["hub:org/name", "https://host/model", "package:absent_carrier"])
def test_what_is_elsewhere_is_unreachable_and_not_fetched_unless_asked(base, elsewhere, model, home):
    entry = put(home, "mine", model)
    home.add(entry.model_copy(update={"urls": entry.urls.model_copy(update={"base": base})}))
    elsewhere.folder = model
    assert state(home, "mine")[0] == "unreachable"
    if not base.startswith("package:"):
        assert state(home, "mine", fetch=True) == ("ok", "")


def test_a_shard_that_arrives_altered_is_damage_of_that_model_alone(elsewhere, model, home):
    put(home, "mine", model)
    entry = home.get("mine")
    urls = entry.urls.model_copy(update={"base": "https://host/model"})
    home.add(entry.model_copy(update={"id": "served", "urls": urls}))
    findings = {found.id: found for found in verify(home, ["served", "mine"], fetch=True)}
    assert findings["served"].state == "damaged"
    assert "shard_00.safetensors was modified" in findings["served"].what
    assert findings["mine"].state == "ok"


def test_by_default_every_known_model_is_verified_once(model, home, monkeypatch):
    monkeypatch.setattr("pressoir.sources.verify.check", lambda entry, store, fetch: entry.id)
    put(home, "mine", model)
    assert {*verify(home)} == {"mine", "all-minilm-l6-v2", "bert-base-uncased", "distilbert-base-uncased"}
    assert [*verify(home, ["mine", "mine"])] == ["mine"]


def test_every_unknown_id_is_told_before_anything_is_hashed(model, home, monkeypatch):
    monkeypatch.setattr("pressoir.sources.verify.check", lambda *args, **kwargs: pytest.fail("hashed"))
    put(home, "mine", model)
    with pytest.raises(
        RegistryError, match=r"'main'; did you mean 'mine'(.|\n)*'bert-base-case'; did you mean"
    ):
        verify(home, ["mine", "main", "bert-base-case"])


def test_an_entry_is_gone_only_if_all_its_places_are_of_this_machine_and_empty(model, home, elsewhere):
    store = Store(home.home)
    entry = put(home, "mine", model)

    def gone(base, *mirrors):
        urls = {"base": base, "mirrors": mirrors}
        return is_gone(Entry.model_validate({**json.loads(entry.model_dump_json()), "urls": urls}), store)

    assert not gone(str(model))
    assert gone("/gone/for/good")
    assert gone(f"store:shard/{'0' * 64}")
    assert not gone("/gone/for/good", str(model))
    assert not gone("/gone/for/good", "hub:org/name")
    assert not gone("https://host/model")
    assert not gone("package:absent_carrier")
