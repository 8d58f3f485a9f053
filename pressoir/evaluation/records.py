"""The values that pass between plan, children, journal and report."""

from __future__ import annotations

from typing import Any, Literal

from pressoir.config import Config
from pressoir.extensions.task_name import TaskName
from pressoir.formats.folder import Runtime


class EvaluationSample(Config):
    """One thing to predict."""

    id: str
    """Its position in the data set, or its file's name: stable, and unique in the data set."""
    input: Any
    """Text, path of an audio file, a pair of texts, or token ids, by the task."""
    reference: Any
    """What would be right: a label, a transcription, a translation, a similarity; null for perplexity."""
    length: int
    """Characters, tokens or audio samples: longer ones are run first."""


class Estimate(Config):
    """How much memory a model's child will take at its peak, before it is loaded."""

    model: str
    """Id of the model."""
    fixed_bytes: int
    """Process, libraries, weights: what any batch size takes."""
    per_sample_bytes: int
    """Added by each sample of a batch of the longest samples."""
    origin: Literal["formula", "probe", "config"]
    """Where the figures come from."""
    details: dict[str, int] = {}  # noqa: RUF012 — pydantic copies defaults
    """Parts of `fixed_bytes` by name."""

    def peak_bytes(self, batch_size: int) -> int:
        """Predicted peak at a batch size."""
        return self.fixed_bytes + batch_size * self.per_sample_bytes


Verdict = Literal[
    "ok",
    "skipped_memory",
    "skipped_oom",
    "killed_oom",
    "killed_signal",
    "timeout",
    "damaged",
    "exception",
    "unreachable",
    "unsupported",
]


class RunOutcome(Config):
    """How one model's evaluation ended."""

    model: str
    task: TaskName | None = None
    runtime: Runtime | Literal["remote"] | None = None
    verdict: Verdict
    detail: str = ""
    """What happened, for a person: signal, damaged file, the traceback's end."""
    samples: int = 0
    """Samples with a prediction."""
    total: int = 0
    """Samples asked for."""
    batch_size: int | None = None
    """Largest batch that worked."""
    predicted_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None
    seconds: float = 0.0
    """Spent in the model (loading not counted), over all attempts."""
    load_s: float = 0.0
    metrics: dict[str, float] = {}  # noqa: RUF012
    notes: tuple[str, ...] = ()
    """Signatures of metrics, and whatever else the figures need said."""
