"""Quantisation-aware training: the forward pass computes what int8 will compute, the backward pass does not.

**What.** While `simulated` is in force, every linear layer rounds its weights, row by row, and its input, as
one tensor, to the grids of the int8 scheme, and the embedding tables round the rows that they look up.
Rounding has no useful gradient, so it is passed straight through: ∂q(w)/∂w is taken as 1. The float weights
are what the optimiser changes and what is saved; they settle where rounding does little harm.

**Why.** After training, int8 costs what the weights happen to lose. Here the loss has already seen that.

**Cost.** Some passes over weights and activations more a step (measured in docs/quantization.md). A scale
belongs to a tensor, so the sentences of a training batch share it; at run time they mostly come one by one,
each with a scale of its own. Training thus sees grids a little coarser than those that the model will meet.

Nothing stays behind: the modules' own `forward` is hidden for the time, no parameter or buffer is added, and
a checkpoint written during that time is a plain one.

**Sources.** Y. Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons,
arXiv:1308.3432 (the straight-through estimator); B. Jacob et al. 2018, arXiv:1712.05877 (training with
simulated quantisation); O. Zafrir et al. 2019, Q8BERT, arXiv:1910.06188 (BERT, embeddings included).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from pressoir.formats import symmetric_blocks
from pressoir.formats.int8_checkpoint import dequantize
from pressoir.models.simulated_int8 import dynamic_quantize
from pressoir.quantization import symmetric
from pressoir.quantization.int8 import named_by, quantizable, quantize_rows, word_table

Rounding = Callable[[Tensor], Tensor]


@contextmanager
def simulated(model: PreTrainedModel, embedding_bits: int, exclude: Sequence[str]) -> Iterator[None]:
    """Let `model` compute with int8 weights and activations; word pieces have `embedding_bits`, 8 or 4.

    `exclude` names modules, by dotted parts, that stay float. Blocks of 4 bits have their default size.

    Raises:
        SourceError, QuantizationError: in a forward pass, a weight is not finite: the training diverged.
    """
    table, changed = word_table(model), []
    try:
        for name, _ in quantizable(model):
            if named_by(name, exclude):
                continue
            module = model.get_submodule(name)
            rounding = _blocks if name == table and embedding_bits == symmetric_blocks.BITS else _rows
            module.forward = _linear(module) if isinstance(module, nn.Linear) else _table(module, rounding)
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own is visible again


def straight_through(value: Tensor, rounding: Rounding) -> Tensor:
    """`rounding(value)`, of the same shape, whose gradient is that of `value` itself."""
    result: Tensor = _StraightThrough.apply(value, rounding)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, rounding: Rounding) -> Tensor:
        """The rounded value, computed in float32 whatever autocast says."""
        with torch.autocast(value.device.type, enabled=False):
            rounded = rounding(value.detach().float()).to(value.dtype)
        return rounded.clone() if rounded.data_ptr() == value.data_ptr() else rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient as it comes."""
        return gradients[0], None


def _linear(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(value: Tensor) -> Tensor:
        value = straight_through(value, dynamic_quantize)
        return F.linear(value, straight_through(module.weight, _rows), module.bias)

    return forward


def _table(module: nn.Module, rounding: Rounding) -> Callable[[Tensor], Tensor]:
    look_up = module.forward

    def forward(ids: Tensor) -> Tensor:
        # A row's grid depends on that row alone, so rounding what was looked up is rounding the table.
        return straight_through(look_up(ids), rounding)

    return forward


def _rows(weight: Tensor) -> Tensor:
    """(…, columns) on the grids of int8, one a row."""
    return dequantize(*quantize_rows(weight.reshape(-1, weight.shape[-1]))).view_as(weight)


def _blocks(weight: Tensor) -> Tensor:
    """(…, columns) on the grids of 4-bit blocks."""
    size = symmetric.block_size(weight.shape[-1], None, "the token embedding")
    return dequantize(*symmetric.quantize(weight.reshape(-1, weight.shape[-1]), size)).view_as(weight)
