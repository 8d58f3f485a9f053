"""What a model costs and can do, for a search: size, latency, accuracy on the validation split.

The test split is not for choosing, so nothing here reads it. Figures go into the store, like any result: a
search that goes on after a kill, or looks at the same model again, finds what was measured before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pressoir.benchmark.cost import Cost, CostConditions, measure
from pressoir.data import sentences as data
from pressoir.data.texts import texts_of
from pressoir.metrics import accuracy
from pressoir.recipe_search.records import Figures
from pressoir.store.artifact import Artifact, StageKey
from pressoir.store.store import Store


def figures(
    model: Artifact, sentences: Artifact, store: Store, conditions: CostConditions, seed: int
) -> Figures:
    """Size, latency and validation accuracy of an exported model, measured once."""

    def make(out_dir: Path, _: Path) -> Mapping[str, float]:
        folder = store.path(sentences)
        found, classifier = measure(store.path(model), folder, conditions)
        split = data.load_split(folder, "validation", classifier.labels)
        predicted = classifier.logits(texts_of(split)).argmax(axis=1)
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
