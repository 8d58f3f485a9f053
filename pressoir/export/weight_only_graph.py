"""Put weights into a traced graph: packed codes as they are stored, or floats, all as external data.

A graph from `pressoir.export.decoder_trace` names the layer behind each product. Here the product becomes
what ONNX Runtime executes, and the checkpoint's own codes, scales and zero points become its constants:
nothing is derived, so nothing is lost, and `verify` reads every byte back to prove it.

==================  =========================================================================================
layer               in the graph
==================  =========================================================================================
q8, q4, q2 matrix   MatMulNBits; a bias that was added is its last input
q3 matrix           MatMulNBits of 4 bits. Its B is declared with 4-bit dimensions, but the bytes in the file
                    are the checkpoint's 3-bit stream: the model's metadata names such initializers
                    (`pressoir.packed3`), and Pressoir's engine expands them when it opens the graph
quantised table     GatherBlockQuantized
float matrix        MatMul of (in, out); a head tied to a float table: Transpose of the table, then MatMul
float table         Gather
==================  =========================================================================================

Weights are handled one layer at a time and never pass through the protobuf message, whose limit is 2 GB. What
two layers share (an embedding and its tied head) is written once: their initializers name the same bytes.

The operators are documented in ONNX Runtime's ContribOperators.md
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md), external data in
https://onnx.ai/onnx/repo-docs/ExternalData.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pressoir.errors import ParityError
from pressoir.export.decoder_trace import Trace, stand_in_input
from pressoir.export.graph import MICROSOFT, remove_unused, set_nodes
from pressoir.formats import packing
from pressoir.formats.folder import GRAPH
from pressoir.formats.packed_checkpoint import PackedLayer
from pressoir.formats.packed_streams import KEY

DATA = "model.onnx.data"
EXTERNAL_BYTES = 1024
"""Tensors of at least this size leave the graph."""
_ALIGNMENT = 64  # of each tensor in the data file: a cache line, and the widest vector register

Array = NDArray[Any]


class Weights(Protocol):
    """Where the layers' weights come from, one at a time."""

    def packed(self, layer: str) -> PackedLayer | None:
        """The quantised layer; None: it is float."""

    def matrix(self, layer: str) -> NDArray[np.float32]:
        """A float layer: (in, out) of a linear one, (rows, width) of an embedding."""

    def owner(self, layer: str) -> str:
        """The layer whose weights a float layer has: itself, or the one that it is tied to."""


def lower(trace: Trace, weights: Weights, folder: Path, accuracy_level: int) -> onnx.ModelProto:
    """Write all weights to `folder / DATA`; return the graph that uses them, in which they are external."""
    with _DataFile(folder / DATA) as file:
        lowering = _Lowering(trace, weights, file, accuracy_level)
        lowering.run()
    return trace.graph


def set_accuracy_level(model: onnx.ModelProto, level: int) -> None:
    """Set how MatMulNBits may round activations: 0 not at all (float32), 4 to int8, block by block."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = level


def packed3(model: onnx.ModelProto) -> list[str]:
    """Initializers whose bytes are a 3-bit stream."""
    found = (entry.value for entry in model.metadata_props if entry.key == KEY)
    return list(json.loads(next(found, "[]")))


def read_layer(
    model: onnx.ModelProto, folder: Path, layer: str
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Codes (out, in), scales and zero points (out, in / block_size) of a layer, as the graph holds them.

    Raises:
        ParityError: the graph has no such quantised layer.
    """
    names = [f"{layer}.{suffix}" for suffix in ("weight", "weight_scale", "weight_zero_point")]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    node = next((n for n in model.graph.node if n.domain == MICROSOFT and names[0] in n.input), None)
    if node is None:
        raise ParityError(f"the graph has no quantised layer {layer}")
    # A tied head's scales and zero points are the embedding's.
    names[1:] = [value for value in node.input if value.endswith(("_scale", "_zero_point"))]
    bits = next(attribute.i for attribute in node.attribute if attribute.name == "bits")
    packed, scales, zero_points = (_raw(tensors[name], folder) for name in names)
    rows, blocks = tensors[names[1]].dims
    columns = prod(tensors[names[0]].dims) // rows * 8 // bits
    stored_bits = 3 if names[0] in packed3(model) else bits
    return (
        packing.unpack(np.frombuffer(packed, np.uint8).reshape(rows, -1), stored_bits, columns),
        np.frombuffer(scales, np.float32).reshape(rows, blocks),
        packing.unpack(np.frombuffer(zero_points, np.uint8).reshape(rows, -1), bits, blocks),
    )


