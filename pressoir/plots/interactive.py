"""Plots as SVG within a page: a mark shows its figures when it is pointed at, tapped or focused.

Values enter; what is to be drawn, in units of the picture, leaves; `charts.html` draws it, without a script.
Colours are those of `pressoir.plots.style`, brighter on a dark page; runtimes differ by shape, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import LogLocator, MaxNLocator

from pressoir.plots.label_placement import place_labels

WIDTH = 760.0
"""Of every picture."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, WIDTH - 14, 12.0, 348.0  # of the axes of a scatter plot
_CHARACTER, _LINE = 7.2, 17.0  # width of a character, height of a line
_PAD = 8.0
_BAR, _BAR_STEP = 16.0, 27.0
_MOST_NAME = 30  # characters
_MOST_FACT = 60


@dataclass(frozen=True)
class Point:
    """A mark of a scatter plot."""

    x: float
    y: float
    low: float
    """Lower end of the interval of `y`; `y` itself if there is none."""
    high: float
    radius: float
    """In units of the picture."""
    group: str
    """Runtime: decides colour and shape."""
    hollow: bool
    name: str
    facts: tuple[str, ...]
    """What is shown when the mark is pointed at, a line each."""


@dataclass(frozen=True)
class Bar:
    """A horizontal bar."""

    name: str
    value: float
    upper: float
    """End of the thin line beyond the bar; `value` itself if there is none."""
    text: str
    """Beside the bar."""
    group: str
    hollow: bool
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A straight line; `kind` is its class."""

    x0: float
    y0: float
    x1: float
    y1: float
    kind: str


@dataclass(frozen=True)
class Text:
    """A text at its baseline; `anchor` is SVG's."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    kind: str = ""


@dataclass(frozen=True)
class Shape:
    """A path; `kind` is its class."""

    path: str
    kind: str


@dataclass(frozen=True)
class Spot:
    """Where to point, and what is then shown."""

    path: str
    label: str
    """For those who do not see the picture."""
    x: float
    y: float
    width: float
    height: float
    """Of the box that is shown."""
    lines: tuple[Text, ...]


@dataclass(frozen=True)
class Chart:
    """A picture: what is first is drawn first."""

    title: str
    height: float
    keys: tuple[tuple[str, str], ...]
    """The legend: class and meaning."""
    lines: tuple[Line, ...]
    shapes: tuple[Shape, ...]
    texts: tuple[Text, ...]
    spots: tuple[Spot, ...]
    width: float = WIDTH


class _Scale:
    """Places values between two ends of the picture."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool, most: float) -> None:
        low, high = min(values), max(values)
        if log:
            room = max(1.15, (high / low) ** 0.12)
            self.low, self.high = low / room, high * room
        else:
            room = 0.12 * max(high - low, abs(high) * 0.02, 1e-9)
            self.low, self.high = low - room, high + room
        self._log, self._start, self._end, self._most = log, start, end, most

    def at(self, value: float) -> float:
        """The place of a value."""
        if self._log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return round(self._start + part * (self._end - self._start), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts of round values."""
        found: list[float] = []
        if self._log:
            subs = (1.0, 2.0, 5.0) if self.high > 6 * self.low else tuple(map(float, range(1, 10)))
            found = self._inside(LogLocator(base=10, subs=subs), self._most)
        if len(found) < 3:
            found = self._inside(MaxNLocator(6, steps=[1, 2, 5, 10]), self._most)
        return [(self.at(value), f"{value:g}") for value in found]

    def _inside(self, locator: LogLocator | MaxNLocator, most: float) -> list[float]:
        values = [float(value) for value in locator.tick_values(self.low, self.high)]
        return [value for value in values if self.low <= value <= min(self.high, most)]


