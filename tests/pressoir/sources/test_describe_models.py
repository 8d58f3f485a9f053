"""What an entry says of a model, read from the model's own files, and what is refused as one."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from pressoir.errors import RegistryError, SourceError
from pressoir.registry.registry import Registry
from pressoir.sources.describe import Details, describe, register
from pressoir.store.artifact import StageKey
from pressoir.store.store import Store
from pressoir.system.files import file_sha256, folder_digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path):
    return Registry(tmp_path / "home")


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model")


def make_model(folder, value=1.0, architecture="LlamaForCausalLM"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}), encoding="utf-8")
    save_file({"w": np.full(1000, value, np.float32)}, folder / "model.safetensors")
    return folder


def make_graph(folder, weights):
    """A model of one ONNX graph alone, whose weights lie in the file named."""
    import onnx
    from onnx import TensorProto, helper

    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    (folder / "model.onnx.data").write_bytes(bytes(64))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": weights, "offset": "48", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    node = helper.make_node("Identity", ["w"], ["y"])
    graph = helper.make_graph([node], "g", [], [y], initializer=[tensor])
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    onnx.load(folder / "model.onnx", load_external_data=False)
    return folder


def put(home, id, reference, force=False, **said):
    return register(home, id, str(reference), Details(**said), force=force)[0]


# --- what the files say ---


def test_size_digest_type_and_weights_are_those_of_the_files(model, home):
    entry = put(home, "mine", model)
    digest, size = folder_digest(model)
    assert (entry.digest, entry.size_mb) == (digest, size / 1e6)
    assert entry.weights_sha256 == file_sha256(model / "model.safetensors")
    assert (entry.id, entry.name, entry.type) == ("mine", "mine", "causal-lm")
    assert (entry.urls.base, entry.urls.shards) == (str(model), ())
    assert (entry.license, entry.quantization, entry.lineage, entry.metrics) == ("NOASSERTION", None, {}, {})
    assert entry.created_at.endswith("+00:00")
    assert home.get("mine") == entry


def test_what_is_said_wins_over_what_the_files_say(model, home, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    entry = put(
        home,
        "mine",
        model,
        name="My model",
        type="translation",
        license="MIT",
        quantization="q4",
        metrics={"bleu": 0.5},
        mirrors=(str(tmp_path / "elsewhere"), "https://host/model"),
    )
    assert (entry.name, entry.type, entry.license, entry.quantization) == (
        *("My model", "translation", "MIT", "q4"),
    )
    assert entry.metrics == {"bleu": 0.5}
    assert entry.urls.mirrors == (str(tmp_path / "elsewhere"), "https://host/model")


def test_a_relative_folder_is_registered_so_that_it_is_found_from_anywhere(model, home, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert put(home, "mine", "./model").urls.base == str(model)


def test_the_scheme_is_that_of_the_quantised_folder(model, home):
    (model / "quantization.json").write_text('{"scheme": "mixed"}', encoding="utf-8")
    assert put(home, "mine", model).quantization == "mixed"


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model\n", "Apache-2.0"),
        ("---\r\nlanguage: en\r\nlicense: cc-by-nc-4.0\r\n---\r\n", "CC-BY-NC-4.0"),
        ("\ufeff---\nlicense: llama3\n---", "llama3"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "MIT AND Apache-2.0"),
        ("---\nlicense: other\nlicense_name: my-own\n---\n", "my-own"),
        ("---\nlicense: unknown\n---\n", "NOASSERTION"),
        ("---\nlicense: other\n---\n", "NOASSERTION"),
        ("---\n- a list\n---\n", "NOASSERTION"),
        ("---\nlicense: [\n---\n", "NOASSERTION"),
        ("# A model\n\n---\nlicense: mit\n---\n", "NOASSERTION"),
        ("", "NOASSERTION"),
    ],
)
def test_the_license_is_that_of_the_model_card(card, license, model, home):
    (model / "README.md").write_bytes(card.encode())
    assert put(home, "mine", model).license == license


def test_a_graph_alone_is_a_model_too(home, tmp_path):
    entry = put(home, "graph", make_graph(tmp_path / "graph", "model.onnx.data"))
    assert (entry.type, entry.weights_sha256) == ("causal-lm", None)


def test_an_architecture_that_is_not_told_asks_for_the_type(model, home):
    (model / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        RegistryError, match=r"specifies no architecture.*, or specify the type at registration"
    ):
        put(home, "mine", model)
    assert put(home, "mine", model, type="causal-lm").type == "causal-lm"


# --- what is refused ---


def test_a_folder_that_is_no_whole_safe_model_is_refused_and_nothing_is_written(model, home):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(SourceError, match="only pickled weights"):
        put(home, "mine", model)
    assert not home.file.exists()


@pytest.mark.parametrize(
    ("weights", "damage", "told"),
    [
        ("../secret", None, r"refers to a file outside its folder: '\.\./secret'"),
        ("/etc/hostname", None, "refers to a file outside its folder"),
        ("gone.data", None, "'gone.data', which is not a file of the folder"),
        (
            "model.onnx.data",
            "model.onnx.data",
            r"model\.onnx\.data has 60 bytes, but the graph's tensor .* ends at",
        ),
        ("model.onnx.data", "model.onnx", "model.onnx is not an ONNX graph"),
    ],
)
def test_a_graph_without_its_weights_is_refused(weights, damage, told, home, tmp_path):
    folder = make_graph(tmp_path / "graph", weights)
    if damage:
        (folder / damage).write_bytes((folder / damage).read_bytes()[:60])
    with pytest.raises(SourceError, match=told):
        put(home, "graph", folder)


def test_a_mirror_that_can_lead_nowhere_is_refused(model, home):
    with pytest.raises(SourceError, match=r"'\./gone': no such folder"):
        put(home, "mine", model, mirrors=("./gone",))


def test_an_id_that_can_be_none_and_a_broken_registry_are_told_before_the_model_is_read(tmp_path, home):
    with pytest.raises(RegistryError, match="'My Model' is not a valid id"):
        put(home, "My Model", tmp_path / "nowhere")
    home.home.mkdir()
    home.file.write_text("{", encoding="utf-8")
    with pytest.raises(RegistryError, match="line 1: not valid JSON"):
        put(home, "mine", tmp_path / "nowhere")


# --- an id that is registered already ---


def test_other_files_under_the_same_id_need_force_and_then_replace_all_that_was_said(model, home, tmp_path):
    old = put(home, "mine", model, name="Old", metrics={"speedup": 2})
    other = make_model(tmp_path / "other", value=2.0)
    with pytest.raises(
        RegistryError, match=f"'mine' is already registered with different files .*{old.digest}"
    ):
        put(home, "mine", other)
    assert home.get("mine") == old
    new = put(home, "mine", other, force=True)
    assert (new.name, new.metrics, new.urls.base) == ("mine", {}, str(other))
    assert home.get("mine") == new


def test_the_same_files_update_what_is_said_and_keep_the_rest(model, home, tmp_path):
    said = {"name": "Mine", "type": "translation", "license": "MIT", "quantization": "q4"}
    old = put(home, "mine", model, **said, metrics={"bleu": 0.5}, mirrors=("https://host/model",))
    home.add(old.model_copy(update={"created_at": "2020-01-01T00:00:00+00:00"}))
    moved = shutil.copytree(model, tmp_path / "moved")
    new, replaced = register(home, "mine", str(moved), Details(license="ISC", metrics={"speedup": 2}))
    assert replaced is not None
    assert new == old.model_copy(
        update={
            "license": "ISC",
            "metrics": {"bleu": 0.5, "speedup": 2.0},
            "urls": old.urls.model_copy(update={"base": str(moved)}),
            "created_at": "2020-01-01T00:00:00+00:00",
        }
    )


def test_a_license_that_is_found_later_is_taken(model, home):
    assert put(home, "mine", model).license == "NOASSERTION"
    (model / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    home.add(home.get("mine").model_copy(update={"digest": folder_digest(model)[0]}))
    assert put(home, "mine", model).license == "MIT"


# --- other places ---


def test_an_artifact_of_the_store_is_registered_as_such_with_all_it_came_from(model, home):
    store = Store(home.home)

    def build(stage, inputs, **config):
        key = StageKey(stage=stage, version=1, kind="model", config=config, inputs=inputs, seed=0)

        def make(out, work):
            shutil.copytree(model, out, dirs_exist_ok=True)
            (out / "config.json").write_text(
                json.dumps({"architectures": ["LlamaForCausalLM"], "made_by": stage, **config})
            )
            return {}

        return store.build(key, make)[0]

    merged = build("merge", {"model_0": "a" * 64, "model_1": "b" * 64})
    coarse = build("quantize", {"model": merged.digest}, bits=4)
    fine = build("quantize", {"model": coarse.digest, "data": "c" * 64}, bits=2)
    for reference in (f"store:quantize/{fine.key}", str(store.path(fine))):
        entry = put(home, "pressed", reference)
        assert entry.urls.base == f"store:quantize/{fine.key}"
        assert entry.digest == fine.digest
        assert list(entry.lineage.items()) == [
            ("merge.model_0", "a" * 64),
            ("merge.model_1", "b" * 64),
            ("merge", merged.digest),
            ("quantize", coarse.digest),
            ("quantize.data", "c" * 64),
        ]
    (store.path(fine) / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(RegistryError, match="was modified after it was created"):
        put(home, "pressed", f"store:quantize/{fine.key}")


def test_a_stage_that_changed_nothing_is_not_its_own_ancestor(model, home):
    store = Store(home.home)

    def build(stage, inputs):
        key = StageKey(stage=stage, version=1, kind="model", config={}, inputs=inputs, seed=0)
        return store.build(key, lambda out, work: shutil.copytree(model, out, dirs_exist_ok=True) and {})[0]

    first = build("teacher", {"data": "d" * 64})
    second = build("prune", {"model": first.digest})
    assert second.digest == first.digest
    lineage = put(home, "pressed", f"store:prune/{second.key}").lineage
    assert lineage == {"prune": first.digest}


def test_a_copy_that_was_worked_on_has_no_lineage(model, home):
    (model / "artifact.json").write_text("not a manifest", encoding="utf-8")
    assert put(home, "mine", model).lineage == {}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stands for the hub: its cache holds one model at one commit."""
    folder = make_model(tmp_path / "snapshots" / COMMIT)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    asked = SimpleNamespace(folder=folder, repositories=[])

    def snapshot_download(repository, **options):
        asked.repositories.append(repository)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize("reference", ["org/name", "hub:org/name", "hub:org/name@main"])
