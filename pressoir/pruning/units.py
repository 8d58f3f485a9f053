"""What pruning removes: which units matter least, how many must go to reach a target, and taking them out.

A unit is an attention head or a feed-forward neuron. A **pruning level** sets how much of both is removed
together: at 0 nothing, at d a fraction d of the heads and of the neurons, at 1 all but one head and
`FFN_MULTIPLE` neurons per layer. How the level that reaches a target is found: `pressoir.pruning.target`.

Sources: P. Molchanov et al. 2019 (arXiv:1906.10771), Taylor importance and its normalisation over layers; P.
Michel et al. 2019 (arXiv:1905.10650), heads; S. Han et al. 2015 (arXiv:1506.02626), magnitude.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import torch
from pydantic import AliasChoices, Field
from torch import Tensor, nn
from transformers import (
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pressoir.config import Config
from pressoir.data import sentences
from pressoir.data.texts import Text, Words, texts_of
from pressoir.formats.problems import NO_WORD, TOKENS, Problem
from pressoir.models.layouts import (
    accepted_inputs,
    architecture_of,
    attention_width,
    class_names,
    count_neurons,
    encoder_layers,
    linear,
    resize_ffn,
)
from pressoir.recipe.sections import PruneConfig
from pressoir.reporting import track
from pressoir.stage import StageContext
from pressoir.training import word_labels
from pressoir.training.losses import LOSSES

FFN_MULTIPLE = 16  # widths that fill the vector registers of int8 kernels


class Units(NamedTuple):
    """How many units each layer has."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


class Importance(NamedTuple):
    """Of each layer's heads (heads,) and neurons (neurons,)."""

    heads: list[Tensor]
    neurons: list[Tensor]


Level = Annotated[
    float | None, Field(validation_alias=AliasChoices("level", "dial"), serialization_alias="dial")
]
"""A pruning level, 0 to 1; None where heads and neurons have a sparsity each. JSON has it as `dial`."""


class PruningPlan(Config):
    """The units that stay: indices of each layer, ascending, from 0, among those that it has now."""

    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]
    level: Level = None
    """The level that reaches a target."""
    measured: dict[str, float] = Field(default={})
    """What the model costs at that level."""

    @property
    def units(self) -> Units:
        """How many units stay in each layer."""
        return Units(tuple(map(len, self.heads)), tuple(map(len, self.neurons)))


def units(model: PreTrainedModel) -> Units:
    """The heads and neurons that `model` has now.

    Raises:
        SourceError: the architecture is not one whose parts are known.
    """
    names, layers, head_size = architecture_of(model), encoder_layers(model), _head_size(model)
    return Units(
        tuple(attention_width(layer, names) // head_size for layer in layers),
        tuple(count_neurons(layer, names) for layer in layers),
    )


def importance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    config: PruneConfig,
    context: StageContext,
) -> Importance:
    """Importance of each layer's heads (heads,) and neurons (neurons,), from calibration sentences.

    `taylor`: sum over sentences of |Σ over tokens of activation × ∂loss/∂activation|, the loss on the labels;
    `activation`: mean over tokens of |activation|. Both look at what enters the block's output projection.
    """
    names, layers = architecture_of(model), encoder_layers(model)
    problem = sentences.problem_of(folder)
    rows = sentences.load_split(folder, "train", class_names(model)).shuffle(seed=context.seed)
    rows = rows.select(range(min(config.calibration_samples, len(rows))))
    taylor = config.importance == "taylor"
    seen: dict[tuple[str, int], list[Tensor]] = {}  # of a shared layer, one a repetition
    hooks = []
    for index, layer in enumerate(layers):
        for kind, path in (("heads", names.attention_output), ("neurons", names.ffn_out)):

            def capture(
                module: nn.Module, args: tuple[Tensor, ...], units_of: tuple[str, int] = (kind, index)
            ) -> None:
                seen.setdefault(units_of, []).append(args[0])
                if taylor:
                    args[0].retain_grad()

            hooks.append(linear(layer, path).register_forward_pre_hook(capture))
    head_size, present = _head_size(model), units(model)
    scores = Importance([torch.zeros(n) for n in present.heads], [torch.zeros(n) for n in present.neurons])
    inputs = accepted_inputs(model)
    texts, labels = texts_of(rows), list(rows["label"])
    batches = [slice(start, start + 16) for start in range(0, len(rows), 16)]
    for batch in track(batches, len(batches), "prune: calibration batches", context.reporter):
        encoded, expected = _encoded(tokenizer, texts[batch], labels[batch], problem, len(class_names(model)))
        mask = encoded["attention_mask"][..., None]
        with torch.set_grad_enabled(taylor):
            logits = model(**{name: encoded[name] for name in inputs if name in encoded}).logits
            if taylor:
                if logits.ndim == 3:  # of tokens: those that stand for a word
                    logits, expected = logits[expected != NO_WORD], expected[expected != NO_WORD]
                LOSSES[problem.name].hard(logits, expected, None, "sum").backward()
        for (kind, index), activations in seen.items():  # each (batch, seq, units)
            if taylor:
                effect = torch.zeros(())
                for activation in activations:
                    assert activation.grad is not None
                    effect = effect + (activation.detach() * activation.grad * mask).sum(dim=1)
                if kind == "heads":
                    per_head = effect.view(len(effect), -1, head_size).sum(dim=2).abs().sum(dim=0)
                    scores.heads[index] += per_head
                else:
                    scores.neurons[index] += effect.abs().sum(dim=0)
            else:
                total = torch.stack([each.detach().abs() for each in activations]).sum(dim=0)
                size = (total * mask).sum(dim=(0, 1)) / (mask.sum() * len(activations))
                if kind == "heads":
                    scores.heads[index] += size.view(-1, head_size).sum(dim=1)
                else:
                    scores.neurons[index] += size
        model.zero_grad(set_to_none=True)
        seen.clear()
    for hook in hooks:
        hook.remove()
    return scores


