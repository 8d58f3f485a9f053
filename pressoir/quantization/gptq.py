"""GPTQ: round column by column, and let the columns that follow make up for each rounding error.

**Math.** For a layer with inputs X (in, tokens) the error that counts is ‖(W − Ŵ) X‖², whose Hessian in a row
of W is H = X Xᵀ. With U the upper Cholesky factor of H⁻¹, quantising column i by an error e changes it least
if the columns j > i are moved by −e · U_ij / U_ii. Columns are handled in slices: inside a slice the
correction is applied at once, beyond it as one matrix product.

- `damping` adds that part of H's mean diagonal to it, which makes a singular Hessian definite; where
  rounding still gets in the way, ten times as much, and so on.
- `act_order` takes the columns in the order of falling H_ii. Blocks stay contiguous columns of the stored
  matrix; their grids are found on the original weights before the first column is rounded ("static groups").
  Without it a block's grid is found when its turn comes, on the weights as corrected so far.
- Grids are min-max: on the language model that this was tried on, clipping searches and HQQ's grids made the
  output distribution worse at 2 bits, since the corrections push weights past a clipped grid.
- A column whose input was always 0 is rounded to nearest: the text just did not use it.

H⁻¹ is never formed. Reversing the order of rows and columns makes the lower Cholesky factor of H an upper
one, H = R Rᵀ, whose inverse is U. All of it is in float64.

**Source.** E. Frantar et al. 2022, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers, arXiv:2210.17323; `act_order` and static groups: its authors' code,
https://github.com/IST-DASLab/gptq.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pressoir.errors import QuantizationError
from pressoir.extensions.quantizer import QuantizedMatrix, Quantizer
from pressoir.quantization import grid, hqq

_SLICE, _SOLVED = 128, 512


def quantize(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    block_size: int,
    *,
    damping: float = 0.01,
    act_order: bool = False,
    name: str = "weight",
) -> QuantizedMatrix:
    """Quantise a float32 matrix (out, in) by the Hessian X Xᵀ (in, in) of its inputs, at any scale.

    Raises:
        QuantizationError: a weight or the Hessian is not finite, or `block_size` does not divide `in`; the
            message has `name`.
    """
    grid.check(weight, bits, block_size, name)
    if not torch.isfinite(hessian).all():
        raise QuantizationError(
            f"the inputs of {name} are not finite on the calibration text; the model overflows in float32"
        )
    rows, columns = weight.shape
    importance = torch.diagonal(hessian)
    order = torch.arange(columns)
    if act_order:
        order = torch.argsort(importance, descending=True, stable=True)
    upper = _factor(hessian, order, damping)
    # Transposed, (in, out): a column of the weight is then contiguous.
    left = weight.T[order].contiguous()
    scales, zeros = torch.empty(columns // block_size, rows), torch.empty(columns // block_size, rows)
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    if act_order:
        for block, columns_of_block in enumerate(weight.T.split(block_size)):
            scales[block], zeros[block] = _min_max(columns_of_block, bits)
    step = max(_SLICE, block_size)  # a block never straddles two slices
    for start in range(0, columns, step):
        end = min(start + step, columns)
        errors = torch.empty(end - start, rows)
        for index in range(start, end):
            column = int(order[index])
            block = column // block_size
            if not act_order and column % block_size == 0:
                scales[block], zeros[block] = _min_max(left[index : index + block_size], bits)
            rounded = grid.round_to(left[index], scales[block], zeros[block], bits)
            codes[column] = rounded.to(torch.uint8)
            error = left[index] - (rounded - zeros[block]) * scales[block]
            errors[index - start] = error / upper[index, index]
            left[index:end].addr_(upper[index, index:end], errors[index - start], alpha=-1)
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return QuantizedMatrix(
        bits, codes.T.contiguous(), scales.T.contiguous(), zeros.T.to(torch.uint8).contiguous()
    )


def _min_max(block: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Grids (out,) of one block (block_size, out)."""
    low, high = torch.aminmax(block, dim=0)
    return grid.range_grid(low, high, bits)


def _factor(hessian: Tensor, order: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse, float32, columns in `order`."""
    reverse, size = order.flip(0), len(order)
    damped = hessian[reverse[:, None], reverse].double()  # (in, in), last column first
    diagonal = torch.diagonal(damped)
    mean, added = float(diagonal.mean()) or 1.0, 0.0
    while True:
        diagonal += damping * mean - added
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            break
        added, damping = damping * mean, 10 * damping
    del damped, diagonal
    upper = torch.zeros(size, size)
    for start in range(0, size, _SOLVED):  # some columns at a time: nothing else of this size in float64
        end = min(start + _SOLVED, size)
        unit = torch.eye(size - start, end - start, dtype=torch.float64)
        columns = torch.linalg.solve_triangular(lower[start:, start:], unit, upper=False)
        upper[: size - start, size - end : size - start] = columns.flip(0, 1)
    return upper


# What no calibration text reaches (the token embedding, the head) is left to HQQ.
QUANTIZER = Quantizer("gptq", hqq.quantize, calibrated=quantize, options=("act_order", "damping"))
