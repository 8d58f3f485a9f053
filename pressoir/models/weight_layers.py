"""Which modules of a transformers model are one matrix, so that codes or a graph's operator can replace it.

A linear layer is taken only if its class is exactly `nn.Linear` or GPT-2's `Conv1D`: a subclass may do more
than the product. Of embeddings, subclasses that multiply what they look up by one number are taken too
(Gemma 3, BART, M2M100, XGLM: √hidden; Vaswani et al. 2017, arXiv:1706.03762, section 3.4). Their table is
stored as it is, without the number, since a tied head reads it without.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

_LINEAR = {nn.Linear: "linear", Conv1D: "conv1d"}


def kind_of(module: nn.Module) -> str | None:
    """`linear`, `conv1d` (its weight is (in, out)) or `embedding`; None: something else."""
    if isinstance(module, nn.Embedding):
        return None if embedding_scale(module) is None else "embedding"
    return _LINEAR.get(type(module))


def embedding_scale(table: nn.Embedding) -> float | None:
    """What `table` multiplies the rows it looks up by: 1 for a plain one. None: it does something else.

    Found by a look-up in four rows of the table's width, so the weights may lie on the meta device.
    """
    if type(table) is nn.Embedding:
        return 1.0
    probe = copy.copy(table)
    probe.num_embeddings, probe.padding_idx = 4, None
    rows = torch.rand((4, table.embedding_dim), generator=torch.Generator().manual_seed(0))
    rows[0] = 1.0
    ids = torch.tensor([[3, 0, 1], [2, 1, 0]])
    try:
        with torch.inference_mode():
            found = torch.func.functional_call(probe, {"weight": rows}, (ids,))
            scale = float(found[0, 1, 0])
            same = found.dtype == rows.dtype and torch.equal(found, rows[ids] * scale)
    except Exception:  # a look-up of another kind raises whatever it does, given these ids
        return None
    return scale if same else None
