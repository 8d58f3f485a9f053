"""Codes of a few bits become a bit stream and come back; 2, 4 and 8 bits as ONNX Runtime reads them."""

import numpy as np
import pytest

from pressoir.errors import QuantizationError
from pressoir.formats import packing

BITS = (2, 3, 4, 8)


def random_codes(shape, bits, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, shape, dtype=np.uint8)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [0, 1, 3, 5, 7, 8, 9, 11, 64, 129])
def test_packed_codes_come_back(bits, count):
    codes = random_codes((3, 2, count), bits)
    packed = packing.pack(codes, bits)
    assert packed.shape == (3, 2, -(-count * bits // 8))
    assert np.array_equal(packing.unpack(packed, bits, count), codes)


def test_a_stream_starts_at_its_lowest_bit():
    assert packing.pack(np.array([[1, 2, 3, 4, 5, 6, 7, 0]], np.uint8), 4).tolist() == [[0x21, 0x43, 0x65, 7]]
    assert packing.pack(np.array([[1, 2, 3, 0]], np.uint8), 2).tolist() == [[0b00111001]]


def test_three_bits_are_three_bits():
    codes = np.array([[1, 2, 3, 4, 5, 6, 7, 0]], np.uint8)
    stream = sum(int(code) << (3 * place) for place, code in enumerate(codes[0]))
    assert packing.pack(codes, 3).tobytes() == stream.to_bytes(3, "little")


@pytest.mark.parametrize("bits", BITS)
def test_unused_bits_are_zero(bits):
    packed = packing.pack(np.full((1, 3), 2**bits - 1, np.uint8), bits)
    assert int.from_bytes(packed.tobytes(), "little") == 2 ** (3 * bits) - 1


def test_a_view_of_codes_packs_like_a_copy():
    codes = random_codes((6, 40), 3)[::2, ::-1]
    assert np.array_equal(packing.pack(codes, 3), packing.pack(codes.copy(), 3))


def test_a_code_too_large_is_refused():
    with pytest.raises(QuantizationError, match="code 8 does not fit in 3 bits"):
        packing.pack(np.array([[8]], np.uint8), 3)


def test_unknown_bits_are_refused():
    with pytest.raises(QuantizationError, match="5 bits are not supported"):
        packing.pack(np.zeros((1, 8), np.uint8), 5)


def test_a_stream_of_another_length_is_refused():
    with pytest.raises(QuantizationError, match="need 3 bytes, not 4"):
        packing.unpack(np.zeros((1, 4), np.uint8), 3, 8)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_onnx_runtime_reads_the_stream(bits):
    """MatMulNBits computes x · Ŵᵀ from the bytes as packed, scales and packed zero points."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, columns, block = 8, 96, 32
    rng = np.random.default_rng(1)
    codes, zeros = random_codes((rows, columns), bits, 2), random_codes((rows, columns // block), bits, 3)
    scales = rng.uniform(0.5, 1.5, zeros.shape).astype(np.float32)
    weight = (codes.reshape(rows, -1, block).astype(np.float32) - zeros[..., None]) * scales[..., None]
    x = rng.standard_normal((5, columns)).astype(np.float32)

    packed = packing.pack(codes, bits).reshape(rows, columns // block, block * bits // 8)
    tensors = {"codes": packed, "scales": scales, "zeros": packing.pack(zeros, bits)}
    node = helper.make_node(
        "MatMulNBits",
        ["x", *tensors],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=bits,
        block_size=block,
        accuracy_level=0,
    )
    shapes = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [5, k]) for n, k in (("x", columns), ("y", rows))
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph([node], "product", shapes[:1], shapes[1:], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    assert np.allclose(y, x @ weight.reshape(rows, columns).T, atol=1e-3)
