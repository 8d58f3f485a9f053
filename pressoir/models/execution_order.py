"""In which order a forward pass needs a checkpoint's tensors, and what part of the model each belongs to.

The order of the model's own parameters comes from running it without weights (`pressoir.models.skeleton`);
here a checkpoint's names are put into it. A checkpoint may have names that the model has not: the scale and
zero point of a quantised weight, a buffer of an older version, or all names without the base model's prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

LAYER = re.compile(r"^(?P<path>.*?)(?:layers?|h|blocks?)\.(?P<index>\d+)(?:\.|$)")
_EMBEDDING = re.compile(r"emb(?!ed_out)|(^|\.)(wte|wpe|shared)\.")
_OF_WEIGHT = re.compile(r"(?<=\.weight)_(scale|zero_point)$")


def weight_of(name: str) -> str:
    """The weight that a tensor is part of: itself, unless it is a quantised weight's scale or zero point."""
    return _OF_WEIGHT.sub("", name)


def model_name(name: str, known: Iterable[str], prefix: str) -> str:
    """What the model calls the tensor: a checkpoint may lack, or have, the base model's prefix."""
    for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if candidate in known:
            return candidate
    return name


def in_order(names: Iterable[str], executed: Sequence[str], prefix: str = "") -> list[str]:
    """`names` in the order of `executed`, the model's parameters as a forward pass needs them.

    A name that the model does not have stands after the last one of the nearest module that it has; a
    quantised weight's scale and zero point stand right behind it. Without `executed`: embeddings, layers
    by number, the rest.
    """
    ranks = {name: rank for rank, name in enumerate(executed)}
    last_of: dict[str, int] = {}
    for name, rank in ranks.items():
        for module in _modules(name):
            last_of[module] = rank

    def key(name: str) -> tuple[float, tuple[object, ...], str]:
        own = model_name(weight_of(name), ranks, prefix)
        if own in ranks:
            return ranks[own], (), name
        near = next((last_of[module] + 0.5 for module in _modules(own) if module in last_of), None)
        return (len(ranks) if near is None else near), _natural(own), name

    return sorted(names, key=key)


def units(names: Sequence[str]) -> list[list[str]]:
    """Cut an ordered list into what must stay in one shard: a weight with its scale and zero point."""
    result: list[list[str]] = []
    for name in names:
        if result and weight_of(result[-1][0]) == weight_of(name):
            result[-1].append(name)
        else:
            result.append([name])
    return result


def role(names: Iterable[str]) -> str:
    """What the tensors are for, such as `embeddings, layers 0–3`; final norm, pooler and head are `head`."""
    parts: dict[str, list[int]] = {}
    for name in names:
        if layer := LAYER.match(name):
            stack = next((word for word in ("encoder", "decoder") if word in layer["path"].split(".")), "")
            parts.setdefault(f"{stack} layer".strip(), []).append(int(layer["index"]))
        else:
            rest = (
                "encoder" if "encoder" in name.split(".") else "head"
            )  # the encoder's ends are not the model's
            parts.setdefault("embeddings" if _EMBEDDING.search(name) else rest, [])
    return ", ".join(_with_range(component, numbers) for component, numbers in parts.items())


def _with_range(component: str, numbers: list[int]) -> str:
    if not numbers:
        return component
    first, last = min(numbers), max(numbers)
    return f"{component} {first}" if first == last else f"{component}s {first}–{last}"


def _modules(name: str) -> list[str]:
    """The modules that hold a tensor, the nearest first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def _natural(name: str) -> tuple[object, ...]:
    """Embeddings, then layers by number, then the rest; numbers by value, not by digit."""
    group = 1 if LAYER.match(name) else 0 if _EMBEDDING.search(name) else 2
    return (
        group,
        *((0, int(segment), "") if segment.isdigit() else (1, 0, segment) for segment in name.split(".")),
    )
