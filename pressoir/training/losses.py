"""The losses of each kind of problem: on the labels, and against a teacher's logits.

One entry of `LOSSES` per entry of `pressoir.formats.problems.PROBLEMS`. Those on labels are transformers' own
of the same `problem_type`, with weights of the classes for one label per text.

Sources. G. Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531), also for
the factor T² of the soft losses. P. Yang et al. 2023, "Multi-Label Knowledge Distillation"
(arXiv:2308.06453), for one binary divergence per label (its multi-label logits distillation): here binary
cross-entropy with the teacher's sigmoid at temperature T, which differs by the teacher's entropy alone. J. Ba
and R. Caruana 2014, "Do Deep Nets Really Need to be Deep?" (arXiv:1312.6184), for the squared difference from
a teacher's output, which has no temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pressoir.formats.problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TOKENS


@dataclass(frozen=True)
class Losses:
    """Of logits (batch, labels); of token classifiers those of each word's first token, (words, labels)."""

    hard: Callable[[Tensor, Tensor, Tensor | None, str], Tensor]
    """`(logits, labels, class weights, reduction)`: on the labels."""
    soft: Callable[[Tensor, Tensor, float], Tensor]
    """`(logits, teacher's logits, temperature)`, scaled by the square of the temperature."""


def _cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    return F.cross_entropy(logits, labels, weights, reduction=reduction)


def _soft_labels(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    soft = F.kl_div(
        F.log_softmax(logits / temperature, dim=-1),
        F.softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
    )
    return temperature**2 * soft


def _binary(logits: Tensor, labels: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction=reduction)


def _soft_binary(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    probabilities = (teacher / temperature).sigmoid()
    return temperature**2 * F.binary_cross_entropy_with_logits(logits / temperature, probabilities)


def _squared(logits: Tensor, labels: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    return F.mse_loss(logits[:, 0], labels.to(logits.dtype), reduction=reduction)


def _soft_squared(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return F.mse_loss(logits, teacher)


LOSSES = {
    SINGLE_LABEL.name: Losses(_cross_entropy, _soft_labels),
    MULTI_LABEL.name: Losses(_binary, _soft_binary),
    REGRESSION.name: Losses(_squared, _soft_squared),
    TOKENS.name: Losses(_cross_entropy, _soft_labels),
}
