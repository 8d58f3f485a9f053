"""What a stage is, and what it is given besides its inputs and its configuration.

A stage is declared once, as a `Stage`, and found through the entry points of the group `pressoir.stages`:
Pressoir's own in `pressoir/stages/`, those of other packages where these declare them. The module that holds
a declaration imports torch and other heavy libraries only inside `run`, and never the recipe, which has a
section for every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pressoir.config import Config
from pressoir.errors import ExtensionError
from pressoir.extensions import loader
from pressoir.extensions.loader import Group
from pressoir.reporting import Reporter

GROUP: Group = "pressoir.stages"
Place = Literal["teacher", "vocabulary", "distill", "prune", "quantize", "export", "shard"]
PLACES: tuple[Place, ...] = get_args(Place)
"""Stages of the pipeline that a stage of another package can follow."""


@dataclass(frozen=True)
class StageContext:
    """What a stage is given besides its inputs and its configuration."""

    out_dir: Path
    """Empty folder that becomes the artifact."""
    work_dir: Path
    """Folder that outlives a crash, for checkpoints."""
    reporter: Reporter
    seed: int
    threads: int
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of the inputs, by name, where they are known."""
    prepared: Any = None
    """What `Stage.prepare` returned, where it was called before."""


class StageKeyParts(NamedTuple):
    """What of a configuration decides a stage's result."""

    config: dict[str, Any]
    """As JSON has it, without paths and references."""
    inputs: Mapping[str, str] = {}
    """Digests of what the configuration names and no other stage made, by name."""


class LoggedDataset(NamedTuple):
    """What a stage of data logs as the data set of a run."""

    name: str
    files: Mapping[str, Path]
    """By use, such as `train`."""
    columns: Mapping[str, str]
    """MLflow types by name."""


class ModelSize(NamedTuple):
    """What estimates know of the base model and of the text it is given."""

    parameters: int
    hidden: int
    """Width of a token's vector."""
    heads: int
    layers: int
    tokens: int
    """Of a sentence, at most."""
    language_model: bool

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in float32."""
        return 4 * self.parameters

    def activation_bytes(self, batch_size: int, layers: int | None = None) -> int:
        """Bytes that training one batch of full sentences keeps for the backward pass, float32.

        With `layers: 1` it is what one layer computes, which is all that inference holds at a time. Source:
        V. Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models"
        (arXiv:2205.05198), equation 2, for two-byte numbers; doubled for float32.
        """
        per_layer = 34 + 5 * self.heads * self.tokens / max(self.hidden, 1)
        return int(2 * (layers or self.layers) * self.tokens * batch_size * self.hidden * per_layer)


def two_models(config: Any, size: ModelSize) -> int:
    """Bytes of two copies of the weights."""
    return 2 * size.weight_bytes


def never(config: Any) -> bool:
    """False."""
    return False


def whole_config(config: Config) -> StageKeyParts:
    """All fields of `config`."""
    return StageKeyParts(config.model_dump(mode="json"))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The declaration of a stage: one pure operation from folders to a folder.

    Raises:
        ExtensionError: `after` names no stage that can be followed.
    """

    name: str
    version: int
    """Raised whenever the result would change for the same inputs: it is part of the store's key."""
    kind: str
    """What the folder holds that it makes: `dataset`, `model`, `onnx`, `report`, …"""
    config: type[Config]
    """Type of its section."""
    run: Callable[[Mapping[str, Path], Any, StageContext], Mapping[str, float]]
    """Does the work: from input folders by name, the configuration and the context to metrics (fractions 0–1,
    units in the names). All files go into `context.out_dir`, which the store publishes when it returns."""
    key: Callable[[Any], StageKeyParts] = whole_config
    """What of the configuration decides the result."""
    label: str = ""
    """Name of its runs; inputs stand in braces, such as `export {model.stage}`. By default its own name."""
    prepare: Callable[[Any, int], Any] | None = None
    """Reads, from the configuration and the seed, what comes from outside the store, before any work; `run`
    is given the result as `context.prepared`."""
    dataset: Callable[[Path, Any], LoggedDataset] | None = None
    """What of its folder, made by this configuration, is logged as a data set of the run."""
    memory: Callable[[Any, ModelSize], int] = two_models
    """Upper estimate of what it holds at a time, bytes, besides the interpreter and the libraries: from its
    section of the recipe (None if it has none) and the base model."""
    measures: Callable[[Any], bool] = never
    """Whether, with this configuration, its result depends on times: it then holds for one number of threads
    on one kind of CPU, which become part of the key."""
    searchable: bool = False
    """Whether trials of a search may differ in its section, or leave it out."""
    after: Place | None = None
    """Stages of other packages: where it stands in the pipeline, whether or not the recipe has the stage of
    that name. It takes the latest `model` and the `data`, and its result becomes the latest model. `teacher`
    is the model that all are compared with; of a language model its source."""

    def __post_init__(self) -> None:
        if self.after is not None and self.after not in PLACES:
            raise ExtensionError(
                f"stage {self.name!r} follows {self.after!r}; it can follow {', '.join(PLACES)}"
            )

    def label_of(self, inputs: Mapping[str, Any]) -> str:
        """The name of a run on these inputs."""
        return self.label.format(**inputs) or self.name


def stage_names() -> tuple[str, ...]:
    """The names of all stages, sorted."""
    return loader.names(GROUP)


def load_stage(name: str) -> Stage:
    """The declaration of a stage.

    Raises:
        ExtensionError: there is none of this name, or its package cannot be imported or declares another.
    """
    found = loader.load(GROUP, name)
    if not isinstance(found, Stage) or found.name != name:
        raise ExtensionError(
            f"{GROUP} has {name!r}, but what it names is not a Stage of this name: {found!r}"
        )
    return found


def outside_stages() -> dict[str, Stage]:
    """The stages that other packages declare, by name.

    Raises:
        ExtensionError: one of them cannot be loaded, or says of no stage that it follows it.
    """
    found = {name: load_stage(name) for name in stage_names() if loader.origin(GROUP, name) is not None}
    for name, stage in found.items():
        if stage.after is None:
            raise ExtensionError(f"stage {name!r} has no place: set `after` to one of {', '.join(PLACES)}")
    return found
