"""The integer grid that a matrix is rounded to: codes, one scale and one integer zero point a block.

The algorithms differ only in how they choose the grid and the codes; what they give is always this.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pressoir.errors import QuantizationError
from pressoir.extensions.quantizer import QuantizedMatrix

BLOCK_SIZES = (16, 32, 64, 128, 256)
_TINY = torch.finfo(torch.float32).tiny


def check(weight: Tensor, bits: int, block_size: int, name: str) -> None:
    """Refuse what no grid can hold.

    Raises:
        QuantizationError: a weight is NaN or infinite, or blocks do not divide the columns; the
            message has `name`.
    """
    if not torch.isfinite(weight).all():
        raise QuantizationError(
            f"{name}.weight has NaN or infinite values and cannot be quantised; train the model again, or "
            f"add {name} to quantize.exclude"
        )
    check_block_size(weight.shape[1], block_size, name)


def check_block_size(columns: int, block_size: int, name: str) -> None:
    """Refuse blocks that do not divide the columns of layer `name`.

    Raises:
        QuantizationError: they do not; the message names those that do.
    """
    if columns % block_size:
        fitting = [size for size in BLOCK_SIZES if columns % size == 0]
        advice = f"use block_size {' or '.join(map(str, fitting))}" if fitting else f"exclude {name}"
        raise QuantizationError(f"{name} has {columns} inputs, which {block_size} does not divide; {advice}")


def range_grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and integer zero points (float tensors) that span [low, high], widened so that 0 is in it.

    Where the span is 0, or too small for a float32 scale, the scale is 1: all codes are the zero point.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    steps = 2**bits - 1
    scales = (high - low) / steps
    scales = torch.where(scales < _TINY, torch.ones_like(scales), scales)
    return scales, (-low / scales).round().clamp(0, steps)


def round_to(weight: Tensor, scales: Tensor, zero_points: Tensor, bits: int) -> Tensor:
    """The nearest codes, as floats; `scales` and `zero_points` broadcast against `weight`."""
    return (weight / scales + zero_points).round_().clamp_(0, 2**bits - 1)


def check_result(matrix: QuantizedMatrix, weight: Tensor, bits: int, block_size: int, origin: str) -> None:
    """Refuse what an algorithm made of `weight` (out, in) where it is not on such a grid.

    `origin` starts the message: which algorithm, and on which layer. A code beyond the bits would be packed
    into its neighbour without any error.

    Raises:
        QuantizationError: a type or a shape is another, a code or zero point is beyond 2^bits − 1, or a scale
            is not finite.
    """
    blocks = (weight.shape[0], weight.shape[1] // block_size)
    expected = {
        "codes": (weight.shape, torch.uint8),
        "scales": (blocks, torch.float32),
        "zero_points": (blocks, torch.uint8),
    }
    problems = []
    for field, (shape, dtype) in expected.items():
        values: Tensor = getattr(matrix, field)
        if values.shape != shape or values.dtype != dtype:
            problems.append(f"{field} are {values.dtype} {list(values.shape)}, not {dtype} {list(shape)}")
        elif dtype == torch.uint8 and int(values.max()) >= 2**bits:
            problems.append(f"{field} go up to {int(values.max())}, but {bits} bits only to {2**bits - 1}")
        elif not torch.isfinite(values).all():
            problems.append(f"{field} have NaN or infinite values")
    if matrix.bits != bits:
        problems.append(f"it has {matrix.bits} bits, not {bits}")
    if problems:
        raise QuantizationError(f"{origin} gave a wrong result: {'; '.join(problems)}")
