"""Store a causal LM's weights in 8, 4, 3 or 2 bits, layer by layer, from file to file.

**What.** Every matrix product's weight becomes codes with one scale and one integer zero point for each block
of neighbours in a row (`checkpoint` has the format), by the algorithm that `algorithm` names. The token
embedding and an output head follow `embeddings`: 8 bits by default, since a token's row is read alone, with
no others to average its error out. An algorithm that calibrates on text does so inside the decoder's layers,
and quantises what lies outside of them without.

**Why.** Decoding one token reads every weight once, so its speed is that of the memory: 4 bits are read in a
quarter of the time of 16, and the file is as much smaller.

**Cost.** RTN is one pass over the file. HQQ makes up to twenty passes over each piece, GPTQ a few forward
passes of each layer over the calibration text and a Cholesky factorisation for each of its inputs. Memory
holds one piece of a tensor; for GPTQ one decoder layer, one Hessian and its factors, and the hidden states;
never the model. `target_bits` and `max_perplexity_increase` take longer: see `sensitivity` and `allocation`.

**Sources.** Each algorithm's module names its paper. Blocks: Dettmers and Zettlemoyer 2023, The case for
4-bit precision, arXiv:2212.09720.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pressoir.data import running_text
from pressoir.errors import DataError, QuantizationError
from pressoir.extensions import quantizer
from pressoir.extensions.quantizer import QuantizedMatrix, Quantizer
from pressoir.formats import packed_checkpoint, tensor_files
from pressoir.formats.folder import QUANTIZATION, model_files, read_json
from pressoir.formats.packed_checkpoint import FORMAT_VERSION, LayerInfo, PackedCheckpoint
from pressoir.inference.tokenizers.tokenizers import LanguageModelTokenizer
from pressoir.quantization import allocation, grid, packer, plot, provenance, sensitivity
from pressoir.quantization.calibration import DecoderStream
from pressoir.quantization.packer import Packer, Plan
from pressoir.quantization.source import SourceModel
from pressoir.recipe.sections import QuantizeConfig, TextConfig
from pressoir.reporting import Reporter
from pressoir.stage import StageContext
from pressoir.system.files import folder_digest
from pressoir.system.memory import peak_rss_mb as peak_so_far_mb
from pressoir.system.runtime import release_memory

BITS = {"q8": 8, "q4": 4, "q3": 3, "q2": 2}
METADATA = "metadata.json"
PLOT = "allocation.png"

_BESIDE = (
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.model", "chat_template*"),
)
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def run(inputs: Mapping[str, Path], config: QuantizeConfig, context: StageContext) -> dict[str, float]:
    """Quantise the causal LM `inputs["model"]`; calibrate on `inputs["data"]`, else on the embedded reviews.

    Returns:
        `bits_per_weight` of the matrix products (scales and zero points included), `size_ratio`, `new_mb`,
        `mean_relative_error`, `max_relative_error`, `excluded_layers`, `peak_rss_mb`; where bits were chosen
        also `mean_bits`, and `float_perplexity` and `perplexity` of held-out calibration text.

    Raises:
        QuantizationError: the model is quantised already or has nothing to quantise, a weight is not finite,
            a block size does not divide a layer, or no choice of bits keeps the limit.
        SourceError: the model is damaged.
        DataError: there is too little calibration text.
    """
    if config.scheme not in BITS:
        raise QuantizationError(f"{config.scheme!r} is not weights-only; use one of {', '.join(BITS)}")
    source, out, tell = SourceModel(inputs["model"]), context.out_dir, context.reporter.message
    if source.unknown:
        tell(f"ignored, because the architecture has no such tensors: {', '.join(source.unknown[:5])}")
    if (share := source.other_weights / source.parameters) > 0.05:
        tell(f"{100 * share:.0f} % of the weights do not belong to linear layers and stay float32")
    packer.plan(source, config, {})  # refuses what cannot be done before any work
    mixed = config.target_bits is not None or config.max_perplexity_increase is not None
    calibration, held_out = _windows(inputs, source, config, mixed)
    job = _Job(source, config, quantizer.find(config.algorithm), calibration, out, context.reporter)
    chosen: dict[str, Any] = {}
    if held_out is not None:
        chosen = _allocate(job, held_out)
        plot.allocation(chosen, out / PLOT)
    else:
        job.write(dict.fromkeys(source.matrices, BITS[config.scheme]))
    description = _describe(job, chosen)
    _write_json(description, out / QUANTIZATION)
    for path in sorted({path for pattern in _BESIDE for path in source.folder.glob(pattern)}):
        shutil.copyfile(path, out / path.name)
    write_metadata(out, source=source.folder)
    errors = [layer.relative_error for layer in job.layers.values()]
    metrics: dict[str, float] = {
        "bits_per_weight": description["bits_per_weight"],
        "size_ratio": description["original_bytes"] / description["new_bytes"],
        "new_mb": description["new_bytes"] / 1e6,
        "mean_relative_error": float(np.mean(errors)),
        "max_relative_error": max(errors),
        "excluded_layers": float(len(description["excluded"])),
        "peak_rss_mb": peak_so_far_mb(),
        **{name: chosen[name] for name in ("mean_bits", "float_perplexity", "perplexity") if chosen},
    }
    tell(
        f"{len(job.layers)} matrices, {metrics['bits_per_weight']:.3f} bits per weight in matrix products; "
        f"{description['original_bytes'] / 1e6:.1f} → {metrics['new_mb']:.1f} MB; peak memory "
        f"{metrics['peak_rss_mb']:.0f} MB"
    )
    return metrics


def write_metadata(
    folder: Path, *, source: Path | None = None, target: Path | None = None, peak_rss_mb: float | None = None
) -> dict[str, Any]:
    """Summarise a quantised folder in its `metadata.json` (or in `target`), and return the summary.

    `source` is the model that was quantised; without it, its digest is taken from the folder's own
    `metadata.json`. The peak of memory, MB, differs between runs: a folder that is known by its digest goes
    without it.

    Raises:
        SourceError: the folder is damaged.
        QuantizationError: it is not packed.
    """
    description = packed_checkpoint.open_packed(folder).description
    if source is not None:
        digest = folder_digest(source, model_files(source))[0]
    else:
        digest = read_json(folder / METADATA)["source_digest"]
    sizes = ("bits_per_weight", "original_bytes", "float32_bytes", "new_bytes")
    versions = {name: metadata.version(name) for name in _PACKAGES}
    summary = {
        "level": description["scheme"],
        "algorithm": description["algorithm"],
        **{name: description[name] for name in sizes},
        **({} if peak_rss_mb is None else {"peak_rss_mb": peak_rss_mb}),
        "source_digest": digest,
        "versions": {"python": platform.python_version(), **versions},
        "relative_error": {name: layer["relative_error"] for name, layer in description["layers"].items()},
    }
    _write_json(summary, target or folder / METADATA)
    return summary


@dataclass
class _Job:
    """One model on its way into one folder."""

    source: SourceModel
    config: QuantizeConfig
    quantizer: Quantizer
    windows: NDArray[np.int64] | None
    """Token ids (windows, tokens) that calibrate; None where the algorithm needs none."""
    out: Path
    reporter: Reporter
    layers: Plan = field(default_factory=dict)
    """How each matrix was stored, when last written."""
    data_bytes: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """Those settings that belong to the algorithm."""
        return {name: getattr(self.config, name) for name in self.quantizer.options}

    def write(self, bits: Mapping[str, int]) -> None:
        """Write the weights' file, products in the `bits` given by name."""
        plan = packer.plan(self.source, self.config, bits)
        with Packer(self.out, self.source, plan, self.reporter) as target:
            if self.windows is not None:
                self._calibrated(target, DecoderStream(self.source, self.windows))
            for name in target.missing:
                self._by_rows(target, name)
            self.layers, self.data_bytes = target.finished(), target.data_bytes

    def quantize(self, name: str, weight: Tensor, hessian: Tensor | None, info: LayerInfo) -> QuantizedMatrix:
        """A matrix, or, without a Hessian, some rows of it."""
        bits, block_size = info.bits, info.block_size
        result = self.quantizer(weight, bits, block_size, name, hessian, self.options)
        grid.check_result(result, weight, bits, block_size, f"{self.quantizer.name}, on {name},")
        return result

    def _by_rows(self, target: Packer, name: str, result: Tensor | None = None) -> None:
        """Write a matrix without calibration; put what it becomes into `result` (out, in)."""
        for first, weight in self.source.rows(name):
            quantized = self.quantize(name, weight, None, target.plan[name])
            dequantized = target.put(name, weight, quantized, first)
            if result is not None:
                result[first : first + len(weight)] = dequantized

    def _calibrated(self, target: Packer, stream: DecoderStream) -> None:
        """The decoder's layers in order, each on what the quantised ones before it give."""
        table, replaced = self.source.embedding, dict[str, Tensor]()
        if table in target.plan:
            replaced[table] = torch.empty(target.plan[table].shape)
            self._by_rows(target, table, replaced[table])
        hidden = stream.embed(replaced)
        replaced.clear()
        release_memory()

        def replace(name: str, weight: Tensor, hessian: Tensor | None) -> Tensor:
            return target.put(name, weight, self.quantize(name, weight, hessian, target.plan[name]))

        for layer in range(len(stream)):
            hidden = stream.quantize(layer, hidden, replace, set(target.missing))
            release_memory()  # the C library's free blocks would add up from layer to layer


