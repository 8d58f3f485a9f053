"""Shards: one set of bytes for ONNX Runtime and safetensors, cut as asked, never opened unless intact."""

import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors import safe_open

from pressoir.errors import ShardError
from pressoir.formats import sharding
from pressoir.inference.engines.classifier import OnnxEngine, open_engine
from pressoir.recipe.sections import ExportConfig, QuantizeConfig, ShardConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import export, quantize, shard


def run_stage(stage, inputs, config, folder):
    for name in ("out", "work"):
        (folder / name).mkdir(parents=True)
    context = StageContext(folder / "out", folder / "work", LogReporter(), seed=0, threads=1)
    return context.out_dir, stage.run(inputs, config, context)


@pytest.fixture(scope="module", params=["float32", "int8"])
def exported(request, tiny_classifier, tiny_data, tmp_path_factory):
    folder, model = tmp_path_factory.mktemp(request.param), tiny_classifier
    if request.param == "int8":
        config = QuantizeConfig(max_accuracy_drop=None)
        model, _ = run_stage(quantize, {"model": model, "data": tiny_data}, config, folder / "int8")
    result, _ = run_stage(export, {"model": model, "data": tiny_data}, ExportConfig(), folder / "onnx")
    (result / "artifact.json").write_text("{}")  # as the store leaves it
    return result


@pytest.fixture(scope="module")
def made(exported, tmp_path_factory):
    return run_stage(shard, {"model": exported}, ShardConfig(shards=3), tmp_path_factory.mktemp("sharded"))


@pytest.fixture
def sharded(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "sharded")


def manifest(folder):
    return json.loads((folder / sharding.MANIFEST).read_text())


def rewrite(folder, change):
    content = manifest(folder)
    change(content)
    (folder / sharding.MANIFEST).write_text(json.dumps(content))


def initializers(folder, **options):
    return {t.name: t for t in onnx.load(folder / "model.onnx", **options).graph.initializer}


