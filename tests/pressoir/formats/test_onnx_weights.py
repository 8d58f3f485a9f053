"""Sharding moves a graph's bytes, wherever they lie, and never looks at what they mean."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open

from pressoir.errors import ShardError
from pressoir.formats import onnx_weights, packed_streams, packing
from pressoir.formats.sharding import verify
from pressoir.formats.unsharding import unshard
from pressoir.recipe.sections import ShardConfig
from pressoir.stage import StageContext
from pressoir.stages import shard

ROWS, BLOCKS, BLOCK = 6, 2, 32
STREAM = ROWS * BLOCKS * BLOCK * 3 // 8  # bytes of 3-bit codes


def external(name, dims, kind, offset, length, location="model.onnx.data"):
    tensor = TensorProto(name=name, dims=dims, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return tensor


def write_graph(folder, initializers, nodes, inputs=("x",), metadata=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, dict(metadata))
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def source(tmp_path):
    """x·W, then W once more as `tied`, a bias inline, and a 3-bit stream that nothing computes with."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 8)).astype(np.float32)
    codes = rng.integers(0, 8, (ROWS, BLOCKS * BLOCK), dtype=np.uint8)
    data = bytes(100) + weight.tobytes() + packing.pack(codes, 3).tobytes()
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("MatMul", ["b", "tied"], ["c"]),
        helper.make_node("Mul", ["c", "small"], ["y"]),
        helper.make_node("Identity", ["stream"], ["unused"]),
    ]
    initializers = [
        external("stream", [ROWS, BLOCKS, BLOCK // 2], TensorProto.UINT8, 100 + 256, STREAM),
        external("tied", [8, 8], TensorProto.FLOAT, 100, 256),
        external("weight", [8, 8], TensorProto.FLOAT, 100, 256),
        numpy_helper.from_array(rng.normal(size=(2, 8)).astype(np.float32), "bias"),
        external("small", [1], TensorProto.FLOAT, 104, 4),
    ]
    folder = write_graph(
        tmp_path / "source", initializers, nodes, metadata={packed_streams.KEY: json.dumps(["stream"])}
    )
    (folder / "model.onnx.data").write_bytes(data)
    return folder


@pytest.fixture
def cut(tmp_path, reporter):
    def cut(source, name="cut", **config):
        (tmp_path / name).mkdir()
        context = StageContext(tmp_path / name, tmp_path, reporter, seed=0, threads=1)
        shard.run({"model": source}, ShardConfig(**config), context)
        return context.out_dir

    return cut


def places(folder):
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
    }


def computed(folder):
    """What the graph computes: the part of it that ONNX Runtime can open."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    del model.graph.node[-1]
    model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == "stream"))
    (folder / "part.onnx").write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(folder / "part.onnx", providers=["CPUExecutionProvider"])
    (folder / "part.onnx").unlink()
    return session.run(["y"], {"x": np.arange(8, dtype=np.float32)[None]})[0]


def codes(folder):
    (value,) = packed_streams.expand(folder / "model.onnx").values()
    return value.numpy()


def test_external_inline_tied_and_packed_bytes_all_go_and_nothing_changes(source, cut):
    folder = cut(source, shards=2)
    assert computed(folder).tobytes() == computed(source).tobytes()
    assert np.array_equal(codes(folder), codes(source))
    assert not (folder / "model.onnx.data").exists()
    assert (folder / "model.onnx").stat().st_size < (source / "model.onnx").stat().st_size + 400


def test_a_tensor_stands_where_it_is_first_used(source, cut):
    names = [t.name for record in verify(cut(source, shards=3)).shards for t in record.tensors]
    assert names == ["weight", "bias", "stream"]


def test_two_initializers_of_the_same_bytes_stay_one_tensor(source, cut):
    found = places(cut(source, shards=3))
    assert found["tied"] == found["weight"]
    assert found["weight"]["length"] == "256"


def test_a_stream_whose_length_is_not_its_dimensions_is_a_row_of_bytes(source, cut):
    folder = cut(source, shards=3)
    (tensor,) = (t for record in verify(folder).shards for t in record.tensors if t.name == "stream")
    assert (tensor.dtype, tensor.shape, tensor.bytes) == ("U8", [STREAM], STREAM)
    with safe_open(folder / places(folder)["stream"]["location"], "np") as file:
        assert file.get_tensor("stream").tobytes() == (source / "model.onnx.data").read_bytes()[356:]


def test_what_must_stay_in_the_graph_is_read_into_it(source, cut):
    assert places(cut(source))["small"] == {}


def test_unsharding_gives_one_file_of_data_with_the_same_bytes(source, cut, tmp_path, reporter):
    (tmp_path / "whole").mkdir()
    unshard(cut(source, shards=3), tmp_path / "whole", reporter)
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        *("model.onnx", "model.onnx.data", "config.json", "unsharded.json"),
    }
    found = places(tmp_path / "whole")
    assert found["tied"] == found["weight"]
    assert all(int(place["offset"]) % 64 == 0 for place in found.values() if place)
    assert computed(tmp_path / "whole").tobytes() == computed(source).tobytes()
    assert np.array_equal(codes(tmp_path / "whole"), codes(source))


def test_unsharding_a_small_plain_graph_puts_its_weights_inside(tmp_path, cut, reporter):
    value = numpy_helper.from_array(np.arange(64, dtype=np.float32).reshape(8, 8), "weight")
    source = write_graph(tmp_path / "plain", [value], [helper.make_node("MatMul", ["x", "weight"], ["y"])])
    (tmp_path / "whole").mkdir()
    unshard(cut(source), tmp_path / "whole", reporter)
    assert (tmp_path / "whole" / "model.onnx").read_bytes() == (source / "model.onnx").read_bytes()


def test_half_byte_types_are_moved_as_bytes(tmp_path, cut):
    source = write_graph(
        tmp_path / "half",
        [external("nibbles", [5, 7], TensorProto.UINT4, 3, 18)],
        [helper.make_node("Identity", ["nibbles"], ["unused"]), helper.make_node("Identity", ["x"], ["y"])],
    )
    (source / "model.onnx.data").write_bytes(bytes(range(21)))
    folder = cut(source)
    (record,) = verify(folder).shards
    assert (record.tensors[0].dtype, record.tensors[0].shape) == ("U8", [18])
    place = places(folder)["nibbles"]
    raw = (folder / place["location"]).read_bytes()
    assert raw[int(place["offset"]) :] == bytes(range(3, 21))


def test_a_constant_of_a_branch_that_lies_outside_comes_into_the_graph(tmp_path, cut):
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["r"])],
        "branch",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
        [external("inner", [2, 8], TensorProto.FLOAT, 0, 64)],
    )
    source = write_graph(
        tmp_path / "branched",
        [
            numpy_helper.from_array(np.array(True), "always"),
            numpy_helper.from_array(np.ones((8, 8), np.float32), "weight"),
        ],
        [
            helper.make_node("If", ["always"], ["i"], then_branch=branch, else_branch=branch),
            helper.make_node("MatMul", ["i", "weight"], ["y"]),
        ],
    )
    (source / "model.onnx.data").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    session = onnxruntime.InferenceSession(cut(source) / "model.onnx", providers=["CPUExecutionProvider"])
    result = session.run(["y"], {"x": np.zeros((1, 8), np.float32)})[0]
    assert result.tolist() == (np.arange(16.0).reshape(2, 8) @ np.ones((8, 8))).tolist()


@pytest.mark.parametrize(
    ("location", "offset", "message"),
    [
        ("../model.onnx.data", 0, r"refers to a file outside its folder: '../model\.onnx\.data'"),
        ("missing.data", 0, "which is not a file of the folder"),
        ("folder.data", 0, "which is not a file of the folder"),
        ("", 0, "refers to a file outside its folder"),
        ("f" * 300, 0, "longer than 255 bytes"),
        ("model.onnx.data", 10**6, "tensor 'weight' ends at 1000256"),
        ("model.onnx.data", -8, "offset is '-8', not a whole number of bytes"),
        ("model.onnx.data", "1.0", r"offset is '1\.0', not a whole number of bytes"),
        ("model.onnx.data", "9" * 5000, "not a whole number of bytes"),
    ],
)
def test_bytes_that_are_not_there_or_not_its_own_are_refused(tmp_path, cut, location, offset, message):
    tensor = external("weight", [8, 8], TensorProto.FLOAT, offset, 256, location)
    source = write_graph(tmp_path / "bad", [tensor], [helper.make_node("MatMul", ["x", "weight"], ["y"])])
    (source / "model.onnx.data").write_bytes(bytes(256))
    (tmp_path / "model.onnx.data").write_bytes(bytes(256))
    (source / "folder.data").mkdir()
    with pytest.raises(ShardError, match=message):
        cut(source)
    with pytest.raises(ShardError, match=message):
        onnx_weights.check_places(onnx_weights.load(source / "model.onnx"), source)


@pytest.mark.parametrize("content", [b"", b"no graph at all"])
def test_a_file_that_is_no_graph_is_told(source, cut, content):
    (source / "model.onnx").write_bytes(content)
    with pytest.raises(ShardError, match=r"model\.onnx is an? .*graph|model\.onnx is not an ONNX graph"):
        cut(source)


@pytest.mark.parametrize("text", [b"weight", b"model.onnx.data", b"100", b"MatMul"])
def test_a_text_of_a_graph_that_is_not_utf8_is_refused(source, text):
    """protobuf reads it, and gives bytes where a text is due."""
    path = source / "model.onnx"
    path.write_bytes(path.read_bytes().replace(text, b"\xff" + text[1:]))
    with pytest.raises(ShardError, match=r"model\.onnx: b'\\xff.*' is not UTF-8 text; export"):
        onnx_weights.load(path)


def test_a_damaged_stream_is_not_opened(source, cut, tmp_path):
    folder = shutil.copytree(cut(source, shards=3), tmp_path / "copy")
    file = folder / places(folder)["stream"]["location"]
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ShardError, match=file.name):
        verify(folder)
