"""How much to prune: the smallest removal that reaches a number of weights, a size or a latency.

Candidates are the levels at which one more head or `FFN_MULTIPLE` more neurons are removed: per layer with
`allocation: uniform`, over all layers together with `global`; of more than `MOST_CANDIDATES` an evenly spaced
selection. They are searched by bisection, so at most nine models are measured. Counting weights takes no
time; for size and latency each one's int8 graph is made, measured and discarded, which takes seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from pressoir.errors import RecipeError
from pressoir.pruning.units import FFN_MULTIPLE, Importance, PruningPlan, Units, indices, plan_pruning, remove
from pressoir.recipe.sections import PruneTarget
from pressoir.stage import StageContext

MOST_CANDIDATES = 256


def at_level(scores: Importance, level: float, uniform: bool, whole: Units) -> PruningPlan:
    """What stays at a pruning level."""
    if level == 0:
        heads, neurons = ([torch.arange(len(layer)) for layer in kind] for kind in scores)
        return PruningPlan(heads=indices(heads), neurons=indices(neurons), level=level)
    return plan_pruning(scores, level, level, uniform, whole).model_copy(update={"level": level})


def candidates(scores: Importance, uniform: bool, whole: Units) -> list[PruningPlan]:
    """What stays at each candidate level, from all units to the fewest; no two are of the same shape."""
    heads, neurons = (max(whole.heads), max(whole.neurons)) if uniform else map(sum, whole)
    levels = sorted(
        {head / heads for head in range(heads + 1)}
        | {neuron / neurons for neuron in range(0, neurons, FFN_MULTIPLE)}
    )
    if len(levels) > MOST_CANDIDATES:
        spaced = torch.linspace(0, len(levels) - 1, MOST_CANDIDATES).tolist()
        levels = [levels[round(position)] for position in spaced]
    shapes: dict[Units, PruningPlan] = {}
    for level in levels:
        plan = at_level(scores, level, uniform, whole)
        shapes.setdefault(plan.units, plan)
    return list(shapes.values())


Cost = Callable[[PreTrainedModel], Mapping[str, float]]
"""What a model costs: `parameters`, or `size_mb` and `latency_ms`."""


def reach(
    model: PreTrainedModel,
    plans: Sequence[PruningPlan],
    target: PruneTarget,
    cost: Cost,
    context: StageContext,
) -> PruningPlan:
    """The first of `plans` (from large to small) with which `model` reaches the target, and its costs.

    Raises:
        RecipeError: the last one does not reach it either; the message says by how much.
    """
    (name, limit), *_ = ((name, value) for name, value in target if value is not None)
    measured: dict[int, Mapping[str, float]] = {}

    def meets(index: int) -> bool:
        pruned = copy.deepcopy(model)
        remove(pruned, plans[index])
        measured[index] = cost(pruned)
        context.reporter.message(
            f"prune: ratio {plans[index].level:.3f}: {_format(name, measured[index][name])} "
            f"(target {_format(name, limit)})"
        )
        return bool(measured[index][name] <= limit)

    last = len(plans) - 1
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
    return plans[found].model_copy(update={"measured": dict(measured[found])})


def smallest_removal(meets: Callable[[int], bool], last: int) -> int:
    """The first index from 0 that meets; `last` must, and all that follow one that does."""
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
