"""Attention relations: how alike a layer finds the tokens of a sentence, and how far two models differ in it.

The queries of all heads of a layer, side by side, are split anew into relation heads. In each, the relation
of a token is the softmax over the sentence's tokens of the scaled dot products of their queries; keys and
values likewise. A relation is (tokens, tokens) whatever the model's heads and width are, so a pruned or
narrower student is compared with its teacher directly, without a projection.

Costs, in training, 3 × relation heads × sentences × longest sentence² numbers a few times over, in float32.

Source: W. Wang et al. 2021, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
Pretrained Transformers" (arXiv:2012.15828).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from pressoir.errors import RecipeError
from pressoir.models.layouts import architecture_of, attention_width, encoder_layers, projections

PROJECTIONS = ("query", "key", "value")
WIDTH = 16  # of a relation head of the teacher: 48 heads of 768 units, 64 of 1024, as in the paper


@contextmanager
def captured(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Outputs of the last layer's `PROJECTIONS`, each (batch, seq, width), of the latest pass.

    Raises:
        SourceError: the architecture is not one whose parts are known.
    """
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, (module, rows) in _projections(model).items():

        def keep(
            module: nn.Module, args: object, output: Tensor, name: str = name, rows: slice = rows
        ) -> None:
            seen[name] = output[..., rows]

        hooks.append(module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def stacked(seen: dict[str, Tensor]) -> Tensor:
    """Take out of `seen` what `captured` put there: (batch, seq, 3, width)."""
    return torch.stack([seen.pop(name) for name in PROJECTIONS], dim=2)


def width(model: PreTrainedModel) -> int:
    """Units of all heads of the last layer together."""
    return attention_width(encoder_layers(model)[-1], architecture_of(model))


def count_heads(teacher_width: int, student_width: int, asked: int | None = None) -> int:
    """Number of relation heads: `asked`, or the most that divide both widths and leave the teacher's
    relation heads `WIDTH` units or more.

    Raises:
        RecipeError: `asked` does not divide both widths.
    """
    common = math.gcd(teacher_width, student_width)
    divisors = [count for count in range(1, common + 1) if common % count == 0]
    if asked is None:
        return max(count for count in divisors if count <= max(1, teacher_width // WIDTH))
    if asked not in divisors:
        raise RecipeError(
            f"relation_heads: {asked} does not divide the units of the last layer's attention, "
            f"{teacher_width} in the teacher and {student_width} in the student; "
            f"{', '.join(map(str, divisors))} would; null chooses one of them"
        )
    return asked


def loss(student: Tensor, teacher: Tensor, mask: Tensor, heads: int | None = None) -> Tensor:
    """Mean over queries, keys and values, relation heads and tokens of KL(teacher ‖ student); a scalar.

    Computed in float32 whatever autocast says; padding is neither a row nor a column of a relation.

    Args:
        student: (batch, seq, 3, width); the gradient flows here alone.
        teacher: (batch, seq, 3, width of the teacher).
        mask: 1 for tokens, 0 for padding, (batch, seq).
        heads: number of relation heads, see `count_heads`.

    Raises:
        RecipeError: `heads` does not divide both widths.
    """
    heads = count_heads(teacher.shape[-1], student.shape[-1], heads)
    total = torch.zeros((), device=student.device)
    with torch.autocast(student.device.type, enabled=False):
        for index in range(len(PROJECTIONS)):  # one at a time: the teacher's are freed in between
            expected = _log_relations(teacher[:, :, index].detach(), mask, heads)
            found = _log_relations(student[:, :, index], mask, heads)
            each = F.kl_div(found, expected, reduction="none", log_target=True).sum(dim=-1)
            total = total + (each.mean(dim=1) * mask).sum()  # each: (batch, heads, seq)
    return total / (len(PROJECTIONS) * mask.sum())


def _log_relations(vectors: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Logarithm of the relations, (batch, heads, seq, seq), of vectors (batch, seq, width)."""
    split = vectors.float().unflatten(-1, (heads, -1)).transpose(1, 2)  # (batch, heads, seq, size)
    scores = split @ split.transpose(-1, -2) / math.sqrt(split.shape[-1])
    # Not -inf: 0 × (-inf − -inf) is no number.
    scores = scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
    return F.log_softmax(scores, dim=-1)


def _projections(model: PreTrainedModel) -> dict[str, tuple[nn.Linear, slice]]:
    return projections(encoder_layers(model)[-1], architecture_of(model))
