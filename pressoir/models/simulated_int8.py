"""An int8 checkpoint as a PyTorch module that computes what ONNX Runtime will, activations rounded too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pressoir.formats import int8_checkpoint
from pressoir.models import loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def dynamic_quantize(activations: Tensor) -> Tensor:
    """What `activations` become under ONNX `DynamicQuantizeLinear`: uint8 and back, one scale a tensor.

    The range always includes 0, so that 0 stays 0; rounding is half to even.
    """
    low, high = activations.min().clamp(max=0), activations.max().clamp(min=0)
    if high == low:
        return activations
    scale = (high - low) / 255
    zero_point = torch.clamp(torch.round(-low / scale), 0, 255)
    codes = torch.clamp(torch.round(activations / scale) + zero_point, 0, 255)
    return (codes - zero_point) * scale


def load_simulated(folder: Path) -> PreTrainedModel:
    """Load a quantised folder so that it computes what integer kernels compute, up to float32 rounding.

    Weights are dequantised, and the input of every quantised linear layer goes through `dynamic_quantize`.

    Raises:
        SourceError: the folder is damaged, or of an unknown format.
    """
    layers, _ = int8_checkpoint.read(folder)
    model = loading.load_classifier(folder)
    for name, layer in layers.items():
        if layer["kind"] == "linear":
            model.get_submodule(name).register_forward_pre_hook(quantize_input)
    return model


def quantize_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """As a forward pre-hook: the first argument goes through `dynamic_quantize`."""
    return (dynamic_quantize(args[0]), *args[1:])
