"""The grids of the int8 scheme, and what a model computes on them.

A weight row w becomes codes round(w / s) in −127…127 with s = max|w| / 127; the input of a linear layer,
while the model runs, uint8 codes with one scale a tensor. `pressoir.stages.quantize` writes such weights, see
`int8_checkpoint`; `aware` trains on the grids; the ONNX graph computes with the codes.

Sources: B. Jacob et al. 2018, arXiv:1712.05877; ONNX `DynamicQuantizeLinear`,
https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

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
    """Name and kind (`linear`, `embedding`) of every module that int8 can hold, in the model's order.

    Those that a graph has no product or look-up for stay float: what a classifier's logits do not depend on
    (ESM's contact head), and what is not called, as its weight is read as it is (DeBERTa's `rel_embeddings`).
    """
    used = _used(model)
    for name, module in model.named_modules():
        if module not in used:
            continue
        if isinstance(module, nn.Linear):
            yield name, "linear"
        elif isinstance(module, nn.Embedding):
            yield name, "embedding"


def _used(model: nn.Module) -> set[nn.Module]:
    """The modules that a pass over four tokens calls, and whose weights the logits depend on."""
    called, training = set[nn.Module](), model.training
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in model.modules()
    ]
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]  # such as sinusoids
    model.eval()  # a pass of training would draw random numbers
    tokens = torch.zeros((1, 4), dtype=torch.long)
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.enable_grad():
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    finally:
        model.train(training)
        for weight in frozen:
            weight.requires_grad_(False)
        for hook in hooks:
            hook.remove()
    steps, weights, seen = [logits.grad_fn], set[int](), set[Any]()
    while steps:
        step = steps.pop()
        if step is not None and step not in seen:
            seen.add(step)
            weights.add(id(getattr(step, "variable", None)))
            steps += [before for before, _ in step.next_functions]
    return {
        module for module in called if any(id(own) in weights for own in module.parameters(recurse=False))
    }


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
