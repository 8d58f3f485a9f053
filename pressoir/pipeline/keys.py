"""Under which key the store keeps a stage's result: contents decide, places do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from pressoir.extensions import loader
from pressoir.stage import GROUP, StageKeyParts, load_stage
from pressoir.store.artifact import StageKey
from pressoir.system.runtime import machine_of


def stage_key(
    stage: str,
    config: BaseModel,
    inputs: Mapping[str, str],
    seed: int,
    parts: StageKeyParts | None = None,
    origins: Sequence[str] = (),
    threads: int | None = None,
) -> StageKey:
    """The store's key of a stage, from its configuration and the digests of its inputs.

    Paths and model references are left out of the configuration, since the digest of what they name is among
    the inputs. CPU and `threads` are left out too, but where times decide the result. The key of another
    package's stage has its distribution and version, and so has that of a stage whose input is a model of
    another package's architecture or task (`origins`). `parts` are those of `config`, where they are known:
    they may have taken hashing files.

    Raises:
        ExtensionError: there is no such stage. DataError: a data file does not exist.
    """
    declared = load_stage(stage)
    parts = parts or declared.key(config)
    values, origin = parts.config, loader.origin(GROUP, stage)
    if origin is not None:  # "from" is the name of no field
        values = {**values, "from": str(origin)}
    if origins:
        values = {**values, "model from": list(origins)}
    if threads is not None and declared.measures(config):
        values = {**values, "machine": machine_of(threads)}
    return StageKey(
        stage=declared.name,
        version=declared.version,
        kind=declared.kind,
        config=values,
        inputs={**parts.inputs, **inputs},
        seed=seed,
    )
