"""The grids of the int8 scheme, and what a model computes on them.

A weight row w becomes codes round(w / s) in −127…127 with s = max|w| / 127; the input of a linear layer,
while the model runs, uint8 codes with one scale a tensor. `pressoir.stages.quantize` writes such weights, see
`int8_checkpoint`; `aware` trains on the grids; the ONNX graph computes with the codes.

Sources: B. Jacob et al. 2018, arXiv:1712.05877; ONNX `DynamicQuantizeLinear`,
https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pressoir.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def word_table(model: PreTrainedModel) -> str | None:
    """Name of the table of word pieces; None: the model has none of its own kind."""
    table = model.get_input_embeddings()
    return next((name for name, module in model.named_modules() if module is table), None)


def named_by(name: str, parts: Sequence[str]) -> bool:
    """Whether `parts` has a module's name, or a beginning of it by whole dotted parts."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in parts)


def quantizable(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Name and kind (`linear`, `embedding`) of every module that int8 can hold, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, "linear"
        elif isinstance(module, nn.Embedding):
            yield name, "embedding"


def quantize_rows(weight: Tensor, name: str = "weight") -> tuple[Tensor, Tensor]:
    """Symmetric int8 codes (rows, columns) and float32 scales (rows,) of a float32 matrix.

    Raises:
        SourceError: the matrix has NaN or infinite values; the message has `name`.
    """
    if not torch.isfinite(weight).all():
        raise SourceError(
            f"{name}.weight has NaN or infinite values and cannot be quantised; train the model again"
        )
    scales = weight.abs().amax(dim=1) / 127
    # A row of zeros, or of numbers so small that the scale underflows, gets codes 0.
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, torch.ones_like(scales), scales)
    codes = torch.clamp(torch.round(weight / scales[:, None]), -127, 127).to(torch.int8)
    return codes.contiguous(), scales.contiguous()
