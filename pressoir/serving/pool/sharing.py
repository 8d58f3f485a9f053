"""Which tiers share which model, how many loads that saves, and where sharing was narrowly missed.

What is shared is not a name but bytes: the key is the digest of the model's files with what it is loaded as
(task and runtime), so two names of the same files share too, and one name of two revisions does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

from pressoir.errors import RecipeError
from pressoir.extensions.task_name import TaskName
from pressoir.formats.folder import Runtime
from pressoir.serving.config import ServingConfig, TierConfig


@dataclass(frozen=True)
class ModelSpec:
    """One model to load, and who uses it."""

    digest: str
    """SHA-256 over its files."""
    task: TaskName
    runtime: Runtime
    source: str
    """Where its files are: a folder, or `store:stage/key`."""
    size_bytes: int
    """Of its files."""
    names: tuple[str, ...]
    """What its tiers call it."""
    tiers: tuple[str, ...]

    @property
    def name(self) -> str:
        """As the first tier names it."""
        return self.names[0]

    @property
    def key(self) -> str:
        """What it is shared by: content, task and runtime."""
        return f"{self.digest}/{self.task}/{self.runtime}"


@dataclass(frozen=True)
class Tier:
    """A tier as a request finds it: looked up once by name, then passed on."""

    name: str
    config: TierConfig
    spec: ModelSpec
    """The model behind it."""
    sharing: Sharing = field(repr=False, compare=False)
    """The analysis that it belongs to; another one once the server has been reloaded."""


@dataclass(frozen=True)
class Sharing:
    """The analysis of a configuration."""

    models: tuple[ModelSpec, ...]
    """What has to be loaded, in the order of the first tier that uses it."""
    near_misses: tuple[str, ...]
    """Tiers that look as if they shared a model, and why they do not."""

    @cached_property
    def by_tier(self) -> Mapping[str, ModelSpec]:
        """The model of each tier."""
        return {tier: model for model in self.models for tier in model.tiers}

    @property
    def tiers(self) -> int:
        """How many tiers there are."""
        return sum(len(model.tiers) for model in self.models)

    @property
    def loads_saved(self) -> int:
        """How many models less are loaded than if each tier had its own."""
        return self.tiers - len(self.models)

    @property
    def shared(self) -> tuple[ModelSpec, ...]:
        """Models that more than one tier uses."""
        return tuple(model for model in self.models if len(model.tiers) > 1)

    def summary(self) -> dict[str, Any]:
        """The analysis as JSON has it."""
        return {
            "models": [
                {"digest": model.digest, "task": model.task, "runtime": model.runtime, "tiers": model.tiers}
                for model in self.models
            ],
            "loads_saved": self.loads_saved,
            "near_misses": self.near_misses,
        }

    def lines(self) -> list[str]:
        """The analysis for a person, a line each."""
        found = [
            f"{model.name} ({model.digest[:12]}, {model.task}, {model.runtime}): "
            f"{'shared by' if len(model.tiers) > 1 else 'used by'} {', '.join(model.tiers)}"
            for model in self.models
        ]
        saved = f"{self.loads_saved} load{'' if self.loads_saved == 1 else 's'} saved"
        return [*found, f"{_count(self.tiers, 'tier')} on {_count(len(self.models), 'model')}: {saved}"]

    def warnings(self) -> list[str]:
        """What a person should know."""
        nothing = []
        if self.tiers > 1 and not self.shared:
            nothing = [f"no models are shared: {self.tiers} tiers load {self.tiers} models"]
        return [*nothing, *self.near_misses]


def analyse(config: ServingConfig) -> Sharing:
    """Group the tiers of a resolved configuration by model.

    Raises:
        RecipeError: the configuration is not resolved.
    """
    groups: dict[str, ModelSpec] = {}
    for name, tier in config.tiers.items():
        if (
            tier.task is None
            or tier.runtime is None
            or tier.digest is None
            or tier.source is None
            or tier.size_bytes is None
        ):
            raise RecipeError(
                f"tiers.{name} is not resolved; run `pressoir deploy` and serve the deployed configuration"
            )
        spec = ModelSpec(
            digest=tier.digest,
            task=tier.task,
            runtime=tier.runtime,
            source=tier.source,
            size_bytes=tier.size_bytes,
            names=(tier.model,),
            tiers=(name,),
        )
        if known := groups.get(spec.key):
            names = tuple(dict.fromkeys((*known.names, tier.model)))
            spec = replace(known, names=names, tiers=(*known.tiers, name))
        groups[spec.key] = spec
    return Sharing(tuple(groups.values()), tuple(_near_misses(list(groups.values()))))


def _near_misses(models: Sequence[ModelSpec]) -> list[str]:
    found = []
    for first, second in itertools.combinations(models, 2):
        pair = f"{', '.join(first.tiers)} and {', '.join(second.tiers)}"
        alike = {_bare(name) for name in first.names} & {_bare(name) for name in second.names}
        if first.digest == second.digest:
            found.append(
                f"{pair} have the same files, but load them as {first.task} in {first.runtime} and as "
                f"{second.task} in {second.runtime}; use the same for both to share them"
            )
        elif alike:
            found.append(
                f"{pair} both name {' and '.join(sorted(alike))}, but {first.name} has the digest "
                f"{first.digest[:12]} and {second.name} {second.digest[:12]}; use the same revision to "
                "share it"
            )
    return found


def _bare(name: str) -> str:
    """A model's name without scheme, folder and revision."""
    return PurePath(name.partition("@")[0]).name.rpartition(":")[2]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
