"""What is asked of a model registry: a version of an artifact, and the alias if it is better."""

from __future__ import annotations

from pathlib import Path

from pressoir.config import Config
from pressoir.recipe.sections import RegistryConfig


class VersionRequest(Config):
    """A version that is to be registered, and what decides whether it takes the alias."""

    name: str
    """The registered model."""
    config: RegistryConfig
    measured: dict[str, float]
    """The figures of the benchmark's last row that a promotion compares."""
    report: str
    """Digest of the benchmark."""
    home: Path
    """The store of the artifact."""
    stage: str
    key: str
    digest: str
    columns: dict[str, str]
    """What the model answers: MLflow's type of each column."""
    pairs: bool = False
    """Whether it is asked for pairs of texts."""
