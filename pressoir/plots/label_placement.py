"""Where to write the labels of a scatter plot so that none covers a point or another label.

Placing labels optimally is NP-hard (Formann and Wagner, A packing problem with applications to lettering of
maps, Symposium on Computational Geometry 1991); for a plot's ten, a few rounds of improvement do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


def place_labels(
    centres: Sequence[tuple[float, float]],
    radii: Sequence[float],
    extents: Sequence[tuple[float, float]],
    bounds: Box,
    obstacles: Sequence[Box] = (),
) -> list[Box]:
    """Boxes of labels of sizes `extents` beside discs: clear of discs, of each other and within the bounds.

    Each label has candidates in 24 directions and at growing distances; from a greedy start each in turn
    takes its cheapest one, the others held, until nothing changes. `obstacles` are avoided where it is cheap.
    All in one unit.
    """
    discs = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(centres, radii, strict=True)]
    candidates: list[list[tuple[float, Box]]] = []
    for (x, y), radius, (width, height) in zip(centres, radii, extents, strict=True):
        own = []
        for step in range(9):
            gap = height * (0.12 + 0.4 * step)
            for turn in range(24):
                dx, dy = math.cos(turn * math.pi / 12), math.sin(turn * math.pi / 12)
                cx = x + dx * (radius + gap) + dx * width / 2
                cy = y + dy * (radius + gap) + dy * height / 2
                box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
                hidden = width * height - _overlap(box, bounds)
                hidden += sum(_overlap(box, disc) for disc in discs)
                crossed = sum(_overlap(box, obstacle) > 0 for obstacle in obstacles)
                mistaken = any(_distance(box, c) < _distance(box, (x, y)) for c in centres)
                cost = 0.3 * step + 0.02 * abs(dx * dy) + crossed + 0.8 * mistaken
                cost += 40 * hidden / (width * height)
                own.append((cost, box))
        candidates.append(own)
    chosen: list[Box | None] = [None] * len(centres)
    for _ in range(12):
        before = list(chosen)
        for i, own in enumerate(candidates):
            others = [box for j, box in enumerate(chosen) if box is not None and j != i]
            area = extents[i][0] * extents[i][1]
            chosen[i] = min(own, key=lambda c: c[0] + 80 * sum(_overlap(c[1], o) for o in others) / area)[1]
        if chosen == before:
            break
    return [box for box in chosen if box is not None]


def _distance(box: Box, point: tuple[float, float]) -> float:
    """From a point to the nearest place of a box."""
    (x, y), (x0, y0, x1, y1) = point, box
    return math.hypot(max(x0 - x, 0, x - x1), max(y0 - y, 0, y - y1))


def _overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0
