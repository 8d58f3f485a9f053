"""Under which key the store keeps a stage's result: contents decide, places do not."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from pressoir.recipe.sections import DataConfig, MergeConfig, TextConfig
from pressoir.store.artifact import StageKey

STAGES = (
    *("text", "merge"),
    *("data", "teacher", "augment", "vocabulary", "teacher_outputs", "distill", "prune"),
    *("quantize", "export", "shard", "benchmark"),
)


def load_stage(name: str) -> ModuleType:
    """The module of a stage: `NAME`, `VERSION`, `KIND` and `run` (see `pressoir.stages`)."""
    if name not in STAGES:
        raise ValueError(f"no stage {name!r}; available: {', '.join(STAGES)}")
    return importlib.import_module(f"pressoir.stages.{name}")


def stage_key(stage: str, config: BaseModel, inputs: Mapping[str, str], seed: int) -> StageKey:
    """The store's key of a stage, from its configuration and the digests of its inputs.

    Contents decide, places do not: paths and model references are left out of the configuration, since the
    digest of what they name is among the inputs. Threads are left out too: they change how fast, not what.

    Raises:
        DataError: a data file does not exist.
    """
    module = load_stage(stage)
    if isinstance(config, DataConfig):
        from pressoir.data import sentences as data

        inputs = {"source": data.source_digest(config), **inputs}
    if isinstance(config, TextConfig):
        from pressoir.data import running_text

        inputs = {"source": running_text.source_digest(config), **inputs}
    return StageKey(
        stage=module.NAME,
        version=module.VERSION,
        kind=module.KIND,
        config=key_config(config),
        inputs=dict(inputs),
        seed=seed,
    )


def key_config(config: BaseModel) -> dict[str, Any]:
    """The configuration as it goes into the key: of a path only its format, of a model if one is named."""
    values = config.model_dump(mode="json")
    if isinstance(config, DataConfig):
        for split in ("train", "validation", "test", "unlabelled"):
            path = getattr(config, split)
            values[split] = None if path is None else path.suffix.lower()
        values["hub_id"] = config.hub_id is not None
    if isinstance(config, TextConfig):
        values["calibration"] = config.calibration is not None
        values["evaluation"] = sorted(config.evaluation)
    if isinstance(config, MergeConfig):
        values["models"], values["base"] = len(config.models), config.base is not None
    if "checkpoint" in values:
        values["checkpoint"] = values["checkpoint"] is not None
    if isinstance(values.get("student"), dict):
        values["student"]["model"] = values["student"]["model"] is not None
    return values