def scatter(
    title: str,
    points: Sequence[Point],
    labels: tuple[str, str],
    keys: Sequence[tuple[str, str]],
    *,
    front: Sequence[tuple[float, float]] = (),
    level: float | None = None,
    log_y: bool = False,
    most_y: float = math.inf,
) -> Chart:
    """Points on a logarithmic axis to the right, and a linear one upwards unless `log_y`.

    `front` are corners of a line behind them, `level` is a height to be marked, `most_y` the largest value
    that the upward axis names.
    """
    heights = [value for point in points for value in (point.low, point.y, point.high)]
    across = _Scale([point.x for point in points], _LEFT, _RIGHT, log=True, most=math.inf)
    up = _Scale([*heights, *([] if level is None else [level])], _BOTTOM, _TOP, log=log_y, most=most_y)
    lines = [Line(place, _TOP, place, _BOTTOM, "grid") for place, _ in across.ticks()]
    lines += [Line(_LEFT, place, _RIGHT, place, "grid") for place, _ in up.ticks()]
    lines += [Line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, "axis"), Line(_LEFT, _TOP, _LEFT, _BOTTOM, "axis")]
    if level is not None:
        lines.append(Line(_LEFT, up.at(level), _RIGHT, up.at(level), "level"))
    corners = [(across.at(x), up.at(y)) for x, y in front]
    front_lines = [Line(*a, *b, "front") for a, b in itertools.pairwise(corners)]
    centres = [(across.at(point.x), up.at(point.y)) for point in points]
    ranges = [
        Line(x, up.at(point.low), x, up.at(point.high), f"range {point.group}")
        for point, (x, _) in zip(points, centres, strict=True)
        if point.low < point.high
    ]
    shapes, spots = list[Shape](), list[Spot]()
    # The largest first, so that it neither hides nor covers what lies within.
    for point, (x, y) in sorted(zip(points, centres, strict=True), key=lambda pair: -pair[0].radius):
        path = _mark(x, y, point.radius, point.group)
        shapes += [Shape(path, f"mark {point.group}{' hollow' if point.hollow else ''}")]
        shapes += [Shape(_mark(x, y, 1.8, "pytorch"), "centre")]
        target = _mark(x, y, max(point.radius, 9.0), point.group)
        spots.append(_spot(target, (x, y), point.radius, point.name, point.facts, _BOTTOM))
    texts = [Text(place, _BOTTOM + 18, text, "middle") for place, text in across.ticks()]
    texts += [Text(_LEFT - 8, place + 4, text, "end") for place, text in up.ticks()]
    texts += [Text((_LEFT + _RIGHT) / 2, _BOTTOM + 40, labels[0], "middle", "muted")]
    texts += [Text(14, (_TOP + _BOTTOM) / 2, labels[1], "middle", "muted up")]
    behind = [line for line in (*lines, *front_lines, *ranges) if line.kind not in ("grid", "axis")]
    names, leaders = _names(points, centres, behind)
    return Chart(
        title,
        _BOTTOM + 50,
        tuple(keys),
        (*lines, *front_lines, *ranges, *leaders),
        tuple(shapes),
        (*texts, *names),
        tuple(spots),
    )


def bars(title: str, rows: Sequence[Bar], label: str, keys: Sequence[tuple[str, str]]) -> Chart:
    """Horizontal bars from 0, the first on top."""
    names = [_cut(row.name, _MOST_NAME) for row in rows]
    left = max(len(name) for name in names) * _CHARACTER + 14
    right = WIDTH - max(len(row.text) for row in rows) * _CHARACTER - 16
    largest = max(row.upper for row in rows)
    lines, shapes, texts, spots = list[Line](), list[Shape](), list[Text](), list[Spot]()
    bottom = _TOP + len(rows) * _BAR_STEP
    height = max(bottom + 28, *(_tip_height(row.facts) + 4 for row in rows))
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        middle = _TOP + (i + 0.5) * _BAR_STEP
        end = round(left + row.value / largest * (right - left), 2)
        far = round(left + row.upper / largest * (right - left), 2)
        path = _box(left, middle - _BAR / 2, max(end - left, 1.0), _BAR)
        shapes.append(Shape(path, f"bar {row.group}{' hollow' if row.hollow else ''}"))
        if far > end:
            lines += [Line(end, middle, far, middle, f"range {row.group}")]
            lines += [Line(far, middle - 5, far, middle + 5, f"range {row.group}")]
        texts += [Text(left - 8, middle + 4, name, "end"), Text(far + 7, middle + 4, row.text)]
        target = _box(2, middle - _BAR_STEP / 2, WIDTH - 4, _BAR_STEP)
        centre = ((left + right) / 2, middle)
        spots.append(_spot(target, centre, _BAR_STEP / 2, row.name, row.facts, height - 2))
    lines.append(Line(left, _TOP, left, bottom, "axis"))
    texts.append(Text(left, bottom + 18, label, "start", "muted"))
    return Chart(title, height, tuple(keys), tuple(lines), tuple(shapes), tuple(texts), tuple(spots))


