"""The weights of an ONNX graph as ranges of bytes, wherever they lie: inside the graph, or beside it.

An initializer may be inline, or name a file, an offset and a length (external data). Moving weights means
changing those three, and copying the range; the values are never decoded. That matters beyond memory: a
3-bit stream is declared with the dimensions of its 4-bit form, so its length does not follow from its
dimensions, and only the range shows what belongs to it.

Source: https://onnx.ai/onnx/repo-docs/ExternalData.html.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressoir.errors import ShardError
from pressoir.formats.tensor_bytes import TensorBytes
from pressoir.system.reader import file_in, is_file, shown, whole_number

if TYPE_CHECKING:
    import onnx

_ADVICE = "export the model again"

# Names of the element types that leave the graph: ONNX's, safetensors', and bytes an element.
DTYPES = {
    **{"FLOAT": ("F32", 4), "FLOAT16": ("F16", 2), "BFLOAT16": ("BF16", 2)},
    **{"INT8": ("I8", 1), "UINT8": ("U8", 1)},
}
HALF_BYTE = {"UINT4", "INT4"}  # two elements a byte: safetensors gets the bytes
# Initializers that belong to a quantised tensor without being weights.
NOT_WEIGHTS = ("_scale", "_scales", "_zero_point", "_zero_points", "_zp", ".scale", ".zero_point")
# Smaller tensors, and whole numbers (shapes, axes), stay in the graph: shape inference must see them.
MIN_ELEMENTS = 16


@dataclass
class Weight:
    """One range of bytes, and the initializers that are it (several where weights are tied)."""

    tensor: TensorBytes
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def point(self, location: str, offset: int) -> None:
        """Let the initializers' bytes be those of a file of the graph's folder."""
        from onnx import TensorProto

        entries = {"location": location, "offset": str(offset), "length": str(self.tensor.length)}
        for initializer in self.initializers:
            _clear(initializer)
            initializer.data_location = TensorProto.EXTERNAL
            for key, value in entries.items():
                entry = initializer.external_data.add()
                entry.key, entry.value = key, value


def load(path: Path) -> onnx.ModelProto:
    """Read a graph; what lies beside it stays there.

    Raises:
        ShardError: it is not one.
    """
    import onnx

    if not is_file(path):
        raise ShardError(f"{path} is missing, or not a regular file; {_ADVICE}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own type, of a package that onnx brings along
        raise ShardError(f"{path} is not an ONNX graph: {error}; export the model again") from error
    if not model.graph.node:
        raise ShardError(f"{path} is an empty ONNX graph; export the model again")
    if (name := _undecoded(model)) is not None:
        raise ShardError(f"{path}: {shown(name)} is not UTF-8 text; export the model again")
    return model


def _undecoded(message: Any) -> bytes | None:
    """A text of a protobuf message that is not UTF-8: protobuf does not refuse it, and returns bytes."""
    for entry, value in message.ListFields():
        if entry.type not in (entry.TYPE_STRING, entry.TYPE_MESSAGE):
            continue
        alone = isinstance(value, str | bytes) or hasattr(value, "ListFields")
        for item in (value,) if alone else value:
            found = _undecoded(item) if entry.type == entry.TYPE_MESSAGE else item
            if isinstance(found, bytes):
                return found
    return None


def weights(model: onnx.ModelProto, folder: Path) -> list[Weight]:
    """The weights that may leave `model`, whose external data is in `folder`, in the order of first use.

    External tensors that must stay in the graph (small ones, constants, those of branches) are read into it.

    Raises:
        ShardError: a tensor names a file outside the folder, or bytes that it does not have.
    """
    found: dict[object, Weight] = {}
    for node in model.graph.node:
        for constant in _held(node):
            if (external := place_of(constant, folder)) is not None:
                _embed(constant, external)
    for tensor in _in_execution_order(model.graph):
        external = place_of(tensor, folder)
        if not _may_leave(tensor):
            if external is not None:
                _embed(tensor, external)
            continue
        own = _inline(tensor) if external is None else external
        # the same range of the same file is one weight; inline bytes are their initializer's own
        key = (own.file, own.offset, own.length) if own.file else id(tensor)
        found.setdefault(key, Weight(own)).initializers.append(tensor)
    return list(found.values())


def external_weights(model: onnx.ModelProto, folder: Path) -> list[Weight]:
    """The weights that lie beside `model`, in the order of first use.

    Raises:
        ShardError: as `weights`.
    """
    found: dict[object, Weight] = {}
    for tensor in _in_execution_order(model.graph):
        if (own := place_of(tensor, folder)) is not None:
            found.setdefault((own.file, own.offset, own.length), Weight(own)).initializers.append(tensor)
    return list(found.values())


def initializers(model: onnx.ModelProto, folder: Path) -> list[Weight]:
    """Every initializer of the graph, in the order of first use, without its values; the range of a file that
    several share is one weight.

    Raises:
        ShardError: as `weights`.
    """
    found: dict[object, Weight] = {}
    for tensor in _in_execution_order(model.graph):
        own = place_of(tensor, folder)
        if own is None:
            length = _inline_bytes(tensor)
            own = _typed(tensor, TensorBytes(tensor.name, "U8", (length,), length))
        key = (own.file, own.offset, own.length) if own.file else id(tensor)
        found.setdefault(key, Weight(own)).initializers.append(tensor)
    return list(found.values())


def first_readers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The first node that takes each value, by the value's name."""
    found: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        for name in _reads(node):
            found.setdefault(name, node)
    return found


