"""What a model takes on disk, and how many weights it has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pressoir.formats.folder import GRAPH
from pressoir.formats.onnx_weights import NOT_WEIGHTS

# What a folder needs to be opened: weights, graph, configuration, tokenizer. Reports do not count as size.
_MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*.onnx", "*.onnx_data", "*.onnx.data"),
    *("config.json", "generation_config.json", "quantization.json", "shard_manifest.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "*.model"),
)


def size_mb(folder: Path) -> float:
    """Size of what `folder` needs to be opened: weights, graph, configuration, tokenizer; MB = 10^6 bytes."""
    files = {path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    return sum(path.stat().st_size for path in files) / 1e6


def count_weights(folder: Path) -> int:
    """Number of weights of a network: the same for a checkpoint, its quantised form and its ONNX graph.

    Of a graph, the elements of its float and 8-bit initializers are counted, without scales and zero points
    (which hold no weights), and without single numbers (which are constants of the arithmetic).
    """
    if not (folder / GRAPH).exists():
        from pressoir.models.layouts import count_parameters
        from pressoir.models.loading import load_classifier

        return count_parameters(load_classifier(folder))
    import onnx

    graph = onnx.load(folder / GRAPH, load_external_data=False).graph
    kinds = {getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "INT8", "UINT8")}
    total = 0
    for tensor in graph.initializer:
        elements = int(np.prod(tensor.dims))
        if tensor.data_type in kinds and elements > 1 and not tensor.name.endswith(NOT_WEIGHTS):
            total += elements
    return total
