"""The runner that carries out a pipeline's steps as Prefect tasks."""

from __future__ import annotations

from pydantic import BaseModel

from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.tasks.augment import augment
from pressoir.tasks.benchmark import benchmark
from pressoir.tasks.data import data
from pressoir.tasks.distill import distill
from pressoir.tasks.export import export
from pressoir.tasks.fetch import fetch
from pressoir.tasks.merge import merge
from pressoir.tasks.prune import prune
from pressoir.tasks.quantize import quantize
from pressoir.tasks.shard import shard
from pressoir.tasks.stage import RunContext
from pressoir.tasks.teacher import teacher
from pressoir.tasks.teacher_outputs import teacher_outputs
from pressoir.tasks.text import text
from pressoir.tasks.vocabulary import vocabulary

TASKS = {
    t.name: t
    for t in (
        *(text, data, merge, teacher, augment, vocabulary, teacher_outputs, distill, prune),
        *(quantize, export, shard, benchmark),
    )
}


class TaskRunner:
    """See `pressoir.pipeline.runner.Runner`."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def fetch(self, reference: str) -> Source:
        """Find a model, by a task that tries again when the hub does not answer."""
        return fetch(reference, self.context.store.home)

    def __call__(self, stage: str, config: BaseModel, **inputs: Artifact | Source | None) -> Artifact:
        """Carry out one stage. A plain call would give a task's own state (`Cached`), not its result."""
        return TASKS[stage](config, **inputs, run=self.context, return_state=True).result()
