"""Fill a model that was built without weights, one shard after the other, and know which modules are whole.

A weight that is stored in the type it is computed in stays where the shard is mapped; a quantised one is
expanded when its codes, scales and zero points are there; any other is converted.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import PreTrainedModel

from pressoir.errors import QuantizationError, ShardError, SourceError
from pressoir.formats import packing
from pressoir.formats.folder import QUANTIZATION, read_json
from pressoir.formats.packed_checkpoint import (
    CODES,
    FORMAT_VERSION,
    SCALES,
    ZERO_POINTS,
    LayerInfo,
    PackedLayer,
)
from pressoir.formats.sharding import ShardManifest, ShardRecord, TensorRecord
from pressoir.formats.tensor_bytes import ALIGNMENT, read_header
from pressoir.models.execution_order import model_name

_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}
_PARTS = (CODES, SCALES, ZERO_POINTS)
Slot = tuple[nn.Module, str]
"""A module, and the name of one of its own parameters or buffers."""


class LateWeights:
    """The weights that `model` still lacks, of a sharded checkpoint whose other files are in `folder`.

    Raises:
        SourceError: the checkpoint does not have all of the model's weights, or its quantised ones are of a
            kind that is not expanded here.
        QuantizationError: `quantization.json` does not fit the manifest.
    """

    def __init__(self, model: PreTrainedModel, folder: Path, manifest: ShardManifest) -> None:
        stored = {tensor.name: tensor for record in manifest.shards for tensor in record.tensors}
        self._layers = _packed_layers(folder, stored)
        self._copies: dict[str, list[str]] = {}  # a stored tensor's name: names of others that it is, too
        for copy, original in manifest.tied.items():
            self._copies.setdefault(original, []).append(copy)
        for layer, info in self._layers.items():
            if info.tied_to is not None:
                self._copies.setdefault(f"{info.tied_to}.{CODES}", []).append(f"{layer}.{CODES}")

        self._arrived: dict[str, dict[str, Tensor]] = {}  # a layer: its codes, scales, zero points so far
        self._filled = set[int]()
        self._slots: dict[int, list[Slot]] = {}  # a weight's number: where it goes, several places if tied
        self._numbers: dict[str, int] = {}  # a weight's names
        numbers: dict[int, int] = {}
        for name, slot in _slots(model):
            self._numbers[name] = numbers.setdefault(id(_value(slot)), len(numbers))
            self._slots.setdefault(self._numbers[name], []).append(slot)
        self._prefix = model.base_model_prefix
        found = map(self._number, self._weights_of(stored))
        provided = {number for number in found if number is not None}
        self._waiting: dict[nn.Module, set[int]] = {}
        for number in provided:
            for module, _ in self._slots[number]:
                self._waiting.setdefault(module, set()).add(number)
        missing = [
            name
            for name, number in self._numbers.items()
            if number not in provided and isinstance(_value(self._slots[number][0]), nn.Parameter)
        ]
        if missing:
            raise SourceError(
                f"{folder} is missing weights of a {type(model).__name__} ({', '.join(missing[:5])}); "
                "config.json does not match the weights"
            )

    @property
    def modules(self) -> list[nn.Module]:
        """Modules that wait for weights of their own."""
        return list(self._waiting)

    def whole(self, module: nn.Module) -> bool:
        """Whether all of a module's own weights are there."""
        return not self._waiting[module]

    def fill(self, path: Path, record: ShardRecord, mapped: mmap.mmap) -> Iterator[nn.Module]:
        """Put in the tensors of a verified shard; yield each module that became whole.

        Raises:
            ShardError: its header is not what the manifest says, or a tensor does not fit the model.
        """
        found = {(t.name, t.dtype, t.shape, t.offset, t.length) for t in read_header(path)}
        declared = {(t.name, t.dtype, tuple(t.shape), t.offset, t.bytes) for t in record.tensors}
        if found != declared:
            raise ShardError(f"{path}: header and manifest differ; run `pressoir shard` again")
        for tensor in record.tensors:
            layer, _, suffix = tensor.name.rpartition(".")
            value = _mapped(mapped, tensor)
            if layer not in self._layers or suffix not in _PARTS:
                yield from self._put(path, tensor.name, value)
                continue
            arrived = self._arrived.setdefault(layer, {})
            arrived[suffix] = value
            if len(arrived) == len(_PARTS):
                weight = _expanded(layer, self._layers[layer], self._arrived.pop(layer))
                yield from self._put(path, f"{layer}.{CODES}", weight)

    def _weights_of(self, stored: Iterable[str]) -> Iterator[str]:
        """Names of the weights that the stored tensors make."""
        for name in stored:
            layer, _, suffix = name.rpartition(".")
            if layer not in self._layers or suffix not in (SCALES, ZERO_POINTS):
                yield name
                yield from self._copies.get(name, ())

    def _number(self, name: str) -> int | None:
        """A weight's number; None for what the model makes itself, such as an older version's buffers."""
        return self._numbers.get(model_name(name, self._numbers, self._prefix))

    def _put(self, path: Path, name: str, value: Tensor) -> Iterator[nn.Module]:
        for target in (name, *self._copies.get(name, ())):
            number = self._number(target)
            if number is None or number in self._filled:  # tied to one that came before
                continue
            old = _value(self._slots[number][0])
            if old.shape != value.shape:
                raise ShardError(
                    f"{path}: {name} is {list(value.shape)}, but the model in config.json has "
                    f"{list(old.shape)}; run `pressoir shard` again on the whole model"
                )
            if value.is_floating_point() and old.is_floating_point():
                value = value.to(old.dtype)
            new = nn.Parameter(value, requires_grad=False)
            self._filled.add(number)
            for module, attribute in self._slots[number]:
                # Not by setattr: a thread that builds another model without weights at the same time has
                # replaced what registers parameters, for all modules of the process.
                if attribute in module._parameters:
                    module._parameters[attribute] = new
                else:
                    module._buffers[attribute] = new
                self._waiting[module].discard(number)
                if not self._waiting[module]:
                    yield module