def check_places(model: onnx.ModelProto, folder: Path) -> None:
    """Check that every external tensor lies in a file of `folder` that is long enough.

    Raises:
        ShardError: one does not; it is named.
    """
    for tensor in _tensors(model.graph):
        place_of(tensor, folder)


def external_files(model: onnx.ModelProto) -> set[str]:
    """Names of the files that hold the graph's external data."""
    return {
        entry.value
        for tensor in _tensors(model.graph)
        if tensor.data_location == tensor.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def can_embed(weight: Weight) -> bool:
    """Whether a weight may lie in the graph: its bytes are its type's, and no other initializer has them."""
    return len(weight.initializers) == 1 and _expected_bytes(weight.initializers[0]) == weight.tensor.length


def embed(weight: Weight) -> None:
    """Move a weight into the graph, see `can_embed`."""
    _embed(weight.initializers[0], weight.tensor)


def _embed(tensor: onnx.TensorProto, source: TensorBytes) -> None:
    data = b"".join(source.chunks())
    _clear(tensor)
    tensor.raw_data = data


def _clear(tensor: onnx.TensorProto) -> None:
    for name in ("raw_data", "float_data", "int32_data", "external_data", "data_location"):
        tensor.ClearField(name)


def kind_of(tensor: onnx.TensorProto) -> str:
    """ONNX's name of a tensor's element type."""
    from onnx import TensorProto

    try:
        return str(TensorProto.DataType.Name(tensor.data_type))
    except ValueError:
        return f"type {tensor.data_type}"  # which no version of the format knows


def _may_leave(tensor: onnx.TensorProto) -> bool:
    kind = kind_of(tensor)
    if kind in HALF_BYTE:  # packed already, or spread over int32_data
        kind = "UINT8" if tensor.data_location == tensor.EXTERNAL or tensor.raw_data else kind
    return kind in DTYPES and math.prod(tensor.dims) >= MIN_ELEMENTS


def _expected_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes that the tensor's type and dimensions make; None for a type that is not known here."""
    kind, elements = kind_of(tensor), int(math.prod(tensor.dims))
    if kind in HALF_BYTE:
        return (elements + 1) // 2
    return elements * DTYPES[kind][1] if kind in DTYPES else None


def _inline_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of an inline tensor's values."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    return _expected_bytes(tensor) or tensor.ByteSize()


def _inline(tensor: onnx.TensorProto) -> TensorBytes:
    from onnx import numpy_helper

    try:
        data = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
    except Exception as error:  # whatever it stumbles over
        raise ShardError(f"the tensor {shown(tensor.name)} is damaged ({error}); {_ADVICE}") from error
    return _typed(tensor, TensorBytes(tensor.name, "U8", (len(data),), len(data), data=data))


def place_of(tensor: onnx.TensorProto, folder: Path) -> TensorBytes | None:
    """Where the bytes of an external tensor are; None for an inline one.

    Raises:
        ShardError: they are not in a file of `folder`, or it is too short, or offset and length are not whole
            numbers below 10^19.
    """
    if tensor.data_location != tensor.EXTERNAL:
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{folder}: the graph's tensor {shown(tensor.name)}"
    path = file_in(folder, entries.get("location"), where, ShardError, _ADVICE)
    if not is_file(path):
        raise ShardError(f"{where} is stored in {path.name!r}, which is not a file of the folder; {_ADVICE}")
    offset, given = (
        whole_number(entries.get(name) or "0", f"{where}: {name}", ShardError, _ADVICE)
        for name in ("offset", "length")
    )
    size = path.stat().st_size
    length = given or _expected_bytes(tensor) or size - offset
    if length < 0 or offset + length > size:
        raise ShardError(
            f"{path} has {size} bytes, but the graph's tensor {tensor.name!r} ends at {offset + length}; "
            "export the model again"
        )
    return _typed(tensor, TensorBytes(tensor.name, "U8", (length,), length, path, offset))


def _typed(tensor: onnx.TensorProto, own: TensorBytes) -> TensorBytes:
    """With type and shape, where safetensors has the type and the length is that of the shape."""
    dtype, item = DTYPES.get(kind_of(tensor), ("", 0))
    if not dtype or own.length != item * math.prod(tensor.dims):
        return own
    return TensorBytes(own.name, dtype, tuple(tensor.dims), own.length, own.file, own.offset, own.data)


def _in_execution_order(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """The graph's initializers by the first node that reads them (ONNX keeps nodes in topological order)."""
    first: dict[str, int] = {}
    for position, node in enumerate(graph.node):
        for name in _reads(node):
            first.setdefault(name, position)
    return sorted(graph.initializer, key=lambda tensor: first.get(tensor.name, len(graph.node)))


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _held(node)


def _held(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    """Tensors in a node's attributes: constants, and those of the branches of an If or Loop."""
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for graph in _branches(node):
        yield from _tensors(graph)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the values that a node, or a branch of it, takes."""
    yield from node.input
    for graph in _branches(node):
        for inner in graph.node:
            yield from _reads(inner)


def _branches(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
