"""Surgery on ONNX graphs: put a checkpoint's own int8 codes and scales where the float weights stood.

`quantize_dynamic` derives codes of its own from the float weights. Here nothing is derived: a float
initializer is recognised by its content as codes × scales of a known layer, bit for bit, and only then
replaced. What ONNX Runtime executes is therefore what the checkpoint holds and what its accuracy was measured
on.

=====================  ====================================================================================
float                  int8
=====================  ====================================================================================
MatMul, Gemm (+ Add)   DynamicQuantizeMatMul; where several read one input, DynamicQuantizeLinear once and
                       MatMulIntegerToFloat each; of constants, the same by operators that are folded at load
Attention              QAttention; with q, k or v left in float32, three products and MultiHeadAttention
Gather                 Gather of codes and of row scales, and their product; a small table is expanded once,
                       when ONNX Runtime folds constants at load; of 4-bit blocks: GatherBlockQuantized
=====================  ====================================================================================

Weights that several nodes multiply by, as in ALBERT, whose layers are one layer repeated, are stored once, as
uint8 with the zero point 128: where int8 sums may overflow, ONNX Runtime replaces int8 weights by such ones
itself (`session.x64quantprecision`), which it cannot do twice with one initializer.

The operators are documented in ONNX Runtime's ContribOperators.md
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pressoir.errors import ParityError
from pressoir.export.graph import MICROSOFT, Array, attributes, constants, remove_unused, set_nodes
from pressoir.formats import packing, symmetric_blocks

if TYPE_CHECKING:
    from pressoir.formats.int8_checkpoint import PackedWeight

# An embedding table of at most this many elements is expanded to float32 when the session is made: fewer
# nodes to run for a few hundred kilobytes of memory. The vocabulary's table stays int8 in memory.
EXPANDED_TABLE_ELEMENTS = 500_000
SHARED_ZERO_POINT = 128  # of codes that several nodes multiply by


@dataclass(frozen=True)
class Placement:
    """Where one layer's codes and scales are in a graph."""

    codes: str
    """Initializer of the codes."""
    scales: str
    """Initializer of the scales."""
    columns: tuple[int, int] | None
    """The layer's columns of an (in, out) matrix that may hold several; None: an embedding (rows, width)."""
    bits: int = 8
    """Of a code; those of 4 bits are two a byte, each plus 8."""