def _windows(
    inputs: Mapping[str, Path], source: SourceModel, config: QuantizeConfig, mixed: bool
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Token ids (windows, tokens) for Hessians, and others held out for sensitivities; None if not needed.

    Where both are, there are half as many held out as calibrate; every third window is.
    """
    calibrated = quantizer.find(config.algorithm).calibrated is not None
    if not calibrated and not mixed:
        return None, None
    folder = inputs.get("data")
    settings = running_text.info(folder) if folder else TextConfig()
    content = running_text.load_calibration(folder) if folder else running_text.embedded_calibration()
    ids = LanguageModelTokenizer.open(source.folder).encode(content)
    window = min(settings.window, getattr(source.skeleton.config, "max_position_embeddings", settings.window))
    count = settings.calibration_windows
    if not mixed:
        return running_text.windows(ids, window, count, spread=True), None
    cut = running_text.windows(ids, window, count + max(count // 2, 1), spread=True)
    if len(cut) < 2:
        raise DataError(
            f"the calibration text has only one window of {window} tokens, but choosing bit widths needs "
            "separate windows to calibrate and to measure; use a longer text"
        )
    third = np.arange(len(cut)) % 3 == 1
    return cut[~third] if calibrated else None, cut[third]


def _allocate(job: _Job, windows: NDArray[np.int64]) -> dict[str, Any]:
    """Choose the bits of each layer on held-out `windows`, write the model, and tell what was found."""
    source, config = job.source, job.config
    held_out = DecoderStream(source, windows)
    calibration = None if job.windows is None else DecoderStream(source, job.windows)
    left_out = packer.excluded(source, config)
    inside = {name for layer in range(len(held_out)) for name in held_out.inside(layer)} - left_out.keys()

    def trial(name: str, weight: Tensor, hessian: Tensor | None, bits: int) -> Tensor:
        info = packer.describe(source.matrices[name], bits, config)
        return job.quantize(name, weight, hessian, info).dequantize()

    def measure(levels: allocation.Levels) -> float:
        job.write(levels)
        perplexity = _perplexity(held_out, job)
        job.reporter.metric("perplexity", perplexity)
        return perplexity

    losses, reference = sensitivity.measure(held_out, calibration, trial, inside, job.reporter)
    knapsack = allocation.Knapsack(losses, {name: source.matrices[name].weights for name in losses})
    measured: list[dict[str, float]] = []
    if config.target_bits is not None:
        levels = knapsack.choose(knapsack.budget(config.target_bits))
        perplexity = measure(levels)
    else:
        assert config.max_perplexity_increase is not None
        levels, measured = allocation.cheapest_within(
            knapsack, config.max_perplexity_increase, reference, measure
        )
        perplexity = measure(levels)  # the last one tried need not be the one chosen
    mean_bits = sum(bits * source.matrices[name].weights for name, bits in levels.items())
    return {
        "method": "multiple-choice knapsack by dynamic programming over KL divergences of single layers",
        "target_bits": config.target_bits,
        "max_perplexity_increase": config.max_perplexity_increase,
        "mean_bits": mean_bits / knapsack.total_weights,
        "held_out_tokens": int(windows.size),
        "float_perplexity": reference,
        "perplexity": perplexity,
        "measured": measured,
        "layers": {
            name: {
                "level": f"q{bits}",
                "bytes": job.layers[name].stored_bytes,
                "sensitivity": {f"q{b}": value for b, value in losses[name].items()},
            }
            for name, bits in levels.items()
        },
    }


def _perplexity(stream: DecoderStream, job: _Job) -> float:
    """Perplexity of the weights last written, layer by layer from their file."""
    packed = PackedCheckpoint(job.out, {}, job.layers, tensor_files.tensors_of(job.out))

    def weights(names: Iterable[str]) -> dict[str, Tensor]:
        return {n: torch.from_numpy(packed.layer(n).dequantize()) for n in names if n in job.layers}

    outside = job.layers.keys() - {name for layer in range(len(stream)) for name in stream.inside(layer)}
    hidden = stream.embed(weights({job.source.embedding or ""}))
    for layer in range(len(stream)):
        hidden = stream.through(layer, hidden, weights(stream.inside(layer)))
    return stream.perplexity(hidden, weights(outside))


def _describe(job: _Job, chosen: dict[str, Any]) -> dict[str, Any]:
    """What `quantization.json` holds. `chosen`: see `_allocate`; empty where all layers have one level."""
    config, source = job.config, job.source
    products = [layer for layer in job.layers.values() if layer.role == "matmul"]
    weights = sum(layer.shape[0] * layer.shape[1] for layer in products)
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "scheme": "mixed" if chosen else config.scheme,
        "activations": "float",
        "algorithm": config.algorithm,
        "block_size": config.block_size
        or (None if chosen else packer.DEFAULT_BLOCK_SIZES[BITS[config.scheme]]),
        "embeddings": config.embeddings,
        "layers": {name: layer.model_dump(mode="json") for name, layer in job.layers.items()},
        "excluded": packer.excluded(source, config),
        "original_bytes": source.file_bytes,
        "float32_bytes": 4 * source.parameters,
        "new_bytes": job.data_bytes,
        "bits_per_weight": 8 * sum(layer.stored_bytes for layer in products) / weights,
    }
    description |= job.options | provenance.key_extras(config)
    if job.windows is not None:
        description["calibration"] = dict(zip(("windows", "window"), job.windows.shape, strict=True))
    if chosen:
        description["allocation"] = chosen
    return description


def _write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
