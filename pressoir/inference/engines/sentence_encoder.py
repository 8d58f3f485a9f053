"""Engines that give a sentence's hidden states, in PyTorch and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import SourceError
from pressoir.formats.folder import GRAPH, Runtime
from pressoir.inference.engines.session import batch_invariant, feed, input_names, make_session

if TYPE_CHECKING:
    from transformers import PreTrainedModel


EMBEDDING = "sentence_embedding"
"""Output of a graph that has pooling and all that follows inside, as sentence-transformers names it."""
_OUTPUTS = (
    EMBEDDING,
    "last_hidden_state",
    "token_embeddings",
)  # as optimum and sentence-transformers name them
HiddenStates = NDArray[np.float32]
"""(batch, seq, hidden); of a graph with `EMBEDDING` (batch, dimensions)"""


class TorchEncoder:
    """A transformers encoder in evaluation mode, under `inference_mode`."""

    runtime: Runtime = "pytorch"
    batch_invariant = True

    def __init__(self, model: PreTrainedModel) -> None:
        from pressoir.models.layouts import accepted_inputs  # brings torch, which a graph does not need

        self.model = model.eval()
        self._accepted = accepted_inputs(model)

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> HiddenStates:
        """Last hidden states (batch, seq, hidden) for `input_ids`, `attention_mask`, … of (batch, seq)."""
        import torch

        device = self.model.device
        tensors = {
            name: torch.from_numpy(array).to(device)
            for name, array in inputs.items()
            if name in self._accepted
        }
        with torch.inference_mode():
            states: HiddenStates = self.model(**tensors).last_hidden_state.float().cpu().numpy()
        return states


class OnnxEncoder:
    """An ONNX Runtime session of an encoder on the CPU.

    Raises:
        SourceError: the graph is missing or damaged, or gives no hidden states.
    """

    runtime: Runtime = "onnxruntime"

    def __init__(self, folder: Path, threads: int) -> None:
        self.batch_invariant = batch_invariant(folder)
        self.session = make_session(folder / GRAPH, threads)
        self._taken = input_names(self.session)
        given = [value.name for value in self.session.get_outputs()]
        self._output = next((name for name in _OUTPUTS if name in given), None)
        if self._output is None:
            raise SourceError(
                f"{folder / GRAPH} has the outputs {', '.join(given)}, but embeddings need "
                "last_hidden_state; export the encoder for feature-extraction"
            )

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> HiddenStates:
        """See `TorchEncoder.run`."""
        states: Any = self.session.run([self._output], feed(self._taken, inputs))[0]
        return np.asarray(states, dtype=np.float32)
