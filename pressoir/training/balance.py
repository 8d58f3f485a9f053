"""What unbalanced data call for: the metric that chooses the best epoch, and weights of the classes.

Source of `balanced` weights: G. King and L. Zeng 2001, "Logistic Regression in Rare Events Data", Political
Analysis 9:137, as scikit-learn computes them: rows / (classes × rows of the class).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pressoir.data import sentences
from pressoir.errors import RecipeError
from pressoir.formats.problems import SINGLE_LABEL
from pressoir.recipe.sections import TrainingConfig

UNBALANCED = 2.0
"""Rows of the most frequent label for one of the rarest, above which data are unbalanced."""


def best_metric(config: TrainingConfig, folder: Path) -> str:
    """The metric by which epochs and seeds are compared on the validation split.

    `auto` is `accuracy` or `macro_f1` of data with one label per text, else the main metric of the problem.
    """
    if config.best_metric != "auto":
        return config.best_metric
    if (problem := sentences.problem_of(folder)) is not SINGLE_LABEL:
        return problem.metric
    counts = Counter(sentences.load_split(folder, "train")["label"][:])
    unbalanced = max(counts.values()) > UNBALANCED * min(counts.values())
    return "macro_f1" if unbalanced else "accuracy"


def class_weights(config: TrainingConfig, folder: Path, classes: list[str]) -> Tensor | None:
    """Weight of each of a model's `classes` in the cross-entropy, (classes,); None where all weigh the same.

    Raises:
        RecipeError: the recipe gives a weight to a label that the data in `folder` do not have.
    """
    given = config.class_weights
    if given is None:
        return None
    labels, places = sentences.info(folder)["labels"], sentences.label_places(folder, classes)
    weights = torch.ones(len(classes))
    if given == "balanced":
        from sklearn.utils.class_weight import compute_class_weight

        rows = np.asarray(sentences.load_split(folder, "train", classes)["label"][:])
        occurring = np.unique(rows)
        balanced = compute_class_weight("balanced", classes=occurring, y=rows)
        weights[torch.from_numpy(occurring)] = torch.from_numpy(balanced).float()
        return weights
    if strange := sorted(given.keys() - set(labels)):
        raise RecipeError(f"class_weights: the data have the labels {labels}, not {strange}")
    for label, weight in given.items():
        weights[places[labels.index(label)]] = weight
    return weights
