"""How much to prune: the smallest removal that reaches a number of weights, a size or a latency."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from pressoir.errors import RecipeError
from pressoir.pruning.units import FFN_MULTIPLE, Importance, Kept, Units, indices, keep, remove
from pressoir.recipe.sections import PruneTarget
from pressoir.stage import StageContext

MOST_STEPS = 256


def at_level(scores: Importance, dial: float, uniform: bool, whole: Units) -> Kept:
    """What stays at a position of the dial."""
    if dial == 0:
        every = [[torch.arange(len(layer)) for layer in part] for part in scores]
        return Kept(heads=indices(every[0]), neurons=indices(every[1]), dial=dial)
    return keep(scores, dial, dial, uniform, whole).model_copy(update={"dial": dial})


def steps(scores: Importance, uniform: bool, whole: Units) -> list[Kept]:
    """What stays at each step of the dial, from all to the least; no two are of the same shape."""
    heads, neurons = (max(whole.heads), max(whole.neurons)) if uniform else map(sum, whole)
    dials = sorted(
        {head / heads for head in range(heads + 1)}
        | {neuron / neurons for neuron in range(0, neurons, FFN_MULTIPLE)}
    )
    if len(dials) > MOST_STEPS:
        dials = [dials[round(place)] for place in torch.linspace(0, len(dials) - 1, MOST_STEPS).tolist()]
    shapes: dict[Units, Kept] = {}
    for dial in dials:
        kept = at_level(scores, dial, uniform, whole)
        shapes.setdefault(kept.units, kept)
    return list(shapes.values())


Cost = Callable[[PreTrainedModel], Mapping[str, float]]
"""What a model costs: `parameters`, or `size_mb` and `latency_ms`."""


def reach(
    model: PreTrainedModel, choices: Sequence[Kept], target: PruneTarget, cost: Cost, context: StageContext
) -> Kept:
    """The first of `choices` (from large to small) with which `model` reaches the target, and its costs.

    Raises:
        RecipeError: the last one does not reach it either; the message says by how much.
    """
    (name, limit), *_ = ((name, value) for name, value in target if value is not None)
    measured: dict[int, Mapping[str, float]] = {}

    def meets(index: int) -> bool:
        candidate = copy.deepcopy(model)
        remove(candidate, choices[index])
        measured[index] = cost(candidate)
        context.reporter.message(
            f"prune: ratio {choices[index].dial:.3f}: {_format(name, measured[index][name])} "
            f"(target {_format(name, limit)})"
        )
        return bool(measured[index][name] <= limit)

    last = len(choices) - 1
    with torch.random.fork_rng(devices=[]):  # the recovery draws the same numbers, whether this ran or not
        if not meets(last):
            least = measured[last][name]
            raise RecipeError(
                f"prune.target: {_format(name, limit)} cannot be reached: with one head and {FFN_MULTIPLE} "
                f"neurons per layer the model still has {_format(name, least)}, "
                f"{_format(name, least - limit)} ({(least - limit) / limit:.1%}) too much; raise the "
                "target, or first remove layers (distill.student.layers) or tokens (vocabulary)"
            )
        found = smallest_removal(meets, last)
    return choices[found].model_copy(update={"measured": dict(measured[found])})


def smallest_removal(meets: Callable[[int], bool], last: int) -> int:
    """The first step from 0 that meets, where `last` does, and, after one that does, all others do."""
    first = 0
    while first < last:
        middle = (first + last) // 2
        if meets(middle):
            last = middle
        else:
            first = middle + 1
    return last


def _format(name: str, value: float) -> str:
    if name == "parameters":
        return f"{value:,.0f} weights"
    return f"{value:.3f} MB" if name == "size_mb" else f"{value:.3f} ms"
