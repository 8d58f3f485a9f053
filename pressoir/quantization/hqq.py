"""Half-quadratic quantisation: a grid that follows the bulk of a block, found without data.

**Math.** The error's ‖W − Ŵ‖ₚᵖ with p < 1 is minimised, which forgives a few large errors for many small
ones. With an auxiliary error E the problem splits into alternating steps, each in closed form:

- codes Q: the nearest points of the current grid;
- E: the generalised soft threshold of W − Ŵ, sign(x) · max(|x| − |x|^(p−1) / β, 0), β growing;
- zero point: the mean of Q − (W − E) / s, rounded: here it ends as an integer, as kernels want it;
- scale: the least-squares factor ⟨W − E, Q − z⟩ / ‖Q − z‖² (the paper keeps the min-max scale).

The iteration starts at RTN's grid, a block ends when it no longer improves, and each keeps the best grid it
has seen, so that its objective is never above RTN's.

Errors are measured in units of the block's range. With the paper's β the threshold then spares large errors
at 2 bits and hardly any above, where the steps are least squares judged by the ℓₚ norm. In units of the
grid's step, where it always bites, the objective falls further, but the one language model that it was tried
on got worse: its output moved away from the float model's.

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

from pressoir.extensions.quantizer import QuantizedMatrix, Quantizer
from pressoir.quantization import grid

P_NORM = 0.7
ITERATIONS = 20
BETA, BETA_GROWTH = 10.0, 1.01
_CHUNK = 1 << 20  # weights at a time, so that temporaries stay small


def quantize(weight: Tensor, bits: int, block_size: int, name: str = "weight") -> QuantizedMatrix:
    """Quantise a float32 matrix (out, in), each row on its own.

    Raises:
        QuantizationError: a weight is not finite, or `block_size` does not divide `in`; the
            message has `name`.
    """
    grid.check(weight, bits, block_size, name)
    rows, columns = weight.shape
    chunks = []
    for chunk in weight.split(max(_CHUNK // columns, 1)):
        blocks = chunk.reshape(len(chunk), -1, block_size)
        scales, zero_points = best_grid(blocks, bits)
        codes = grid.round_to(blocks, scales, zero_points, bits)
        scales = _unshrunk(blocks, codes, scales, zero_points, bits)
        chunks.append((codes.to(torch.uint8), scales.squeeze(2), zero_points.squeeze(2).to(torch.uint8)))
    codes, scales, zero_points = (torch.cat(tensors) for tensors in zip(*chunks, strict=True))
    return QuantizedMatrix(bits, codes.reshape(rows, columns), scales, zero_points)


def best_grid(blocks: Tensor, bits: int, p: float = P_NORM) -> tuple[Tensor, Tensor]:
    """Grids of blocks (rows, blocks, block_size) that minimise their errors' ℓₚ norm.

    Returns:
        Scales and zero points (rows, blocks, 1); the latter are whole numbers in 0 … 2^bits − 1, as floats.
    """
    steps_of_grid = 2**bits - 1
    found = [grids.reshape(-1, 1) for grids in _min_max(blocks, bits)]
    best_scales, best_zeros = (grids.clone() for grids in found)
    best = torch.full_like(best_scales, torch.inf)
    # Those blocks that still improve, and what belongs to them.
    active, left = torch.arange(len(best)), blocks.reshape(len(best), -1)
    (scales, zeros), span, beta = found, found[0] * steps_of_grid, BETA
    for _ in range(ITERATIONS + 1):
        steps = grid.round_to(left, scales, zeros, bits).sub_(zeros)
        error = (left - steps * scales).div_(span)
        magnitude = error.abs()
        loss = magnitude.pow(p).sum(dim=1, keepdim=True)
        better = (loss < best[active]).squeeze(1)
        if not better.any():
            break
        if not better.all():
            state = (active, left, steps, scales, zeros, span, error, magnitude, loss)
            active, left, steps, scales, zeros, span, error, magnitude, loss = (x[better] for x in state)
        best[active], best_scales[active], best_zeros[active] = loss, scales, zeros
        threshold = magnitude.clamp(min=1e-8).pow_(p - 1).div_(beta)
        kept = torch.copysign((magnitude - threshold).clamp_(min=0), error)  # E, in units of the span
        target = left - kept.mul_(span)
        codes = steps + zeros
        zeros = (codes - target / scales).mean(dim=1, keepdim=True).round_().clamp_(0, steps_of_grid)
        steps = codes - zeros
        fit = (steps * target).sum(dim=1, keepdim=True) / (steps * steps).sum(dim=1, keepdim=True)
        scales = torch.where(torch.isfinite(fit) & (fit > _SMALLEST), fit, scales)
        beta *= BETA_GROWTH
    shape = (*blocks.shape[:2], 1)
    return best_scales.reshape(shape), best_zeros.reshape(shape)


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
    norm, kept = ((blocks * other).sum(dim=(1, 2), keepdim=True) for other in (blocks, quantised))
    factor = norm / kept
    rtn_scales, rtn_zeros = _min_max(blocks, bits)
    span = rtn_scales * (2**bits - 1)
    rtn = (grid.round_to(blocks, rtn_scales, rtn_zeros, bits) - rtn_zeros) * rtn_scales
    limit = objective(blocks - rtn, span).sum(dim=1, keepdim=True)
    loss = objective(blocks - quantised * factor, span).sum(dim=1, keepdim=True)
    return torch.where(loss <= limit, scales * factor, scales)  # a NaN factor, of a row of zeros, fails


QUANTIZER = Quantizer("hqq", quantize)
