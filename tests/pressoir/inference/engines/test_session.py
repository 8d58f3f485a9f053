"""What every session of ONNX Runtime is made with."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pressoir.inference.engines.session import make_session


@pytest.mark.parametrize("dynamic", [False, True], ids=["integers", "quantised on the way"])
def test_integer_products_are_exact_on_every_cpu(tmp_path, dynamic):
    """Two of the largest products of uint8 and int8 overflow the 16 bits that some CPUs add them up in."""
    weight = np.full((64, 32), 127, dtype=np.int8)
    weight[:, ::2] = -127
    nodes = [helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])]
    if dynamic:
        nodes.insert(0, helper.make_node("DynamicQuantizeLinear", ["values"], ["x", "scale", "zero"]))
    given = helper.make_tensor_value_info(*(("values", 1) if dynamic else ("x", 2)), [None, 64])
    constants = [numpy_helper.from_array(weight, "w")]
    if not dynamic:
        constants.append(numpy_helper.from_array(np.uint8(0), "zero"))
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [None, 32])
    graph = helper.make_graph(nodes, "product", [given], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    session = make_session(tmp_path / "model.onnx", 1)
    values = np.linspace(0, 255, 64).round()[None].repeat(3, axis=0)
    (found,) = session.run(None, {given.name: values.astype(np.float32 if dynamic else np.uint8)})
    np.testing.assert_array_equal(found, values.astype(np.int64) @ weight.astype(np.int64))
