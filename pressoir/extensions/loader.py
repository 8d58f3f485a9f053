"""The lists of what Pressoir knows, each a group of entry points: its own, and those of other packages.

Reading a list imports nothing; an entry is imported when it is asked for. An entry of another package carries
the name and version of its distribution, which become part of the store's key.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, NamedTuple

from pressoir.errors import ExtensionError

Group = Literal["pressoir.tasks", "pressoir.stages", "pressoir.quantizers", "pressoir.architectures"]
DISTRIBUTION = "pressoir-ml"


class Origin(NamedTuple):
    """The distribution that declares an entry."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def names(group: Group) -> tuple[str, ...]:
    """Every declared name, sorted.

    Raises:
        ExtensionError: two packages declare the same name, or Pressoir itself is not installed.
    """
    return tuple(sorted(_entries(group)))


def check(group: Group, name: str, choices: tuple[str, ...] | None = None) -> None:
    """Refuse a name that nothing declares, or that is none of some `choices`; nothing is imported.

    Raises:
        ExtensionError: it is not declared; the message has the nearest and the known names.
    """
    known = names(group) if choices is None else choices
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ExtensionError(f"{group} has no {name!r}; {hint}there are: {', '.join(known)}")


def load(group: Group, name: str) -> Any:
    """What is declared under `name`.

    Raises:
        ExtensionError: nothing is; or the package that declares it cannot be imported.
    """
    check(group, name)
    entry = _entries(group)[name]
    try:
        return entry.load()
    except Exception as error:  # whatever another package raises when it is imported
        raise ExtensionError(
            f"{entry.dist and entry.dist.name} declares {name!r} in {group} as {entry.value}, which cannot "
            f"be imported ({type(error).__name__}: {error}); update or uninstall that package"
        ) from error


def origin(group: Group, name: str) -> Origin | None:
    """Who declares `name`, by distribution and version; None for Pressoir's own."""
    found = _entries(group)[name].dist
    if found is None or found.name == DISTRIBUTION:
        return None
    return Origin(found.name, found.version)


@cache
def _entries(group: Group) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            both = " and ".join(sorted(str(point.dist and point.dist.name) for point in (other, entry)))
            raise ExtensionError(f"{both} both declare {entry.name!r} in {group}; uninstall one of them")
    if not found:
        raise ExtensionError(
            f"no package declares {group}: Pressoir is on the path, but not installed; run `make` or "
            "`pip install --editable .` in its folder"
        )
    return found