def read_placement(
    model: onnx.ModelProto, placement: Placement
) -> tuple[NDArray[np.int8], NDArray[np.float32] | NDArray[np.float16]]:
    """Codes (out, in) or (rows, width), scales (out,), (rows,) or (rows, blocks), as the graph holds them."""
    tensors = constants(model)
    codes = numpy_helper.to_array(tensors[placement.codes])
    scales = numpy_helper.to_array(tensors[placement.scales])
    if placement.bits == symmetric_blocks.BITS:
        numbers = packing.unpack(codes, placement.bits, codes.shape[1] * 8 // placement.bits)
        return numbers.astype(np.int8) + np.int8(symmetric_blocks.LOWEST), scales
    scales = scales.reshape(-1)
    if codes.dtype == np.uint8:
        codes = (codes.astype(np.int16) - SHARED_ZERO_POINT).astype(np.int8)
    if placement.columns is None:
        return codes, scales
    start, stop = placement.columns
    return np.ascontiguousarray(codes[:, start:stop].T), scales[start:stop]


def lower_to_int8(model: onnx.ModelProto, layers: Mapping[str, PackedWeight]) -> dict[str, Placement]:
    """Replace the float weights of `layers` by their codes and scales, in place; return where each is.

    Raises:
        ParityError: a layer's weight (exactly codes × scales) is not in the graph; all such layers are named.
    """
    lowering = _Lowering(model, layers)
    lowering.run()
    lost = [name for name in layers if name not in lowering.placements]
    if lost:
        raise ParityError(
            f"the ONNX graph does not contain the quantised weights of {', '.join(lost)}: no initializer "
            "equals their codes × scales exactly. Add them to quantize.exclude, or export with fuse: false"
        )
    for name, placement in lowering.placements.items():
        codes, scales = read_placement(model, placement)
        if not (np.array_equal(codes, layers[name].codes) and np.array_equal(scales, layers[name].scales)):
            raise ParityError(f"layer {name} in the graph differs from the checkpoint")
    return lowering.placements


def _content(array: Array) -> tuple[tuple[int, ...], bytes]:
    return array.shape, hashlib.sha256(np.ascontiguousarray(array, dtype=np.float32).data).digest()


def _varying(model: onnx.ModelProto) -> set[str]:
    """The values that depend on an input of the graph."""
    found = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if found.intersection(node.input):
            found.update(node.output)
    return found


@dataclass(frozen=True)
class _Product:
    """A node that multiplies its input by the weights of one or more layers, packed by columns."""

    layers: tuple[str, ...]
    bias: str = ""
    output: str = ""


class _Lowering:
    """One pass over a graph. Nothing is changed where a weight is not recognised."""

    def __init__(self, model: onnx.ModelProto, layers: Mapping[str, PackedWeight]) -> None:
        self.model, self.layers = model, layers
        self.tensors = constants(model)
        self.by_content: dict[Any, list[str]] = {}
        for name, layer in layers.items():
            weight = layer.weight.T if layer.kind == "linear" else layer.weight
            self.by_content.setdefault((layer.kind, *_content(weight)), []).append(name)
        self.claimed: set[str] = set()
        self.placements: dict[str, Placement] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.new_tensors: dict[str, Array] = {}
        self.quantised_inputs: dict[str, list[str]] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for value in node.input:
                self.consumers.setdefault(value, []).append(node)
        self.outputs = {output.name for output in model.graph.output}
        self.absorbed: set[int] = set()  # ids of Add nodes that became a bias
        self.dropped_inputs: dict[int, str] = {}  # id of a Sum node: its addend that became a bias
        self.varying = _varying(model)
        self.shared: set[str] = set()  # layers that several nodes multiply by

    def run(self) -> None:
        source = list(self.model.graph.node)
        plans = {id(node): plan for node in source if (plan := self._plan(node)) is not None}
        readers = Counter(node.input[0] for node in source if id(node) in plans and node.op_type != "Gather")
        shared = {value for value, count in readers.items() if count > 1}
        self.shared = self._multiplied_by_several(source, plans)
        at_load = {id(node) for node in source if not self.varying.intersection(node.input)}
        for node in source:
            if id(node) in self.absorbed:
                continue
            plan = plans.get(id(node))
            if plan is None:
                if (addend := self.dropped_inputs.get(id(node))) is not None:
                    kept = [value for value in node.input if value != addend]
                    node = helper.make_node(node.op_type, kept, node.output, node.name)
                self.nodes.append(node)
            elif node.op_type == "Gather":
                self._gather(node, plan.layers[0])
            elif node.op_type == "Attention":
                self._attention(node, plan)
            elif id(node) in at_load:
                self._product_at_load(node.input[0], plan)
            else:
                self._product(node.input[0], plan, node.name, node.input[0] in shared)
        set_nodes(self.model, self.nodes)
        taken = {tensor.name for tensor in self.model.graph.initializer}
        assert not taken & set(self.new_tensors)
        self.model.graph.initializer.extend(
            numpy_helper.from_array(a, n) for n, a in self.new_tensors.items()
        )
        remove_unused(self.model)

    # What to do with each node, before anything changes.

    def _plan(self, node: onnx.NodeProto) -> _Product | None:
        if node.op_type == "MatMul" and (weight := self._matrix(node.input[1])) is not None:
            layer = self._claim("linear", weight)
            return layer and self._with_bias(_Product((layer,), output=node.output[0]), weight.shape[1])
        if node.op_type == "Gemm" and (weight := self._matrix(node.input[1])) is not None:
            settings = attributes(node)
            plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0 and not settings.get(
                "transA"
            )
            layer = self._claim("linear", weight.T if settings.get("transB") else weight) if plain else None
            bias = node.input[2] if len(node.input) > 2 else ""
            return layer and _Product((layer,), bias, node.output[0])
        if node.op_type == "Attention" and (weight := self._matrix(node.input[1])) is not None:
            names = tuple(self._claim("linear", columns) or "" for columns in self._qkv_columns(node, weight))
            return _Product(names, node.input[2], node.output[0]) if any(names) else None
        if node.op_type == "Gather" and not attributes(node).get("axis"):
            table = self._matrix(node.input[0])
            layer = self._claim("embedding", table) if table is not None else None
            return layer and _Product((layer,))
        return None

    def _multiplied_by_several(self, source: list[onnx.NodeProto], plans: Mapping[int, _Product]) -> set[str]:
        """Layers whose weight several nodes multiply by, at every run."""
        uses = Counter(
            layer
            for node in source
            if node.op_type != "Gather" and id(node) in plans and self.varying.intersection(node.input)
            for layer in plans[id(node)].layers
        )
        return {layer for layer, count in uses.items() if layer and count > 1}

    def _matrix(self, name: str) -> NDArray[np.float32] | None:
        tensor = self.tensors.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2:
            return None
        return numpy_helper.to_array(tensor)

    def _claim(self, kind: str, weight: NDArray[np.float32]) -> Any:
        """The layer that has this weight, or None; of layers with equal weights, one not claimed yet."""
        names = self.by_content.get((kind, *_content(weight)))
        if not names:
            return None
        name = next((name for name in names if name not in self.claimed), names[0])
        self.claimed.add(name)
        return name

    def _qkv_columns(self, node: onnx.NodeProto, packed: Array) -> list[Array]:
        """The query, key and value columns of a fused attention's matrix."""
        sizes = attributes(node).get("qkv_hidden_sizes") or [packed.shape[1] // 3] * 3
        return np.split(packed, np.cumsum(sizes)[:2], axis=1)

    def _with_bias(self, product: _Product, width: int) -> _Product:
        """Take in a constant vector that the only reader of the product adds to it."""
        readers = self.consumers.get(product.output, [])
        if len(readers) != 1 or product.output in self.outputs or readers[0].op_type not in ("Add", "Sum"):
            return product
        reader = readers[0]
        vectors = [
            value
            for value in reader.input
            if (t := self.tensors.get(value)) is not None and list(t.dims) == [width]
        ]
        if (
            len(vectors) != 1
            or id(reader) in self.dropped_inputs
            or len(set(reader.input)) != len(reader.input)
        ):
            return product
        if len(reader.input) == 2:
            self.absorbed.add(id(reader))
            return replace(product, bias=vectors[0], output=reader.output[0])
        self.dropped_inputs[id(reader)] = vectors[0]
        return replace(product, bias=vectors[0])

    # The replacements.

    def _add(
        self, operator: str, inputs: list[str], outputs: list[str], name: str, **attributes: Any
    ) -> None:
        domain = MICROSOFT if operator in _CONTRIB else ""
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name, domain=domain, **attributes))

    def _tensor(self, name: str, value: Array) -> str:
        """A new initializer, under a name that is free."""
        while name in self.tensors or (
            name in self.new_tensors and not np.array_equal(self.new_tensors[name], value)
        ):
            name += "_int8" if value.dtype == np.int8 else "_"
        self.new_tensors[name] = value
        return name

    def _codes(self, names: tuple[str, ...]) -> tuple[str, str, str]:
        """Initializers of the codes (in, out), scales (out,) and zero point of layers packed side by side;
        no zero point is 0."""
        layers = [self.layers[name] for name in names]
        title = names[0] if len(names) == 1 else f"{names[0].rpartition('.')[0]}.qkv"
        packed: Array = np.concatenate([layer.codes.T for layer in layers], axis=1)
        zero = ""
        if self.shared.intersection(names):
            packed = (packed.astype(np.int16) + SHARED_ZERO_POINT).astype(np.uint8)
            zero = self._tensor("shared_zero_point", np.array(SHARED_ZERO_POINT, np.uint8))
        codes = self._tensor(f"{title}.weight_codes", packed)
        scales = self._tensor(f"{title}.weight_scale", np.concatenate([layer.scales for layer in layers]))
        start = 0
        for name, layer in zip(names, layers, strict=True):
            stop = start + len(layer.scales)
            self.placements[name] = Placement(codes, scales, (start, stop))
            start = stop
        return codes, scales, zero

    def _quantised(self, value: str) -> list[str]:
        """uint8 codes, scale and zero point of an activation; computed once, however many read them."""
        if value not in self.quantised_inputs:
            names = [f"{value}_quantized", f"{value}_scale", f"{value}_zero_point"]
            self._add("DynamicQuantizeLinear", [value], names, f"{value}_quantize")
            self.quantised_inputs[value] = names
        return self.quantised_inputs[value]

    def _product(self, value: str, plan: _Product, name: str, shared: bool) -> None:
        codes, scales, zero = self._codes(plan.layers)
        if shared:
            x, x_scale, x_zero = self._quantised(value)
            inputs = [x, codes, x_scale, scales, x_zero, zero, plan.bias]
            self._add("MatMulIntegerToFloat", inputs, [plan.output], name)
        else:
            self._add("DynamicQuantizeMatMul", [value, codes, scales, zero, plan.bias], [plan.output], name)

    def _product_at_load(self, value: str, plan: _Product) -> None:
        """A product that depends on no input of the graph (DeBERTa's projections of relative positions), of
        operators that ONNX Runtime computes once, when it loads the graph: those of ONNX alone."""
        codes, scales, zero = self._codes(plan.layers)
        x, x_scale, x_zero = self._quantised(value)
        sides = {"input": (x, x_zero, x_scale), "weight": (codes, zero, scales)}
        for side, (integers, zero_point, scale) in sides.items():
            name = f"{plan.output}_{side}"
            self._add("Cast", [integers], [f"{name}_float"], f"{name}_cast", to=onnx.TensorProto.FLOAT)
            if zero_point:
                moved = f"{name}_zero_point"
                self._add("Cast", [zero_point], [moved], f"{moved}_cast", to=onnx.TensorProto.FLOAT)
                self._add("Sub", [f"{name}_float", moved], [f"{name}_moved"], f"{name}_sub")
            centred = f"{name}_moved" if zero_point else f"{name}_float"
            self._add("Mul", [centred, scale], [name], f"{name}_scale")
        product = f"{plan.output}_product" if plan.bias else plan.output
        self._add("MatMul", [f"{plan.output}_input", f"{plan.output}_weight"], [product], f"{product}_matmul")
        if plan.bias:
            self._add("Add", [product, plan.bias], [plan.output], f"{plan.output}_bias")

    def _attention(self, node: onnx.NodeProto, plan: _Product) -> None:
        settings = attributes(node)
        mask, *others = [*node.input[3:], *[""] * 4][:4]
        widths = {len(self.layers[name].scales) for name in plan.layers if name}
        if all(plan.layers) and len(widths) == 1 and not any(others):
            codes, scales, zero = self._codes(plan.layers)
            x, x_scale, x_zero = self._quantised(node.input[0])
            zero = zero or self._tensor(f"{codes}_zero_point", np.zeros(3 * widths.pop(), np.int8))
            settings.pop("qkv_hidden_sizes", None)
            inputs = [x, codes, plan.bias, x_scale, scales, mask, x_zero, zero]
            self._add("QAttention", inputs, list(node.output), node.name, **settings)
            return
        past, attention_bias, past_length = others
        if past or past_length:
            raise ParityError(f"{node.name}: attention with a cache of past keys cannot be lowered to int8")
        weight = self._matrix(node.input[1])
        assert weight is not None
        projections = []
        for role, name, columns in zip("qkv", plan.layers, self._qkv_columns(node, weight), strict=True):
            output = f"{node.output[0]}_{role}"
            if name:
                self._product(
                    node.input[0], _Product((name,), output=output), f"{node.name}_{role}", shared=True
                )
            else:
                matrix = self._tensor(f"{node.input[1]}_{role}", np.ascontiguousarray(columns))
                self._add("MatMul", [node.input[0], matrix], [output], f"{node.name}_{role}")
            projections.append(output)
        settings = {
            k: v
            for k, v in settings.items()
            if k in ("num_heads", "scale", "mask_filter_value", "unidirectional")
        }
        inputs = [*projections, plan.bias, mask, attention_bias]
        self._add("MultiHeadAttention", inputs, list(node.output[:1]), node.name, **settings)

    def _gather(self, node: onnx.NodeProto, name: str) -> None:
        layer, ids, output = self.layers[name], node.input[1], node.output[0]
        if layer.bits == symmetric_blocks.BITS:
            self._gather_blocks(node, name)
            return
        codes = self._tensor(f"{name}.weight_codes", layer.codes)
        scales = self._tensor(f"{name}.weight_scale", layer.scales[:, None])
        self.placements[name] = Placement(codes, scales, None)
        if layer.codes.size <= EXPANDED_TABLE_ELEMENTS:
            table = f"{name}.weight_expanded"
            if name not in self.quantised_inputs:  # a table may be read twice
                self._add("Cast", [codes], [f"{table}_codes"], f"{table}_cast", to=onnx.TensorProto.FLOAT)
                self._add("Mul", [f"{table}_codes", scales], [table], f"{table}_scale")
                self.quantised_inputs[name] = [table]
            self._add("Gather", [table, ids], [output], node.name)
            return
        self._add("Gather", [codes, ids], [f"{output}_codes"], node.name)
        self._add("Gather", [scales, ids], [f"{output}_scale"], f"{node.name}_scale")
        self._add(
            "Cast", [f"{output}_codes"], [f"{output}_cast"], f"{node.name}_cast", to=onnx.TensorProto.FLOAT
        )
        self._add("Mul", [f"{output}_cast", f"{output}_scale"], [output], f"{node.name}_mul")

    def _gather_blocks(self, node: onnx.NodeProto, name: str) -> None:
        """A 4-bit table. The operator takes 8 off each code where it is given no zero points."""
        layer = self.layers[name]
        numbers = (layer.codes - np.int8(symmetric_blocks.LOWEST)).astype(np.uint8)
        codes = self._tensor(f"{name}.weight_codes", packing.pack(numbers, layer.bits))
        scales = self._tensor(f"{name}.weight_scale", layer.scales)
        self.placements[name] = Placement(codes, scales, None, layer.bits)
        wide = f"{name}.weight_scale_float"  # with scales of half precision the operator rounds what it gives
        if name not in self.quantised_inputs:
            self._add("Cast", [scales], [wide], f"{name}.weight_scale_cast", to=onnx.TensorProto.FLOAT)
            self.quantised_inputs[name] = [wide]
        self._add(
            "GatherBlockQuantized",
            [codes, node.input[1], wide],
            [node.output[0]],
            node.name,
            bits=layer.bits,
            block_size=layer.block_size,
            gather_axis=0,
            quantize_axis=1,
        )


_CONTRIB = {
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QAttention",
    "MultiHeadAttention",
    "GatherBlockQuantized",
}