def verify(model: onnx.ModelProto, folder: Path, weights: Weights, layers: Mapping[str, str]) -> int:
    """Read every quantised layer back from the files and compare it with the checkpoint; count them.

    Raises:
        ParityError: the graph does not hold a layer as the checkpoint does; it is named.
    """
    checked = 0
    for name in layers:
        layer = weights.packed(name)
        if layer is None:
            continue
        codes, scales, zero_points = read_layer(model, folder, name)
        equal = {
            "codes": np.array_equal(codes, layer.codes()),
            "scales": np.array_equal(scales, layer.scales),
            "zero points": np.array_equal(zero_points, layer.zero_points),
        }
        if wrong := [component for component, same in equal.items() if not same]:
            raise ParityError(
                f"{folder / GRAPH}: the {' and '.join(wrong)} of layer {name} differ from the checkpoint; "
                "export the model again"
            )
        checked += 1
    return checked


def sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the weights on disk, and in memory once 3-bit streams are expanded; shared ones count once."""
    disk: dict[Any, int] = {}
    memory: dict[Any, int] = {}
    for tensor in model.graph.initializer:
        external = _external_data(tensor)
        key = (external["offset"], external["length"]) if external else tensor.name
        item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        memory[key] = prod(tensor.dims) * item
        disk[key] = int(external["length"]) if external else memory[key]
    return {"disk_bytes": sum(disk.values()), "memory_bytes": sum(memory.values())}


class _DataFile:
    """The file of external data, written front to back."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def append(self, values: Array) -> tuple[int, int]:
        """Write an array; return its offset and length."""
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        self._file.write(np.ascontiguousarray(values).data)
        return offset, self._file.tell() - offset

    def __enter__(self) -> _DataFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class _Lowering:
    """One pass over a traced graph, in execution order, which is also the order of the data file."""

    def __init__(self, trace: Trace, weights: Weights, file: _DataFile, accuracy_level: int) -> None:
        self.model, self.weights, self.file = trace.graph, weights, file
        self.level = accuracy_level
        self.kinds = {f"{name}.weight": (name, kind) for name, kind in trace.layers.items()}
        self.small = {t.name: t for t in self.model.graph.initializer if t.name not in self.kinds}
        self.producers = {value: node for node in self.model.graph.node for value in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)
        self.outputs = {value.name for value in self.model.graph.output}
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self.streams: list[str] = []
        self.absorbed: set[str] = set()  # outputs of Add nodes that became a bias

    def run(self) -> None:
        for node in self.model.graph.node:
            if node.output[0] in self.absorbed:
                continue
            if node.op_type == "Constant" and self._lift(node):
                continue
            known = self.kinds.get(node.input[1]) if node.op_type == "MatMul" else None
            if known is None:
                self._keep(node)
                continue
            name, kind = known
            value = stand_in_input(node, kind, self.producers)
            layer = self.weights.packed(name)
            if kind == "embedding":
                self._table(node, name, value, layer)
            elif layer is None:
                self._float_product(node, name, value)
            else:
                self._product(node, layer, value)
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(self.tensors.values())
        set_nodes(self.model, self.nodes)
        remove_unused(self.model)  # what the stand-ins were made of
        if self.streams:
            self.model.metadata_props.add(key=KEY, value=json.dumps(self.streams))

    def _product(self, node: onnx.NodeProto, layer: PackedLayer, value: str) -> None:
        rows, columns = layer.shape
        bits = _graph_bits(layer.bits)
        dimensions = (rows, columns // layer.block_size, layer.block_size * bits // 8)
        inputs = [value, *self._packed(layer, dimensions)]
        output = node.output[0]
        if (absorbed := self._bias(output, rows)) is not None:
            bias, output = absorbed
            inputs += ["", bias]  # no group indices
        self._add(
            "MatMulNBits",
            inputs,
            output,
            node.name,
            K=columns,
            N=rows,
            bits=bits,
            block_size=layer.block_size,
            accuracy_level=self.level,
        )

    def _table(self, node: onnx.NodeProto, name: str, ids: str, layer: PackedLayer | None) -> None:
        if layer is None:
            self._add("Gather", [self._float(name), ids], node.output[0], node.name)
            return
        bits = _graph_bits(layer.bits)
        codes, scales, zero_points = self._packed(layer, (layer.shape[0], layer.shape[1] * bits // 8))
        self._add(
            "GatherBlockQuantized",
            [codes, ids, scales, zero_points],
            node.output[0],
            node.name,
            bits=bits,
            block_size=layer.block_size,
            gather_axis=0,
            quantize_axis=1,
        )

    def _float_product(self, node: onnx.NodeProto, name: str, value: str) -> None:
        matrix = self._float(name)
        if self.kinds[matrix][1] == "embedding":  # the table (rows, width) that a head is tied to
            matrix, table = f"{name}.weight_transposed", matrix
            self._add("Transpose", [table], matrix, f"{node.name}_transpose", perm=[1, 0])
        self._add("MatMul", [value, matrix], node.output[0], node.name)

    def _bias(self, output: str, width: int) -> tuple[str, str] | None:
        """The constant vector that the only reader of `output` adds to it, and that reader's output."""
        readers = self.readers.get(output, [])
        if len(readers) != 1 or output in self.outputs or readers[0].op_type != "Add":
            return None
        vector = next((value for value in readers[0].input if value != output), "")
        if vector not in self.small or list(self.small[vector].dims) != [width]:
            return None
        self.absorbed.add(readers[0].output[0])
        return vector, str(readers[0].output[0])

    # Nodes and constants.

    def _add(self, operator: str, inputs: list[str], output: str, name: str, **attributes: Any) -> None:
        domain = MICROSOFT if operator in ("MatMulNBits", "GatherBlockQuantized") else ""
        self._keep(helper.make_node(operator, inputs, [output], name, domain=domain, **attributes))

    def _keep(self, node: onnx.NodeProto) -> None:
        """Take over a node, and those of its constants that are not there yet."""
        for value in node.input:
            if value in self.small and value not in self.tensors:
                self._constant(value, self.small[value])
        self.nodes.append(node)

    def _constant(self, name: str, tensor: TensorProto) -> None:
        values = numpy_helper.to_array(tensor)
        if values.nbytes >= EXTERNAL_BYTES:
            self._external(name, values, values.shape)
        else:
            self.tensors[name] = numpy_helper.from_array(values, name)

    def _lift(self, node: onnx.NodeProto) -> bool:
        """Turn a Constant node that is too large to stay in the graph into external data."""
        if node.attribute[0].name != "value" or node.attribute[0].t.ByteSize() < EXTERNAL_BYTES:
            return False
        self._constant(node.output[0], node.attribute[0].t)
        return True

    def _float(self, name: str) -> str:
        """The initializer of a float layer's weights, written when first asked for."""
        owner = f"{self.weights.owner(name)}.weight"
        if owner not in self.tensors:
            matrix = self.weights.matrix(self.weights.owner(name))
            self._external(owner, matrix, matrix.shape)
        return owner

    def _packed(self, layer: PackedLayer, dimensions: tuple[int, ...]) -> list[str]:
        """Initializers of codes, scales and zero points; a tied layer's are its owner's bytes."""
        bits = _graph_bits(layer.bits)
        codes, owner = f"{layer.name}.weight", layer.tied_to or layer.name
        scales, zero_points = f"{owner}.weight_scale", f"{owner}.weight_zero_point"
        if scales in self.tensors:
            self.tensors[codes] = _pointing_at(codes, dimensions, self.tensors[f"{owner}.weight"])
        else:
            self._external(codes, layer.packed, dimensions)
            zeros = packing.pack(layer.zero_points, bits)
            self._external(scales, layer.scales, layer.scales.shape)
            self._external(zero_points, zeros, zeros.shape)
        if layer.bits == 3 and codes not in self.streams:
            self.streams.append(codes)
        return [codes, scales, zero_points]

    def _external(self, name: str, values: Array, dimensions: tuple[int, ...]) -> None:
        offset, length = self.file.append(values)
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        self.tensors[name] = _external(name, kind, dimensions, offset, length)


def _graph_bits(bits: int) -> int:
    """Bits of a code in MatMulNBits' attribute: it has no kernel for 3."""
    return 4 if bits == 3 else bits


def _external(
    name: str, kind: int, dimensions: tuple[int, ...], offset: int | str, length: int | str
) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=dimensions, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", DATA), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _pointing_at(name: str, dimensions: tuple[int, ...], other: TensorProto) -> TensorProto:
    external = _external_data(other)
    return _external(name, other.data_type, dimensions, external["offset"], external["length"])


def _external_data(tensor: TensorProto) -> dict[str, str]:
    """File, offset and length of external data; nothing of a tensor that is in the graph."""
    return {entry.key: entry.value for entry in tensor.external_data}


def _raw(tensor: TensorProto, folder: Path) -> bytes:
    external = _external_data(tensor)
    if not external:
        return numpy_helper.to_array(tensor).tobytes()
    with (folder / external["location"]).open("rb") as file:
        file.seek(int(external["offset"]))
        return file.read(int(external["length"]))
