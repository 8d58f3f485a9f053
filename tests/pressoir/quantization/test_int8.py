"""The int8 grids: what rows and activations become, bit for bit, and what is refused."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from pressoir.errors import SourceError
from pressoir.inference.engines.classifier import OnnxEngine
from pressoir.models import loading
from pressoir.models.simulated_int8 import dynamic_quantize
from pressoir.quantization.int8 import quantize_rows, word_table


@pytest.mark.parametrize("seed", range(6))
def test_rows_survive_the_round_trip_within_half_a_step_whatever_their_sizes(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.randint(-12, 12, (17, 1), generator=generator)
    weight = torch.randn(17, 33, generator=generator) * sizes
    weight[3] = 0
    weight[5] = 1e-42  # below the smallest normal number: a scale would underflow
    codes, scales = quantize_rows(weight)
    assert codes.dtype == torch.int8
    assert codes.abs().max() <= 127
    assert torch.isfinite(scales).all()
    assert (scales > 0).all()
    kept = [row for row in range(17) if row not in (3, 5)]
    error = (weight - codes.float() * scales[:, None]).abs()
    assert (error[kept] <= scales[kept, None] * 0.5001).all()
    assert not codes[[3, 5]].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_name(value):
    weight = torch.ones(2, 2)
    weight[1, 1] = value
    with pytest.raises(SourceError, match=r"encoder\.dense\.weight has NaN or infinite"):
        quantize_rows(weight, "encoder.dense")


@pytest.mark.parametrize("kind", ["both signs", "positive", "negative", "zeros", "halves", "tiny"])
def test_activations_are_quantised_bit_for_bit_as_onnx_does(kind, tmp_path):
    x = np.random.default_rng(0).normal(size=(1, 7, 40)).astype(np.float32)
    x = {
        "both signs": x,
        "positive": np.abs(x) + 3,
        "negative": -np.abs(x) - 3,
        "zeros": np.zeros_like(x),
        "halves": (np.arange(280, dtype=np.float32).reshape(1, 7, 40) % 511 - 255) / 2,
        "tiny": x * np.float32(1e-20),
    }[kind]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["logits"]),
    ]
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 7, 40]) for n in ("x", "logits")]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    expected = OnnxEngine(tmp_path / "m.onnx", threads=1).run({"x": x})
    assert np.array_equal(dynamic_quantize(torch.from_numpy(x)).numpy(), expected)


def test_the_word_pieces_table_is_found_by_its_use(tiny_classifier):
    assert word_table(loading.load_classifier(tiny_classifier)) == "bert.embeddings.word_embeddings"
