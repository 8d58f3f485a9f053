"""What a child is given, and what it reports.

A job is one JSON file: one attempt at one model. The child answers on its standard output, one JSON message a
line: `Loaded`, `Progress` before every batch, `End`. Predictions take another way, into the journal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from pressoir.config import Config, Positive, PositiveReal
from pressoir.evaluation.config import DataSetConfig, GenerationConfig, Name, Protocol
from pressoir.extensions.task import task
from pressoir.extensions.task_name import TaskName
from pressoir.formats.folder import Runtime, runtime_of

Device = Literal["auto", "cpu", "cuda"]


class Remote(Config):
    """A model on a server."""

    url: str
    model: str
    """Its name there."""
    protocol: Protocol | None = None
    """Null asks the server."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's API key."""
    timeout_s: PositiveReal = 30.0
    """Of one request."""


class Job(Config):
    """One attempt at one model. A supervisor sets what only it can know: the last five fields."""

    model: Name
    """Id of the run: the model's, with the data set's where it has several."""
    folder: Path = Path()
    """Its files; not looked at where it is remote."""
    remote: Remote | None = None
    """Where it is not here, but on a server."""
    task: TaskName
    runtime: Runtime | None = None
    """Null takes ONNX Runtime where the folder has a graph, else PyTorch."""
    data: DataSetConfig
    samples: Positive | None = None
    """First samples of the data, or first windows of its text; null takes all."""
    generation: GenerationConfig = GenerationConfig()
    key: str
    """What its predictions are stored under; see `journal.prediction_key`."""
    device: Device = "auto"
    """Where PyTorch runs; `auto` is the GPU where there is one."""
    seed: int = 0
    journal: Path
    """The journal's file."""
    batch_size: Positive
    """Samples a batch to begin with, where all are as long as the longest."""
    max_batch_size: Positive | None = None
    """Most samples a batch, where they are shorter; null: no more than `batch_size`."""
    attempt: int = 0
    """Number in the journal."""
    allowance_bytes: int = 0
    """Most memory (PSS) that the child may take; 0: no limit."""
    threads: Positive = 1

    @property
    def attempt_key(self) -> str:
        """What decides whether an earlier attempt that succeeded did all that is asked for now."""
        return self.key if self.samples is None else f"{self.key}:{self.samples}"

    @property
    def runs_in(self) -> Runtime | Literal["remote"]:
        """What runs it."""
        return "remote" if self.remote else runtime_of(self.folder, self.runtime)


class Loaded(Config):
    """The model is loaded."""

    event: Literal["loaded"] = "loaded"
    seconds: float
    """Imports and loading."""


class Progress(Config):
    """A batch begins, or, with all done, there is none left."""

    event: Literal["progress"] = "progress"
    done: int
    """Samples that have a prediction, earlier attempts' too."""
    total: int
    """Samples asked for."""
    batch_size: int
    """Samples that go through the model together in the batch that begins; 0 while the model is loaded."""


class End(Config):
    """The last message."""

    event: Literal["end"] = "end"
    verdict: Literal["ok", "skipped_oom", "damaged", "unreachable", "exception"]
    detail: str = ""
    """For a person: what failed, the damaged file, the traceback's end."""
    batch_size: int | None = None
    """Most samples that went through the model together."""
    seconds: float = 0.0
    """Spent in the model."""
    peak_bytes: int | None = None
    """Largest resident memory (VmHWM); null where the system does not tell."""


Message = Annotated[Loaded | Progress | End, Field(discriminator="event")]
_MESSAGE: TypeAdapter[Loaded | Progress | End] = TypeAdapter(Message)


def parse(line: bytes) -> Loaded | Progress | End | None:
    """The message that a line is; None for anything else, such as a line that a kill cut short."""
    try:
        return _MESSAGE.validate_json(line)
    except ValidationError:
        return None


def wanted_batch_size(name: TaskName, asked: int | None, preset: int) -> int:
    """Samples a batch that a model of a task would like: what the configuration says, else the strategy's
    preset, or fewer where the task does with fewer."""
    if asked is not None:
        return asked
    return min(preset, task(name).most_together or preset)


def prediction_settings(
    data: DataSetConfig, generation: GenerationConfig, runtime: Runtime, device: Device = "auto"
) -> dict[str, Any]:
    """What, besides model and data, decides a prediction; for `journal.prediction_key`.

    Only what the task uses: another `num_beams` makes no other classification.
    """
    settings: dict[str, Any] = {"task": data.task, "runtime": runtime, "device": device}
    declared = task(data.task)
    if declared.languages:
        settings["languages"] = [getattr(data, field) for field in declared.languages]
    return settings | generation.model_dump(mode="json", include=set(declared.generation))