def feed(batch, length, seed):
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[0, length // 2 :] = 0
    return {
        "input_ids": rng.integers(5, 30, (batch, length)),
        "attention_mask": mask,
        "token_type_ids": np.zeros((batch, length), np.int64),
    }


def test_onnx_runtime_gives_identical_outputs_before_and_after(exported, sharded):
    before, after = OnnxEngine(exported / "model.onnx", 1), open_engine(sharded, 1)
    for seed, (batch, length) in enumerate([(1, 3), (2, 17), (5, 60)]):
        inputs = feed(batch, length, seed)
        assert before.run(inputs).tobytes() == after.run(inputs).tobytes()


def test_safetensors_reads_identical_tensors_in_the_manifests_order_of_shards(exported, sharded):
    original, seen = initializers(exported), {}
    for record in manifest(sharded)["shards"]:
        with safe_open(sharded / record["file"], framework="np") as file:
            assert set(file.keys()) == {tensor["name"] for tensor in record["tensors"]}
            for tensor in record["tensors"]:
                value = file.get_tensor(tensor["name"])
                expected = numpy_helper.to_array(original[tensor["name"]])
                assert value.dtype == expected.dtype
                assert list(value.shape) == tensor["shape"]
                assert value.tobytes() == expected.tobytes()
                seen[tensor["name"]] = True
    inline = initializers(sharded, load_external_data=False)
    stay = {name for name, tensor in inline.items() if tensor.data_location != onnx.TensorProto.EXTERNAL}
    assert set(seen) | stay == set(original)
    assert not set(seen) & stay
    assert sum(len(inline[name].raw_data) for name in stay) < 1000


def test_one_set_of_bytes_serves_both(sharded):
    """The graph's (file, offset, length) is where the safetensors header puts the tensor."""
    external = {
        name: {entry.key: entry.value for entry in tensor.external_data}
        for name, tensor in initializers(sharded, load_external_data=False).items()
        if tensor.external_data
    }
    told = {t["name"]: (r["file"], t) for r in manifest(sharded)["shards"] for t in r["tensors"]}
    assert set(external) == set(told)
    for name, place in external.items():
        file, tensor = told[name]
        raw = (sharded / file).read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        begin, end = json.loads(raw[8:start])[name]["data_offsets"]
        assert place == {"location": file, "offset": str(start + begin), "length": str(end - begin)}
        assert (tensor["offset"], tensor["bytes"]) == (start + begin, end - begin)
    weights = sum(int(place["length"]) for place in external.values())
    assert manifest(sharded)["total_bytes"] - weights < 200 * len(external)  # only headers besides
    assert not [p for p in sharded.iterdir() if p.is_symlink() or p.stat().st_nlink > 1]


def test_changing_a_shards_bytes_changes_what_both_readers_see(sharded):
    record = manifest(sharded)["shards"][-1]
    tensor = next(t for t in record["tensors"] if t["dtype"] == "F32")
    with (sharded / record["file"]).open("r+b") as file:
        file.seek(tensor["offset"])
        file.write(np.float32(1234.5).tobytes())
    assert numpy_helper.to_array(initializers(sharded)[tensor["name"]]).flat[0] == 1234.5
    with safe_open(sharded / record["file"], framework="np") as file:
        assert file.get_tensor(tensor["name"]).flat[0] == 1234.5


def test_tensors_stand_in_the_order_of_their_first_use(sharded):
    graph = onnx.load(sharded / "model.onnx", load_external_data=False).graph
    order = [tensor["name"] for record in manifest(sharded)["shards"] for tensor in record["tensors"]]
    first = {}
    for position, node in enumerate(graph.node):
        for name in node.input:
            first.setdefault(name, position)
    assert [first[name] for name in order] == sorted(first[name] for name in order)
    assert "embeddings" in order[0]
    assert order[-1].startswith("classifier")


def test_the_manifest_tells_length_and_hash_of_every_file(made, exported):
    folder, figures = made
    content = manifest(folder)
    assert (content["format_version"], content["kind"], content["tied"]) == (2, "onnx", {})
    for index, record in enumerate(content["shards"]):
        raw = (folder / record["file"]).read_bytes()
        assert record["file"] == f"shard_{index:02d}.safetensors"
        assert (record["order"], record["role"]) == (index, "graph order")
        assert record["bytes"] == len(raw)
        assert record["sha256"] == hashlib.sha256(raw).hexdigest()
    listed = {record["file"]: record for record in content["files"]}
    assert set(listed) == {p.name for p in folder.iterdir()} - {
        *(record["file"] for record in content["shards"]),
        *("shard_manifest.json", "SHARDING_INFO.md"),
    }
    for name, record in listed.items():
        raw = (folder / name).read_bytes()
        assert (record["bytes"], record["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    sizes = [record["bytes"] for record in content["shards"]]
    assert content["total_bytes"] == sum(sizes)
    assert figures == {"shards": 3, "total_mb": sum(sizes) / 1e6, "largest_shard_mb": max(sizes) / 1e6}
    others = {p.name for p in exported.iterdir()} - {"model.onnx", "artifact.json"}
    assert others <= {p.name for p in folder.iterdir()}
    assert not (folder / "artifact.json").exists()
    assert all((folder / name).read_bytes() == (exported / name).read_bytes() for name in others)


@pytest.mark.process
def test_the_snippets_for_people_run_as_they_stand(sharded):
    text = (sharded / shard.INFO).read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(snippets) == 3
    program = "\n".join(snippets)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=sharded, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "all files are intact" in done.stdout
    assert "embeddings" in done.stdout
    for record in manifest(sharded)["shards"]:
        assert f"`{record['file']}`" in text


def test_sharding_a_sharded_folder_again_gives_the_same_tensors(sharded, exported, tmp_path):
    again, figures = run_stage(shard, {"model": sharded}, ShardConfig(shards=1), tmp_path / "again")
    assert figures["shards"] == 1
    assert sorted(p.name for p in again.glob("shard_*")) == ["shard_00.safetensors", "shard_manifest.json"]
    inputs = feed(2, 9, 0)
    assert (
        open_engine(again, 1).run(inputs).tobytes()
        == OnnxEngine(exported / "model.onnx", 1).run(inputs).tobytes()
    )


# How the tensors are cut.


def test_the_limit_holds_for_the_files_headers_included(exported, tmp_path):
    folder, figures = run_stage(
        shard, {"model": exported}, ShardConfig(max_shard_size_mb=0.009), tmp_path / "s"
    )
    records = manifest(folder)["shards"]
    assert figures["shards"] == len(records) > 2
    assert all(record["bytes"] <= 9000 or len(record["tensors"]) == 1 for record in records)
    assert open_engine(folder, 1).run(feed(1, 4, 0)).shape == (1, 2)


def test_a_tensor_larger_than_the_limit_gets_its_own_shard(exported, tmp_path):
    folder, _ = run_stage(shard, {"model": exported}, ShardConfig(max_shard_size_mb=0.0001), tmp_path / "s")
    assert all(len(record["tensors"]) == 1 for record in manifest(folder)["shards"])


def test_two_shards_are_made_when_nothing_is_said(exported, tmp_path):
    _, figures = run_stage(shard, {"model": exported}, ShardConfig(), tmp_path / "s")
    assert figures["shards"] == 2
    assert figures["largest_shard_mb"] < 0.7 * figures["total_mb"]


def test_as_many_shards_as_tensors_are_possible_and_one_more_is_refused(exported, made, tmp_path):
    count = sum(len(record["tensors"]) for record in manifest(made[0])["shards"])
    folder, _ = run_stage(shard, {"model": exported}, ShardConfig(shards=count), tmp_path / "most")
    assert open_engine(folder, 1).run(feed(1, 4, 0)).shape == (1, 2)
    with pytest.raises(
        ShardError, match=f"{count + 1}, but the model has {count} tensors; specify at most {count}"
    ):
        run_stage(shard, {"model": exported}, ShardConfig(shards=count + 1), tmp_path / "more")


def test_a_folder_without_weights_is_refused_and_its_models_are_named(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "whole" / "onnx")
    with pytest.raises(ShardError, match=r"neither model\.onnx nor safetensors weights; .*: onnx"):
        run_stage(shard, {"model": tmp_path / "whole"}, ShardConfig(), tmp_path / "s")


# What is refused.


def first(folder):
    return folder / "shard_00.safetensors"


def flip_a_bit(folder):
    raw = bytearray(first(folder).read_bytes())
    raw[len(raw) // 2] ^= 1
    first(folder).write_bytes(raw)


def flip_a_bit_of_the_graph(folder):
    raw = bytearray((folder / "model.onnx").read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / "model.onnx").write_bytes(raw)


def link(folder):
    first(folder).rename(folder / "elsewhere")
    first(folder).symlink_to(folder / "elsewhere")


def name_it(name):
    return lambda folder: rewrite(folder, lambda m: m["shards"][0].update(file=name))


def name_other(name):
    return lambda folder: rewrite(folder, lambda m: m["files"][0].update(file=name))


def set_fields(**fields):
    return lambda folder: rewrite(folder, lambda m: m.update(fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"shard_00\.safetensors was modified"),
        (lambda f: first(f).write_bytes(first(f).read_bytes()[:-1]), r"shard_00\.safetensors is truncated"),
        (lambda f: first(f).write_bytes(b""), r"shard_00\.safetensors is truncated"),
        (lambda f: first(f).write_bytes(first(f).read_bytes() + b"\0"), r"shard_00\.safetensors is longer"),
        (lambda f: first(f).unlink(), r"shard_00\.safetensors is missing"),
        (link, r"shard_00\.safetensors is missing or not a regular file"),
        (lambda f: (first(f).unlink(), first(f).mkdir()), r"shard_00\.safetensors is missing"),
        (lambda f: (f / "shard_07.safetensors").write_bytes(b"x"), r"shard_07\.safetensors is not in"),
        (flip_a_bit_of_the_graph, r"model\.onnx was modified"),
        (lambda f: (f / "config.json").write_text("{}"), r"config\.json is truncated"),
        (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
        (lambda f: (f / "model.onnx").unlink(), r"model\.onnx is missing"),
        (name_it("../shard_00.safetensors"), "which is not of the form"),
        (name_it("sub/shard_00.safetensors"), "which is not of the form"),
        (name_it("..\\shard_00.safetensors"), "which is not of the form"),
        (name_it("/etc/passwd"), "which is not of the form"),
        (name_it("C:\\shard_00.safetensors"), "which is not of the form"),
        (name_it("shard_00.safetensors\n"), "which is not of the form"),
        (name_it("shard_٣.safetensors"), "which is not of the form"),
        (name_it("weights.safetensors"), "which is not of the form"),
        (name_it(""), "which is not of the form"),
        (name_it("shard_01.safetensors"), "each file and each tensor once"),
        (name_it(7), r"shards\.0\.file"),
        (set_fields(format_version=1), "format_version 1"),
        (set_fields(format_version="2"), "is not a shard manifest: format_version"),
        (set_fields(shards={}), "is not a shard manifest: shards"),
        (set_fields(surprise=1), "is not a shard manifest: surprise"),
        (set_fields(kind="pickle"), "is not a shard manifest: kind"),
        (set_fields(files=[]), "must name the graph"),
        (name_other("../model.onnx"), "is not allowed in a model folder"),
        (name_other(".hidden"), "is not allowed in a model folder"),
        (name_other("shard_manifest.json"), "is not allowed in a model folder"),
        (name_other("shard_00.safetensors"), "is not allowed in a model folder"),
        (set_fields(tied={"a": "b"}), "`tied` must map tensors"),
        (lambda f: rewrite(f, lambda m: m["shards"].reverse()), "not in their declared order"),
        (
            lambda f: rewrite(f, lambda m: m["shards"][0]["tensors"][0].update(bytes=1 << 40)),
            "after the file",
        ),
        (lambda f: rewrite(f, lambda m: m["shards"][0].update(tensors=[])), r"shards\.0\.tensors"),
        (set_fields(total_bytes=1), "not the sum"),
        (lambda f: rewrite(f, lambda m: m["shards"].pop()), "not the sum"),
        (lambda f: rewrite(f, lambda m: m["shards"][0].update(bytes=-1)), r"shards\.0\.bytes"),
        (lambda f: rewrite(f, lambda m: m["shards"][0].pop("sha256")), r"shards\.0\.sha256"),
        (lambda f: (f / sharding.MANIFEST).write_text("{"), "line 1: not valid JSON"),
        (lambda f: (f / sharding.MANIFEST).write_text("[]"), "is not a shard manifest"),
        (
            lambda f: (f / sharding.MANIFEST).write_bytes(b"\xff\xfe"),
            "is not valid JSON: byte 0 is not UTF-8",
        ),
        (lambda f: (f / sharding.MANIFEST).write_text("[" * 100_000), "has more than 64 levels"),
        (lambda f: ((f / sharding.MANIFEST).unlink(), (f / sharding.MANIFEST).mkdir()), "not a regular file"),
    ],
)
def test_a_folder_that_is_not_intact_is_refused_and_never_opened(sharded, damage, message):
    sharding.verify(sharded)
    damage(sharded)
    with pytest.raises(ShardError, match=message) as told:
        sharding.verify(sharded)
    assert "again" in str(told.value) or "remove it" in str(told.value)  # it says what to do
    if (sharded / "model.onnx").exists():
        with pytest.raises(ShardError, match=message):
            open_engine(sharded, 1)


def test_every_single_flipped_byte_of_a_shard_is_found(sharded):
    record = manifest(sharded)["shards"][-1]
    raw = (sharded / record["file"]).read_bytes()
    for position in range(0, len(raw), max(1, len(raw) // 50)):
        damaged = bytearray(raw)
        damaged[position] ^= 0x80
        (sharded / record["file"]).write_bytes(damaged)
        with pytest.raises(ShardError, match=record["file"]):
            sharding.verify(sharded)
    (sharded / record["file"]).write_bytes(raw)
    sharding.verify(sharded)


def test_all_that_is_damaged_is_told_at_once(sharded):
    flip_a_bit(sharded)
    flip_a_bit_of_the_graph(sharded)
    (sharded / "shard_02.safetensors").unlink()
    with pytest.raises(ShardError) as told:
        sharding.verify(sharded)
    assert [line.split()[0].rpartition("/")[2] for line in str(told.value).splitlines()] == [
        *("shard_00.safetensors", "shard_02.safetensors", "model.onnx"),
    ]


def test_a_failed_run_leaves_no_manifest(exported, context, monkeypatch):
    monkeypatch.setattr(shard.files, "file_sha256", lambda path: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        shard.run({"model": exported}, ShardConfig(), context)
    assert not (context.out_dir / sharding.MANIFEST).exists()
