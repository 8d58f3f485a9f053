"""4-bit codes of blocks of weights that share a scale and have no zero point."""

from __future__ import annotations

from torch import Tensor

BITS = 4
LOWEST, HIGHEST = -8, 7


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 matrix (rows, columns): codes × scales, rounded once."""
    rows, blocks = scales.shape
    return (codes.float().reshape(rows, blocks, -1) * scales.float()[..., None]).reshape(codes.shape)
