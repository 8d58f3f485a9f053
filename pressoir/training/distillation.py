"""What a student learns from: a teacher's stored outputs, and the loss against them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pressoir.formats.problems import SINGLE_LABEL
from pressoir.recipe.sections import LearnerConfig
from pressoir.training import relations
from pressoir.training.losses import LOSSES

PROJECTION = "hidden_projection"


@dataclass(frozen=True)
class TeacherOutputs:
    """What the teacher says of every training sentence, memory-mapped from disk."""

    logits: NDArray[np.float32]
    """(sentences, labels); of token classifiers (words of all sentences, labels)"""
    hidden: NDArray[np.float16] | None
    """(tokens of all sentences, matched layers, hidden); None without a hidden-state loss."""
    offsets: NDArray[np.int64]
    """(sentences + 1): where each sentence's tokens begin in `hidden` and `relations`."""
    relations: NDArray[np.float16] | None = None
    """(tokens of all sentences, 3, width): queries, keys and values of the last layer; None without that
    loss."""

    @classmethod
    def open(cls, folder: Path) -> TeacherOutputs:
        """Open the artifact of the `teacher_outputs` stage."""
        mapped = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("hidden", "relations")
            if (folder / f"{name}.npy").exists()
        }
        return cls(
            np.load(folder / "logits.npy"),
            mapped.get("hidden"),
            np.load(folder / "offsets.npy"),
            mapped.get("relations"),
        )

    def batch(self, rows: list[int], length: int, words: list[int] | None = None) -> dict[str, Tensor]:
        """Tensors of the sentences `rows`: logits (batch, labels), hidden (batch, length, layers, hidden),
        relations (batch, length, 3, width); the last two as far as they are there, padded by zeros.

        With `words` the logits are those of these, (words, labels).
        """
        tensors = {"teacher_logits": torch.from_numpy(self.logits[rows if words is None else words])}
        for name, stored in (("hidden", self.hidden), ("relations", self.relations)):
            if stored is not None:
                padded = np.zeros((len(rows), length, *stored.shape[1:]), dtype=np.float16)
                for index, row in enumerate(rows):
                    start, end = self.offsets[row], self.offsets[row + 1]
                    padded[index, : end - start] = stored[start:end]
                tensors[f"teacher_{name}"] = torch.from_numpy(padded)
        return tensors


@dataclass(frozen=True)
class DistillationLoss:
    """L = α·T²·KL(teacher ‖ student, at temperature T) + (1 − α)·CE + β·MSE(matched hidden states)
    + γ·KL(attention relations of the last layers, see `pressoir.training.relations`).

    Instead of KL and CE, the other kinds of problem have the losses of `pressoir.training.losses`.
    """

    temperature: float
    alpha: float
    hidden_weight: float
    relation_weight: float = 0.0
    relation_heads: int | None = None
    problem: str = SINGLE_LABEL.name

    @classmethod
    def from_config(cls, config: LearnerConfig) -> DistillationLoss:
        """With the weights that `config` gives."""
        return cls(
            config.temperature,
            config.alpha,
            config.hidden_weight,
            config.relation_weight,
            config.relation_heads,
        )

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        teacher_logits: Tensor,
        hidden: tuple[Tensor, ...] | None = None,
        teacher_hidden: Tensor | None = None,
        mask: Tensor | None = None,
        vectors: Tensor | None = None,
        teacher_vectors: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Scalar loss.

        Args:
            logits: student's, (batch, labels), or (words, labels); `teacher_logits` likewise.
            labels: class indices, (batch,) or (words,); as `Problem.targets` has them.
            hidden: the student's matched layers, each (batch, seq, hidden).
            teacher_hidden: (batch, seq, layers, hidden).
            mask: 1 for tokens, 0 for padding, (batch, seq).
            vectors: the student's queries, keys and values, (batch, seq, 3, width); `teacher_vectors`
                likewise, of a width of its own.
            class_weights: of the labels in the cross-entropy, (labels,).
        """
        logits, losses = logits.float(), LOSSES[self.problem]
        soft = losses.soft(logits, teacher_logits.float(), self.temperature)
        hard = losses.hard(logits, labels, class_weights, "mean")
        loss = self.alpha * soft + (1 - self.alpha) * hard
        if hidden is not None and teacher_hidden is not None and mask is not None:
            difference = (
                torch.stack(hidden, dim=2).float() - teacher_hidden.float()
            )  # (batch, seq, layers, hidden)
            per_token = difference.square().mean(dim=(2, 3))
            loss = loss + self.hidden_weight * (per_token * mask).sum() / mask.sum()
        if vectors is not None and teacher_vectors is not None and mask is not None:
            apart = relations.loss(vectors, teacher_vectors, mask, self.relation_heads)
            loss = loss + self.relation_weight * apart
        return loss
