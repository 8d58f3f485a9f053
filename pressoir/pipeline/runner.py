"""What carries out a pipeline, and what comes out of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel

from pressoir.benchmark.reports import AnyRow
from pressoir.config import Config
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact

Output = TypeVar("Output")


class Runner(Protocol[Output]):
    """What carries out the steps of a pipeline. `Output` is what a step gives and later ones take."""

    def fetch(self, reference: str) -> Source:
        """Find a model and check that it is whole and safe."""

    def __call__(self, stage: str, config: BaseModel, **inputs: Output | Source | None) -> Output:
        """Carry out one stage; inputs that are None are left out."""


@dataclass(frozen=True)
class PipelineOutput(Generic[Output]):
    """What a pipeline made."""

    artifacts: dict[str, Output | Source | None]
    """Every compared model, in the order of the pipeline: `teacher` (or `source`), `teacher_onnx`, …"""
    data: Output
    final: Output
    """The last model: what is registered and served."""
    report: Output
    """The benchmark of all of them."""


class CompressResult(Config):
    """What a run of the compress flow leaves behind."""

    artifact: Artifact
    """The final model."""
    folder: Path
    """Where to find the model files."""
    report: Path
    """Folder of `benchmark.json`, `comparison.md` and the plots."""
    rows: tuple[AnyRow, ...]
    """The benchmark: first the teacher (or source), last the final model."""
    registry_id: str | None
    """Where `sources.resolve` and the server find it; None when nothing was registered."""
    decision: str | None
    """Why that version took over the alias or did not; None when nothing was registered."""
    promoted: bool | None
    """Whether it took over the alias in MLflow; None when nothing was registered."""
    prefect_run_id: str
    mlflow_run_id: str
    tracking_uri: str
    """Where MLflow keeps the run."""
