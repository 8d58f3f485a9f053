"""What engines do to open a folder: verify its shards, see whether batches matter, make a session."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import SourceError
from pressoir.formats.folder import QUANTIZATION, SHARD_MANIFEST, read_json


def make_session(graph: Path, threads: int, weights: Mapping[str, Any] | None = None) -> Any:
    """An `onnxruntime.InferenceSession` of a graph on the CPU.

    `weights` (OrtValues by initializer) take the place of those in the graph's files; they must live as long
    as the session does.

    Raises:
        SourceError: the graph is missing or damaged, or lacks a file of its weights.
    """
    import onnxruntime as ort

    if not graph.exists():
        raise SourceError(f"{graph.parent} has no {graph.name}; export the model first")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Idle worker threads would go on spinning and slow whatever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Sums of uint8 × int8 products overflow 16 bits on x86 without VNNI, where this keeps them exact.
    options.add_session_config_entry("session.x64quantprecision", "1")
    for name, value in (weights or {}).items():
        options.add_initializer(name, value)
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise SourceError(f"{graph} cannot be opened ({error}); export the model again") from error


def input_names(session: Any) -> tuple[str, ...]:
    """What a graph takes."""
    return tuple(value.name for value in session.get_inputs())


def feed(taken: Collection[str], inputs: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """Those of the tokenizer's arrays, each (batch, seq), that an encoder's graph takes.

    Some tokenizers of BERT models (multilingual MiniLM and E5) give no `token_type_ids`: they are zeros, as
    transformers' own BERT has them then.
    """
    given = {name: inputs[name] for name in taken if name in inputs}
    if "token_type_ids" in taken and "token_type_ids" not in given:
        given["token_type_ids"] = np.zeros_like(inputs["input_ids"])
    return given


def batch_invariant(folder: Path) -> bool:
    """Whether a row's result does not depend on what it is batched with; see `quantization.json`."""
    path = folder / QUANTIZATION
    return not (path.exists() and read_json(path).get("activations") == "dynamic")


def verify_shards(folder: Path) -> None:
    """Check the shards of a model folder against their manifest; nothing where the model is not sharded.

    Raises:
        ShardError: a shard is missing, truncated or altered.
    """
    if (folder / SHARD_MANIFEST).exists():
        from pressoir.formats.sharding import verify  # pydantic, which a model without shards does not need

        verify(folder)
