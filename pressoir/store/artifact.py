"""An artifact: the small value that stages pass on, and the key under which the store keeps it."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pressoir.errors import StoreError
from pressoir.system.files import MANIFEST
from pressoir.system.reader import read_object

# Packages whose version can change what a stage computes, not only how fast.
DECISIVE_PACKAGES = (
    *("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "optimum-onnx"),
    *("safetensors", "mergekit", "numpy", "datasets"),
)


class Artifact(BaseModel):
    """The finished output of one stage, as written in its folder's `artifact.json`."""

    # A metric that is not finite is written as a string: `null`, pydantic's default, would not be read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    kind: str
    """What the folder holds: `dataset`, `model`, `quantized-model`, `onnx`, `report`, …"""
    stage: str
    """The stage that made it."""
    key: str
    """SHA-256 of what decides the result; with `stage`, the place in the store."""
    digest: str
    """SHA-256 over every file but this one: name, length, content."""
    size_bytes: int
    """Sum of those files' lengths."""
    parents: dict[str, str]
    """Digest of each input, by the name the stage knows it by."""
    config_digest: str
    """SHA-256 of the stage's configuration."""
    metrics: dict[str, float]
    """The stage's figures; fractions 0–1, units in the names."""
    environment: dict[str, str]
    """Versions of the interpreter and the decisive packages; the CPU and the threads that made it."""
    created_at: str
    """UTC time, ISO 8601."""


def read_artifact(folder: Path) -> Artifact:
    """The artifact that a folder's `artifact.json` describes; the other files are not looked at.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    path, advice = folder / MANIFEST, "run its recipe again"
    content = read_object(path, StoreError, advice, finite=False)
    try:
        return Artifact.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join(str(key) for key in first["loc"])
        raise StoreError(
            f"{path} is not an artifact manifest: {location}: {first['msg']}; {advice}"
        ) from error


class StageKey(BaseModel):
    """Everything that decides a stage's result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    version: int
    kind: str
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int

    @property
    def environment(self) -> dict[str, str]:
        """Versions that go into the key."""
        return {name: _version(name) for name in DECISIVE_PACKAGES}

    def hash(self) -> str:
        """The key: hex SHA-256 over the canonical JSON of all fields and the environment."""
        return digest_of({**self.model_dump(mode="json"), "environment": self.environment})


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
