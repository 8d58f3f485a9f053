"""Round to nearest: the min-max grid of each block, and the nearest point of it for each weight.

**Math.** With q = 2^bits − 1, a block's scale is s = (max(w, 0) − min(w, 0)) / q, its zero point
z = round(−min(w, 0) / s), its codes clamp(round(w / s) + z, 0, q). Without clipping, a weight is off by at
most s / 2 (by at most s where the zero point's own rounding pushes it past the last code).

**Source.** Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, CVPR 2018, arXiv:1712.05877 (asymmetric quantisation with an integer zero point), here by block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pressoir.extensions.quantizer import QuantizedMatrix, Quantizer
from pressoir.quantization import grid


def quantize(weight: Tensor, bits: int, block_size: int, name: str = "weight") -> QuantizedMatrix:
    """Quantise a float32 matrix (out, in), each row on its own.

    Raises:
        QuantizationError: a weight is not finite, or `block_size` does not divide `in`; the
            message has `name`.
    """
    grid.check(weight, bits, block_size, name)
    blocks = weight.reshape(weight.shape[0], -1, block_size)
    low, high = torch.aminmax(blocks, dim=2, keepdim=True)
    scales, zero_points = grid.range_grid(low, high, bits)
    codes = grid.round_to(blocks, scales, zero_points, bits)
    return QuantizedMatrix(
        bits,
        codes.to(torch.uint8).reshape(weight.shape),
        scales.squeeze(2),
        zero_points.squeeze(2).to(torch.uint8),
    )


QUANTIZER = Quantizer("rtn", quantize)
