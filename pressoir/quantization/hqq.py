"""Half-quadratic quantisation: a grid that follows the bulk of a block, found without data.

**Math.** The error's ‖W − Ŵ‖ₚᵖ with p < 1 is minimised, which forgives a few large errors for many small
ones. With an auxiliary error E the problem splits into alternating steps, each in closed form:

- codes Q: the nearest points of the current grid;
- E: the generalised soft threshold of W − Ŵ, sign(x) · max(|x| − |x|^(p−1) / β, 0), β growing;
- zero point: the mean of Q − (W − E) / s, rounded: here it ends as an integer, as kernels want it;
- scale: the least-squares factor ⟨W − E, Q − z⟩ / ‖Q − z‖² (the paper keeps the min-max scale).

The iteration starts at RTN's grid, and each block keeps the best grid it has seen, so that its objective is
never above RTN's.

A least-squares scale shrinks: ⟨W, Ŵ⟩ = ‖Ŵ‖² < ‖W‖². At 2 bits a row loses about an eighth of its gain, and so
do the signals of every layer, one after the other. So when the codes stand, the scales of each row are
multiplied by ‖w‖² / ⟨w, ŵ⟩ (Banner et al.'s correction of the weights' norm, here of their projection),
unless that would put the row's objective above RTN's.

**Sources.** H. Badri and A. Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models,
https://mobiusml.github.io/hqq_blog/; R. Banner et al. 2019, Post Training 4-bit Quantization of Convolution
Networks for Rapid-Deployment, arXiv:1810.05723, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pressoir.quantization import grid
from pressoir.quantization.grid import QuantizedMatrix

P_NORM = 0.7
ITERATIONS = 20
BETA, BETA_GROWTH = 10.0, 1.01  # the paper's, for weights divided by their block's range
_CHUNK = 1 << 20  # weights at a time, so that temporaries stay small


def quantize(weight: Tensor, bits: int, block_size: int, name: str = "weight") -> QuantizedMatrix:
    """Quantise a float32 matrix (out, in), each row on its own.

    Raises:
        QuantizationError: a weight is not finite, or `block_size` does not divide `in`; `name` is told.
    """
    grid.check(weight, bits, block_size, name)
    rows, columns = weight.shape
    parts = []
    for part in weight.split(max(_CHUNK // columns, 1)):
        blocks = part.reshape(len(part), -1, block_size)
        scales, zero_points = best_grid(blocks, bits)
        codes = grid.round_to(blocks, scales, zero_points, bits)
        scales = _unshrunk(blocks, codes, scales, zero_points, bits)
        parts.append((codes.to(torch.uint8), scales.squeeze(2), zero_points.squeeze(2).to(torch.uint8)))
    codes, scales, zero_points = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return QuantizedMatrix(bits, codes.reshape(rows, columns), scales, zero_points)


def best_grid(blocks: Tensor, bits: int, p: float = P_NORM) -> tuple[Tensor, Tensor]:
    """Scales and zero points (…, 1) of blocks (…, block_size) that minimise the error's ℓₚ norm.

    The zero points are whole numbers in 0 … 2^bits − 1, as floats.
    """
    scales, zero_points = _min_max(blocks, bits)
    # Divided by their range, blocks of any magnitude meet the same threshold.
    span = scales * (2**bits - 1)
    best, best_scales, best_zeros = torch.full_like(scales, torch.inf), scales, zero_points
    beta = BETA
    for _ in range(ITERATIONS + 1):
        steps = grid.round_to(blocks, scales, zero_points, bits).sub_(zero_points)
        error = (blocks - steps * scales).div_(span)
        magnitude = error.abs()
        loss = magnitude.pow(p).sum(dim=-1, keepdim=True)
        better = loss < best
        if not better.any():
            break
        best = torch.where(better, loss, best)
        best_scales = torch.where(better, scales, best_scales)
        best_zeros = torch.where(better, zero_points, best_zeros)
        threshold = magnitude.clamp(min=1e-8).pow_(p - 1).div_(beta)
        kept = torch.copysign((magnitude - threshold).clamp_(min=0), error)  # E, in units of the span
        target = blocks - kept.mul_(span)
        codes = steps + zero_points
        zero_points = (codes - target / scales).mean(dim=-1, keepdim=True).round_().clamp_(0, 2**bits - 1)
        steps = codes - zero_points
        fit = (steps * target).sum(dim=-1, keepdim=True) / (steps * steps).sum(dim=-1, keepdim=True)
        scales = torch.where(torch.isfinite(fit) & (fit > _SMALLEST), fit, scales)
        beta *= BETA_GROWTH
    return best_scales, best_zeros


def objective(error: Tensor, span: Tensor, p: float = P_NORM) -> Tensor:
    """Σ |error / span|ᵖ over the last axis, which is kept."""
    return (error / span).abs().pow(p).sum(dim=-1, keepdim=True)


_SMALLEST = torch.finfo(torch.float32).tiny


def _min_max(blocks: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    low, high = torch.aminmax(blocks, dim=-1, keepdim=True)
    return grid.range_grid(low, high, bits)


def _unshrunk(blocks: Tensor, codes: Tensor, scales: Tensor, zero_points: Tensor, bits: int) -> Tensor:
    """The scales (rows, blocks, 1), by row, such that ⟨w, ŵ⟩ = ‖w‖²; unchanged where RTN would be better."""
    steps = codes - zero_points
    quantised = steps * scales
    factor = (blocks * blocks).sum(dim=(1, 2), keepdim=True) / (blocks * quantised).sum(
        dim=(1, 2), keepdim=True
    )
    rtn_scales, rtn_zeros = _min_max(blocks, bits)
    span = rtn_scales * (2**bits - 1)
    rtn = (grid.round_to(blocks, rtn_scales, rtn_zeros, bits) - rtn_zeros) * rtn_scales
    limit = objective(blocks - rtn, span).sum(dim=1, keepdim=True)
    loss = objective(blocks - quantised * factor, span).sum(dim=1, keepdim=True)
    return torch.where(loss <= limit, scales * factor, scales)  # a NaN factor, of a row of zeros, fails
