"""The packed weights-only checkpoint (format 2): what lies in it, and how it is read, one layer at a time.

A folder holds `model.safetensors`, `config.json`, the tokenizer and `quantization.json`. A quantised matrix
`<layer>` is always stored as (out, in), also where the model keeps it transposed (GPT-2's `Conv1D`), in
three tensors:

- `<layer>.weight`, uint8 (out, in · bits / 8): codes, see `packing`;
- `<layer>.weight_scale`, float32 (out, in / block_size);
- `<layer>.weight_zero_point`, uint8 (out, ceil(in / block_size · bits / 8)): packed in the same way.

weight = (code − zero point) × scale, with one scale and one zero point for each `block_size` neighbours along
`in`. A head that shares its weights with the embedding is described (`tied_to`), but not stored again.
Everything else is float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, ValidationError
from torch import Tensor

from pressoir.config import Config
from pressoir.errors import QuantizationError
from pressoir.formats import packing, tensor_files
from pressoir.formats.folder import QUANTIZATION, read_json
from pressoir.formats.tensor_bytes import WEIGHTS, TensorBytes

FORMAT_VERSION = 2
CODES, SCALES, ZERO_POINTS = "weight", "weight_scale", "weight_zero_point"
_ADVICE = "quantise the model again"


class LayerInfo(Config):
    """How one matrix is stored, as `quantization.json` describes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: str
    """`linear`, `conv1d` (GPT-2: transposed in the model) or `embedding`."""
    role: str
    """`matmul`, `embedding` or `head`."""
    bits: int
    block_size: int
    shape: tuple[int, int]
    """(out, in)."""
    relative_error: float
    """‖W − Ŵ‖ / ‖W‖ (Frobenius)."""
    tied_to: str | None = None
    """The layer whose stored weights this one shares."""

    @property
    def blocks(self) -> int:
        """Scales a row."""
        return self.shape[1] // self.block_size

    def layout(self, name: str) -> dict[str, tuple[str, tuple[int, int]]]:
        """Header dtype and shape of each stored tensor; none of a tied layer."""
        rows, columns = self.shape
        if self.tied_to is not None:
            return {}
        return {
            f"{name}.{CODES}": ("U8", (rows, packing.packed_size(columns, self.bits))),
            f"{name}.{SCALES}": ("F32", (rows, self.blocks)),
            f"{name}.{ZERO_POINTS}": ("U8", (rows, packing.packed_size(self.blocks, self.bits))),
        }

    @property
    def stored_bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(a * b * (4 if dtype == "F32" else 1) for dtype, (a, b) in self.layout("").values())


@dataclass(frozen=True)
class PackedLayer:
    """One quantised matrix, read from its file."""

    name: str
    kind: str
    role: str
    bits: int
    block_size: int
    shape: tuple[int, int]
    """(out, in)."""
    packed: NDArray[np.uint8]
    """(out, in · bits / 8): the codes' bit stream, see `packing`."""
    scales: NDArray[np.float32]
    """(out, in / block_size)."""
    zero_points: NDArray[np.uint8]
    """(out, in / block_size), unpacked."""
    tied_to: str | None = None

    def codes(self) -> NDArray[np.uint8]:
        """Codes (out, in), 0 … 2^bits − 1."""
        return packing.unpack(self.packed, self.bits, self.shape[1])

    def dequantize(self) -> NDArray[np.float32]:
        """The weight (out, in): (code − zero point) × scale, rounded once, to float32."""
        rows, columns = self.shape
        blocks = self.codes().reshape(rows, -1, self.block_size).astype(np.float32)
        blocks -= self.zero_points[:, :, None]
        blocks *= self.scales[:, :, None]
        return blocks.reshape(rows, columns)


