"""One face for a model of any task: texts in, a table of named columns out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pressoir.errors import SourceError
from pressoir.formats.folder import task_of

Columns = dict[str, list[float] | list[str]]
NEW_TOKENS = 64


@dataclass(frozen=True)
class Predictor:
    """A loaded model."""

    columns: dict[str, Literal["double", "string"]]
    """Names and types of what it gives: a probability a label, or the `continuation` of a text."""
    predict: Callable[[Sequence[str]], Columns]
    """The columns for some texts, one value a text each."""


def open_predictor(folder: Path, threads: int) -> Predictor:
    """Open a classifier or a causal LM, in the runtime its folder is made for.

    Raises:
        SourceError: the model is damaged, or does something else.
    """
    task = task_of(folder)
    if task == "text-classification":
        from pressoir.inference.text_classification import TextClassifier

        classifier = TextClassifier.open(folder, threads)

        def probabilities(texts: Sequence[str]) -> Columns:
            rows = classifier.predict(texts)
            return {label: [row[label] for row in rows] for label in classifier.labels}

        return Predictor(dict.fromkeys(classifier.labels, "double"), probabilities)
    if task == "causal-lm":
        from pressoir.inference.text_generation import TextGenerator

        generator = TextGenerator.open(folder, threads)

        def continuations(texts: Sequence[str]) -> Columns:
            return {
                "continuation": ["".join(generator.generate(t, max_new_tokens=NEW_TOKENS)) for t in texts]
            }

        return Predictor({"continuation": "string"}, continuations)
    raise SourceError(f"{folder} contains a model for {task}, which cannot be served from MLflow")
