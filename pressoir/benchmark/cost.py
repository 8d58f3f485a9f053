"""What one classifier costs on this machine: its size and its median latency, measured alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pressoir.benchmark.size import size_mb
from pressoir.benchmark.timing import time_in_turn
from pressoir.config import Config, Positive
from pressoir.data import sentences as data
from pressoir.data.texts import texts_of
from pressoir.extensions.task import task
from pressoir.formats.folder import task_of
from pressoir.inference.text_classification import TextClassifier
from pressoir.store.artifact import StageKey
from pressoir.system.runtime import describe_machine, use_threads

VERSION = 1
_WARMUP = 10


class Cost(Config, allow_inf_nan=False):
    """What a model costs."""

    size_mb: float
    """Graph, weights, configuration and tokenizer on disk, MB = 10^6 bytes."""
    latency_ms: float
    """Median time of one batch."""


class CostConditions(Config):
    """How latency is measured."""

    threads: Positive
    batch_size: Positive
    samples: Positive
    """Batches that it is the median of."""

    def key(self, name: str, config: Mapping[str, object], inputs: Mapping[str, str], seed: int) -> StageKey:
        """The store's key of what is measured under these conditions, on this machine."""
        machine = describe_machine(self.threads)
        kept = {**config, **self.model_dump(), "cpu": machine["cpu"], "cpus": machine["cpus"]}
        return StageKey(
            stage=name, version=VERSION, kind="figures", config=kept, inputs=dict(inputs), seed=seed
        )


def cost(folder: Path, sentences: Path, conditions: CostConditions) -> Cost:
    """Size and latency of a model folder, on validation sentences of the data folder `sentences`."""
    return measure(folder, sentences, conditions)[0]


def measure(folder: Path, sentences: Path, conditions: CostConditions) -> tuple[Cost, TextClassifier]:
    """Size and latency, as `cost` measures them, and the classifier that was opened for it."""
    use_threads(conditions.threads)
    classifier: TextClassifier = task(task_of(folder)).part("adapter").open(folder, conditions.threads)
    cycle = itertools.cycle(texts_of(data.load_split(sentences, "validation")))
    batches = [
        classifier.encode(list(itertools.islice(cycle, conditions.batch_size)))
        for _ in range(conditions.samples)
    ]
    times = time_in_turn([classifier.engine], [batches], _WARMUP)
    return Cost(size_mb=size_mb(folder), latency_ms=float(np.median(times))), classifier
