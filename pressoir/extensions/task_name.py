"""Task names as types of configuration fields: checked against the list, an enum in JSON schemas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pressoir.extensions import loader
from pressoir.extensions.declared_name import DeclaredName
from pressoir.extensions.task import GROUP, Kind, tasks


@dataclass(frozen=True)
class _TaskName(DeclaredName):
    group: loader.Group = GROUP
    kinds: tuple[Kind, ...] | None = None
    """Only tasks of these; null: all."""

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(task.name for task in tasks() if self.kinds is None or task.kind in self.kinds)


TaskName = Annotated[str, _TaskName()]
"""A declared task's name, as the type of a configuration's field."""
RecipeTask = Annotated[str, _TaskName(kinds=("classifier", "language model"))]
"""The same, of a task that recipes take."""
