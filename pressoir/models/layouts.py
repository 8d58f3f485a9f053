"""The parts of a loaded encoder, whatever its architecture calls them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from pressoir.errors import ExtensionError
from pressoir.extensions import architecture
from pressoir.extensions.architecture import EncoderArchitecture
from pressoir.formats.labels import labels_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Module = TypeVar("Module", bound=nn.Module)


def accepted_inputs(model: PreTrainedModel) -> set[str]:
    """Names that the model's `forward` takes: a tokenizer may give more (`token_type_ids` for DistilBERT)."""
    return set(inspect.signature(model.forward).parameters)


def class_names(model: PreTrainedModel) -> list[str]:
    """The labels of a classifier, in the order of its logits."""
    return labels_of(model.config.to_dict())


def architecture_of(model: PreTrainedModel) -> EncoderArchitecture:
    """The names of `model`'s parts.

    Raises:
        SourceError: the architecture is not one whose parts are known.
    """
    return architecture.known(model.config.model_type)


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The encoder's layers, in order.

    Raises:
        SourceError: the architecture is not one whose parts are known.
        ExtensionError: it is declared with a name that the model does not have.
    """
    return _submodule(model.base_model, architecture_of(model).layers, nn.ModuleList)


def replace_layers(model: PreTrainedModel, layers: nn.ModuleList) -> None:
    """Put other layers in the place of the encoder's; the configuration stays as it is."""
    parent, _, name = architecture_of(model).layers.rpartition(".")
    setattr(model.base_model.get_submodule(parent), name, layers)


def linear(layer: nn.Module, path: str) -> nn.Linear:
    """A projection of a layer, by the path that its `EncoderArchitecture` has.

    Raises:
        ExtensionError: it is declared with a name that the layer does not have.
    """
    return _submodule(layer, path, nn.Linear)


def projections(layer: nn.Module, names: EncoderArchitecture) -> dict[str, tuple[nn.Linear, slice]]:
    """The linear layers that give a layer's `query`, `key` and `value`, and which of their outputs those are.

    Raises:
        ExtensionError: they are declared with names that the layer does not have.
    """
    paths = {"query": names.query, "key": names.key, "value": names.value}
    found = {name: linear(layer, path) for name, path in paths.items()}
    shared = len(set(paths.values())) == 1
    width = found["query"].out_features // (len(found) if shared else 1)
    starts = [index * width if shared else 0 for index in range(len(found))]
    return {
        name: (module, slice(start, start + width))
        for (name, module), start in zip(found.items(), starts, strict=True)
    }


def count_neurons(layer: nn.Module, names: EncoderArchitecture) -> int:
    """Feed-forward neurons of a layer."""
    return linear(layer, names.ffn_in).out_features // (2 if names.gated_ffn else 1)


def attention_width(layer: nn.Module, names: EncoderArchitecture) -> int:
    """Units of all heads of a layer together."""
    _, rows = projections(layer, names)["query"]
    return int(rows.stop - rows.start)


def position_table(model: PreTrainedModel) -> tuple[nn.Module, str] | None:
    """Which module holds the table of absolute positions, one a token, and by what name.

    None where there is none, or the architecture is not one whose parts are known.
    """
    found = architecture.find(model.config.model_type)
    absolute = getattr(model.config, "position_embedding_type", "absolute") == "absolute"
    if found is None or found.position_embeddings is None or not absolute:
        return None
    parent, _, name = found.position_embeddings.rpartition(".")
    _submodule(model.base_model, found.position_embeddings, nn.Embedding)
    return model.base_model.get_submodule(parent), name


def count_parameters(model: nn.Module) -> int:
    """Number of distinct parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def resize_ffn(layer: nn.Module, names: EncoderArchitecture, keep: torch.Tensor) -> None:
    """Keep only the feed-forward neurons `keep` (indices, any order preserved) of one encoder layer."""
    inner, outer = linear(layer, names.ffn_in), linear(layer, names.ffn_out)
    rows = torch.cat([keep, keep + count_neurons(layer, names)]) if names.gated_ffn else keep
    inner.weight = nn.Parameter(inner.weight.detach()[rows].clone())  # (kept, hidden)
    if inner.bias is not None:
        inner.bias = nn.Parameter(inner.bias.detach()[rows].clone())
    outer.weight = nn.Parameter(outer.weight.detach()[:, keep].clone())  # (hidden, kept)
    inner.out_features, outer.in_features = len(rows), len(keep)


def _submodule(module: nn.Module, path: str, expected: type[Module]) -> Module:
    try:
        found = module.get_submodule(path)
    except AttributeError as error:
        raise ExtensionError(
            f"{path!r} is declared as a part of a {type(module).__name__}, which does not have it: {error}"
        ) from error
    if not isinstance(found, expected):
        raise ExtensionError(
            f"{path!r} of a {type(module).__name__} is a {type(found).__name__}; a {expected.__name__} is "
            "expected"
        )
    return found
