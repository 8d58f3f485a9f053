"""Two tiers on the same texts: what each answers, how often they agree, and how fast each is.

Times are those in the service, of one text at a time, so that batching favours neither. Which tier goes
first alternates from call to call: the one that goes second finds caches warm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from pressoir.metrics import wilson_interval

KEPT = 10_000
"""Latest latencies that are kept of a tier."""


class Comparisons:
    """All comparisons in a server's life, by the tiers that were compared."""

    def __init__(self) -> None:
        self._found: dict[frozenset[tuple[str, str]], Comparison] = {}

    def of(self, digests: Mapping[str, str]) -> Comparison:
        """The comparison of some tiers, in whatever order they are named, as long as their models stay."""
        return self._found.setdefault(frozenset(digests.items()), Comparison())


class Comparison:
    """The comparison of some tiers."""

    def __init__(self) -> None:
        self.requests = self.agreed = self._turns = 0
        self._latencies_ms: dict[str, deque[float]] = {}

    def order(self, tiers: Sequence[str]) -> list[str]:
        """The order in which they have their turn now: each goes first as often as the others."""
        ordered = sorted(tiers)
        first = self._turns % len(ordered)
        self._turns += 1
        return ordered[first:] + ordered[:first]

    def add(self, answers: Mapping[str, tuple[str, float]]) -> bool:
        """Count the labels and latencies (ms) that the tiers gave to a text; returns whether all agree."""
        agree = len({label for label, _ in answers.values()}) == 1
        self.requests += 1
        self.agreed += agree
        for tier, (_, latency_ms) in answers.items():
            self._latencies_ms.setdefault(tier, deque(maxlen=KEPT)).append(latency_ms)
        return agree

    def statistics(self, tiers: Sequence[str], size_mb: Mapping[str, float]) -> dict[str, Any]:
        """How often they agreed, with Wilson's 95 % interval, and the median latency of each.

        `speedup` is the first tier's median by the second's.
        """
        counted = self.requests > 0
        medians = {tier: median(found) if (found := self._latencies_ms.get(tier)) else None for tier in tiers}
        first, second = medians[tiers[0]], medians[tiers[1]]
        return {
            "requests": self.requests,
            "agreement": self.agreed / self.requests if counted else None,
            "agreement_interval": wilson_interval(self.agreed, self.requests) if counted else None,
            "latency_p50_ms": medians,
            "speedup": first / second if first is not None and second else None,
            "size_mb": dict(size_mb),
        }
