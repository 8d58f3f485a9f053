"""The classes that a classifier's configuration names, and how they go with the labels of data: by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pressoir.errors import DataError, SourceError
from pressoir.formats.problems import SINGLE_LABEL, Problem, problem_of


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """The names in `id2label` in the order of the logits; LABEL_0 and LABEL_1 where it is absent."""
    names = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
    return [str(names[index]) for index in sorted(names, key=int)]


def are_numbers(labels: Sequence[str]) -> bool:
    """Whether the labels only count the classes: `0`, `1`, … or transformers' `LABEL_0`, `LABEL_1`, …"""
    return all(label in (str(index), f"LABEL_{index}") for index, label in enumerate(labels))


def match(own: Sequence[str], wanted: Sequence[str], ordered: bool = False) -> list[int]:
    """For each label of the data (`wanted`) its index among the model's (`own`).

    By name, in any order; letter case decides only where names differ in nothing else. Names that only count
    the classes go by index: the data's always, the model's where the order of the data's labels was specified
    (`ordered`) and not merely sorted.

    Raises:
        DataError: the model has other labels; both lists are in the message.
    """
    if len(own) == len(wanted):
        for form in (str, str.casefold):
            indices = {form(name): index for index, name in enumerate(own)}
            if len(indices) == len(own) and indices.keys() == {form(name) for name in wanted}:
                return [indices[form(name)] for name in wanted]
        if are_numbers(wanted) or (are_numbers(own) and ordered):
            return list(range(len(own)))
    advice = "use a model and data with the same labels"
    if len(own) == len(wanted) and are_numbers(own):
        advice = "set data.labels to the data's labels in the order of the model's classes"
    raise DataError(
        f"the model has {len(own)} labels ({_listed(own)}), but the data have {len(wanted)} "
        f"({_listed(wanted)}); {advice}"
    )


def check_problem(config: Mapping[str, Any], model: str, wanted: Problem) -> None:
    """Check that `model`, whose configuration says so, decides what is `wanted`.

    Raises:
        SourceError: it decides something else of a text, or tags words.
    """
    found = problem_of(config, model)
    if found.name != wanted.name:
        raise SourceError(f"{model} is {found.model}; {wanted.model} is needed")


def check_single_label(config: Mapping[str, Any], model: str) -> None:
    """Check that `model`, whose configuration says so, chooses one label of several for a text.

    Raises:
        SourceError: it is a token classifier, a multi-label classifier or a regression model.
    """
    check_problem(config, model, SINGLE_LABEL)


def _listed(labels: Sequence[str]) -> str:
    more = f", … {len(labels) - 20} more" if len(labels) > 20 else ""
    return ", ".join(map(repr, labels[:20])) + more
