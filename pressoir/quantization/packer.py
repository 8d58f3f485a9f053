"""From matrices to the packed file: how each is to be stored, and the file filled as they come.

The plan is made first, from shapes alone, because the file's header holds every size. A configuration that
cannot be carried out thus fails before any weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pressoir.errors import QuantizationError
from pressoir.extensions.quantizer import QuantizedMatrix
from pressoir.formats import packing
from pressoir.formats.packed_checkpoint import CODES, SCALES, ZERO_POINTS, LayerInfo
from pressoir.formats.tensor_bytes import WEIGHTS
from pressoir.formats.tensor_files import Writer
from pressoir.quantization import grid
from pressoir.quantization.source import Matrix, SourceModel
from pressoir.recipe.sections import QuantizeConfig
from pressoir.reporting import Reporter

DEFAULT_BLOCK_SIZES = {8: 64, 4: 64, 3: 64, 2: 128}
"""By bits, where the configuration names none."""
Plan = dict[str, LayerInfo]
"""How each matrix is stored, in the model's order."""


def plan(source: SourceModel, config: QuantizeConfig, bits: Mapping[str, int]) -> Plan:
    """How each matrix that is not excluded will be stored; errors are not known yet.

    `bits` are those of matrix products; where it names none, and for the head and the embedding, 8, or what
    `embeddings` says.

    Raises:
        QuantizationError: blocks do not divide a layer (it and the sizes that fit are named), or every
            matrix product is excluded.
    """
    left_out = excluded(source, config)
    outside = 4 if config.embeddings == "q4" else 8
    if all(name in left_out or matrix.role != "matmul" for name, matrix in source.matrices.items()):
        raise QuantizationError(
            f"nothing to quantise: quantize.exclude contains every linear layer ({', '.join(config.exclude)})"
        )
    return {
        name: describe(matrix, bits.get(name, 8) if matrix.role == "matmul" else outside, config)
        for name, matrix in source.matrices.items()
        if name not in left_out
    }


def describe(matrix: Matrix, bits: int, config: QuantizeConfig) -> LayerInfo:
    """How one matrix will be stored in `bits`.

    The configured block size must fit a matrix product. The default one gives way to the largest that does:
    a model's feed-forward width may be an odd multiple of 64.

    Raises:
        QuantizationError: blocks do not divide the layer; it and the sizes that fit are named.
    """
    block_size = DEFAULT_BLOCK_SIZES[bits]
    if config.block_size is not None and matrix.role == "matmul":
        block_size = config.block_size
    else:
        block_size = next((s for s in _down_from(block_size) if matrix.shape[1] % s == 0), block_size)
    grid.check_block_size(matrix.shape[1], block_size, matrix.name)
    return LayerInfo(
        kind=matrix.kind,
        role=matrix.role,
        bits=bits,
        block_size=block_size,
        shape=matrix.shape,
        relative_error=0.0,
        tied_to=matrix.tied_to,
    )


def excluded(source: SourceModel, config: QuantizeConfig) -> dict[str, str]:
    """Matrices that stay float32, with the reason. Of two that share a weight, both stay or none."""
    result = {}
    for name, matrix in source.matrices.items():
        tied = {n for n, other in source.matrices.items() if (other.tied_to or n) == (matrix.tied_to or name)}
        if any(_named_by(other, config.exclude) for other in tied):
            result[name] = "named in quantize.exclude"
        elif matrix.role != "matmul" and config.embeddings == "float":
            result[name] = "quantize.embeddings is float"
    return result


class Packer:
    """Writes `model.safetensors` of a packed folder, one matrix at a time, and keeps count of the errors.

    Used as a context manager. Tensors that are not quantised are written at once.

    Raises:
        QuantizationError: one of those has values that are not finite.
    """

    def __init__(self, folder: Path, source: SourceModel, plan: Plan, reporter: Reporter) -> None:
        self.plan, self._source, self._reporter = plan, source, reporter
        self._errors: dict[str, list[float]] = {}  # squared error and squared norm, by finished rows
        self._rows = dict.fromkeys((name for name, info in plan.items() if info.tied_to is None), 0)
        self._total = len(self._rows)
        layout: dict[str, tuple[str, tuple[int, ...]]] = {}
        plain = []
        for name in source.names:
            layer = name.removesuffix(".weight")
            if layer in source.matrices and layer in plan:
                layout |= plan[layer].layout(layer)
            elif layer not in source.matrices or source.matrices[layer].tied_to is None:
                layout[name] = source.dtype(name), source.shape(name)
                plain.append(name)
        self._writer = Writer(folder / WEIGHTS, layout)
        self.data_bytes = self._writer.data_bytes
        try:
            for name in plain:
                tensor = source.read(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise QuantizationError(f"{name} has NaN or infinite values; train the model again")
                self._writer.write(name, tensor.numpy())
        except BaseException:
            self._writer.close()
            raise

    @property
    def missing(self) -> list[str]:
        """Names of the matrices whose rows are not all written."""
        return list(self._rows)

    def put(self, name: str, weight: Tensor, quantized: QuantizedMatrix, first_row: int = 0) -> Tensor:
        """Write a matrix, or its rows from `first_row`; return what they now are, float32.

        `weight` (rows, in) is what was quantised.
        """
        info = self.plan[name]
        for suffix, values in (
            (CODES, packing.pack(quantized.codes.numpy(), info.bits)),
            (SCALES, quantized.scales.numpy()),
            (ZERO_POINTS, packing.pack(quantized.zero_points.numpy(), info.bits)),
        ):
            self._writer.write(f"{name}.{suffix}", values, first_row * values.nbytes // max(len(values), 1))
        result = quantized.dequantize()
        counts = self._errors.setdefault(name, [0.0, 0.0])
        counts[0] += float(torch.linalg.vector_norm(weight - result, dtype=torch.float64)) ** 2
        counts[1] += float(torch.linalg.vector_norm(weight, dtype=torch.float64)) ** 2
        self._rows[name] += len(weight)
        if self._rows[name] == info.shape[0]:
            del self._rows[name]
            self._reporter.progress(self._total - len(self._rows), self._total, "layers quantised")
        return result

    def finished(self) -> Plan:
        """The plan with every layer's relative error."""
        errors = {name: math.sqrt(a / b) if b else 0.0 for name, (a, b) in self._errors.items()}
        return {
            name: info.model_copy(update={"relative_error": errors[info.tied_to or name]})
            for name, info in self.plan.items()
        }

    def __enter__(self) -> Packer:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def _named_by(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _down_from(block_size: int) -> Iterator[int]:
    return (size for size in reversed(grid.BLOCK_SIZES) if size <= block_size)