def _encoded(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    labels: Sequence[Any],
    problem: Problem,
    count: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of a model, padded, and what is expected; of words with tags for each token."""
    if problem.name != TOKENS.name:
        encoded = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return dict(encoded), torch.from_numpy(problem.targets(labels, count))
    columns = word_labels.encode(tokenizer, cast("Sequence[Words]", texts), labels)
    names = [name for name in columns if name != "words"]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(columns[n] for n in names), strict=True)]
    batch = dict(DataCollatorForTokenClassification(tokenizer)(rows))
    return batch, batch.pop("labels")


def plan_pruning(
    scores: Importance, head_sparsity: float, ffn_sparsity: float, uniform: bool, whole: Units
) -> PruningPlan:
    """What stays when those fractions of the units of `whole` (what the model once had) are gone."""
    heads = select_units(scores.heads, head_sparsity, uniform, whole=whole.heads)
    neurons = select_units(scores.neurons, ffn_sparsity, uniform, FFN_MULTIPLE, whole.neurons)
    return PruningPlan(heads=indices(heads), neurons=indices(neurons))


def select_units(
    scores: list[Tensor],
    sparsity: float,
    uniform: bool,
    multiple: int = 1,
    whole: Sequence[int] | None = None,
) -> list[Tensor]:
    """Indices of the units to keep in each layer, ascending; at least one (or `multiple`) stays in every
    layer.

    `sparsity` is the fraction that is gone of `whole`, what each layer once had; by default what it has now.
    `uniform` keeps the same fraction of every layer; otherwise units of all layers compete, each layer's
    scores being normalised by their L2 norm first (Molchanov et al.).
    """
    whole = whole or [len(layer) for layer in scores]
    if uniform:
        counts = [total * (1 - sparsity) for total in whole]
    else:
        normal = torch.cat([layer / (layer.norm() + 1e-12) for layer in scores])
        owners = torch.cat([torch.full((len(layer),), index) for index, layer in enumerate(scores)])
        winners = normal.argsort(descending=True)[: round(sum(whole) * (1 - sparsity))]
        counts = [float((owners[winners] == index).sum()) for index in range(len(scores))]
    kept = []
    for layer, count in zip(scores, counts, strict=True):
        step = min(multiple, len(layer))
        size = min(len(layer), max(step, round(count / step) * step))
        kept.append(layer.argsort(descending=True)[:size].sort().values)
    return kept


def remove(model: PreTrainedModel, plan: PruningPlan) -> None:
    """Take out, in place, every unit that the plan does not keep; the new sizes go into the configuration."""
    names = architecture_of(model)
    already = {int(k): set(v) for k, v in (getattr(model.config, "pruned_heads", None) or {}).items()}
    total = model.config.num_attention_heads
    gone: dict[int, list[int]] = {}
    for index, heads in enumerate(plan.heads):
        present = [head for head in range(total) if head not in already.get(index, set())]
        if lost := [head for position, head in enumerate(present) if position not in heads]:
            gone[index] = lost
    if gone:
        names.prune_heads(model, gone)
    for layer, neurons in zip(encoder_layers(model), plan.neurons, strict=True):
        resize_ffn(layer, names, torch.tensor(neurons))
    widths = list(plan.units.neurons)
    if len(set(widths)) == 1:
        setattr(model.config, names.ffn_width_field, widths[0])
        if hasattr(model.config, "intermediate_sizes"):  # of an earlier round
            del model.config.intermediate_sizes
    else:
        model.config.intermediate_sizes = widths


def zero_smallest(model: PreTrainedModel, sparsity: float) -> Callable[[], None]:
    """Zero the `sparsity` smallest weights of each encoder matrix; return what zeroes them again."""
    masks: list[tuple[Tensor, Tensor]] = []
    for module in encoder_layers(model).modules():
        if isinstance(module, nn.Linear):
            count = int(sparsity * module.weight.numel())
            smallest = module.weight.detach().abs().flatten().argsort()[:count]
            mask = torch.ones(module.weight.numel(), dtype=torch.bool)
            mask[smallest] = False
            masks.append((module.weight, mask.view_as(module.weight)))

    @torch.no_grad()
    def apply() -> None:
        for weight, mask in masks:
            weight.mul_(mask)

    apply()
    return apply


def indices(layers: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    """Plain numbers instead of one tensor a layer."""
    return tuple(tuple(layer.tolist()) for layer in layers)


def _head_size(model: PreTrainedModel) -> int:
    return int(model.config.hidden_size // model.config.num_attention_heads)
