"""3-bit weights of a graph: a bit stream on the disk, 4-bit codes in memory.

ONNX Runtime's `MatMulNBits` multiplies 2, 4 and 8 bits, not 3. So a 3-bit graph declares its weights as 4-bit
ones, and their external data as the bytes of a 3-bit stream; the model's metadata lists them
(`pressoir.packed3`). Before a session is made, the codes are read, written again with 4 bits each, and given
to the session in the place of the file's bytes. No code changes: only the room it takes, 4/3 of the file's.
"""

from __future__ import annotations

import mmap
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pressoir.errors import ShardError, SourceError
from pressoir.formats import onnx_weights, packing
from pressoir.system.reader import is_file, parse_json, shown

_ADVICE = "export the model again"
KEY = "pressoir.packed3"
"""Of the model's metadata: a JSON list of initializers whose bytes are a 3-bit stream."""


def expand(graph: Path) -> dict[str, Any]:
    """4-bit weights (rows, blocks, bytes of a block), as OrtValues, of every 3-bit stream that `graph` names.

    Raises:
        SourceError: the graph is missing, or a stream is missing, truncated or of another length.
    """
    if not has_streams(graph):
        return {}
    import onnxruntime as ort

    try:
        model = onnx_weights.load(graph)
    except ShardError as error:
        raise SourceError(str(error)) from error
    listed = next((entry.value for entry in model.metadata_props if entry.key == KEY), "[]")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    expanded = {}
    names = parse_json(listed, f"{graph}: {KEY}", SourceError, _ADVICE)
    if not isinstance(names, list):
        raise SourceError(f"{graph}: {KEY} is not a list, but {shown(names)}; {_ADVICE}")
    for name in names:
        if not isinstance(name, str) or name not in tensors:
            raise SourceError(f"{graph}: {KEY} names {shown(name)}, which is not in the graph; {_ADVICE}")
        expanded[name] = ort.OrtValue.ortvalue_from_numpy(_four_bits(graph, tensors[name]))
    return expanded


def has_streams(graph: Path) -> bool:
    """Whether the graph's file names streams at all: parsing it would copy weights that lie within it.

    Raises:
        SourceError: the graph is missing or empty.
    """
    if not is_file(graph):
        raise SourceError(f"{graph.parent} has no {graph.name}; export the model first")
    try:
        with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(KEY.encode()) >= 0
    except (OSError, ValueError) as error:
        raise SourceError(f"{graph} cannot be read ({error}); export the model again") from error


def _four_bits(graph: Path, tensor: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    name, dims = shown(tensor.name), tuple(tensor.dims)
    try:
        external = onnx_weights.place_of(tensor, graph.parent)
    except ShardError as error:
        raise SourceError(str(error)) from error
    if external is None or len(dims) < 2 or min(dims) < 1:
        raise SourceError(f"{graph}: {name} {list(dims)} has no 3-bit weights in a data file; {_ADVICE}")
    rows, codes = dims[0], 2 * prod(dims[1:])
    length = rows * packing.packed_size(codes, 3)
    if external.length != length:
        raise SourceError(
            f"{external.file}: the 3-bit weights of {name} {list(dims)} need {length} bytes, but "
            f"{external.length} are declared; download the model again"
        )
    stream = np.frombuffer(b"".join(external.chunks()), dtype=np.uint8)
    packed = packing.pack(packing.unpack(stream.reshape(rows, -1), 3, codes), 4)
    return packed.reshape(dims)
