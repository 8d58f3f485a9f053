"""`metadata.json` beside a quantised model: from what it was made, how, what it weighs, and what it lost."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pressoir import __version__
from pressoir.config import Config
from pressoir.formats.folder import QUANTIZATION, read_json
from pressoir.sources.resolve import Source

FILE = "metadata.json"
QUANTIZED, ONNX = "quantized", "onnx"
"""Folders of the packed checkpoint and of the graph."""
LIBRARIES = ("torch", "transformers", "safetensors", "numpy", "onnx", "onnxruntime", "optimum")


def describe(
    folder: Path,
    source: Source,
    configs: Mapping[str, Config],
    figures: Mapping[str, Mapping[str, float]],
    peak_mb: Mapping[str, float],
    seed: int,
) -> dict[str, Any]:
    """What `metadata.json` of `folder` says.

    Args:
        folder: has `quantized/` (not where the graph is quantised directly) and `onnx/`.
        source: what it was made from.
        configs: configuration by stage, `quantize` among them.
        figures: what each stage measured.
        peak_mb: most memory resident so far, MB, by the stage after which it was read.
        seed: of the stages.
    """
    quantized = folder / QUANTIZED
    description = read_json((quantized if quantized.is_dir() else folder / ONNX) / QUANTIZATION)
    layers = {
        name: {key: layer[key] for key in ("bits", "block_size", "relative_error") if key in layer}
        for name, layer in description.get("layers", {}).items()
    }
    return {
        "level": description["scheme"],
        "bits_per_weight": description.get("bits_per_weight"),
        "source": {"reference": source.reference, "digest": source.digest},
        "sizes_mb": {
            "source": weights_mb(source.folder),
            **({QUANTIZED: weights_mb(quantized)} if quantized.is_dir() else {}),
            ONNX: weights_mb(folder / ONNX),
        },
        "peak_rss_mb": dict(peak_mb),
        "layers": layers,
        "excluded": description.get("excluded", {}),
        "figures": {stage: dict(values) for stage, values in figures.items()},
        "config": {stage: config.model_dump(mode="json") for stage, config in configs.items()},
        "seed": seed,
        "versions": {"pressoir": __version__, **{name: version(name) for name in LIBRARIES}},
    }


def weights_mb(folder: Path) -> float:
    """MB of a folder's safetensors files, graphs and their external data."""
    patterns = ("*.safetensors", "*.onnx", "*.onnx.data", "*.onnx_data")
    return sum(path.stat().st_size for pattern in patterns for path in folder.glob(pattern)) / 1e6
