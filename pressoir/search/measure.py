"""What a model costs and can do, for a search: size, latency, accuracy on the validation split.

The test split is not for choosing, so nothing here reads it. Figures go into the store, like any result: a
search that goes on after a kill, or looks at the same model again, finds what was measured before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pressoir.config import Config, Positive
from pressoir.data import sentences as data
from pressoir.inference.text_classification import TextClassifier
from pressoir.metrics import accuracy
from pressoir.search.records import Cost, Figures
from pressoir.stages.benchmark import size_mb, time_in_turn
from pressoir.store.artifact import Artifact, StageKey
from pressoir.store.store import Store
from pressoir.system.runtime import describe_machine, use_threads

VERSION = 1
_WARMUP = 10


class Conditions(Config):
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


def cost(folder: Path, sentences: Path, conditions: Conditions) -> Cost:
    """Size and latency of a model folder, on validation sentences of the data folder `sentences`."""
    return _measure(folder, sentences, conditions)[0]


def figures(model: Artifact, sentences: Artifact, store: Store, conditions: Conditions, seed: int) -> Figures:
    """Size, latency and validation accuracy of an exported model, measured once."""

    def make(out_dir: Path, _: Path) -> Mapping[str, float]:
        folder = store.path(sentences)
        found, classifier = _measure(store.path(model), folder, conditions)
        split = data.load_split(folder, "validation")
        predicted = classifier.logits(list(split["text"])).argmax(axis=1)
        return {**found.model_dump(), "accuracy": accuracy(predicted, np.asarray(split["label"]))}

    inputs = {"model": model.digest, "data": sentences.digest}
    return Figures(**_stored(store, conditions.key("search-figures", {}, inputs, seed), make))


def stored_cost(store: Store, key: StageKey, make: Callable[[Path], Cost]) -> Cost:
    """The cost of that key, from the store, or measured by `make(scratch folder)`."""
    return Cost(**_stored(store, key, lambda out_dir, work_dir: make(work_dir).model_dump()))


def _stored(
    store: Store, key: StageKey, make: Callable[[Path, Path], Mapping[str, float]]
) -> dict[str, float]:
    def noted(out_dir: Path, work_dir: Path) -> Mapping[str, float]:
        found = make(out_dir, work_dir)
        # Content of its own: artifacts are told apart by the digest of their files.
        lines = [f"{name} {value!r}" for name, value in found.items()]
        (out_dir / "figures.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return found

    artifact, _ = store.build(key, noted)
    return dict(artifact.metrics)


def _measure(folder: Path, sentences: Path, conditions: Conditions) -> tuple[Cost, TextClassifier]:
    use_threads(conditions.threads)
    classifier = TextClassifier.open(folder, conditions.threads)
    cycle = itertools.cycle(data.load_split(sentences, "validation")["text"])
    batches = [
        classifier.encode(list(itertools.islice(cycle, conditions.batch_size)))
        for _ in range(conditions.samples)
    ]
    times = time_in_turn([classifier.engine], [batches], _WARMUP)
    return Cost(size_mb=size_mb(folder), latency_ms=float(np.median(times))), classifier
