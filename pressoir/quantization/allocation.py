"""Which layer gets how many bits: a knapsack over measured sensitivities.

**Math.** Divergences of single layers are taken to add up, which holds while they are small. One level a
layer, such that the sum is least and the bits stay within a budget, is the multiple-choice knapsack problem.
Dynamic programming over the budget solves it, in units of the layers' greatest common divisor; where that
makes more than 65,536 units, in the smallest unit that does not, with every layer's cost rounded up, so that
the budget holds in any case.

One table answers every budget. `target_bits` reads it at one. `max_perplexity_increase` looks for the
smallest whose model, really quantised and measured on held-out calibration text, keeps the limit: by
bisection, from where the sum of divergences predicts it, to within 0.05 bits a weight.

**Cost.** The table takes milliseconds; what feeds it is described in `sensitivity`. A bisection quantises and
measures the whole model about eight times.

**Source.** H. Kellerer, U. Pferschy and D. Pisinger, Knapsack Problems, Springer 2004, chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from pressoir.errors import QuantizationError

Levels = dict[str, int]
"""Bits by layer."""

_CELLS = 1 << 16
_RESOLUTION = 0.05  # bits a weight, to which a bisection narrows the budget


class Knapsack:
    """The best choice of bits for every budget."""

    def __init__(self, loss: Mapping[str, Mapping[int, float]], weights: Mapping[str, int]) -> None:
        """`loss` by layer and bits (the same bits for all layers); `weights` of each layer."""
        self._names, self._bits = list(loss), sorted(next(iter(loss.values())))
        self._weights = weights
        self.total_weights = sum(weights[name] for name in self._names)
        highest = self.total_weights * self._bits[-1]
        self._unit = max(math.gcd(*(weights[name] for name in self._names)), -(-highest // _CELLS))
        costs = [[-(-weights[name] * bits // self._unit) for bits in self._bits] for name in self._names]
        self._costs = costs
        self.smallest = sum(cost[0] for cost in costs)
        """Units of the smallest budget, in which all layers get the fewest bits."""
        self.largest = sum(cost[-1] for cost in costs)
        self._choices = np.zeros((len(costs), self.largest + 1), dtype=np.uint8)
        best = np.zeros(self.largest + 1)
        for row, (name, cost) in enumerate(zip(self._names, costs, strict=True)):
            options = np.full((len(self._bits), self.largest + 1), np.inf)
            for option, bits in enumerate(self._bits):
                options[option, cost[option] :] = best[: self.largest + 1 - cost[option]] + loss[name][bits]
            self._choices[row] = options.argmin(axis=0)
            best = options.min(axis=0)
        self._loss = best  # by budget; not rising

    def budget(self, bits: float) -> int:
        """The budget, in units, of a mean number of bits a weight."""
        return min(max(int(bits * self.total_weights // self._unit), self.smallest), self.largest)

    def mean_bits(self, budget: int) -> float:
        """The mean number of bits a weight that a budget is."""
        return budget * self._unit / self.total_weights

    def within(self, loss: float) -> int:
        """The smallest budget whose best choice loses at most `loss`; the largest where none does."""
        enough = np.flatnonzero(self._loss[self.smallest :] <= loss)
        return self.smallest + int(enough[0]) if len(enough) else self.largest

    def choose(self, budget: int) -> Levels:
        """The choice of least loss within a budget, in units."""
        if budget <= self.smallest:  # where rounded costs are equal, more bits than the fewest might fit
            return dict.fromkeys(self._names, self._bits[0])
        levels: Levels = {}
        for row in reversed(range(len(self._names))):
            option = int(self._choices[row, budget])
            levels[self._names[row]] = self._bits[option]
            budget -= self._costs[row][option]
        return {name: levels[name] for name in self._names}


def cheapest_within(
    knapsack: Knapsack, increase: float, reference: float, measure: Callable[[Levels], float]
) -> tuple[Levels, list[dict[str, float]]]:
    """The choice of fewest bits whose measured perplexity is at most (1 + `increase`) × `reference`.

    `measure` quantises a choice and returns its perplexity.

    Returns:
        The choice, and what was measured on the way: `mean_bits`, `perplexity`.

    Raises:
        QuantizationError: even the most bits raise perplexity by more.
    """
    step = max(int(_RESOLUTION / knapsack.mean_bits(1)), 1)
    measured: list[dict[str, float]] = []
    fails, holds, best = knapsack.smallest - 1, knapsack.largest, None
    budget = knapsack.within(math.log1p(increase))
    while best is None or holds - fails > step:
        levels = knapsack.choose(budget)
        perplexity = measure(levels)
        measured.append({"mean_bits": knapsack.mean_bits(budget), "perplexity": perplexity})
        if perplexity <= reference * (1 + increase):
            holds, best = budget, levels
        elif budget == knapsack.largest:
            raise QuantizationError(
                f"even with {max(levels.values())} bits for every layer, calibration perplexity increases "
                f"from {reference:.3f} to {perplexity:.3f}, by more than {100 * increase:g} %; raise "
                "max_perplexity_increase, or set embeddings: float"
            )
        else:
            fails = budget
        budget = (fails + holds) // 2 if best is not None or holds - fails > step else holds
    return best, measured
