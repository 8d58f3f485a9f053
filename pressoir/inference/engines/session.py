"""ONNX Runtime sessions, made in one way everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pressoir.errors import SourceError


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
    for name, value in (weights or {}).items():
        options.add_initializer(name, value)
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise SourceError(f"{graph} cannot be opened ({error}); export the model again") from error