def test_a_hub_model_is_pinned_to_its_commit_and_its_digest_to_what_is_fetched(reference, hub, home):
    entry = put(home, "remote", reference)
    assert (entry.urls.base, entry.revision) == (f"hub:org/name@{COMMIT}", COMMIT)
    assert entry.license == "MIT"
    (hub.folder / "onnx").mkdir()  # another program may fetch more into the same cache
    (hub.folder / "onnx" / "model_O4.onnx").write_bytes(b"")
    (hub.folder / "notes.md").write_text("")
    assert put(home, "remote", reference).digest == entry.digest


def test_another_name_for_a_registered_model_keeps_what_is_known_of_it(model, home, tmp_path):
    old = put(home, "mine", model, name="Mine", license="MIT", metrics={"speedup": 2}, mirrors=("org/name",))
    new = put(home, "yours", "mine", license="ISC")
    assert new.model_copy(update={"created_at": None}) == old.model_copy(
        update={"id": "yours", "license": "ISC", "created_at": None}
    )


def test_another_name_is_not_given_to_files_that_are_not_the_pinned_ones(model, home):
    put(home, "mine", model)
    save_file({"w": np.zeros(1000, np.float32)}, model / "model.safetensors")
    with pytest.raises(SourceError, match="does not match the SHA-256 in the registry"):
        put(home, "yours", "mine")


def test_describing_registers_nothing(model, home):
    assert describe("mine", str(model), Details(), Store(home.home)).id == "mine"
    assert not home.file.exists()
