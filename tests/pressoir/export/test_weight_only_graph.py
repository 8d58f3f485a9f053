"""Packed codes in the graph: the checkpoint's own, bit for bit, and nothing large in the protobuf."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

from pressoir.errors import ParityError
from pressoir.export import decoder_trace, weight_only_graph
from pressoir.export.causal_lm import _fill, _ModelWeights
from pressoir.formats.packed_checkpoint import open_packed
from pressoir.models import loading
from pressoir.models.skeleton import build
from pressoir.recipe.sections import QuantizeConfig
from pressoir.reporting import Silent
from pressoir.stage import StageContext
from pressoir.stages import quantize

LEVELS = ("q8", "q4", "q3", "q2")
BITS = {"q8": 8, "q4": 4, "q3": 3, "q2": 2}
PARTS = ("weight", "weight_scale", "weight_zero_point")


def pack(model, folder, **config):
    for name in ("out", "work"):
        (folder / name).mkdir(parents=True)
    context = StageContext(folder / "out", folder / "work", Silent(), seed=0, threads=1)
    block_size = 64 if config["scheme"] == "q2" else None  # the tiny models have rows of 64
    config = QuantizeConfig(**{"algorithm": "rtn", "block_size": block_size, **config})
    quantize.run({"model": model}, config, context)
    return context.out_dir


class Lowered:
    """A packed folder, and the graph made of it."""

    def __init__(self, packed, folder):
        folder.mkdir()
        self.packed, self.folder = packed, folder
        self.checkpoint = open_packed(packed)
        model = _fill(build(packed), self.checkpoint)
        self.trace = decoder_trace.trace(model, 17, folder)
        self.weights = _ModelWeights(model, self.checkpoint)
        self.graph = weight_only_graph.lower(self.trace, self.weights, folder, accuracy_level=4)
        onnx.save(self.graph, folder / "model.onnx")
        self.initializers = {tensor.name: tensor for tensor in self.graph.graph.initializer}

    def raw(self, name):
        """An initializer's bytes, and its declared dimensions."""
        tensor = self.initializers[name]
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            return numpy_helper.to_array(tensor).tobytes(), list(tensor.dims)
        start = int(place["offset"])
        content = (self.folder / place["location"]).read_bytes()[start : start + int(place["length"])]
        return content, list(tensor.dims)

    def place(self, name):
        return {entry.key: entry.value for entry in self.initializers[name].external_data}

    def nodes(self, operator):
        return [node for node in self.graph.graph.node if node.op_type == operator]


@pytest.fixture(scope="module")
def lowered(tmp_path_factory, request):
    """Lowered models by fixture name and level, each made once."""
    made = {}

    def make(name, level):
        if (name, level) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{level}")
            packed = pack(request.getfixturevalue(name), folder, scheme=level)
            made[name, level] = Lowered(packed, folder / "graph")
        return made[name, level]

    return make


