"""Four-bit blocks without zero points, for tables that are looked up: codes −8…7 and a half-precision scale.

**Math.** A block w has one scale s and codes q = clamp(round(w / s), −8, 7); weight = q × s. The grid reaches
one step further down than up, so s takes the sign of the block's largest weight m: s = −m / f puts m on the
long side, exactly on −8 where f is 8. A larger f clips m and makes every other step finer; a smaller one does
the opposite. Of a few f the one with the smallest squared error is taken, block by block, after s was rounded
to what is stored.

**Why.** A zero point would need bits of its own, and float32 scales are 1 bit a weight at blocks of 32. So
stored, a weight of such a block takes 4 + 16 / 32 = 4.5 bits. The measurements are in docs/embeddings.md.

**Sources.** The signed scale is that of llama.cpp's Q4_0, https://github.com/ggml-org/llama.cpp
(`quantize_row_q4_0_ref`); clipping by search: R. Banner et al. 2019, arXiv:1810.05723.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pressoir.errors import QuantizationError
from pressoir.formats.symmetric_blocks import BITS, HIGHEST, LOWEST
from pressoir.quantization import grid

REACHES = (8.0, 7.0, 7.25, 7.5, 7.75, 8.25, 8.5, 8.75, 9.0, 9.5)
"""Steps of the grid from 0 to a block's largest weight, the one that clips nothing first."""
DEFAULT_BLOCK_SIZE = 32
_LIMIT = 450_000  # so that the scale stays below half precision's 65,504
_CHUNK = 1 << 20  # weights at a time, so that temporaries stay small


def quantize(weight: Tensor, block_size: int, name: str = "weight") -> tuple[Tensor, Tensor]:
    """Codes (rows, columns), int8 of −8…7, and scales (rows, columns / block_size), float16, of a matrix.

    Each row is quantised on its own.

    Raises:
        QuantizationError: a weight is not finite or too large for a half-precision scale, or `block_size`
            does not divide the columns; the message has `name`.
    """
    grid.check(weight, BITS, block_size, name)
    if (weight.abs() > _LIMIT).any():
        raise QuantizationError(f"{name}.weight has values above {_LIMIT:,}; add {name} to quantize.exclude")
    rows, columns = weight.shape
    chunks = [_quantize(chunk.reshape(-1, block_size)) for chunk in weight.split(max(_CHUNK // columns, 1))]
    codes, scales = (torch.cat(tensors) for tensors in zip(*chunks, strict=True))
    return codes.reshape(rows, columns), scales.reshape(rows, -1)


def block_size(columns: int, wanted: int | None, name: str) -> int:
    """The block size of a table of so many columns: what is wanted, else the default, or less if it must.

    Raises:
        QuantizationError: what is wanted, or every size up to the default, does not divide the columns.
    """
    if wanted is None:
        sizes = [size for size in grid.BLOCK_SIZES if size <= DEFAULT_BLOCK_SIZE and columns % size == 0]
        wanted = max(sizes, default=DEFAULT_BLOCK_SIZE)
    grid.check_block_size(columns, wanted, name)
    return wanted


def _quantize(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales (blocks, 1) of blocks (blocks, block_size)."""
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    best_scales = torch.ones_like(largest)
    best = torch.full_like(largest, torch.inf)
    for reach in REACHES:
        scales = (largest / -reach).half().float()
        scales = torch.where(scales == 0, torch.ones_like(scales), scales)  # nothing there, or next to it
        error = (blocks - _round(blocks, scales) * scales).square_().sum(dim=1, keepdim=True)
        better = error < best
        best, best_scales = torch.where(better, error, best), torch.where(better, scales, best_scales)
    return _round(blocks, best_scales).to(torch.int8), best_scales.half()


def _round(blocks: Tensor, scales: Tensor) -> Tensor:
    return (blocks / scales).round_().clamp_(LOWEST, HIGHEST)
