"""Decoders: one behaviour in two runtimes, caches included; 3-bit streams are expanded code for code."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pressoir.errors import ShardError, SourceError
from pressoir.formats import packing
from pressoir.formats.packed_streams import KEY, expand
from pressoir.inference.engines.decoder import OnnxDecoder, TorchDecoder, open_decoder
from pressoir.inference.engines.session import make_session
from pressoir.models.loading import load_causal_lm

RUNTIMES = ("pytorch", "onnxruntime")
IDS = np.random.default_rng(0).integers(3, 320, size=(3, 24))


@pytest.fixture(params=RUNTIMES)
def decoder(request, lm_and_graph):
    """Each tiny causal LM in each runtime."""
    return open_decoder(lm_and_graph[RUNTIMES.index(request.param)], threads=1)


def test_logits_are_those_of_transformers(decoder, lm_and_graph):
    with torch.inference_mode():
        expected = load_causal_lm(lm_and_graph[0])(torch.from_numpy(IDS), use_cache=False).logits.numpy()
    logits, _ = decoder.forward(IDS)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    last, _ = decoder.forward(IDS, last_only=True)
    np.testing.assert_allclose(last, expected[:, -1:], atol=1e-4)
    assert logits.shape == (*IDS.shape, decoder.vocabulary)


@pytest.mark.parametrize("sizes", [(10, 14), (23, 1), (20, 1, 1, 1, 1), (1,) * 24])
def test_tokens_given_piece_by_piece_get_the_same_logits(decoder, sizes):
    whole, _ = decoder.forward(IDS)
    cache, pieces, start = None, [], 0
    for size in sizes:
        logits, cache = decoder.forward(IDS[:, start : start + size], cache)
        pieces.append(logits)
        start += size
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-4)


def test_a_cache_may_be_gone_on_from_several_times(decoder):
    _, cache = decoder.forward(IDS[:, :10])
    first, longer = decoder.forward(IDS[:, 10:12], cache)
    decoder.forward(IDS[:, 12:20], cache)
    again, _ = decoder.forward(IDS[:, 10:12], cache)
    np.testing.assert_array_equal(again, first)
    after, _ = decoder.forward(IDS[:, 12:], longer)
    np.testing.assert_allclose(after, decoder.forward(IDS)[0][:, 12:], atol=1e-4)


def test_a_row_does_not_depend_on_its_batch(decoder):
    together, _ = decoder.forward(IDS)
    for row, ids in enumerate(IDS):
        np.testing.assert_allclose(decoder.forward(ids[None])[0][0], together[row], atol=1e-4)


def test_the_runtime_follows_from_what_the_folder_holds(tiny_llama, tiny_graphs):
    assert open_decoder(tiny_llama, threads=1).runtime == "pytorch"
    assert open_decoder(tiny_graphs["tiny_llama"], threads=1).runtime == "onnxruntime"
    with pytest.raises(SourceError, match=r"has no model\.onnx; export the model first"):
        open_decoder(tiny_llama, threads=1, runtime="onnxruntime")
    with pytest.raises(SourceError, match=str(tiny_graphs["tiny_llama"])):
        open_decoder(tiny_graphs["tiny_llama"], threads=1, runtime="pytorch")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("generation", "expected"), [(None, {1}), ({"eos_token_id": [4, 5]}, {4, 5}), ({"eos_token_id": 7}, {7})]
)
def test_end_tokens_are_the_generation_configurations_before_the_models(
    tiny_llama, tiny_graphs, tmp_path, runtime, generation, expected
):
    source = tiny_llama if runtime == "pytorch" else tiny_graphs["tiny_llama"]
    folder = shutil.copytree(source, tmp_path / "model")
    path = folder / "generation_config.json"
    path.unlink(missing_ok=True)
    if generation is not None:
        path.write_text(json.dumps(generation), encoding="utf-8")
    decoder = open_decoder(folder, threads=1)
    assert (decoder.eos_ids, decoder.context, decoder.vocabulary) == (frozenset(expected), 256, 320)


def test_keys_and_values_are_never_copied(tiny_graphs):
    decoder = OnnxDecoder(tiny_graphs["tiny_llama"], threads=1)
    _, cache = decoder.forward(IDS)
    assert not any(values.flags.owndata for values in cache.values.values())


def test_pytorch_keeps_only_the_last_logits_when_told_so(tiny_llama):
    decoder, shapes = TorchDecoder(load_causal_lm(tiny_llama)), []
    decoder.model.lm_head.register_forward_hook(lambda module, given, output: shapes.append(output.shape))
    decoder.forward(IDS, last_only=True)
    assert shapes == [(3, 1, 320)]


def test_an_altered_shard_is_not_opened(tiny_graphs, tmp_path):
    from pressoir.recipe.sections import ShardConfig
    from pressoir.reporting import LogReporter
    from pressoir.stage import StageContext
    from pressoir.stages import shard

    context = StageContext(tmp_path, tmp_path, LogReporter(), seed=0, threads=1)
    shard.run({"model": tiny_graphs["tiny_llama"]}, ShardConfig(shards=2), context)
    whole, _ = open_decoder(tiny_graphs["tiny_llama"], threads=1).forward(IDS)
    np.testing.assert_array_equal(open_decoder(tmp_path, threads=1).forward(IDS)[0], whole)
    victim = sorted(tmp_path.glob("shard_*.safetensors"))[-1]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ShardError, match=victim.name):
        open_decoder(tmp_path, threads=1)


def test_a_graph_that_is_no_decoder_is_refused(tiny_llama, tmp_path):
    shutil.copyfile(tiny_llama / "config.json", tmp_path / "config.json")
    given = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])]
    logits = [helper.make_tensor_value_info("logits", TensorProto.INT64, ["batch", "seq"])]
    node = helper.make_node("Identity", ["input_ids"], ["logits"])
    onnx.save(_model([node], given, logits, []), tmp_path / "model.onnx")
    with pytest.raises(
        SourceError, match=r"not a decoder with a cache: it has the inputs input_ids and the outputs logits"
    ):
        open_decoder(tmp_path, threads=1)


def test_a_damaged_graph_is_refused(tiny_graphs, tmp_path):
    shutil.copytree(tiny_graphs["tiny_llama"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(SourceError, match=r"model\.onnx cannot be opened .*export the model again"):
        open_decoder(tmp_path, threads=1)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(SourceError, match=r"model\.onnx cannot be read .*export the model again"):
        open_decoder(tmp_path, threads=1)


@pytest.mark.process
def test_generating_from_a_graph_imports_no_torch(tiny_graphs):
    script = (
        "import sys; from pathlib import Path;"
        "from pressoir.inference.text_generation import TextGenerator;"
        f"model = TextGenerator.open(Path({str(tiny_graphs['tiny_llama'])!r}), threads=1);"
        "assert ''.join(model.generate('the film was', max_new_tokens=8));"
        "assert model.perplexity('the film was good ' * 20, window=16).value > 1;"
        "assert not {'torch', 'transformers', 'onnx', 'prefect', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# 3-bit streams

ROWS, COLUMNS, BLOCK = 24, 96, 32


def _model(nodes, given, gives, initializers):
    graph = helper.make_graph(nodes, "graph", given, gives, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.fixture
def codes():
    """3-bit codes (rows, columns)."""
    return np.random.default_rng(1).integers(0, 8, size=(ROWS, COLUMNS)).astype(np.uint8)


@pytest.fixture
def product(codes, tmp_path):
    """Graph of one MatMulNBits whose weights are a 3-bit stream, past some other bytes of its data file."""
    rng = np.random.default_rng(2)
    blocks = COLUMNS // BLOCK
    scales = rng.normal(size=(ROWS, blocks)).astype(np.float32)
    zero_points = packing.pack(rng.integers(0, 8, size=(ROWS, blocks)).astype(np.uint8), 4)
    stream = packing.pack(codes, 3).tobytes()
    (tmp_path / "weights.data").write_bytes(b"\xff" * 100 + stream + b"\xff" * 50)
    weights = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[ROWS, blocks, BLOCK // 2])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.data"), ("offset", "100"), ("length", str(len(stream)))):
        weights.external_data.add(key=key, value=value)
    settings = {"K": COLUMNS, "N": ROWS, "bits": 4, "block_size": BLOCK, "accuracy_level": 0}
    node = helper.make_node("MatMulNBits", ["x", "w", "s", "z"], ["y"], domain="com.microsoft", **settings)
    model = _model(
        [node],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", ROWS])],
        [weights, numpy_helper.from_array(scales, "s"), numpy_helper.from_array(zero_points, "z")],
    )
    model.metadata_props.add(key=KEY, value=json.dumps(["w"]))
    onnx.save(model, tmp_path / "model.onnx")
    zeros = packing.unpack(zero_points, 4, blocks).astype(np.float32)
    weight = (codes.reshape(ROWS, blocks, BLOCK) - zeros[..., None]) * scales[..., None]
    return tmp_path / "model.onnx", weight.reshape(ROWS, COLUMNS)


def test_a_3_bit_stream_becomes_the_same_codes_in_4_bits(product, codes):
    graph, _ = product
    [(name, value)] = expand(graph).items()
    expanded = value.numpy()
    assert (name, expanded.shape) == ("w", (ROWS, COLUMNS // BLOCK, BLOCK // 2))
    np.testing.assert_array_equal(packing.unpack(expanded.reshape(ROWS, -1), 4, COLUMNS), codes)


def test_a_session_multiplies_by_the_expanded_weights(product):
    graph, weight = product
    weights = expand(graph)
    x = np.random.default_rng(3).normal(size=(5, COLUMNS)).astype(np.float32)
    [y] = make_session(graph, 1, weights).run(["y"], {"x": x})
    np.testing.assert_allclose(y, x @ weight.T, atol=1e-4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda file, tensor: file.write_bytes(file.read_bytes()[:300]),
            r"weights\.data has 300 bytes, but the graph's tensor 'w' ends at 964",
        ),
        (lambda file, tensor: file.unlink(), r"'weights\.data', which is not a file of the folder"),
        (lambda file, tensor: _place(tensor, "length", "860"), r"need 864 bytes, but 860 are declared"),
        (
            lambda file, tensor: _place(tensor, "location", "../weights.data"),
            "'w' refers to a file outside its folder: '../weights.data'",
        ),
        (
            lambda file, tensor: _place(tensor, "offset", "1.0"),
            r"offset is '1\.0', not a whole number of bytes",
        ),
        (lambda file, tensor: (file.unlink(), file.mkdir()), r"'weights\.data', which is not a file"),
        (lambda file, tensor: tensor.ClearField("dims"), "'w' .* has no 3-bit weights in a data file"),
        (lambda file, tensor: setattr(tensor, "name", "other"), "names 'w', which is not in the graph"),
    ],
)
def test_a_damaged_stream_is_refused(product, damage, message):
    graph, _ = product
    model = onnx.load(graph, load_external_data=False)
    damage(graph.parent / "weights.data", model.graph.initializer[0])
    onnx.save(model, graph)
    with pytest.raises(SourceError, match=message):
        expand(graph)


def _place(tensor, key, value):
    next(entry for entry in tensor.external_data if entry.key == key).value = value


def test_a_graph_without_streams_is_not_parsed(tiny_graphs, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert expand(tiny_graphs["tiny_llama"] / "model.onnx") == {}