def unpack(content, bits, count):
    """`count` codes a row of a bit stream, lowest bit first; written for this test alone."""
    rows = np.frombuffer(content, np.uint8)
    per_row = -(-count * bits // 8)
    stream = np.unpackbits(rows.reshape(-1, per_row), axis=1, bitorder="little")[:, : count * bits]
    return stream.reshape(len(stream), count, bits) @ (1 << np.arange(bits))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_qwen2"])
def test_codes_scales_and_zero_points_are_the_checkpoints_bit_for_bit(lowered, name, level):
    made = lowered(name, level)
    stored = load_file(made.packed / "model.safetensors")
    checked = Counter()
    for layer, info in made.checkpoint.layers.items():
        if info.tied_to:
            continue
        codes, scales, zero_points = (made.raw(f"{layer}.{part}") for part in PARTS)
        assert codes[0] == stored[f"{layer}.weight"].tobytes()
        assert scales[0] == stored[f"{layer}.weight_scale"].tobytes()
        blocks = info.shape[1] // info.block_size
        graph_bits = 4 if info.bits == 3 else info.bits
        np.testing.assert_array_equal(
            unpack(zero_points[0], graph_bits, blocks),
            unpack(stored[f"{layer}.weight_zero_point"].tobytes(), info.bits, blocks),
        )
        checked[info.bits] += 1
    assert checked[BITS[level]] >= 8
    assert weight_only_graph.verify(made.graph, made.folder, made.weights, made.trace.layers) == len(
        made.checkpoint.layers
    )


@pytest.mark.parametrize("level", LEVELS)
def test_every_quantised_matrix_is_a_matmulnbits_of_its_own_shape(lowered, level):
    made = lowered("tiny_llama", level)
    nodes = {node.input[1].removesuffix(".weight"): node for node in made.nodes("MatMulNBits")}
    matrices = {name: info for name, info in made.checkpoint.layers.items() if info.role != "embedding"}
    assert nodes.keys() == matrices.keys()
    for name, info in matrices.items():
        settings = {a.name: a.i for a in nodes[name].attribute}
        assert settings == {
            "N": info.shape[0],
            "K": info.shape[1],
            "bits": 4 if info.bits == 3 else info.bits,
            "block_size": info.block_size,
            "accuracy_level": 4,
        }
    assert len(made.nodes("GatherBlockQuantized")) == 1
    assert not [node for node in made.nodes("MatMul") if made.initializers.get(node.input[1])]


def test_three_bits_lie_in_the_file_and_four_are_declared(lowered):
    made = lowered("tiny_llama", "q3")
    named = weight_only_graph.packed3(made.graph)
    assert named == [f"{n}.weight" for n, i in made.checkpoint.layers.items() if i.bits == 3]
    assert len(named) == 14
    for name in named:
        content, dims = made.raw(name)
        assert len(content) * 8 == 3 * np.prod(dims) * 2
    entry = next(entry for entry in made.graph.metadata_props if entry.key == "pressoir.packed3")
    assert json.loads(entry.value) == named


def test_other_levels_have_no_streams(lowered):
    assert weight_only_graph.packed3(lowered("tiny_llama", "q4").graph) == []


@pytest.mark.parametrize(("name", "biases"), [("tiny_qwen2", 6), ("tiny_gpt2", 8), ("tiny_llama", 0)])
def test_a_bias_is_an_input_of_its_product(lowered, name, biases):
    made = lowered(name, "q4")
    with_bias = [node for node in made.nodes("MatMulNBits") if len(node.input) == 6]
    assert len(with_bias) == biases
    for node in with_bias:
        assert list(made.initializers[node.input[5]].dims) == [
            next(a.i for a in node.attribute if a.name == "N")
        ]


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_qwen2"])
def test_a_tied_head_is_the_embeddings_own_bytes(lowered, name):
    made = lowered(name, "q4")
    head, embedding = next((n, i.tied_to) for n, i in made.checkpoint.layers.items() if i.tied_to)
    assert made.place(f"{head}.weight") == made.place(f"{embedding}.weight")
    assert made.initializers[f"{head}.weight"].dims != made.initializers[f"{embedding}.weight"].dims
    unique = {tuple(sorted(made.place(n).items())) for n in made.initializers if made.place(n)}
    bytes_named = sum(int(dict(place)["length"]) for place in unique)
    size = (made.folder / "model.onnx.data").stat().st_size
    assert bytes_named <= size < bytes_named + 64 * len(unique)


def test_nothing_large_is_in_the_protobuf(lowered):
    made = lowered("tiny_gpt2", "q8")
    for tensor in made.graph.graph.initializer:
        assert tensor.ByteSize() < 1500
    for node in made.nodes("Constant"):
        assert node.attribute[0].t.ByteSize() < 1500


def test_two_equal_layers_stay_two(tiny_llama, tmp_path):
    model = loading.load_causal_lm(tiny_llama)
    first, second = model.model.layers
    second.load_state_dict(first.state_dict())
    loading.save_model(model, tmp_path / "twins")
    loading.save_tokenizer(loading.load_tokenizer(tiny_llama), tmp_path / "twins")
    made = Lowered(pack(tmp_path / "twins", tmp_path, scheme="q4"), tmp_path / "graph")
    one, two = (f"model.layers.{index}.mlp.up_proj.weight" for index in range(2))
    assert made.raw(one)[0] == made.raw(two)[0]
    assert made.place(one)["offset"] != made.place(two)["offset"]
    assert len(made.nodes("MatMulNBits")) == 15


def test_excluded_layers_stay_float(tiny_llama, tmp_path):
    exclude = ("model.layers.0.mlp",)
    made = Lowered(pack(tiny_llama, tmp_path, scheme="q4", exclude=exclude), tmp_path / "graph")
    floats = {node.input[1] for node in made.nodes("MatMul")} & made.initializers.keys()
    assert floats == {f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    original = load_file(tiny_llama / "model.safetensors")
    for name in floats:  # (in, out) here, (out, in) there
        content, dims = made.raw(name)
        np.testing.assert_array_equal(
            np.frombuffer(content, np.float32).reshape(dims), original[name].T.astype(np.float32)
        )


@pytest.mark.parametrize("part", PARTS)
def test_a_tampered_graph_is_refused_and_its_layer_named(lowered, tmp_path, part):
    made = lowered("tiny_llama", "q4")
    layer = "model.layers.1.mlp.down_proj"
    content = bytearray((made.folder / "model.onnx.data").read_bytes())
    content[int(made.place(f"{layer}.{part}")["offset"])] ^= 1
    (tmp_path / "model.onnx.data").write_bytes(content)
    what = {"weight": "codes", "weight_scale": "scales", "weight_zero_point": "zero points"}[part]
    with pytest.raises(ParityError, match=rf"the {what} of layer {layer} differ from the checkpoint"):
        weight_only_graph.verify(made.graph, tmp_path, made.weights, made.trace.layers)


def test_a_layer_that_the_graph_lacks_is_named(lowered):
    made = lowered("tiny_llama", "q4")
    with pytest.raises(ParityError, match="no quantised layer"):
        weight_only_graph.read_layer(made.graph, made.folder, "model.layers.7")


def test_the_accuracy_level_is_set_on_every_product(lowered):
    made = lowered("tiny_llama", "q2")
    graph = onnx.ModelProto.FromString(made.graph.SerializeToString())
    weight_only_graph.set_accuracy_level(graph, 0)
    levels = [a.i for n in graph.graph.node for a in n.attribute if a.name == "accuracy_level"]
    assert levels == [0] * 15


def test_sizes_tell_what_lies_on_disk_and_what_its_expansion_takes(lowered):
    three, four = lowered("tiny_qwen2", "q3"), lowered("tiny_qwen2", "q4")
    sizes, other = weight_only_graph.sizes(three.graph), weight_only_graph.sizes(four.graph)
    codes = sum(np.prod(i.shape) for i in three.checkpoint.layers.values() if i.role == "matmul")
    assert sizes["memory_bytes"] - sizes["disk_bytes"] == codes // 8  # one bit of each code
    assert other["memory_bytes"] == other["disk_bytes"] == sizes["memory_bytes"]
    data = (four.folder / "model.onnx.data").stat().st_size
    inline = sum(
        len(numpy_helper.to_array(t).tobytes()) for t in four.graph.graph.initializer if not t.external_data
    )
    assert abs(other["disk_bytes"] - data - inline) < 64 * len(four.initializers)
