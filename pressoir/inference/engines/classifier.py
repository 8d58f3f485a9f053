"""Two engines with one face: PyTorch and ONNX Runtime. Arrays in, logits out.

Nobody else builds an `InferenceSession`. A sharded ONNX folder is verified against its manifest before it is
opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pressoir.formats.folder import GRAPH, QUANTIZATION, Runtime, runtime_of
from pressoir.inference.engines.session import batch_invariant, feed, input_names, make_session, verify_shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Engine(Protocol):
    """A loaded model."""

    runtime: Runtime
    batch_invariant: bool
    """False where a row's result depends on its batch (dynamic int8 activations, per tensor)."""

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Logits (batch, labels) for `input_ids`, `attention_mask`, … of shape (batch, seq)."""


class TorchEngine:
    """A transformers model in evaluation mode, under `inference_mode`."""

    runtime: Runtime = "pytorch"

    def __init__(self, model: PreTrainedModel, batch_invariant: bool = True) -> None:
        from pressoir.models.layouts import accepted_inputs  # brings torch, which a graph does not need

        self.model = model.eval()
        self.batch_invariant = batch_invariant
        self._accepted = accepted_inputs(model)

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """See `Engine.run`."""
        import torch

        device = self.model.device
        tensors = {
            name: torch.from_numpy(array).to(device)
            for name, array in inputs.items()
            if name in self._accepted
        }
        with torch.inference_mode():
            logits: NDArray[np.float32] = self.model(**tensors).logits.float().cpu().numpy()
        return logits


class OnnxEngine:
    """An ONNX Runtime session on the CPU."""

    runtime: Runtime = "onnxruntime"

    def __init__(self, graph: Path, threads: int, batch_invariant: bool = True) -> None:
        self.batch_invariant = batch_invariant
        self.session = make_session(graph, threads)
        self._taken = input_names(self.session)

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """See `Engine.run`."""
        logits: Any = self.session.run(["logits"], feed(self._taken, inputs))[0]
        return np.asarray(logits, dtype=np.float32)


def open_engine(folder: Path, threads: int, runtime: Runtime | None = None) -> Engine:
    """Open a model folder: ONNX Runtime where it has `model.onnx`, else PyTorch; `runtime` insists.

    Raises:
        SourceError: the folder has no model for that runtime.
        ShardError: a shard is missing, truncated or altered.
    """
    quantised = (folder / QUANTIZATION).exists()
    invariant = batch_invariant(folder)
    verify_shards(folder)
    if runtime_of(folder, runtime) == "onnxruntime":
        return OnnxEngine(folder / GRAPH, threads, invariant)
    if quantised:
        from pressoir.models.simulated_int8 import load_simulated

        return TorchEngine(load_simulated(folder), invariant)
    from pressoir.models.loading import load_classifier

    return TorchEngine(load_classifier(folder), invariant)
