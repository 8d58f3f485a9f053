"""Leave out what a classifier does not read: of the last layer, all tokens but one.

BERT and its kin classify by the last layer's output at ONE token (`[CLS]`, `<s>`); a traced graph computes
that output for every token, then gathers one. Behind the last attention every token is treated by itself, so
the choice may as well be made there: the projection of the attention's output, both feed-forward products,
the activation and the normalisations of the last layer then work on one row, not on one a token. In float32
the result is the same; in int8 up to rounding, for an activation's scale is now that of one row.

It is worth most where few layers are left. A model that averages its tokens stays as it is.
"""

from __future__ import annotations

import onnx
from onnx import helper

from pressoir.export.graph import constants, set_nodes

SUMS = {"Add", "Sum"}
TOKENWISE = {*SUMS, "MatMul", "LayerNormalization", "BiasGelu", "FastGelu", "Gelu", "Relu", "Tanh"}
"""Operators that treat every token by itself, if `_tokenwise` finds their other inputs fit."""


def choose_early(model: onnx.ModelProto) -> int:
    """Move the choice of a token up to the last mixing of tokens, in place; return the nodes it has passed.

    The choice is a `Gather` by one constant number along axis 1 of a value (batch, seq, hidden).
    """
    tensors = constants(model)
    readers: dict[str, list[onnx.NodeProto | None]] = {output.name: [None] for output in model.graph.output}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    choice, passed = None, dict[str, onnx.NodeProto]()  # by what they give
    for node in reversed(model.graph.node):
        if choice is None and node.op_type == "Gather" and _is_choice(node, tensors):
            choice = node
        elif choice is not None and _tokenwise(node, tensors):
            after = readers.get(node.output[0], [])
            if after and all(
                reader is choice or (reader is not None and reader.output[0] in passed) for reader in after
            ):
                passed[node.output[0]] = node
    if choice is None:
        return 0
    nodes, chosen = list[onnx.NodeProto](), dict[str, str]()  # a value of all tokens: its value of one
    for node in model.graph.node:
        if node is choice and passed:
            continue
        if node.output[0] not in passed:
            nodes.append(node)
            continue
        for value in node.input:
            if value and value not in tensors and value not in chosen:  # given by a node that is not passed
                chosen[value] = f"{value}_chosen"
                nodes.append(_gather(choice, value, chosen[value]))
        last = node.output[0] == choice.input[0]
        chosen[node.output[0]] = choice.output[0] if last else f"{node.output[0]}_chosen"
        moved = onnx.NodeProto.FromString(node.SerializeToString())
        moved.input[:] = [chosen.get(value, value) for value in node.input]
        moved.output[:] = [chosen[node.output[0]]]
        nodes.append(moved)
    set_nodes(model, nodes)
    return len(passed)


def _is_choice(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> bool:
    axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), 0)
    index = tensors.get(node.input[1])
    return axis == 1 and index is not None and not index.dims


def _tokenwise(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> bool:
    """Whether the node gives each token what depends on that token alone, also where the axis of tokens is
    gone.

    Constants are of the hidden axis or single numbers: one of more axes would no longer line up. What is
    added may be several values of tokens; of any other operator only the first input is one, for a product by
    two of them, or by a constant from the left, mixes tokens.
    """
    if node.op_type not in TOKENWISE or len(node.output) != 1:
        return False
    others = [value for value in node.input if value]
    if node.op_type not in SUMS:
        if node.input[0] in tensors or any(value not in tensors for value in others[1:]):
            return False
        others = others[1:]
    axes = 2 if node.op_type == "MatMul" else 1
    if any(len(tensors[value].dims) > axes for value in others if value in tensors):
        return False
    axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), -1)
    return node.op_type != "LayerNormalization" or axis == -1


def _gather(choice: onnx.NodeProto, value: str, output: str) -> onnx.NodeProto:
    return helper.make_node("Gather", [value, choice.input[1]], [output], f"{output}_gather", axis=1)
