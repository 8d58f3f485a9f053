"""Safetensors files, read and written a piece at a time.

A memory map would be simpler, but every page touched of it counts as resident memory until the kernel takes
it back; reading byte ranges keeps no more in memory than the piece at hand. The writer lays the whole file
out first, which the format allows because the header holds only names, types, shapes and offsets.

Source: https://huggingface.co/docs/safetensors/index#format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pressoir.errors import SourceError
from pressoir.formats.tensor_bytes import TensorBytes, checkpoint_tensors

_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


def tensors_of(folder: Path) -> dict[str, TensorBytes]:
    """Every tensor of a model folder by name, in the files' order; nothing but headers is read.

    Raises:
        SourceError: there are no safetensors files, one is damaged, or holds a dtype that is not known.
    """
    tensors = {tensor.name: tensor for tensor in checkpoint_tensors(folder)}
    for tensor in tensors.values():
        if tensor.dtype not in _DTYPES:
            raise SourceError(
                f"{tensor.file}: {tensor.name} is of dtype {tensor.dtype}, which is not supported; save it "
                "as F32, F16 or BF16"
            )
    return tensors


def read(tensor: TensorBytes, rows: slice | None = None) -> Tensor:
    """A tensor, or some of its rows (along the first axis), in the dtype of its file.

    Raises:
        SourceError: the file cannot be read, or ends before the tensor does.
    """
    if tensor.file is None:
        raise SourceError(f"{tensor.name} is not in any file")
    shape, start, dtype = tensor.shape, tensor.offset, _DTYPES[tensor.dtype]
    if rows is not None:
        low, high, _ = rows.indices(shape[0])
        start += low * prod(shape[1:]) * dtype.itemsize
        shape = (max(high - low, 0), *shape[1:])
    size, got = prod(shape) * dtype.itemsize, 0
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    buffer = bytearray(size)
    try:
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(start)
            while got < size and (more := file.readinto(memoryview(buffer)[got:])):
                got += more
    except OSError as error:
        raise SourceError(f"{tensor.file} cannot be read: {error.strerror or error}") from error
    if got < size:
        raise SourceError(f"{tensor.file} ends before its tensor {tensor.name!r}; download it again")
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


class Writer:
    """Writes one safetensors file whose tensors are known by dtype and shape before any has its values.

    `write` may be called in any order, and for parts of a tensor.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[str, Sequence[int]]]) -> None:
        """`layout` gives the header's dtype name and the shape of each tensor."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._offsets, end = dict[str, int](), 0
        # The widest types first, as the safetensors library does, so that every tensor is aligned.
        for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -_DTYPES[item[1][0]].itemsize):
            start, end = end, end + prod(shape) * _DTYPES[dtype].itemsize
            self._offsets[name] = start
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._begin = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._begin + end)
        self.data_bytes = end

    def write(self, name: str, values: NDArray[Any], start: int = 0) -> None:
        """Put the bytes of `values` at byte `start` of the tensor `name`."""
        self._file.seek(self._begin + self._offsets[name] + start)
        self._file.write(np.ascontiguousarray(values).data)

    def close(self) -> None:
        """End the file."""
        self._file.close()