def _slots(model: nn.Module) -> Iterator[tuple[str, Slot]]:
    """Full name and slot of every parameter, and of every buffer that a checkpoint may hold."""
    for path, module in model.named_modules():
        buffers = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
        for name in [*module._parameters, *buffers]:
            if getattr(module, name) is not None:
                yield f"{path}.{name}".removeprefix("."), (module, name)


def _value(slot: Slot) -> Tensor:
    value: Tensor = getattr(*slot)
    return value


def _mapped(mapped: mmap.mmap, tensor: TensorRecord) -> Tensor:
    """A tensor on the pages of a mapped file; a copy of one that does not begin at a multiple of 64 bytes.

    Kernels choose their way by the alignment, so that the last bits of a product depend on it. A copy, like
    any tensor that PyTorch makes, is aligned. Shards are written so that only small tensors are not.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None or math.prod(tensor.shape) * dtype.itemsize != tensor.bytes:
        raise ShardError(
            f"{tensor.name} is {tensor.bytes} bytes of {tensor.dtype} {tensor.shape}, which is not supported"
        )
    if not tensor.bytes:
        return torch.empty(tensor.shape, dtype=dtype)
    count = tensor.bytes // dtype.itemsize
    value = torch.frombuffer(mapped, dtype=dtype, count=count, offset=tensor.offset).reshape(tensor.shape)
    return value.clone() if tensor.offset % ALIGNMENT else value


def _expanded(name: str, info: LayerInfo, tensors: dict[str, Tensor]) -> Tensor:
    """A quantised weight in float32, in the orientation that the model has it in."""
    layer = PackedLayer(
        name=name,
        kind=info.kind,
        role=info.role,
        bits=info.bits,
        block_size=info.block_size,
        shape=info.shape,
        packed=tensors[CODES].numpy(),
        scales=tensors[SCALES].numpy(),
        zero_points=packing.unpack(tensors[ZERO_POINTS].numpy(), info.bits, info.blocks),
    )
    weight = torch.from_numpy(layer.dequantize())  # (out, in)
    return weight.T.contiguous() if info.kind == "conv1d" else weight


def _packed_layers(folder: Path, stored: Mapping[str, TensorRecord]) -> dict[str, LayerInfo]:
    """The quantised layers; none of a plain checkpoint."""
    path = folder / QUANTIZATION
    if not path.is_file():
        return {}
    description = read_json(path)
    if description.get("format_version") != FORMAT_VERSION:
        raise SourceError(
            f"{path}: int8 weights and activations are only simulated in PyTorch; export the model and run "
            "it in ONNX Runtime"
        )
    try:
        layers = {name: LayerInfo.model_validate(layer) for name, layer in description["layers"].items()}
    except (KeyError, AttributeError, ValidationError) as error:
        raise QuantizationError(f"{path}: `layers` is not valid ({error})") from error
    for layer, info in layers.items():
        for name, (dtype, shape) in info.layout(layer).items():
            tensor = stored.get(name)
            if tensor is None or (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
                raise QuantizationError(
                    f"{path} makes {name} {dtype} {list(shape)}, but no shard contains it in this form"
                )
    return layers