def _names(
    points: Sequence[Point], centres: Sequence[tuple[float, float]], lines: Sequence[Line]
) -> tuple[list[Text], list[Line]]:
    """A name beside each point, and a line to it where they stand apart."""
    names = [_cut(point.name, _MOST_NAME) for point in points]
    radii = [point.radius for point in points]
    extents = [(len(name) * _CHARACTER + 6, _LINE) for name in names]
    obstacles = [
        (min(x.x0, x.x1) - 3, min(x.y0, x.y1) - 3, max(x.x0, x.x1) + 3, max(x.y0, x.y1) + 3) for x in lines
    ]
    boxes = place_labels(centres, radii, extents, (_LEFT, _TOP, _RIGHT, _BOTTOM), obstacles)
    texts, leaders = list[Text](), list[Line]()
    for name, (x, y), radius, (x0, y0, x1, y1) in zip(names, centres, radii, boxes, strict=True):
        near = (min(max(x, x0), x1), min(max(y, y0), y1))
        apart = math.dist((x, y), near)
        if apart > radius + 11:
            start = (x + (near[0] - x) * radius / apart, y + (near[1] - y) * radius / apart)
            ends = [round(value, 2) for value in (*start, *near)]
            leaders.append(Line(ends[0], ends[1], ends[2], ends[3], "leader"))
        texts.append(Text(round((x0 + x1) / 2, 2), round((y0 + y1) / 2 + 4, 2), name, "middle", "name"))
    return texts, leaders


def _spot(
    path: str, centre: tuple[float, float], reach: float, name: str, facts: Sequence[str], bottom: float
) -> Spot:
    """A box above or below what is pointed at, within the picture."""
    told = [_cut(name, _MOST_NAME), *(_cut(fact, _MOST_FACT) for fact in facts)]
    width = max(map(len, told)) * _CHARACTER + 2 * _PAD
    height = _tip_height(facts)
    x = min(max(centre[0] - width / 2, 2), WIDTH - width - 2)
    y = centre[1] - reach - height - 6
    if y < 2:
        y = max(2.0, min(centre[1] + reach + 6, bottom - height))
    lines = tuple(
        Text(round(x + _PAD, 2), round(y + _PAD + 11 + i * _LINE, 2), text, "start", "" if i else "name")
        for i, text in enumerate(told)
    )
    return Spot(path, f"{name}: {', '.join(facts)}", round(x, 2), round(y, 2), width, height, lines)


def _tip_height(facts: Sequence[str]) -> float:
    return (1 + len(facts)) * _LINE + 2 * _PAD - 4


def _mark(x: float, y: float, radius: float, group: str) -> str:
    """A square of ONNX Runtime, a circle of PyTorch."""
    r = round(radius, 2)
    if group == "onnxruntime":
        r = round(radius * 0.89, 2)  # of the circle's area
        return f"M{x - r:.2f} {y - r:.2f}h{2 * r}v{2 * r}h{-2 * r}z"
    return f"M{x - r:.2f} {y:.2f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"M{x:.2f} {y:.2f}h{width:.2f}v{height:.2f}h{-width:.2f}z"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