@dataclass(frozen=True)
class PackedCheckpoint:
    """A packed folder, opened: only headers and `quantization.json` have been read."""

    folder: Path
    description: dict[str, Any]
    """The whole of `quantization.json`."""
    layers: dict[str, LayerInfo]
    """By module name, in the model's order."""
    tensors: dict[str, TensorBytes] = field(repr=False)
    """Where each stored tensor lies."""

    def layer(self, name: str) -> PackedLayer:
        """Read one layer; a tied one has the arrays of the layer it shares.

        Raises:
            QuantizationError: there is no such layer.
            SourceError: the file is cut off.
        """
        if name not in self.layers:
            raise QuantizationError(f"{self.folder} has no quantised layer {name!r}")
        info = self.layers[name]
        stored = info.tied_to or name
        packed, scales, zero_points = (
            tensor_files.read(self.tensors[f"{stored}.{suffix}"]).numpy()
            for suffix in (CODES, SCALES, ZERO_POINTS)
        )
        return PackedLayer(
            name=name,
            kind=info.kind,
            role=info.role,
            bits=info.bits,
            block_size=info.block_size,
            shape=info.shape,
            packed=packed,
            scales=scales,
            zero_points=packing.unpack(zero_points, info.bits, info.blocks),
            tied_to=info.tied_to,
        )

    def plain(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that is not quantised, by its name in the model, float32, one at a time."""
        stored = {tensor_name for name, info in self.layers.items() for tensor_name in info.layout(name)}
        for name, tensor in self.tensors.items():
            if name not in stored:
                yield name, tensor_files.read(tensor)


def is_packed(folder: Path) -> bool:
    """Whether a folder holds a packed weights-only checkpoint."""
    path = folder / QUANTIZATION
    return path.is_file() and read_json(path).get("format_version") == FORMAT_VERSION


def open_packed(folder: Path) -> PackedCheckpoint:
    """Open a packed folder and check that its description and its tensors fit each other.

    Raises:
        SourceError: `quantization.json` or `model.safetensors` is missing or damaged.
        QuantizationError: they are of another format, or do not fit each other.
    """
    path, weights = folder / QUANTIZATION, folder / WEIGHTS
    description = read_json(path)
    if description.get("format_version") != FORMAT_VERSION:
        raise QuantizationError(
            f"{path}: format_version is {description.get('format_version')!r}, but this version of "
            f"Pressoir supports {FORMAT_VERSION}; use the version that wrote it, or {_ADVICE}"
        )
    try:
        layers = {name: LayerInfo.model_validate(layer) for name, layer in description["layers"].items()}
    except (KeyError, AttributeError, ValidationError) as error:
        raise QuantizationError(f"{path}: `layers` is not valid ({error}); {_ADVICE}") from error
    tensors = tensor_files.tensors_of(folder)
    for name, info in layers.items():
        _check(path, name, info, layers)
        for tensor, (dtype, shape) in info.layout(name).items():
            entry = tensors.get(tensor)
            if entry is None:
                raise QuantizationError(f"{weights} has no tensor {tensor}; {_ADVICE}")
            if entry.dtype != dtype or entry.shape != shape:
                raise QuantizationError(
                    f"{weights}: {tensor} is {entry.dtype} {list(entry.shape)}, but according to "
                    f"{path.name} it should be {dtype} {list(shape)}; {_ADVICE}"
                )
    for tensor in tensors:
        name, _, suffix = tensor.rpartition(".")
        if suffix in (SCALES, ZERO_POINTS) and (name not in layers or layers[name].tied_to):
            raise QuantizationError(
                f"{path} does not describe {name}, but {weights.name} contains its {suffix}; {_ADVICE}"
            )
    return PackedCheckpoint(folder, description, layers, tensors)


def dequantized_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a packed folder under its name and in its orientation in the model, one at a time.

    A tied head is not repeated: the model ties it again.

    Yields:
        Name (`<layer>.weight`, biases, norms, …) and float32 tensor.

    Raises:
        SourceError: a file is missing or damaged.
        QuantizationError: the folder is not a packed checkpoint of this format.
    """
    import torch

    packed = open_packed(folder)
    for name, info in packed.layers.items():
        if info.tied_to is None:
            weight = torch.from_numpy(packed.layer(name).dequantize())
            yield f"{name}.weight", weight.T if info.kind == "conv1d" else weight
    for name, tensor in packed.plain():
        yield name, tensor.float() if tensor.is_floating_point() else tensor


def _check(path: Path, name: str, info: LayerInfo, layers: dict[str, LayerInfo]) -> None:
    known = info.kind in ("linear", "conv1d", "embedding") and info.role in ("matmul", "embedding", "head")
    if not known or info.bits not in packing.BITS:
        raise QuantizationError(
            f"{path}, layer {name}: a {info.kind} ({info.role}) of {info.bits} bits is not supported; "
            f"{_ADVICE}"
        )
    if info.block_size < 1 or min(info.shape) < 1 or info.shape[1] % info.block_size:
        raise QuantizationError(
            f"{path}, layer {name}: blocks of {info.block_size} do not divide {list(info.shape)}; {_ADVICE}"
        )
    if info.tied_to is not None:
        owner = layers.get(info.tied_to)
        same = owner is not None and (owner.tied_to, owner.shape, owner.bits, owner.block_size) == (
            None,
            info.shape,
            info.bits,
            info.block_size,
        )
        if not same:
            raise QuantizationError(
                f"{path}: {name} shares the weights of {info.tied_to}, which is stored differently; {_ADVICE}"
            )
