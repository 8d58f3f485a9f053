"""Where an encoder keeps its layers, projections and feed-forward parts, by the type of its configuration."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import nn

from pressoir.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where each architecture keeps its parts: the encoder's layers, then, inside a layer, the attention's query,
# key, value and output projections, and the two feed-forward projections.
LAYOUTS: dict[str, dict[str, str]] = {
    family: {
        "layers": f"{family}.encoder.layer",
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "ffn_in": "intermediate.dense",
        "ffn_out": "output.dense",
    }
    for family in ("bert", "roberta", "electra", "camembert", "xlm-roberta")
}
LAYOUTS["camembert"] = LAYOUTS["xlm-roberta"] = LAYOUTS["roberta"]
LAYOUTS["distilbert"] = {
    "layers": "distilbert.transformer.layer",
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_output": "attention.out_lin",
    "ffn_in": "ffn.lin1",
    "ffn_out": "ffn.lin2",
}


def accepted_inputs(model: PreTrainedModel) -> set[str]:
    """Names that the model's `forward` takes: a tokenizer may give more (`token_type_ids` for DistilBERT)."""
    return set(inspect.signature(model.forward).parameters)


def layout(model: PreTrainedModel) -> dict[str, str]:
    """Names of the parts of `model`'s architecture, see `LAYOUTS`.

    Raises:
        SourceError: the architecture is not one whose parts are known.
    """
    kind = model.config.model_type
    if kind not in LAYOUTS:
        raise SourceError(
            f"models of type {kind!r} are not supported here; supported are {', '.join(sorted(LAYOUTS))}"
        )
    return LAYOUTS[kind]


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The encoder's layers, in order."""
    layers = model.get_submodule(layout(model)["layers"])
    assert isinstance(layers, nn.ModuleList)
    return layers


def count_parameters(model: nn.Module) -> int:
    """Number of distinct parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def resize_ffn(layer: nn.Module, parts: dict[str, str], keep: torch.Tensor) -> None:
    """Keep only the feed-forward neurons `keep` (indices, any order preserved) of one encoder layer."""
    inner, outer = layer.get_submodule(parts["ffn_in"]), layer.get_submodule(parts["ffn_out"])
    assert isinstance(inner, nn.Linear)
    assert isinstance(outer, nn.Linear)
    inner.weight = nn.Parameter(inner.weight.detach()[keep].clone())  # (kept, hidden)
    inner.bias = nn.Parameter(inner.bias.detach()[keep].clone())
    outer.weight = nn.Parameter(outer.weight.detach()[:, keep].clone())  # (hidden, kept)
    inner.out_features = outer.in_features = len(keep)
