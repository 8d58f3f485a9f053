"""What pruning, distillation and vocabulary trimming must know of an encoder: the names of its parts.

An entry of `pressoir.architectures` is named after the `model_type` in `config.json`, and is an
`EncoderArchitecture`; several types may share one. Paths are those of `nn.Module.get_submodule`. Sizes of a
loaded configuration are read by transformers' common names (`num_hidden_layers`, `hidden_size`,
`num_attention_heads`), which its `attribute_map` translates; the fields below are those of `config.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Final, Literal

from pressoir.errors import ExtensionError, SourceError
from pressoir.extensions import loader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP: Final = "pressoir.architectures"
Step = Literal["vocabulary", "layers", "embedding size", "relations", "prune", "heads", "quantize", "export"]
"""What a recipe does with an encoder: `layers` makes a student of some of them, `embedding size` gives it
narrower embeddings, `relations` learns from the queries, keys and values of the last one, `heads` removes
attention heads; the others are stages."""


def prune_heads_by_transformers(model: PreTrainedModel, heads: dict[int, list[int]]) -> None:
    """Remove heads by transformers' own method, which notes them in the configuration as `pruned_heads`."""
    model.prune_heads(heads)


@dataclass(frozen=True, kw_only=True)
class EncoderArchitecture:
    """Where an encoder keeps its parts, and what its configuration calls their sizes."""

    layers: str
    """The `nn.ModuleList` of layers, from `model.base_model` (a classifier without its head)."""

    query: str
    """The attention's projections, from a layer; each an `nn.Linear`, (heads × head size, hidden). Where all
    three are one path, that one `nn.Linear` has the rows of the query, then the key's, then the value's."""
    key: str
    """See `query`."""
    value: str
    """See `query`."""
    attention_output: str
    """The `nn.Linear` that joins the heads again, from a layer: (hidden, heads × head size)."""
    ffn_in: str
    """The feed-forward part's first `nn.Linear`, from a layer: (neurons, hidden); see `gated_ffn`."""
    ffn_out: str
    """Its second, from a layer: (hidden, neurons)."""
    gated_ffn: bool = False
    """Whether it is a gated linear unit: `ffn_in` has two rows a neuron, (2 × neurons, hidden), first those
    that go through the activation, then those that multiply the result."""
    shared_layers: bool = False
    """Whether all layers are one, repeated: `layers` then holds that one. A student repeats it less often,
    and what is pruned is gone from every repetition."""
    absent_in_first_layer: tuple[str, ...] = ()
    """Modules that every layer has but the first, from a layer; a student's first layer goes without them."""

    position_embeddings: str | None
    """The `nn.Embedding` of absolute positions, from the base model; None where there is none, and the
    vocabulary stage then leaves positions alone. Token embeddings are `model.get_input_embeddings()`."""

    layer_count_field: str = "num_hidden_layers"
    """Field of `config.json`: number of layers."""
    hidden_size_field: str = "hidden_size"
    """Field of `config.json`: width of a token's vector."""
    head_count_field: str = "num_attention_heads"
    """Field of `config.json`: heads of a layer, before any is pruned."""
    ffn_width_field: str = "intermediate_size"
    """Field of `config.json`: feed-forward neurons of a layer."""

    presumed: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Fields of `config.json` that have these values, or are absent, where the parts are as named above; of a
    model with others no part is known by name."""

    prune_heads: Callable[[PreTrainedModel, dict[int, list[int]]], None] = prune_heads_by_transformers
    """Removes heads in place, {layer: heads, numbered as in the whole model}. The configuration then has all
    that are gone as `pruned_heads`, and a model made from it lacks them."""

    unsupported: Mapping[Step, str] = field(default_factory=dict, hash=False)
    """Steps that do not work with this architecture, and why; a recipe that takes one is refused with that
    reason, before any work."""

    modeling: str | None = None
    """Module that registers the classes with transformers' `AutoConfig`, `AutoModel` and
    `AutoModelForSequenceClassification`; imported before such a model is loaded. None where transformers has
    them."""


def find(model_type: object) -> EncoderArchitecture | None:
    """The architecture of a `model_type`; None if it is not declared.

    Raises:
        ExtensionError: its package cannot be imported, or declares something else.
    """
    if model_type not in loader.names(GROUP):
        return None
    found = loader.load(GROUP, str(model_type))
    if not isinstance(found, EncoderArchitecture):
        raise ExtensionError(
            f"{model_type!r} in {GROUP} is a {type(found).__name__}; an EncoderArchitecture is expected"
        )
    return found


def known(model_type: object) -> EncoderArchitecture:
    """The architecture of a `model_type`.

    Raises:
        SourceError: it is not declared. ExtensionError: as `find`.
    """
    found = find(model_type)
    if found is None:
        supported = ", ".join(loader.names(GROUP))
        raise SourceError(f"models of type {model_type!r} are not supported here; supported are {supported}")
    return found


def register(model_type: object) -> None:
    """Make transformers know the classes of an architecture that another package brings.

    Raises:
        ExtensionError: its module cannot be imported.
    """
    architecture = find(model_type)
    if architecture is not None and architecture.modeling is not None:
        try:
            import_module(architecture.modeling)
        except ImportError as error:
            raise ExtensionError(
                f"{model_type!r} in {GROUP} has its classes in {architecture.modeling}, which cannot be "
                f"imported: {error}"
            ) from error
