"""Causal LMs with one face, in PyTorch and in ONNX Runtime: token ids in, logits and a longer cache out.

Nothing here imports torch unless a model is opened in PyTorch.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import SourceError
from pressoir.formats.folder import GRAPH, Runtime, read_json, runtime_of
from pressoir.formats.packed_streams import expand
from pressoir.formats.tokenizer_limit import CONTEXT
from pressoir.inference.engines.decoder_protocol import Cache, Decoder
from pressoir.inference.engines.session import make_session, verify_shards

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class TorchDecoder:
    """A transformers model in evaluation mode, under `inference_mode`, with its own attention (sdpa)."""

    runtime: Runtime = "pytorch"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        generation = model.generation_config.to_dict() if model.generation_config else {}
        self.vocabulary, self.context, self.eos_ids = _limits(model.config.to_dict(), generation)
        self._keeps_last = "logits_to_keep" in inspect.signature(model.forward).parameters

    def forward(
        self, input_ids: NDArray[np.int64], cache: Cache | None = None, *, last_only: bool = False
    ) -> tuple[NDArray[np.float32], Cache]:
        """See `Decoder.forward`."""
        import torch
        from transformers import DynamicCache

        # With its configuration, layers of sliding-window attention keep no more than their window.
        grown = DynamicCache(config=self.model.config) if cache is None else _fork(cache)
        options = {"logits_to_keep": 1} if last_only and self._keeps_last else {}
        with torch.inference_mode():
            ids = torch.from_numpy(input_ids).to(self.model.device)
            output = self.model(input_ids=ids, past_key_values=grown, use_cache=True, **options)
            logits: NDArray[np.float32] = output.logits.float().cpu().numpy()
        return logits[:, -1:] if last_only else logits, output.past_key_values


@dataclass(frozen=True)
class _OnnxCache:
    values: Mapping[str, NDArray[Any]]
    """Keys and values (batch, heads, seq, width) by the name of the input they go to."""
    length: int
    """Tokens seen."""


class OnnxDecoder:
    """An ONNX Runtime session of a decoder graph with a cache, on the CPU.

    Keys and values are never copied: the arrays that ONNX Runtime gives are views of its own memory, and it
    reads the arrays it is given where they are. (At batch 1, OrtValues and IO binding, which copy nothing
    either, took 5 to 10 % more of the CPU's time a token.) Weights that lie in the folder as 3-bit streams
    are expanded to 4 bits, code for code, before the session is made.

    Raises:
        SourceError: the graph is missing or damaged, or is not of a decoder with a cache.
    """

    runtime: Runtime = "onnxruntime"

    def __init__(self, folder: Path, threads: int) -> None:
        config = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        self.vocabulary, self.context, self.eos_ids = _limits(
            config, read_json(generation) if generation.exists() else {}
        )
        expanded = expand(folder / GRAPH)
        self.session = make_session(folder / GRAPH, threads, expanded)
        self.expanded_bytes = sum(int(np.prod(value.shape())) for value in expanded.values())
        """Bytes in memory of the weights that are 3-bit streams on the disk; 0 without such."""
        self._expanded = expanded  # the session reads their memory as long as it lives
        inputs = {value.name: value for value in self.session.get_inputs()}
        self._outputs = [value.name for value in self.session.get_outputs()]
        self._past = {name: value for name, value in inputs.items() if name.startswith("past_key_values.")}
        self._with_positions = "position_ids" in inputs
        present = [name.replace("past_key_values", "present", 1) for name in self._past]
        if not self._past or set(self._outputs) != {"logits", *present}:
            raise SourceError(
                f"{folder / GRAPH} is not a decoder with a cache: it has the inputs {', '.join(inputs)} "
                f"and the outputs {', '.join(self._outputs)}; export the language model with "
                "past_key_values and present"
            )

    def forward(
        self, input_ids: NDArray[np.int64], cache: Cache | None = None, *, last_only: bool = False
    ) -> tuple[NDArray[np.float32], Cache]:
        """See `Decoder.forward`."""
        batch, count = input_ids.shape
        seen = 0 if cache is None else cache.length
        total = seen + count
        feed = dict(self._empty(batch) if cache is None else cache.values)
        feed["input_ids"] = np.ascontiguousarray(input_ids)
        feed["attention_mask"] = np.ones((batch, total), dtype=np.int64)
        if self._with_positions:
            feed["position_ids"] = np.tile(np.arange(seen, total, dtype=np.int64), (batch, 1))
        results = dict(zip(self._outputs, self.session.run(self._outputs, feed), strict=True))
        logits: NDArray[np.float32] = results.pop("logits").astype(np.float32, copy=False)
        values = {name.replace("present", "past_key_values", 1): value for name, value in results.items()}
        return logits[:, -1:] if last_only else logits, _OnnxCache(values, total)

    def _empty(self, batch: int) -> dict[str, NDArray[Any]]:
        """A cache of no tokens: the graph names its changing sizes (batch first, then the tokens seen)."""
        empty = {}
        for name, value in self._past.items():
            shape = [size if isinstance(size, int) else 0 for size in value.shape]
            empty[name] = np.zeros([batch, *shape[1:]], dtype=_FLOATS[value.type])
        return empty


def open_decoder(folder: Path, threads: int, runtime: Runtime | None = None) -> Decoder:
    """Open a causal LM: ONNX Runtime where the folder has `model.onnx`, else PyTorch; `runtime` insists.

    PyTorch computes in float32 and on the threads that the process is set to (`runtime.use_threads`).

    Raises:
        SourceError: the folder has no causal LM for that runtime, or a damaged one.
        QuantizationError: its packed weights are damaged.
        ShardError: a shard is missing, truncated or altered.
    """
    verify_shards(folder)
    if runtime_of(folder, runtime) == "onnxruntime":
        return OnnxDecoder(folder, threads)
    from pressoir.models.loading import load_causal_lm

    return TorchDecoder(load_causal_lm(folder))


def _limits(config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, int, frozenset[int]]:
    """Number of logits, most tokens, and tokens that end a text, as the two configurations say."""
    context = next((int(config[name]) for name in CONTEXT if config.get(name)), sys.maxsize)
    eos = generation.get("eos_token_id")
    eos = config.get("eos_token_id") if eos is None else eos
    ends = frozenset() if eos is None else frozenset(eos) if isinstance(eos, list) else frozenset([eos])
    return int(config["vocab_size"]), context, ends


def _fork(cache: DynamicCache) -> DynamicCache:
    """A cache that shares the tensors of `cache`, and grows without changing it."""
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked
