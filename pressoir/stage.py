"""What a stage is, and what it is given besides its inputs and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pressoir.reporting import Reporter


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


class Stage(Protocol):
    """A stage module."""

    NAME: str
    VERSION: int
    KIND: str

    def run(self, inputs: Mapping[str, Path], config: Any, context: StageContext) -> dict[str, float]:
        """Do the work; return figures, fractions 0–1 and units in the names."""
