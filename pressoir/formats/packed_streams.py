"""3-bit weights of a graph: a bit stream on the disk, 4-bit codes in memory.

ONNX Runtime's `MatMulNBits` multiplies 2, 4 and 8 bits, not 3. So a 3-bit graph declares its weights as 4-bit
ones, and their external data as the bytes of a 3-bit stream; the model's metadata lists them
(`pressoir.packed3`). Before a session is made, the codes are read, written again with 4 bits each, and given
to the session in the place of the file's bytes. No code changes: only the room it takes, 4/3 of the file's.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from pressoir.errors import SourceError
from pressoir.formats import packing

KEY = "pressoir.packed3"
"""Of the model's metadata: a JSON list of initializers whose bytes are a 3-bit stream."""


def expand(graph: Path) -> dict[str, Any]:
    """4-bit weights (rows, blocks, bytes of a block), as OrtValues, of every 3-bit stream that `graph` names.

    Raises:
        SourceError: the graph is missing, or a stream is missing, truncated or of another length.
    """
    if not has_streams(graph):
        return {}
    import onnx
    import onnxruntime as ort

    model = onnx.load(graph, load_external_data=False)
    listed = next((entry.value for entry in model.metadata_props if entry.key == KEY), "[]")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    expanded = {}
    for name in json.loads(listed):
        if name not in tensors:
            raise SourceError(
                f"{graph}: {KEY} names {name}, which is not in the graph; export the model again"
            )
        expanded[name] = ort.OrtValue.ortvalue_from_numpy(_four_bits(graph, tensors[name]))
    return expanded


def has_streams(graph: Path) -> bool:
    """Whether the graph's file names streams at all: parsing it would copy weights that lie within it.

    Raises:
        SourceError: the graph is missing or empty.
    """
    if not graph.exists():
        raise SourceError(f"{graph.parent} has no {graph.name}; export the model first")
    try:
        with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(KEY.encode()) >= 0
    except (OSError, ValueError) as error:
        raise SourceError(f"{graph} cannot be read ({error}); export the model again") from error


def _four_bits(graph: Path, tensor: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    place = {entry.key: entry.value for entry in tensor.external_data}
    location, dims = place.get("location", ""), tuple(tensor.dims)
    if not location or Path(location).name != location:
        raise SourceError(
            f"{graph}: {tensor.name} has no data file in the folder of the graph; export the model again"
        )
    rows, codes = dims[0], 2 * int(np.prod(dims[1:]))
    length = rows * packing.packed_size(codes, 3)
    try:
        with (graph.parent / location).open("rb") as file:
            file.seek(int(place.get("offset", 0)))
            stream = np.frombuffer(file.read(length), dtype=np.uint8)
    except OSError as error:
        raise SourceError(
            f"{graph.parent / location}: {error.strerror or error}; download it again"
        ) from error
    if stream.size != length or int(place.get("length", length)) != length:
        raise SourceError(
            f"{graph.parent / location}: the 3-bit weights of {tensor.name} {list(dims)} need {length} "
            f"bytes, but {place.get('length')} are declared and {stream.size} exist; download the model "
            "again"
        )
    packed = packing.pack(packing.unpack(stream.reshape(rows, -1), 3, codes), 4)
    return packed.reshape(dims)
