"""Whether a checkpoint's own head can stay: it can where its classes are the wanted labels, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from pressoir.data import sentences
from pressoir.data.texts import PAIR
from pressoir.errors import DataError, PressoirError
from pressoir.formats.folder import read_json
from pressoir.formats.labels import are_numbers, check_problem, labels_of, match
from pressoir.formats.problems import SINGLE_LABEL, TOKENS, Problem
from pressoir.models import loading

HEADS = ("ForSequenceClassification", "ForTokenClassification")
"""How the names of classes end that have a trained head which could be taken for that of a classifier."""


def finished(folder: Path, data: Path) -> PreTrainedModel:
    """A fine-tuned classifier for the labels of `data`, with its own head and order of classes.

    Classes that it only counts (`LABEL_0`, …) get the names that the data have for them.

    Raises:
        SourceError: it does not decide what the data ask for. DataError: it has other labels than the data.
    """
    own = _own_labels(folder, sentences.problem_of(data))
    try:
        places = sentences.label_places(data, own)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    model = loading.load_classifier(folder)
    if are_numbers(own):
        names = dict(zip(places, sentences.info(data)["labels"], strict=True))
        loading.rename(model.config, [names[index] for index in range(len(own))])
    return model


def to_train(folder: Path, data: Path, tell: Callable[[str], None]) -> PreTrainedModel:
    """A classifier to train on `data`: as `finished` where `folder` is one, else with a new head.

    Raises:
        SourceError: the folder holds no encoder.
    """
    problem = sentences.problem_of(data)
    return _kept_or_new(folder, sentences.info(data)["labels"], lambda: finished(folder, data), tell, problem)


def to_distill(
    folder: Path, labels: Sequence[str], tell: Callable[[str], None], problem: Problem = SINGLE_LABEL
) -> PreTrainedModel:
    """A student: its own head is kept where its classes are the teacher's `labels` in the same order, and its
    problem is the teacher's.

    Raises:
        SourceError: the folder holds no encoder.
    """

    def kept() -> PreTrainedModel:
        if match(_own_labels(folder, problem), labels) != list(range(len(labels))):
            raise DataError(f"{folder} has the classes of the teacher in another order")
        model = loading.load_classifier(folder)
        loading.rename(model.config, labels)
        return model

    return _kept_or_new(folder, labels, kept, tell, problem)


def mark_pairs(model: PreTrainedModel, data: Path) -> None:
    """Let the configuration of `model` say whether it is trained on pairs, as those of `data` are."""
    if sentences.info(data).get(PAIR):
        setattr(model.config, PAIR, True)
    elif hasattr(model.config, PAIR):
        delattr(model.config, PAIR)


def _kept_or_new(
    folder: Path,
    labels: Sequence[str],
    kept: Callable[[], PreTrainedModel],
    tell: Callable[[str], None],
    problem: Problem,
) -> PreTrainedModel:
    names = read_json(folder / "config.json").get("architectures") or [""]
    if str(names[0]).endswith(HEADS):
        try:
            return kept()
        except PressoirError as error:
            tell(f"the head of the checkpoint is replaced by a new one for {list(labels)}: {error}")
    return loading.load_classifier(folder, labels=labels, tokens=problem.name == TOKENS.name)


def _own_labels(folder: Path, problem: Problem) -> list[str]:
    config = read_json(folder / "config.json")
    check_problem(config, str(folder), problem)
    return labels_of(config)
