"""What exports have in common: the name of their report, silence about what they cannot help, and models
whose functions a trace can follow."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

REPORT = "export.json"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what tracing says to developers of exporters: tracer, deprecation and fusion notes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def unscripted(model: nn.Module) -> Iterator[None]:
    """Run the functions of the model's file that transformers compiles with TorchScript (DeBERTa's) as the
    plain functions they were.

    A trace keeps a scripted function's branches as `If` nodes, among which ONNX Runtime's optimiser does not
    look when it sorts a graph; of a plain function it follows the one branch that is taken.
    """
    import torch

    module = sys.modules[type(model).__module__]
    scripted = {
        name: value for name, value in vars(module).items() if isinstance(value, torch.jit.ScriptFunction)
    }
    try:
        for name, value in scripted.items():
            setattr(module, name, getattr(value, "_torchdynamo_inline", value))  # kept for torch.compile
        yield
    finally:
        for name, value in scripted.items():
            setattr(module, name, value)
