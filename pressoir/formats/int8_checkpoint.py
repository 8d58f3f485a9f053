"""The int8 checkpoint (format 1): what lies in it, and how it is read.

A folder holds `model.safetensors`, `config.json`, the tokenizer and `quantization.json`. A quantised layer
has two tensors:

- 8 bits: `<layer>.weight`, int8 (out, in) of a linear layer or (rows, width) of a table, and
  `<layer>.weight_scale`, float32, one a row;
- 4 bits (tables only): `<layer>.weight`, uint8 (rows, width / 2), two codes a byte, each plus 8, see
  `packing`, and `<layer>.weight_scale`, float16 (rows, width / block_size), see `symmetric`.

weight = code × scale. Everything else is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pressoir.errors import SourceError
from pressoir.formats import packing, symmetric_blocks
from pressoir.formats.folder import QUANTIZATION, read_json
from pressoir.system.reader import is_file, shown

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
_ADVICE = "quantise the model again"


@dataclass(frozen=True)
class PackedWeight:
    """One quantised layer, its codes unpacked."""

    kind: str
    """`linear` or `embedding`."""
    codes: NDArray[np.int8]
    """(out, in) of a linear layer, (rows, width) of an embedding; −127…127, or −8…7 of 4 bits."""
    scales: NDArray[np.float32] | NDArray[np.float16]
    """(out,) or (rows,), float32; of 4 bits (rows, width / block_size), float16."""
    bits: int = 8

    @property
    def weight(self) -> NDArray[np.float32]:
        """The float32 weight, exactly codes × scales."""
        return dequantize(torch.from_numpy(self.codes), torch.from_numpy(self.scales)).numpy()

    @property
    def block_size(self) -> int:
        """Codes that share a scale."""
        return self.codes.size // self.scales.size


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 weight of codes (rows, columns), whose scales are one a row, or (rows, blocks)."""
    return codes.float() * scales[:, None] if scales.ndim == 1 else symmetric_blocks.dequantize(codes, scales)


def stored(codes: Tensor, scales: Tensor) -> Tensor:
    """The codes as the file holds them: those of blocks two a byte."""
    if scales.ndim == 1:
        return codes
    return torch.from_numpy(
        packing.pack((codes - symmetric_blocks.LOWEST).to(torch.uint8).numpy(), symmetric_blocks.BITS)
    )


def packed_layers(folder: Path) -> dict[str, PackedWeight]:
    """Codes and scales of every quantised layer of a folder, exactly as stored.

    Raises:
        SourceError: `quantization.json` or the weights are damaged, or of an unknown format.
    """
    layers, state = read(folder)
    return {
        name: PackedWeight(
            kind=layer["kind"],
            codes=_codes(layer, state[f"{name}.weight"]).numpy(),
            scales=state[f"{name}.weight_scale"].numpy(),
            bits=layer["bits"],
        )
        for name, layer in layers.items()
    }


def dequantized_state(folder: Path) -> dict[str, Tensor]:
    """The state dict of a quantised folder in float32; a quantised weight is exactly codes × scales.

    Raises:
        SourceError: `quantization.json` or the weights are damaged, or of an unknown format.
    """
    layers, state = read(folder)
    for name, layer in layers.items():
        codes, scales = _codes(layer, state[f"{name}.weight"]), state.pop(f"{name}.weight_scale")
        state[f"{name}.weight"] = dequantize(codes, scales)
    return state


def _codes(layer: dict[str, Any], codes: Tensor) -> Tensor:
    if layer["bits"] == 8:
        return codes
    numbers = packing.unpack(codes.numpy(), symmetric_blocks.BITS, layer["shape"][1])
    return torch.from_numpy(numbers.astype(np.int8)) + symmetric_blocks.LOWEST


def read(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """The layers that `quantization.json` describes, and the raw tensors, all checked against each other.

    Raises:
        SourceError: `quantization.json` or the weights are damaged, or of an unknown format.
    """
    path = folder / QUANTIZATION
    description = read_json(path)
    for field, known in (("format_version", FORMAT_VERSION), ("scheme", "int8"), ("activations", "dynamic")):
        if description.get(field) != known:
            raise SourceError(
                f"{path}: {field} is {shown(description.get(field))}, but this version of Pressoir supports "
                f"{known!r}; use the version that wrote it, or {_ADVICE}"
            )
    layers = description.get("layers")
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise SourceError(f"{path}: `layers` is not an object of objects; {_ADVICE}")
    if not is_file(folder / WEIGHTS):
        raise SourceError(f"{folder / WEIGHTS} is missing, or not a regular file; {_ADVICE}")
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{folder / WEIGHTS} cannot be read ({error}); {_ADVICE}") from error
    for name, layer in layers.items():
        codes, scales = state.get(f"{name}.weight"), state.get(f"{name}.weight_scale")
        if codes is None or scales is None:
            raise SourceError(f"{folder / WEIGHTS} has no codes or no scales of layer {name}; {_ADVICE}")
        kind, bits, size = layer.get("kind"), layer.get("bits"), layer.get("block_size")
        blocks = kind == "embedding" and bits == symmetric_blocks.BITS and isinstance(size, int) and size > 0
        if not blocks and (kind not in ("linear", "embedding") or bits != 8):
            raise SourceError(
                f"{path}, layer {name}: kind {shown(kind)} with {shown(bits)} bits is not supported (linear "
                f"or embedding of 8 bits, embedding of 4 bits with its block_size); {_ADVICE}"
            )
        shape = layer.get("shape")
        if _expected(shape, size if blocks else None) != (
            codes.dtype,
            list(codes.shape),
            scales.dtype,
            list(scales.shape),
        ):
            raise SourceError(
                f"{folder / WEIGHTS}, layer {name}: codes {codes.dtype} {list(codes.shape)} and scales "
                f"{scales.dtype} {list(scales.shape)} do not match {path.name} ({shape}); {_ADVICE}"
            )
    orphans = [
        name
        for name in state
        if name.endswith(".weight_scale") and name.removesuffix(".weight_scale") not in layers
    ]
    if orphans:
        raise SourceError(f"{path} does not describe {orphans[0].removesuffix('.weight_scale')}; {_ADVICE}")
    return layers, state


def _expected(shape: Any, block_size: int | None) -> tuple[torch.dtype, Any, torch.dtype, Any]:
    """Types and shapes of the codes and scales of a layer of `shape`; `block_size` is that of 4 bits."""
    if block_size is None:
        return torch.int8, shape, torch.float32, shape[:1] if isinstance(shape, list) else None
    known = isinstance(shape, list) and len(shape) == 2 and all(isinstance(size, int) for size in shape)
    rows, columns = shape if known and shape[1] % block_size == 0 else (0, 0)
    return torch.uint8, [rows, columns // 2], torch.float16, [rows, columns // block_size]
