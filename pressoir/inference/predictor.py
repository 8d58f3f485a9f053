"""One face for a model of any task: texts in, a table of named columns out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pressoir.data.texts import Text, given_words
from pressoir.errors import SourceError
from pressoir.extensions.task import task
from pressoir.formats.folder import task_of

Columns = dict[str, list[float] | list[str]]
NEW_TOKENS = 64


@dataclass(frozen=True)
class TextPredictor:
    """A loaded model."""

    columns: dict[str, Literal["double", "string"]]
    """Names and types of what it gives: a probability a label, or the `continuation` of a text."""
    predict: Callable[[Sequence[Text]], Columns]
    """The columns for some texts, one value a text each."""
    pairs: bool = False
    """Whether a text is a pair."""


def open_predictor(folder: Path, threads: int) -> TextPredictor:
    """Open a classifier or a causal LM, in the runtime its folder is made for.

    Raises:
        SourceError: the model is damaged, or does something else.
    """
    declared = task(task_of(folder))
    if declared.table is None:
        raise SourceError(
            f"{folder} contains a model for {declared.name}, which cannot be served from MLflow"
        )
    predictor: TextPredictor = declared.part("table")(folder, threads)
    return predictor


def probabilities(folder: Path, threads: int) -> TextPredictor:
    """A classifier: the probability of each label."""
    from pressoir.inference.text_classification import TextClassifier

    classifier = TextClassifier.open(folder, threads)

    def predict(texts: Sequence[Text]) -> Columns:
        rows = classifier.predict(texts)
        return {label: [row[label] for row in rows] for label in classifier.labels}

    return TextPredictor(dict.fromkeys(classifier.labels, "double"), predict, classifier.pairs)


def entities(folder: Path, threads: int) -> TextPredictor:
    """A token classifier: the spans of each text, as JSON (see `Entity`), and its words and their tags.

    A text that is a JSON list of strings is these words.
    """
    from pressoir.inference.token_classification import TokenClassifier

    classifier = TokenClassifier.open(folder, threads)

    def predict(texts: Sequence[Text]) -> Columns:
        found = classifier.tag([given_words(str(text)) for text in texts])
        rows: dict[str, list[Any]] = {
            "entities": [[entity._asdict() for entity in each.entities] for each in found],
            "words": [list(each.words) for each in found],
            "tags": [each.tags for each in found],
        }
        return {
            name: [json.dumps(value, ensure_ascii=False) for value in values] for name, values in rows.items()
        }

    return TextPredictor(dict.fromkeys(("entities", "words", "tags"), "string"), predict)


def continuations(folder: Path, threads: int) -> TextPredictor:
    """A causal LM: the continuation of each text."""
    from pressoir.inference.text_generation import TextGenerator

    generator = TextGenerator.open(folder, threads)

    def predict(texts: Sequence[Text]) -> Columns:
        prompts = map(str, texts)
        return {"continuation": ["".join(generator.generate(t, max_new_tokens=NEW_TOKENS)) for t in prompts]}

    return TextPredictor({"continuation": "string"}, predict)
